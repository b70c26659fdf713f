// A thread's sleep on shared memory, and what only shared memory can tell: that the process of a peer has died.
import { readFileSync } from 'node:fs';
import { setImmediate } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import {
  type CompletionQueue,
  errorCode,
  openDevice,
  type PeerProcess,
  ProcessState,
  Waiter,
  WaitReason,
  WrOpcode,
} from '#lib/verbs/index.js';
import { pidfds } from '../support/pidfds.js';
import { startChild } from './support/child.js';
import { End, thrownBy } from './support/ends.js';
import { useShmDirectory } from './support/shm-directory.js';
import { startThread } from './support/thread.js';
import { waiterTests } from './waiter.js';

useShmDirectory();
const LONG_NS = 50e9;

describe('a wait on shm', () => {
  waiterTests(['shm', 'shm']);
});

/** Of a thread of this process: 'S' if it sleeps, see proc_pid_stat(5). */
const stateOf = (threadId: number) =>
  readFileSync(`/proc/self/task/${threadId}/stat`, 'utf8').replace(/^.*\) /s, '')[0];

it('news of a queue end a wait, also if it took the place of one that was closed while somebody slept on it', async () => {
  const [a, b] = [new End('shm'), new End('shm')];
  const sleep = async (queue: CompletionQueue) => {
    const thread = startThread();
    const waiter = new Waiter();
    const started = new Int32Array(new SharedArrayBuffer(4));
    const args = { waiter: waiter.share(), queue: queue.share(), started, timeoutNs: LONG_NS };
    const waiting = thread.run<{ reasons: number }>('wait', args);
    while (Atomics.load(started, 0) === 0) await setImmediate();
    while (stateOf(Atomics.load(started, 0)) !== 'S') await setImmediate();
    return { thread, waiter, ended: waiting.catch(errorCode) };
  };
  const former = a.context.createCompletionQueue(1);
  const first = await sleep(former);
  former.close();
  // Places are given out again, the one that has been free for longest first.
  for (let i = a.context.queryDevice().maxCq - 2; i > 0; i--) a.context.createCompletionQueue(1).close();
  const queue = a.context.createCompletionQueue(4);
  first.waiter.wake();
  expect(await first.ended).toBe('QUORATE_CLOSED'); // it polls the queue when it is awake

  const queuePair = a.domain.createQueuePair({ sendCq: a.queue, recvCq: queue });
  b.connect({ queuePair });
  queuePair.toInit();
  queuePair.toReadyToReceive(b.queuePair.endpoint());
  queuePair.postReceive([{ wrId: 1 }]);
  const second = await sleep(queue);
  b.queuePair.postSend([{ opcode: WrOpcode.SEND }]);
  expect(await second.ended).toMatchObject({ reasons: WaitReason.COMPLETION });
  for (const { thread, waiter } of [first, second]) {
    await thread.end();
    waiter.close();
  }
  a.close();
  b.close();
});

async function peer(how: 'kill' | 'close' | 'stop') {
  const child = startChild('open-device.mjs');
  const { gid } = await child.message<{ gid: string }>('open');
  return { child, gid, how };
}

describe('the death of a peer process', () => {
  it.each(['kill', 'close'] as const)('(%s) ends the waits of all who watch it', async (how) => {
    const { child, gid } = await peer(how);
    const context = openDevice('shm');
    const threads = [startThread(), startThread(), startThread()];
    const process = context.openPeerProcess(gid) as PeerProcess;
    expect(process.alive).toBe(true);
    const waiting = [];
    for (const other of threads) {
      const started = new Int32Array(new SharedArrayBuffer(4));
      const waiter = new Waiter();
      waiting.push(
        other.run<{ reasons: number }>('wait', {
          waiter: waiter.share(),
          peer: process.share(),
          started,
          timeoutNs: LONG_NS,
        }),
      );
      while (Atomics.load(started, 0) === 0) await setImmediate();
    }
    if (how === 'kill') child.kill('SIGKILL');
    else child.send({ type: 'close' });
    for (const { reasons } of await Promise.all(waiting)) expect(reasons).toBe(WaitReason.PEER_DIED);
    expect(process.alive).toBe(false);
    child.kill('SIGKILL');
    await child.exited();
    for (const other of threads) await other.end();
    context.close();
  });

  it('is told once, also if it came before anybody watched', async () => {
    const { child, gid } = await peer('kill');
    const context = openDevice('shm');
    const process = context.openPeerProcess(gid) as PeerProcess;
    child.kill('SIGKILL');
    await child.exited();
    const waiter = new Waiter();
    waiter.watchPeer(5, process);
    expect(waiter.wait(LONG_NS)).toBe(WaitReason.PEER_DIED);
    expect(waiter.wait(0)).toBe(0);
    waiter.watchPeer(5, null);
    waiter.close();
    context.close();
  });

  it('is not seen in a process that stands still, but that it does is', async () => {
    const { child, gid } = await peer('stop');
    const context = openDevice('shm');
    const process = context.openPeerProcess(gid) as PeerProcess;
    expect(process.state).toBe(ProcessState.RUNNING);
    child.kill('SIGSTOP');
    const waiter = new Waiter();
    waiter.watchPeer(0, process);
    expect(waiter.wait(20e6)).toBe(0);
    expect(process.alive).toBe(true);
    const state = () => process.state;
    while (state() !== ProcessState.STOPPED) expect(waiter.wait(1e6)).toBe(0);
    child.kill('SIGCONT');
    while (state() !== ProcessState.RUNNING) expect(waiter.wait(1e6)).toBe(0);
    waiter.close();
    child.kill('SIGKILL');
    await child.exited();
    expect(state()).toBe(ProcessState.UNKNOWN);
    context.close();
  });

  it('cannot be watched where there is no such instance, or for a GID of another provider', () => {
    const context = openDevice('shm');
    const own = context.chooseGid().gid;
    expect(context.openPeerProcess(`${own.slice(0, -4)}${own.endsWith('0000') ? '0001' : '0000'}`)).toBe(null);
    expect(thrownBy(() => context.openPeerProcess('fe80:0000:0000:0000:0000:0000:0000:0001')).code).toBe(
      'QUORATE_INVALID_ARGUMENT',
    );
    context.close();
  });
});

it('a peer process that is closed holds no descriptors, whoever keeps its object', () => {
  const [context, peer, other] = [openDevice('shm'), openDevice('shm'), openDevice('shm')];
  const before = pidfds();
  const process = context.openPeerProcess(peer.chooseGid().gid) as PeerProcess;
  expect(pidfds()).toBe(before + 1);
  peer.close();
  process.close();
  // The context forgets instances that have ended when it meets another one.
  context.openPeerProcess(other.chooseGid().gid)?.close();
  expect(pidfds()).toBe(before + 1);
  expect(process.closed).toBe(true);
  expect(thrownBy(() => process.alive).code).toBe('QUORATE_CLOSED');
  for (const device of [context, other]) device.close();
});

it('a context that is closed holds no descriptors of the processes that it met', () => {
  const before = pidfds();
  const [context, peer] = [openDevice('shm'), openDevice('shm')];
  context.openPeerProcess(peer.chooseGid().gid)?.close();
  context.close();
  peer.close();
  expect(pidfds()).toBeLessThanOrEqual(before); // those of contexts that nobody closed may be collected meanwhile
});

describe('bad arguments to a waiter', () => {
  it('are refused, and use after close too', () => {
    const waiter = new Waiter();
    expect(thrownBy(() => waiter.wait(-1)).code).toBe('QUORATE_OUT_OF_RANGE');
    expect(thrownBy(() => waiter.wait(61e9)).code).toBe('QUORATE_OUT_OF_RANGE');
    expect(thrownBy(() => waiter.watchPeer(64, null)).code).toBe('QUORATE_OUT_OF_RANGE');
    expect(thrownBy(() => waiter.watchQueue({ native: {} } as never)).code).toBe('QUORATE_INVALID_ARGUMENT');
    waiter.close();
    expect(thrownBy(() => waiter.wait(0)).code).toBe('QUORATE_CLOSED');
    waiter.wake(); // by a thread that does not know yet
  });
});
