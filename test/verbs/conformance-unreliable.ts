// UC and UD queue pairs and address handles: what every device must do. That a message was dropped is proven without
// waiting for nothing: a second message that is taken follows it, and arrives first.
import { describe, expect, it } from 'vitest';
import {
  GRH_BYTES,
  PostList,
  QpState,
  QpType,
  SendFlags,
  WC,
  WC_GRH,
  WC_WITH_IMM,
  WcOpcode,
  WcStatus,
  type WorkCompletion,
  WrOpcode,
} from '#lib/verbs/index.js';
import { ALL_ACCESS, type End, pollFor, pollOne, thrownBy } from './support/ends.js';
import { receive, transfer, usePairs } from './support/pairs.js';

const WAIT_NS = 5e9;
const EINVAL = 22;
const EBADF = 9;
const QKEY = 0x1234_5678;

export function describeUnreliable(devices: readonly [string, string]): void {
  describe(`unreliable connections (UC) on ${[...new Set(devices)].join(' and ')}`, () => {
    const { pair: anyPair, single } = usePairs(devices);
    const pair = (): [End, End] => anyPair({ type: QpType.UC });

    it('have the type and states of UC', () => {
      const a = single({ type: QpType.UC });
      const b = single({ type: QpType.UC });
      expect(a.queuePair.type).toBe(QpType.UC);
      a.queuePair.toInit({ accessFlags: ALL_ACCESS });
      a.queuePair.toReadyToReceive(b.queuePair.endpoint());
      expect(thrownBy(() => a.queuePair.modify({ state: QpState.RTS, sqPsn: 1, timeout: 10 })).code).toBe(
        'QUORATE_QP_STATE',
      );
      a.queuePair.toReadyToSend();
      expect(a.queuePair.query()).toMatchObject({ state: QpState.RTS, destQpNum: b.queuePair.number });
    });

    it('carry SEND and WRITE with and without immediate data', () => {
      const [a, b] = pair();
      a.bytes.fill(0x31, 0, 5000);
      b.queuePair.postReceive([receive(b, 1, 0, 64), receive(b, 2, 64, 64), receive(b, 3, 128, 64)]);
      a.queuePair.postSend([
        transfer(a, b, 5000),
        transfer(a, b, 8, { opcode: WrOpcode.SEND }),
        transfer(a, b, 9, { opcode: WrOpcode.SEND_WITH_IMM, immData: 4 }),
        transfer(a, b, 10, { opcode: WrOpcode.RDMA_WRITE_WITH_IMM, immData: 5 }),
      ]);
      expect(pollFor(a.queue, 4).map(({ status }) => status)).toEqual([0, 0, 0, 0]);
      expect(pollFor(b.queue, 3)).toMatchObject([
        { wrId: 1, status: 0, opcode: WcOpcode.RECV, byteLen: 8 },
        { wrId: 2, status: 0, opcode: WcOpcode.RECV, byteLen: 9, immData: 4 },
        { wrId: 3, status: 0, opcode: WcOpcode.RECV_RDMA_WITH_IMM, byteLen: 10, immData: 5 },
      ]);
      expect(b.bytes.subarray(4096, 9096).every((byte) => byte === 0x31)).toBe(true);
    });

    it('have neither READ nor atomics', () => {
      const [a, b] = pair();
      for (const opcode of [WrOpcode.RDMA_READ, WrOpcode.COMPARE_SWAP, WrOpcode.FETCH_ADD]) {
        expect(a.queuePair.postSend([transfer(a, b, 8, { opcode })])).toEqual({ accepted: 0, errno: EINVAL });
      }
    });

    it('drop what the responder must not take, report success, and go on', () => {
      const [a, b] = pair();
      const before = Buffer.from(b.bytes);
      const denied = [
        transfer(a, b, 8, { rkey: (b.region.rkey ^ 0x5555) >>> 0 }),
        transfer(a, b, 64, { remoteAddress: b.memory.address + b.memory.length - 63 }),
        transfer(a, b, 8, { opcode: WrOpcode.SEND }), // no receive is posted
      ];
      for (const request of denied) {
        a.queuePair.postSend([request]);
        expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
      }
      expect(a.queuePair.state).toBe(QpState.RTS);
      a.bytes.fill(0x77, 0, 8);
      a.queuePair.postSend([transfer(a, b, 8)]);
      expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
      // The requests before were on the same connection, so they have been judged when this one has arrived.
      b.queuePair.postReceive([receive(b, 9, 0, 64)]);
      a.queuePair.postSend([transfer(a, b, 0, { opcode: WrOpcode.SEND })]);
      expect(pollOne(b.queue)).toMatchObject({ wrId: 9, byteLen: 0 });
      before.fill(0x77, 4096, 4104);
      expect(Buffer.compare(b.bytes, before)).toBe(0);
      expect(b.queuePair.state).toBe(QpState.RTS);
    });

    it('report success for a peer that is gone', () => {
      const [a, b] = pair();
      b.queuePair.close();
      a.queuePair.postSend([transfer(a, b, 8)]);
      expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
      expect(a.queuePair.state).toBe(QpState.RTS);
    });

    it('stop sending after a local error, and flush', () => {
      const [a, b] = pair();
      const wrong = transfer(a, b, 8, { lkey: (a.region.lkey ^ 0x5555) >>> 0 });
      a.queuePair.postSend([wrong]);
      expect([WcStatus.LOC_PROT_ERR, WcStatus.LOC_QP_OP_ERR]).toContain(pollOne(a.queue).status);
      // The specification stops the send queue only (SQE); SoftRoCE stops the queue pair.
      expect([QpState.SQE, QpState.ERR]).toContain(a.queuePair.state);
      a.queuePair.postSend([transfer(a, b, 8)]);
      expect(pollOne(a.queue).status).toBe(WcStatus.WR_FLUSH_ERR);
    });
  });

  describe(`datagrams (UD) on ${[...new Set(devices)].join(' and ')}`, () => {
    const { single } = usePairs(devices);

    function datagramEnd(qkey = QKEY): End {
      const end = single({ type: QpType.UD, cap: { maxInlineData: 64 } });
      end.queuePair.toDatagrams({ qkey });
      return end;
    }
    function handleTo(from: End, to: End) {
      return from.domain.createAddressHandle(from.context.addressVectorFor(to.queuePair.endpoint()));
    }
    function message(a: End, b: End, length: number, more: object = {}) {
      return {
        wrId: 7,
        opcode: WrOpcode.SEND as (typeof WrOpcode)[keyof typeof WrOpcode],
        localAddress: a.memory.address,
        length,
        lkey: a.region.lkey,
        remoteQpNum: b.queuePair.number,
        remoteQkey: QKEY,
        ...more,
      };
    }
    /** Posts, and expects success: nothing else is ever said of a datagram. */
    function sendAll(a: End, ...requests: Parameters<End['queuePair']['postSend']>[0]): void {
      expect(a.queuePair.postSend(requests)).toEqual({ accepted: requests.length, errno: 0 });
      for (const completion of pollFor(a.queue, requests.length)) expect(completion.status).toBe(WcStatus.SUCCESS);
    }

    it('have the type, states and qkey of UD', () => {
      const { queuePair } = single({ type: QpType.UD });
      expect(queuePair.type).toBe(QpType.UD);
      expect(thrownBy(() => queuePair.modify({ state: QpState.INIT, portNum: 1, pkeyIndex: 0 })).message).toMatch(
        /QKEY/,
      );
      queuePair.toInit({ qkey: 5 });
      expect(queuePair.state).toBe(QpState.INIT);
      expect(
        thrownBy(() => queuePair.modify({ state: QpState.RTR, destQpNum: 5, pathMtuBytes: 1024 })).message,
      ).toMatch(/DEST_QPN/);
      queuePair.modify({ state: QpState.RTR });
      queuePair.modify({ state: QpState.RTS, sqPsn: 100 });
      expect(queuePair.query()).toMatchObject({ state: QpState.RTS, qkey: 5 });
      queuePair.modify({ qkey: 6 });
      expect(queuePair.query().qkey).toBe(6);
    });

    it('arrive behind the routing header, with their sender', () => {
      const a = datagramEnd();
      const b = datagramEnd();
      const addressHandle = handleTo(a, b);
      b.bytes.fill(0xee, 0, 512);
      b.queuePair.postReceive([receive(b, 1, 0, 256), receive(b, 2, 256, 256)]);
      a.bytes.set([9, 8, 7], 0);
      sendAll(
        a,
        message(a, b, 3, { addressHandle }),
        message(a, b, 2, { addressHandle, opcode: WrOpcode.SEND_WITH_IMM, immData: 0xabcd_ef01 }),
      );
      const [first, second] = pollFor(b.queue, 2) as [WorkCompletion, WorkCompletion];
      expect(first).toMatchObject({
        wrId: 1,
        status: WcStatus.SUCCESS,
        opcode: WcOpcode.RECV,
        byteLen: GRH_BYTES + 3,
        srcQpNum: a.queuePair.number,
        qpNum: b.queuePair.number,
      });
      expect(first.wcFlags & WC_GRH).toBe(WC_GRH);
      expect([...b.bytes.subarray(GRH_BYTES, GRH_BYTES + 4)]).toEqual([9, 8, 7, 0xee]);
      expect(second).toMatchObject({ wrId: 2, byteLen: GRH_BYTES + 2, immData: 0xabcd_ef01 });
      expect(second.wcFlags & WC_WITH_IMM).toBe(WC_WITH_IMM);
    });

    it('can be answered with an address handle made from the completion', () => {
      const a = datagramEnd();
      const b = datagramEnd();
      b.queuePair.postReceive([receive(b, 1, 128, 256)]);
      a.queuePair.postReceive([receive(a, 2, 512, 256)]);
      sendAll(a, message(a, b, 8, { addressHandle: handleTo(a, b) }));
      const received = pollOne(b.queue);
      const back = b.domain.createAddressHandleFromCompletion(received, b.memory, 128);
      expect(back.attributes).toMatchObject({ isGlobal: true, dgid: a.queuePair.endpoint().gid });
      b.bytes.fill(0x2f, 0, 8);
      sendAll(b, message(b, a, 8, { addressHandle: back, remoteQpNum: received.srcQpNum }));
      expect(pollOne(a.queue)).toMatchObject({ wrId: 2, byteLen: GRH_BYTES + 8, srcQpNum: b.queuePair.number });
      expect(a.bytes.subarray(512 + GRH_BYTES, 512 + GRH_BYTES + 8).every((byte) => byte === 0x2f)).toBe(true);
      expect(thrownBy(() => b.domain.createAddressHandleFromCompletion(received, b.memory, b.memory.length)).code).toBe(
        'QUORATE_OUT_OF_RANGE',
      );
    });

    it('with a wrong qkey, for another queue pair, or without a receive are dropped without a trace', () => {
      const a = datagramEnd();
      const b = datagramEnd();
      const addressHandle = handleTo(a, b);
      sendAll(a, message(a, b, 8, { addressHandle })); // nothing is posted for it
      b.queuePair.postReceive([receive(b, 1, 0, 256), receive(b, 2, 256, 256)]);
      sendAll(
        a,
        message(a, b, 8, { addressHandle, remoteQkey: QKEY + 1 }),
        message(a, b, 8, { addressHandle, remoteQpNum: 0xff_fffe }),
        message(a, b, 1, { addressHandle }),
      );
      expect(pollOne(b.queue)).toMatchObject({ wrId: 1, byteLen: GRH_BYTES + 1 });
      expect([a.queuePair.state, b.queuePair.state]).toEqual([QpState.RTS, QpState.RTS]);
    });

    it("take the sender's own qkey if the request's has its highest bit set", () => {
      const a = datagramEnd();
      const b = datagramEnd();
      b.queuePair.postReceive([receive(b, 1, 0, 256)]);
      const addressHandle = handleTo(a, b);
      sendAll(a, message(a, b, 5, { addressHandle, remoteQkey: 0x8000_0000 }), message(a, b, 6, { addressHandle }));
      // SoftRoCE sends the request's as it is, so that the first one is dropped.
      const taken = a.context.device.driver === 'rxe' ? 6 : 5;
      expect(pollOne(b.queue)).toMatchObject({ wrId: 1, byteLen: GRH_BYTES + taken });
    });

    it('that do not fit the posted receive are dropped', () => {
      const a = datagramEnd();
      const b = datagramEnd();
      const addressHandle = handleTo(a, b);
      b.queuePair.postReceive([receive(b, 1, 0, GRH_BYTES + 16), receive(b, 2, 256, 512)]);
      b.bytes.fill(0xee, 0, 256);
      sendAll(a, message(a, b, 17, { addressHandle }), message(a, b, 16, { addressHandle }));
      // SoftRoCE drops it with an error completion of the receive, others keep the receive for the next message.
      const first = pollOne(b.queue);
      expect(first.wrId).toBe(1);
      if (first.status === WcStatus.SUCCESS) expect(first.byteLen).toBe(GRH_BYTES + 16);
      expect(b.bytes[GRH_BYTES + 16]).toBe(0xee);
    });

    it('come inline, in batches, and from several senders', () => {
      const a = datagramEnd();
      const b = datagramEnd();
      const c = datagramEnd();
      const flags = SendFlags.SIGNALED | SendFlags.INLINE;
      b.queuePair.postReceive(Array.from({ length: 12 }, (_, i) => receive(b, i, i * 256, 256)));
      for (const [tag, end] of [
        [1, a],
        [2, c],
      ] as const) {
        const addressHandle = handleTo(end, b);
        end.bytes.fill(tag, 0, 32);
        const batch = Array.from({ length: 6 }, (_, i) =>
          message(end, b, 32, { addressHandle, lkey: 0, sendFlags: flags, opcode: WrOpcode.SEND_WITH_IMM, immData: i }),
        );
        sendAll(end, ...batch);
      }
      const received = pollFor(b.queue, 12);
      for (const [tag, end] of [
        [1, a],
        [2, c],
      ] as const) {
        const own = received.filter(({ srcQpNum }) => srcQpNum === end.queuePair.number);
        expect(own.map(({ immData }) => immData)).toEqual([0, 1, 2, 3, 4, 5]);
        for (const { wrId } of own) expect(b.bytes[wrId * 256 + GRH_BYTES]).toBe(tag);
      }
    });

    it('go through a PostList, which tells the sender of received ones', () => {
      const a = datagramEnd();
      const b = datagramEnd();
      b.queuePair.postReceive([receive(b, 1, 0, 256)]);
      const list = new PostList(a.queue, { maxWorkRequests: 2, maxCompletions: 4 });
      list.bindQueuePair(0, a.queuePair);
      list.bindAddressHandle(5, handleTo(a, b));
      const fields = {
        op: WrOpcode.SEND,
        localAddress: a.memory.address,
        length: 24,
        lkey: a.region.lkey,
        remoteQpNum: b.queuePair.number,
        remoteQkey: QKEY,
      };
      list.setWorkRequest(0, { ...fields, wrId: 1, addressHandle: 5 });
      list.setWorkRequest(1, { ...fields, wrId: 2, addressHandle: 6 }); // nothing is bound there
      let completions = list.submit(2, WAIT_NS, 2);
      const status = new Map<number, number>();
      for (;;) {
        for (let i = 0; i < completions; i++) status.set(list.completion(i).wrId, list.completion(i).status);
        if (status.size === 2) break;
        completions = list.submit(0, WAIT_NS, 1);
      }
      expect(Object.fromEntries(status)).toEqual({ 1: 0, 2: 1000 });
      const receiver = new PostList(b.queue, { maxWorkRequests: 1, maxCompletions: 4 });
      expect(receiver.submit(0, WAIT_NS, 1)).toBe(1);
      expect(receiver.completions[WC.srcQpNum]).toBe(a.queuePair.number);
      expect(receiver.completions[WC.byteLen]).toBe(GRH_BYTES + 24);
    });

    it('need an address handle that is open and of the same domain', () => {
      const a = datagramEnd();
      const b = datagramEnd();
      expect(a.queuePair.postSend([message(a, b, 8)])).toEqual({ accepted: 0, errno: EINVAL });
      const foreign = handleTo(b, a);
      expect(a.queuePair.postSend([message(a, b, 8, { addressHandle: foreign })])).toEqual({
        accepted: 0,
        errno: EINVAL,
      });
      for (const opcode of [WrOpcode.RDMA_WRITE, WrOpcode.RDMA_READ, WrOpcode.FETCH_ADD]) {
        const request = message(a, b, 8, { addressHandle: handleTo(a, b), opcode });
        expect(a.queuePair.postSend([request])).toEqual({ accepted: 0, errno: EINVAL });
      }
      const own = handleTo(a, b);
      const list = new PostList(a.queue, { maxWorkRequests: 1, maxCompletions: 4 });
      list.bindQueuePair(0, a.queuePair);
      list.bindAddressHandle(0, own);
      own.close();
      expect(thrownBy(() => a.queuePair.postSend([message(a, b, 8, { addressHandle: own })])).code).toBe(
        'QUORATE_CLOSED',
      );
      list.setWorkRequest(0, { op: WrOpcode.SEND, remoteQpNum: b.queuePair.number, remoteQkey: QKEY });
      expect(list.submit(1, 0, 1)).toBe(1);
      expect(list.completion(0)).toMatchObject({ status: 1000, vendorErr: EBADF });
    });

    it('have address handles that close with their domain and refuse what is no address', () => {
      const a = datagramEnd();
      const b = datagramEnd();
      const handle = handleTo(a, b);
      expect(thrownBy(() => a.domain.createAddressHandle({ dgid: 'nonsense' })).code).toBe('QUORATE_INVALID_ARGUMENT');
      expect(thrownBy(() => a.domain.createAddressHandle({ dgid: handle.attributes.dgid, portNum: 99 })).code).toMatch(
        /^QUORATE_(OUT_OF_RANGE|INVALID_ARGUMENT)$/,
      );
      a.queuePair.close();
      a.domain.close();
      expect(handle.closed).toBe(true);
      expect(thrownBy(() => handle.attributes).code).toBe('QUORATE_CLOSED');
    });
  });
}
