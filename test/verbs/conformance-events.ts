// Completions and objects in the event loop: iteration over completion queues, and the ends of objects.
import { describe, expect, it, vi } from 'vitest';
import {
  type CompletionChannel,
  type CompletionQueue,
  SendFlags,
  WcStatus,
  type WorkCompletion,
  WrOpcode,
} from '#lib/verbs/index.js';
import { ALL_ACCESS, type End, pollFor, thrownBy } from './support/ends.js';
import { receive, transfer, usePairs } from './support/pairs.js';

/** Fails instead of hanging: a completion that is missed is one that never comes. */
const LIMIT_MS = 20_000;

export function describeEvents(devices: readonly [string, string]): void {
  describe(`iteration over completion queues on ${[...new Set(devices)].join(' and ')}`, () => {
    const { pair } = usePairs(devices);

    async function take(queue: CompletionQueue, count: number, each = (_: WorkCompletion) => {}): Promise<number[]> {
      const seen: number[] = [];
      for await (const completion of queue.completions({ signal: AbortSignal.timeout(LIMIT_MS) })) {
        expect(completion.status).toBe(WcStatus.SUCCESS);
        seen.push(completion.wrId);
        each(completion);
        if (seen.length === count) break;
      }
      return seen;
    }

    it('misses none, whenever it comes: before the loop, in its body, while it waits', async () => {
      const [a, b] = pair({ withChannel: true });
      const total = 200;
      let posted = 0;
      const post = (count: number) => {
        for (; count > 0 && posted < total; count--, posted++) {
          a.queuePair.postSend([{ ...transfer(a, b, 64), wrId: posted }]);
        }
      };
      post(3);
      const seen = await take(a.queue, total, ({ wrId }) => {
        if (wrId % 7 === 0) post(2); // between two completions of one batch
        if (wrId === posted - 1) setImmediate(post, 3); // the queue is empty by then, and the loop waits
      });
      expect(seen).toEqual(Array.from({ length: total }, (_, index) => index));
      expect(a.queue.poll()).toEqual([]);
    });

    it('works on several queues of one channel at the same time', async () => {
      const [a, b] = pair({ withChannel: true });
      const second = a.context.createCompletionQueue(64, a.channel ?? null);
      const other = a.domain.createQueuePair({ sendCq: second });
      const peer = b.domain.createQueuePair({ sendCq: b.queue });
      for (const queuePair of [other, peer]) queuePair.toInit({ accessFlags: ALL_ACCESS });
      peer.toReadyToReceive(other.endpoint());
      other.toReadyToReceive(peer.endpoint());
      for (const queuePair of [other, peer]) queuePair.toReadyToSend();
      const loops = [take(a.queue, 40), take(second, 40)];
      for (let i = 0; i < 40; i++) {
        a.queuePair.postSend([{ ...transfer(a, b, 8), wrId: i }]);
        other.postSend([{ ...transfer(a, b, 8), wrId: 1000 + i }]);
        if (i % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
      }
      const [first, both] = await Promise.all(loops);
      expect(first).toEqual(Array.from({ length: 40 }, (_, i) => i));
      expect(both).toEqual(Array.from({ length: 40 }, (_, i) => 1000 + i));
    });

    it('hands out what was taken and not handed out when the loop was left, to the next loop and to poll()', async () => {
      const [a, b] = pair({ withChannel: true });
      a.queuePair.postSend(Array.from({ length: 20 }, (_, i) => ({ ...transfer(a, b, 8), wrId: i })));
      pollFor(b.queue, 0);
      expect(await take(a.queue, 5)).toEqual([0, 1, 2, 3, 4]);
      expect(await take(a.queue, 5)).toEqual([5, 6, 7, 8, 9]);
      expect(pollFor(a.queue, 10).map(({ wrId }) => wrId)).toEqual(Array.from({ length: 10 }, (_, i) => 10 + i));
    });

    it('keeps what was taken and not handed out when poll() is asked for a wrong number', async () => {
      const [a, b] = pair({ withChannel: true });
      a.queuePair.postSend(Array.from({ length: 8 }, (_, i) => ({ ...transfer(a, b, 8), wrId: i })));
      const [polled] = pollFor(a.queue, 1); // all are there, or come soon
      expect(polled?.wrId).toBe(0);
      expect(await take(a.queue, 1)).toEqual([1]);
      for (const max of [0, -1, 0.5, NaN, 65_537, 70_000, Infinity]) {
        expect(thrownBy(() => a.queue.poll(max)).code, String(max)).toBe('QUORATE_OUT_OF_RANGE');
      }
      expect(thrownBy(() => a.queue.poll('3' as never)).code).toBe('QUORATE_INVALID_ARGUMENT');
      expect(pollFor(a.queue, 6).map(({ wrId }) => wrId)).toEqual([2, 3, 4, 5, 6, 7]);
    });

    it('ends when the signal aborts, and when the queue, its channel or its context is closed', async () => {
      const ways: ((a: End, abort: () => void) => void)[] = [
        (_, abort) => abort(),
        (a) => a.queue.close(),
        (a) => a.channel?.close(),
        (a) => a.context.close(),
      ];
      for (const way of ways) {
        const [a] = pair({ withChannel: true });
        const controller = new AbortController();
        let count = 0;
        const loop = (async () => {
          for await (const _ of a.queue.completions({ signal: controller.signal })) count++;
        })();
        await new Promise((resolve) => setImmediate(resolve));
        way(a, () => controller.abort());
        await loop;
        expect(count).toBe(0);
      }
    });

    it('wakes for solicited receives only, if asked to, and hands out what came before them', async () => {
      const [a, b] = pair({ withChannel: true });
      b.queuePair.postReceive([receive(b, 1, 0, 64), receive(b, 2, 64, 64)]);
      const loop = (async () => {
        const seen: number[] = [];
        const options = { solicitedOnly: true, signal: AbortSignal.timeout(LIMIT_MS) };
        for await (const { wrId } of b.queue.completions(options)) {
          seen.push(wrId);
          if (seen.length === 2) break;
        }
        return seen;
      })();
      a.queuePair.postSend([
        transfer(a, b, 8, { opcode: WrOpcode.SEND }),
        transfer(a, b, 8, { opcode: WrOpcode.SEND, sendFlags: SendFlags.SIGNALED | SendFlags.SOLICITED }),
      ]);
      expect(await loop).toEqual([1, 2]);
    });

    it('tells of an error of the queue pair', async () => {
      const [a] = pair({ withChannel: true });
      a.queuePair.postReceive([receive(a, 9, 0, 8)]);
      setImmediate(() => a.queuePair.toError());
      for await (const completion of a.queue) {
        expect(completion).toMatchObject({ wrId: 9, status: WcStatus.WR_FLUSH_ERR });
        break;
      }
    });

    it('leaves the queue free for the next one if it cannot begin', async () => {
      const [a] = pair({ withChannel: true });
      const watch = vi.spyOn(a.channel as CompletionChannel, 'onEvent').mockImplementationOnce(() => {
        throw new Error('too many open files');
      });
      await expect(a.queue.completions().next()).rejects.toThrow('too many open files');
      watch.mockRestore();
      a.queuePair.postReceive([receive(a, 9, 0, 8)]);
      a.queuePair.toError();
      expect((await a.queue.completions().next()).value).toMatchObject({ wrId: 9 });
    });

    it('ends with its queue also if that was closed by a parent that could not be closed itself', async () => {
      const [a] = pair({ withChannel: true });
      const { native } = a.context;
      native.close = () => {
        a.channel?.native.close();
        throw new Error('a region could not be deregistered');
      };
      const iteration = a.queue.completions().next();
      expect(() => a.context.close()).toThrow('could not be deregistered');
      expect((await iteration).done).toBe(true);
      expect(a.context.closed).toBe(false);
      Reflect.deleteProperty(native, 'close');
    });

    it('needs a channel, and a queue that nobody else iterates', async () => {
      const [a, b] = pair({ withChannel: true });
      const plain = a.context.createCompletionQueue(4);
      await expect(plain.completions().next()).rejects.toMatchObject({ code: 'QUORATE_INVALID_ARGUMENT' });
      await expect(a.queue.completions({ batch: 0 }).next()).rejects.toMatchObject({ code: 'QUORATE_OUT_OF_RANGE' });
      const controller = new AbortController();
      const first = a.queue.completions({ signal: controller.signal }).next();
      await expect(a.queue.completions().next()).rejects.toMatchObject({ code: 'QUORATE_INVALID_ARGUMENT' });
      controller.abort();
      expect((await first).done).toBe(true);
      b.queue.close();
      await expect(b.queue.completions().next()).rejects.toMatchObject({ code: 'QUORATE_CLOSED' });
    });
  });

  describe(`ends of objects on ${[...new Set(devices)].join(' and ')}`, () => {
    const { single } = usePairs(devices);

    it('come with `using` and `await using`, for every class', async () => {
      const end = single({ withChannel: true });
      const memory = end.context.allocateMemory({ lengthBytes: 4096 });
      const objects = [
        end.queuePair,
        end.domain.registerMemory(memory, 0, 4096, 0),
        memory,
        end.context.createCompletionQueue(4),
        end.context.createCompletionChannel(),
        end.domain,
      ];
      for (const object of objects.slice(0, 3)) object[Symbol.dispose]();
      for (const object of objects.slice(3)) await object[Symbol.asyncDispose]();
      expect(objects.map((object) => object.closed)).toEqual(objects.map(() => true));
      for (const object of objects) object[Symbol.dispose](); // again: harmless
    });

    it('of a parent come to its children and grandchildren, whatever was made first', () => {
      const { context, domain, queuePair, region, queue, channel } = single({ withChannel: true });
      const late = context.createCompletionQueue(4, channel ?? null);
      const crossed = domain.createQueuePair({ sendCq: late });
      channel?.close(); // of its queues, and so of the queue pairs that use these
      expect([late.closed, crossed.closed, queue.closed, queuePair.closed]).toEqual([true, true, true, true]);
      expect([domain.closed, region.closed, context.closed]).toEqual([false, false, false]);
      context.close();
      expect([domain.closed, region.closed]).toEqual([true, true]);
      expect(thrownBy(() => region.rkey).code).toBe('QUORATE_CLOSED');
    });
  });
}
