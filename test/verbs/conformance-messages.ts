// Immediate data, inline data, solicited events and fences on reliable connections: what every device must do with the
// opcodes and flags of ibv_post_send(3) that conformance.ts does not cover.
import { describe, expect, it } from 'vitest';
import { checksum, PostList, SendFlags, WC, WC_WITH_IMM, WcOpcode, WcStatus, WrOpcode } from '#lib/verbs/index.js';
import { pollFor, pollOne } from './support/ends.js';
import { receive, transfer, usePairs } from './support/pairs.js';

const WAIT_NS = 5e9;
const { SIGNALED, SOLICITED, INLINE, FENCE, CHECKSUM, CHECKSUM_CONTINUED } = SendFlags;
const EINVAL = 22;

export function describeMessages(devices: readonly [string, string]): void {
  describe(`messages on ${[...new Set(devices)].join(' and ')}`, () => {
    const { pair } = usePairs(devices);

    it('WRITE with immediate consumes a receive, reports the length of the WRITE and leaves the buffer alone', () => {
      const [a, b] = pair();
      b.bytes.fill(0xee, 0, 128);
      b.queuePair.postReceive([receive(b, 1, 0, 128)]);
      a.bytes.fill(0x42, 0, 3000);
      a.queuePair.postSend([transfer(a, b, 3000, { opcode: WrOpcode.RDMA_WRITE_WITH_IMM, immData: 0xffff_ffff })]);
      expect(pollOne(a.queue)).toMatchObject({ status: WcStatus.SUCCESS, opcode: WcOpcode.RDMA_WRITE });
      const received = pollOne(b.queue);
      expect(received).toMatchObject({
        wrId: 1,
        status: WcStatus.SUCCESS,
        opcode: WcOpcode.RECV_RDMA_WITH_IMM,
        byteLen: 3000,
        immData: 0xffff_ffff,
      });
      expect(received.wcFlags & WC_WITH_IMM).toBe(WC_WITH_IMM);
      expect(b.bytes.subarray(4096, 4096 + 3000).every((byte) => byte === 0x42)).toBe(true);
      expect(b.bytes.subarray(0, 128).every((byte) => byte === 0xee)).toBe(true);
    });

    it('immediate data goes with an empty message', () => {
      const [a, b] = pair();
      b.queuePair.postReceive([{ wrId: 1 }, { wrId: 2 }]);
      a.queuePair.postSend([
        { opcode: WrOpcode.SEND_WITH_IMM, immData: 11 },
        { opcode: WrOpcode.RDMA_WRITE_WITH_IMM, immData: 12 },
      ]);
      expect(pollFor(b.queue, 2).map(({ wrId, immData, byteLen }) => [wrId, immData, byteLen])).toEqual([
        [1, 11, 0],
        [2, 12, 0],
      ]);
    });

    it('a plain SEND has no immediate data', () => {
      const [a, b] = pair();
      b.queuePair.postReceive([receive(b, 1, 0, 64)]);
      a.queuePair.postSend([transfer(a, b, 8, { opcode: WrOpcode.SEND, immData: 5 })]);
      const received = pollOne(b.queue);
      expect(received.wcFlags & WC_WITH_IMM).toBe(0);
      expect(received.immData).toBe(0);
    });

    it.each([
      ['SEND', WrOpcode.SEND],
      ['SEND_WITH_IMM', WrOpcode.SEND_WITH_IMM],
      ['RDMA_WRITE_WITH_IMM', WrOpcode.RDMA_WRITE_WITH_IMM],
    ])('INLINE %s takes its data when it is posted', (_name, opcode) => {
      const [a, b] = pair({ cap: { maxInlineData: 64 } });
      b.queuePair.postReceive([receive(b, 1, 4096, 64)]);
      a.bytes.fill(0x17, 0, 64);
      a.queuePair.postSend([transfer(a, b, 64, { opcode, lkey: 0, sendFlags: SIGNALED | INLINE })]);
      a.bytes.fill(0, 0, 64);
      expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
      expect(pollOne(b.queue)).toMatchObject({ status: WcStatus.SUCCESS, byteLen: 64 });
      expect(b.bytes.subarray(4096, 4160).every((byte) => byte === 0x17)).toBe(true);
    });

    it('INLINE beyond the capability, and flags that do not exist, are refused', () => {
      const [a, b] = pair({ cap: { maxInlineData: 32 } });
      const { maxInlineData } = a.queuePair.capabilities;
      expect(maxInlineData).toBeGreaterThanOrEqual(32);
      const refused = a.queuePair.postSend([transfer(a, b, maxInlineData + 1, { sendFlags: SIGNALED | INLINE })]);
      expect(refused).toEqual({ accepted: 0, errno: EINVAL });
      expect(() => a.queuePair.postSend([transfer(a, b, 8, { sendFlags: 16 })])).toThrow(RangeError);
    });

    it('a queue that is armed for solicited completions wakes for those only', () => {
      const [a, b] = pair({ withChannel: true });
      b.queuePair.postReceive([receive(b, 1, 0, 64), receive(b, 2, 64, 64), receive(b, 3, 128, 64)]);
      b.queue.requestNotify(true);
      a.queuePair.postSend([
        transfer(a, b, 8, { opcode: WrOpcode.SEND }),
        transfer(a, b, 8, { opcode: WrOpcode.RDMA_WRITE_WITH_IMM }),
      ]);
      expect(pollFor(b.queue, 2).map((completion) => completion.wrId)).toEqual([1, 2]);
      expect(b.channel?.getEvent()).toBe(null);
      a.queuePair.postSend([transfer(a, b, 8, { opcode: WrOpcode.SEND, sendFlags: SIGNALED | SOLICITED })]);
      expect(pollOne(b.queue).wrId).toBe(3);
      expect(b.channel?.getEvent()).toBe(b.queue);
      expect(b.channel?.getEvent()).toBe(null);
    });

    it('a fenced WRITE sends what the READ before it has fetched', () => {
      const [a, b] = pair();
      for (let round = 1; round <= 20; round++) {
        b.bytes.fill(round, 4096, 4096 + 1000);
        const read = transfer(a, b, 1000, { opcode: WrOpcode.RDMA_READ });
        const write = { ...transfer(a, b, 1000), remoteAddress: b.memory.address + 16_384 };
        a.queuePair.postSend([read, { ...write, sendFlags: SIGNALED | FENCE }]);
        expect(pollFor(a.queue, 2).map((completion) => completion.status)).toEqual([0, 0]);
        expect(b.bytes.subarray(16_384, 17_384).every((byte) => byte === round)).toBe(true);
      }
    });

    it('a READ brings the checksum of what it read, and of what came before, or is refused where the device has none', () => {
      const [a, b] = pair({ cap: { maxSendSge: 2 } });
      for (let at = 0; at < b.bytes.length; at++) b.bytes[at] = (at * 7919) >>> 4;
      const read = (from: number, length: number, sendFlags: number, more: object = {}) => ({
        ...transfer(a, b, length, { opcode: WrOpcode.RDMA_READ, sendFlags, ...more }),
        remoteAddress: b.memory.address + from,
      });
      const begun = read(5, 3001, CHECKSUM, { checksumBefore: 2 ** 53 - 1 });
      if (!a.context.checksummedReads) {
        expect(a.queuePair.postSend([begun])).toEqual({ accepted: 0, errno: EINVAL });
        return;
      }
      const { lkey } = a.region;
      const sges = [1, 900].map((length) => ({ address: a.memory.address + 8192 + length, length, lkey }));
      const { localAddress: _, length: __, lkey: ___, ...scattered } = read(8, 0, CHECKSUM | CHECKSUM_CONTINUED);
      a.queuePair.postSend([
        begun,
        read(4096, 4096, CHECKSUM | CHECKSUM_CONTINUED),
        read(0, 16, 0),
        { ...scattered, sges, sendFlags: CHECKSUM | CHECKSUM_CONTINUED | SIGNALED },
        read(64, 64, CHECKSUM | SIGNALED),
        read(0, 0, CHECKSUM | CHECKSUM_CONTINUED | SIGNALED),
        read(64, 64, SIGNALED),
      ]);
      const [all, alone, empty, without] = pollFor(a.queue, 4);
      const places = [
        [5, 3001],
        [4096, 4096],
        [8, 901],
      ] as const;
      const pieces = places.map(([from, length]) => b.bytes.subarray(from, from + length));
      expect(all).toMatchObject({ status: WcStatus.SUCCESS, checksum: checksum(pieces, 2 ** 53 - 1) });
      expect(alone?.checksum).toBe(checksum(b.bytes.subarray(64, 128), 0));
      expect(empty?.checksum).toBe(alone?.checksum);
      expect(without?.checksum).toBeUndefined();
      expect(a.bytes.subarray(8192 + 900, 8192 + 1800)).toEqual(b.bytes.subarray(9, 909));
    });

    it('a checksum is of READs only, and goes on only where it is asked for', () => {
      const [a, b] = pair();
      for (const [opcode, sendFlags] of [
        [WrOpcode.RDMA_WRITE, CHECKSUM],
        [WrOpcode.SEND, CHECKSUM],
        [WrOpcode.RDMA_READ, CHECKSUM_CONTINUED],
      ] as const) {
        const refused = a.queuePair.postSend([transfer(a, b, 8, { opcode, sendFlags })]);
        expect(refused).toEqual({ accepted: 0, errno: EINVAL });
      }
      const before = transfer(a, b, 8, { opcode: WrOpcode.RDMA_READ, sendFlags: CHECKSUM, checksumBefore: 2 ** 53 });
      expect(() => a.queuePair.postSend([before])).toThrow(RangeError);
    });

    it('a PostList carries immediate data and flags', () => {
      const [a, b] = pair({ withChannel: true, cap: { maxInlineData: 32 } });
      b.queuePair.postReceive([receive(b, 1, 0, 64)]);
      b.queue.requestNotify(true);
      const list = new PostList(a.queue, { maxWorkRequests: 1, maxCompletions: 4 });
      list.bindQueuePair(0, a.queuePair);
      list.bindMemory(0, a.memory);
      list.setWorkRequest(0, {
        op: WrOpcode.SEND_WITH_IMM,
        wrId: 3,
        localAddress: a.memory.address,
        length: 16,
        immData: 0x8000_0001,
        sendFlags: SOLICITED | INLINE,
      });
      expect(list.submit(1, WAIT_NS, 1)).toBe(1);
      expect(list.completion(0)).toMatchObject({ wrId: 3, status: 0, opcode: WcOpcode.SEND });
      expect(pollOne(b.queue)).toMatchObject({ wrId: 1, byteLen: 16, immData: 0x8000_0001 });
      expect(b.channel?.getEvent()).toBe(b.queue);
      const receiver = new PostList(b.queue, { maxWorkRequests: 1, maxCompletions: 4 });
      b.queuePair.postReceive([receive(b, 2, 0, 64)]);
      expect(list.submit(1, WAIT_NS, 1)).toBe(1);
      expect(receiver.submit(0, WAIT_NS, 1)).toBe(1);
      expect(receiver.completions[WC.immData]).toBe(0x8000_0001);
      expect(receiver.completions[WC.opcode]).toBe(WcOpcode.RECV);
    });
  });
}
