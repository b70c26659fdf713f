// How far a state transfer is: what status() and the event "transfer" say. Bytes are those that have arrived at the
// receiver and were checked, or, at the donor, those that the receiver has taken.
import { PROGRESS_INTERVAL_MS } from './limits.js';

/**
 * `opening`: looking for a donor, freezing its state. `reading`: chunks are on their way. `installing`: all bytes are
 * here, the state machine takes them over. `done`, `failed`: told once, then the transfer leaves status().
 */
export type TransferState = 'opening' | 'reading' | 'installing' | 'done' | 'failed';

/** A transfer of the state, as this replica sees it. */
export interface TransferStatus {
  /** What this replica is in it: the leader asks for the transfer, the receiver pulls it from the donor. */
  readonly role: 'leader' | 'receiver' | 'donor';
  /** Id of the replica that gets the state. */
  readonly receiver: number;
  /** Undefined until there is one; another one when it was lost. */
  readonly donor: number | undefined;
  /** How far it is. */
  readonly state: TransferState;
  /** What the snapshot stands for: every command below. 0 until it is known. */
  readonly lsn: number;
  /** Bytes so far. */
  readonly bytesDone: number;
  /** Undefined where the state machine does not say how much it is. */
  readonly bytesTotal: number | undefined;
  /** Mean since the first byte, 0 until then. */
  readonly bytesPerSecond: number;
  /** By that rate; undefined without bytesTotal or rate. */
  readonly secondsLeft: number | undefined;
  /** Donors that were lost so far. */
  readonly donorsLost: number;
}

export class TransferProgress {
  donor: number | undefined;
  lsn = 0;
  bytesTotal: number | undefined;
  donorsLost = 0;
  private state_: TransferState = 'opening';
  private bytesDone_ = 0;
  private beganAt_ms = 0;
  private beganWithBytes = 0;
  private toldAt_ms = Number.NEGATIVE_INFINITY;
  private later: NodeJS.Timeout | undefined;

  constructor(
    private readonly role: TransferStatus['role'],
    private readonly receiver: number,
    private readonly tell: (status: TransferStatus) => void,
    private readonly now_ms: () => number = () => performance.now(),
  ) {}

  get state(): TransferState {
    return this.state_;
  }

  get status(): TransferStatus {
    const { role, receiver, donor, state_: state, lsn, bytesDone_: bytesDone, bytesTotal, donorsLost } = this;
    const passed_ms = this.now_ms() - this.beganAt_ms;
    const isMoving = this.beganAt_ms > 0 && passed_ms > 0;
    const bytesPerSecond = isMoving ? ((bytesDone - this.beganWithBytes) * 1000) / passed_ms : 0;
    const isKnown = bytesTotal !== undefined && bytesPerSecond > 0;
    const secondsLeft = isKnown ? Math.max(0, bytesTotal - bytesDone) / bytesPerSecond : undefined;
    return { role, receiver, donor, state, lsn, bytesDone, bytesTotal, bytesPerSecond, secondsLeft, donorsLost };
  }

  /** Another snapshot, from its beginning or from where the one before stopped. */
  begin(donor: number, lsn: number, bytesTotal: number | undefined, bytesDone: number): void {
    this.donor = donor;
    this.lsn = lsn;
    this.bytesTotal = bytesTotal;
    this.bytesDone_ = bytesDone;
    this.beganWithBytes = bytesDone;
    this.beganAt_ms = this.now_ms();
    this.change('reading');
  }

  advance(bytesDone: number): void {
    this.bytesDone_ = bytesDone;
    const wait_ms = this.toldAt_ms + PROGRESS_INTERVAL_MS - this.now_ms();
    if (wait_ms <= 0) this.tellNow();
    // If nothing more comes for a while, what came last is told all the same.
    else this.later ??= setTimeout(() => this.tellNow(), wait_ms).unref();
  }

  change(state: TransferState): void {
    this.state_ = state;
    this.tellNow();
  }

  private tellNow(): void {
    clearTimeout(this.later);
    this.later = undefined;
    this.toldAt_ms = this.now_ms();
    this.tell(this.status);
  }
}
