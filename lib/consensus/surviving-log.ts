// The log that an earlier life of a replica left behind in memory that outlived it, and the pieces of other replicas' logs
// that continue it. All of it is bytes that somebody else wrote, in a private copy: an entry counts only if it chains to a
// position that is known, and what chains is only a log, not yet the cluster's. It is the cluster's up to where another
// replica's log, read from there to what that replica has applied, chains to it: one comparison is enough, since a hash
// stands for everything before it.
import { type Configuration, checkSuccessor, decodeConfiguration } from './configuration.js';
import {
  type ChainPosition,
  copyPosition,
  EntryType,
  entryCommitLsn,
  entryEpoch,
  entryOrigin,
  entryPayloadBytes,
  entrySequence,
  entryType,
  isSamePosition,
  validateEntry,
  validHashHigh,
  validHashLow,
} from './entry.js';
import { ENTRY_ALIGNMENT_BYTES, ENTRY_HEADER_BYTES } from './limits.js';
import type { CommandSink } from './replication-host.js';

/** A run of log in private memory: a whole ring, or a piece without a seam that begins at `baseLsn`. */
export class LogStretch {
  readonly bytes: Uint8Array;

  private constructor(
    readonly words: Uint32Array,
    private readonly lengthBytes: number,
    private readonly baseLsn: number,
  ) {
    this.bytes = new Uint8Array(words.buffer, words.byteOffset, lengthBytes);
  }

  static ofRing(words: Uint32Array): LogStretch {
    return new LogStretch(words, words.length * 4, 0);
  }

  static ofPiece(words: Uint32Array, baseLsn: number): LogStretch {
    return new LogStretch(words, words.length * 4, baseLsn);
  }

  /**
   * Validates the entry at the position, which lies within the stretch or on its end, and moves the position behind it.
   * Returns the entry's offset in bytes, -1 if no valid entry stands there.
   */
  step(position: ChainPosition): number {
    const { words, lengthBytes } = this;
    if (position.lsn < this.baseLsn || (this.baseLsn > 0 && position.lsn - this.baseLsn >= lengthBytes)) return -1;
    const offset = (position.lsn - this.baseLsn) % lengthBytes;
    const at = offset / 4;
    const size = validateEntry(words, at, lengthBytes - offset, position);
    if (size === 0) return -1;
    position.lsn += size;
    position.epoch = entryEpoch(words, at);
    position.hashLow = validHashLow;
    position.hashHigh = validHashHigh;
    return offset;
  }
}

/** Applies entries from one position to another, over as many stretches as it takes. */
export class LogReplay {
  readonly position: ChainPosition = { lsn: 0, hashLow: 0, hashHigh: 0, epoch: 0 };

  constructor(
    from: Readonly<ChainPosition>,
    /** The latest configuration at the position. */
    public configuration: Configuration,
    private readonly host: CommandSink,
  ) {
    copyPosition(from, this.position);
  }

  /**
   * Applies the entries of the stretch up to `to`, `entriesMax` of them at most; returns whether there are more. Throws if
   * the stretch does not lead there.
   */
  advance(stretch: LogStretch, to: Readonly<ChainPosition>, entriesMax: number): boolean {
    const { position, host } = this;
    const { words } = stretch;
    for (let count = 0; position.lsn < to.lsn; count++) {
      if (count === entriesMax) return true;
      const { lsn } = position;
      const offset = stretch.step(position);
      if (offset < 0) throw new Error(`no valid entry stands at LSN ${lsn}, below LSN ${to.lsn}`);
      const at = offset / 4;
      const type = entryType(words, at);
      const start = offset + ENTRY_HEADER_BYTES;
      const payloadBytes = entryPayloadBytes(words, at);
      if (type === EntryType.command) {
        host.applyCommand(lsn, entryOrigin(words, at), entrySequence(words, at), stretch.bytes, start, payloadBytes);
      } else if (type === EntryType.configuration) {
        const next = decodeConfiguration(stretch.bytes.slice(start, start + payloadBytes));
        checkSuccessor(this.configuration, next);
        this.configuration = next;
      }
    }
    if (!isSamePosition(position, to)) throw new Error(`the log at LSN ${position.lsn} is another one than expected`);
    return false;
  }
}

/** What another replica gave: its log from a position on, and where that ends. All of it is committed there. */
export interface LogTail {
  readonly words: Uint32Array;
  /** What that replica has applied. */
  readonly end: Readonly<ChainPosition>;
}

/** The ring of an earlier life, from a place in it up to which the state is known. */
export class SurvivingLog {
  readonly ring: LogStretch;
  /** Where what chains ends. It may have been written and never committed. */
  readonly end: ChainPosition = { lsn: 0, hashLow: 0, hashHigh: 0, epoch: 0 };
  /** Up to here a leader has said in this very log that it is committed. */
  readonly committed: ChainPosition = { lsn: 0, hashLow: 0, hashHigh: 0, epoch: 0 };
  private committedLsn: number;

  constructor(
    /** A private copy: nobody writes it any more. */
    words: Uint32Array,
    readonly anchor: Readonly<ChainPosition>,
  ) {
    this.ring = LogStretch.ofRing(words);
    copyPosition(anchor, this.end);
    copyPosition(anchor, this.committed);
    this.committedLsn = anchor.lsn;
  }

  /** Finds both ends, `entriesMax` entries at a time; returns whether there is more to be walked. */
  scan(entriesMax: number): boolean {
    const { ring, end, committed, anchor } = this;
    const limitLsn = anchor.lsn + ring.words.length * 4;
    for (let count = 0; end.lsn < limitLsn; count++) {
      if (count === entriesMax) return true;
      const offset = ring.step(end);
      if (offset < 0) break;
      // Said by the leader whose entry this is, of the log that the entry chains to: so it holds, whatever came later.
      const commitLsn = entryCommitLsn(ring.words, offset / 4);
      if (Number.isSafeInteger(commitLsn) && commitLsn > this.committedLsn && commitLsn < end.lsn) {
        this.committedLsn = commitLsn;
      }
    }
    // The place of the commit LSN lies behind: the chain is walked again up to it.
    const walk: ChainPosition = { ...committed };
    while (walk.lsn < this.committedLsn && ring.step(walk) >= 0) {
      if (walk.lsn <= this.committedLsn) copyPosition(walk, committed);
    }
    return false;
  }

  /** Positions to go on from, by preference: the last one is the least likely to be refused. */
  get candidates(): readonly ChainPosition[] {
    const { end, committed, anchor } = this;
    const all = [end, committed, anchor];
    return all.filter((one, index) => index === 0 || one.lsn !== (all[index - 1] as ChainPosition).lsn);
  }

  /**
   * The comparison. What follows this log up to `from` in the cluster's log: the tail, if it leads from that position to its
   * end, so that the position is one of the log which the other replica has applied. Null if it does not.
   */
  continuation(from: Readonly<ChainPosition>, tail: LogTail): LogTail | null {
    const position: ChainPosition = { ...from };
    const stretch = LogStretch.ofPiece(tail.words, from.lsn);
    while (position.lsn < tail.end.lsn) if (stretch.step(position) < 0) return null;
    return isSamePosition(position, tail.end) ? tail : null;
  }
}

/** Bytes of log between two positions, or -1 if that cannot be a tail that a ring of `ringBytes` holds. */
export function tailBytes(fromLsn: number, endLsn: number, ringBytes: number): number {
  const bytes = endLsn - fromLsn;
  const isPossible = Number.isSafeInteger(bytes) && bytes >= 0 && bytes <= ringBytes;
  return isPossible && bytes % ENTRY_ALIGNMENT_BYTES === 0 ? bytes : -1;
}
