// What a device can do of that which not every device can, found out by doing it: libibverbs has flags for some of it
// only, and drivers do not always keep to theirs.
import { errorCode } from '../errors.js';
import type { Context } from './context.js';
import { Access } from './memory-region.js';
import { QpType } from './queue-pair.js';

/** What a device can do. What is false is refused with QUORATE_UNSUPPORTED by the call in the comment, unless that says else. */
export interface DeviceCapabilities {
  /** Queue pairs of each type (ProtectionDomain.createQueuePair). */
  readonly rc: boolean;
  /** See `rc`. */
  readonly uc: boolean;
  /** See `rc`. */
  readonly ud: boolean;
  /** COMPARE_SWAP and FETCH_ADD, else refused by the device; its `atomicCap` says with respect to whom they are atomic. */
  readonly atomics: boolean;
  /** ProtectionDomain.createSharedReceiveQueue. */
  readonly sharedReceiveQueues: boolean;
  /** QueuePair.attachMulticast. */
  readonly multicast: boolean;
  /** ProtectionDomain.allocateMemoryWindow(1), (2). */
  readonly memoryWindows1: boolean;
  /** See `memoryWindows1`. */
  readonly memoryWindows2: boolean;
  /** MemoryRegion.reregister. */
  readonly reregistration: boolean;
  /** Access.ZERO_BASED, ON_DEMAND (ProtectionDomain.registerMemory). */
  readonly zeroBasedRegions: boolean;
  /** See `zeroBasedRegions`. */
  readonly onDemandPaging: boolean;
  /** CompletionQueue.resize. */
  readonly completionQueueResize: boolean;
  /** Context.createCompletionQueue with `extended`, `timestamps: 'raw'`, `timestamps: 'wallclock'`. */
  readonly extendedCompletionQueues: boolean;
  /** See `extendedCompletionQueues`. */
  readonly rawTimestamps: boolean;
  /** See `extendedCompletionQueues`. */
  readonly wallclockTimestamps: boolean;
  /** Context.openPeerProcess, which else returns null: the death of a peer's process is noticed at once. */
  readonly peerProcesses: boolean;
  /** Taking REMOTE_WRITE from a queue pair is synchronous, and else is not: Context.accessFlagsRevocationIsSynchronous. */
  readonly synchronousAccessFlags: boolean;
  /** SendFlags.CHECKSUM, else refused with EINVAL: Context.checksummedReads. */
  readonly checksummedReads: boolean;
}

/** Bytes of the memory that is registered for a try. */
const PROBE_BYTES = 4096;

/** Tries; false only where the device says that it has no such thing. What else is wrong is the caller's to know. */
function has(attempt: () => { close(): void } | undefined): boolean {
  try {
    attempt()?.close();
    return true;
  } catch (error) {
    if (errorCode(error) === 'QUORATE_UNSUPPORTED') return false;
    throw error;
  }
}

/** @internal */
export function probeCapabilities(context: Context): DeviceCapabilities {
  const attributes = context.queryDevice();
  const domain = context.allocateProtectionDomain();
  const queue = context.createCompletionQueue(16);
  const memory = context.allocateMemory({ lengthBytes: PROBE_BYTES });
  try {
    const register = (access: number) => domain.registerMemory(memory, 0, PROBE_BYTES, access);
    const queuePair = (type: QpType) => has(() => domain.createQueuePair({ type, sendCq: queue }));
    return {
      rc: queuePair(QpType.RC),
      uc: queuePair(QpType.UC),
      ud: queuePair(QpType.UD),
      atomics: attributes.atomicCap !== 0,
      sharedReceiveQueues: has(() => domain.createSharedReceiveQueue(1)),
      multicast: attributes.maxMcastGrp > 0,
      memoryWindows1: has(() => domain.allocateMemoryWindow(1)),
      memoryWindows2: has(() => domain.allocateMemoryWindow(2)),
      reregistration: has(() => {
        const region = register(Access.LOCAL_WRITE);
        try {
          region.reregister({ access: Access.LOCAL_WRITE | Access.REMOTE_READ });
        } finally {
          region.close();
        }
        return undefined;
      }),
      zeroBasedRegions: has(() => register(Access.LOCAL_WRITE | Access.ZERO_BASED)),
      onDemandPaging: has(() => register(Access.LOCAL_WRITE | Access.ON_DEMAND)),
      completionQueueResize: has(() => {
        queue.resize(queue.depth + 1);
        return undefined;
      }),
      extendedCompletionQueues: has(() => context.createCompletionQueue(1, null, { extended: true })),
      rawTimestamps: has(() => context.createCompletionQueue(1, null, { timestamps: 'raw' })),
      wallclockTimestamps: has(() => context.createCompletionQueue(1, null, { timestamps: 'wallclock' })),
      peerProcesses: has(() => {
        const peer = context.openPeerProcess(context.chooseGid(1).gid);
        if (peer === null) throw Object.assign(new Error('cannot tell'), { code: 'QUORATE_UNSUPPORTED' });
        return peer;
      }),
      synchronousAccessFlags: context.accessFlagsRevocationIsSynchronous,
      checksummedReads: context.checksummedReads,
    };
  } finally {
    memory.close();
    domain.close();
    queue.close();
  }
}
