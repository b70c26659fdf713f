// What a PostList does with requests that must not be executed: malformed ones, addresses outside the bound memories,
// slots without an object. Each yields exactly one completion that says why, and none touches memory or the device.
import { afterEach, describe, expect, it } from 'vitest';
import {
  FENCED,
  Fence,
  OP_FENCED_COPY,
  POST_REFUSED,
  PostList,
  SendFlags,
  WcStatus,
  type WorkRequestFields,
  WrOpcode,
} from '#lib/verbs/index.js';
import { connectedPair, type End } from './support/ends.js';
import { useShmDirectory } from './support/shm-directory.js';

useShmDirectory();

const EBADF = 9;
const EFAULT = 14;
const EINVAL = 22;
const ECANCELED = 125;
const WAIT_NS = 5e9;
const ends: End[] = [];

afterEach(() => {
  for (const end of ends.splice(0)) end.close();
});

function setUp() {
  const [a, b] = connectedPair(['shm', 'shm'], { cap: { maxInlineData: 256 } });
  ends.push(a, b);
  const list = new PostList(a.queue, { maxWorkRequests: 8, maxCompletions: 16 });
  const fence = new Fence();
  list.bindQueuePair(0, a.queuePair);
  list.bindFence(0, fence);
  list.bindMemory(0, a.memory);
  const write = (more: WorkRequestFields = {}): WorkRequestFields => ({
    op: WrOpcode.RDMA_WRITE,
    wrId: 1,
    localAddress: a.memory.address,
    length: 8,
    lkey: a.region.lkey,
    remoteAddress: b.memory.address,
    rkey: b.region.rkey,
    ...more,
  });
  const copy = (more: WorkRequestFields = {}): WorkRequestFields => ({
    op: OP_FENCED_COPY,
    wrId: 2,
    localAddress: a.memory.address,
    length: 64,
    remoteAddress: a.memory.address + 1024,
    ...more,
  });
  /** Submits, and returns [wrId, status, vendorErr] of each completion. */
  const outcome = (...requests: WorkRequestFields[]) => {
    requests.forEach((request, index) => {
      list.setWorkRequest(index, request);
    });
    const count = list.submit(requests.length, WAIT_NS, requests.length);
    return Array.from({ length: count }, (_, index) => {
      const { wrId, status, vendorErr } = list.completion(index);
      return [wrId, status, vendorErr];
    });
  };
  return { a, b, list, fence, write, copy, outcome };
}

describe('a work request', () => {
  const malformed: [string, number][] = [
    ['op', 7],
    ['op', -1],
    ['op', 99],
    ['op', NaN],
    ['op', 0.5],
    ['slot', -1],
    ['slot', 64],
    ['slot', NaN],
    ['slot', 1e300],
    ['wrId', 2 ** 53],
    ['wrId', -1],
    ['localAddress', NaN],
    ['localAddress', -1],
    ['localAddress', 2 ** 53],
    ['length', 2 ** 32],
    ['length', -1],
    ['length', 0.1],
    ['lkey', 2 ** 32],
    ['remoteAddress', Infinity],
    ['rkey', -1],
    ['sendFlags', 16],
    ['sendFlags', NaN],
  ];
  it.each(malformed)('with %s = %d is refused with EINVAL', (field, value) => {
    const { b, outcome, write } = setUp();
    b.bytes.fill(0xaa);
    const [[, status, vendorErr] = []] = outcome(write({ [field]: value }));
    expect([status, vendorErr]).toEqual([POST_REFUSED, EINVAL]);
    expect(b.bytes.every((byte) => byte === 0xaa)).toBe(true);
  });

  it.each([0, 1, 2, 3, 255, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 3 * 2 ** 40, 2 ** 52, 2 ** 52 + 1, 2 ** 53 - 1])(
    'has its wrId %d back in the completion, to the last bit',
    (wrId) => {
      const { outcome, write } = setUp();
      expect(outcome(write({ wrId }))).toEqual([[wrId, WcStatus.SUCCESS, 0]]);
    },
  );

  it('takes a zero with a sign for zero', () => {
    const { outcome, write } = setUp();
    expect(outcome(write({ wrId: -0, sendFlags: -0, slot: -0 }))).toEqual([[0, WcStatus.SUCCESS, 0]]);
  });

  it.each([5e-324, 2 ** -1022, 1 - 2 ** -53, 1.5, 2 ** 51 + 0.5, -0.5, -(2 ** 53), 1e308, -Infinity])(
    'with %d where a whole number belongs is refused with EINVAL',
    (value) => {
      const { outcome, write } = setUp();
      const [[, status, vendorErr] = []] = outcome(write({ wrId: value }));
      expect([status, vendorErr]).toEqual([POST_REFUSED, EINVAL]);
    },
  );

  it.each([
    ['immData', WrOpcode.RDMA_WRITE_WITH_IMM],
    ['immData', WrOpcode.SEND_WITH_IMM],
    ['compareAddLow', WrOpcode.FETCH_ADD],
    ['compareAddHigh', WrOpcode.COMPARE_SWAP],
    ['swapLow', WrOpcode.COMPARE_SWAP],
    ['swapHigh', WrOpcode.COMPARE_SWAP],
  ])('with a bad %s is refused where opcode %i uses it, and only there', (field, op) => {
    const { outcome, write } = setUp();
    expect(outcome(write({ op, [field]: 2 ** 32 }))).toEqual([[1, POST_REFUSED, EINVAL]]);
    expect(outcome(write({ [field]: 2 ** 32 }))).toEqual([[1, WcStatus.SUCCESS, 0]]);
  });

  it('for a slot without a queue pair is refused with EBADF, and others go ahead', () => {
    const { outcome, write } = setUp();
    const result = outcome(write({ wrId: 10 }), write({ wrId: 11, slot: 5 }), write({ wrId: 12 }));
    expect(result.sort()).toEqual([
      [10, WcStatus.SUCCESS, 0],
      [11, POST_REFUSED, EBADF],
      [12, WcStatus.SUCCESS, 0],
    ]);
  });

  it('behind a refused one of the same queue pair is refused too: what depends on it must not go out', () => {
    const { b, outcome, write } = setUp();
    const result = outcome(
      write({ wrId: 10 }),
      write({ wrId: 11, sendFlags: 16 }),
      write({ wrId: 12, remoteAddress: b.memory.address + 512 }),
    );
    expect(result.sort()).toEqual([
      [10, WcStatus.SUCCESS, 0],
      [11, POST_REFUSED, EINVAL],
      [12, POST_REFUSED, EINVAL],
    ]);
    expect(outcome(write({ wrId: 13 }))).toEqual([[13, WcStatus.SUCCESS, 0]]); // only in that call
  });

  it('that is inline takes its data from a bound memory only', () => {
    const { a, b, list, outcome, write } = setUp();
    const sendFlags = SendFlags.INLINE;
    const refused = [[1, POST_REFUSED, EFAULT]];
    expect(outcome(write({ sendFlags, lkey: 0 }))).toEqual([[1, WcStatus.SUCCESS, 0]]);
    expect(outcome(write({ sendFlags, localAddress: 4096 }))).toEqual(refused);
    expect(outcome(write({ sendFlags, localAddress: a.memory.address - 1 }))).toEqual(refused);
    expect(outcome(write({ sendFlags, localAddress: a.memory.address + a.memory.length - 7 }))).toEqual(refused);
    expect(outcome(write({ sendFlags, localAddress: b.memory.address }))).toEqual(refused);
    expect(outcome(write({ sendFlags, length: 2 ** 32 - 1 }))).toEqual(refused);
    list.bindMemory(0, null);
    expect(outcome(write({ sendFlags }))).toEqual(refused);
  });

  it('beyond the depth of the send queue is refused with an errno and posted again later', () => {
    const { a, list, write } = setUp();
    const depth = a.queuePair.capabilities.maxSendWr;
    const big = new PostList(a.queue, { maxWorkRequests: depth * 4, maxCompletions: depth * 4 });
    big.bindQueuePair(0, a.queuePair);
    for (let i = 0; i < depth * 4; i++) big.setWorkRequest(i, write({ wrId: i }));
    const seen = new Map<number, number>();
    let count = big.submit(depth * 4, WAIT_NS, depth * 4);
    for (;;) {
      for (let i = 0; i < count; i++) {
        const { wrId, status } = big.completion(i);
        expect(seen.has(wrId)).toBe(false); // exactly one completion each
        seen.set(wrId, status);
      }
      if (count === 0) break;
      count = big.submit(0, 0, 0);
    }
    expect(seen.size).toBe(depth * 4);
    const good = [...seen].filter(([, status]) => status === 0).length;
    expect(good).toBeGreaterThanOrEqual(depth);
    big.close();
    list.close();
  });
});

describe('a fenced copy', () => {
  it.each([
    ['localAddress', NaN, EINVAL],
    ['remoteAddress', -1, EINVAL],
    ['length', 2 ** 32, EINVAL],
    ['epoch', 0.5, EINVAL],
    ['slot', 64, EINVAL],
    ['slot', 3, EBADF],
    ['localAddress', 0, EFAULT],
    ['remoteAddress', 4096, EFAULT],
    ['length', 65_537, EFAULT],
  ] as const)('with %s = %d is refused, and nothing behind it goes out', (field, value, errno) => {
    const { a, b, outcome, copy, write } = setUp();
    a.bytes.fill(0x12, 0, 64);
    expect(outcome(copy({ [field]: value }), write({ wrId: 3 }), write({ wrId: 4, slot: 9 }))).toEqual([
      [2, POST_REFUSED, errno],
      [3, POST_REFUSED, ECANCELED],
      [4, POST_REFUSED, ECANCELED],
    ]);
    expect(b.bytes[0]).toBe(0);
    expect(a.bytes[1024]).toBe(0);
  });

  it('stays inside the bound memories to the byte, at source and target', () => {
    const { a, b, outcome, copy } = setUp();
    const last = a.memory.address + a.memory.length;
    expect(outcome(copy({ localAddress: last - 64 }))).toEqual([[2, 0, 0]]);
    expect(outcome(copy({ remoteAddress: last - 64 }))).toEqual([[2, 0, 0]]);
    expect(outcome(copy({ localAddress: last - 63 }))).toEqual([[2, POST_REFUSED, EFAULT]]);
    expect(outcome(copy({ remoteAddress: last - 63 }))).toEqual([[2, POST_REFUSED, EFAULT]]);
    expect(outcome(copy({ remoteAddress: a.memory.address - 1 }))).toEqual([[2, POST_REFUSED, EFAULT]]);
    expect(outcome(copy({ remoteAddress: b.memory.address }))).toEqual([[2, POST_REFUSED, EFAULT]]);
  });

  it('goes out in order with the requests around it, and only while fence and memory are open', () => {
    const { a, b, list, fence, outcome, copy, write } = setUp();
    a.bytes.fill(0x21, 0, 64);
    // The WRITE behind the copy sends what the copy has just placed.
    const forward = write({ wrId: 3, localAddress: a.memory.address + 1024 });
    expect(outcome(copy(), forward)).toEqual([
      [2, 0, 0],
      [3, 0, 0],
    ]);
    expect(b.bytes[0]).toBe(0x21);
    fence.close();
    expect(outcome(copy(), forward)).toEqual([
      [2, POST_REFUSED, EBADF],
      [3, POST_REFUSED, ECANCELED],
    ]);
    const open = new Fence();
    list.bindFence(0, open);
    expect(outcome(copy())).toEqual([[2, 0, 0]]);
    open.raise(1);
    expect(outcome(copy(), forward)).toEqual([
      [2, FENCED, 0],
      [3, FENCED, 0],
    ]);
    const current = copy({ epoch: 1 });
    expect(outcome(current)).toEqual([[2, 0, 0]]);
    a.memory.close();
    expect(outcome(current)).toEqual([[2, POST_REFUSED, EFAULT]]);
    open.close();
  });
});
