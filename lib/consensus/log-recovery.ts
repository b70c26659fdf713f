// What a log on disk says after a crash: walks its segments, frame by frame and entry by entry, each validated by checksum
// and chain hash, and finds out which log that is, where it ends, and how far it is known to be committed. What was being
// written when the power went is cut off: it was told to nobody. Bytes that are wrong in front of a valid frame are another
// matter, since that frame was written when they were on disk: then the disk lost what others may rely on, and nothing is
// concluded from the rest.

import type { SegmentPlace } from './durable-log.js';
import { type ChainPosition, copyPosition, entryCommitLsn, entryPayloadBytes, entryType } from './entry.js';
import { emptyFrame, FRAME_BYTES, FrameKind, readFrame } from './log-frames.js';
import { LogPiece } from './log-scan.js';

/** The segments of a log. */
export interface LogSource {
  /** Ascending. */
  readonly segments: readonly number[];
  /** Words of the segment, without bytes that make no whole word. */
  read(segment: number): Uint32Array;
}

/** A log that lost something it had; `message` says what and where. */
export class CorruptLogError extends Error {}

/** Of the same, that what is there is whole, and does not go on from what is before it. */
class LogGapError extends CorruptLogError {}

interface Group {
  readonly segment: number;
  /** Where its first entry stands, bytes. */
  readonly offset: number;
  readonly start: ChainPosition;
  readonly end: ChainPosition;
}

export interface RecoveredLog {
  /** Runs of entries from the starting place on, in order. */
  readonly groups: readonly Group[];
  /** Where the log begins (the snapshot), and where it ends. */
  readonly start: ChainPosition;
  readonly tail: ChainPosition;
  /** Up to here it is known to be committed; between start and tail. */
  readonly commitLsn: number;
  /** The segment whose end is torn, and how many bytes of it are good; null if none is. */
  readonly cut: { readonly segment: number; readonly bytes: number } | null;
  /** The snapshot stands for all of it: what is on disk in front need not lead to where it goes on. */
  readonly isDetached: boolean;
  /** Segments that are of no use. */
  readonly discard: readonly number[];
  readonly segments: readonly SegmentPlace[];
  readonly nextSegment: number;
}

function clone(position: Readonly<ChainPosition>): ChainPosition {
  return { lsn: position.lsn, hashLow: position.hashLow, hashHigh: position.hashHigh, epoch: position.epoch };
}

function isSamePlace(one: Readonly<ChainPosition>, other: Readonly<ChainPosition>): boolean {
  return one.lsn === other.lsn && one.hashLow === other.hashLow && one.hashHigh === other.hashHigh;
}

export class LogRecovery {
  private groups: Group[] = [];
  private tail: ChainPosition | null = null;
  private commitLsn = 0;
  private cut: { segment: number; bytes: number } | null = null;
  private discard: number[] = [];
  private places: SegmentPlace[] = [];
  private readonly frame = emptyFrame();

  /**
   * `start`: the place of the snapshot, or of the log's beginning. `isDetached`: the snapshot was stored when the log on disk
   * did not lead to its place (DurableLog.isDetached). Throws a CorruptLogError.
   */
  static run(source: LogSource, start: Readonly<ChainPosition>, clusterId: number, isDetached = false): RecoveredLog {
    try {
      return new LogRecovery(source, start, clusterId, isDetached).walk(0);
    } catch (error) {
      if (!(error instanceof LogGapError)) throw error;
      // What is before the snapshot is removed file by file. If that was not completed some of it is there, with gaps.
      const recovery = new LogRecovery(source, start, clusterId, isDetached);
      const first = recovery.firstNeeded();
      if (first < 0) throw error;
      return recovery.walk(first);
    }
  }

  private constructor(
    private readonly source: LogSource,
    private readonly start: Readonly<ChainPosition>,
    private readonly clusterId: number,
    private readonly isDetached: boolean,
  ) {}

  /** Index of the last segment that begins at the snapshot's place or below: nothing before it is needed (DurableLog.forget). */
  private firstNeeded(): number {
    const { source, start, clusterId, frame } = this;
    return source.segments.findLastIndex((segment, index) => {
      return (
        index > 0 && readFrame(source.read(segment), 0, segment, clusterId, frame) && frame.position.lsn <= start.lsn
      );
    });
  }

  private walk(first: number): RecoveredLog {
    const { source, start } = this;
    const { segments } = source;
    this.discard.push(...segments.slice(0, first));
    for (let index = first; index < segments.length; index++) {
      if (this.walkSegment(segments[index] as number, index)) continue;
      this.discard.push(...segments.slice(index + 1));
      break;
    }
    const nextSegment = (segments.at(-1) ?? 0) + 1;
    const { tail } = this;
    if (tail === null || tail.lsn < start.lsn || (this.isDetached && !this.leadsTo(start))) {
      // The snapshot reaches further, or overrules it: all of the log that was ever told of, and counts, is in it.
      const place = clone(start);
      const discard = [...this.discard, ...this.places.map(({ number }) => number)];
      if (this.cut !== null) discard.push(this.cut.segment);
      return {
        groups: [],
        start: place,
        tail: place,
        commitLsn: start.lsn,
        cut: null,
        isDetached: segments.length > 0,
        discard: [...new Set(discard)],
        segments: [],
        nextSegment,
      };
    }
    this.beginAt(start);
    return {
      groups: this.groups,
      start: clone(start),
      tail: clone(tail),
      commitLsn: Math.min(Math.max(this.commitLsn, start.lsn), tail.lsn),
      cut: this.cut,
      isDetached: false,
      discard: this.discard,
      segments: this.places,
      nextSegment,
    };
  }

  /** Returns false if nothing behind this segment is of use. */
  private walkSegment(segment: number, index: number): boolean {
    const { source, frame, clusterId } = this;
    const words = source.read(segment);
    const bytes = words.length * 4;
    const isHeaded =
      readFrame(words, 0, segment, clusterId, frame) &&
      (frame.kind === FrameKind.segment || frame.kind === FrameKind.segmentBehindSnapshot);
    if (!isHeaded) {
      this.mustBeEnd(words, segment, index, 0);
      this.discard.push(segment);
      return false;
    }
    if (frame.kind === FrameKind.segmentBehindSnapshot) {
      if (this.start.lsn < frame.position.lsn) {
        // The snapshot that it follows did not get to the disk, so nothing of it was told.
        this.discard.push(segment);
        return false;
      }
      this.discard.push(...this.places.map(({ number }) => number));
      this.places = [];
      this.groups = [];
      this.tail = clone(frame.position);
    } else {
      this.tail ??= clone(frame.position);
    }
    this.places.push({ number: segment, lsn: frame.position.lsn });
    for (let offset = FRAME_BYTES; offset < bytes; ) {
      const size = this.takeGroup(words, segment, offset);
      if (size === 0) {
        this.mustBeEnd(words, segment, index, offset);
        this.cut = { segment, bytes: offset };
        return false;
      }
      offset += size;
    }
    return true;
  }

  /** Bytes of the group at `offset`, 0 if no whole group stands there. */
  private takeGroup(words: Uint32Array, segment: number, offset: number): number {
    const { frame, clusterId } = this;
    if (!readFrame(words, offset, segment, clusterId, frame) || frame.kind !== FrameKind.group) return 0;
    const { entriesBytes, position } = frame;
    const begin = offset + FRAME_BYTES;
    if (begin + entriesBytes > words.length * 4) return 0;
    const end = clone(position);
    const piece = new LogPiece(words, begin, entriesBytes);
    let at = begin >>> 2;
    let commitLsn = this.commitLsn;
    while (end.lsn < position.lsn + entriesBytes) {
      const before = end.lsn;
      if (!piece.step(end, Number.MAX_SAFE_INTEGER)) return 0;
      // The leader wrote the entry behind all that it had committed; more cannot be true.
      const said = entryCommitLsn(words, at);
      if (said > commitLsn && said <= before) commitLsn = said;
      at += (end.lsn - before) >>> 2;
    }
    this.goTo(position, segment, offset);
    this.commitLsn = commitLsn;
    this.groups.push({ segment, offset: begin, start: clone(position), end });
    this.tail = clone(end);
    return FRAME_BYTES + entriesBytes;
  }

  /** The next group goes here: what the log had behind that was truncated. */
  private goTo(position: Readonly<ChainPosition>, segment: number, offset: number): void {
    const { groups } = this;
    if (this.tail !== null && isSamePlace(this.tail, position)) return;
    const found = this.find(position);
    if (found === null) {
      throw new LogGapError(
        `the entries in segment ${segment} at byte ${offset} continue the log at LSN ${position.lsn}, which is not in it`,
      );
    }
    const [at, endHere] = found;
    groups.length = at;
    if (endHere !== null) groups.push(endHere);
  }

  /** The place in the log so far: how many groups are before it, and the part of the next one before it, if any. */
  private find(position: Readonly<ChainPosition>): [number, Group | null] | null {
    const { groups } = this;
    for (let index = groups.length - 1; index >= 0; index--) {
      const group = groups[index] as Group;
      if (group.start.lsn > position.lsn) continue;
      if (isSamePlace(group.start, position)) return [index, null];
      if (isSamePlace(group.end, position)) return [index + 1, null];
      const walk = clone(group.start);
      const words = this.source.read(group.segment);
      const piece = new LogPiece(words, group.offset, group.end.lsn - group.start.lsn);
      while (walk.lsn < position.lsn && piece.step(walk, Number.MAX_SAFE_INTEGER)) {
        // On to the place, or past it.
      }
      return isSamePlace(walk, position) ? [index, { ...group, end: walk }] : null;
    }
    return null;
  }

  /**
   * At `offset` of the segment something is not as it was written. That is the end of the log, torn by a loss of power,
   * if nothing valid comes behind: each group is written when the one before is on disk.
   */
  private mustBeEnd(words: Uint32Array, segment: number, index: number, offset: number): void {
    const { source, clusterId } = this;
    const probe = emptyFrame();
    for (let at = offset + FRAME_BYTES; at + FRAME_BYTES <= words.length * 4; at += FRAME_BYTES) {
      if (readFrame(words, at, segment, clusterId, probe) && (offset > 0 || at > FRAME_BYTES)) {
        throw new CorruptLogError(
          `segment ${segment} is damaged at byte ${offset}, before what was written later at byte ${at}`,
        );
      }
    }
    for (const later of source.segments.slice(index + 1)) {
      if (!readFrame(source.read(later), 0, later, clusterId, probe)) continue;
      throw new CorruptLogError(`segment ${segment} is damaged at byte ${offset}, before segment ${later}`);
    }
  }

  private leadsTo(start: Readonly<ChainPosition>): boolean {
    return (this.tail !== null && isSamePlace(this.tail, start)) || this.find(start) !== null;
  }

  /** Groups from the snapshot's place on; the log must go through it. */
  private beginAt(start: Readonly<ChainPosition>): void {
    const { groups } = this;
    if (this.tail !== null && isSamePlace(this.tail, start)) {
      this.groups = [];
      return;
    }
    const found = this.find(start);
    if (found === null) {
      const begin = groups[0]?.start.lsn ?? this.tail?.lsn;
      throw new CorruptLogError(
        `the log on disk, from LSN ${begin} to ${this.tail?.lsn}, does not go through LSN ${start.lsn}, where it should begin`,
      );
    }
    const [index, partBefore] = found;
    const rest = groups.slice(index);
    if (partBefore !== null) {
      const [first] = rest as [Group];
      const skipped = partBefore.end.lsn - first.start.lsn;
      rest[0] = { ...first, offset: first.offset + skipped, start: partBefore.end };
    }
    this.groups = rest;
  }
}

/** Told of the entries of a recovered log, in order. */
export interface ReplayVisitor {
  /** The entry stands at word `at`; `end` is the chain behind it. */
  entry(words: Uint32Array, at: number, type: number, payloadBytes: number, end: Readonly<ChainPosition>): void;
}

/** Walks all entries of the log, and puts them where they stand in a ring. */
export function replay(log: RecoveredLog, source: LogSource, ring: Uint8Array, visitor: ReplayVisitor): void {
  const end = clone(log.start);
  for (const group of log.groups) {
    const words = source.read(group.segment);
    const bytes = new Uint8Array(words.buffer, words.byteOffset, words.length * 4);
    const piece = new LogPiece(words, group.offset, group.end.lsn - group.start.lsn);
    copyPosition(group.start, end);
    for (let offset = group.offset; end.lsn < group.end.lsn; ) {
      const { lsn } = end;
      if (!piece.step(end, Number.MAX_SAFE_INTEGER)) {
        throw new CorruptLogError(`segment ${group.segment} changed at byte ${offset} while it was read`);
      }
      const sizeBytes = end.lsn - lsn;
      const at = (lsn >>> 0) & (ring.length - 1);
      ring.set(bytes.subarray(offset, offset + sizeBytes), at);
      visitor.entry(words, offset >>> 2, entryType(words, offset >>> 2), entryPayloadBytes(words, offset >>> 2), end);
      offset += sizeBytes;
    }
  }
}
