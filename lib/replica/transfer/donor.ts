// The donor of a state transfer: freezes the state of this replica, and says by message, chunk by chunk, where it stands for
// the receiver to READ: where the state machine keeps it, if that is memory which READs reach, or else in staging memory
// that it is copied to. A chunk's place is used again when the receiver has said that it took it, so the donor holds
// no more than the staging memory, however large the state is; commits and applying go on between two chunks.
import type { Configuration } from '../../consensus/configuration.js';
import { type ChainPosition, isSamePosition } from '../../consensus/entry.js';
import { errorCode, QuorateError } from '../../errors.js';
import {
  CHUNK_PARTS_MAX,
  type ChunkParts,
  DIRECT_BYTES_MIN,
  isStaged,
  PART_NUMBERS,
  TransferSource,
} from '../../fabric/transfer-link.js';
import type { VerbsEndpoint } from '../../fabric/verbs-endpoint.js';
import { checksum } from '../../verbs/checksum.js';
import type { ControlConnection } from '../control-channel.js';
import { inTime } from '../in-time.js';
import { turn } from '../turn.js';
import { chunksAhead, transferGeometry } from './geometry.js';
import { CHUNKS_ANNOUNCED, DONATIONS_MAX, IDLE_TIMEOUT_MS, OPEN_TIMEOUT_MS, SNAPSHOT_BYTES_MAX } from './limits.js';
import { checkOpen, type ResumePoint, type TransferOpen, type TransferOpened, type TransferReady } from './messages.js';
import { TransferProgress, type TransferStatus } from './progress.js';
import type { PieceSource } from './snapshot-stream.js';

/** What this replica could give now. */
export interface DonorState {
  readonly position: ChainPosition;
  readonly configuration: Configuration;
  readonly sessionsBytes: number;
  /** Frozen now; what is of the log need not be, since its receiver validates it. */
  readonly source: PieceSource;
}

export interface DonorHost {
  readonly id: number;
  readonly endpoint: VerbsEndpoint;
  /** Undefined while this replica has no log. */
  appliedLsn(): number | undefined;
  /** Freezes state, sessions and their place in the log, all of the same moment. */
  freeze(): DonorState;
  /** The log from this position on, up to what is applied. Throws QUORATE_BEHIND or QUORATE_LOG_RECYCLED. */
  logAfter(position: ChainPosition): DonorState;
  /** Tells the other end of this connection. */
  tell(connection: ControlConnection, type: string, body: unknown): void;
  readonly onProgress: (status: TransferStatus) => void;
  readonly onWarning: (error: Error) => void;
}

/** Cuts the stream of a snapshot into chunks, all of the same size but the last. */
class Chunker {
  bytes = 0;
  /** Of all chunks so far. */
  sum = 0;
  isEnd = false;
  /** Where the last chunk lies. */
  parts: number[] = [];
  private rest: Uint8Array | null = null;
  /** Of the rest, as of the piece that it is of. */
  private area = 0;

  constructor(
    private readonly source: PieceSource,
    private readonly link: TransferSource,
    private readonly chunkBytes: number,
  ) {}

  /**
   * Makes the next chunk, of which what the receiver cannot READ where it is goes to the slot. Returns its length, less
   * than that of a chunk only at the end.
   */
  async next(slot: number): Promise<number> {
    const { source, link, chunkBytes } = this;
    const slotOffset = slot * chunkBytes;
    this.parts = [];
    let filled = 0;
    while (filled < chunkBytes) {
      let piece = this.rest;
      this.rest = null;
      if (piece === null) {
        const pulled = source.pull();
        piece = pulled instanceof Promise ? await pulled : pulled;
        this.area = piece === null ? 0 : this.areaOf(piece);
      }
      if (piece === null) {
        this.isEnd = true;
        break;
      }
      const length = Math.min(piece.length, chunkBytes - filled);
      // Behind a part that is READ where it is the next one may have to be staged.
      const area = this.parts.length < (CHUNK_PARTS_MAX - 1) * PART_NUMBERS ? this.area : 0;
      if (area > 0) this.add(area, piece.byteOffset, length);
      else {
        link.bytes.set(length === piece.length ? piece : piece.subarray(0, length), slotOffset + filled);
        if (length > 0) this.add(0, slotOffset + filled, length);
      }
      if (length < piece.length) this.rest = piece.subarray(length);
      filled += length;
    }
    if (filled > 0) this.sum = checksum(link.views(this.parts), this.sum);
    this.bytes += filled;
    return filled;
  }

  /** Number of the area that the piece can be READ from; 0 if it has to be copied. */
  private areaOf(piece: Uint8Array): number {
    if (piece.length < DIRECT_BYTES_MIN || !this.source.staysUntilTaken) return 0;
    return this.link.state.indexOf(piece.buffer) + 1;
  }

  private add(area: number, offset: number, length: number): void {
    const { parts } = this;
    const last = parts.length - PART_NUMBERS;
    const continues = last >= 0 && parts[last] === area;
    if (continues && (parts[last + 1] as number) + (parts[last + 2] as number) === offset) {
      parts[last + 2] = (parts[last + 2] as number) + length;
    } else {
      parts.push(area, offset, length);
    }
  }
}

/** Of a chunk of which nothing is in staging memory. */
const NO_SLOT = -1;

class Donation {
  readonly progress: TransferProgress;
  private sequence = 0;
  private taken = 0;
  /** Most chunks that may not have been taken yet. */
  private readonly ahead: number;
  /** Bytes up to the end of each of them, and its slot of the staging memory, or NO_SLOT; by sequence modulo `ahead`. */
  private readonly endBytes: Float64Array;
  private readonly slotOf: Int32Array;
  /** Slots that hold nothing. */
  private readonly freeSlots: number[];
  private isOver = false;
  private placeFree: (() => void) | undefined;
  private idle: NodeJS.Timeout | undefined;
  /** Chunks that were announced. */
  private first = 0;
  private parts: ChunkParts[] = [];
  private checksums: number[] = [];

  constructor(
    private readonly connection: ControlConnection,
    private readonly transfer: number,
    private readonly link: TransferSource,
    private readonly state: DonorState,
    slots: number,
    private readonly host: DonorHost,
    private readonly onOver: () => void,
    private readonly chunks: Chunker,
  ) {
    this.ahead = chunksAhead(slots);
    this.endBytes = new Float64Array(this.ahead);
    this.slotOf = new Int32Array(this.ahead);
    this.freeSlots = Array.from({ length: slots }, (_, slot) => slot);
    this.progress = new TransferProgress('donor', connection.peer.id, host.onProgress);
    this.progress.begin(host.id, state.position.lsn, state.source.bytesTotal, chunks.bytes);
    this.watchIdle();
  }

  private watchIdle(): void {
    clearTimeout(this.idle);
    this.idle = setTimeout(() => {
      this.end(new QuorateError('QUORATE_TIMEOUT', `the receiver took nothing for ${IDLE_TIMEOUT_MS} ms`));
    }, IDLE_TIMEOUT_MS);
    this.idle.unref();
  }

  /** The receiver has taken `count` chunks. */
  took(count: number): void {
    if (count < this.taken || count > this.first) {
      const text = `chunk ${count} was acknowledged; ${this.first} were announced`;
      this.end(new QuorateError('QUORATE_PROTOCOL', text));
      return;
    }
    if (count === this.taken) return;
    for (; this.taken < count; this.taken++) {
      const slot = this.slotOf[this.taken % this.ahead] as number;
      if (slot !== NO_SLOT) this.freeSlots.push(slot);
    }
    this.watchIdle();
    const bytes = this.endBytes[(count - 1) % this.ahead] as number;
    this.progress.advance(bytes);
    if (this.isOver) return;
    try {
      this.state.source.taken(bytes);
      this.announceIfDue();
    } catch (error) {
      this.end(error as Error);
    }
    this.placeFree?.();
  }

  /** Makes chunks until the snapshot is through or the transfer ends. */
  async run(): Promise<void> {
    try {
      for (let isEnd = false; !isEnd && !this.isOver; ) {
        while ((this.sequence - this.taken === this.ahead || this.freeSlots.length === 0) && !this.isOver) {
          this.announce(false);
          await new Promise<void>((resolve) => {
            this.placeFree = resolve;
          });
        }
        if (this.isOver) return;
        isEnd = await this.fill();
        // A stream that was closed meanwhile ends as one that is complete.
        if (this.isOver) return;
        if (isEnd) this.announce(true);
        else this.announceIfDue();
        await turn();
      }
    } catch (error) {
      this.end(error as Error);
    }
  }

  /** Returns whether it was the last. */
  private async fill(): Promise<boolean> {
    const { ahead, chunks, freeSlots } = this;
    // It is known only afterwards whether the chunk needed it.
    const slot = freeSlots.shift() as number;
    const filled = await chunks.next(slot);
    if (filled === 0) return true;
    const needsSlot = isStaged(chunks.parts);
    if (!needsSlot) freeSlots.unshift(slot);
    this.slotOf[this.sequence % ahead] = needsSlot ? slot : NO_SLOT;
    this.endBytes[this.sequence % ahead] = chunks.bytes;
    this.sequence++;
    this.parts.push(chunks.parts);
    this.checksums.push(chunks.sum);
    return chunks.isEnd;
  }

  /**
   * Several at a time: what is said about chunks shall not cost as much as the chunks. At once where the receiver has nothing
   * to do, since the next chunk may take a while.
   */
  private announceIfDue(): void {
    if (this.parts.length >= CHUNKS_ANNOUNCED || this.first === this.taken) this.announce(false);
  }

  private announce(isEnd: boolean): void {
    const { transfer, first, parts, checksums } = this;
    if (parts.length === 0 && !isEnd) return;
    const news: TransferReady = { transfer, first, parts, checksums, isEnd };
    this.first = this.sequence;
    this.parts = [];
    this.checksums = [];
    this.host.tell(this.connection, 'transferReady', news);
  }

  /** Ends it, with success if there is no error; the receiver is told of one. */
  end(error: Error | undefined): void {
    if (this.isOver) return;
    this.isOver = true;
    clearTimeout(this.idle);
    this.placeFree?.();
    if (error !== undefined && !this.connection.isClosed) {
      const body = {
        transfer: this.transfer,
        code: errorCode(error) ?? 'QUORATE_TRANSFER_FAILED',
        message: error.message.slice(0, 1000),
      };
      try {
        this.host.tell(this.connection, 'transferFailed', body);
      } catch {
        // It finds out by silence.
      }
    }
    this.state.source.close();
    this.progress.change(error === undefined ? 'done' : 'failed');
    this.onOver();
    try {
      this.link.close();
    } catch (failure) {
      // Of a device that fails, say: the transfer is over all the same, and whoever ended it has more to do.
      this.host.onWarning(failure as Error);
    }
  }
}

/** A transfer that was asked for, and is not answered yet. */
interface Opening {
  readonly connection: ControlConnection;
  readonly transfer: number;
  isGivenUp: boolean;
}

export class Donor {
  private readonly donations = new Map<ControlConnection, Map<number, Donation>>();
  private readonly openings = new Set<Opening>();
  private isClosed = false;

  constructor(private readonly host: DonorHost) {}

  get statuses(): TransferStatus[] {
    return [...this.donations.values()].flatMap((of) => [...of.values()].map(({ progress }) => progress.status));
  }

  private get count(): number {
    let count = this.openings.size;
    for (const of of this.donations.values()) count += of.size;
    return count;
  }

  /** A receiver asks for the state. Rejects with QUORATE_BUSY, QUORATE_BEHIND, or why there cannot be a link. */
  async open(connection: ControlConnection, body: unknown): Promise<TransferOpened> {
    const request = checkOpen(body);
    const { host } = this;
    const appliedLsn = host.appliedLsn();
    if (appliedLsn === undefined || this.isClosed) {
      throw new QuorateError('QUORATE_NOT_READY', `replica ${host.id} is not part of a formed cluster yet`);
    }
    if (appliedLsn < request.minLsn) {
      throw new QuorateError(
        'QUORATE_BEHIND',
        `replica ${host.id} has applied LSN ${appliedLsn}, and the state is needed at LSN ${request.minLsn} or later`,
      );
    }
    this.checkNew(connection, request.transfer);
    if (this.count >= DONATIONS_MAX) {
      throw new QuorateError('QUORATE_BUSY', `replica ${host.id} gives its state to ${DONATIONS_MAX} others already`);
    }
    const opening: Opening = { connection, transfer: request.transfer, isGivenUp: false };
    this.openings.add(opening);
    try {
      return await this.begin(opening, request);
    } finally {
      this.openings.delete(opening);
    }
  }

  private checkNew(connection: ControlConnection, transfer: number): void {
    if (!this.donations.get(connection)?.has(transfer)) return;
    throw new QuorateError('QUORATE_PROTOCOL', `transfer ${transfer} is under way already`);
  }

  private async begin(opening: Opening, request: TransferOpen): Promise<TransferOpened> {
    const { host } = this;
    const { connection } = opening;
    const { resume, logAfter } = request;
    const freeze = (): DonorState => (logAfter === null ? host.freeze() : host.logAfter(logAfter));
    let state = freeze();
    let link: TransferSource | undefined;
    try {
      const { bytesTotal } = state.source;
      if (bytesTotal !== undefined && bytesTotal > SNAPSHOT_BYTES_MAX) {
        const text = `lengthBytes of snapshotChunks() says that its state has ${bytesTotal} bytes; no more than ${SNAPSHOT_BYTES_MAX} are given`;
        throw new QuorateError('QUORATE_LIMIT', text);
      }
      const geometry = transferGeometry(host.endpoint.isSoftware, bytesTotal);
      const { chunkBytes, slots } = geometry;
      link = await TransferSource.open(host.endpoint, geometry, request.queuePair);
      let chunker = new Chunker(state.source, link, chunkBytes);
      let isResumed = false;
      if (logAfter === null && resume !== null && isSamePosition(state.position, resume.position)) {
        // A state machine that stands still is not waited for when its receiver does not wait any more, either.
        isResumed = await inTime(skip(chunker, resume, state.source), OPEN_TIMEOUT_MS, () => {
          const text = `snapshotChunks() of the state machine did not get to where the transfer stopped within ${OPEN_TIMEOUT_MS} ms`;
          return new QuorateError('QUORATE_TIMEOUT', text);
        });
        if (!isResumed) {
          // Its bytes are others after all: from the beginning, with the state that it is by now.
          state.source.close();
          state = freeze();
          chunker = new Chunker(state.source, link, chunkBytes);
        }
      }
      if (this.isClosed || connection.isClosed) throw new QuorateError('QUORATE_CLOSED', 'the receiver has gone');
      if (opening.isGivenUp) throw new QuorateError('QUORATE_CANCELLED', 'the receiver gave up');
      this.checkNew(connection, request.transfer); // or was asked for once more meanwhile
      const { position, configuration, sessionsBytes, source } = state;
      this.add(connection, request.transfer, link, state, slots, chunker);
      return {
        queuePair: link.address,
        readable: link.readable,
        areas: link.areas,
        chunkBytes,
        slots,
        position,
        configuration,
        sessionsBytes,
        bytesTotal: source.bytesTotal ?? null,
        isResumed,
        isLog: logAfter !== null,
      };
    } catch (error) {
      state.source.close();
      link?.close();
      throw error;
    }
  }

  private add(
    connection: ControlConnection,
    transfer: number,
    link: TransferSource,
    state: DonorState,
    slots: number,
    chunks: Chunker,
  ): void {
    let of = this.donations.get(connection);
    if (of === undefined) {
      of = new Map();
      this.donations.set(connection, of);
      connection.on('close', () => this.connectionLost(connection));
    }
    const over = (): void => {
      of.delete(transfer);
    };
    const donation = new Donation(connection, transfer, link, state, slots, this.host, over, chunks);
    of.set(transfer, donation);
    // The answer to the request goes first.
    setImmediate(() => void donation.run());
  }

  took(connection: ControlConnection, { transfer, count }: { transfer: number; count: number }): void {
    this.donations.get(connection)?.get(transfer)?.took(count);
  }

  /** As took(), by a message of this peer. */
  tookAt(peer: number, taken: { transfer: number; count: number }): void {
    const connection = this.connectionOf(peer, taken.transfer);
    if (connection !== undefined) this.took(connection, taken);
  }

  /** As closed(), by a message of this peer. */
  closedAt(peer: number, closed: { transfer: number; code: string; message: string }): void {
    const { transfer } = closed;
    const opening = [...this.openings].find((one) => one.connection.peer.id === peer && one.transfer === transfer);
    const connection = this.connectionOf(peer, transfer) ?? opening?.connection;
    if (connection !== undefined) this.closed(connection, closed);
  }

  private connectionOf(peer: number, transfer: number): ControlConnection | undefined {
    for (const [connection, of] of this.donations) {
      if (connection.peer.id === peer && !connection.isClosed && of.has(transfer)) return connection;
    }
    return undefined;
  }

  /** The receiver has all, or gave up. */
  closed(
    connection: ControlConnection,
    { transfer, code, message }: { transfer: number; code: string; message: string },
  ): void {
    // Perhaps it is not answered yet, and its receiver waits no longer: nobody would take anything.
    for (const opening of this.openings) {
      if (opening.connection === connection && opening.transfer === transfer) opening.isGivenUp = true;
    }
    const error = code === '' ? undefined : new QuorateError(code, message);
    this.donations.get(connection)?.get(transfer)?.end(error);
  }

  private connectionLost(connection: ControlConnection): void {
    const error = new QuorateError('QUORATE_CLOSED', 'the receiver has gone');
    for (const donation of [...(this.donations.get(connection)?.values() ?? [])]) donation.end(error);
    this.donations.delete(connection);
  }

  close(): void {
    this.isClosed = true;
    for (const connection of [...this.donations.keys()]) this.connectionLost(connection);
  }
}

/** Goes to the place where the receiver stopped with another donor; false if the bytes up to there are not the same. */
async function skip(chunks: Chunker, { bytes, checksum: sum }: ResumePoint, source: PieceSource): Promise<boolean> {
  while (chunks.bytes < bytes && !chunks.isEnd) {
    await chunks.next(0);
    source.taken(chunks.bytes);
    await turn();
  }
  return chunks.bytes === bytes && chunks.sum === sum;
}
