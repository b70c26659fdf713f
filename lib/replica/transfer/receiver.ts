// The receiver of a state transfer: pulls the snapshot of another replica with one-sided READs, several in flight, checks
// each chunk, and feeds it to the state machine as it comes, unless that has named the place where READs put it. When the
// donor is lost the next one is asked. If that one's snapshot is of the same moment the transfer goes on where it stopped,
// otherwise it begins anew; what was built until then has had no effect, since the state machine puts it in place only when
// all of it is there.
import { randomInt } from 'node:crypto';
import type { Configuration } from '../../consensus/configuration.js';
import type { ChainPosition } from '../../consensus/entry.js';
import { tailBytes } from '../../consensus/surviving-log.js';
import { errorCode, QuorateError } from '../../errors.js';
import { type ChunkParts, chunkLength, isStaged, PART_NUMBERS, TransferSink } from '../../fabric/transfer-link.js';
import type { VerbsEndpoint } from '../../fabric/verbs-endpoint.js';
import { checksum } from '../../verbs/checksum.js';
import type { ControlConnection } from '../control-channel.js';
import type { StateMachine } from '../replica-options.js';
import { turn } from '../turn.js';
import { chunksAhead } from './geometry.js';
import {
  CHUNK_READS_MAX,
  LOG_OPEN_TIMEOUT_MS,
  OPEN_TIMEOUT_MS,
  SNAPSHOT_BYTES_MAX,
  STALL_TIMEOUT_MS,
  TAKEN_PARTS,
} from './limits.js';
import {
  checkOpened,
  type TransferClosed,
  type TransferOpen,
  type TransferOpened,
  type TransferOrder,
  type TransferReady,
} from './messages.js';
import { TransferProgress, type TransferStatus } from './progress.js';
import { SnapshotSink } from './snapshot-stream.js';

export interface ReceiverHost {
  readonly id: number;
  readonly endpoint: VerbsEndpoint;
  readonly stateMachine: StateMachine<never>;
  connectionTo(id: number): ControlConnection | undefined;
  appliedLsn(): number | undefined;
  /**
   * Puts the state in place, together with its place in the log. False if it is of no use any more; then, and if this throws,
   * nothing has changed.
   */
  install(position: ChainPosition, configuration: Configuration, sessions: Uint8Array, put: () => void): boolean;
  /** Tells the other end of this connection. */
  tell(connection: ControlConnection, type: string, body: unknown): void;
  readonly onProgress: (status: TransferStatus) => void;
  readonly onWarning: (error: Error) => void;
}

/** What was received of one snapshot so far, over however many donors. */
class PartialSnapshot {
  bytes = 0;
  /** Of all chunks so far. */
  sum = 0;

  constructor(
    readonly position: ChainPosition,
    readonly configuration: Configuration,
    readonly sink: SnapshotSink,
  ) {}
}

/** What the chunks of a transfer go to. */
interface ChunkTarget {
  bytes: number;
  /** Of all chunks so far. */
  sum: number;
  readonly sink: {
    /** Where these bytes go, in their order; null, or missing, where they are to be written. */
    places?(offset: number, lengthBytes: number): Uint8Array[] | null;
    /** The bytes up to here are in their places. */
    filled?(bytes: number): void;
    write(bytes: Uint8Array): Promise<void>;
  };
}

/** A chunk on its way: how long it is, where its bytes are to be in the end, and where they land. */
interface Landing {
  readonly length: number;
  readonly places: readonly Uint8Array[] | null;
  readonly views: readonly Uint8Array[];
  /** Of what came, behind what was announced before; undefined where nobody has computed it yet. */
  sum: number | undefined;
}

/** What is not where it shall be in the end goes there. */
function settle({ views, places }: Landing): void {
  let place = 0;
  let at = 0;
  for (const view of views) {
    for (let done = 0; done < view.length; ) {
      const to = (places as readonly Uint8Array[])[place] as Uint8Array;
      const length = Math.min(view.length - done, to.length - at);
      if (view.buffer !== to.buffer) to.set(view.subarray(done, done + length), at);
      done += length;
      at += length;
      if (at === to.length) {
        place++;
        at = 0;
      }
    }
  }
}

/** The log of another replica, in private memory: untrusted until it has been found to chain. */
export interface ReceivedLog {
  readonly words: Uint32Array;
  /** What the donor had applied. */
  readonly end: ChainPosition;
  readonly configuration: Configuration;
}

/** Log that comes in, as long as it was announced to be. */
class LogSink {
  readonly bytes: Uint8Array;
  private length = 0;

  constructor(lengthBytes: number) {
    this.bytes = new Uint8Array(lengthBytes);
  }

  async write(bytes: Uint8Array): Promise<void> {
    if (bytes.length > this.bytes.length - this.length) {
      throw new QuorateError(
        'QUORATE_PROTOCOL',
        `the donor gave more log than the ${this.bytes.length} bytes it announced`,
      );
    }
    this.bytes.set(bytes, this.length);
    this.length += bytes.length;
  }

  words(): Uint32Array {
    if (this.length < this.bytes.length) {
      throw new QuorateError('QUORATE_PROTOCOL', `the donor gave ${this.length} bytes of log of ${this.bytes.length}`);
    }
    return new Uint32Array(this.bytes.buffer);
  }
}

/** The chunks of one donor: announced, READ, checked and used, in this order. */
class ChunkReader {
  private announced = 0;
  private posted = 0;
  private arrived = 0;
  private used = 0;
  /** Chunks that the donor was told of as taken: their places there are free, before the last of them is used here. */
  private told = 0;
  private isEnded = false;
  private failure: Error | undefined;
  private changed: (() => void) | undefined;
  /** Most chunks that are announced and not taken yet. */
  private readonly ahead: number;
  /** Of these, by number modulo `ahead`. */
  private readonly parts: ChunkParts[];
  private readonly checksums: number[];
  /** How many chunks of which something is in the donor's staging memory were taken since it was told. */
  private stagedTaken = 0;
  /** Of the chunks from number `used` on. */
  private readonly landings: Landing[] = [];
  /** Bytes of the stream before the next chunk to be READ. */
  private postedBytes = 0;
  private lastNews_ms = performance.now();
  private readonly stall: NodeJS.Timeout;

  constructor(
    private readonly link: TransferSink,
    private readonly opened: TransferOpened,
    /** Tells the donor how many chunks were taken. */
    private readonly tellTaken: (count: number) => void,
  ) {
    this.ahead = chunksAhead(opened.slots);
    this.parts = new Array<ChunkParts>(this.ahead).fill([]);
    this.checksums = new Array<number>(this.ahead).fill(0);
    link.onArrived = (error, sum) => {
      if (error !== undefined) this.fail(error);
      else {
        (this.landings[this.arrived - this.used] as Landing).sum = sum;
        this.arrived++;
        this.news();
      }
    };
    this.stall = setInterval(() => {
      // The donor is not waited for: the state machine here takes its time.
      if (this.changed === undefined) return;
      if (performance.now() - this.lastNews_ms < STALL_TIMEOUT_MS) return;
      const text = `the donor sent nothing for ${STALL_TIMEOUT_MS} ms`;
      this.fail(new QuorateError('QUORATE_TIMEOUT', text));
    }, STALL_TIMEOUT_MS / 4);
  }

  private news(): void {
    this.lastNews_ms = performance.now();
    const { changed } = this;
    this.changed = undefined;
    changed?.();
  }

  fail(error: Error): void {
    this.failure ??= error;
    this.news();
  }

  close(): void {
    clearInterval(this.stall);
    this.link.onArrived = () => {};
  }

  ready({ first, parts, checksums, isEnd }: TransferReady): void {
    const { ahead } = this;
    const isInOrder = first === this.announced && !this.isEnded && first + parts.length - this.told <= ahead;
    if (!isInOrder || !parts.every((chunk) => this.isWithin(chunk))) {
      this.fail(new QuorateError('QUORATE_PROTOCOL', 'the donor announced chunks that it has no place for'));
      return;
    }
    for (let index = 0; index < parts.length; index++) {
      this.parts[this.announced % ahead] = parts[index] as ChunkParts;
      this.checksums[this.announced % ahead] = checksums[index] as number;
      this.announced++;
    }
    this.isEnded = isEnd;
    this.news();
  }

  /** Whether a chunk is no longer than chunks are, and lies in the memory that the donor named. */
  private isWithin(parts: ChunkParts): boolean {
    const { chunkBytes, slots, areas } = this.opened;
    for (let at = 0; at < parts.length; at += PART_NUMBERS) {
      const [area, offset, length] = parts.slice(at, at + PART_NUMBERS) as [number, number, number];
      const areaBytes = area === 0 ? chunkBytes * slots : (areas[area - 1]?.lengthBytes ?? 0);
      if (offset + length > areaBytes) return false;
    }
    return chunkLength(parts) <= chunkBytes;
  }

  private post({ bytes, sum, sink }: ChunkTarget): void {
    const { link, opened, ahead } = this;
    const readsMax = Math.min(CHUNK_READS_MAX, opened.slots);
    while (this.posted < this.announced && this.posted - this.used < readsMax && this.failure === undefined) {
      const parts = this.parts[this.posted % this.ahead] as ChunkParts;
      const length = chunkLength(parts);
      if (this.posted === this.used) this.postedBytes = bytes;
      if (this.postedBytes + length > SNAPSHOT_BYTES_MAX) {
        this.fail(new QuorateError('QUORATE_LIMIT', `the snapshot has more than ${SNAPSHOT_BYTES_MAX} bytes`));
        return;
      }
      const places = sink.places?.(this.postedBytes, length) ?? null;
      // That of the chunk before, as it was announced: whether it holds is known before this one is used.
      const before = this.posted === this.used ? sum : (this.checksums[(this.posted - 1) % ahead] as number);
      const views = link.read(this.posted % opened.slots, parts, places, before);
      if (views === null) return; // when another one has come
      this.landings.push({ length, places, views, sum: undefined });
      this.posted++;
      this.postedBytes += length;
      link.poll();
    }
  }

  /** These chunks were taken, and their places at the donor are free. */
  private tell(count: number): void {
    this.told = count;
    this.stagedTaken = 0;
    this.tellTaken(count);
  }

  /** Reads all that this donor has. `onChunk` is told after each. */
  async run(target: ChunkTarget, onChunk: () => void): Promise<void> {
    const { opened, ahead } = this;
    const isDue = (chunks: number, of: number): boolean => chunks >= Math.max(1, Math.floor(of / TAKEN_PARTS));
    for (;;) {
      if (this.failure !== undefined) throw this.failure;
      this.post(target);
      if (this.arrived === this.used) {
        // At the end, and where the donor is slower than this, which is to keep nothing for longer than it must.
        if (this.told < this.used) this.tell(this.used);
        if (this.isEnded && this.used === this.announced) return;
        if (this.failure !== undefined) throw this.failure;
        await new Promise<void>((resolve) => {
          this.changed = resolve;
        });
        continue;
      }
      const landing = this.landings[0] as Landing;
      const sum = landing.sum ?? checksum(landing.views, target.sum);
      if (sum !== this.checksums[this.used % ahead]) {
        const text = `chunk ${this.used}, ${landing.length} bytes behind byte ${target.bytes} of the snapshot, is not what the donor announced`;
        throw new QuorateError('QUORATE_TRANSFER_CORRUPT', text);
      }
      // The place here is still in use, the one at the donor is not.
      if (isStaged(this.parts[this.used % ahead] as ChunkParts)) this.stagedTaken++;
      if (isDue(this.used + 1 - this.told, ahead) || isDue(this.stagedTaken, opened.slots)) {
        this.tell(this.used + 1);
        // So that it goes out, and the donor's news come in, while there are chunks to be read.
        await turn();
      }
      if (landing.places === null) {
        for (const view of landing.views) await target.sink.write(view);
      } else {
        settle(landing);
        target.sink.filled?.(target.bytes + landing.length);
      }
      // Not before: if this ends on the way the next donor goes on from here.
      target.sum = sum;
      target.bytes += landing.length;
      // Together: others arrive while this one is put away.
      this.landings.shift();
      this.used++;
      this.lastNews_ms = performance.now();
      onChunk();
    }
  }
}

/** What is heard of a transfer before it is known that it may begin. */
class EarlyNews {
  readonly announced: TransferReady[] = [];
  failure: Error | undefined;

  ready(news: TransferReady): void {
    if (this.announced.length < 64) this.announced.push(news);
  }

  fail(error: Error): void {
    this.failure ??= error;
  }
}

/** One order being carried out. */
class Run {
  snapshot: PartialSnapshot | undefined;
  cancelled: Error | undefined;
  done: Promise<number> = Promise.resolve(0);

  constructor(readonly progress: TransferProgress) {}

  /** Ends it at the next step; a state machine that waits for bytes is told at once. */
  cancel(error: Error): void {
    this.cancelled ??= error;
    this.snapshot?.sink.interrupt(error);
  }
}

export class Receiver {
  /** Of the last transfer. Not from 1 on: what a donor still says of one of the process before is of none of this one's. */
  private transfer = randomInt(2 ** 47);
  private running: Run | undefined;
  private readonly readers = new Map<number, ChunkReader | EarlyNews>();
  private closedBecause: Error | undefined;

  constructor(private readonly host: ReceiverHost) {}

  get statuses(): TransferStatus[] {
    return this.running === undefined ? [] : [this.running.progress.status];
  }

  /**
   * Gets the state from one of the donors and puts it in place. Resolves with the LSN that it stands for. A transfer that
   * is under way already serves a new order, too, unless its snapshot is too old for it: then it is given up.
   */
  async order(order: TransferOrder): Promise<number> {
    for (;;) {
      if (this.closedBecause !== undefined) throw this.closedBecause;
      const { running } = this;
      if (running === undefined) break;
      const { snapshot } = running;
      if (snapshot !== undefined && snapshot.position.lsn < order.minLsn) {
        const text = `its snapshot of LSN ${snapshot.position.lsn} is of no use: the log is kept from LSN ${order.minLsn}`;
        this.cancel(running, new QuorateError('QUORATE_CANCELLED', text));
      }
      const lsn = await running.done.catch(() => -1);
      if (lsn >= order.minLsn) return lsn;
    }
    const run = new Run(new TransferProgress('receiver', this.host.id, this.host.onProgress));
    this.running = run;
    run.progress.change('opening');
    run.done = this.run(run, order).finally(() => {
      this.running = undefined;
    });
    return run.done;
  }

  private cancel(run: Run, error: Error): void {
    run.cancel(error);
    for (const reader of this.readers.values()) reader.fail(error);
  }

  private async run(run: Run, order: TransferOrder): Promise<number> {
    const { host } = this;
    const { progress } = run;
    const reasons: string[] = [];
    let code = 'QUORATE_TRANSFER_FAILED';
    try {
      for (const donor of order.donors) {
        try {
          // What the leader was told to come is what it keeps the log for.
          await this.pull(run, donor, Math.max(order.minLsn, progress.lsn));
        } catch (error) {
          if (run.cancelled !== undefined) throw run.cancelled;
          reasons.push(`replica ${donor}: ${(error as Error).message}`);
          code = errorCode(error) ?? code;
          progress.donorsLost++;
          progress.change('opening');
          continue;
        }
        const { sink, position, configuration } = run.snapshot as PartialSnapshot;
        progress.change('installing');
        const { sessions, put } = await sink.finish();
        if (run.cancelled !== undefined) throw run.cancelled;
        if (!host.install(position, configuration, sessions, put)) {
          const text = 'this replica has applied as much by now as the state that came stands for';
          sink.abort(new QuorateError('QUORATE_CANCELLED', text), host.onWarning);
        }
        progress.change('done');
        return position.lsn;
      }
      throw new QuorateError(code, `no donor gave replica ${host.id} its state (${reasons.join('; ')})`);
    } catch (error) {
      run.cancel(error as Error);
      if (run.snapshot !== undefined) run.snapshot.sink.abort(error as Error, host.onWarning);
      progress.change('failed');
      throw error;
    }
  }

  /** Reads what is missing of the snapshot from this donor. */
  private async pull(run: Run, donor: number, minLsn: number): Promise<void> {
    const { host } = this;
    const { progress, snapshot: before } = run;
    const resume =
      before === undefined ? null : { position: before.position, bytes: before.bytes, checksum: before.sum };
    const begin = (opened: TransferOpened): PartialSnapshot => {
      if (opened.position.lsn < minLsn) {
        throw new QuorateError('QUORATE_BEHIND', `its state is of LSN ${opened.position.lsn}, before ${minLsn}`);
      }
      let snapshot = before;
      if (snapshot === undefined || !opened.isResumed) {
        if (snapshot !== undefined) {
          run.snapshot = undefined; // also where there comes no other one
          const text = 'the transfer begins anew with another donor';
          snapshot.sink.abort(new QuorateError('QUORATE_CANCELLED', text), host.onWarning);
        }
        const { bytesTotal, sessionsBytes } = opened;
        const stateBytes = bytesTotal === null ? undefined : Math.max(0, bytesTotal - sessionsBytes);
        const sink = new SnapshotSink(host.stateMachine, sessionsBytes, stateBytes);
        snapshot = new PartialSnapshot(opened.position, opened.configuration, sink);
        run.snapshot = snapshot;
      }
      progress.begin(donor, snapshot.position.lsn, opened.bytesTotal ?? undefined, snapshot.bytes);
      if (run.cancelled !== undefined) throw run.cancelled;
      return snapshot;
    };
    await this.read(donor, { minLsn, resume, logAfter: null }, begin, ({ bytes }) => progress.advance(bytes));
  }

  /**
   * The log of the donor from this position on, as it stands there: the caller finds out whether it chains. Rejects with
   * why it cannot be had, QUORATE_BEHIND or QUORATE_LOG_RECYCLED among others. `onBytes` is told how much has come.
   */
  async log(
    donor: number,
    after: ChainPosition,
    bytesMax: number,
    onBytes: (bytes: number) => void,
  ): Promise<ReceivedLog> {
    if (this.closedBecause !== undefined) throw this.closedBecause;
    const opening: { opened?: TransferOpened; sink?: LogSink } = {};
    const begin = (opened: TransferOpened): ChunkTarget => {
      const bytes = tailBytes(after.lsn, opened.position.lsn, bytesMax);
      if (bytes < 0) {
        const text = `it offers the log from LSN ${after.lsn} to ${opened.position.lsn}, which no ring holds`;
        throw new QuorateError('QUORATE_PROTOCOL', text);
      }
      opening.opened = opened;
      opening.sink = new LogSink(bytes);
      return { bytes: 0, sum: 0, sink: opening.sink };
    };
    await this.read(donor, { minLsn: 0, resume: null, logAfter: after }, begin, ({ bytes }) => onBytes(bytes));
    const { position: end, configuration } = opening.opened as TransferOpened;
    return { words: (opening.sink as LogSink).words(), end, configuration };
  }

  /** Opens a transfer at the donor, and reads all that comes into what `begin` makes of the donor's answer. */
  private async read(
    donor: number,
    wanted: Pick<TransferOpen, 'minLsn' | 'resume' | 'logAfter'>,
    begin: (opened: TransferOpened) => ChunkTarget,
    onChunk: (target: ChunkTarget) => void,
  ): Promise<void> {
    const { host } = this;
    const connection = host.connectionTo(donor);
    if (connection === undefined || connection.isClosed) {
      throw new QuorateError('QUORATE_CLOSED', 'it is not connected');
    }
    const transfer = ++this.transfer;
    const early = new EarlyNews();
    const link = new TransferSink(host.endpoint);
    this.readers.set(transfer, early);
    let reader: ChunkReader | undefined;
    let failure: Error | undefined;
    const lost = (): void => reader?.fail(new QuorateError('QUORATE_CLOSED', 'the connection to the donor ended'));
    connection.on('close', lost);
    try {
      const request: TransferOpen = { transfer, queuePair: link.address, ...wanted };
      const timeoutMs = wanted.logAfter === null ? OPEN_TIMEOUT_MS : LOG_OPEN_TIMEOUT_MS;
      const opened = checkOpened(await connection.request('transferOpen', request, timeoutMs));
      if (opened.isLog !== (wanted.logAfter !== null)) {
        throw new QuorateError(
          'QUORATE_PROTOCOL',
          `it gives ${opened.isLog ? 'log' : 'state'}, which was not asked for`,
        );
      }
      await link.connect(opened.queuePair, opened, opened.readable, opened.areas);
      const target = begin(opened);
      reader = new ChunkReader(link, opened, (count) => host.tell(connection, 'transferTaken', { transfer, count }));
      this.readers.set(transfer, reader);
      for (const news of early.announced) reader.ready(news);
      if (early.failure !== undefined) throw early.failure;
      if (connection.isClosed) lost();
      if (this.closedBecause !== undefined) throw this.closedBecause;
      await reader.run(target, () => onChunk(target));
    } catch (error) {
      failure = error as Error;
      throw error;
    } finally {
      connection.off('close', lost);
      this.readers.delete(transfer);
      reader?.close();
      this.tellEnd(connection, transfer, failure);
      // Nothing is under way after a success, and to unmap the donor's memory takes a while: the state goes first.
      if (failure === undefined) setImmediate(() => this.release(link));
      else link.close();
    }
  }

  private release(link: TransferSink): void {
    try {
      link.close();
    } catch (error) {
      this.host.onWarning(error as Error);
    }
  }

  private tellEnd(connection: ControlConnection, transfer: number, error: Error | undefined): void {
    if (connection.isClosed) return;
    const code = error === undefined ? '' : (errorCode(error) ?? 'QUORATE_TRANSFER_FAILED');
    const body: TransferClosed = { transfer, code, message: (error?.message ?? '').slice(0, 1000) };
    try {
      this.host.tell(connection, 'transferClose', body);
    } catch {
      // The donor gives up by itself.
    }
  }

  /** News from a donor. */
  ready(news: TransferReady): void {
    this.readers.get(news.transfer)?.ready(news); // or it is of a transfer that was given up
  }

  failed({ transfer, code, message }: TransferClosed): void {
    this.readers.get(transfer)?.fail(new QuorateError(code, message));
  }

  close(error: Error): void {
    this.closedBecause = error;
    this.running?.cancel(error);
    for (const reader of this.readers.values()) reader.fail(error);
  }
}
