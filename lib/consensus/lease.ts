// Leases: for how long a leader may answer reads from its own state without asking anybody. A voter that sees the
// leader's heartbeat counter move promises not to let anybody else write its log for a while, and publishes which counter
// it saw. The leader knows when it set that counter, so it knows, by its own clock and without a message, until when the
// promise holds at least. See "Leases" in docs/PROTOCOL.md for the proof.
//
// No two clocks are ever compared. They are only assumed to run at rates that differ from true time by at most the drift
// bound: the voter waits longer by its clock, the leader relies on less by its own.
import { EPOCH_NONE, epochIncarnation } from './epoch.js';

/** How long leases are and what clocks they bear. */
export interface LeaseSettings {
  /** True time for which a voter promises; published in whole microseconds, so that replicas may differ in it. */
  readonly length_ns: number;
  /** By how much the rate of any replica's clock may differ from true time, as a fraction; the same at all replicas. */
  readonly driftBound: number;
}

/** Longest lease with a profile: a candidacy must outlast the leases that it waits for. */
export function leaseLengthMax_ns(takeoverTimeout_ns: number): number {
  return takeoverTimeout_ns / 2;
}

/** In place of a process that is not known; also what a block says that was never read. */
const PROCESS_UNKNOWN = 0;

/** Ticks that a renewal may take from the leader's counter to the leader's knowledge of it; a shorter lease has gaps. */
export const LEASE_TICKS_MIN = 5;

/**
 * A replica's promise not to let anybody but the holder write its log. The holder is a leader that it follows, or itself.
 * There is one at a time: another leader comes only when nothing is left of the promise to the one before.
 */
export class LeasePromise {
  /** Replica that has the promise, -1 if none. */
  holder = -1;
  private holderProcessId = PROCESS_UNKNOWN;
  /** Epoch in which the holder was seen to lead. */
  private epoch = EPOCH_NONE;
  private until_ns = Number.NEGATIVE_INFINITY;
  /** The last counter of the holder that the promise covers, 0 if none. */
  private coveredCounter = 0;
  private recalledEpoch = EPOCH_NONE;
  // Seen since begin(): when exactly, this replica does not know until it looks at its clock again.
  private seenHolder = -1;
  private seenProcessId = 0;
  private seenEpoch = EPOCH_NONE;
  private seenCounter = 0;

  constructor(private readonly settings: LeaseSettings | null) {}

  /**
   * Once per tick, with a time that was read after everything that saw() was told. What was seen in a tick counts from
   * the next one on: the tick's own time may be from before the leader set that counter.
   */
  begin(now_ns: number, promisedEpoch: number): void {
    const { settings } = this;
    if (settings === null || this.seenHolder < 0) return;
    // Not what was seen before a grant to somebody else.
    if (this.seenEpoch === promisedEpoch) {
      this.holder = this.seenHolder;
      this.holderProcessId = this.seenProcessId;
      this.epoch = this.seenEpoch;
      this.until_ns = Math.max(this.until_ns, now_ns + this.waits_ns(settings));
      this.coveredCounter = this.seenCounter;
    }
    this.seenHolder = -1;
  }

  /** How long to wait by the own clock, so that at least the length passes. */
  private waits_ns({ length_ns, driftBound }: LeaseSettings): number {
    return Math.ceil(length_ns * (1 + driftBound));
  }

  /** The heartbeat counter of the replica that was promised `epoch` last, and leads in it, was seen. */
  saw(holder: number, processId: number, epoch: number, counter: number): void {
    // The same counter again is not news, and nothing is promised on its account: a dead process's memory still shows it.
    if (holder === this.holder && epoch === this.epoch && counter === this.coveredCounter) return;
    if (epoch === this.recalledEpoch) return;
    this.seenHolder = holder;
    this.seenProcessId = processId;
    this.seenEpoch = epoch;
    this.seenCounter = counter;
  }

  /** This replica leads itself, and its own reads rely on this time: it does not grant to others before. */
  holdOwn(id: number, processId: number, epoch: number, until_ns: number): void {
    this.holder = id;
    this.holderProcessId = processId;
    this.epoch = epoch;
    this.until_ns = Math.max(this.until_ns, until_ns);
    this.coveredCounter = 0;
    this.seenHolder = -1;
  }

  /**
   * What a main block of the replica says now. One that was seen to lead and does not any more, in the same process,
   * answers no read by that lease: it has given the leadership up, and there is none of the same epoch again. What another
   * process of the same life says proves nothing of the one before.
   */
  observe(replica: number, processId: number, leaderEpoch: number): void {
    if (this.isHolder(replica, processId) && leaderEpoch !== this.epoch) this.release();
  }

  /** Two processes that are not known are not the same. */
  private isHolder(replica: number, processId: number): boolean {
    return replica === this.holder && processId === this.holderProcessId && processId !== PROCESS_UNKNOWN;
  }

  /** What an earlier process of this replica may have promised to the leader of the epoch, in whichever process of that. */
  resume(holder: number, epoch: number, until_ns: number): void {
    this.holder = holder;
    this.holderProcessId = PROCESS_UNKNOWN;
    this.epoch = epoch;
    this.until_ns = until_ns;
    this.coveredCounter = 0;
  }

  /** Epoch whose lease the holder can be told the end of, in its memory; EPOCH_NONE if it is not known which process has it. */
  get recallableEpoch(): number {
    return this.holder >= 0 && this.holderProcessId !== PROCESS_UNKNOWN ? this.epoch : EPOCH_NONE;
  }

  /**
   * The lease of the epoch was taken back in the memory of this process: it answers no read by it any more. Nothing is
   * promised on its account again, for there would be nothing to gain.
   */
  recalled(epoch: number, processId: number): void {
    if (epoch !== this.epoch || !this.isHolder(this.holder, processId)) return;
    this.recalledEpoch = epoch;
    this.release();
  }

  /**
   * This process of the replica has ended, and reads nothing any more. Another one may be alive under the same id, started
   * beside it or before it, and what was promised to that stands.
   */
  ended(replica: number, processId: number): void {
    if (replica === this.seenHolder && processId === this.seenProcessId) this.seenHolder = -1;
    if (this.isHolder(replica, processId)) this.release();
  }

  /** The holder reads nothing any more, for certain. */
  private release(): void {
    if (this.holder === this.seenHolder) this.seenHolder = -1;
    this.holder = -1;
    this.until_ns = Number.NEGATIVE_INFINITY;
    this.coveredCounter = 0;
  }

  /**
   * How much of the promise stands in the way of a grant to the candidate of this incarnation, 0 if nothing does. An
   * incarnation is one life of a replica: the holder itself may begin a later epoch, another process with its id may not.
   */
  remaining_ns(incarnation: number, now_ns: number): number {
    if (this.holder < 0 || epochIncarnation(this.epoch) === incarnation) return 0;
    return Math.max(0, this.until_ns - now_ns);
  }

  /** Counter to publish beside the promised epoch, 0 if nothing is promised to its holder. */
  publishedCounter(promisedEpoch: number): number {
    return this.settings !== null && this.epoch === promisedEpoch && this.holder >= 0 ? this.coveredCounter : 0;
  }

  /** Length of the promise, microseconds, to publish; 0 if leases are off here. */
  get publishedLength_us(): number {
    return this.settings === null ? 0 : Math.floor(this.settings.length_ns / 1000);
  }
}

/** Counters that a leader remembers; a renewal takes a few ticks. */
const BEATS_REMEMBERED = 256;

/** When a leader set its heartbeat counter to its last values, by its own clock. */
export class BeatTimes {
  private readonly counters = new Float64Array(BEATS_REMEMBERED);
  private readonly times_ns = new Float64Array(BEATS_REMEMBERED);

  /** The counter is about to be published; `at_ns` is not later than that. */
  note(counter: number, at_ns: number): void {
    const index = counter % BEATS_REMEMBERED;
    this.counters[index] = counter;
    this.times_ns[index] = at_ns;
  }

  /** Not a number if the counter is too old, or was never set. */
  timeOf(counter: number): number {
    const index = counter % BEATS_REMEMBERED;
    return counter !== 0 && this.counters[index] === counter ? (this.times_ns[index] as number) : Number.NaN;
  }
}

/** Finds the time up to which enough of the voters' promises hold; reused at every tick. */
export class LeaseTally {
  private readonly ends_ns: Float64Array;
  private count = 0;

  constructor(votersMax: number) {
    this.ends_ns = new Float64Array(votersMax);
  }

  clear(): void {
    this.count = 0;
  }

  /** For how long to rely, by the own clock, on a promise of this length, so that at most the length passes. */
  relied_ns(length_ns: number, driftBound: number): number {
    return Math.floor(length_ns * (1 - driftBound));
  }

  /** A voter promised this length for a counter that was set at `begin_ns`, or no number if it gave no promise. */
  add(begin_ns: number, length_ns: number, driftBound: number): void {
    if (Number.isNaN(begin_ns)) return;
    const end_ns = begin_ns + this.relied_ns(length_ns, driftBound);
    // Insertion into descending order; there are at most MAX_REPLICAS.
    let place = this.count++;
    while (place > 0 && (this.ends_ns[place - 1] as number) < end_ns) {
      this.ends_ns[place] = this.ends_ns[place - 1] as number;
      place--;
    }
    this.ends_ns[place] = end_ns;
  }

  /** Until when `wanted` of the promises hold, 0 if there are not so many. */
  endOf(wanted: number): number {
    return wanted >= 1 && wanted <= this.count ? (this.ends_ns[wanted - 1] as number) : 0;
  }
}
