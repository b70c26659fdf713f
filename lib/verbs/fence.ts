// Keeps a deposed leader from writing its own log.
import { addon } from './load-addon.js';
import type { NativeFence } from './native.js';
import { existingFace, VerbsObject } from './verbs-object.js';

/**
 * An epoch behind a lock that threads share. A fenced copy of a PostList runs inside the lock and only if it carries
 * the fence's epoch; raise() takes the same lock. So when raise() has returned, no copy of a lower epoch is running in
 * any thread or will ever run.
 */
export class Fence extends VerbsObject<NativeFence> {
  constructor();
  /** @internal */
  constructor(native: NativeFence);
  constructor(native: NativeFence = new addon.Fence()) {
    super(native);
  }

  /** @internal */
  static of(native: NativeFence): Fence {
    return (existingFace(native) as Fence | undefined) ?? new Fence(native);
  }

  /** The epoch that copies must carry: an integer below 2^53. A new fence has 0. */
  get epoch(): number {
    return this.native.epoch;
  }

  /**
   * Sets the epoch and returns the previous one. Waits for a copy that is running (microseconds).
   *
   * @throws TypeError QUORATE_INVALID_ARGUMENT if `epoch` is below the current one: a fence is never lowered
   */
  raise(epoch: number): number {
    return this.native.raise(epoch);
  }
}
