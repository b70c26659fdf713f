// Event-driven completions done right. The rule of ibv_get_cq_event(3) is easy to get wrong: an event is only raised
// for completions that arrive after the queue was armed, so a queue must be armed first and drained after that, at the
// start and after every event; draining first loses the completion that arrives in between, and with it the last
// wake-up.
import { invalidArgument } from '../errors.js';
import { CompletionChannel } from './completion-channel.js';
import { CompletionQueue } from './completion-queue.js';
import type { WorkCompletion } from './native.js';
import { checkInteger, checkOptions, type Members } from './options.js';

/** Takes completions of a watched queue, oldest first. */
export type CompletionHandler = (completions: WorkCompletion[], completionQueue: CompletionQueue) => void;

/** Options of {@link CompletionEvents.watch}. */
export interface WatchOptions {
  /** Completions per call of the handler, 1 .. 65,536. Default 256. */
  batch?: number;
  /** Only solicited receives and errors raise events. Default false. */
  solicitedOnly?: boolean;
}

const WATCH_OPTIONS: Members<WatchOptions> = { batch: true, solicitedOnly: true };

interface Watched {
  readonly handler: CompletionHandler;
  readonly batch: number;
  readonly solicitedOnly: boolean;
  /** Undoes that the queue's end is waited for. */
  readonly forget: () => void;
}

/**
 * Joins the queues of one completion channel to the event loop: each handler gets every completion of its queue, in
 * order, none twice. Uses the channel's onEvent(), which is then not free for others.
 *
 * @example
 * const events = new CompletionEvents(channel);
 * events.watch(completionQueue, (completions) => { for (const completion of completions) settle(completion); });
 */
export class CompletionEvents {
  readonly #channel: CompletionChannel;
  readonly #watched = new Map<CompletionQueue, Watched>();

  /** @throws QuorateError QUORATE_CLOSED; TypeError QUORATE_INVALID_ARGUMENT */
  constructor(channel: CompletionChannel) {
    if (!(channel instanceof CompletionChannel)) throw invalidArgument('channel must be a CompletionChannel');
    this.#channel = channel;
    channel.onEvent((completionQueue) => this.#armAndDrain(completionQueue));
  }

  /**
   * Begins to hand the queue's completions to the handler. Those that are in the queue already are handed over before
   * this call returns. What the handler throws while it is called from the event loop is an uncaught exception; the
   * completions behind those it was given are then handed over in the next turn of the event loop.
   *
   * @throws QuorateError QUORATE_CLOSED; TypeError QUORATE_INVALID_ARGUMENT, also for a queue of another channel;
   * RangeError QUORATE_OUT_OF_RANGE
   */
  watch(completionQueue: CompletionQueue, handler: CompletionHandler, options: WatchOptions = {}): void {
    checkOptions('options', options, WATCH_OPTIONS);
    const { batch = 256, solicitedOnly = false } = options;
    checkInteger('batch', batch, 1, 65_536);
    if (!(completionQueue instanceof CompletionQueue)) {
      throw invalidArgument('completionQueue must be a CompletionQueue');
    }
    if (typeof handler !== 'function') throw invalidArgument('handler must be a function');
    // Not known of a queue that this thread adopted.
    if (completionQueue.channel !== undefined && completionQueue.channel !== this.#channel) {
      throw invalidArgument('the events of this completion queue go to another channel');
    }
    void completionQueue.depth; // throws if the queue is closed
    this.unwatch(completionQueue);
    const forget = completionQueue.onceClosed(() => this.#watched.delete(completionQueue));
    this.#watched.set(completionQueue, { handler, batch, solicitedOnly, forget });
    this.#armAndDrain(completionQueue);
  }

  /** No more completions of this queue are taken. */
  unwatch(completionQueue: CompletionQueue): void {
    this.#watched.get(completionQueue)?.forget();
    this.#watched.delete(completionQueue);
  }

  /** Holds the event loop open. */
  ref(): void {
    this.#channel.ref();
  }

  /** Undoes ref(). */
  unref(): void {
    this.#channel.unref();
  }

  /** close(), for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** Stops watching all queues. The channel and the queues stay open. */
  close(): void {
    for (const completionQueue of this.#watched.keys()) this.unwatch(completionQueue);
    if (!this.#channel.closed) this.#channel.onEvent(null);
  }

  #armAndDrain(completionQueue: CompletionQueue): void {
    const armed = this.#watched.get(completionQueue);
    if (armed === undefined || completionQueue.closed) return;
    completionQueue.requestNotify(armed.solicitedOnly);
    for (;;) {
      // Looked up each time: the handler may have ended the watch or closed the queue.
      const watched = this.#watched.get(completionQueue);
      if (watched === undefined || completionQueue.closed) return;
      const completions = completionQueue.poll(watched.batch);
      if (completions.length === 0) return;
      let finished = false;
      try {
        watched.handler(completions, completionQueue);
        finished = true;
      } finally {
        // A handler that throws must not strand what is left in the queue: no event will come for it.
        if (!finished) setImmediate(() => this.#armAndDrain(completionQueue));
      }
    }
  }
}
