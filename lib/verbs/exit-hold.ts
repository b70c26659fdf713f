// A process that is killed gives its memory back before anything else, and that can take longer than a failover.
import { addon } from './load-addon.js';
import type { NativeExitHold } from './native.js';
import { existingFace, VerbsObject } from './verbs-object.js';

/**
 * While it is open, memory and descriptors of this process outlast it by a moment, however it ends. The kernel gives the
 * memory of a dead process back page by page, on the processor on which the last thread died: some 10 ms for a small Node.js
 * process, far longer for one with gigabytes. Whoever takes its work over on the same host needs that processor at
 * just that moment.
 *
 * It takes a second process, a child that shares address space and descriptors (clone(2) with CLONE_VM and CLONE_FILES)
 * and sleeps; there is one for all holds of a process, and it holds for the longest of them. It shows up as "quorate-hold". For so
 * long ports stay bound, locks stay taken, and connections stay open, so keep it shorter than a restart takes. It ends
 * at once with close(), and with a SIGKILL of its own. A process that replaces its program, execve(2), must close it before.
 */
export class ExitHold extends VerbsObject<NativeExitHold> {
  /**
   * @param holdNs nanoseconds, 1 .. 1e9
   * @throws RangeError QUORATE_OUT_OF_RANGE; QuorateError QUORATE_SYSTEM if there can be no such process, see clone(2)
   */
  constructor(holdNs: number);
  /** @internal */
  constructor(native: NativeExitHold);
  constructor(argument: number | NativeExitHold) {
    super(typeof argument === 'object' && argument !== null ? argument : new addon.ExitHold(argument));
  }

  /** @internal */
  static of(native: NativeExitHold): ExitHold {
    return (existingFace(native) as ExitHold | undefined) ?? new ExitHold(native);
  }

  /** Process id of the child. */
  get keeperId(): number {
    return this.native.keeperId;
  }
}
