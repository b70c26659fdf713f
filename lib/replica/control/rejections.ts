// What a server turned away: counted by reason, and reported rarely enough that strangers cannot flood the log.
import { QuorateError } from '../../errors.js';
import { REJECTION_CODES_MAX, WARNING_INTERVAL_MS } from './limits.js';

interface Rejections {
  count: number;
  /** Since the last warning. */
  unreported: number;
  warned_ms: number;
}

/** A peer that restarts or closes in the middle of a handshake is part of normal operation: counted, not reported. */
const PASSING_CODES: ReadonlySet<string> = new Set(['QUORATE_DISCONNECTED', 'QUORATE_PEER_CLOSED']);
const OTHER_CODES = 'QUORATE_OTHER';

export class RejectionLog {
  private readonly byCode = new Map<string, Rejections>();

  constructor(
    private readonly warn: (error: QuorateError) => void,
    private readonly now_ms: () => number = () => performance.now(),
  ) {}

  record(error: QuorateError): void {
    const isKnown = this.byCode.has(error.code) || this.byCode.size < REJECTION_CODES_MAX;
    const code = isKnown ? error.code : OTHER_CODES;
    let entry = this.byCode.get(code);
    if (entry === undefined) {
      entry = { count: 0, unreported: 0, warned_ms: Number.NEGATIVE_INFINITY };
      this.byCode.set(code, entry);
    }
    entry.count++;
    if (PASSING_CODES.has(code)) return;
    const now_ms = this.now_ms();
    if (now_ms - entry.warned_ms < WARNING_INTERVAL_MS) {
      entry.unreported++;
      return;
    }
    const before = entry.unreported === 0 ? '' : ` (and ${entry.unreported} more of this kind since the last report)`;
    entry.warned_ms = now_ms;
    entry.unreported = 0;
    this.warn(new QuorateError(error.code, `connection rejected: ${error.message}${before}`, { cause: error }));
  }

  /** Rejected connections by error code. */
  counts(): Record<string, number> {
    return Object.fromEntries([...this.byCode].map(([code, { count }]) => [code, count]));
  }
}
