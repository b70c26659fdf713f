// Virtual time: a queue of events, run one at a time in the order of their time (and of their making, where times are
// equal). Nothing in a simulation happens but through it, so a run depends on its seed alone.
//
// Code under test runs inside an event. When it calls into the simulated fabric, time may pass in the middle of that
// call (interleave()): other replicas, and the other plane of the same one, then run inside the call, just as a thread
// can be preempted between any two instructions that touch shared memory.
import { Random } from './random.js';

interface WorldEvent {
  time_ns: number;
  order: number;
  run: () => void;
}

/** Events that have run are used again, up to so many. */
const SPARE_EVENTS_MAX = 4096;

function nothing(): void {}

/** Calls that may be suspended inside each other. */
const INTERLEAVE_DEPTH_MAX = 12;
/**
 * Events within one window of virtual time; more is somebody who goes around in circles, be it at one instant or a little
 * later each time. The busiest of healthy clusters have some thousands.
 */
const EVENTS_PER_WINDOW_MAX = 50_000;
const WINDOW_NS = 10e6;

/** A rule that the simulated system broke. */
export interface Violation {
  /** Name of the rule. */
  readonly invariant: string;
  /** What was seen. */
  readonly message: string;
  /** Virtual time at which it was seen. */
  readonly time_ns: number;
}

export class SimWorld {
  now_ns = 0;
  readonly random: Random;
  /** The first violation ends the simulation: nothing runs after it. */
  violation: Violation | null = null;
  eventsRun = 0;
  private readonly heap: WorldEvent[] = [];
  private readonly spare: WorldEvent[] = [];
  private order = 0;
  private depth = 0;
  private windowEnd_ns = 0;
  private eventsBeforeWindow = 0;
  private readonly lines: string[] = [];

  /** `traceLinesMax` lines of trace are kept, the last ones; 0 for no trace. */
  constructor(
    readonly seed: number,
    private readonly traceLinesMax = 0,
  ) {
    this.random = new Random(seed);
  }

  get isTraced(): boolean {
    return this.traceLinesMax > 0;
  }

  get traceLines(): readonly string[] {
    return this.lines.slice(-this.traceLinesMax);
  }

  /** Callers on hot paths ask isTraced first, so that no text is built for nobody. */
  trace(source: string, text: string): void {
    if (this.traceLinesMax === 0) return;
    if (this.lines.length >= this.traceLinesMax * 2) this.lines.splice(0, this.traceLinesMax);
    this.lines.push(`${(this.now_ns / 1e6).toFixed(3).padStart(12)} ms  ${source.padEnd(8)} ${text}`);
  }

  fail(invariant: string, message: string): void {
    if (this.violation !== null) return;
    this.violation = { invariant, message, time_ns: this.now_ns };
    this.trace('CHECKER', `VIOLATION of ${invariant}: ${message}`);
  }

  schedule(delay_ns: number, run: () => void): void {
    if (!(delay_ns >= 0)) throw new RangeError(`an event cannot be ${delay_ns} ns from now`);
    this.at(this.now_ns + delay_ns, run);
  }

  at(time_ns: number, run: () => void): void {
    const { heap } = this;
    const event = this.spare.pop() ?? { time_ns: 0.5, order: 0, run };
    event.time_ns = time_ns > this.now_ns ? time_ns : this.now_ns;
    event.order = this.order++;
    event.run = run;
    let index = heap.length;
    heap.push(event);
    while (index > 0) {
      const parentIndex = (index - 1) >>> 1;
      const parent = heap[parentIndex] as WorldEvent;
      if (!isBefore(event, parent)) break;
      heap[index] = parent;
      index = parentIndex;
    }
    heap[index] = event;
  }

  /** Runs everything that is due up to `until_ns`, which is the time afterwards unless a violation ended the run. */
  run(until_ns: number): void {
    const { heap } = this;
    while (heap.length > 0 && this.violation === null) {
      const event = heap[0] as WorldEvent;
      if (event.time_ns > until_ns) break;
      this.removeFirst();
      if (event.time_ns > this.now_ns) this.now_ns = event.time_ns;
      if (this.now_ns >= this.windowEnd_ns) {
        this.windowEnd_ns = this.now_ns + WINDOW_NS;
        this.eventsBeforeWindow = this.eventsRun;
      } else if (this.eventsRun - this.eventsBeforeWindow > EVENTS_PER_WINDOW_MAX) {
        this.fail('progress', `more than ${EVENTS_PER_WINDOW_MAX} events within ${WINDOW_NS / 1e6} ms: a loop`);
        return;
      }
      this.eventsRun++;
      const { run } = event;
      event.run = nothing;
      if (this.spare.length < SPARE_EVENTS_MAX) this.spare.push(event);
      run();
    }
    if (this.violation === null && this.now_ns < until_ns) this.now_ns = until_ns;
  }

  /** Lets `duration_ns` pass in the middle of the call that is running now. */
  interleave(duration_ns: number): void {
    if (this.depth >= INTERLEAVE_DEPTH_MAX) return;
    this.depth++;
    try {
      this.run(this.now_ns + duration_ns);
    } finally {
      this.depth--;
    }
  }

  private removeFirst(): void {
    const { heap } = this;
    const last = heap.pop() as WorldEvent;
    const length = heap.length;
    if (length === 0) return;
    let index = 0;
    for (;;) {
      let child = index * 2 + 1;
      if (child >= length) break;
      const right = child + 1;
      if (right < length && isBefore(heap[right] as WorldEvent, heap[child] as WorldEvent)) child = right;
      if (!isBefore(heap[child] as WorldEvent, last)) break;
      heap[index] = heap[child] as WorldEvent;
      index = child;
    }
    heap[index] = last;
  }
}

function isBefore(one: WorldEvent, other: WorldEvent): boolean {
  return one.time_ns < other.time_ns || (one.time_ns === other.time_ns && one.order < other.order);
}
