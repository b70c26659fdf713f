// What a server turned away: counted by reason, and reported rarely enough that strangers cannot flood the log.
import { QuorateError } from '../../errors.js';
import { WarningLimit } from './warning-limit.js';

/** A peer that restarts or closes in the middle of a handshake is part of normal operation: counted, not reported. */
const PASSING_CODES: ReadonlySet<string> = new Set(['QUORATE_DISCONNECTED', 'QUORATE_PEER_CLOSED']);

export class RejectionLog {
  private readonly limit: WarningLimit;

  constructor(
    private readonly warn: (error: QuorateError) => void,
    now_ms?: () => number,
  ) {
    this.limit = new WarningLimit(now_ms);
  }

  record(error: QuorateError): void {
    if (PASSING_CODES.has(error.code)) {
      this.limit.count(error.code);
      return;
    }
    const before = this.limit.admit(error.code);
    if (before === undefined) return;
    this.warn(new QuorateError(error.code, `connection rejected: ${error.message}${before}`, { cause: error }));
  }

  /** Rejected connections by error code. */
  counts(): Record<string, number> {
    return this.limit.counts();
  }
}
