// Events of completion queues in the event loop.
import { CompletionQueue } from './completion-queue.js';
import type { NativeCompletionChannel } from './native.js';
import { existingFace, VerbsObject } from './verbs-object.js';

/** A completion channel, see ibv_create_comp_channel(3) and ibv_get_cq_event(3). Several queues may use one channel. */
export class CompletionChannel extends VerbsObject<NativeCompletionChannel> {
  /** @internal */
  static of(native: NativeCompletionChannel, parent?: VerbsObject): CompletionChannel {
    return (existingFace(native) as CompletionChannel | undefined) ?? new CompletionChannel(native, parent);
  }

  /** File descriptor, readable while an event is pending; non-blocking. Reading is left to getEvent() and onEvent(). */
  get fd(): number {
    return this.native.fd;
  }

  /**
   * Takes and acknowledges one event, see ibv_get_cq_event(3): the queue that it is for, null if none is pending. Never
   * waits.
   */
  getEvent(): CompletionQueue | null {
    const native = this.native.getEvent();
    return native === null ? null : CompletionQueue.of(native);
  }

  /**
   * Watches the channel in this thread's event loop: each event is taken and acknowledged, and the callback gets the
   * queue. A second call replaces the callback, null stops watching. Re-arming and draining the queue are the
   * callback's duty; see CompletionEvents. What the callback throws is an uncaught exception. The channel does not hold
   * the event loop open unless ref() is called. To be closed by the thread that watches it.
   */
  onEvent(callback: ((completionQueue: CompletionQueue) => void) | null): void {
    this.native.onEvent(typeof callback === 'function' ? (native) => callback(CompletionQueue.of(native)) : callback);
  }

  /** Holds the event loop open while the channel is watched. @throws TypeError QUORATE_INVALID_ARGUMENT if it is not */
  ref(): void {
    this.native.ref();
  }

  /** Undoes ref(). @throws TypeError QUORATE_INVALID_ARGUMENT if the channel is not watched */
  unref(): void {
    this.native.unref();
  }
}
