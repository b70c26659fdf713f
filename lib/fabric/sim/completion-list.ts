// Completions of one simulated plane, in the parallel arrays that the core reads. What was delivered is dropped by the
// next submit().
import type { SimLink } from './sim-link.js';

const COMPLETIONS_MAX = 1024;

export class CompletionList {
  readonly completionPeer = new Int32Array(COMPLETIONS_MAX);
  readonly completionToken = new Float64Array(COMPLETIONS_MAX);
  readonly completionStatus = new Int32Array(COMPLETIONS_MAX);
  count = 0;
  private delivered = false;

  begin(): void {
    if (this.delivered) {
      this.count = 0;
      this.delivered = false;
    }
  }

  end(): number {
    this.delivered = true;
    return this.count;
  }

  add(peer: number, token: number, status: number): void {
    if (this.count === COMPLETIONS_MAX) throw new RangeError(`more than ${COMPLETIONS_MAX} completions at once`);
    this.completionPeer[this.count] = peer;
    this.completionToken[this.count] = token;
    this.completionStatus[this.count] = status;
    this.count++;
  }

  /** Takes what has completed on the link, in order. Returns false once an operation on it has failed. */
  take(peer: number, link: SimLink, now_ns: number): boolean {
    let isGood = true;
    while (this.count < COMPLETIONS_MAX) {
      const completed = link.takeCompleted(now_ns);
      if (completed === null) break;
      this.add(peer, completed.token, completed.status);
      if (completed.status !== 0) isGood = false;
    }
    return isGood;
  }
}
