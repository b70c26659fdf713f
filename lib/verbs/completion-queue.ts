// Where the outcome of work requests arrives.
import type { NativeCompletionQueue, WorkCompletion } from './native.js';
import { existingFace, VerbsObject } from './verbs-object.js';

export type { WorkCompletion } from './native.js';
export { GRH_BYTES, WC_GRH, WC_WITH_IMM, WcOpcode } from './native.js';

/** Completions that poll() takes at most when it is not told otherwise. */
const DEFAULT_POLL = 32;

/** A completion queue, see ibv_create_cq(3). */
export class CompletionQueue extends VerbsObject<NativeCompletionQueue> {
  /** @internal */
  static of(native: NativeCompletionQueue, parent?: VerbsObject): CompletionQueue {
    return (existingFace(native) as CompletionQueue | undefined) ?? new CompletionQueue(native, parent);
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
    return this.native.poll(max);
  }

  /**
   * Asks for one event on the completion channel at the next completion, see ibv_req_notify_cq(3). Completions that are
   * in the queue already cause none: poll after arming. CompletionEvents does it in the right order.
   *
   * @param solicitedOnly only for completions of solicited receives, and errors. Default false.
   */
  requestNotify(solicitedOnly = false): void {
    this.native.requestNotify(solicitedOnly);
  }
}
