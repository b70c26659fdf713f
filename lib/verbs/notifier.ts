// Wakes the event loop of another thread.
import { addon } from './load-addon.js';
import type { NativeNotifier } from './native.js';
import { existingFace, VerbsObject } from './verbs-object.js';

/**
 * Runs a callback in the event loop of the thread that made it, whenever any thread of the process calls notify(). It
 * carries no data: the threads share memory for that. It lives until it is closed or its thread ends, and does not hold
 * the event loop open unless ref() is called.
 */
export class Notifier extends VerbsObject<NativeNotifier> {
  /** @param callback runs once for all calls of notify() since it ran last */
  constructor(callback: () => void);
  /** @internal */
  constructor(native: NativeNotifier);
  constructor(argument: (() => void) | NativeNotifier) {
    super(typeof argument === 'object' && argument !== null ? argument : new addon.Notifier(argument));
  }

  /** @internal */
  static of(native: NativeNotifier): Notifier {
    return (existingFace(native) as Notifier | undefined) ?? new Notifier(native);
  }

  /**
   * Has the callback run. Never blocks and allocates nothing; calls before the callback ran are one with it. Returns
   * false if the notifier is closed or its thread has ended.
   */
  notify(): boolean {
    return this.native.notify();
  }

  /** Holds the owner's event loop open. @throws TypeError QUORATE_INVALID_ARGUMENT outside the owner's thread */
  ref(): void {
    this.native.ref();
  }

  /** Undoes ref(). @throws TypeError QUORATE_INVALID_ARGUMENT outside the owner's thread */
  unref(): void {
    this.native.unref();
  }
}
