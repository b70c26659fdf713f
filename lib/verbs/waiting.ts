// Waiting without an event loop, for worker threads that must be woken within microseconds, and the clock.
import { addon } from './load-addon.js';
import type { Memory } from './memory.js';

export { MAX_WAIT_NS } from './native.js';

/** waitWord(): the word changed or the waiter was woken. */
export const WAIT_WOKEN = 0;
/** waitWord(): the time passed. */
export const WAIT_TIMEOUT = 1;

/**
 * Blocks this thread, event loop and all, until the 32-bit word at `byteOffset` of the memory (a multiple of 4) differs
 * from `expected`, somebody calls wakeWord() or addWord() on it (also from another process that maps the same memory),
 * or `timeoutNs` nanoseconds (at most MAX_WAIT_NS) have passed; see FUTEX_WAIT in futex(2). Returns WAIT_WOKEN or
 * WAIT_TIMEOUT. May return WAIT_WOKEN without a change: look again. The word is looked at every 50 ms at the latest, so
 * that a store that nobody announced (a remote WRITE) is seen too. Meant for worker threads; worker.terminate() and
 * process.exit() take effect when it returns.
 *
 * @throws RangeError QUORATE_OUT_OF_RANGE, TypeError QUORATE_INVALID_ARGUMENT, QuorateError QUORATE_CLOSED
 */
export function waitWord(memory: Memory, byteOffset: number, expected: number, timeoutNs: number): 0 | 1 {
  return addon.waitWord(memory?.native, byteOffset, expected, timeoutNs);
}

/** Wakes all waiters on the word, in all processes; returns how many there were. See FUTEX_WAKE in futex(2). */
export function wakeWord(memory: Memory, byteOffset: number): number {
  return addon.wakeWord(memory?.native, byteOffset);
}

/** Adds `delta` (-2^31 .. 2^32-1) to the word atomically, modulo 2^32, and wakes all waiters; returns the new value. */
export function addWord(memory: Memory, byteOffset: number, delta: number): number {
  return addon.addWord(memory?.native, byteOffset, delta);
}

/**
 * By how much the kernel may delay the timers of the calling thread to save power, nanoseconds: PR_SET_TIMERSLACK of
 * prctl(2). Linux starts with 50,000. 0 restores that; at most 1e9.
 */
export function setTimerSlack(ns: number): void {
  addon.setTimerSlack(ns);
}

/** CLOCK_MONOTONIC in nanoseconds, the same clock in all processes of the host. See clock_gettime(2). */
export const monotonicNs: () => number = addon.monotonicNs;

/**
 * Asks the kernel to run the calling thread in slices of `ns` nanoseconds (100 us .. 100 ms), sched_setattr(2) with
 * SCHED_OTHER, which needs no right. A thread with a shorter slice gets no more of the processor, but gets it sooner
 * after a wake-up when others are running. Linux 6.12 and later; returns false where there is no such thing.
 *
 * @throws RangeError QUORATE_OUT_OF_RANGE, TypeError QUORATE_INVALID_ARGUMENT
 */
export function setSchedulingSlice(ns: number): boolean {
  return addon.setSchedulingSlice(ns);
}

/**
 * Real-time scheduling for the calling thread, sched_setscheduler(2) with SCHED_FIFO: whenever it can run, it runs before
 * everything of ordinary priority on its processor. Not inherited by what the thread starts.
 *
 * @param priority 1 .. 99
 * @throws QuorateError QUORATE_SYSTEM (EPERM: it takes CAP_SYS_NICE, or RLIMIT_RTPRIO of at least the priority); RangeError
 * QUORATE_OUT_OF_RANGE
 */
export function setRealtimePriority(priority: number): void {
  addon.setRealtimePriority(priority);
}

/**
 * Processors that the calling thread may run on, see sched_setaffinity(2).
 *
 * @throws QuorateError QUORATE_SYSTEM if none of them is there; TypeError QUORATE_INVALID_ARGUMENT; RangeError
 * QUORATE_OUT_OF_RANGE
 */
export function setCpuAffinity(cpus: readonly number[]): void {
  addon.setCpuAffinity(cpus);
}
