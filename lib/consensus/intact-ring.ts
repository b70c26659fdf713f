// What a leader's own ring still holds of the log, for the repair of others. The log up to its end says little about that:
// a deposed leader's suffix, which reached further and was truncated since, recycled the place of entries that this log
// has. Nobody knows how far others wrote into this ring, because bytes that never validated are in place all the same. So
// what goes out in a repair is proven first: the chain is walked from what the other replica holds to where this log was
// validated at the takeover. Bytes of another log cannot be on that way.
import { type ChainPosition, copyPosition } from './entry.js';
import { EPOCH_NONE } from './epoch.js';
import { MAX_REPLICAS, REPLICATION_BATCH_BYTES_MAX } from './limits.js';
import type { LogScanner } from './log-scan.js';

export class IntactRing {
  /** From here on the ring was validated in this takeover, when nobody else could write it any more. */
  private readonly validated: ChainPosition = { lsn: 0, hashLow: 0, hashHigh: 0, epoch: EPOCH_NONE };
  /** How far the ring is proven for the repair of each replica, from what that replica holds. */
  private readonly walks: ChainPosition[] = [];
  private foreignBelowLsn_ = 0;

  constructor(private readonly scanner: LogScanner) {
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      this.walks.push({ lsn: 0, hashLow: 0, hashHigh: 0, epoch: EPOCH_NONE });
    }
  }

  /**
   * Below this LSN the ring certainly does not hold the log, so that it is not worth a try. It says nothing about what
   * is above.
   */
  get foreignBelowLsn(): number {
    return this.foreignBelowLsn_;
  }

  /** The ring held a log up to here, of which more or less is about to be truncated. */
  noteEnd(endLsn: number): void {
    this.noteForeign(endLsn - this.scanner.capacityBytes);
  }

  /** What the ring holds below this LSN is not the log; above it may be. */
  noteForeign(belowLsn: number): void {
    if (belowLsn > this.foreignBelowLsn_) this.foreignBelowLsn_ = belowLsn;
  }

  /** A takeover begins: the caller validates the ring from this position on, and alone writes it from now on. */
  beginTakeover(position: Readonly<ChainPosition>): void {
    if (position.lsn < this.foreignBelowLsn_) {
      throw new Error(
        `ring recycling: the ring was overwritten up to LSN ${this.foreignBelowLsn_}, applied is LSN ${position.lsn} only`,
      );
    }
    copyPosition(position, this.validated);
  }

  /** A repair begins: the replica holds the log up to `lsn`, where its chain has this hash. */
  beginRepair(peer: number, lsn: number, hashLow: number, hashHigh: number): void {
    const walk = this.walks[peer] as ChainPosition;
    walk.lsn = lsn;
    walk.hashLow = hashLow;
    walk.hashHigh = hashHigh;
    walk.epoch = EPOCH_NONE; // it is not known, and the hashes say more
  }

  /**
   * Up to which LSN, at most, the replica may be sent what the ring holds from `fromLsn` on; `fromLsn` itself if the ring
   * does not hold it. Walks no more than the next WRITE can carry, and nothing at all where the log was validated at the
   * takeover.
   */
  sendableLsn(peer: number, fromLsn: number, epochMax: number): number {
    const { validated, scanner } = this;
    if (fromLsn >= validated.lsn) return Number.POSITIVE_INFINITY;
    const walk = this.walks[peer] as ChainPosition;
    const targetLsn = Math.min(fromLsn + REPLICATION_BATCH_BYTES_MAX, validated.lsn);
    while (walk.lsn < targetLsn) {
      if (scanner.step(walk, epochMax) < 0) return fromLsn;
    }
    if (walk.lsn < validated.lsn) return walk.lsn;
    // The last step must lead to the very log that was validated, or the chain was that of another one.
    const meets =
      walk.lsn === validated.lsn && walk.hashLow === validated.hashLow && walk.hashHigh === validated.hashHigh;
    return meets ? Number.POSITIVE_INFINITY : fromLsn;
  }
}
