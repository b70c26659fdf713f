// Asynchronous events in the event loop, as far as all devices have them in common: on shm, where they can be raised at will.
import { afterEach, describe, expect, it } from 'vitest';
import { AsyncEventType, asyncEvents, type SharedReceiveQueue, WrOpcode } from '#lib/verbs/index.js';
import { End, pollOne } from './support/ends.js';
import { useShmDirectory } from './support/shm-directory.js';

useShmDirectory();

const ends: End[] = [];
afterEach(() => {
  for (const end of ends.splice(0)) end.close();
});

/** A context in which so many shared receive queues have fewer receives than they asked to be told of. */
function withLimitsReached(queues: number): { b: End; srqs: SharedReceiveQueue[] } {
  const a = new End('shm');
  const b = new End('shm');
  ends.push(a, b);
  const srqs = Array.from({ length: queues }, () => {
    const srq = b.domain.createSharedReceiveQueue(4);
    const near = { queuePair: a.domain.createQueuePair({ sendCq: a.queue }) };
    const far = { queuePair: b.domain.createQueuePair({ sendCq: b.queue, srq }) };
    for (const [own, other] of [[near, far] as const, [far, near] as const]) {
      own.queuePair.toInit({ accessFlags: 0 });
      own.queuePair.toReadyToReceive(other.queuePair.endpoint());
      own.queuePair.toReadyToSend();
    }
    srq.postReceive([{ wrId: 1, localAddress: b.region.address, length: 64, lkey: b.region.lkey }]);
    srq.setLimit(1);
    near.queuePair.postSend([
      { wrId: 2, opcode: WrOpcode.SEND, localAddress: a.region.address, length: 8, lkey: a.region.lkey, sendFlags: 2 },
    ]);
    expect(pollOne(a.queue).status).toBe(0);
    expect(pollOne(b.queue).status).toBe(0);
    return srq;
  });
  return { b, srqs };
}

describe('an iteration over asynchronous events', () => {
  it('leaves those that it did not hand out to who asks next', async () => {
    const { b, srqs } = withLimitsReached(4);
    const seen: unknown[] = [];
    for (let i = 0; i < 2; i++) {
      for await (const event of asyncEvents(b.context)) {
        expect(event.type).toBe(AsyncEventType.SRQ_LIMIT_REACHED);
        seen.push(event.object);
        await new Promise(setImmediate); // what is done about it takes a turn of the event loop
        break;
      }
    }
    for (let event = b.context.getAsyncEvent(); event !== null; event = b.context.getAsyncEvent()) {
      seen.push(event.object);
    }
    expect(seen).toEqual(srqs);
  });
});
