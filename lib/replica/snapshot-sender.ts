// The leader's part when the log cannot bring a replica up to date: has it get a snapshot from a follower, while the log
// behind that is kept; or sends it whole where the two ends have no memory for anything else. One at a time per replica.
import type { ReplicationPlane } from '../consensus/replication-plane.js';
import { errorCode, QuorateError } from '../errors.js';
import { type ControlConnection, WarningLimit } from './control-channel.js';
import type { TransferOrder } from './transfer/messages.js';
import { turn } from './turn.js';

const SNAPSHOT_TIMEOUT_MS = 120_000;
const SNAPSHOT_RETRY_MS = 200;
/** A state that is sent whole is made by the leader, at each attempt, while nothing else happens there. */
const WHOLE_RETRY_MAX_MS = 10_000;
/** A donor or receiver has no memory for READs: asking again would not help. */
const IMPOSSIBLE_TRANSFER: readonly string[] = ['QUORATE_MEMLOCK', 'QUORATE_LIMIT', 'QUORATE_SYSTEM'];

export interface SnapshotSenderHost {
  /** The own log, while there is one. */
  plane(): ReplicationPlane | undefined;
  /** The current outgoing connection to a member, if there is one. */
  connectionTo(peer: number): ControlConnection | undefined;
  isMember(peer: number): boolean;
  isClosed(): boolean;
  /** Has the replica at the other end get a snapshot; resolves when it has put that in place. */
  order(connection: ControlConnection, order: TransferOrder): Promise<void>;
  /** State, sessions and their place in the log, of this moment. */
  encode(plane: ReplicationPlane): Uint8Array;
  /** The peer has a snapshot, or it has none and is to be asked again. */
  onEnded(plane: ReplicationPlane, peer: number): void;
  onWarning(error: Error): void;
}

export class SnapshotSender {
  private readonly receivers = new Set<number>();
  /** By receiver: what keeps it from getting a snapshot does so at each attempt. */
  private readonly warnings = new Map<number, WarningLimit>();
  /** How long to wait when the state was sent whole in vain once more, by the connection to the receiver. */
  private readonly wholeRetries_ms = new WeakMap<ControlConnection, number>();

  constructor(private readonly host: SnapshotSenderHost) {}

  /** The plane needs the peer to get one. */
  needed(peer: number): void {
    // A replica that was removed, and is still linked for a moment, is left behind.
    if (this.receivers.has(peer) || this.host.isClosed() || !this.host.isMember(peer)) return;
    this.receivers.add(peer);
    void this.send(peer).finally(() => this.receivers.delete(peer));
  }

  /** Has the peer get a snapshot from a follower; the log behind it is kept until the peer has it or blocks for too long. */
  private async send(peer: number): Promise<void> {
    const { host } = this;
    // Not inside the plane's own call, and after everything that it applies in the same turn.
    await turn();
    const plane = host.plane();
    const connection = host.connectionTo(peer);
    if (plane === undefined || plane.role === 'follower' || host.isClosed()) return;
    let retry_ms = SNAPSHOT_RETRY_MS;
    try {
      if (connection === undefined) throw new QuorateError('QUORATE_CLOSED', `replica ${peer} is not connected`);
      const minLsn = plane.beginSnapshot(peer);
      const donors = plane.snapshotDonors(peer);
      try {
        await host.order(connection, { donors, minLsn });
      } catch (error) {
        if (host.isClosed() || !IMPOSSIBLE_TRANSFER.includes((error as QuorateError).code)) throw error;
        // There is no memory to be had for READs: as a whole, over the control channel.
        this.warn(peer, error as Error);
        plane.beginSnapshot(peer);
        retry_ms = this.wholeRetries_ms.get(connection) ?? SNAPSHOT_RETRY_MS;
        this.wholeRetries_ms.set(connection, Math.min(2 * retry_ms, WHOLE_RETRY_MAX_MS));
        await connection.sendBlob('snapshot', host.encode(plane), SNAPSHOT_TIMEOUT_MS);
        this.wholeRetries_ms.delete(connection);
      }
    } catch (error) {
      if (host.isClosed()) return;
      this.warn(peer, error as Error);
      // A process that is to end does not wait for that.
      await new Promise((resolve) => setTimeout(resolve, retry_ms).unref());
    }
    host.onEnded(plane, peer);
  }

  private warn(peer: number, error: Error): void {
    const limit = this.warnings.get(peer) ?? new WarningLimit();
    this.warnings.set(peer, limit);
    const told = limit.limited(error, errorCode(error) ?? 'QUORATE_SYSTEM');
    if (told !== undefined) this.host.onWarning(told);
  }
}
