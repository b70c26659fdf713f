// Shared receive queues, their limit event, asynchronous events, and multicast: what every device must do.
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { afterEach, describe, expect, it } from 'vitest';
import {
  AsyncEventType,
  asyncEvents,
  type CompletionQueue,
  GRH_BYTES,
  gidToIpv4,
  QpState,
  QpType,
  type QueuePair,
  WcOpcode,
  WcStatus,
  WrOpcode,
} from '#lib/verbs/index.js';
import { ALL_ACCESS, type End, pollFor, pollOne, thrownBy } from './support/ends.js';
import { receive, transfer, usePairs } from './support/pairs.js';

const EINVAL = 22;
const ENOMEM = 12;
const QKEY = 0x0102_0304;
const EVENT_TIMEOUT_MS = 15_000;

export function describeShared(devices: readonly [string, string]): void {
  describe(`shared receive queues on ${[...new Set(devices)].join(' and ')}`, () => {
    const { single } = usePairs(devices);

    /** `count` connections from `a` to queue pairs of `b` that share a receive queue. */
    function shared(count: number, maxWr = 16, type: QpType = QpType.RC) {
      const a = single();
      const b = single();
      const queue: CompletionQueue = b.context.createCompletionQueue(256);
      const srq = b.domain.createSharedReceiveQueue(maxWr);
      const near: QueuePair[] = [];
      const far: QueuePair[] = [];
      for (let i = 0; i < count; i++) {
        const from = a.domain.createQueuePair({ sendCq: a.queue, type });
        const to = b.domain.createQueuePair({ sendCq: queue, srq, type });
        for (const [own, peer] of [
          [from, to],
          [to, from],
        ] as const) {
          own.toInit({ accessFlags: ALL_ACCESS });
          own.toReadyToReceive(peer.endpoint());
          own.toReadyToSend({ timeout: 10, retryCnt: 3, rnrRetry: 1 });
        }
        near.push(from);
        far.push(to);
      }
      const post = (first: number, number: number) =>
        srq.postReceive(Array.from({ length: number }, (_, i) => receive(b, first + i, (first + i) * 64, 64)));
      return { a, b, queue, srq, near, far, post };
    }
    const send = (a: End, b: End, tag: number) => ({
      ...transfer(a, b, 8, { opcode: WrOpcode.SEND }),
      wrId: tag,
      localAddress: a.memory.address + tag * 8,
    });

    it('serve several queue pairs, and each completion tells which', () => {
      const { a, b, queue, near, far, post } = shared(3);
      expect(post(0, 12)).toEqual({ accepted: 12, errno: 0 });
      for (let i = 0; i < 12; i++) a.bytes.fill(i + 1, i * 8, i * 8 + 8);
      for (let i = 0; i < 12; i++) near[i % 3]?.postSend([send(a, b, i)]);
      expect(pollFor(a.queue, 12).every(({ status }) => status === WcStatus.SUCCESS)).toBe(true);
      const received = pollFor(queue, 12);
      expect(received.map(({ wrId }) => wrId).sort((x, y) => x - y)).toEqual([...Array(12).keys()]);
      for (const completion of received) {
        expect(completion).toMatchObject({ status: WcStatus.SUCCESS, opcode: WcOpcode.RECV, byteLen: 8 });
        const connection = far.findIndex(({ number }) => number === completion.qpNum);
        const tag = b.bytes[completion.wrId * 64] as number;
        expect((tag - 1) % 3).toBe(connection);
      }
      expect(queue.poll()).toEqual([]);
    });

    it('take WRITE with immediate data and use receives again and again', () => {
      const { a, b, queue, near, post } = shared(2, 4);
      for (let round = 0; round < 40; round++) {
        expect(post(round % 8, 2).accepted).toBe(2);
        near[0]?.postSend([{ ...transfer(a, b, 16), opcode: WrOpcode.RDMA_WRITE_WITH_IMM, immData: round }]);
        near[1]?.postSend([send(a, b, 0)]);
        pollFor(a.queue, 2);
        const received = pollFor(queue, 2);
        expect(received.map(({ opcode }) => opcode).sort()).toEqual([WcOpcode.RECV, WcOpcode.RECV_RDMA_WITH_IMM]);
        expect(received.find(({ opcode }) => opcode === WcOpcode.RECV_RDMA_WITH_IMM)?.immData).toBe(round);
      }
    });

    it('are full at maxWr, and free again when completions were polled', () => {
      const { a, b, queue, srq, near } = shared(1, 4);
      const { maxWr } = srq;
      expect(maxWr).toBeGreaterThanOrEqual(4);
      const many = Array.from({ length: maxWr + 1 }, (_, i) => receive(b, i, 0, 64));
      expect(srq.postReceive(many)).toEqual({ accepted: maxWr, errno: ENOMEM });
      near[0]?.postSend([send(a, b, 0)]);
      pollOne(a.queue);
      pollOne(queue);
      expect(srq.postReceive([receive(b, 1, 0, 64)])).toEqual({ accepted: 1, errno: 0 });
    });

    it('without a receive left give RNR_RETRY_EXC_ERR', () => {
      const { a, b, near } = shared(1);
      near[0]?.postSend([send(a, b, 0)]);
      expect(pollOne(a.queue).status).toBe(WcStatus.RNR_RETRY_EXC_ERR);
    });

    it('leave their receives to the others when one queue pair fails or is closed', () => {
      const { a, b, queue, near, far, post } = shared(2);
      post(0, 2);
      far[0]?.toError();
      far[0]?.close();
      near[1]?.postSend([send(a, b, 0), send(a, b, 1)]);
      expect(pollFor(a.queue, 2).map(({ status }) => status)).toEqual([0, 0]);
      expect(pollFor(queue, 2).map(({ wrId, status }) => [wrId, status])).toEqual([
        [0, 0],
        [1, 0],
      ]);
    });

    it('raise one event when fewer receives are left than the limit', async () => {
      const { a, b, queue, srq, near, post } = shared(1);
      post(0, 4);
      srq.setLimit(3);
      expect(srq.query().limit).toBe(3);
      near[0]?.postSend([send(a, b, 0)]);
      pollOne(queue);
      expect(b.context.getAsyncEvent()).toBe(null);
      const seen = (async () => {
        for await (const event of asyncEvents(b.context, { signal: AbortSignal.timeout(EVENT_TIMEOUT_MS) })) {
          if (event.type === AsyncEventType.SRQ_LIMIT_REACHED) return event;
        }
        throw new Error('there was no event in time');
      })();
      near[0]?.postSend([send(a, b, 1), send(a, b, 2)]);
      expect(await seen).toMatchObject({ name: 'SRQ_LIMIT_REACHED', object: srq, portNum: 0 });
      pollFor(queue, 2);
      expect(srq.query().limit).toBe(0);
      expect(b.context.getAsyncEvent()).toBe(null);
    });

    it('serve datagrams of UD', () => {
      const a = single({ type: QpType.UD });
      const b = single();
      a.queuePair.toDatagrams({ qkey: QKEY });
      const srq = b.domain.createSharedReceiveQueue(8);
      const targets = [0, 1].map(() => b.domain.createQueuePair({ sendCq: b.queue, srq, type: QpType.UD }));
      srq.postReceive([receive(b, 1, 0, 256), receive(b, 2, 256, 256)]);
      const to = a.domain.createAddressHandle(a.context.addressVectorFor(b.queuePair.endpoint()));
      for (const target of targets) {
        target.toDatagrams({ qkey: QKEY });
        const request = transfer(a, b, 8, { opcode: WrOpcode.SEND, addressHandle: to });
        a.queuePair.postSend([{ ...request, remoteQpNum: target.number, remoteQkey: QKEY }]);
        pollOne(a.queue);
        expect(pollOne(b.queue)).toMatchObject({
          status: WcStatus.SUCCESS,
          byteLen: GRH_BYTES + 8,
          qpNum: target.number,
          srcQpNum: a.queuePair.number,
        });
      }
    });

    it('close with their domain, after their queue pairs, which have no receives of their own', () => {
      const { b, srq, far } = shared(1);
      expect(far[0]?.postReceive([receive(b, 0, 0, 8)])).toEqual({ accepted: 0, errno: EINVAL });
      expect(thrownBy(() => srq.setLimit(srq.maxWr + 1)).code).toBe('QUORATE_OUT_OF_RANGE');
      expect(thrownBy(() => b.domain.createSharedReceiveQueue(0)).code).toBe('QUORATE_OUT_OF_RANGE');
      b.domain.close();
      expect(srq.closed).toBe(true);
      expect(far[0]?.closed).toBe(true);
      expect(thrownBy(() => srq.postReceive([])).code).toBe('QUORATE_CLOSED');
    });
  });

  describe(`asynchronous events on ${[...new Set(devices)].join(' and ')}`, () => {
    const { single } = usePairs(devices);

    it('are none at first; the iteration ends when the signal aborts', async () => {
      const { context } = single();
      expect(context.getAsyncEvent()).toBe(null);
      const controller = new AbortController();
      setImmediate(() => controller.abort());
      const seen: unknown[] = [];
      for await (const event of asyncEvents(context, { signal: controller.signal })) seen.push(event);
      expect(seen).toEqual([]);
      for await (const event of asyncEvents(context, { signal: AbortSignal.abort() })) seen.push(event);
      expect(seen).toEqual([]);
    });

    it('have one iteration at a time, which a second one does not disturb', async () => {
      const { context } = single();
      const controller = new AbortController();
      const first = asyncEvents(context, { signal: controller.signal }).next();
      await expect(asyncEvents(context).next()).rejects.toMatchObject({ code: 'QUORATE_INVALID_ARGUMENT' });
      controller.abort();
      expect((await first).done).toBe(true);
      setImmediate(() => context.close());
      expect((await asyncEvents(context).next()).done).toBe(true);
    });

    it('end the iteration when the context is closed', async () => {
      const { context } = single();
      setImmediate(() => context.close());
      for await (const event of asyncEvents(context)) throw new Error(`an event of nothing: ${event.name}`);
      expect(thrownBy(() => context.getAsyncEvent()).code).toBe('QUORATE_CLOSED');
    });

    it('are watched only where they were asked for', () => {
      const { context } = single();
      expect(thrownBy(() => context.ref()).code).toBe('QUORATE_INVALID_ARGUMENT');
      context.onAsyncEvent(() => {});
      context.ref();
      context.unref();
      context.onAsyncEvent(null);
      expect(thrownBy(() => context.ref()).code).toBe('QUORATE_INVALID_ARGUMENT');
    });
  });

  describe(`multicast on ${[...new Set(devices)].join(' and ')}`, () => {
    const { single } = usePairs(devices);
    const sockets: Socket[] = [];
    afterEach(() => {
      for (const socket of sockets.splice(0)) socket.close();
    });

    /** A group, and its second one, that the ends' networks carry. On RoCE v2 their interfaces have to join it. */
    async function groups(...ends: End[]): Promise<[string, string]> {
      const addresses = ends.map(({ context }) => gidToIpv4(context.chooseGid().gid));
      if (addresses.every((address) => address === undefined)) return ['ff0e::5:1', 'ff0e::5:2'];
      for (const address of addresses) {
        const socket = createSocket('udp4');
        sockets.push(socket);
        socket.bind(0);
        await once(socket, 'listening');
        for (const group of ['239.78.5.1', '239.78.5.2']) socket.addMembership(group, address);
      }
      return ['239.78.5.1', '239.78.5.2'];
    }
    function datagramEnd(): End {
      const end = single({ type: QpType.UD });
      end.queuePair.toDatagrams({ qkey: QKEY });
      return end;
    }
    function sendTo(from: End, group: string, length: number): void {
      const av = { ...from.context.addressVectorFor({ gid: group, lid: 0 }), hopLimit: 1 };
      const addressHandle = from.domain.createAddressHandle(av);
      const request = transfer(from, from, length, { opcode: WrOpcode.SEND, addressHandle });
      from.queuePair.postSend([{ ...request, remoteQpNum: 0xff_ffff, remoteQkey: QKEY }]);
      expect(pollOne(from.queue).status).toBe(WcStatus.SUCCESS);
    }

    it('reaches the queue pairs that are attached to the group, and no others', async () => {
      const a = datagramEnd();
      const b = datagramEnd();
      const [group, other] = await groups(a, b);
      const second = b.domain.createQueuePair({ sendCq: b.queue, type: QpType.UD });
      second.toDatagrams({ qkey: QKEY });
      b.queuePair.postReceive([receive(b, 1, 0, 256), receive(b, 2, 256, 256)]);
      second.postReceive([receive(b, 3, 512, 256)]);
      b.queuePair.attachMulticast(group);
      second.attachMulticast(group);
      a.bytes.fill(0x3c, 0, 20);
      sendTo(a, other, 4); // nobody is attached to it
      sendTo(a, group, 20);
      const received = pollFor(b.queue, 2);
      expect(received.map(({ wrId }) => wrId).sort()).toEqual([1, 3]);
      for (const { byteLen, srcQpNum } of received) {
        expect([byteLen, srcQpNum]).toEqual([GRH_BYTES + 20, a.queuePair.number]);
      }
      expect(b.bytes[512 + GRH_BYTES]).toBe(0x3c);
      second.detachMulticast(group);
      sendTo(a, group, 8);
      expect(pollOne(b.queue)).toMatchObject({ wrId: 2, byteLen: GRH_BYTES + 8 });
      expect(second.state).toBe(QpState.RTS);
      b.queuePair.close(); // while it is attached
    });

    it('refuses groups that are none, other types of queue pairs, and what is not attached', async () => {
      const a = datagramEnd();
      const [group] = await groups(a);
      const connected = single();
      expect(thrownBy(() => connected.queuePair.attachMulticast(group)).code).toBe('QUORATE_INVALID_ARGUMENT');
      expect(thrownBy(() => a.queuePair.attachMulticast('nonsense')).code).toBe('QUORATE_INVALID_ARGUMENT');
      expect(thrownBy(() => a.queuePair.attachMulticast('fe80::1')).code).toMatch(
        /^QUORATE_(INVALID_ARGUMENT|SYSTEM)$/,
      );
      expect(thrownBy(() => a.queuePair.detachMulticast(group)).code).toBe('QUORATE_INVALID_ARGUMENT');
      a.queuePair.attachMulticast(group);
      expect(thrownBy(() => a.queuePair.attachMulticast(group)).code).toBe('QUORATE_INVALID_ARGUMENT');
      a.queuePair.detachMulticast(group);
      expect(thrownBy(() => a.queuePair.detachMulticast(group)).code).toBe('QUORATE_INVALID_ARGUMENT');
    });
  });
}
