// Rights on memory that are given and taken by work requests.
import type { NativeMemoryWindow } from './native.js';
import { checkInteger } from './options.js';
import { existingFace, VerbsObject } from './verbs-object.js';

/** The lowest 8 bits of a window's key are its owner's to choose: a new one for each binding of type 2. */
const KEY_BITS = 0xff;

/** The key with its lowest 8 bits counted up, see ibv_inc_rkey(3): what the next binding of a window uses. */
export function nextRkey(rkey: number): number {
  checkInteger('rkey', rkey, 0, 2 ** 32 - 1);
  return ((rkey & ~KEY_BITS) | ((rkey + 1) & KEY_BITS)) >>> 0;
}

/**
 * A memory window, see ibv_alloc_mw(3) and ibv_bind_mw(3): lets peers use a part of a memory region, with rights of its
 * own and a key of its own, for as long as it is bound. The region must have been registered with MW_BIND.
 *
 * Type 1 is bound, bound to something else and unbound by QueuePair.bindMemoryWindow(), and serves every queue pair of
 * its domain. Type 2 is bound by a BIND_MW request, with a key that the owner chooses (nextRkey()), and serves the queue
 * pair that bound it; it ends with a LOCAL_INV request, or a SEND_WITH_INV of the peer, and can then be bound anew.
 *
 * That an unbinding has completed proves on shm that nothing can land through the window any more. It does not on
 * SoftRoCE, where writes landed milliseconds later; only deregistering the region does.
 *
 * A region to which a window is bound cannot be closed. Closing a queue pair closes the windows of type 2 that were bound
 * through it last; closing the domain closes windows before all else.
 */
export class MemoryWindow extends VerbsObject<NativeMemoryWindow> {
  /** @internal */
  static of(native: NativeMemoryWindow, parent?: VerbsObject): MemoryWindow {
    return (existingFace(native) as MemoryWindow | undefined) ?? new MemoryWindow(native, parent);
  }

  /** 1 or 2. */
  get type(): 1 | 2 {
    return this.native.type as 1 | 2;
  }

  /**
   * Key that peers need to use the window: that of the last binding that was posted. Whether it is in force is said by
   * the binding's completion.
   */
  get rkey(): number {
    return this.native.rkey;
  }
}
