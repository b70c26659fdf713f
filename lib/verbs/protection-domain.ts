// A protection domain: queue pairs reach only memory regions of their own domain.
import { invalidArgument } from '../errors.js';
import { AddressHandle } from './address-handle.js';
import { CompletionQueue } from './completion-queue.js';
import type { Context } from './context.js';
import { Memory } from './memory.js';
import { MemoryRegion } from './memory-region.js';
import { MemoryWindow } from './memory-window.js';
import type { AddressVector, NativeProtectionDomain, QpCapabilities, QpType, WorkCompletion } from './native.js';
import { checkObject } from './options.js';
import { QueuePair } from './queue-pair.js';
import { SharedReceiveQueue } from './shared-receive-queue.js';
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
  /**
   * Where receives come from, instead of a queue of its own; `cap.maxRecvWr` does not count then. On RDMA devices recvCq
   * must have room for all that the shared queue can yield, beside what its other users need.
   */
  srq?: SharedReceiveQueue;
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
   * limit on locked memory is too small, QUORATE_LIMIT if the device has no more regions; TypeError
   * QUORATE_INVALID_ARGUMENT, also for rights that do not go together
   */
  registerMemory(memory: Memory, offset: number, length: number, access: number): MemoryRegion {
    if (!(memory instanceof Memory)) throw invalidArgument('memory must be a Memory');
    return this.retain(MemoryRegion.of(this.native.registerMemory(memory.native, offset, length, access), this));
  }

  /**
   * A new queue pair in state RESET, see ibv_create_qp(3).
   *
   * @throws QuorateError QUORATE_MEMLOCK, QUORATE_LIMIT, QUORATE_UNSUPPORTED (type not offered by the device),
   * QUORATE_SYSTEM; RangeError QUORATE_OUT_OF_RANGE if the device has none as large; TypeError QUORATE_INVALID_ARGUMENT
   */
  createQueuePair(options: QueuePairOptions): QueuePair {
    checkObject('options', options);
    const { sendCq, recvCq = sendCq, srq, ...rest } = options;
    if (!(sendCq instanceof CompletionQueue)) throw invalidArgument('sendCq must be a CompletionQueue');
    if (!(recvCq instanceof CompletionQueue)) throw invalidArgument('recvCq must be a CompletionQueue');
    if (srq !== undefined && !(srq instanceof SharedReceiveQueue)) {
      throw invalidArgument('srq must be a SharedReceiveQueue');
    }
    const init = {
      ...rest,
      sendCq: sendCq.native,
      recvCq: recvCq.native,
      ...(srq === undefined ? {} : { srq: srq.native }),
    };
    return this.retain(QueuePair.of(this.native.createQueuePair(init), this));
  }

  /**
   * A memory window, see ibv_alloc_mw(3): a right on a part of a region that work requests give and take, without
   * registering anything. It is bound to nothing yet.
   *
   * @param type 1: bound by QueuePair.bindMemoryWindow(), for all queue pairs of the domain. 2: bound by BIND_MW requests,
   * for the queue pair that bound it
   * @throws QuorateError QUORATE_UNSUPPORTED if the device has none of that type, see Context.capabilities; QUORATE_LIMIT
   */
  allocateMemoryWindow(type: 1 | 2): MemoryWindow {
    return this.retain(MemoryWindow.of(this.native.allocateMemoryWindow(type), this));
  }

  /**
   * Receives that several queue pairs draw from, see ibv_create_srq(3).
   *
   * @param maxWr receives that can be posted at once, at least
   * @param maxSge buffers of each, at most; default 1
   * @throws QuorateError QUORATE_UNSUPPORTED if the device has none (`maxSrq` of Context.queryDevice() is 0);
   * RangeError QUORATE_OUT_OF_RANGE if it has none as large (`maxSrqWr`)
   */
  createSharedReceiveQueue(maxWr: number, maxSge = 1): SharedReceiveQueue {
    return this.retain(SharedReceiveQueue.of(this.native.createSharedReceiveQueue(maxWr, maxSge), this));
  }

  /**
   * A destination of UD sends, see ibv_create_ah(3). On RoCE the destination's link address is resolved here, which may
   * block for about a second.
   *
   * @param av `dgid` and `sgidIndex` on Ethernet and shm, `dlid` on InfiniBand; see Context.addressVectorFor()
   * @throws QuorateError QUORATE_SYSTEM (address cannot be resolved, no such GID); RangeError QUORATE_OUT_OF_RANGE;
   * TypeError QUORATE_INVALID_ARGUMENT, on shm also for a GID or port that is not there
   */
  createAddressHandle(av: AddressVector): AddressHandle {
    return this.retain(AddressHandle.of(this.native.createAddressHandle(av), this));
  }

  /**
   * The way back to the sender of a datagram, see ibv_create_ah_from_wc(3). Send to `completion.srcQpNum` with it.
   *
   * @param completion of a UD receive
   * @param memory where the message was received: the routing header is at `offset`, the start of the receive buffer
   * @throws TypeError QUORATE_INVALID_ARGUMENT or QuorateError QUORATE_SYSTEM if there is no routing header; RangeError
   * QUORATE_OUT_OF_RANGE if it is not inside the memory
   */
  createAddressHandleFromCompletion(
    completion: WorkCompletion,
    memory: Memory,
    offset: number,
    portNum = 1,
  ): AddressHandle {
    if (!(memory instanceof Memory)) throw invalidArgument('memory must be a Memory');
    if (this.context === undefined)
      throw invalidArgument('this thread adopted the domain and does not know its device');
    return this.createAddressHandle(
      this.context.native.addressVectorFromCompletion(portNum, completion, memory.native, offset),
    );
  }
}
