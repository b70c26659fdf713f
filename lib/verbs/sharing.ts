// Handing objects from one thread of the process to another.
import { invalidArgument } from '../errors.js';
import { AddressHandle } from './address-handle.js';
import { CompletionChannel } from './completion-channel.js';
import { CompletionQueue } from './completion-queue.js';
import { Context } from './context.js';
import { ExitHold } from './exit-hold.js';
import { Fence } from './fence.js';
import { addon } from './load-addon.js';
import { Memory } from './memory.js';
import { MemoryRegion } from './memory-region.js';
import { MemoryWindow } from './memory-window.js';
import type {
  NativeAddressHandle,
  NativeCompletionChannel,
  NativeCompletionQueue,
  NativeContext,
  NativeExitHold,
  NativeFence,
  NativeMemory,
  NativeMemoryRegion,
  NativeMemoryWindow,
  NativeNotifier,
  NativePeerProcess,
  NativeProtectionDomain,
  NativeQueuePair,
  NativeSharedObject,
  NativeSharedReceiveQueue,
  NativeWaiter,
} from './native.js';
import { Notifier } from './notifier.js';
import { ProtectionDomain } from './protection-domain.js';
import { QueuePair } from './queue-pair.js';
import { SharedReceiveQueue } from './shared-receive-queue.js';
import type { VerbsObject } from './verbs-object.js';
import { PeerProcess, Waiter } from './waiter.js';

/** @internal This thread's object for a native one. */
export function faceOf(native: NativeSharedObject): VerbsObject {
  switch (native.kind) {
    case 'Context':
      return Context.of(native as NativeContext);
    case 'Memory':
      return Memory.of(native as NativeMemory);
    case 'MemoryRegion':
      return MemoryRegion.of(native as NativeMemoryRegion);
    case 'MemoryWindow':
      return MemoryWindow.of(native as NativeMemoryWindow);
    case 'ProtectionDomain':
      return ProtectionDomain.of(native as NativeProtectionDomain);
    case 'CompletionChannel':
      return CompletionChannel.of(native as NativeCompletionChannel);
    case 'CompletionQueue':
      return CompletionQueue.of(native as NativeCompletionQueue);
    case 'QueuePair':
      return QueuePair.of(native as NativeQueuePair);
    case 'AddressHandle':
      return AddressHandle.of(native as NativeAddressHandle);
    case 'SharedReceiveQueue':
      return SharedReceiveQueue.of(native as NativeSharedReceiveQueue);
    case 'Fence':
      return Fence.of(native as NativeFence);
    case 'Notifier':
      return Notifier.of(native as NativeNotifier);
    case 'Waiter':
      return Waiter.of(native as NativeWaiter);
    case 'PeerProcess':
      return PeerProcess.of(native as NativePeerProcess);
    case 'CmEventChannel':
    case 'CmId':
      throw invalidArgument(`a ${native.kind} belongs to the thread that made it`);
    case 'ExitHold':
      return ExitHold.of(native as NativeExitHold);
    case 'PostList':
      throw invalidArgument('a PostList belongs to the thread that made it');
  }
}

/**
 * This thread's object for what another thread shared: `adopt(token, QueuePair)`. Both stand for the same native
 * object, which lives until it is closed or the last thread lets go of it. Adopting again gives the same object.
 *
 * @param token what share() gave
 * @throws TypeError QUORATE_INVALID_ARGUMENT for an unknown token; RangeError QUORATE_OUT_OF_RANGE for what can be none;
 * QuorateError QUORATE_CLOSED
 */
export function adopt(token: number): VerbsObject;
/**
 * The same, for an object of a known class.
 *
 * @param token what share() gave
 * @param expected the class that the object must be of
 * @throws TypeError QUORATE_INVALID_ARGUMENT for an unknown token or another class; RangeError QUORATE_OUT_OF_RANGE for
 * what can be none; QuorateError QUORATE_CLOSED
 */
export function adopt<Class extends VerbsObject>(
  token: number,
  expected: { readonly prototype: Class; readonly name: string },
): Class;
export function adopt(
  token: number,
  expected?: { readonly prototype: VerbsObject; readonly name: string },
): VerbsObject {
  if (expected !== undefined && typeof (expected as { prototype?: unknown } | null)?.prototype !== 'object') {
    throw invalidArgument('expected must be a class');
  }
  const object = faceOf(addon.adopt(token));
  if (expected !== undefined && !Object.prototype.isPrototypeOf.call(expected.prototype, object)) {
    throw invalidArgument(`token ${token} stands for a ${object.kind}, not for a ${expected.name}`);
  }
  return object;
}

/** Withdraws a token; what was adopted with it stays usable. False if there was no such token. */
export function unshare(token: number): boolean {
  return addon.unshare(token);
}
