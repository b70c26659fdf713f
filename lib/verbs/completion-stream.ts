// `for await` over completion queues. The same rule as in completion-events.ts: arm, drain, wait for the event, arm
// again, drain again; an event is only raised for what arrives after the queue was armed. Here the consumer sets the
// pace: nothing is taken from the queue before what was taken has been handed out.
//
// The events of a channel come to one callback per thread, so all iterations over queues of one channel share it.
import { invalidArgument } from '../errors.js';
import type { CompletionChannel } from './completion-channel.js';
import type { CompletionQueue } from './completion-queue.js';
import type { WorkCompletion } from './native.js';
import { checkAbortable, checkInteger, type Members } from './options.js';

/** Options of an iteration over completions. */
export interface CompletionsOptions {
  /** Ends the iteration when it aborts. */
  signal?: AbortSignal;
  /** Hold the event loop open while the iteration waits. Default true. */
  ref?: boolean;
  /** Only solicited receives and errors wake the iteration; what else is there comes with them. Default false. */
  solicitedOnly?: boolean;
  /** Completions taken from the queue at a time, 1 .. 65,536. Default 64. */
  batch?: number;
}

const COMPLETIONS_OPTIONS: Members<CompletionsOptions> = { signal: true, ref: true, solicitedOnly: true, batch: true };
const DEFAULT_BATCH = 64;
const MAX_BATCH = 65_536;

interface Listener {
  /** An event of its queue came and was not waited for yet. */
  pending: boolean;
  /** Ends the present wait. */
  wake: (() => void) | undefined;
  readonly ref: boolean;
}

/** Who iterates over which queue of a channel. */
class ChannelListeners {
  static readonly #of = new WeakMap<CompletionChannel, ChannelListeners>();
  readonly #channel: CompletionChannel;
  readonly #listeners = new Map<CompletionQueue, Listener>();

  static for(channel: CompletionChannel): ChannelListeners {
    let listeners = ChannelListeners.#of.get(channel);
    if (listeners === undefined) {
      listeners = new ChannelListeners(channel);
      ChannelListeners.#of.set(channel, listeners);
    }
    return listeners;
  }

  private constructor(channel: CompletionChannel) {
    this.#channel = channel;
  }

  add(queue: CompletionQueue, listener: Listener): void {
    if (this.#listeners.has(queue)) throw invalidArgument('this completion queue is being iterated already');
    this.#channel.onEvent((about) => {
      const found = this.#listeners.get(about);
      if (found === undefined) return;
      found.pending = true;
      found.wake?.();
    });
    this.#listeners.set(queue, listener);
    this.#hold();
  }

  remove(queue: CompletionQueue): void {
    this.#listeners.delete(queue);
    if (this.#channel.closed) return;
    if (this.#listeners.size === 0) this.#channel.onEvent(null);
    else this.#hold();
  }

  #hold(): void {
    if ([...this.#listeners.values()].some((listener) => listener.ref)) this.#channel.ref();
    else this.#channel.unref();
  }
}

/** @internal See CompletionQueue.completions(). */
export async function* completionsOf(
  queue: CompletionQueue,
  options: CompletionsOptions,
): AsyncGenerator<WorkCompletion, void, void> {
  checkAbortable(options, COMPLETIONS_OPTIONS);
  const { signal, ref = true, solicitedOnly = false, batch = DEFAULT_BATCH } = options;
  checkInteger('batch', batch, 1, MAX_BATCH);
  const { channel } = queue;
  if (channel === undefined) {
    throw invalidArgument(
      'this completion queue has no channel in this thread, so nothing tells of its completions; create it with one',
    );
  }
  if (signal?.aborted) return;
  void queue.depth; // throws if the queue is closed
  const listener: Listener = { pending: false, wake: undefined, ref };
  const listeners = ChannelListeners.for(channel);
  listeners.add(queue, listener);
  const wake = () => listener.wake?.();
  const unsubscribe = [queue.onceClosed(wake), channel.onceClosed(wake)];
  signal?.addEventListener('abort', wake);
  const ended = () => signal?.aborted === true || queue.closed;
  let taken: WorkCompletion[] = [];
  let next = 0;
  try {
    while (!ended()) {
      listener.pending = false;
      queue.requestNotify(solicitedOnly);
      do {
        taken = queue.poll(batch);
        next = 0;
        while (next < taken.length) {
          yield taken[next++] as WorkCompletion;
          if (ended()) return;
        }
      } while (taken.length > 0);
      if (listener.pending || ended()) continue;
      await new Promise<void>((resolve) => {
        listener.wake = resolve;
      });
      listener.wake = undefined;
    }
  } finally {
    if (!queue.closed && next < taken.length) queue.putBack(taken.slice(next));
    signal?.removeEventListener('abort', wake);
    for (const undo of unsubscribe) undo();
    listeners.remove(queue);
  }
}
