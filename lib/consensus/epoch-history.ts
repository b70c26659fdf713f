// The epoch history of a log: its runs of entries of one epoch, as (epoch, first LSN). Since one leader at a time can
// write a log and repairs it before appending, two logs that both hold entries of an epoch agree up to the shorter of
// the two runs; so the histories alone tell where a log diverges from the leader's, without reading its entries.

/** Runs in ascending order, in preallocated arrays; the last run ends at the log's tail. */
export class EpochHistory {
  readonly epochs: Float64Array;
  readonly startLsns: Float64Array;
  count = 0;

  constructor(readonly capacity: number) {
    this.epochs = new Float64Array(capacity);
    this.startLsns = new Float64Array(capacity);
  }

  clear(): void {
    this.count = 0;
  }

  /** Notes that the entry at `lsn` is of `epoch`. When full, the oldest run is forgotten. */
  note(epoch: number, lsn: number): void {
    if (this.count > 0 && this.epochs[this.count - 1] === epoch) return;
    if (this.count === this.capacity) {
      this.epochs.copyWithin(0, 1);
      this.startLsns.copyWithin(0, 1);
      this.count--;
    }
    this.epochs[this.count] = epoch;
    this.startLsns[this.count] = lsn;
    this.count++;
  }

  /** Forgets everything at or above `lsn` (a suffix that will be overwritten). */
  truncateTo(lsn: number): void {
    while (this.count > 0 && (this.startLsns[this.count - 1] as number) >= lsn) this.count--;
  }

  copyFrom(other: EpochHistory): void {
    this.clear();
    for (let run = 0; run < other.count; run++) {
      this.note(other.epochs[run] as number, other.startLsns[run] as number);
    }
  }
}

/**
 * The largest LSN known to be common to the leader's log and a voter's. `agreedLsn` is one up to which they are known
 * to agree (what the voter applied is committed, and so in every later leader's log); the voter's history covers its
 * log from there. A run that either history does not show ends what is known.
 */
export function findDivergence(
  leader: EpochHistory,
  leaderTailLsn: number,
  voter: EpochHistory,
  voterTailLsn: number,
  agreedLsn: number,
): number {
  let divergence = agreedLsn;
  let leaderRun = 0;
  for (let run = 0; run < voter.count; run++) {
    const epoch = voter.epochs[run] as number;
    const start = voter.startLsns[run] as number;
    const end = run + 1 < voter.count ? (voter.startLsns[run + 1] as number) : voterTailLsn;
    while (leaderRun < leader.count && (leader.epochs[leaderRun] as number) < epoch) leaderRun++;
    if (leaderRun === leader.count || leader.epochs[leaderRun] !== epoch)
      return Math.max(agreedLsn, Math.min(divergence, start));
    const leaderEnd = leaderRun + 1 < leader.count ? (leader.startLsns[leaderRun + 1] as number) : leaderTailLsn;
    divergence = Math.max(divergence, Math.min(end, leaderEnd));
    if (leaderEnd < end) return divergence;
  }
  return divergence;
}
