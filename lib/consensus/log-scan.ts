// Walking the ring from a known position: validates entry after entry in memory that others may be writing, and stops
// at the first place where no valid successor stands. Both planes use it (tail validation at a grant, following,
// takeover), so the one definition of "what is in a log" is here.

import {
  type ChainPosition,
  EntryType,
  entryEpoch,
  entryType,
  validateEntry,
  validHashHigh,
  validHashLow,
} from './entry.js';
import type { EpochHistory } from './epoch-history.js';

export class LogScanner {
  private readonly mask: number;

  constructor(
    readonly words: Uint32Array,
    readonly capacityBytes: number,
  ) {
    this.mask = capacityBytes - 1;
    if (capacityBytes <= 0 || (capacityBytes & this.mask) !== 0 || words.length * 4 < capacityBytes) {
      throw new RangeError(`log capacity ${capacityBytes} bytes is not a power of two within its region`);
    }
  }

  /** Byte offset in the ring of an LSN. */
  physical(lsn: number): number {
    return (lsn >>> 0) & this.mask;
  }

  /**
   * Validates the entry at `position`, whose epoch must not exceed `epochMax`, and moves the position behind it.
   * Returns the byte offset of the entry in the ring, or -1 if no valid entry stands there.
   */
  step(position: ChainPosition, epochMax: number): number {
    const offset = this.physical(position.lsn);
    const at = offset >>> 2;
    const size = validateEntry(this.words, at, this.capacityBytes - offset, position);
    if (size === 0) return -1;
    const epoch = entryEpoch(this.words, at);
    if (epoch > epochMax) return -1;
    // A pad is there to fill the ring to its end; anywhere else it is not an entry that a leader wrote.
    if (entryType(this.words, at) === EntryType.pad && offset + size !== this.capacityBytes) return -1;
    position.lsn += size;
    position.epoch = epoch;
    position.hashLow = validHashLow;
    position.hashHigh = validHashHigh;
    return offset;
  }

  /** Moves the position to the end of the valid log, at most one lap on, and notes the epochs on the way. */
  scan(position: ChainPosition, epochMax: number, history: EpochHistory): void {
    const limitLsn = position.lsn + this.capacityBytes;
    while (position.lsn < limitLsn) {
      const lsn = position.lsn;
      if (this.step(position, epochMax) < 0) return;
      history.note(position.epoch, lsn);
    }
  }
}

/** A contiguous piece of somebody's log, copied into private memory, that begins with the entry at the position. */
export class LogPiece {
  private at: number;
  private readonly end: number;

  constructor(
    private readonly words: Uint32Array,
    offsetBytes: number,
    lengthBytes: number,
  ) {
    this.at = offsetBytes >>> 2;
    this.end = (offsetBytes + lengthBytes) >>> 2;
  }

  /** Validates the next entry of the piece and moves the position behind it; false at the end of what is valid. */
  step(position: ChainPosition, epochMax: number): boolean {
    const size = validateEntry(this.words, this.at, (this.end - this.at) * 4, position);
    if (size === 0) return false;
    const epoch = entryEpoch(this.words, this.at);
    if (epoch > epochMax) return false;
    this.at += size >>> 2;
    position.lsn += size;
    position.epoch = epoch;
    position.hashLow = validHashLow;
    position.hashHigh = validHashHigh;
    return true;
  }
}
