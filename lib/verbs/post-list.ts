// The hot path: work requests as numbers in a preallocated array, posted and polled by one native call.
import { invalidArgument } from '../errors.js';
import type { AddressHandle } from './address-handle.js';
import { CompletionQueue } from './completion-queue.js';
import type { Fence } from './fence.js';
import { addon } from './load-addon.js';
import type { Memory } from './memory.js';
import { CALL, type NativePostList, type PostListOptions, WC, WC_STRIDE, WR, WR_STRIDE } from './native.js';
import { checkInteger, checkObject } from './options.js';
import type { QueuePair } from './queue-pair.js';

export type { PostListOptions } from './native.js';
export {
  FENCED,
  MAX_SPIN_NS,
  OP_FENCED_COPY,
  POST_LIST_MAX_ENTRIES,
  POST_LIST_SLOTS,
  POST_REFUSED,
  POST_UNSIGNALED,
  WC,
  WC_STRIDE,
  WR,
  WR_STRIDE,
} from './native.js';

/** Members of one request by name, for code that is not hot. Those that are absent become 0. */
export type WorkRequestFields = { [field in Exclude<keyof typeof WR, 'reserved'>]?: number };
/** Members of one completion by name. */
export type CompletionFields = { [field in keyof typeof WC]: number };

/**
 * A list of work requests for one completion queue. Write requests into `workRequests` (WR_STRIDE doubles each, see WR
 * for the fields), call submit(), read `completions` (WC_STRIDE doubles each, see WC). Nothing is allocated. The list
 * belongs to the thread that made it; what is bound to it may be used by other threads too. It refers to the objects in
 * its slots until they are unbound or the list is closed.
 *
 * @example
 * const list = new PostList(completionQueue, { maxWorkRequests: 16, maxCompletions: 64 });
 * list.bindQueuePair(0, queuePair);
 * const w = list.workRequests;
 * w[WR.op] = WrOpcode.RDMA_WRITE; w[WR.slot] = 0; w[WR.wrId] = 1; // ... addresses, length, keys
 * const count = list.submit(1, 20_000, 1); // post one, wait up to 20 us for its completion
 */
export class PostList {
  /** @internal */
  readonly native: NativePostList;
  /** The requests: maxWorkRequests * WR_STRIDE doubles, outside the JavaScript heap. */
  readonly workRequests: Float64Array;
  /** The completions of the last submit: maxCompletions * WC_STRIDE doubles, outside the JavaScript heap. */
  readonly completions: Float64Array;
  /**
   * Posts the first `count` requests in order (ibv_post_send(3)), then polls (ibv_poll_cq(3)), at least once, until
   * `wanted` completions are in or `spinNs` nanoseconds (at most MAX_SPIN_NS) have passed. Returns the number of
   * completions.
   *
   * A request is signaled and yields exactly one completion, in this or a later submit, unless it has POST_UNSIGNALED
   * in its sendFlags: then only if it fails. One that was refused has status POST_REFUSED with the errno in vendorErr,
   * and so have later ones of the same queue pair in this call. Consecutive requests of one queue pair are handed to
   * the device together. An INLINE request takes its data from a memory that was bound with bindMemory(), or is refused
   * with EFAULT.
   *
   * A request with op OP_FENCED_COPY copies `length` bytes from localAddress to remoteAddress, both in bound memories
   * of this process, inside the lock of the fence in its slot, and only if the fence holds the request's epoch. It
   * completes at once: status 0, or FENCED. If it did not copy, nothing behind it in this call is executed either:
   * those requests complete with FENCED (or, if the copy itself was malformed, POST_REFUSED with ECANCELED).
   *
   * Throws RangeError QUORATE_OUT_OF_RANGE, TypeError QUORATE_INVALID_ARGUMENT, QuorateError QUORATE_CLOSED, and the
   * error of a completion queue that overflowed.
   */
  readonly submit: (count: number, spinNs: number, wanted: number) => number;

  /**
   * @param completionQueue the send queue of the queue pairs that will be bound
   * @throws RangeError QUORATE_OUT_OF_RANGE; TypeError QUORATE_INVALID_ARGUMENT; QuorateError QUORATE_CLOSED
   */
  constructor(completionQueue: CompletionQueue, options: PostListOptions) {
    if (!(completionQueue instanceof CompletionQueue)) {
      throw invalidArgument('completionQueue must be a CompletionQueue');
    }
    this.native = new addon.PostList(completionQueue.native, options);
    this.workRequests = this.native.workRequests;
    this.completions = this.native.completions;
    this.submit = submitter(this.native);
  }

  /** close() was called. */
  get closed(): boolean {
    return this.native.closed;
  }

  /** Releases what is bound to the list; its arrays stay readable. Idempotent. */
  close(): void {
    this.native.close();
  }

  /** close(), for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** Puts a queue pair into a slot (0 .. 63), null empties it. */
  bindQueuePair(slot: number, queuePair: QueuePair | null): void {
    this.native.bindQueuePair(slot, queuePair === null ? null : nativeOf(queuePair, 'queuePair'));
  }

  /** Puts an address handle into a slot (0 .. 63) of its own kind, for requests to UD queue pairs; null empties it. */
  bindAddressHandle(slot: number, addressHandle: AddressHandle | null): void {
    this.native.bindAddressHandle(slot, addressHandle === null ? null : nativeOf(addressHandle, 'addressHandle'));
  }

  /** Puts a fence into a slot (0 .. 63) of its own kind, null empties it. */
  bindFence(slot: number, fence: Fence | null): void {
    this.native.bindFence(slot, fence === null ? null : nativeOf(fence, 'fence'));
  }

  /** Lets fenced copies and INLINE requests use a memory; slots (0 .. 63) of their own kind, null empties one. */
  bindMemory(slot: number, memory: Memory | null): void {
    this.native.bindMemory(slot, memory === null ? null : nativeOf(memory, 'memory'));
  }

  /** Writes request number `index` by field names; for code that is not hot. */
  setWorkRequest(index: number, fields: WorkRequestFields): void {
    const at = checkInteger('index', index, 0, this.workRequests.length / WR_STRIDE - 1) * WR_STRIDE;
    checkObject('fields', fields);
    this.workRequests.fill(0, at, at + WR_STRIDE);
    for (const [name, value] of Object.entries(fields)) {
      const offset = (WR as Record<string, number>)[name];
      if (offset === undefined) throw invalidArgument(`a work request has no field '${name}'`);
      this.workRequests[at + offset] = value;
    }
  }

  /** Completion number `index` of the last submit by field names; for code that is not hot. */
  completion(index: number): CompletionFields {
    const at = checkInteger('index', index, 0, this.completions.length / WC_STRIDE - 1) * WC_STRIDE;
    const entries = Object.entries(WC).map(([name, offset]) => [name, this.completions[at + offset]]);
    return Object.fromEntries(entries) as CompletionFields;
  }
}

/** The arguments go through an array that both sides see: each number that goes through Node-API costs a call. */
function submitter({ call, run }: NativePostList): PostList['submit'] {
  return (count, spinNs, wanted) => {
    if (typeof count !== 'number' || typeof spinNs !== 'number' || typeof wanted !== 'number') {
      throw invalidArgument('count, spinNs and wanted must be numbers');
    }
    call[CALL.count] = count;
    call[CALL.spinNs] = spinNs;
    call[CALL.wanted] = wanted;
    run();
    return (call[CALL.filled] as number) | 0;
  };
}

function nativeOf<Native>(object: { native: Native }, name: string): Native {
  if (typeof object !== 'object' || object.native === undefined) throw invalidArgument(`${name} is of the wrong class`);
  return object.native;
}
