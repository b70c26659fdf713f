// The proposals of this leader that have a place in the log but are not applied yet, in log order. Each is settled
// exactly once: resolved when its entry is applied, or rejected with outcome "unknown" when leadership ends first.
import { QuorateError } from '../errors.js';

export interface PendingProposal<Result> {
  lsn: number;
  resolve(value: Result): void;
  reject(error: Error): void;
}

/** The fate of a command is not known to this replica: it may have been committed, or may yet be, or never will. */
export class OutcomeUnknownError extends QuorateError {
  /** Always "unknown". */
  readonly outcome = 'unknown';
  constructor(message: string) {
    super('QUORATE_OUTCOME_UNKNOWN', message);
  }
}

/** Settled proposals that are kept before they are removed, all at once, since shortening an array is slow. */
const SETTLED_MAX = 1024;

export class PendingProposals<Result> {
  /** Undefined in place of those that are settled: what was proposed, and what came of it, is nobody's any more. */
  private entries: (PendingProposal<Result> | undefined)[] = [];
  private head = 0;

  get size(): number {
    return this.entries.length - this.head;
  }

  /** LSNs ascend. */
  add(proposal: PendingProposal<Result>): void {
    this.entries.push(proposal);
  }

  /** Takes out the proposal whose entry stands at `lsn`, if it is one of this leader's. */
  take(lsn: number): PendingProposal<Result> | undefined {
    const proposal = this.entries[this.head];
    if (proposal === undefined || proposal.lsn !== lsn) return undefined;
    this.entries[this.head++] = undefined;
    if (this.head >= SETTLED_MAX) {
      this.entries.splice(0, this.head);
      this.head = 0;
    }
    return proposal;
  }

  /** Rejects all that are left, in order. */
  rejectAll(error: (proposal: PendingProposal<Result>) => Error): void {
    const rest = this.entries.slice(this.head) as PendingProposal<Result>[];
    this.entries = [];
    this.head = 0;
    for (const proposal of rest) proposal.reject(error(proposal));
  }
}
