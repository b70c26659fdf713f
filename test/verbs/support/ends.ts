// One end of a connection with everything it needs, and two of them connected: what most tests of verbs begin with.
import {
  Access,
  type CompletionChannel,
  type CompletionQueue,
  type Context,
  type Memory,
  type MemoryRegion,
  monotonicNs,
  openDevice,
  type ProtectionDomain,
  type QpCapabilities,
  type QpType,
  type QueuePair,
  type ToReadyToSendOptions,
  type WorkCompletion,
} from '#lib/verbs/index.js';

/** Longest time that a completion is waited for; far above what any device takes, including SoftRoCE's retries. */
export const COMPLETION_TIMEOUT_MS = 15_000;

export const ALL_ACCESS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC;

export interface EndOptions {
  lengthBytes?: number;
  /** Rights of the memory region. */
  access?: number;
  /** Rights of the queue pair. */
  queuePairAccess?: number;
  cap?: Partial<QpCapabilities>;
  depth?: number;
  withChannel?: boolean;
  /** Default RC. */
  type?: QpType;
}

export class End {
  readonly context: Context;
  readonly domain: ProtectionDomain;
  readonly memory: Memory;
  readonly region: MemoryRegion;
  readonly channel: CompletionChannel | undefined;
  readonly queue: CompletionQueue;
  readonly queuePair: QueuePair;
  readonly bytes: Uint8Array;
  readonly queuePairAccess: number;

  constructor(device: string, options: EndOptions = {}) {
    const { lengthBytes = 65_536, access = ALL_ACCESS, queuePairAccess = ALL_ACCESS, depth = 256 } = options;
    this.context = openDevice(device);
    this.domain = this.context.allocateProtectionDomain();
    this.memory = this.context.allocateMemory({ lengthBytes });
    this.region = this.domain.registerMemory(this.memory, 0, lengthBytes, access);
    this.channel = options.withChannel ? this.context.createCompletionChannel() : undefined;
    this.queue = this.context.createCompletionQueue(depth, this.channel);
    this.queuePair = this.domain.createQueuePair({
      sendCq: this.queue,
      cap: options.cap ?? {},
      ...(options.type === undefined ? {} : { type: options.type }),
    });
    this.bytes = new Uint8Array(this.memory.buffer);
    this.queuePairAccess = queuePairAccess;
  }

  connect(remote: { queuePair: QueuePair }, sendOptions: ToReadyToSendOptions = {}): void {
    this.queuePair.toInit({ accessFlags: this.queuePairAccess });
    this.queuePair.toReadyToReceive(remote.queuePair.endpoint());
    this.queuePair.toReadyToSend(sendOptions);
  }

  close(): void {
    this.context.close();
  }
}

/** Two ends on the two devices, connected. Timeouts are short, so that errors come soon. */
export function connectedPair(devices: readonly [string, string], options: EndOptions = {}): [End, End] {
  const a = new End(devices[0], options);
  const b = new End(devices[1], options);
  const soon = { timeout: 10, retryCnt: 3, rnrRetry: 1 };
  a.connect(b, soon);
  b.connect(a, soon);
  return [a, b];
}

/** Polls, without sleeping, until `count` completions are in. */
export function pollFor(queue: CompletionQueue, count: number, timeoutMs = COMPLETION_TIMEOUT_MS): WorkCompletion[] {
  const completions: WorkCompletion[] = [];
  const deadline = monotonicNs() + timeoutMs * 1e6;
  while (completions.length < count) {
    completions.push(...queue.poll(count - completions.length));
    if (monotonicNs() > deadline) throw new Error(`only ${completions.length} of ${count} completions came in time`);
  }
  return completions;
}

export function pollOne(queue: CompletionQueue, timeoutMs = COMPLETION_TIMEOUT_MS): WorkCompletion {
  return pollFor(queue, 1, timeoutMs)[0] as WorkCompletion;
}

/** The error that a call throws; fails if it throws none. */
export function thrownBy(call: () => unknown): Error & { code?: string; errno?: number; syscall?: string } {
  try {
    call();
  } catch (error) {
    if (error instanceof Error) return error;
    throw new Error(`threw something that is no Error: ${String(error)}`);
  }
  throw new Error(`did not throw: ${call.toString()}`);
}
