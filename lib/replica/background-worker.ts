// The background plane's thread: a worker with its own heap that does nothing but tick. It never returns to its event
// loop; between ticks it sleeps in one native call, which ends at once when the main thread has sent something, when a peer
// asks for permission or has granted it, and when the process of a peer dies.
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { BackgroundPlane, type DurablePromise } from '../consensus/background-plane.js';
import { Exchange } from '../consensus/exchange.js';
import { LogPermissions } from '../fabric/permissions.js';
import { VerbsBackgroundFabric } from '../fabric/verbs-background-fabric.js';
import { CONTROL_STOP_OFFSET } from '../fabric/verbs-endpoint.js';
import {
  adopt,
  type CompletionChannel,
  type CompletionQueue,
  type Fence,
  type Memory,
  monotonicNs,
  type Notifier,
  type PeerProcess,
  type ProtectionDomain,
  type QueuePair,
  setCpuAffinity,
  setRealtimePriority,
  setSchedulingSlice,
  setTimerSlack,
  type Waiter,
} from '../verbs/objects.js';
import type { BackgroundWorkerData, DurableVoter, ToBackground, ToMain } from './background-messages.js';
import { Calm } from './calm.js';
import { rehearse } from './rehearsal.js';

const TIMER_SLACK_NS = 1;
/** Short slices have the thread run soon after it wakes on a host whose processors are all busy; a tick takes less. */
const SLICE_NS = 100_000;

function describe(error: unknown): { code: string; message: string } {
  return {
    code: (error as { code?: string }).code ?? 'QUORATE_INTERNAL',
    message: error instanceof Error ? error.message : String(error),
  };
}

/** Promises outlive the process: they are on disk before they count. Loaded where it is needed only. */
async function openVoter(
  id: number,
  { directory, promise, leaseWait_ns }: DurableVoter,
): Promise<{ promise: DurablePromise; close: () => void }> {
  const [{ Durability }, { PromiseStore }, { diskError }] = await Promise.all([
    import('./durable/durability.js'),
    import('./durable/promise-store.js'),
    import('./durable/disk-error.js'),
  ]);
  let store: InstanceType<typeof PromiseStore>;
  try {
    store = new PromiseStore(Durability.promisePath(directory));
  } catch (error) {
    throw diskError(id, directory, 'open the store of its promises', error);
  }
  let failure: Error | undefined;
  const write = (epoch: number, to: number, wait_ns: number): void => {
    // What a failed sync left behind is not to be relied on: this store is not used any more.
    if (failure !== undefined) throw failure;
    try {
      store.write({ epoch, to, leaseWait_ns: wait_ns });
    } catch (error) {
      failure = diskError(id, directory, 'store its promise as a voter', error);
      throw failure;
    }
  };
  // The first write is slow, and must not be an election's. It says, too, how long this process's leases may be.
  const longest_ns = Math.max(promise.leaseWait_ns, leaseWait_ns);
  write(promise.epoch, promise.to, longest_ns);
  const record = (epoch: number, to: number): void => write(epoch, to, leaseWait_ns);
  return {
    promise: { epoch: promise.epoch, to: promise.to, leaseWait_ns: longest_ns, record },
    close: () => store.close(),
  };
}

async function run(data: BackgroundWorkerData): Promise<void> {
  const port = parentPort;
  if (port === null) throw new Error('the background plane runs in a worker thread');
  port.postMessage({ type: 'started' } satisfies ToMain);
  const { tokens } = data;
  // What is told to the main thread is not urgent, and taking it in costs that thread more than a takeover does.
  const reports: ToMain[] = [];
  const report = (message: ToMain) => reports.push(message);
  const logMemory = adopt(tokens.logMemory) as Memory;
  const controlMemory = adopt(tokens.controlMemory) as Memory;
  const notifier = adopt(tokens.notifier) as Notifier;
  const permissions = new LogPermissions(
    data.strategy,
    adopt(tokens.logDomain) as ProtectionDomain,
    logMemory,
    adopt(tokens.incomingQueue) as CompletionQueue,
    (peer, generation) => report({ type: 'incomingLogDead', peer, generation }),
    (what, error) => report({ type: 'permissionsFailed', what, ...describe(error) }),
  );
  const waiter = adopt(tokens.waiter) as Waiter;
  const wakeQueue = adopt(tokens.wakeQueue) as CompletionQueue;
  const wakeChannel = tokens.wakeChannel === null ? null : (adopt(tokens.wakeChannel) as CompletionChannel);
  waiter.watchQueue(wakeQueue, wakeChannel);
  const fabric = new VerbsBackgroundFabric(
    adopt(tokens.backgroundQueue) as CompletionQueue,
    adopt(tokens.fence) as Fence,
    permissions,
    {
      status: adopt(tokens.statusMemory) as Memory,
      mailbox: adopt(tokens.mailboxMemory) as Memory,
      log: logMemory,
      probe: adopt(tokens.probeMemory) as Memory,
      probeKey: data.probeKey,
    },
    { waiter, wakeQueue, wakeChannel },
  );
  const notifyMain = () => {
    notifier.notify();
  };
  let grantFailure: unknown;
  const voter = data.durable === null ? null : await openVoter(data.id, data.durable);
  const plane = new BackgroundPlane(
    {
      id: data.id,
      bootId: data.bootId,
      processId: data.processId,
      durable: voter?.promise ?? null,
      logBytes: data.logBytes,
      profile: data.profile,
      lease: data.lease,
      random: Math.random,
      notifyMain,
      onGrantFailure: (peer, error) => {
        if (error === grantFailure) return; // a disk that failed fails every grant
        grantFailure = error;
        report({ type: 'grantFailed', peer, ...describe(error) });
      },
    },
    fabric,
    new Exchange(controlMemory.buffer),
  );
  const receive = (message: ToBackground) => {
    switch (message.type) {
      case 'probe':
        fabric.setProbe(
          message.peer,
          message.link && {
            ...message.link,
            queuePair: adopt(message.link.queuePair) as QueuePair,
            process: message.link.process === null ? null : (adopt(message.link.process) as PeerProcess),
          },
        );
        break;
      case 'incomingProbe':
        fabric.setIncomingProbe(message.peer, adopt(message.queuePair) as QueuePair);
        break;
      case 'disconnected':
        plane.peerDisconnected(message.peer);
        break;
      case 'outgoingLog':
        fabric.setOutgoingLogGeneration(message.peer, message.generation);
        break;
      case 'incomingLog':
        permissions.setLink(message.peer, {
          generation: message.generation,
          queuePair: adopt(message.queuePair) as QueuePair,
        });
        break;
    }
  };

  const controlWords = new Uint32Array(controlMemory.buffer);
  const stopIndex = CONTROL_STOP_OFFSET / 4;
  if (data.rehearses) {
    await rehearse({ ...data, notifyMain }).catch((error: unknown) =>
      report({ type: 'rehearsalFailed', ...describe(error) }),
    );
  }
  setTimerSlack(TIMER_SLACK_NS);
  setSchedulingSlice(SLICE_NS);
  try {
    if (data.scheduling?.cpus !== undefined) setCpuAffinity(data.scheduling.cpus);
    if (data.scheduling?.realtimePriority !== undefined) setRealtimePriority(data.scheduling.realtimePriority);
  } catch (error) {
    report({ type: 'schedulingRefused', ...describe(error) });
  }
  port.postMessage({ type: 'ready' } satisfies ToMain);
  const calm = new Calm();
  let promised = plane.promised;
  let hasMail = true;
  while (Atomics.load(controlWords, stopIndex) === 0) {
    if (hasMail) {
      for (let next = receiveMessageOnPort(port); next !== undefined; next = receiveMessageOnPort(port)) {
        receive(next.message as ToBackground);
      }
    }
    const now_ns = monotonicNs();
    const next_ns = plane.tick(now_ns);
    // A vote may be all that this replica sees of an election.
    const isCalm = calm.isDue(now_ns, plane.isElectionOn || plane.promised !== promised);
    promised = plane.promised;
    if (isCalm || plane.isLinkAwaited) {
      permissions.prepare();
      const broken = fabric.takeBrokenProbes();
      for (let peer = 0; broken >>> peer !== 0; peer++) {
        if ((broken & (1 << peer)) !== 0) report({ type: 'probeBroken', peer });
      }
      // This runs at every tick, and there is hardly ever one: an array less each time.
      if (reports.length > 0) for (const message of reports.splice(0)) port.postMessage(message);
    }
    hasMail = fabric.wait(next_ns, !isCalm);
  }
  fabric.close();
  voter?.close();
}

await run(workerData as BackgroundWorkerData);
