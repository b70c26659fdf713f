// The rest of the object model: queries, access flags, several scatter/gather elements, queues that are resized or
// extended. A case that needs what the device lacks checks that the device says so.
import { describe, expect, it } from 'vitest';
import {
  Access,
  AsyncEventType,
  errorCode,
  GRH_BYTES,
  monotonicNs,
  QpState,
  QpType,
  SendFlags,
  type WcStatus as Status,
  WcOpcode,
  WcStatus,
  WrOpcode,
  wcStatusExplanation,
  wcStatusName,
} from '#lib/verbs/index.js';
import { ALL_ACCESS, type End, pollFor, pollOne, thrownBy } from './support/ends.js';
import { receive, transfer, usePairs } from './support/pairs.js';

const EINVAL = 22;
const ENOMEM = 12;
const QKEY = 0x1111_2222;

export function describeObjects(devices: readonly [string, string]): void {
  const name = [...new Set(devices)].join(' and ');

  describe(`queries on ${name}`, () => {
    const { pair, single } = usePairs(devices);

    it('tell the partition keys of a port, and that there are no more', () => {
      const { context } = single();
      const { pkeyTblLen } = context.queryPort(1);
      expect(pkeyTblLen).toBeGreaterThanOrEqual(1);
      expect(context.queryPkey(1, 0) & 0x7fff).toBe(0x7fff);
      expect(thrownBy(() => context.queryPkey(1, pkeyTblLen)).code).toBe('QUORATE_OUT_OF_RANGE');
      expect(thrownBy(() => context.queryPkey(200, 0)).code).toMatch(/^QUORATE_(OUT_OF_RANGE|INVALID_ARGUMENT)$/);
    });

    it('report capabilities that agree with what the calls do, and leave nothing open', () => {
      const { context, domain } = single();
      const { capabilities } = context;
      expect(context.capabilities).toBe(capabilities);
      expect(capabilities.rc).toBe(true);
      for (const [capability, there] of Object.entries(capabilities)) expect(typeof there, capability).toBe('boolean');
      expect(capabilities.atomics).toBe(context.queryDevice().atomicCap !== 0);
      const attempt = (call: () => { close(): void }) => {
        try {
          call().close();
          return true;
        } catch (error) {
          expect(errorCode(error)).toBe('QUORATE_UNSUPPORTED');
          return false;
        }
      };
      const create = (options: object) => () => context.createCompletionQueue(4, null, options);
      expect(attempt(create({ timestamps: 'raw' }))).toBe(capabilities.rawTimestamps);
      expect(attempt(create({ timestamps: 'wallclock' }))).toBe(capabilities.wallclockTimestamps);
      expect(attempt(create({ extended: true }))).toBe(capabilities.extendedCompletionQueues);
      expect(attempt(() => domain.createSharedReceiveQueue(1))).toBe(capabilities.sharedReceiveQueues);
      const region = (access: number) => () =>
        domain.registerMemory(context.allocateMemory({ lengthBytes: 4096 }), 0, 4096, access);
      expect(attempt(region(Access.ON_DEMAND | Access.LOCAL_WRITE))).toBe(capabilities.onDemandPaging);
      expect(attempt(region(Access.ZERO_BASED | Access.LOCAL_WRITE))).toBe(capabilities.zeroBasedRegions);
    });

    it('of a queue pair give back what it was set to', () => {
      const [a, b] = pair();
      const known = a.queuePair.query();
      expect(known.state).toBe(QpState.RTS);
      expect(known).toMatchObject({
        destQpNum: b.queuePair.number,
        timeout: 10,
        retryCnt: 3,
        rnrRetry: 1,
        portNum: 1,
        pkeyIndex: 0,
        minRnrTimer: 12,
      });
      expect(known.av).toMatchObject({ isGlobal: true, dgid: b.context.chooseGid(1).gid });
      expect(known.pathMtuBytes).toBe(
        Math.min(a.context.queryPort(1).activeMtuBytes, b.context.queryPort(1).activeMtuBytes),
      );
      expect((known.accessFlags as number) & ALL_ACCESS).toBe(ALL_ACCESS);
      const { capabilities } = a.queuePair;
      expect(capabilities.maxSendWr).toBeGreaterThanOrEqual(128);
      expect(capabilities.maxRecvSge).toBeGreaterThanOrEqual(1);
      a.queuePair.modify({ minRnrTimer: 20 });
      expect(a.queuePair.query().minRnrTimer).toBe(20);
    });

    it('name and explain every status that a completion can have', () => {
      for (const [status, number] of Object.entries(WcStatus)) {
        expect(wcStatusName(number)).toBe(status);
        expect(wcStatusExplanation(number)).toMatch(/^[A-Z].{20,}\.$/s);
      }
    });
  });

  describe(`access flags on ${name}`, () => {
    const { pair } = usePairs(devices);

    it('each allow what they say, and no more', () => {
      const cases: [number, number, number][] = [
        [Access.LOCAL_WRITE, WrOpcode.RDMA_WRITE, WcStatus.REM_ACCESS_ERR],
        [Access.LOCAL_WRITE | Access.REMOTE_WRITE, WrOpcode.RDMA_WRITE, WcStatus.SUCCESS],
        [Access.LOCAL_WRITE | Access.REMOTE_WRITE, WrOpcode.RDMA_READ, WcStatus.REM_ACCESS_ERR],
        [Access.REMOTE_READ, WrOpcode.RDMA_READ, WcStatus.SUCCESS],
        [Access.LOCAL_WRITE | Access.REMOTE_READ, WrOpcode.FETCH_ADD, WcStatus.REM_ACCESS_ERR],
        [Access.LOCAL_WRITE | Access.REMOTE_ATOMIC, WrOpcode.FETCH_ADD, WcStatus.SUCCESS],
        [ALL_ACCESS | Access.RELAXED_ORDERING, WrOpcode.RDMA_WRITE, WcStatus.SUCCESS],
        [ALL_ACCESS | Access.MW_BIND, WrOpcode.RDMA_WRITE, WcStatus.SUCCESS],
      ];
      const [[a, b], spare] = [pair(), [] as End[]];
      for (const [access, opcode, status] of cases) {
        const [x, y] = spare.length === 0 ? [a, b] : (spare as [End, End]);
        const region = y.domain.registerMemory(y.memory, 0, 8192, access);
        x.queuePair.postSend([transfer(x, y, 8, { opcode, rkey: region.rkey, compareAdd: 1 })]);
        expect(pollOne(x.queue).status, `access ${access}, opcode ${opcode}`).toBe(status);
        if (status !== WcStatus.SUCCESS) spare.splice(0, 2, ...pair());
      }
    });

    it('ZERO_BASED lets addresses count from 0', (context) => {
      const [a, b] = pair();
      if (!b.context.capabilities.zeroBasedRegions) context.skip('the device has no zero-based regions');
      const region = b.domain.registerMemory(b.memory, 4096, 8192, ALL_ACCESS | Access.ZERO_BASED);
      const local = a.domain.registerMemory(a.memory, 4096, 4096, Access.LOCAL_WRITE | Access.ZERO_BASED);
      expect(region.address).toBe(0);
      a.bytes.fill(0x6c, 4096 + 16, 4096 + 32);
      a.queuePair.postSend([
        transfer(a, b, 16, { localAddress: 16, lkey: local.lkey, remoteAddress: 100, rkey: region.rkey }),
      ]);
      expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
      expect([...b.bytes.subarray(4096 + 100, 4096 + 116)]).toEqual(new Array(16).fill(0x6c));
      a.queuePair.postSend([transfer(a, b, 16, { remoteAddress: 8192 - 15, rkey: region.rkey })]);
      expect(pollOne(a.queue).status).toBe(WcStatus.REM_ACCESS_ERR);
      expect(thrownBy(() => b.domain.registerMemory(b.memory, 8, 64, Access.ZERO_BASED)).code).toBe(
        'QUORATE_INVALID_ARGUMENT',
      );
    });

    it('that are unknown, or of what the device lacks, are refused with a code', () => {
      const [, { context, domain, memory }] = pair();
      const register = (access: number) => thrownBy(() => domain.registerMemory(memory, 0, 4096, access)).code;
      expect(register(2 ** 21)).toBe('QUORATE_OUT_OF_RANGE');
      expect(register(Access.REMOTE_WRITE)).toBe('QUORATE_INVALID_ARGUMENT');
      if (!context.capabilities.onDemandPaging) expect(register(Access.ON_DEMAND)).toBe('QUORATE_UNSUPPORTED');
    });
  });

  describe(`several scatter/gather elements on ${name}`, () => {
    const { pair } = usePairs(devices);
    const cap = { maxSendSge: 4, maxRecvSge: 4 };
    const sges = (end: End, parts: readonly [offset: number, length: number][]) =>
      parts.map(([offset, length]) => ({ address: end.memory.address + offset, length, lkey: end.region.lkey }));
    const request = { wrId: 7, opcode: WrOpcode.RDMA_WRITE as (typeof WrOpcode)[keyof typeof WrOpcode] };
    const remote = (b: End) => ({ remoteAddress: b.memory.address + 4096, rkey: b.region.rkey });
    const fill = (end: End) => {
      for (let i = 0; i < end.bytes.length; i++) end.bytes[i] = (i * 11 + (i >> 8)) & 0xff;
    };

    it.each([1, 300, 30_000])('WRITE gathers them in order (%i bytes each)', (size) => {
      const [a, b] = pair({ cap, lengthBytes: 256 * 1024 });
      fill(a);
      const parts: [number, number][] = [
        [100_000, size],
        [0, size],
        [50_001, 0],
        [50_001, size],
      ];
      expect(a.queuePair.postSend([{ ...request, ...remote(b), sges: sges(a, parts) }])).toEqual({
        accepted: 1,
        errno: 0,
      });
      expect(pollOne(a.queue)).toMatchObject({ status: WcStatus.SUCCESS });
      const expected = Buffer.concat(parts.map(([offset, bytes]) => a.bytes.subarray(offset, offset + bytes)));
      expect(Buffer.compare(b.bytes.subarray(4096, 4096 + 3 * size), expected)).toBe(0);
      expect(b.bytes[4096 + 3 * size]).toBe(0);
    });

    it('READ scatters to them', () => {
      const [a, b] = pair({ cap, lengthBytes: 256 * 1024 });
      fill(b);
      const parts: [number, number][] = [
        [200_000, 70_000 - 8192],
        [3, 5000],
      ];
      a.queuePair.postSend([{ ...request, ...remote(b), opcode: WrOpcode.RDMA_READ, sges: sges(a, parts) }]);
      expect(pollOne(a.queue)).toMatchObject({ status: WcStatus.SUCCESS, opcode: WcOpcode.RDMA_READ });
      const got = Buffer.concat(parts.map(([offset, bytes]) => a.bytes.subarray(offset, offset + bytes)));
      expect(Buffer.compare(got, b.bytes.subarray(4096, 4096 + got.length))).toBe(0);
      expect(a.bytes[2]).toBe(0);
      expect(a.bytes[5003]).toBe(0);
    });

    it('SEND gathers them, and a receive fills its own one after the other', () => {
      const [a, b] = pair({ cap, lengthBytes: 256 * 1024 });
      fill(a);
      const into: [number, number][] = [
        [10_000, 7],
        [20_000, 0],
        [30_000, 80_000],
        [5, 1000],
      ];
      b.queuePair.postReceive([{ wrId: 70, sges: sges(b, into) }]);
      const parts: [number, number][] = [
        [77, 3],
        [100_000, 80_010],
      ];
      a.queuePair.postSend([{ ...request, opcode: WrOpcode.SEND, sges: sges(a, parts) }]);
      expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
      expect(pollOne(b.queue)).toMatchObject({ wrId: 70, status: WcStatus.SUCCESS, byteLen: 80_013 });
      const sent = Buffer.concat(parts.map(([offset, bytes]) => a.bytes.subarray(offset, offset + bytes)));
      expect(Buffer.compare(b.bytes.subarray(10_000, 10_007), sent.subarray(0, 7))).toBe(0);
      expect(Buffer.compare(b.bytes.subarray(30_000, 110_000), sent.subarray(7, 80_007))).toBe(0);
      expect(Buffer.compare(b.bytes.subarray(5, 11), sent.subarray(80_007))).toBe(0);
      expect(b.bytes[11]).toBe(0);
      expect(b.bytes[20_000]).toBe(0);
    });

    it('a message longer than all elements of the receive fails at both ends', () => {
      const [a, b] = pair({ cap });
      b.queuePair.postReceive([{ wrId: 71, sges: sges(b, [[0, 8], [100, 8]]) }]); // biome-ignore format: two pairs
      a.queuePair.postSend([transfer(a, b, 17, { opcode: WrOpcode.SEND })]);
      expect(pollOne(a.queue).status).not.toBe(WcStatus.SUCCESS);
      const failed = [WcStatus.LOC_LEN_ERR, WcStatus.LOC_QP_OP_ERR] as Status[];
      expect(failed).toContain(pollOne(b.queue).status);
    });

    it('INLINE takes the data of all of them at the time of posting', () => {
      const [a, b] = pair({ cap: { ...cap, maxInlineData: 128 } });
      fill(a);
      const before = Buffer.concat([a.bytes.subarray(10, 30), a.bytes.subarray(500, 540)]);
      const parts = sges(a, [[10, 20], [500, 40]]); // biome-ignore format: two pairs
      a.queuePair.postSend([
        {
          ...request,
          ...remote(b),
          sendFlags: SendFlags.SIGNALED | SendFlags.INLINE,
          sges: parts.map(({ address, length: bytes }) => ({ address, length: bytes })),
        },
      ]);
      a.bytes.fill(0);
      expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
      expect(Buffer.compare(b.bytes.subarray(4096, 4156), before)).toBe(0);
    });

    it('a wrong key of any of them fails the request', () => {
      const [a, b] = pair({ cap });
      const parts = sges(a, [[0, 8], [100, 8]]); // biome-ignore format: two pairs
      (parts[1] as { lkey: number }).lkey = (a.region.lkey ^ 0x5555) >>> 0;
      a.queuePair.postSend([{ ...request, ...remote(b), sges: parts }]);
      const failed = [WcStatus.LOC_PROT_ERR, WcStatus.LOC_QP_OP_ERR] as Status[];
      expect(failed).toContain(pollOne(a.queue).status);
    });

    it('more than the queue pair was made for are refused', () => {
      const [a, b] = pair({ cap: { maxSendSge: 2, maxRecvSge: 2 } });
      const most = Math.max(a.queuePair.capabilities.maxSendSge, a.queuePair.capabilities.maxRecvSge);
      const parts = sges(
        a,
        Array.from({ length: most + 1 }, (_, i) => [i * 8, 8]),
      );
      expect(a.queuePair.postSend([{ ...request, ...remote(b), sges: parts }]).errno).toBe(EINVAL);
      expect(a.queuePair.postReceive([{ sges: parts }]).errno).toBe(EINVAL);
      const both = () => a.queuePair.postSend([{ ...request, length: 8, sges: parts.slice(0, 1) }]);
      expect(thrownBy(both).code).toBe('QUORATE_INVALID_ARGUMENT');
      expect(
        a.queuePair.postSend([{ ...request, ...remote(b), opcode: WrOpcode.FETCH_ADD, sges: sges(a, [[0, 4], [8, 4]]) }]) // biome-ignore format: two pairs
          .errno,
      ).toBe(EINVAL);
    });

    it('serve shared receive queues', () => {
      const [a, b] = pair({ cap });
      const srq = b.domain.createSharedReceiveQueue(16, 3);
      const other = b.domain.createQueuePair({ sendCq: b.queue, srq });
      const peer = a.domain.createQueuePair({ sendCq: a.queue, cap });
      for (const queuePair of [other, peer]) queuePair.toInit({ accessFlags: ALL_ACCESS });
      other.toReadyToReceive(peer.endpoint());
      peer.toReadyToReceive(other.endpoint());
      for (const queuePair of [other, peer]) queuePair.toReadyToSend();
      fill(a);
      const parts: [number, number][] = [
        [1000, 10],
        [3000, 20],
        [5000, 40],
      ];
      expect(srq.postReceive([{ wrId: 90, sges: sges(b, parts) }]).accepted).toBe(1);
      peer.postSend([transfer(a, b, 50, { opcode: WrOpcode.SEND })]);
      expect(pollOne(b.queue)).toMatchObject({ wrId: 90, status: WcStatus.SUCCESS, byteLen: 50 });
      expect(Buffer.compare(b.bytes.subarray(1000, 1010), a.bytes.subarray(0, 10))).toBe(0);
      expect(Buffer.compare(b.bytes.subarray(3000, 3020), a.bytes.subarray(10, 30))).toBe(0);
      expect(Buffer.compare(b.bytes.subarray(5000, 5020), a.bytes.subarray(30, 50))).toBe(0);
    });

    it('serve datagrams, routing header and all', () => {
      const [a, b] = pair({ cap });
      const [from, to] = [a, b].map((end) => {
        const queuePair = end.domain.createQueuePair({ type: QpType.UD, sendCq: end.queue, cap });
        queuePair.toDatagrams({ qkey: QKEY });
        return queuePair;
      }) as [End['queuePair'], End['queuePair']];
      fill(a);
      to.postReceive([{ wrId: 80, sges: sges(b, [[0, GRH_BYTES], [2000, 30], [3000, 500]]) }]); // biome-ignore format: three pairs
      const addressHandle = a.domain.createAddressHandle(a.context.addressVectorFor(to.endpoint()));
      from.postSend([
        {
          ...request,
          opcode: WrOpcode.SEND,
          sges: sges(a, [[64, 100], [9000, 20]]), // biome-ignore format: two pairs
          addressHandle,
          remoteQpNum: to.number,
          remoteQkey: QKEY,
        },
      ]);
      expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
      expect(pollOne(b.queue)).toMatchObject({ wrId: 80, status: WcStatus.SUCCESS, byteLen: GRH_BYTES + 120 });
      const sent = Buffer.concat([a.bytes.subarray(64, 164), a.bytes.subarray(9000, 9020)]);
      expect(Buffer.compare(b.bytes.subarray(2000, 2030), sent.subarray(0, 30))).toBe(0);
      expect(Buffer.compare(b.bytes.subarray(3000, 3090), sent.subarray(30))).toBe(0);
    });
  });

  describe(`completion queues on ${name}`, () => {
    const { pair, single } = usePairs(devices);

    it('are resized, with what they hold, or refuse with QUORATE_UNSUPPORTED', () => {
      const [a, b] = pair({ depth: 64 });
      if (!a.context.capabilities.completionQueueResize) {
        expect(thrownBy(() => a.queue.resize(128)).code).toBe('QUORATE_UNSUPPORTED');
        return;
      }
      const post = (count: number, first: number) =>
        a.queuePair.postSend(Array.from({ length: count }, (_, i) => ({ ...transfer(a, b, 8), wrId: first + i })));
      expect(post(40, 0).accepted).toBe(40);
      a.queue.resize(1000);
      expect(a.queue.depth).toBeGreaterThanOrEqual(1000);
      expect(post(60, 40).accepted).toBe(60);
      expect(pollFor(a.queue, 100).map(({ wrId }) => wrId)).toEqual(Array.from({ length: 100 }, (_, i) => i));
      a.queue.resize(16);
      expect(a.queue.depth).toBeLessThan(1000);
      expect(post(8, 200).accepted).toBe(8);
      expect(pollFor(a.queue, 8).map(({ wrId }) => wrId)).toEqual(Array.from({ length: 8 }, (_, i) => 200 + i));
    });

    it('do not shrink below what is outstanding', () => {
      const [a, b] = pair({ depth: 64 });
      if (!a.context.capabilities.completionQueueResize) return;
      a.queuePair.postSend(Array.from({ length: 20 }, () => transfer(a, b, 8)));
      expect(thrownBy(() => a.queue.resize(8)).code).toBe('QUORATE_LIMIT');
      expect(pollFor(a.queue, 20)).toHaveLength(20);
      expect(thrownBy(() => a.queue.resize(0)).code).toBe('QUORATE_OUT_OF_RANGE');
      expect(thrownBy(() => a.queue.resize(2 ** 31 - 1)).code).toBe('QUORATE_OUT_OF_RANGE');
    });

    it('have a channel of their own context, or none', () => {
      const [own, other] = [single({ withChannel: true }), single({ withChannel: true })];
      expect(thrownBy(() => own.context.createCompletionQueue(4, other.channel)).code).toBe('QUORATE_INVALID_ARGUMENT');
      own.context.createCompletionQueue(4, own.channel);
    });

    it('do not shrink below the receives that have completed', () => {
      const [a, b] = pair({ depth: 64 });
      if (!a.context.capabilities.completionQueueResize) return;
      const wrIds = Array.from({ length: 8 }, (_, i) => i);
      b.queuePair.postReceive(wrIds.map((wrId) => receive(b, wrId, 64 * wrId, 64)));
      a.queuePair.postSend(wrIds.map((wrId) => ({ ...transfer(a, b, 8), opcode: WrOpcode.SEND, wrId })));
      expect(pollFor(a.queue, 8)).toHaveLength(8);
      expect(thrownBy(() => b.queue.resize(4)).code).toBe('QUORATE_LIMIT');
      expect(pollFor(b.queue, 8).map(({ wrId }) => wrId)).toEqual(wrIds);
      b.queue.resize(4);
    });

    it.each([{ extended: true }, { timestamps: 'raw' }, { timestamps: 'wallclock' }] as const)(
      'that are extended (%o) report as the others do, or are refused with QUORATE_UNSUPPORTED',
      (options) => {
        const [a, b] = pair();
        const { extendedCompletionQueues, rawTimestamps, wallclockTimestamps } = a.context.capabilities;
        const wanted = 'timestamps' in options ? options.timestamps : undefined;
        const there =
          wanted === 'raw' ? rawTimestamps : wanted === 'wallclock' ? wallclockTimestamps : extendedCompletionQueues;
        if (!there) {
          expect(thrownBy(() => a.context.createCompletionQueue(16, null, options)).code).toBe('QUORATE_UNSUPPORTED');
          return;
        }
        const now = () => (wanted === 'wallclock' ? BigInt(Date.now()) * 1_000_000n : BigInt(monotonicNs()));
        const queues = [a, b].map((end) => end.context.createCompletionQueue(64, null, options));
        const [sending, receiving] = queues as [(typeof queues)[0], (typeof queues)[0]];
        const x = a.domain.createQueuePair({ sendCq: sending });
        const y = b.domain.createQueuePair({ sendCq: receiving });
        for (const queuePair of [x, y]) queuePair.toInit({ accessFlags: ALL_ACCESS });
        x.toReadyToReceive(y.endpoint());
        y.toReadyToReceive(x.endpoint());
        for (const queuePair of [x, y]) queuePair.toReadyToSend({ timeout: 10, retryCnt: 3 });
        y.postReceive([receive(b, 5, 0, 64), receive(b, 6, 64, 64)]);
        const before = now();
        x.postSend([
          transfer(a, b, 24, { opcode: WrOpcode.SEND_WITH_IMM, immData: 0xfeed_beef }),
          transfer(a, b, 8, { wrId: 8, opcode: WrOpcode.FETCH_ADD, compareAdd: 1 }),
          transfer(a, b, 8, { wrId: 9, rkey: 1 }),
        ]);
        const [sent, added, failed] = pollFor(sending, 3);
        const [received, flushed] = pollFor(receiving, 2);
        const after = now() + 1_000_000n; // Date.now() is cut off to whole milliseconds
        expect(sent).toMatchObject({ wrId: 7, status: WcStatus.SUCCESS, opcode: WcOpcode.SEND, qpNum: x.number });
        expect(added).toMatchObject({ wrId: 8, status: WcStatus.SUCCESS, opcode: WcOpcode.FETCH_ADD });
        expect(failed).toMatchObject({ wrId: 9, status: WcStatus.REM_ACCESS_ERR, qpNum: x.number });
        expect(received).toMatchObject({ wrId: 5, byteLen: 24, immData: 0xfeed_beef, qpNum: y.number });
        expect(flushed).toMatchObject({ wrId: 6, status: WcStatus.WR_FLUSH_ERR });
        expect(sending.poll(4)).toEqual([]);
        for (const completion of [sent, added, received]) {
          if (wanted === undefined) expect(completion?.timestamp).toBe(undefined);
          else if (devices[0] === 'shm') {
            expect(completion?.timestamp).toBeGreaterThanOrEqual(before);
            expect(completion?.timestamp).toBeLessThanOrEqual(after);
          } else expect(completion?.timestamp).toBeGreaterThan(0n);
        }
      },
    );

    it('refuse options that make no sense', () => {
      const { context } = single();
      const create = (options: unknown) =>
        thrownBy(() => context.createCompletionQueue(4, null, options as never)).code;
      for (const options of [null, 1, { timestamps: 'cpu' }, { extended: 1 }, { what: 1 }]) {
        expect(create(options)).toBe('QUORATE_INVALID_ARGUMENT');
      }
    });

    it('have no room for more requests than their depth on devices, and say so', () => {
      if (devices[0] === 'shm') return; // a request completes within its post, and its completion waits in the queue
      const [a, b] = pair({ depth: 8 });
      const { accepted, errno } = a.queuePair.postSend(Array.from({ length: 128 }, () => transfer(a, b, 8)));
      expect({ accepted, errno }).toEqual({ accepted: a.queue.depth, errno: ENOMEM });
      expect(pollFor(a.queue, accepted)).toHaveLength(accepted);
      expect(AsyncEventType.CQ_ERR).toBe(0);
    });
  });

  describe(`atomics on ${name}`, () => {
    const { pair } = usePairs(devices);

    it('that are misaligned, or not of 8 bytes, are refused or fail, and change nothing', () => {
      for (const wrong of [{ remoteAddress: 4 }, { length: 4 }, { length: 16 }]) {
        const [a, b] = pair();
        b.bytes.fill(0x11);
        const request = transfer(a, b, 8, { opcode: WrOpcode.FETCH_ADD, compareAdd: 1 });
        const { accepted, errno } = a.queuePair.postSend([
          { ...request, ...wrong, remoteAddress: request.remoteAddress + ('remoteAddress' in wrong ? 4 : 0) },
        ]);
        if (accepted === 0) expect(errno).toBe(EINVAL);
        else expect(pollOne(a.queue).status).not.toBe(WcStatus.SUCCESS);
        expect(b.bytes.every((byte) => byte === 0x11)).toBe(true);
      }
    });

    it('need REMOTE_ATOMIC on the queue pair, and the right keys', () => {
      const local = [WcStatus.LOC_PROT_ERR, WcStatus.LOC_QP_OP_ERR] as Status[];
      const attempt = (more: object, options: object = {}) => {
        const [a, b] = pair(options);
        a.queuePair.postSend([transfer(a, b, 8, { opcode: WrOpcode.COMPARE_SWAP, swap: 1, ...more })]);
        const { status } = pollOne(a.queue);
        // SoftRoCE looks at the local key when the answer comes: the peer's word has changed by then.
        const changed = new BigUint64Array(b.memory.buffer, 4096, 1)[0] === 1n;
        if (!local.includes(status as Status)) expect(changed).toBe(status === WcStatus.SUCCESS);
        return status as Status;
      };
      expect(attempt({})).toBe(WcStatus.SUCCESS);
      expect(attempt({}, { queuePairAccess: Access.REMOTE_WRITE | Access.REMOTE_READ })).toBe(WcStatus.REM_INV_REQ_ERR);
      expect(attempt({ rkey: 1 })).toBe(WcStatus.REM_ACCESS_ERR);
      expect(local).toContain(attempt({ lkey: 1 }));
    });
  });

  describe(`sizes on ${name}`, () => {
    const { single } = usePairs(devices);

    it('of completion queues go from 1 to what the device says, and no further', () => {
      const { context } = single();
      const { maxCqe } = context.queryDevice();
      for (const depth of [1, Math.min(maxCqe, 32_767)]) {
        const queue = context.createCompletionQueue(depth);
        expect(queue.depth).toBeGreaterThanOrEqual(depth);
        queue.close();
      }
      expect(thrownBy(() => context.createCompletionQueue(maxCqe + 1)).code).toBe('QUORATE_OUT_OF_RANGE');
    });

    it('of queue pairs are granted as asked for, and refused beyond the limits of the device', () => {
      const { context, domain, queue } = single();
      const { maxSge, maxQpWr } = context.queryDevice();
      const cap = { maxSendWr: 10, maxRecvWr: 20, maxSendSge: 2, maxRecvSge: 3, maxInlineData: 64 };
      for (const type of [QpType.RC, QpType.UC, QpType.UD]) {
        const queuePair = domain.createQueuePair({ type, sendCq: queue, cap });
        expect(queuePair.state).toBe(QpState.RESET);
        for (const [member, least] of Object.entries(cap)) {
          expect(queuePair.capabilities[member as keyof typeof cap], member).toBeGreaterThanOrEqual(least);
        }
      }
      for (const beyond of [{ maxSendSge: maxSge + 1 }, { maxRecvSge: maxSge + 1 }, { maxSendWr: 2 ** 31 }]) {
        expect(thrownBy(() => domain.createQueuePair({ sendCq: queue, cap: beyond })).code).toBe(
          'QUORATE_OUT_OF_RANGE',
        );
      }
      expect(maxQpWr).toBeGreaterThan(0);
    });

    it('of address handles: one without a GID is refused on Ethernet and shm', () => {
      const { context, domain } = single();
      if (context.queryPort(1).linkLayer === 'InfiniBand') return;
      expect(thrownBy(() => domain.createAddressHandle({ isGlobal: false })).code).toMatch(/^QUORATE_/);
      const handle = domain.createAddressHandle({
        dgid: context.chooseGid(1).gid,
        sgidIndex: context.chooseGid(1).index,
      });
      handle.close();
      handle.close();
      expect(thrownBy(() => handle.attributes).code).toBe('QUORATE_CLOSED');
    });
  });
}
