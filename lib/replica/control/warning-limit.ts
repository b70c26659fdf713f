// Warnings that somebody else can provoke at any rate: the first of each code is told at once, then at most one per
// interval, which says how many were left out. Bounded in codes as well, because peers can name codes of their own.
import { QuorateError } from '../../errors.js';
import { WARNING_CODES_MAX, WARNING_INTERVAL_MS } from './limits.js';

interface Occurrences {
  count: number;
  /** Since the last one that was told. */
  untold: number;
  told_ms: number;
}

const OTHER_CODES = 'QUORATE_OTHER';

export class WarningLimit {
  private readonly byCode = new Map<string, Occurrences>();

  constructor(private readonly now_ms: () => number = () => performance.now()) {}

  /** Counts one that is not to be told. */
  count(code: string): void {
    this.entryOf(code).count++;
  }

  /** Counts one. What to append to its message if it is to be told now; undefined if it is one too many. */
  admit(code: string): string | undefined {
    const entry = this.entryOf(code);
    entry.count++;
    const now_ms = this.now_ms();
    if (now_ms - entry.told_ms < WARNING_INTERVAL_MS) {
      entry.untold++;
      return undefined;
    }
    const before = entry.untold === 0 ? '' : ` (and ${entry.untold} more of this kind since the last report)`;
    entry.told_ms = now_ms;
    entry.untold = 0;
    return before;
  }

  /** Counts an error. It, or one that says how many were not told, if it is to be told now; undefined if it is one too many. */
  limited(error: Error, code: string): Error | undefined {
    const before = this.admit(code);
    if (before === undefined) return undefined;
    if (before === '') return error;
    return new QuorateError(code, `${error.message}${before}`, { cause: error });
  }

  private entryOf(code: string): Occurrences {
    const key = this.byCode.has(code) || this.byCode.size < WARNING_CODES_MAX ? code : OTHER_CODES;
    let entry = this.byCode.get(key);
    if (entry === undefined) {
      entry = { count: 0, untold: 0, told_ms: Number.NEGATIVE_INFINITY };
      this.byCode.set(key, entry);
    }
    return entry;
  }

  /** All that happened so far, told or not, by code. */
  counts(): Record<string, number> {
    return Object.fromEntries([...this.byCode].map(([code, { count }]) => [code, count]));
  }
}
