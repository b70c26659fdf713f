// Objects in several threads of one process: sharing, adopting, threads that end in the middle, the fence against a
// thread that appends, notifiers, and words to wait for.
import { mkdtempSync, rmdirSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import {
  addWord,
  adopt,
  CompletionQueue,
  errorCode,
  Fence,
  Memory,
  monotonicNs,
  Notifier,
  QpState,
  QueuePair,
  unshare,
  WAIT_TIMEOUT,
  WAIT_WOKEN,
  waitWord,
  wakeWord,
} from '#lib/verbs/index.js';
import { addon } from '../../dist/verbs/load-addon.js';
import { startChild } from './support/child.js';
import { End, thrownBy } from './support/ends.js';
import { filesIn, useShmDirectory } from './support/shm-directory.js';
import { startThread, type Thread } from './support/thread.js';

const directory = useShmDirectory();
const threads: Thread[] = [];
const ends: End[] = [];

function thread(): Thread {
  const made = startThread();
  threads.push(made);
  return made;
}
function end(): End {
  const made = new End('shm');
  ends.push(made);
  return made;
}
function sharedInt32(): Int32Array {
  return new Int32Array(new SharedArrayBuffer(4));
}
/** Lets the event loop turn until the word is reached. */
async function until(condition: () => boolean, what: string): Promise<void> {
  const deadline = monotonicNs() + 20e9;
  while (!condition()) {
    if (monotonicNs() > deadline) throw new Error(`not reached: ${what}`);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

afterEach(async () => {
  for (const made of threads.splice(0)) await made.end();
  for (const made of ends.splice(0)) made.close();
});

describe('sharing', () => {
  it('gives another thread the same memory', async () => {
    const { memory, bytes } = end();
    await thread().run('write', { token: memory.share(), value: 0x5c });
    expect(bytes.every((byte) => byte === 0x5c)).toBe(true);
  });

  it('works for every class, with one token and one object per thread', async () => {
    const made = end();
    const other = thread();
    const objects = [made.context, made.domain, made.memory, made.region, made.queue, made.queuePair, new Fence()];
    for (const object of objects) {
      const token = object.share();
      expect(object.share()).toBe(token);
      expect(adopt(token)).toBe(object);
      expect(await other.run('adopt', { token })).toEqual({ kind: object.kind, same: true, closed: false });
    }
  });

  it('refuses a token of another class, a withdrawn one, and one whose object was closed', async () => {
    const made = end();
    const token = made.memory.share();
    expect(thrownBy(() => adopt(token, QueuePair)).message).toMatch(/Memory.*QueuePair/);
    expect(unshare(token)).toBe(true);
    expect(unshare(token)).toBe(false);
    expect(thrownBy(() => adopt(token)).code).toBe('QUORATE_INVALID_ARGUMENT');
    const queueToken = made.queue.share();
    const before = addon.diagnostics().sharedTokens;
    made.context.close(); // closes the queue with it
    expect(['QUORATE_CLOSED', 'QUORATE_INVALID_ARGUMENT']).toContain(thrownBy(() => adopt(queueToken)).code);
    expect(addon.diagnostics().sharedTokens).toBeLessThan(before); // closed objects do not stay in the table
  });

  it('closes for all threads', async () => {
    const { queuePair } = end();
    await thread().run('close', { token: queuePair.share() });
    expect(queuePair.closed).toBe(true);
    expect(thrownBy(() => queuePair.query()).code).toBe('QUORATE_CLOSED');
  });

  it('detaches the buffer only in the thread that closes; the memory stays for the other', async () => {
    const { memory, bytes } = end();
    bytes.fill(0x31);
    const other = thread();
    const token = memory.share();
    await other.run('write', { token, value: 0x32 });
    await other.run('close', { token });
    expect(memory.closed).toBe(true);
    expect(bytes.byteLength).toBe(65_536);
    expect(bytes[65_535]).toBe(0x32);
    bytes[65_535] = 1;
  });
});

describe('a thread that ends', () => {
  it('leaves alive what another thread adopted', async () => {
    const maker = thread();
    const { memory, queuePair, number } = await maker.run<{ memory: number; queuePair: number; number: number }>('own');
    const bytes = new Uint8Array(adopt(memory, Memory).buffer);
    const pair = adopt(queuePair, QueuePair);
    await maker.end();
    expect(bytes[4095]).toBe(0x42);
    expect(pair.number).toBe(number);
    pair.toInit({ accessFlags: 1 });
    expect(pair.state).toBe(QpState.INIT);
    unshare(memory);
    unshare(queuePair);
    pair.close();
  });

  it('drops all it held, also when it is terminated while it posts and polls', async () => {
    const { memory } = end();
    const token = memory.share();
    const words = new Uint32Array(memory.buffer);
    const before = addon.diagnostics();
    const files = filesIn(directory);
    for (let round = 0; round < 3; round++) {
      const spinner = thread();
      const started = sharedInt32();
      spinner.run('spinForever', { memory: token, started }).catch(() => {});
      await until(() => Atomics.load(started, 0) === 1, 'the thread spins');
      const seen = words[0] as number;
      await until(() => words[0] !== seen, 'the thread makes progress');
      expect(addon.diagnostics().environments).toBe(before.environments + 1);
      await spinner.end();
      // Fewer is possible: the collector of this thread works meanwhile.
      const after = addon.diagnostics();
      expect(after.environments).toBe(before.environments);
      expect(after.wrappers).toBeLessThanOrEqual(before.wrappers);
      expect(after.buffers).toBeLessThanOrEqual(before.buffers);
      expect(files).toEqual(expect.arrayContaining(filesIn(directory)));
    }
  });
});

describe('a fence', () => {
  it('lets nothing of a lower epoch through once raise() has returned', async () => {
    const length = 16_384;
    for (let epoch = 1; epoch <= 20; epoch++) {
      const { context, queue } = end();
      const fence = new Fence();
      fence.raise(epoch);
      const memory = context.allocateMemory({ lengthBytes: 2 * length });
      const target = new Uint8Array(memory.buffer, length, length);
      const progress = sharedInt32();
      const appender = thread();
      const done = appender.run<{ copies: number }>('appendUntilFenced', {
        fence: fence.share(),
        memory: memory.share(),
        queue: queue.share(),
        epoch,
        length,
        progress,
      });
      await until(() => Atomics.load(progress, 0) > 10, 'the thread appends');
      const deadline = monotonicNs() + epoch * 7_919;
      while (monotonicNs() < deadline);
      expect(fence.raise(epoch + 1)).toBe(epoch);
      const copy = target.slice();
      expect(new Set(copy).size).toBe(1); // no copy was cut in the middle: raise() waited for it
      const { copies } = await done;
      expect(copies).toBeGreaterThan(10);
      expect(Buffer.compare(target, copy)).toBe(0);
      fence.close();
      await appender.end();
    }
  });

  it('is raised from any thread and never lowered', async () => {
    const fence = new Fence();
    const token = fence.share();
    const other = thread();
    expect(await other.run('raise', { token, epoch: 7 })).toEqual({ previous: 0 });
    expect(fence.epoch).toBe(7);
    expect(fence.raise(7)).toBe(7);
    expect(thrownBy(() => fence.raise(6)).code).toBe('QUORATE_INVALID_ARGUMENT');
    await expect(other.run('raise', { token, epoch: 6 })).rejects.toMatchObject({ code: 'QUORATE_INVALID_ARGUMENT' });
    expect(fence.raise(2 ** 53 - 1)).toBe(7);
    fence.close();
    expect(thrownBy(() => fence.raise(2 ** 53 - 1)).code).toBe('QUORATE_CLOSED');
  });
});

describe('a notifier', () => {
  it('wakes the event loop of its thread from another thread, coalescing calls', async () => {
    let calls = 0;
    const notifier = new Notifier(() => {
      calls++;
    });
    const token = notifier.share();
    const other = thread();
    const { sent } = await other.run<{ sent: number }>('notify', { token, times: 10_000 });
    expect(sent).toBe(10_000);
    await until(() => calls > 0, 'the callback ran');
    expect(calls).toBeLessThanOrEqual(10_000);
    notifier.notify();
    const before = calls;
    await until(() => calls > before, 'the callback ran again');
    notifier.close();
    expect(notifier.notify()).toBe(false);
    expect(notifier.closed).toBe(true);
  });

  it('closed by another thread stops calling back', async () => {
    let calls = 0;
    const notifier = new Notifier(() => {
      calls++;
    });
    const token = notifier.share();
    await thread().run('close', { token });
    expect(notifier.closed).toBe(true);
    expect(notifier.notify()).toBe(false);
    await new Promise((resolve) => setImmediate(resolve));
    expect(calls).toBe(0);
    expect(thrownBy(() => notifier.ref()).code).toBe('QUORATE_CLOSED');
  });

  it('of a thread that has ended says so to the others', async () => {
    const child = startChild('notifier-owner-ends.mjs');
    const { code, stdout, stderr } = await child.exited();
    expect({ code, stdout, stderr }).toEqual({ code: 0, stdout: 'true false', stderr: '' });
  });
});

describe('words', () => {
  it('wake a thread that waits, whatever the change', async () => {
    const { memory } = end();
    const words = new Uint32Array(memory.buffer);
    const token = memory.share();
    const other = thread();
    const started = sharedInt32();
    words[2] = 5;
    const waiting = other.run<{ result: number; value: number }>('waitWord', {
      token,
      offset: 8,
      expected: 5,
      timeoutNs: 20e9,
      started,
    });
    await until(() => Atomics.load(started, 0) === 1, 'the thread waits');
    expect(addWord(memory, 8, 2 ** 32 - 1)).toBe(4);
    expect(await waiting).toEqual({ result: WAIT_WOKEN, value: 4 });
  });

  it('that differ already, or never change, are told apart', () => {
    const { memory } = end();
    expect(waitWord(memory, 0, 1, 20e9)).toBe(WAIT_WOKEN);
    expect(waitWord(memory, 0, 0, 0)).toBe(WAIT_TIMEOUT);
    expect(waitWord(memory, 0, 0, 1e6)).toBe(WAIT_TIMEOUT);
    expect(wakeWord(memory, 0)).toBe(0);
    expect(addWord(memory, 0, -1)).toBe(2 ** 32 - 1);
    expect(addWord(memory, 0, 1)).toBe(0);
  });

  // Without the regular second look the thread would wait for a minute; the time limit of the test is the check.
  it('changed by a plain store are seen without a wake', { timeout: 40_000 }, async () => {
    const { memory } = end();
    const words = new Uint32Array(memory.buffer);
    const started = sharedInt32();
    const waiting = thread().run<{ result: number }>('waitWord', {
      token: memory.share(),
      offset: 0,
      expected: 0,
      timeoutNs: 60e9,
      started,
    });
    await until(() => Atomics.load(started, 0) === 1, 'the thread waits');
    words[0] = 1;
    expect((await waiting).result).toBe(WAIT_WOKEN);
  });
});

describe('the process', () => {
  it.each(['exit', 'throw', 'natural', 'exit-in-worker', 'kill-workers'])(
    'ends cleanly with work outstanding (%s)',
    async (how) => {
      const own = mkdtempSync('/dev/shm/quorate-test-');
      const child = startChild('process-exit.mjs', [how], [], { QUORATE_SHM_DIR: own });
      const { code, signal, stderr } = await child.exited();
      if (how === 'throw') expect(stderr).toContain('thrown on purpose');
      else expect(stderr).toBe('');
      expect({ code, signal }).toEqual({ code: how === 'throw' ? 1 : 0, signal: null });
      expect(filesIn(own)).toEqual([]);
      rmdirSync(own);
    },
  );

  it('collects what nobody refers to, in any order, and returns the memory', async () => {
    const own = mkdtempSync('/dev/shm/quorate-test-');
    const child = startChild('collection.mjs', [], ['--expose-gc'], { QUORATE_SHM_DIR: own });
    const { code, stdout, stderr } = await child.exited();
    expect(stderr).toBe('');
    expect(code).toBe(0);
    const { before, after, filesAfter } = JSON.parse(stdout);
    expect(before.wrappers).toBeGreaterThan(50);
    expect(after).toEqual({ wrappers: 0, buffers: 0, sharedTokens: 0, environments: 1 });
    expect(filesAfter).toEqual([]);
    rmdirSync(own);
  });
});

it('errorCode tells errors of this project from others', () => {
  expect(errorCode(new Error('x'))).toBe(undefined);
  expect(errorCode(Object.assign(new Error('x'), { code: 'ENOENT' }))).toBe(undefined);
  expect(errorCode(thrownBy(() => adopt(-1)))).toBe('QUORATE_OUT_OF_RANGE');
  expect(CompletionQueue.name).toBe('CompletionQueue');
});
