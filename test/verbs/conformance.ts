// What every device must do, whichever provider is under it: run on shm by test/verbs/conformance.test.ts and on
// SoftRoCE by test/rxe/verbs.test.ts. The two devices may be one and the same.
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  Access,
  CompletionEvents,
  errorCode,
  FENCED,
  Fence,
  isCanonicalGid,
  listDevices,
  OP_FENCED_COPY,
  openDevice,
  POST_REFUSED,
  POST_UNSIGNALED,
  PortState,
  PostList,
  QpState,
  SendFlags,
  WC_WITH_IMM,
  WcOpcode,
  WcStatus,
  type WorkCompletion,
  WrOpcode,
} from '#lib/verbs/index.js';
import { type ChildEnd, startChild } from './support/child.js';
import { ALL_ACCESS, connectedPair, End, pollFor, pollOne, thrownBy } from './support/ends.js';

const EINVAL = 22;
const WAIT_NS = 5e9;

export function describeVerbs(devices: readonly [string, string]): void {
  const ends: End[] = [];
  const children: ChildEnd[] = [];

  function pair(options: ConstructorParameters<typeof End>[1] = {}): [End, End] {
    const made = connectedPair(devices, options);
    ends.push(...made);
    return made;
  }

  function single(options: ConstructorParameters<typeof End>[1] = {}): End {
    const end = new End(devices[0], options);
    ends.push(end);
    return end;
  }

  beforeEach(() => {
    expect(ends).toEqual([]);
  });
  afterEach(() => {
    for (const child of children.splice(0)) child.kill();
    for (const end of ends.splice(0)) end.close();
  });

  /** A request from `a`'s memory at 0 to `b`'s memory at 4096. */
  function transfer(a: End, b: End, opcode: number, length: number, more: object = {}) {
    return {
      wrId: 7,
      opcode: opcode as (typeof WrOpcode)[keyof typeof WrOpcode],
      localAddress: a.memory.address,
      length,
      lkey: a.region.lkey,
      remoteAddress: b.memory.address + 4096,
      rkey: b.region.rkey,
      ...more,
    };
  }

  describe(`verbs on ${[...new Set(devices)].join(' and ')}`, () => {
    describe('devices', () => {
      it('lists the device under the name by which it opens', () => {
        expect(listDevices().map((device) => device.name)).toContain(devices[0]);
        const { context } = single();
        expect(context.name).toBe(devices[0]);
        expect(context.device.nodeGuid).toMatch(/^[0-9a-f]{4}(:[0-9a-f]{4}){3}$/);
      });

      it('reports limits that allow what the API offers', () => {
        const attributes = single().context.queryDevice();
        expect(attributes.physPortCnt).toBeGreaterThanOrEqual(1);
        expect(attributes.maxQp).toBeGreaterThanOrEqual(16);
        expect(attributes.maxCqe).toBeGreaterThanOrEqual(1024);
        expect(attributes.maxMrSize).toBeGreaterThanOrEqual(1n << 20n);
        expect(attributes.maxQpRdAtom).toBeGreaterThanOrEqual(1);
      });

      it('reports an active port and refuses a port that does not exist', () => {
        const { context } = single();
        const port = context.queryPort(1);
        expect(port.state).toBe(PortState.ACTIVE);
        expect([256, 512, 1024, 2048, 4096]).toContain(port.activeMtuBytes);
        const queries = [() => context.queryPort(200), () => context.queryGids(200), () => context.queryPkey(200)];
        for (const query of queries) expect(thrownBy(query).code).toBe('QUORATE_OUT_OF_RANGE');
      });

      it('chooses a GID that is in the table of the port', () => {
        const { context } = single();
        const chosen = context.chooseGid(1);
        expect(isCanonicalGid(chosen.gid)).toBe(true);
        expect(context.queryGids(1)).toContainEqual(chosen);
      });

      it('says which devices there are when asked for one that does not exist', () => {
        const error = thrownBy(() => openDevice('no_such_device'));
        expect(error.code).toBe('QUORATE_NO_DEVICE');
        expect(error.message).toContain(devices[0]);
        expect(error.message).toContain('no_such_device');
      });
    });

    describe('memory', () => {
      it('is zeroed, page-aligned and of the length asked for', () => {
        const { context } = single();
        const memory = context.allocateMemory({ lengthBytes: 10_000 });
        expect(memory.length).toBe(10_000);
        expect(memory.address % 4096).toBe(0);
        expect(memory.buffer.byteLength).toBe(10_000);
        expect(new Uint8Array(memory.buffer).every((byte) => byte === 0)).toBe(true);
        memory.close();
      });

      it('is registered in parts, several times, with keys of their own', () => {
        const { domain, memory } = single();
        const first = domain.registerMemory(memory, 0, 4096, ALL_ACCESS);
        const second = domain.registerMemory(memory, 100, 50, Access.REMOTE_READ);
        expect(second.address).toBe(memory.address + 100);
        expect(second.length).toBe(50);
        expect(second.access).toBe(Access.REMOTE_READ);
        expect(first.rkey).not.toBe(second.rkey);
      });

      it('keeps its contents for a memory region after it was closed itself', () => {
        const [a, b] = pair();
        a.bytes.set([1, 2, 3], 0);
        const buffer = a.memory.buffer;
        const { address } = a.memory;
        a.memory.close();
        expect(buffer.byteLength).toBe(0);
        a.queuePair.postSend([
          {
            opcode: WrOpcode.RDMA_WRITE,
            localAddress: address,
            length: 3,
            lkey: a.region.lkey,
            remoteAddress: b.memory.address,
            rkey: b.region.rkey,
          },
        ]);
        expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
        expect([...b.bytes.subarray(0, 3)]).toEqual([1, 2, 3]);
      });
    });

    describe('queue pair states', () => {
      it('go from RESET through INIT and RTR to RTS', () => {
        const a = single();
        const b = single();
        expect(a.queuePair.state).toBe(QpState.RESET);
        a.queuePair.toInit({ accessFlags: ALL_ACCESS });
        expect(a.queuePair.state).toBe(QpState.INIT);
        a.queuePair.toReadyToReceive(b.queuePair.endpoint());
        expect(a.queuePair.state).toBe(QpState.RTR);
        a.queuePair.toReadyToSend();
        expect(a.queuePair.state).toBe(QpState.RTS);
        const known = a.queuePair.query();
        expect(known.destQpNum).toBe(b.queuePair.number);
        expect(known.sqPsn).toBe(a.queuePair.psn);
        expect(known.rqPsn).toBe(b.queuePair.psn);
      });

      it('go to RTR without blocking the thread when asked to', async () => {
        const a = single();
        const b = single();
        a.queuePair.toInit();
        await a.queuePair.toReadyToReceiveAsync(b.queuePair.endpoint());
        expect(a.queuePair.state).toBe(QpState.RTR);
        await expect(a.queuePair.modifyAsync({ state: QpState.INIT })).rejects.toMatchObject({
          code: 'QUORATE_QP_STATE',
        });
      });

      it('say whatever is wrong with a modifyAsync() by its promise', async () => {
        const { queuePair } = single();
        const outcome = (attributes: unknown) => queuePair.modifyAsync(attributes as never).catch(errorCode);
        expect(await outcome('INIT')).toBe('QUORATE_INVALID_ARGUMENT');
        expect(await outcome({ state: 99 })).toBe('QUORATE_OUT_OF_RANGE');
        queuePair.close();
        expect(await outcome({ state: QpState.INIT })).toBe('QUORATE_CLOSED');
      });

      it('refuse a transition that skips a state and say where the pair is', () => {
        const { queuePair } = single();
        const error = thrownBy(() => queuePair.toReadyToSend());
        expect(error.code).toBe('QUORATE_QP_STATE');
        expect(error.message).toMatch(/RESET/);
        expect(error.message).toMatch(/RTS/);
        expect(queuePair.state).toBe(QpState.RESET);
      });

      it('refuse a transition that lacks an attribute and name it', () => {
        const { queuePair } = single();
        const error = thrownBy(() => queuePair.modify({ state: QpState.INIT, portNum: 1, pkeyIndex: 0 }));
        expect(error.code).toBe('QUORATE_QP_STATE');
        expect(error.message).toMatch(/access/i);
      });

      it('refuse to post sends before RTS, with EINVAL', () => {
        const a = single();
        expect(a.queuePair.postSend([transfer(a, a, WrOpcode.RDMA_WRITE, 8)])).toEqual({ accepted: 0, errno: EINVAL });
      });

      it('change their access flags while they are connected, and only then', () => {
        const [a, b] = pair();
        b.queuePair.setAccessFlags(Access.REMOTE_READ | Access.REMOTE_WRITE);
        a.queuePair.postSend([transfer(a, b, WrOpcode.RDMA_WRITE, 8)]);
        expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
        b.queuePair.setAccessFlags(Access.REMOTE_READ);
        expect((b.queuePair.query().accessFlags ?? 0) & Access.REMOTE_WRITE).toBe(0);
        a.queuePair.postSend([transfer(a, b, WrOpcode.RDMA_WRITE, 8)]);
        expect([WcStatus.REM_INV_REQ_ERR, WcStatus.REM_ACCESS_ERR]).toContain(pollOne(a.queue).status);
        expect(thrownBy(() => single().queuePair.setAccessFlags(0)).code).toBe('QUORATE_QP_STATE');
        expect(thrownBy(() => b.queuePair.setAccessFlags(32)).code).toBe('QUORATE_OUT_OF_RANGE');
      });

      it('flush what is posted in the error state', () => {
        const [a, b] = pair();
        a.queuePair.postReceive([{ wrId: 55, localAddress: a.memory.address, length: 64, lkey: a.region.lkey }]);
        a.queuePair.toError();
        expect(pollOne(a.queue)).toMatchObject({ wrId: 55, status: WcStatus.WR_FLUSH_ERR });
        expect(a.queuePair.postSend([transfer(a, b, WrOpcode.RDMA_WRITE, 8)]).accepted).toBe(1);
        expect(pollOne(a.queue)).toMatchObject({ wrId: 7, status: WcStatus.WR_FLUSH_ERR });
      });
    });

    describe('operations', () => {
      it.each([1, 8, 64, 1024, 4096, 40_000])('WRITE places %i bytes and nothing beside them', (length) => {
        const [a, b] = pair();
        for (let i = 0; i < length; i++) a.bytes[i] = (i * 7 + 1) & 0xff;
        b.bytes.fill(0xee);
        expect(a.queuePair.postSend([transfer(a, b, WrOpcode.RDMA_WRITE, length)])).toEqual({ accepted: 1, errno: 0 });
        const completion = pollOne(a.queue);
        expect(completion).toMatchObject({
          wrId: 7,
          status: WcStatus.SUCCESS,
          opcode: WcOpcode.RDMA_WRITE,
          qpNum: a.queuePair.number,
        });
        expect(Buffer.compare(b.bytes.subarray(4096, 4096 + length), a.bytes.subarray(0, length))).toBe(0);
        expect(b.bytes[4095]).toBe(0xee);
        expect(b.bytes[4096 + length]).toBe(0xee);
      });

      it('READ fetches from the peer', () => {
        const [a, b] = pair();
        b.bytes.fill(0x5a, 4096, 4096 + 3000);
        a.queuePair.postSend([transfer(a, b, WrOpcode.RDMA_READ, 3000)]);
        expect(pollOne(a.queue)).toMatchObject({ status: WcStatus.SUCCESS, opcode: WcOpcode.RDMA_READ });
        expect(a.bytes.subarray(0, 3000).every((byte) => byte === 0x5a)).toBe(true);
        expect(a.bytes[3000]).toBe(0);
      });

      it('COMPARE_SWAP swaps only if the value is the expected one, and returns the old one', () => {
        const [a, b] = pair();
        const target = new BigUint64Array(b.memory.buffer, 4096, 1);
        const result = new BigUint64Array(a.memory.buffer, 0, 1);
        target[0] = 0x1234_5678_9abc_def0n;
        const swap = (compareAdd: bigint, to: bigint) =>
          a.queuePair.postSend([transfer(a, b, WrOpcode.COMPARE_SWAP, 8, { compareAdd, swap: to })]);
        swap(1n, 2n);
        expect(pollOne(a.queue)).toMatchObject({ status: WcStatus.SUCCESS, opcode: WcOpcode.COMPARE_SWAP });
        expect(result[0]).toBe(0x1234_5678_9abc_def0n);
        expect(target[0]).toBe(0x1234_5678_9abc_def0n);
        swap(0x1234_5678_9abc_def0n, 2n ** 64n - 1n);
        expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
        expect(result[0]).toBe(0x1234_5678_9abc_def0n);
        expect(target[0]).toBe(2n ** 64n - 1n);
      });

      it('FETCH_ADD adds modulo 2^64 and returns the old value', () => {
        const [a, b] = pair();
        const target = new BigUint64Array(b.memory.buffer, 4096, 1);
        const result = new BigUint64Array(a.memory.buffer, 0, 1);
        target[0] = 2n ** 64n - 2n;
        a.queuePair.postSend([transfer(a, b, WrOpcode.FETCH_ADD, 8, { compareAdd: 5 })]);
        expect(pollOne(a.queue)).toMatchObject({ status: WcStatus.SUCCESS, opcode: WcOpcode.FETCH_ADD });
        expect(result[0]).toBe(2n ** 64n - 2n);
        expect(target[0]).toBe(3n);
      });

      it('SEND fills the posted receive', () => {
        const [a, b] = pair();
        b.queuePair.postReceive([{ wrId: 91, localAddress: b.memory.address, length: 128, lkey: b.region.lkey }]);
        a.bytes.set([9, 8, 7], 0);
        a.queuePair.postSend([transfer(a, b, WrOpcode.SEND, 3)]);
        expect(pollOne(a.queue)).toMatchObject({ status: WcStatus.SUCCESS, opcode: WcOpcode.SEND });
        expect(pollOne(b.queue)).toMatchObject({
          wrId: 91,
          status: WcStatus.SUCCESS,
          opcode: WcOpcode.RECV,
          byteLen: 3,
          qpNum: b.queuePair.number,
        });
        expect([...b.bytes.subarray(0, 4)]).toEqual([9, 8, 7, 0]);
      });

      it('SEND_WITH_IMM and RDMA_WRITE_WITH_IMM deliver 32 bits in the receive completion', () => {
        const [a, b] = pair();
        const receive = { wrId: 92, localAddress: b.memory.address, length: 128, lkey: b.region.lkey };
        b.queuePair.postReceive([receive, receive]);
        a.queuePair.postSend([transfer(a, b, WrOpcode.SEND_WITH_IMM, 4, { immData: 0xdeadbeef })]);
        const sent = pollOne(b.queue);
        expect(sent).toMatchObject({ status: WcStatus.SUCCESS, opcode: WcOpcode.RECV, immData: 0xdeadbeef });
        expect(sent.wcFlags & WC_WITH_IMM).toBe(WC_WITH_IMM);
        a.bytes.fill(0x33, 0, 16);
        a.queuePair.postSend([transfer(a, b, WrOpcode.RDMA_WRITE_WITH_IMM, 16, { immData: 1 })]);
        expect(pollOne(b.queue)).toMatchObject({
          status: WcStatus.SUCCESS,
          opcode: WcOpcode.RECV_RDMA_WITH_IMM,
          immData: 1,
        });
        expect([...b.bytes.subarray(4096, 4112)]).toEqual(new Array(16).fill(0x33));
      });

      it('INLINE takes the data at the time of posting and needs no lkey', () => {
        const [a, b] = pair({ cap: { maxInlineData: 64 } });
        a.bytes.fill(0x44, 0, 32);
        a.queuePair.postSend([
          transfer(a, b, WrOpcode.RDMA_WRITE, 32, { lkey: 0, sendFlags: SendFlags.SIGNALED | SendFlags.INLINE }),
        ]);
        a.bytes.fill(0x55, 0, 32);
        expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
        expect([...b.bytes.subarray(4096, 4128)]).toEqual(new Array(32).fill(0x44));
      });

      it('INLINE from an address that is no Memory of the process is refused before anything is touched', () => {
        const [a, b] = pair({ cap: { maxInlineData: 64 } });
        const from = (localAddress: number, length = 32) =>
          thrownBy(() =>
            a.queuePair.postSend([
              transfer(a, b, WrOpcode.RDMA_WRITE, length, { localAddress, sendFlags: SendFlags.INLINE }),
            ]),
          ).code;
        expect(from(1)).toBe('QUORATE_INVALID_ARGUMENT');
        expect(from(a.memory.address - 1)).toBe('QUORATE_INVALID_ARGUMENT');
        expect(from(a.memory.address + a.memory.length - 31)).toBe('QUORATE_INVALID_ARGUMENT');
        expect(from(a.memory.address, 2 ** 32 - 1)).toBe('QUORATE_INVALID_ARGUMENT');
      });

      it('complete in the order in which they were posted', () => {
        const [a, b] = pair();
        const requests = Array.from({ length: 40 }, (_, i) => ({
          ...transfer(a, b, WrOpcode.RDMA_WRITE, 8),
          wrId: 1000 + i,
        }));
        expect(a.queuePair.postSend(requests)).toEqual({ accepted: 40, errno: 0 });
        expect(pollFor(a.queue, 40).map((completion) => completion.wrId)).toEqual(requests.map((r) => r.wrId));
      });

      it('leave no completion if they are not signaled and succeed', () => {
        const [a, b] = pair();
        a.queuePair.postSend([
          { ...transfer(a, b, WrOpcode.RDMA_WRITE, 8), wrId: 1, sendFlags: 0 },
          { ...transfer(a, b, WrOpcode.RDMA_WRITE, 8), wrId: 2 },
        ]);
        expect(pollOne(a.queue).wrId).toBe(2);
        expect(a.queue.poll(4)).toEqual([]);
      });
    });

    describe('violations', () => {
      /** Posts, and expects the status; after it both ends must be useless. */
      function expectFailure(
        a: End,
        b: End,
        request: ReturnType<typeof transfer>,
        ...statuses: number[]
      ): WorkCompletion {
        const before = Buffer.from(b.bytes);
        expect(a.queuePair.postSend([request]).accepted).toBe(1);
        const completion = pollOne(a.queue);
        expect(statuses).toContain(completion.status);
        expect(a.queuePair.state).toBe(QpState.ERR);
        expect(Buffer.compare(b.bytes, before)).toBe(0);
        return completion;
      }

      it('of the remote key give REM_ACCESS_ERR and flush what follows', () => {
        const [a, b] = pair();
        const wrong = transfer(a, b, WrOpcode.RDMA_WRITE, 8, { rkey: (b.region.rkey ^ 0x5555) >>> 0 });
        expectFailure(a, b, wrong, WcStatus.REM_ACCESS_ERR);
        a.queuePair.postSend([transfer(a, b, WrOpcode.RDMA_WRITE, 8)]);
        expect(pollOne(a.queue).status).toBe(WcStatus.WR_FLUSH_ERR);
      });

      it('of the bounds of a memory region give REM_ACCESS_ERR', () => {
        const [a, b] = pair();
        const beyond = transfer(a, b, WrOpcode.RDMA_WRITE, 64, {
          remoteAddress: b.memory.address + b.memory.length - 63,
        });
        expectFailure(a, b, beyond, WcStatus.REM_ACCESS_ERR);
      });

      it('of the rights of a memory region give REM_ACCESS_ERR', () => {
        const [a, b] = pair();
        const readable = b.domain.registerMemory(b.memory, 0, 8192, Access.REMOTE_READ);
        const denied = transfer(a, b, WrOpcode.RDMA_WRITE, 8, { rkey: readable.rkey });
        expectFailure(a, b, denied, WcStatus.REM_ACCESS_ERR);
      });

      it('of the rights of a queue pair give REM_INV_REQ_ERR', () => {
        const [a, b] = pair({ queuePairAccess: Access.REMOTE_READ });
        expectFailure(a, b, transfer(a, b, WrOpcode.RDMA_WRITE, 8), WcStatus.REM_INV_REQ_ERR);
      });

      it('of a region that was deregistered give REM_ACCESS_ERR', () => {
        const [a, b] = pair();
        const extra = b.domain.registerMemory(b.memory, 4096, 4096, ALL_ACCESS);
        const request = transfer(a, b, WrOpcode.RDMA_WRITE, 8, { rkey: extra.rkey });
        a.queuePair.postSend([request]);
        expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
        extra.close();
        expectFailure(a, b, request, WcStatus.REM_ACCESS_ERR);
      });

      it('of the local key give LOC_PROT_ERR, or LOC_QP_OP_ERR as SoftRoCE has it', () => {
        const [a, b] = pair();
        const wrong = transfer(a, b, WrOpcode.RDMA_WRITE, 8, { lkey: (a.region.lkey ^ 0x5555) >>> 0 });
        expectFailure(a, b, wrong, WcStatus.LOC_PROT_ERR, WcStatus.LOC_QP_OP_ERR);
      });

      it('of the packet sequence number give RETRY_EXC_ERR', () => {
        const a = new End(devices[0]);
        const b = new End(devices[1]);
        ends.push(a, b);
        b.connect(a);
        a.queuePair.toInit({ accessFlags: ALL_ACCESS });
        a.queuePair.toReadyToReceive(b.queuePair.endpoint());
        a.queuePair.toReadyToSend({ psn: (a.queuePair.psn + 0x80_000) & 0xff_ffff, timeout: 8, retryCnt: 1 });
        expectFailure(a, b, transfer(a, b, WrOpcode.RDMA_WRITE, 8), WcStatus.RETRY_EXC_ERR);
      });

      it('by a peer that destroyed its queue pair give RETRY_EXC_ERR', () => {
        const [a, b] = pair();
        b.queuePair.close();
        expectFailure(a, b, transfer(a, b, WrOpcode.RDMA_WRITE, 8), WcStatus.RETRY_EXC_ERR);
      });

      it('by a SEND without a receive give RNR_RETRY_EXC_ERR', () => {
        const [a, b] = pair();
        expectFailure(a, b, transfer(a, b, WrOpcode.SEND, 8), WcStatus.RNR_RETRY_EXC_ERR);
      });
    });

    describe('PostList', () => {
      function listFor(a: End, more: { fence?: Fence } = {}): PostList {
        const list = new PostList(a.queue, { maxWorkRequests: 16, maxCompletions: 64 });
        list.bindQueuePair(0, a.queuePair);
        list.bindMemory(0, a.memory);
        if (more.fence) list.bindFence(0, more.fence);
        return list;
      }
      function write(list: PostList, index: number, a: End, b: End, more: object = {}) {
        list.setWorkRequest(index, {
          op: WrOpcode.RDMA_WRITE,
          slot: 0,
          wrId: 100 + index,
          localAddress: a.memory.address,
          length: 64,
          lkey: a.region.lkey,
          remoteAddress: b.memory.address + 4096,
          rkey: b.region.rkey,
          ...more,
        });
      }
      function completionsOf(list: PostList, count: number) {
        return Array.from({ length: count }, (_, index) => list.completion(index));
      }

      it('posts in order and returns one completion per request', () => {
        const [a, b] = pair();
        const list = listFor(a);
        a.bytes.fill(0x21, 0, 64);
        for (let i = 0; i < 8; i++) write(list, i, a, b, { remoteAddress: b.memory.address + 4096 + i * 64 });
        const count = list.submit(8, WAIT_NS, 8);
        expect(count).toBe(8);
        expect(completionsOf(list, 8).map((completion) => completion.wrId)).toEqual([
          100, 101, 102, 103, 104, 105, 106, 107,
        ]);
        for (const completion of completionsOf(list, 8)) {
          expect(completion).toMatchObject({ status: 0, opcode: WcOpcode.RDMA_WRITE, qpNum: a.queuePair.number });
        }
        expect(b.bytes.subarray(4096, 4096 + 512).every((byte) => byte === 0x21)).toBe(true);
        expect(list.submit(0, 0, 0)).toBe(0);
      });

      it('gives no completion of a request with POST_UNSIGNALED that succeeds, and one if it fails', () => {
        const [a, b] = pair();
        const list = listFor(a);
        a.bytes.fill(0x31, 0, 64);
        for (let i = 0; i < 8; i++) {
          const sendFlags = i % 4 === 3 ? 0 : POST_UNSIGNALED;
          write(list, i, a, b, { remoteAddress: b.memory.address + 4096 + i * 64, sendFlags });
        }
        expect(list.submit(8, WAIT_NS, 2)).toBe(2);
        expect(completionsOf(list, 2).map(({ wrId, status }) => [wrId, status])).toEqual([
          [103, 0],
          [107, 0],
        ]);
        expect(b.bytes.subarray(4096, 4096 + 512).every((byte) => byte === 0x31)).toBe(true);
        write(list, 0, a, b, { rkey: (b.region.rkey ^ 1) >>> 0, sendFlags: POST_UNSIGNALED });
        expect(list.submit(1, WAIT_NS, 1)).toBe(1);
        expect(list.completion(0)).toMatchObject({ wrId: 100, status: WcStatus.REM_ACCESS_ERR });
      });

      it('carries 64-bit operands of atomics in two halves', () => {
        const [a, b] = pair();
        const list = listFor(a);
        const target = new BigUint64Array(b.memory.buffer, 4096, 1);
        target[0] = 0xffff_ffff_0000_0001n;
        write(list, 0, a, b, {
          op: WrOpcode.COMPARE_SWAP,
          length: 8,
          compareAddLow: 1,
          compareAddHigh: 0xffff_ffff,
          swapLow: 0x89ab_cdef,
          swapHigh: 0x0123_4567,
        });
        expect(list.submit(1, WAIT_NS, 1)).toBe(1);
        expect(list.completion(0).status).toBe(0);
        expect(target[0]).toBe(0x0123_4567_89ab_cdefn);
      });

      it('completes what a queue pair refuses, and all behind it on the same pair, with POST_REFUSED', () => {
        const [a, b] = pair();
        const other = single();
        const list = listFor(a);
        list.bindQueuePair(1, other.queuePair); // in RESET: takes nothing
        write(list, 0, a, b);
        write(list, 1, a, b, { slot: 1 });
        write(list, 2, a, b, { slot: 1 });
        write(list, 3, a, b);
        let count = list.submit(4, WAIT_NS, 4);
        const all = completionsOf(list, count);
        while (all.length < 4) {
          count = list.submit(0, WAIT_NS, 1);
          all.push(...completionsOf(list, count));
        }
        const refused = all.filter((completion) => completion.status === POST_REFUSED);
        expect(refused.map((completion) => completion.wrId)).toEqual([101, 102]);
        expect(refused.map((completion) => completion.vendorErr)).toEqual([EINVAL, EINVAL]);
        const done = all.filter((completion) => completion.status === 0);
        expect(done.map((completion) => completion.wrId)).toEqual([100, 103]);
      });

      it('copies under the fence of the right epoch and lets nothing out under a wrong one', () => {
        const [a, b] = pair();
        const fence = new Fence();
        fence.raise(41);
        const list = listFor(a, { fence });
        const append = (epoch: number) => {
          list.setWorkRequest(0, {
            op: OP_FENCED_COPY,
            slot: 0,
            wrId: 1,
            localAddress: a.memory.address,
            remoteAddress: a.memory.address + 8192,
            length: 64,
            epoch,
          });
          write(list, 1, a, b);
          write(list, 2, a, b);
        };
        a.bytes.fill(0x66, 0, 64);
        append(41);
        expect(list.submit(3, WAIT_NS, 3)).toBe(3);
        expect(completionsOf(list, 3).map((completion) => completion.status)).toEqual([0, 0, 0]);
        expect(list.completion(0)).toMatchObject({ wrId: 1, opcode: OP_FENCED_COPY, byteLen: 64 });
        expect(a.bytes[8192]).toBe(0x66);
        expect(b.bytes[4096]).toBe(0x66);

        fence.raise(42);
        a.bytes.fill(0x77, 0, 64);
        append(41);
        expect(list.submit(3, 0, 0)).toBe(3);
        expect(completionsOf(list, 3).map((completion) => completion.status)).toEqual([FENCED, FENCED, FENCED]);
        expect(completionsOf(list, 3).map((completion) => completion.wrId)).toEqual([1, 101, 102]);
        expect(list.submit(0, 1e8, 1)).toBe(0);
        expect(a.bytes[8192]).toBe(0x66);
        expect(b.bytes[4096]).toBe(0x66);

        append(43); // an epoch that the fence has not reached is no better
        expect(list.submit(3, 0, 0)).toBe(3);
        expect(list.completion(0).status).toBe(FENCED);
        fence.close();
      });

      it('gives the failing status of the device and flushes the rest', () => {
        const [a, b] = pair();
        const list = listFor(a);
        write(list, 0, a, b, { rkey: (b.region.rkey ^ 0x5555) >>> 0 });
        write(list, 1, a, b);
        let all = completionsOf(list, list.submit(2, WAIT_NS, 2));
        while (all.length < 2) all = all.concat(completionsOf(list, list.submit(0, WAIT_NS, 1)));
        expect(all.map((completion) => completion.status)).toEqual([WcStatus.REM_ACCESS_ERR, WcStatus.WR_FLUSH_ERR]);
      });
    });

    describe('completion channels', () => {
      it('raise one event per arming and hand it to the event loop', async () => {
        const [a, b] = pair({ withChannel: true });
        const { channel } = a;
        if (channel === undefined) throw new Error('no channel');
        expect(channel.getEvent()).toBe(null);
        a.queue.requestNotify();
        const event = new Promise((resolve) => channel.onEvent(resolve));
        channel.ref();
        a.queuePair.postSend([transfer(a, b, WrOpcode.RDMA_WRITE, 8), transfer(a, b, WrOpcode.RDMA_WRITE, 8)]);
        expect(await event).toBe(a.queue);
        expect(pollFor(a.queue, 2)).toHaveLength(2);
        expect(channel.getEvent()).toBe(null);
        channel.onEvent(null);
      });

      it('lose no completion when queues are armed and drained in the right order', async () => {
        const [a, b] = pair({ withChannel: true });
        if (a.channel === undefined) throw new Error('no channel');
        const events = new CompletionEvents(a.channel);
        const total = 300;
        const seen: number[] = [];
        let posted = 0;
        const post = () => {
          for (let i = 0; i < 3 && posted < total; i++, posted++) {
            a.queuePair.postSend([{ ...transfer(a, b, WrOpcode.RDMA_WRITE, 64), wrId: posted }]);
          }
        };
        await new Promise<void>((resolve) => {
          events.watch(a.queue, (completions) => {
            for (const completion of completions) {
              expect(completion.status).toBe(WcStatus.SUCCESS);
              seen.push(completion.wrId);
            }
            if (seen.length === total) resolve();
            else if (seen.length === posted) setImmediate(post);
          });
          events.ref();
          post();
        });
        expect(seen).toEqual(Array.from({ length: total }, (_, index) => index));
        events.close();
      });

      it('are not watched once they are closed', () => {
        const { context, channel } = single({ withChannel: true });
        const events = new CompletionEvents(channel as NonNullable<typeof channel>);
        const queue = context.createCompletionQueue(4, channel);
        queue.close();
        expect(thrownBy(() => events.watch(queue, () => {})).code).toBe('QUORATE_CLOSED');
        events.close();
      });

      it('tell apart several queues on one channel', async () => {
        const [a, b] = pair({ withChannel: true });
        if (a.channel === undefined) throw new Error('no channel');
        const second = a.context.createCompletionQueue(16, a.channel);
        const other = a.domain.createQueuePair({ sendCq: second });
        const peer = b.domain.createQueuePair({ sendCq: b.queue });
        peer.toInit({ accessFlags: ALL_ACCESS });
        other.toInit({ accessFlags: ALL_ACCESS });
        peer.toReadyToReceive(other.endpoint());
        other.toReadyToReceive(peer.endpoint());
        peer.toReadyToSend();
        other.toReadyToSend();
        const events = new CompletionEvents(a.channel);
        events.ref();
        const seen: string[] = [];
        await new Promise<void>((resolve) => {
          const note = (name: string) => () => {
            seen.push(name);
            if (seen.length === 2) resolve();
          };
          events.watch(a.queue, note('first'));
          events.watch(second, note('second'));
          other.postSend([transfer(a, b, WrOpcode.RDMA_WRITE, 8)]);
          a.queuePair.postSend([transfer(a, b, WrOpcode.RDMA_WRITE, 8)]);
        });
        expect(seen.sort()).toEqual(['first', 'second']);
        events.close();
      });

      it('announce the flush of a posted receive when the queue pair fails', async () => {
        const [a] = pair({ withChannel: true });
        const { channel } = a;
        if (channel === undefined) throw new Error('no channel');
        a.queuePair.postReceive([{ wrId: 5, localAddress: a.memory.address, length: 8, lkey: a.region.lkey }]);
        a.queue.requestNotify();
        const event = new Promise((resolve) => channel.onEvent(resolve));
        channel.ref();
        a.queuePair.toError();
        expect(await event).toBe(a.queue);
        expect(pollOne(a.queue)).toMatchObject({ wrId: 5, status: WcStatus.WR_FLUSH_ERR });
      });
    });

    describe('closing', () => {
      it('of a parent closes its children, and every later call fails with QUORATE_CLOSED', () => {
        const [a] = pair({ withChannel: true });
        a.context.close();
        for (const object of [a.context, a.domain, a.region, a.queue, a.queuePair]) {
          expect(object.closed, object.kind).toBe(true);
        }
        const calls = [
          () => a.context.queryDevice(),
          () => a.context.allocateProtectionDomain(),
          () => a.domain.createQueuePair({ sendCq: a.queue }),
          () => a.region.rkey,
          () => a.queue.poll(1),
          () => a.queue.requestNotify(),
          () => a.queuePair.query(),
          () => a.queuePair.toError(),
          () => a.queuePair.postSend([]),
          () => a.queuePair.share(),
        ];
        for (const call of calls) expect(thrownBy(call).code, call.toString()).toBe('QUORATE_CLOSED');
        a.context.close();
        a.queuePair.close();
      });

      it('in any order is harmless', () => {
        const orders = [
          (end: End) => [end.memory, end.region, end.queuePair, end.queue, end.domain, end.context],
          (end: End) => [end.queuePair, end.region, end.queue, end.memory, end.context, end.domain],
          (end: End) => [end.domain, end.queue, end.memory, end.context],
          (end: End) => [end.context, end.memory, end.domain, end.queuePair],
        ];
        for (const order of orders) {
          const [a, b] = pair();
          a.queuePair.postSend([transfer(a, b, WrOpcode.RDMA_WRITE, 8)]);
          for (const object of order(a)) object.close();
          for (const object of order(b)) object.close();
        }
      });

      it('of a queue pair that is bound to a PostList makes the list refuse, not crash', () => {
        const [a, b] = pair();
        const list = new PostList(a.queue, { maxWorkRequests: 4, maxCompletions: 8 });
        list.bindQueuePair(0, a.queuePair);
        list.setWorkRequest(0, {
          op: WrOpcode.RDMA_WRITE,
          localAddress: a.memory.address,
          length: 8,
          lkey: a.region.lkey,
          remoteAddress: b.memory.address,
          rkey: b.region.rkey,
        });
        a.queuePair.close();
        expect(list.submit(1, 0, 1)).toBe(1);
        expect(list.completion(0).status).toBe(POST_REFUSED);
        a.queue.close();
        expect(thrownBy(() => list.submit(0, 0, 0)).code).toBe('QUORATE_CLOSED');
        list.close();
        expect(thrownBy(() => list.submit(0, 0, 0)).code).toBe('QUORATE_CLOSED');
      });
    });

    describe('another process', () => {
      async function responder(receive = false): Promise<{ a: End; child: ChildEnd; address: number; rkey: number }> {
        const child = startChild('responder.mjs', [devices[1]]);
        children.push(child);
        const ready = await child.message<{ endpoint: never; address: number; rkey: number }>('ready');
        const a = single();
        a.queuePair.toInit({ accessFlags: ALL_ACCESS });
        child.send({ type: 'connect', endpoint: a.queuePair.endpoint(), receive });
        await child.message('connected');
        a.queuePair.toReadyToReceive(ready.endpoint);
        a.queuePair.toReadyToSend({ timeout: 10, retryCnt: 3, rnrRetry: 1 });
        return { a, child, address: ready.address, rkey: ready.rkey };
      }
      const reach = (a: End, opcode: number, address: number, rkey: number, length: number, more: object = {}) => ({
        opcode: opcode as (typeof WrOpcode)[keyof typeof WrOpcode],
        localAddress: a.memory.address,
        length,
        lkey: a.region.lkey,
        remoteAddress: address,
        rkey,
        ...more,
      });

      it('is written, read and swapped without its taking part', async () => {
        const { a, child, address, rkey } = await responder();
        child.process.kill('SIGSTOP'); // one-sided: not even running is needed
        a.bytes.fill(0x11, 0, 100);
        a.queuePair.postSend([reach(a, WrOpcode.RDMA_WRITE, address + 8, rkey, 100)]);
        expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
        a.bytes.fill(0, 0, 200);
        a.queuePair.postSend([reach(a, WrOpcode.RDMA_READ, address, rkey, 109)]);
        expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
        expect([...a.bytes.subarray(0, 109)]).toEqual([...new Array(8).fill(0), ...new Array(100).fill(0x11), 0]);
        a.queuePair.postSend([
          reach(a, WrOpcode.COMPARE_SWAP, address + 512, rkey, 8, { compareAdd: 0n, swap: 0x0807060504030201n }),
        ]);
        expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
        child.process.kill('SIGCONT');
        child.send({ type: 'bytes', offset: 512, length: 8 });
        const { bytes } = await child.message<{ bytes: number[] }>('bytes');
        expect(bytes).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
        child.send({ type: 'leave' });
        expect(await child.exited()).toMatchObject({ code: 0, stderr: '' });
      });

      it('gets a SEND in its receive', async () => {
        const { a, child } = await responder(true);
        a.bytes.set([4, 5, 6], 0);
        a.queuePair.postSend([reach(a, WrOpcode.SEND_WITH_IMM, 0, 0, 3, { immData: 77 })]);
        expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
        child.send({ type: 'receive' });
        const { completion } = await child.message<{ completion: WorkCompletion }>('received');
        expect(completion).toMatchObject({ wrId: 900, status: WcStatus.SUCCESS, byteLen: 3, immData: 77 });
        child.send({ type: 'leave' });
        expect((await child.exited()).code).toBe(0);
      });

      it('that was killed does not answer: an error completion, and the queue pair is in the error state', async () => {
        const { a, child, address, rkey } = await responder();
        child.kill('SIGKILL');
        await child.exited();
        a.queuePair.postSend([reach(a, WrOpcode.RDMA_WRITE, address, rkey, 8)]);
        // A device may still be dismantling the dead process's regions (REM_ACCESS_ERR) before its queue pairs.
        expect([WcStatus.RETRY_EXC_ERR, WcStatus.REM_ACCESS_ERR]).toContain(pollOne(a.queue).status);
        expect(a.queuePair.state).toBe(QpState.ERR);
      });
    });
  });
}
