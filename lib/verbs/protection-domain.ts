// A protection domain: queue pairs reach only memory regions of their own domain.
import { invalidArgument } from '../errors.js';
import { CompletionQueue } from './completion-queue.js';
import type { Context } from './context.js';
import { Memory } from './memory.js';
import { MemoryRegion } from './memory-region.js';
import type { NativeProtectionDomain, QpCapabilities, QpType } from './native.js';
import { QueuePair } from './queue-pair.js';
import { existingFace, VerbsObject } from './verbs-object.js';

export type { QpCapabilities } from './native.js';

/** What a queue pair is made of, see ibv_create_qp(3). */
export interface QueuePairOptions {
  /** RC (default), UC or UD. */
  type?: QpType;
  /** Gets the completions of send requests. */
  sendCq: CompletionQueue;
  /** Gets the completions of receive requests; default `sendCq`. */
  recvCq?: CompletionQueue;
  /** Defaults: 128 send and 16 receive requests, one scatter/gather element each, no inline data. */
  cap?: Partial<QpCapabilities>;
  /** Every send request yields a completion, signaled or not. Default false. */
  signalAll?: boolean;
}

/** See ibv_alloc_pd(3). */
export class ProtectionDomain extends VerbsObject<NativeProtectionDomain> {
  /** The context it was made from; undefined in a thread that adopted the domain. */
  readonly context: Context | undefined;

  private constructor(native: NativeProtectionDomain, context?: Context) {
    super(native, context);
    this.context = context;
  }

  /** @internal */
  static of(native: NativeProtectionDomain, context?: Context): ProtectionDomain {
    return (existingFace(native) as ProtectionDomain | undefined) ?? new ProtectionDomain(native, context);
  }

  /**
   * Registers `length` bytes of `memory` from `offset`, see ibv_reg_mr(3). The region keeps the memory. REMOTE_WRITE
   * and REMOTE_ATOMIC need LOCAL_WRITE as well.
   *
   * @param access bits of Access; 0 lets the device read locally only
   * @throws RangeError QUORATE_OUT_OF_RANGE if the range is not inside the memory; QuorateError QUORATE_MEMLOCK if the
   * limit on locked memory is too small, QUORATE_LIMIT if the device has no more regions
   */
  registerMemory(memory: Memory, offset: number, length: number, access: number): MemoryRegion {
    if (!(memory instanceof Memory)) throw invalidArgument('memory must be a Memory');
    return this.retain(MemoryRegion.of(this.native.registerMemory(memory.native, offset, length, access), this));
  }

  /**
   * A new queue pair in state RESET, see ibv_create_qp(3).
   *
   * @throws QuorateError QUORATE_MEMLOCK, QUORATE_LIMIT, QUORATE_UNSUPPORTED (type not offered by the device),
   * QUORATE_SYSTEM
   */
  createQueuePair(options: QueuePairOptions): QueuePair {
    const { sendCq, recvCq = sendCq, ...rest } = options;
    if (!(sendCq instanceof CompletionQueue)) throw invalidArgument('sendCq must be a CompletionQueue');
    if (!(recvCq instanceof CompletionQueue)) throw invalidArgument('recvCq must be a CompletionQueue');
    const init = { ...rest, sendCq: sendCq.native, recvCq: recvCq.native };
    return this.retain(QueuePair.of(this.native.createQueuePair(init), this));
  }
}
