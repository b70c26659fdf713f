// Receives that several queue pairs draw from.
import type { NativeSharedReceiveQueue, PostResult, ReceiveWorkRequest } from './native.js';
import { existingFace, VerbsObject } from './verbs-object.js';

/**
 * A shared receive queue, see ibv_create_srq(3). A message that arrives at any of its queue pairs takes one of its
 * receives; the completion comes to that queue pair's completion queue, and `qpNum` tells which it was. Receives may
 * complete in another order than they were posted in.
 */
export class SharedReceiveQueue extends VerbsObject<NativeSharedReceiveQueue> {
  /** @internal */
  static of(native: NativeSharedReceiveQueue, parent?: VerbsObject): SharedReceiveQueue {
    return (existingFace(native) as SharedReceiveQueue | undefined) ?? new SharedReceiveQueue(native, parent);
  }

  /** Receives that can be posted and not yet polled, as granted. */
  get maxWr(): number {
    return this.native.maxWr;
  }

  /**
   * Posts receives in order, see ibv_post_srq_recv(3). `errno` ENOMEM: maxWr receives are posted or wait to be polled.
   *
   * @throws TypeError or RangeError for requests that are malformed; nothing was posted then
   */
  postReceive(requests: readonly ReceiveWorkRequest[]): PostResult {
    return this.native.postReceive(requests);
  }

  /**
   * Arms the limit, see ibv_modify_srq(3): as soon as fewer than `limit` receives are left, the context raises
   * SRQ_LIMIT_REACHED, once. 0 disarms it.
   *
   * @throws RangeError QUORATE_OUT_OF_RANGE above maxWr
   */
  setLimit(limit: number): void {
    this.native.setLimit(limit);
  }

  /** See ibv_query_srq(3); `limit` is 0 when none is armed. */
  query(): {
    /** Receives that can be posted at once. */
    maxWr: number;
    /** As setLimit() said; 0 when none is armed. */
    limit: number;
  } {
    return this.native.query();
  }
}
