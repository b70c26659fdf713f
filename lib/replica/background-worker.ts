// The background plane's thread: a worker with its own heap that does nothing but tick. It never returns to its event
// loop; between ticks it sleeps in one native call, which the main thread can end at once by bumping the wake word.
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { BackgroundPlane } from '../consensus/background-plane.js';
import { Exchange } from '../consensus/exchange.js';
import { LogPermissions } from '../fabric/permissions.js';
import { VerbsBackgroundFabric } from '../fabric/verbs-background-fabric.js';
import { CONTROL_STOP_OFFSET, CONTROL_WAKE_OFFSET } from '../fabric/verbs-endpoint.js';
import {
  adopt,
  type CompletionQueue,
  type Fence,
  type Memory,
  monotonicNs,
  type Notifier,
  type ProtectionDomain,
  type QueuePair,
  setSchedulingSlice,
  setTimerSlack,
  waitWord,
} from '../verbs/index.js';
import type { BackgroundWorkerData, ToBackground, ToMain } from './background-messages.js';
import { rehearse } from './rehearsal.js';

const TIMER_SLACK_NS = 1;
/** Short slices have the thread run soon after it wakes on a host whose processors are all busy; a tick takes less. */
const SLICE_NS = 500_000;

function describe(error: unknown): { code: string; message: string } {
  return {
    code: (error as { code?: string }).code ?? 'QUORATE_INTERNAL',
    message: error instanceof Error ? error.message : String(error),
  };
}

async function run(data: BackgroundWorkerData): Promise<void> {
  const port = parentPort;
  if (port === null) throw new Error('the background plane runs in a worker thread');
  const { tokens } = data;
  const report = (message: ToMain) => port.postMessage(message);
  const logMemory = adopt(tokens.logMemory) as Memory;
  const controlMemory = adopt(tokens.controlMemory) as Memory;
  const notifier = adopt(tokens.notifier) as Notifier;
  const permissions = new LogPermissions(
    data.strategy,
    adopt(tokens.logDomain) as ProtectionDomain,
    logMemory,
    adopt(tokens.incomingQueue) as CompletionQueue,
    (peer, generation) => report({ type: 'incomingLogDead', peer, generation }),
  );
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
    (peer) => report({ type: 'probeBroken', peer }),
  );
  const plane = new BackgroundPlane(
    {
      id: data.id,
      bootId: data.bootId,
      logBytes: data.logBytes,
      profile: data.profile,
      random: Math.random,
      notifyMain: () => notifier.notify(),
      onGrantFailure: (peer, error) => report({ type: 'grantFailed', peer, ...describe(error) }),
    },
    fabric,
    new Exchange(controlMemory.buffer),
  );
  const receive = (message: ToBackground) => {
    switch (message.type) {
      case 'probe':
        fabric.setProbe(
          message.peer,
          message.link && { ...message.link, queuePair: adopt(message.link.queuePair) as QueuePair },
        );
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
  const wakeIndex = CONTROL_WAKE_OFFSET / 4;
  const stopIndex = CONTROL_STOP_OFFSET / 4;
  await rehearse(data).catch((error: unknown) => report({ type: 'rehearsalFailed', ...describe(error) }));
  setTimerSlack(TIMER_SLACK_NS);
  setSchedulingSlice(SLICE_NS);
  report({ type: 'ready' });
  let seenWakes = -1;
  while (Atomics.load(controlWords, stopIndex) === 0) {
    const wakes = Atomics.load(controlWords, wakeIndex);
    if (wakes !== seenWakes) {
      seenWakes = wakes;
      for (let next = receiveMessageOnPort(port); next !== undefined; next = receiveMessageOnPort(port)) {
        receive(next.message as ToBackground);
      }
    }
    const next_ns = plane.tick(monotonicNs());
    permissions.prepare();
    waitWord(controlMemory, CONTROL_WAKE_OFFSET, wakes, next_ns);
  }
  fabric.close();
}

await run(workerData as BackgroundWorkerData);
