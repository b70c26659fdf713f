// Where the outcome of work requests arrives.
import { invalidArgument } from '../errors.js';
import type { CompletionChannel } from './completion-channel.js';
import { type CompletionsOptions, completionsOf } from './completion-stream.js';
import type { NativeCompletionQueue, WorkCompletion } from './native.js';
import { checkInteger, checkObject } from './options.js';
import { existingFace, VerbsObject } from './verbs-object.js';

export type { CompletionsOptions } from './completion-stream.js';
export type { WorkCompletion } from './native.js';
export { GRH_BYTES, WC_GRH, WC_WITH_IMM, WC_WITH_INV, WcOpcode } from './native.js';

/** What an extended completion queue reports beside the usual, see ibv_create_cq_ex(3). */
export interface CompletionQueueOptions {
  /** Made and polled by the extended calls, also without time stamps. Default: only where something else needs it. */
  extended?: boolean;
  /**
   * Each completion has a `timestamp`: 'raw' in ticks of the device's clock (`hcaCoreClockKhz` of queryDevice() of them
   * make a millisecond; CLOCK_MONOTONIC in nanoseconds on shm), 'wallclock' in nanoseconds since 1970.
   */
  timestamps?: 'raw' | 'wallclock';
}

const TIMESTAMPS = { raw: 1, wallclock: 2 } as const;

/** @internal */
export function nativeQueueOptions(options: CompletionQueueOptions): { extended?: boolean; timestamps?: number } {
  checkObject('options', options);
  const { timestamps, ...rest } = options;
  if (timestamps === undefined) return rest;
  if (!Object.hasOwn(TIMESTAMPS, timestamps)) throw invalidArgument("timestamps must be 'raw' or 'wallclock'");
  return { ...rest, timestamps: TIMESTAMPS[timestamps] };
}

/** Completions that poll() takes at most when it is not told otherwise. */
const DEFAULT_POLL = 32;
const MAX_POLL = 65_536;

/**
 * A completion queue, see ibv_create_cq(3). There are two ways to use one: polling, with poll() or (without garbage)
 * PostList, and events: `for await (const completion of queue)`, or CompletionEvents for callbacks.
 */
export class CompletionQueue extends VerbsObject<NativeCompletionQueue> {
  /** The channel it was made with; undefined if there is none, or in a thread that adopted the queue. */
  readonly channel: CompletionChannel | undefined;
  /** Taken for an iteration that was left before it handed them out. */
  readonly #leftOver: WorkCompletion[] = [];

  private constructor(native: NativeCompletionQueue, parent?: VerbsObject, channel?: CompletionChannel) {
    super(native, parent);
    this.channel = channel;
  }

  /** @internal */
  static of(native: NativeCompletionQueue, parent?: VerbsObject, channel?: CompletionChannel): CompletionQueue {
    return (existingFace(native) as CompletionQueue | undefined) ?? new CompletionQueue(native, parent, channel);
  }

  /** Completions that the queue holds. */
  get depth(): number {
    return this.native.depth;
  }

  /**
   * Takes up to `max` completions (default 32, at most 65,536), oldest first; an empty array if there are none. Never
   * waits. See ibv_poll_cq(3). For the hot path use PostList, which allocates nothing.
   *
   * @throws QuorateError QUORATE_LIMIT if the queue overflowed: completions were lost, its queue pairs must be replaced
   */
  poll(max = DEFAULT_POLL): WorkCompletion[] {
    const left = this.#leftOver;
    if (left.length === 0) return this.native.poll(max);
    // What is refused, here or by the native queue, must not cost what is left over.
    checkInteger('max', max, 1, MAX_POLL);
    if (max <= left.length) return left.splice(0, max);
    const more = this.native.poll(max - left.length);
    return left.splice(0).concat(more);
  }

  /** @internal Puts back, in front, what an iteration took and did not hand out. */
  putBack(completions: WorkCompletion[]): void {
    this.#leftOver.unshift(...completions);
  }

  /**
   * Changes the depth, see ibv_resize_cq(3). The device may grant more. Completions that are in the queue stay.
   *
   * @throws QuorateError QUORATE_LIMIT if more completions are outstanding than would fit; QUORATE_UNSUPPORTED if the
   * device has no such thing (see Context.capabilities); RangeError QUORATE_OUT_OF_RANGE
   */
  resize(depth: number): void {
    this.native.resize(depth);
  }

  /**
   * The completions, one after the other, as they come: armed, drained, armed again and drained again, so that none is
   * missed. Ends when the loop is left, the signal aborts, or the queue is closed in this thread. Several queues of one
   * channel can be iterated at the same time, each by one loop. What was taken and not handed out comes with the next
   * poll() or iteration. The channel's onEvent() is not free for others meanwhile.
   *
   * @throws TypeError QUORATE_INVALID_ARGUMENT if the queue has no channel, or is being iterated already; QuorateError
   * QUORATE_CLOSED, QUORATE_LIMIT if the queue overflowed
   */
  completions(options: CompletionsOptions = {}): AsyncGenerator<WorkCompletion, void, void> {
    return completionsOf(this, options);
  }

  /** The same as completions() without options. */
  [Symbol.asyncIterator](): AsyncGenerator<WorkCompletion, void, void> {
    return this.completions();
  }

  /**
   * Asks for one event on the completion channel at the next completion, see ibv_req_notify_cq(3). Completions that are
   * in the queue already cause none: poll after arming. CompletionEvents and completions() do it in the right order.
   *
   * @param solicitedOnly only for completions of solicited receives, and errors. Default false.
   */
  requestNotify(solicitedOnly = false): void {
    this.native.requestNotify(solicitedOnly);
  }
}
