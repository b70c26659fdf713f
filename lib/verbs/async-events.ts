// Asynchronous events of a device: what goes wrong or changes outside of any work request, see ibv_get_async_event(3).
import { invalidArgument } from '../errors.js';
import type { Context } from './context.js';
import { AsyncEventType, type NativeAsyncEvent } from './native.js';
import { checkAbortable, type Members } from './options.js';
import { faceOf } from './sharing.js';
import type { VerbsObject } from './verbs-object.js';

export { AsyncEventType } from './native.js';

/** An asynchronous event, see ibv_get_async_event(3). */
export interface AsyncEvent {
  /** An AsyncEventType, or another number that the device reports. */
  readonly type: number;
  /** "SRQ_LIMIT_REACHED", ...; "UNKNOWN_<n>" for a number that the verbs API does not define. */
  readonly name: string;
  /** The queue pair, completion queue or shared receive queue that it is about; null for events of ports and devices. */
  readonly object: VerbsObject | null;
  /** Of port events; else 0. */
  readonly portNum: number;
}

const NAMES = new Map<number, string>(Object.entries(AsyncEventType).map(([name, type]) => [type, name]));

/** @internal */
export function publicEvent(event: NativeAsyncEvent): AsyncEvent {
  const { type, object, portNum } = event;
  return {
    type,
    name: NAMES.get(type) ?? `UNKNOWN_${type}`,
    object: object === null ? null : faceOf(object),
    portNum,
  };
}

/** Options of {@link asyncEvents}. */
export interface AsyncEventsOptions {
  /** Ends the iteration when it aborts. */
  signal?: AbortSignal;
  /** Hold the event loop open while the iteration waits. Default true. */
  ref?: boolean;
}

const ASYNC_EVENTS_OPTIONS: Members<AsyncEventsOptions> = { signal: true, ref: true };

/** Contexts that are being iterated: their events come to one callback per thread. */
const iterated = new WeakSet<Context>();

/**
 * The asynchronous events of a context, one after the other, until the loop is left, the signal aborts or the context is
 * closed in this thread (which just ends the iteration). One iteration per context and thread at a time. Events that
 * were not handed out stay with the device.
 *
 * @example
 * for await (const event of asyncEvents(context, { signal })) {
 *   if (event.type === AsyncEventType.SRQ_LIMIT_REACHED) refill(event.object as SharedReceiveQueue);
 * }
 * @throws QuorateError QUORATE_CLOSED; TypeError QUORATE_INVALID_ARGUMENT, also if the context is being iterated already
 */
export async function* asyncEvents(
  context: Context,
  options: AsyncEventsOptions = {},
): AsyncGenerator<AsyncEvent, void, void> {
  if (context?.kind !== 'Context') throw invalidArgument('context must be a Context');
  checkAbortable(options, ASYNC_EVENTS_OPTIONS);
  if (iterated.has(context)) throw invalidArgument('the events of this context are being iterated already');
  const { signal, ref = true } = options;
  let taken: AsyncEvent | undefined;
  let wake: (() => void) | undefined;
  const onAbort = () => wake?.();
  const watch = () => {
    context.onAsyncEvent((event) => {
      // One at a time: what the loop does not come to, the device keeps for who asks next.
      context.onAsyncEvent(null);
      taken = event;
      wake?.();
    });
    if (ref) context.ref();
  };
  iterated.add(context);
  const unsubscribe = context.onceClosed(() => wake?.());
  signal?.addEventListener('abort', onAbort);
  try {
    if (signal?.aborted) return;
    for (;;) {
      watch();
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
      wake = undefined;
      const event = taken;
      taken = undefined;
      if (event !== undefined) yield event;
      if (signal?.aborted || context.closed) return;
    }
  } finally {
    signal?.removeEventListener('abort', onAbort);
    unsubscribe();
    iterated.delete(context);
    if (!context.closed) context.onAsyncEvent(null);
  }
}
