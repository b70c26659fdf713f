// When the background thread may do what is not urgent: clear links away, report to the main thread, which then replaces
// them. That costs time which an election needs more, so it waits until no election has been on for a moment. But an
// election may go on and on just because of what waits, such as the news that a link to a voter is broken; so it is never put
// off for long.

/** How long there must have been no election. */
export const CALM_NS = 25_000_000;
/** How long an election can put things off. */
export const DEFERRAL_NS_MAX = 50_000_000;

export class Calm {
  private calmFrom_ns = Number.NEGATIVE_INFINITY;
  private lastDue_ns = Number.NEGATIVE_INFINITY;

  /** Once per tick; true when what waits is to be done now. */
  isDue(now_ns: number, isElectionOn: boolean): boolean {
    if (isElectionOn) this.calmFrom_ns = now_ns + CALM_NS;
    if (now_ns < this.calmFrom_ns && now_ns - this.lastDue_ns < DEFERRAL_NS_MAX) return false;
    this.lastDue_ns = now_ns;
    return true;
  }
}
