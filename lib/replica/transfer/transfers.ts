// The state transfers in which this replica takes part: as leader, which orders them; as receiver; as donor. Joins them to
// the control connections, over which they are ordered and their links made, and to the mailbox, by which the two ends
// then keep each other informed; and tells of their progress.
import type { ChainPosition } from '../../consensus/entry.js';
import { QuorateError } from '../../errors.js';
import type { ControlConnection } from '../control-channel.js';
import type { Mailbox } from '../mailbox/mailbox.js';
import { Donor, type DonorHost } from './donor.js';
import { ORDER_TIMEOUT_MS } from './limits.js';
import {
  checkClosed,
  checkNews,
  checkOrder,
  checkReady,
  checkTaken,
  type TransferNews,
  type TransferOrder,
} from './messages.js';
import { TransferProgress, type TransferStatus } from './progress.js';
import { type ReceivedLog, Receiver, type ReceiverHost } from './receiver.js';

export interface TransfersHost
  extends Omit<DonorHost, 'onProgress' | 'tell'>,
    Omit<ReceiverHost, 'onProgress' | 'tell'> {
  /** Where messages to this process of the peer go; undefined if there is no link for them. */
  mailboxTo(peer: number, processId: number): Pick<Mailbox, 'tell'> | undefined;
  /** Members deal with members only. */
  isMember(id: number): boolean;
  /** At the leader: the snapshot that the receiver gets stands for this LSN. */
  readonly onSnapshotKnown: (receiver: number, lsn: number) => void;
  readonly onProgress: (status: TransferStatus) => void;
}

export class Transfers {
  private readonly donor: Donor;
  private readonly receiver: Receiver;
  /** By receiver. */
  private readonly ordered = new Map<number, TransferProgress>();
  /** Who is to hear how the transfer to this replica goes. */
  private readonly orderers = new Set<ControlConnection>();
  /** How the other end of a connection is told; null: over the connection. */
  private readonly mailboxes = new WeakMap<ControlConnection, Pick<Mailbox, 'tell'> | null>();

  constructor(private readonly host: TransfersHost) {
    const tell = (connection: ControlConnection, type: string, body: unknown): void =>
      this.tell(connection, type, body);
    this.donor = new Donor({ ...donorPart(host), tell });
    this.receiver = new Receiver({
      ...receiverPart(host),
      tell,
      onProgress: (status) => {
        host.onProgress(status);
        this.report(status);
      },
    });
  }

  /** All that are under way. */
  get statuses(): TransferStatus[] {
    const ordered = [...this.ordered.values()].map((progress) => progress.status);
    return [...ordered, ...this.receiver.statuses, ...this.donor.statuses];
  }

  /**
   * By message, if there is a link for messages when the first one is sent to the other end of this connection; else over
   * the connection: not by turns, since the order counts.
   */
  private tell(connection: ControlConnection, type: string, body: unknown): void {
    const { id, processId } = connection.peer;
    let mailbox = this.mailboxes.get(connection);
    if (mailbox === undefined) {
      mailbox = this.host.mailboxTo(id, processId) ?? null;
      this.mailboxes.set(connection, mailbox);
    }
    if (mailbox === null) connection.send(type, body);
    else if (!mailbox.tell(id, type, body)) {
      throw new QuorateError('QUORATE_BACKPRESSURE', `too much waits to be sent to replica ${id} already`);
    }
  }

  /** Something that the other end of a transfer said by message. */
  told(peer: number, type: string, body: unknown): void {
    if (!this.host.isMember(peer)) return;
    switch (type) {
      case 'transferReady':
        this.receiver.ready(checkReady(body));
        break;
      case 'transferFailed':
        this.receiver.failed(checkClosed(body));
        break;
      case 'transferNews':
        this.heard(peer, checkNews(body));
        break;
      case 'transferTaken':
        this.donor.tookAt(peer, checkTaken(body));
        break;
      case 'transferClose':
        this.donor.closedAt(peer, checkClosed(body));
        break;
      default:
        throw new QuorateError('QUORATE_PROTOCOL', `nobody here is told of "${type}"`);
    }
  }

  /** A connection that this replica made: it pulls from the peer over it, or orders a transfer. */
  dialed(connection: ControlConnection): void {
    connection.onMessage('transferReady', (body) => this.receiver.ready(checkReady(body)));
    connection.onMessage('transferFailed', (body) => this.receiver.failed(checkClosed(body)));
    connection.onMessage('transferNews', (body) => this.heard(connection.peer.id, checkNews(body)));
  }

  /** A connection that the peer made. */
  serve(connection: ControlConnection): void {
    const { donor } = this;
    const { id } = connection.peer;
    const admit = (): void => {
      if (this.host.isMember(id)) return;
      throw new QuorateError('QUORATE_NOT_A_MEMBER', `replica ${id} is no member and takes no part in state transfers`);
    };
    connection.onRequest('transfer', (body) => {
      admit();
      if (this.host.appliedLsn() === undefined) {
        // It may have the state itself, from an earlier process; the leader sees that, or asks again.
        throw new QuorateError('QUORATE_NOT_READY', `replica ${this.host.id} has no log yet that a state could go to`);
      }
      return this.obey(connection, checkOrder(body));
    });
    connection.onRequest('transferOpen', (body) => {
      admit();
      return donor.open(connection, body);
    });
    connection.onMessage('transferTaken', (body) => donor.took(connection, checkTaken(body)));
    connection.onMessage('transferClose', (body) => donor.closed(connection, checkClosed(body)));
  }

  private async obey(connection: ControlConnection, order: TransferOrder): Promise<{ lsn: number }> {
    this.orderers.add(connection);
    try {
      return { lsn: await this.receiver.order(order) };
    } finally {
      this.orderers.delete(connection);
    }
  }

  private report({ state, donor, lsn, bytesDone, bytesTotal, donorsLost }: TransferStatus): void {
    if (state === 'done' || state === 'failed') return; // the answer to the order says so
    const news: TransferNews = {
      state,
      donor: donor ?? null,
      lsn,
      bytesDone,
      bytesTotal: bytesTotal ?? null,
      donorsLost,
    };
    for (const connection of this.orderers) {
      try {
        if (!connection.isClosed) this.tell(connection, 'transferNews', news);
      } catch {
        // News only: the next one says more.
      }
    }
  }

  /** Leader: the receiver says how it goes. */
  private heard(receiver: number, news: TransferNews): void {
    const progress = this.ordered.get(receiver);
    if (progress === undefined) return;
    const { donor, lsn, state, bytesDone, bytesTotal, donorsLost } = news;
    progress.donorsLost = donorsLost;
    if (state === 'reading' && (donor !== progress.donor || lsn !== progress.lsn || progress.state === 'opening')) {
      progress.begin(donor ?? receiver, lsn, bytesTotal ?? undefined, bytesDone);
      this.host.onSnapshotKnown(receiver, lsn);
    }
    if (state === 'reading') progress.advance(bytesDone);
    else progress.change(state);
  }

  /** Leader: has the receiver get the state from one of the donors. Resolves when it has put it in place. */
  async order(connection: ControlConnection, order: TransferOrder): Promise<void> {
    const receiver = connection.peer.id;
    const progress = new TransferProgress('leader', receiver, this.host.onProgress);
    this.ordered.set(receiver, progress);
    progress.change('opening');
    try {
      await connection.request('transfer', order, ORDER_TIMEOUT_MS);
      progress.change('done');
    } catch (error) {
      progress.change('failed');
      throw error;
    } finally {
      this.ordered.delete(receiver);
    }
  }

  /** See Receiver.log(). */
  readLog(
    donor: number,
    after: ChainPosition,
    bytesMax: number,
    onBytes: (bytes: number) => void,
  ): Promise<ReceivedLog> {
    return this.receiver.log(donor, after, bytesMax, onBytes);
  }

  close(error: Error): void {
    this.receiver.close(error);
    this.donor.close();
  }
}

/** Getters and methods of a host keep their object. */
function donorPart(host: TransfersHost): Omit<DonorHost, 'tell'> {
  return {
    id: host.id,
    endpoint: host.endpoint,
    appliedLsn: () => host.appliedLsn(),
    freeze: () => host.freeze(),
    logAfter: (position) => host.logAfter(position),
    onProgress: (status) => host.onProgress(status),
    onWarning: (error) => host.onWarning(error),
  };
}

function receiverPart(host: TransfersHost): Omit<ReceiverHost, 'onProgress' | 'tell'> {
  return {
    id: host.id,
    endpoint: host.endpoint,
    stateMachine: host.stateMachine,
    connectionTo: (id) => host.connectionTo(id),
    appliedLsn: () => host.appliedLsn(),
    install: (position, configuration, sessions, put) => host.install(position, configuration, sessions, put),
    onWarning: (error) => host.onWarning(error),
  };
}
