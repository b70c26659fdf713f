// What ends a thread's sleep, on any device: the same tests for each provider.
import { afterEach, expect, it } from 'vitest';
import { Waiter, WaitReason, WrOpcode } from '#lib/verbs/index.js';
import { connectedPair, type End, pollOne } from './support/ends.js';
import { startThread, type Thread } from './support/thread.js';

/** Far longer than anything takes: a test whose event is lost fails by vitest's time limit. */
const LONG_NS = 50e9;

export function waiterTests(devices: readonly [string, string]): void {
  const threads: Thread[] = [];
  const ends: End[] = [];

  function thread(): Thread {
    const made = startThread();
    threads.push(made);
    return made;
  }
  function pair(): [End, End] {
    const made = connectedPair(devices, { withChannel: true });
    ends.push(...made);
    return made;
  }

  afterEach(async () => {
    for (const made of threads.splice(0)) await made.end();
    for (const made of ends.splice(0)) made.close();
  });

  it('a wait ends when its time is up, with no reason', () => {
    const [a] = pair();
    const waiter = new Waiter();
    waiter.watchQueue(a.queue, a.channel);
    waiter.wait(0); // what came before counts as news
    expect(waiter.wait(1e6)).toBe(0);
    waiter.close();
  });

  it('a wake ends the next wait at once, and only that one', () => {
    const [a] = pair();
    const waiter = new Waiter();
    waiter.watchQueue(a.queue, a.channel);
    waiter.wait(0);
    waiter.wake();
    waiter.wake();
    expect(waiter.wait(LONG_NS)).toBe(WaitReason.WOKEN);
    expect(waiter.wait(0)).toBe(0);
    waiter.close();
  });

  it('a wake from another thread ends a wait that is on', async () => {
    const [a] = pair();
    const waiter = new Waiter();
    const other = thread();
    const started = new Int32Array(new SharedArrayBuffer(4));
    const args = { waiter: waiter.share(), queue: a.queue.share(), channel: a.channel?.share(), started };
    const waiting = other.run<{ reasons: number }>('wait', { ...args, timeoutNs: LONG_NS });
    while (Atomics.load(started, 0) === 0) await new Promise((resolve) => setImmediate(resolve));
    waiter.wake();
    expect((await waiting).reasons).toBe(WaitReason.WOKEN);
    waiter.close();
  });

  it('a WRITE with immediate of the peer ends a wait, each time', async () => {
    const [a, b] = pair();
    const waiter = new Waiter();
    const other = thread();
    b.queuePair.postReceive([{ wrId: 1 }, { wrId: 2 }, { wrId: 3 }]);
    const args = { waiter: waiter.share(), queue: b.queue.share(), channel: b.channel?.share() };
    for (let round = 1; round <= 3; round++) {
      const started = new Int32Array(new SharedArrayBuffer(4));
      const waiting = other.run<{ reasons: number; polled: number[] }>('wait', {
        ...args,
        started,
        timeoutNs: LONG_NS,
      });
      while (Atomics.load(started, 0) === 0) await new Promise((resolve) => setImmediate(resolve));
      a.bytes.fill(round, 0, 64);
      a.queuePair.postSend([
        {
          opcode: WrOpcode.RDMA_WRITE_WITH_IMM,
          localAddress: a.memory.address,
          length: 64,
          lkey: a.region.lkey,
          remoteAddress: b.memory.address,
          rkey: b.region.rkey,
          immData: round,
        },
      ]);
      expect(pollOne(a.queue).status).toBe(0);
      const { reasons, polled } = await waiting;
      expect(reasons).toBe(WaitReason.COMPLETION);
      expect(polled).toEqual([round]);
      expect(b.bytes[63]).toBe(round);
    }
    waiter.close();
  });
}
