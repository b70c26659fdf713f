// How the log gets from the ring to disk. The leader writes into this ring without this replica's help, so entries are
// fetched from it, in the order of the chain, into groups: one group is written and synced at a time, and what arrives
// meanwhile is the next one (group commit). What is on disk is told as the place and epoch of the last entry there: that is
// a claim about one leader's log, and stays true whatever is truncated later (docs/PROTOCOL.md, "Durable mode").
//
// It does no I/O: a LogDisk does.
import { type ChainPosition, copyPosition, isSamePosition } from './entry.js';
import { emptyFrame, FRAME_BYTES, type Frame, FrameKind, writeFrame } from './log-frames.js';
import { LogPiece, LogScanner } from './log-scan.js';
import { readU53 } from './sealed-block.js';

/** Where groups go. */
export interface LogDisk {
  /**
   * Writes the bytes at `offset` of a segment, which is begun where that is 0, and makes them durable. `done` is called
   * later, not inside this call; with an error, nothing is known of what is on disk. One call at a time; the bytes stay
   * as they are until it is done.
   */
  append(segment: number, offset: number, bytes: Uint8Array, done: (error: Error | null) => void): void;
}

export interface DurableLogOptions {
  readonly clusterId: number;
  /** The log ring. */
  readonly ring: Uint8Array;
  /** A segment is full when it has so many bytes, or one group more than fits. */
  readonly segmentBytes: number;
  /** Up to where the log is applied; from there on it stands in the ring. */
  readonly applied: Readonly<ChainPosition>;
  /** The end of what is on disk already, from where the log goes on. */
  readonly position: Readonly<ChainPosition>;
  /** Segments that are there, by ascending number, and the LSN at which each begins. */
  readonly segments: readonly SegmentPlace[];
  /** Number of the next segment. */
  readonly nextSegment: number;
  /** What segments may have been there before does not lead to the position: see DurableLog.isDetached. */
  readonly isDetached: boolean;
  /** More of the log is on disk, or there is room to take more. */
  readonly onProgress: () => void;
  /** The disk failed. It is not used any more. */
  readonly onFailure: (error: Error) => void;
}

export interface SegmentPlace {
  readonly number: number;
  readonly lsn: number;
}

/** Most bytes of entries that are written in one go; more than the largest entry. */
export const GROUP_BYTES_MAX = 4 * 1024 * 1024;
/** Room for the frames of a segment and of a group in front of the entries. */
const HEAD_BYTES = 2 * FRAME_BYTES;

/** Entries that were taken and may yet be truncated: those above the applied LSN. */
class TakenEntries {
  /** Where the first of them begins. */
  readonly base: ChainPosition = { lsn: 0, hashLow: 0, hashHigh: 0, epoch: 0 };
  private readonly ends: number[] = [];
  private readonly hashLows: number[] = [];
  private readonly hashHighs: number[] = [];
  private readonly epochs: number[] = [];
  private head = 0;

  reset(position: Readonly<ChainPosition>): void {
    copyPosition(position, this.base);
    this.cut(0);
    this.head = 0;
  }

  add({ lsn, hashLow, hashHigh, epoch }: Readonly<ChainPosition>): void {
    this.ends.push(lsn);
    this.hashLows.push(hashLow);
    this.hashHighs.push(hashHigh);
    this.epochs.push(epoch);
  }

  private copy(index: number, to: ChainPosition): void {
    to.lsn = this.ends[index] as number;
    to.hashLow = this.hashLows[index] as number;
    to.hashHigh = this.hashHighs[index] as number;
    to.epoch = this.epochs[index] as number;
  }

  private cut(length: number): void {
    this.ends.length = length;
    this.hashLows.length = length;
    this.hashHighs.length = length;
    this.epochs.length = length;
  }

  /** What is applied is never truncated. */
  forget(appliedLsn: number): void {
    while (this.head < this.ends.length && (this.ends[this.head] as number) <= appliedLsn) {
      this.copy(this.head++, this.base);
    }
    if (this.head < 1024 || this.head * 2 < this.ends.length) return;
    for (const column of [this.ends, this.hashLows, this.hashHighs, this.epochs]) column.splice(0, this.head);
    this.head = 0;
  }

  /**
   * Compares with the ring, in which a log of this replica is known to reach up to `tailLsn`. Cuts off what that log does
   * not have, leaves the position of the end in `end`, and returns whether all of it could be compared.
   */
  compare(words: Uint32Array, mask: number, tailLsn: number, end: ChainPosition): boolean {
    copyPosition(this.base, end);
    for (let index = this.head; index < this.ends.length; index++) {
      if (end.lsn >= tailLsn) {
        this.copy(this.ends.length - 1, end);
        return false;
      }
      const at = ((end.lsn >>> 0) & mask) >>> 2;
      const isSame =
        readU53(words, at) === end.lsn &&
        words[at + 8] === this.hashLows[index] &&
        words[at + 9] === this.hashHighs[index];
      if (!isSame) {
        this.cut(index);
        return true;
      }
      this.copy(index, end);
    }
    return true;
  }
}

export class DurableLog {
  /** The last entry that is on disk, with everything before it in its leader's log. */
  readonly synced: ChainPosition = { lsn: 0, hashLow: 0, hashHigh: 0, epoch: 0 };
  private readonly taken: ChainPosition = { lsn: 0, hashLow: 0, hashHigh: 0, epoch: 0 };
  private readonly entries = new TakenEntries();
  private readonly ringWords: Uint32Array;
  private seenVersion = -1;
  private isStale = false;
  private failure_: Error | null = null;
  private isClosed = false;

  // The group that is being filled, and the one that is being written.
  private filling: Uint8Array;
  private fillingWords: Uint32Array;
  private other: Uint8Array;
  private filled = HEAD_BYTES;
  private readonly fillingFrom: ChainPosition = { lsn: 0, hashLow: 0, hashHigh: 0, epoch: 0 };
  private isWriting = false;
  private readonly writtenUpTo: ChainPosition = { lsn: 0, hashLow: 0, hashHigh: 0, epoch: 0 };
  private readonly frame: Frame = emptyFrame();

  private segments: SegmentPlace[];
  private nextSegment: number;
  /** Bytes of the current segment, 0 if there is none. */
  private segmentBytes = 0;
  private bytesWritten_ = 0;

  // After a snapshot was received: what is written counts when the snapshot is on disk.
  private restarts = 0;
  private writingRestarts = 0;
  private isBehindSnapshot = false;
  private isHeld = false;
  private heldFromLsn = 0;
  private readonly reached: ChainPosition = { lsn: 0, hashLow: 0, hashHigh: 0, epoch: 0 };
  /** How much of what is on disk is this log still: a later leader may have truncated it, and what it wrote is not there yet. */
  private agreedLsn = 0;
  /** The same as of the end of the write that is under way. */
  private writingAgreedLsn = 0;

  constructor(
    private readonly options: DurableLogOptions,
    private readonly disk: LogDisk,
  ) {
    const { ring, applied, position, segments, nextSegment } = options;
    this.ringWords = new Uint32Array(ring.buffer, ring.byteOffset, ring.length >>> 2);
    const bytes = Math.min(GROUP_BYTES_MAX, ring.length) + HEAD_BYTES;
    this.filling = new Uint8Array(bytes);
    this.fillingWords = new Uint32Array(this.filling.buffer);
    this.other = new Uint8Array(bytes);
    this.entries.reset(applied);
    copyPosition(applied, this.taken);
    const scanner = new LogScanner(this.ringWords, ring.length);
    while (this.taken.lsn < position.lsn && scanner.step(this.taken, Number.MAX_SAFE_INTEGER) >= 0) {
      this.entries.add(this.taken);
    }
    if (!isSamePosition(this.taken, position)) {
      throw new Error(`the ring holds the log up to LSN ${this.taken.lsn}, the disk up to ${position.lsn}`);
    }
    copyPosition(position, this.synced);
    copyPosition(position, this.reached);
    this.agreedLsn = position.lsn;
    this.segments = [...segments];
    this.nextSegment = nextSegment;
    this.isBehindSnapshot = options.isDetached;
  }

  /** Up to here the log is on disk or on its way there: nothing above may be applied, or the ring could be recycled. */
  get takenLsn(): number {
    // A replica whose disk failed says nothing of its log any more; it follows in memory.
    return this.failure_ === null ? this.taken.lsn : Number.MAX_SAFE_INTEGER;
  }

  get failure(): Error | null {
    return this.failure_;
  }

  /** Bytes that were written, or are being written, since this object was made. */
  get bytesWritten(): number {
    return this.bytesWritten_;
  }

  /** A snapshot was received that is not on disk. */
  get awaitsSnapshot(): boolean {
    return this.isHeld;
  }

  /**
   * What is on disk need not lead to where the log goes on: a snapshot that was received stands in between, and no segment
   * that says so is there. A snapshot that is stored now has to be marked so.
   */
  get isDetached(): boolean {
    return this.isBehindSnapshot;
  }

  /** Nothing is being written, and nothing waits for it. */
  get isIdle(): boolean {
    return !this.isWriting && this.filled === HEAD_BYTES;
  }

  /**
   * Takes what the ring holds behind what was taken, up to `tailLsn`. `version` changes whenever what lies between the
   * applied LSN and the tail may have become another log.
   */
  take(tailLsn: number, appliedLsn: number, version: number): void {
    if (this.failure_ !== null || this.isClosed) return;
    if (version !== this.seenVersion) {
      this.seenVersion = version;
      this.isStale = true;
    }
    this.entries.forget(appliedLsn);
    if (this.isStale) this.compare(tailLsn);
    while (this.taken.lsn < tailLsn && this.fill(tailLsn)) {
      // Until the ring's end, or the group's.
    }
    this.write();
  }

  /** Whether what was taken is still what the log is. */
  private compare(tailLsn: number): void {
    const { entries, taken, fillingFrom } = this;
    const before = taken.lsn;
    this.isStale = !entries.compare(this.ringWords, this.options.ring.length - 1, tailLsn, taken);
    if (taken.lsn === before) return;
    this.agreedLsn = Math.min(this.agreedLsn, taken.lsn);
    this.writingAgreedLsn = Math.min(this.writingAgreedLsn, taken.lsn);
    if (this.filled === HEAD_BYTES) return;
    // The group that is being filled is contiguous, so its end goes back with the log's, or all of it does.
    this.filled = taken.lsn > fillingFrom.lsn ? HEAD_BYTES + taken.lsn - fillingFrom.lsn : HEAD_BYTES;
  }

  /** Copies and validates; the bytes in the ring may change at any time. Returns whether anything was taken. */
  private fill(tailLsn: number): boolean {
    const { taken, filling, entries } = this;
    const { ring } = this.options;
    const offset = (taken.lsn >>> 0) & (ring.length - 1);
    const lengthBytes = Math.min(tailLsn - taken.lsn, ring.length - offset, filling.length - this.filled);
    if (lengthBytes <= 0) return false;
    filling.set(ring.subarray(offset, offset + lengthBytes), this.filled);
    if (this.filled === HEAD_BYTES) copyPosition(taken, this.fillingFrom);
    const before = taken.lsn;
    const piece = new LogPiece(this.fillingWords, this.filled, lengthBytes);
    while (piece.step(taken, Number.MAX_SAFE_INTEGER)) entries.add(taken);
    this.filled += taken.lsn - before;
    return taken.lsn > before;
  }

  private write(): void {
    if (this.isWriting || this.filled === HEAD_BYTES || this.failure_ !== null) return;
    const { options, fillingWords, filling, frame, fillingFrom } = this;
    const entriesBytes = this.filled - HEAD_BYTES;
    // What takes the place of a truncated suffix begins a segment, so that each is one piece of a log: see forget().
    const begins =
      this.segmentBytes === 0 ||
      this.segmentBytes + FRAME_BYTES + entriesBytes > options.segmentBytes ||
      fillingFrom.lsn !== this.writtenUpTo.lsn;
    copyPosition(fillingFrom, frame.position);
    if (begins) {
      const number = this.nextSegment++;
      this.segments.push({ number, lsn: fillingFrom.lsn });
      this.segmentBytes = 0;
      frame.segment = number;
      frame.kind = this.isBehindSnapshot ? FrameKind.segmentBehindSnapshot : FrameKind.segment;
      frame.entriesBytes = 0;
      writeFrame(fillingWords, 0, frame, 0, options.clusterId);
    }
    const offset = this.segmentBytes;
    frame.kind = FrameKind.group;
    frame.entriesBytes = entriesBytes;
    const frameOffset = begins ? FRAME_BYTES : offset;
    writeFrame(fillingWords, FRAME_BYTES / 4, frame, frameOffset, options.clusterId);
    const bytes = filling.subarray(begins ? 0 : FRAME_BYTES, this.filled);
    this.segmentBytes = offset + bytes.length;
    this.bytesWritten_ += bytes.length;
    this.isWriting = true;
    this.writingRestarts = this.restarts;
    copyPosition(this.taken, this.writtenUpTo);
    this.writingAgreedLsn = this.taken.lsn;
    this.filling = this.other;
    this.other = filling;
    this.fillingWords = new Uint32Array(this.filling.buffer);
    this.filled = HEAD_BYTES;
    this.disk.append(frame.segment, offset, bytes, this.written);
  }

  private readonly written = (error: Error | null): void => {
    this.isWriting = false;
    if (this.isClosed || this.failure_ !== null) return;
    if (error !== null) {
      this.fail(error);
      return;
    }
    if (this.writingRestarts === this.restarts) {
      this.isBehindSnapshot = false; // the segment that says so is there
      copyPosition(this.writtenUpTo, this.reached);
      this.agreedLsn = this.writingAgreedLsn;
      if (!this.isHeld) copyPosition(this.reached, this.synced);
    }
    this.write();
    this.options.onProgress();
  };

  /** Nothing more is written: what the disk holds is not known any more, or it takes no more. */
  fail(error: Error): void {
    if (this.failure_ !== null) return;
    this.failure_ = error;
    this.options.onFailure(error);
  }

  close(): void {
    this.isClosed = true;
  }

  // -- snapshots ---------------------------------------------------------------------------------------------------

  /**
   * The log goes on at the position of a snapshot that was received. What is written from here on is told as synced only
   * after release(), when a snapshot from there or above is on disk, too.
   */
  restart(position: Readonly<ChainPosition>): void {
    this.restarts++;
    this.isHeld = true;
    this.heldFromLsn = position.lsn;
    this.isBehindSnapshot = true;
    this.segmentBytes = 0;
    this.isStale = false;
    copyPosition(position, this.taken);
    copyPosition(position, this.reached);
    this.agreedLsn = position.lsn;
    this.entries.reset(position);
    this.filled = HEAD_BYTES;
  }

  /**
   * A snapshot at this LSN may take the place of what is before it: the disk holds the log from there on, with all that
   * this replica has said it holds of a log that may yet turn out to be committed. A suffix that was truncated may reach as
   * far, and does not lead there.
   */
  reaches(lsn: number): boolean {
    const { reached, synced } = this;
    if (this.failure_ !== null || this.isBehind(lsn) || this.agreedLsn < lsn) return false;
    return !this.isHeld || reached.lsn >= synced.lsn || reached.epoch > synced.epoch;
  }

  /** A snapshot at this LSN is of no use: one that was received since stands for more, and the log begins there. */
  isBehind(lsn: number): boolean {
    return this.isHeld && lsn < this.heldFromLsn;
  }

  /** A snapshot that reaches() was asked about is on disk. Returns the segments that nobody needs any more. */
  forget(lsn: number): number[] {
    // While it was being stored another one may have been received, which is not on disk and which the log now goes on from.
    if (this.isHeld && !this.isBehind(lsn)) {
      this.isHeld = false;
      copyPosition(this.reached, this.synced);
    }
    // The last one that begins there or below: those behind it go on from it, or from above the snapshot.
    const first = this.segments.findLastIndex((segment) => segment.lsn <= lsn);
    return this.segments.splice(0, Math.max(0, first)).map(({ number }) => number);
  }
}
