// Pull-score failure detector (Mu, section 5.1). Every replica increments a counter in its own memory; this one reads
// the counters of the others. A counter that changed raises the score of its owner, one that did not lowers it. Two
// thresholds give hysteresis: a trusted peer is suspected below `failBelow`, a suspected one is trusted again only
// above `recoverAbove`. Network delay cannot fake progress or the lack of it: a READ that brought nothing lowers the
// score just as an unchanged counter does, and a READ that the transport gave up on ends trust at once.
//
// Where both run on one host that host knows more than a counter says. A process that is stopped is suspected after few
// missed beats. One that is not stopped, and misses beats, waits for a processor with all others of a busy host: another
// leader there would be no better off, so it is forgiven many more.

import { PeerProcessState } from '../fabric/fabric.js';

/** When a peer is suspected, and when trusted again, by its score of beats seen and missed. */
export interface DetectorThresholds {
  /** Highest score: a peer that was never late is suspected when scoreMax - failBelow + 1 beats are missed. Up to 1,000,000. */
  readonly scoreMax: number;
  /** A trusted peer whose score is below this becomes suspected. At least 1. */
  readonly failBelow: number;
  /** A suspected peer whose score is above this becomes trusted. From failBelow up, below scoreMax. */
  readonly recoverAbove: number;
}

/** A live peer that is read at every tick is trusted after recoverAbove + 1 of them; some of its beats may come late. */
const REVIEW_FACTOR = 3;
const OBSERVATIONS_MAX = 2 ** 30;
/** Beats missed in a row after which the host is asked, too. */
export const MISSED_BEATS_ASKED = 2;
/** A process that is seen to run is forgiven so many times scoreMax of missed beats. */
const RUNNING_FACTOR = 10;

export class FailureDetector {
  private readonly scores: Int32Array;
  private readonly lastCounters: Float64Array;
  private readonly observations: Int32Array;
  private readonly missed: Int32Array;
  private mask = 0;
  /** Bit per replica: was trusted at some time. */
  private trustedOnceMask = 0;

  constructor(
    private readonly thresholds: DetectorThresholds,
    replicas: number,
  ) {
    const { scoreMax, failBelow, recoverAbove } = thresholds;
    if (!(failBelow >= 1 && recoverAbove >= failBelow && scoreMax > recoverAbove)) {
      throw new RangeError(`detector thresholds must satisfy 1 <= failBelow <= recoverAbove < scoreMax`);
    }
    this.scores = new Int32Array(replicas);
    this.observations = new Int32Array(replicas);
    this.missed = new Int32Array(replicas);
    this.lastCounters = new Float64Array(replicas).fill(-1);
  }

  /** Bit per replica: set while trusted. */
  get trustedMask(): number {
    return this.mask;
  }

  trusts(peer: number): boolean {
    return (this.mask & (1 << peer)) !== 0;
  }

  /**
   * Whether the peer is too new to be judged: heard of, never trusted yet, and not for longer than a live peer may need
   * to earn trust. Lack of trust is no suspicion then.
   */
  isUnderReview(peer: number): boolean {
    const observations = this.observations[peer] as number;
    const isNew = (this.trustedOnceMask & (1 << peer)) === 0;
    return isNew && observations > 0 && observations <= REVIEW_FACTOR * (this.thresholds.recoverAbove + 1);
  }

  /** Beats that the peer has missed in a row, with the one that is missing if its counter is still this. */
  missedBeats(peer: number, counter: number): number {
    return counter === this.lastCounters[peer] ? (this.missed[peer] as number) + 1 : 0;
  }

  /**
   * Once per tick and peer: the newest counter that was read, whether it is news or not, and what the host sees of the
   * process at the other end.
   */
  observe(peer: number, counter: number, state: PeerProcessState = PeerProcessState.unknown): void {
    this.observations[peer] = Math.min((this.observations[peer] as number) + 1, OBSERVATIONS_MAX);
    const last = this.lastCounters[peer] as number;
    const score = this.scores[peer] as number;
    const missed = Math.min(this.missedBeats(peer, counter), OBSERVATIONS_MAX);
    this.missed[peer] = missed;
    if (missed === 0) {
      // A peer that ticks faster than this one is read less often than it beats: it earns at most two points a read,
      // so that equal rates with jitter do not drift towards suspicion.
      this.scores[peer] = Math.min(this.thresholds.scoreMax, score + (last >= 0 && counter > last + 1 ? 2 : 1));
      this.lastCounters[peer] = counter;
    } else {
      const isForgiven =
        state === PeerProcessState.running && this.trusts(peer) && missed <= RUNNING_FACTOR * this.thresholds.scoreMax;
      if (state === PeerProcessState.stopped) this.scores[peer] = 0;
      else this.scores[peer] = Math.max(isForgiven ? this.thresholds.failBelow : 0, score - 1);
    }
    this.judge(peer);
  }

  /** The transport reported the peer's memory unreachable. */
  observeUnreachable(peer: number): void {
    this.scores[peer] = 0;
    this.judge(peer);
  }

  /** A sign that the peer may be gone, such as the end of a connection: the next missing beat decides. */
  observeDisconnected(peer: number): void {
    if (!this.trusts(peer)) return;
    this.scores[peer] = Math.min(this.scores[peer] as number, this.thresholds.failBelow);
  }

  private judge(peer: number): void {
    const score = this.scores[peer] as number;
    if (this.trusts(peer)) {
      if (score < this.thresholds.failBelow) this.mask &= ~(1 << peer);
    } else if (score > this.thresholds.recoverAbove) {
      this.mask |= 1 << peer;
      this.trustedOnceMask |= 1 << peer;
    }
  }
}
