// Memory windows of both types, and re-registration: what a right on memory allows, and that it ends. A case that needs
// what the device lacks checks that the device says so.
import { describe, expect, it } from 'vitest';
import {
  Access,
  type MemoryWindow,
  nextRkey,
  QpState,
  type WcStatus as Status,
  WC_WITH_INV,
  WcOpcode,
  WcStatus,
  WrOpcode,
} from '#lib/verbs/index.js';
import { ALL_ACCESS, type End, pollOne, thrownBy } from './support/ends.js';
import { receive, transfer, usePairs } from './support/pairs.js';

const WINDOW_BYTES = 4096;
const WINDOW_ACCESS = Access.REMOTE_WRITE | Access.REMOTE_READ;
const FLUSHES = [WcStatus.WR_FLUSH_ERR, WcStatus.RETRY_EXC_ERR] as Status[];
/** How a request that binds or unbinds and must not is reported: as the specification has it, or as SoftRoCE has it. */
const BIND_FAILURES = [WcStatus.MW_BIND_ERR, WcStatus.LOC_QP_OP_ERR] as Status[];

export function describeWindows(devices: readonly [string, string]): void {
  describe(`memory windows on ${[...new Set(devices)].join(' and ')}`, () => {
    const { pair, single } = usePairs(devices);
    const windowPair = () => pair({ access: ALL_ACCESS | Access.MW_BIND });

    /** Binds 4 KiB at 4096 of the end's memory; the completion must say so. */
    function bind2(b: End, window: MemoryWindow, more: object = {}): number {
      const rkey = nextRkey(window.rkey);
      const bind = {
        memoryWindow: window,
        rkey,
        region: b.region,
        address: b.memory.address + 4096,
        length: WINDOW_BYTES,
        access: WINDOW_ACCESS,
        ...more,
      };
      expect(b.queuePair.postSend([{ wrId: 40, opcode: WrOpcode.BIND_MW, bind }])).toEqual({ accepted: 1, errno: 0 });
      return rkey;
    }
    function bound2(b: End, window: MemoryWindow, more: object = {}): number {
      const rkey = bind2(b, window, more);
      expect(pollOne(b.queue)).toMatchObject({ wrId: 40, status: WcStatus.SUCCESS, opcode: WcOpcode.BIND_MW });
      expect(window.rkey).toBe(rkey);
      return rkey;
    }
    function bound1(b: End, window: MemoryWindow, more: object = {}): number {
      const binding = {
        region: b.region,
        address: b.memory.address + 4096,
        length: WINDOW_BYTES,
        access: WINDOW_ACCESS,
      };
      const result = b.queuePair.bindMemoryWindow(window, { wrId: 41, ...binding, ...more });
      expect(result).toMatchObject({ accepted: 1, errno: 0 });
      expect(pollOne(b.queue)).toMatchObject({ wrId: 41, status: WcStatus.SUCCESS, opcode: WcOpcode.BIND_MW });
      return result.rkey;
    }
    function write(a: End, b: End, rkey: number, more: object = {}) {
      a.bytes.fill(0x7b, 0, 64);
      a.queuePair.postSend([transfer(a, b, 64, { rkey, ...more })]);
      return pollOne(a.queue).status as Status;
    }

    it('of types that the device has can be allocated, the others are refused with QUORATE_UNSUPPORTED', () => {
      const { context, domain } = single();
      const { memoryWindows1, memoryWindows2 } = context.capabilities;
      for (const [type, there] of [
        [1, memoryWindows1],
        [2, memoryWindows2],
      ] as const) {
        if (!there) {
          expect(thrownBy(() => domain.allocateMemoryWindow(type)).code).toBe('QUORATE_UNSUPPORTED');
          continue;
        }
        const window = domain.allocateMemoryWindow(type);
        expect(window.type).toBe(type);
        expect(window.kind).toBe('MemoryWindow');
        window.close();
        expect(thrownBy(() => window.rkey).code).toBe('QUORATE_CLOSED');
      }
    });

    it('of type 1 give the peer their part of a region, with their rights, until they are bound elsewhere', () => {
      const [a, b] = windowPair();
      const window = b.domain.allocateMemoryWindow(1);
      const first = bound1(b, window);
      expect(write(a, b, first)).toBe(WcStatus.SUCCESS);
      expect(b.bytes[4096 + 63]).toBe(0x7b);
      const second = bound1(b, window, { address: b.memory.address + 16_384 });
      expect(second).not.toBe(first);
      expect(write(a, b, second, { remoteAddress: b.memory.address + 16_384 })).toBe(WcStatus.SUCCESS);
      expect(b.bytes[16_384]).toBe(0x7b);
      expect(write(a, b, first)).toBe(WcStatus.REM_ACCESS_ERR);
    });

    it('of type 1 end when they are bound to nothing', () => {
      const [a, b] = windowPair();
      const window = b.domain.allocateMemoryWindow(1);
      const rkey = bound1(b, window);
      expect(write(a, b, rkey)).toBe(WcStatus.SUCCESS);
      expect(b.queuePair.bindMemoryWindow(window).accepted).toBe(1);
      expect(pollOne(b.queue).status).toBe(WcStatus.SUCCESS);
      b.bytes.fill(0, 4096, 8192);
      expect(write(a, b, rkey)).toBe(WcStatus.REM_ACCESS_ERR);
      expect(b.bytes.subarray(4096, 8192).every((byte) => byte === 0)).toBe(true);
    });

    it('of type 2 are bound by a request, for the queue pair that bound them, and end with LOCAL_INV', () => {
      const [a, b] = windowPair();
      const window = b.domain.allocateMemoryWindow(2);
      const rkey = bound2(b, window);
      expect(write(a, b, rkey)).toBe(WcStatus.SUCCESS);
      expect(b.bytes[4096]).toBe(0x7b);
      b.queuePair.postSend([{ wrId: 42, opcode: WrOpcode.LOCAL_INV, invalidateRkey: rkey }]);
      expect(pollOne(b.queue)).toMatchObject({ wrId: 42, status: WcStatus.SUCCESS, opcode: WcOpcode.LOCAL_INV });
      b.bytes.fill(0, 4096, 8192);
      expect(write(a, b, rkey)).toBe(WcStatus.REM_ACCESS_ERR);
      expect(b.bytes[4096]).toBe(0);
    });

    it('of type 2 can be bound again once they were invalidated, under another key', () => {
      const [a, b] = windowPair();
      const window = b.domain.allocateMemoryWindow(2);
      const first = bound2(b, window);
      b.queuePair.postSend([{ opcode: WrOpcode.LOCAL_INV, invalidateRkey: first }]);
      expect(pollOne(b.queue).status).toBe(WcStatus.SUCCESS);
      const second = bound2(b, window);
      expect(second).not.toBe(first);
      expect(write(a, b, second)).toBe(WcStatus.SUCCESS);
      expect(write(a, b, first)).toBe(WcStatus.REM_ACCESS_ERR);
    });

    it('of type 2 do not serve other queue pairs', () => {
      const [a, b] = windowPair();
      const other = b.domain.createQueuePair({ sendCq: b.queue });
      const peer = a.domain.createQueuePair({ sendCq: a.queue });
      for (const queuePair of [other, peer]) queuePair.toInit({ accessFlags: ALL_ACCESS });
      other.toReadyToReceive(peer.endpoint());
      peer.toReadyToReceive(other.endpoint());
      for (const queuePair of [other, peer]) queuePair.toReadyToSend({ timeout: 10, retryCnt: 3 });
      const rkey = bound2(b, b.domain.allocateMemoryWindow(2));
      expect(write(a, b, rkey)).toBe(WcStatus.SUCCESS);
      peer.postSend([transfer(a, b, 64, { rkey })]);
      expect(pollOne(a.queue).status).toBe(WcStatus.REM_ACCESS_ERR);
    });

    it('of type 2 end with a SEND_WITH_INV of the peer, which tells the key', () => {
      const [a, b] = windowPair();
      const window = b.domain.allocateMemoryWindow(2);
      const rkey = bound2(b, window);
      b.queuePair.postReceive([receive(b, 60, 0, 256)]);
      a.bytes.fill(0x31, 0, 16);
      a.queuePair.postSend([transfer(a, b, 16, { opcode: WrOpcode.SEND_WITH_INV, invalidateRkey: rkey })]);
      expect(pollOne(a.queue)).toMatchObject({ status: WcStatus.SUCCESS, opcode: WcOpcode.SEND });
      const completion = pollOne(b.queue);
      expect(completion).toMatchObject({ wrId: 60, status: WcStatus.SUCCESS, opcode: WcOpcode.RECV, byteLen: 16 });
      expect(completion.wcFlags & WC_WITH_INV).toBe(WC_WITH_INV);
      expect(completion.invalidatedRkey).toBe(rkey);
      expect(completion.immData).toBe(0);
      expect(b.bytes[15]).toBe(0x31);
      const again = bound2(b, window);
      expect(write(a, b, again)).toBe(WcStatus.SUCCESS);
      expect(write(a, b, rkey)).toBe(WcStatus.REM_ACCESS_ERR);
    });

    it('cannot be invalidated by a peer that does not know their key', () => {
      const [a, b] = windowPair();
      bound2(b, b.domain.allocateMemoryWindow(2));
      b.queuePair.postReceive([receive(b, 61, 0, 256)]);
      a.queuePair.postSend([
        transfer(a, b, 16, { opcode: WrOpcode.SEND_WITH_INV, invalidateRkey: (b.region.rkey ^ 0x100) >>> 0 }),
      ]);
      expect(pollOne(b.queue).status).not.toBe(WcStatus.SUCCESS);
      // SoftRoCE does not tell the sender.
      const told = pollOne(a.queue).status !== WcStatus.SUCCESS;
      if (devices[0] === 'shm') expect(told).toBe(true);
      expect(b.queuePair.state).toBe(QpState.ERR);
    });

    it('allow no more than they were bound with', () => {
      const [a, b] = windowPair();
      const rkey = bound2(b, b.domain.allocateMemoryWindow(2), { access: Access.REMOTE_READ });
      a.queuePair.postSend([transfer(a, b, 64, { rkey, opcode: WrOpcode.RDMA_READ })]);
      expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
      expect(write(a, b, rkey)).toBe(WcStatus.REM_ACCESS_ERR);
    });

    // SoftRoCE checks requests against the region instead: a write beyond the window goes through there.
    it.skipIf(devices[1] !== 'shm')('allow nothing beyond their bounds', () => {
      const [a, b] = windowPair();
      const rkey = bound1(b, b.domain.allocateMemoryWindow(1));
      expect(write(a, b, rkey, { remoteAddress: b.memory.address + 4096 + WINDOW_BYTES - 63 })).toBe(
        WcStatus.REM_ACCESS_ERR,
      );
    });

    it('are not bound to a region without MW_BIND, to more than the region, or while they are bound', () => {
      const failing: ((b: End, window: MemoryWindow) => void)[] = [
        (b, window) => bind2(b, window, { region: b.domain.registerMemory(b.memory, 0, 16_384, ALL_ACCESS) }),
        (b, window) => bind2(b, window, { length: b.memory.length }),
        (b, window) => {
          bound2(b, window);
          bind2(b, window);
        },
        (b) => b.queuePair.postSend([{ wrId: 40, opcode: WrOpcode.LOCAL_INV, invalidateRkey: 0x1234_5678 }]),
      ];
      for (const fail of failing) {
        const [, b] = windowPair();
        fail(b, b.domain.allocateMemoryWindow(2));
        expect(BIND_FAILURES, fail.toString()).toContain(pollOne(b.queue).status);
        expect(b.queuePair.state).toBe(QpState.ERR);
      }
    });

    it('are refused at once where the request makes no sense', () => {
      const [a, b] = windowPair();
      const first = b.domain.allocateMemoryWindow(1);
      const second = b.domain.allocateMemoryWindow(2);
      const EINVAL = 22;
      expect(b.queuePair.bindMemoryWindow(second).errno).toBe(EINVAL);
      const bind = { memoryWindow: first, rkey: 1, region: b.region, address: b.memory.address, length: 8, access: 0 };
      expect(b.queuePair.postSend([{ opcode: WrOpcode.BIND_MW, bind }]).errno).toBe(EINVAL);
      const post = (more: object) => () => b.queuePair.postSend([{ opcode: WrOpcode.BIND_MW, ...more }]);
      expect(thrownBy(post({})).code).toBe('QUORATE_INVALID_ARGUMENT');
      expect(thrownBy(post({ bind: { ...bind, memoryWindow: a.region as never } })).code).toBe(
        'QUORATE_INVALID_ARGUMENT',
      );
      second.close();
      expect(thrownBy(post({ bind: { ...bind, memoryWindow: second } })).code).toBe('QUORATE_CLOSED');
    });

    it('keep their region from being closed, and go before it when the domain closes', () => {
      const [, b] = windowPair();
      const window = b.domain.allocateMemoryWindow(2);
      bound2(b, window);
      expect(thrownBy(() => b.region.close()).code).toBe('QUORATE_REVOKE_FAILED');
      expect(b.region.closed).toBe(false);
      b.domain.close();
      expect([window.closed, b.region.closed, b.queuePair.closed]).toEqual([true, true, true]);
    });

    it('of type 2 are closed with the queue pair that they were bound through', () => {
      const [a, b] = windowPair();
      const second = b.domain.allocateMemoryWindow(2);
      const unbound = b.domain.allocateMemoryWindow(2);
      bound2(b, second);
      b.queuePair.close();
      expect([second.closed, unbound.closed]).toEqual([true, false]);
      expect(FLUSHES).toContain(write(a, b, 1));
      b.region.close();
    });
  });

  describe(`re-registration on ${[...new Set(devices)].join(' and ')}`, () => {
    const { pair, single } = usePairs(devices);

    it('that the device lacks is refused with QUORATE_UNSUPPORTED and changes nothing', () => {
      const [a, b] = pair();
      if (b.context.capabilities.reregistration) return; // covered by the next cases
      const { rkey } = b.region;
      expect(thrownBy(() => b.region.reregister({ access: 0 })).code).toBe('QUORATE_UNSUPPORTED');
      expect(b.region.rkey).toBe(rkey);
      a.queuePair.postSend([transfer(a, b, 64)]);
      expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
    });

    it('takes rights away and gives them', (context) => {
      const [a, b] = pair();
      if (!b.context.capabilities.reregistration) context.skip('the device has no re-registration');
      b.region.reregister({ access: Access.LOCAL_WRITE | Access.REMOTE_READ });
      expect(b.region.access).toBe(Access.LOCAL_WRITE | Access.REMOTE_READ);
      a.queuePair.postSend([transfer(a, b, 64, { opcode: WrOpcode.RDMA_READ })]);
      expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
      a.queuePair.postSend([transfer(a, b, 64)]);
      expect(pollOne(a.queue).status).toBe(WcStatus.REM_ACCESS_ERR);
    });

    it('moves to other bytes and to another domain, and the old key ends', (context) => {
      const [a, b] = pair();
      if (!b.context.capabilities.reregistration) context.skip('the device has no re-registration');
      const old = b.region.rkey;
      const memory = b.context.allocateMemory({ lengthBytes: 8192 });
      b.region.reregister({ memory, offset: 4096, length: 4096 });
      expect([b.region.address, b.region.length]).toEqual([memory.address + 4096, 4096]);
      a.bytes.fill(9, 0, 64);
      a.queuePair.postSend([transfer(a, b, 64, { remoteAddress: memory.address + 4096 })]);
      expect(pollOne(a.queue).status).toBe(WcStatus.SUCCESS);
      expect(new Uint8Array(memory.buffer)[4096]).toBe(9);
      const domain = b.context.allocateProtectionDomain();
      b.region.reregister({ protectionDomain: domain });
      b.domain.close();
      expect(b.region.closed).toBe(false);
      domain.close();
      expect(b.region.closed).toBe(true);
      expect(old).toBeGreaterThan(0);
    });

    it('refuses what makes no sense', (context) => {
      const { region, memory, domain } = single();
      if (!domain.context?.capabilities.reregistration) context.skip('the device has no re-registration');
      expect(thrownBy(() => region.reregister({})).code).toBe('QUORATE_INVALID_ARGUMENT');
      expect(thrownBy(() => region.reregister({ memory, offset: 0, length: memory.length + 1 })).code).toBe(
        'QUORATE_OUT_OF_RANGE',
      );
      expect(thrownBy(() => region.reregister({ access: Access.REMOTE_WRITE })).code).toBe('QUORATE_INVALID_ARGUMENT');
      expect(thrownBy(() => region.reregister({ offset: 1 })).code).toBe('QUORATE_INVALID_ARGUMENT');
    });
  });
}
