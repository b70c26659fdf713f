// Sleeping in a thread without an event loop, until any of several things happens.
import { CompletionChannel } from './completion-channel.js';
import { CompletionQueue } from './completion-queue.js';
import { addon } from './load-addon.js';
import type { NativePeerProcess, NativeWaiter, ProcessState } from './native.js';
import { existingFace, nativeOrNull, VerbsObject } from './verbs-object.js';

export { ProcessState, WAITER_PEERS_MAX, WaitReason } from './native.js';

/**
 * The process that opened a peer's device instance, from {@link Context.openPeerProcess}. Closing it lets go of what it
 * takes to watch the peer; the peer notices nothing.
 */
export class PeerProcess extends VerbsObject<NativePeerProcess> {
  /** @internal */
  static of(native: NativePeerProcess): PeerProcess {
    return (existingFace(native) as PeerProcess | undefined) ?? new PeerProcess(native);
  }

  /**
   * False from the very start of the process's exit on (also after SIGKILL), or once it has closed the device. That it
   * is alive says nothing about whether it makes progress. One load from memory.
   */
  get alive(): boolean {
    return this.native.alive;
  }

  /** What the host sees of it at this instant, see proc_pid_stat(5). Some microseconds. */
  get state(): ProcessState {
    return this.native.state;
  }
}

/**
 * Lets one thread sleep until another thread calls wake(), a completion queue has news, or a peer's process dies. On
 * shared memory it sleeps on futexes, all at once with futex_waitv(2); where that is missing (before Linux 5.16) only
 * wake() ends a wait early and the rest is seen when its time is up. With a device of the kernel it sleeps in ppoll(2).
 *
 * Any thread may call wake(); everything else belongs to the thread that waits.
 */
export class Waiter extends VerbsObject<NativeWaiter> {
  constructor();
  /** @internal */
  constructor(native: NativeWaiter);
  constructor(native: NativeWaiter = new addon.Waiter()) {
    super(native);
  }

  /** @internal */
  static of(native: NativeWaiter): Waiter {
    return (existingFace(native) as Waiter | undefined) ?? new Waiter(native);
  }

  /** Ends the wait that is on, or else the next one, with WaitReason.WOKEN. Never blocks. */
  wake(): void {
    this.native.wake();
  }

  /**
   * Ends waits when the queue has news: receive completions on shared memory, any completion with a device of the
   * kernel. Poll the queue until it is empty after each WaitReason.COMPLETION; what came before this call counts as news.
   *
   * @param completionQueue null for none
   * @param channel the queue's own channel: its events are taken by wait(), and the queue is armed again each time
   * @throws TypeError QUORATE_INVALID_ARGUMENT also if the device needs a channel and none is given
   */
  watchQueue(completionQueue: CompletionQueue | null, channel?: CompletionChannel | null): void {
    const queue = nativeOrNull(completionQueue, CompletionQueue, 'completionQueue');
    this.native.watchQueue(queue, nativeOrNull(channel, CompletionChannel, 'channel'));
  }

  /**
   * Ends a wait with WaitReason.PEER_DIED when the process dies, or is dead already; once.
   *
   * @param slot 0 .. WAITER_PEERS_MAX - 1; what it held before is not watched any more
   * @param peer null for none
   */
  watchPeer(slot: number, peer: PeerProcess | null): void {
    this.native.watchPeer(slot, nativeOrNull(peer, PeerProcess, 'peer'));
  }

  /**
   * Blocks this thread, event loop and all, for at most `timeoutNs` nanoseconds (0 .. MAX_WAIT_NS). Returns the bits of
   * WaitReason for which it ended, 0 if the time was up. worker.terminate() and process.exit() take effect afterwards.
   *
   * @throws RangeError QUORATE_OUT_OF_RANGE; QuorateError QUORATE_SYSTEM, QUORATE_CLOSED
   */
  wait(timeoutNs: number): number {
    return this.native.wait(timeoutNs);
  }
}
