// What the conformance suites share: ends that are closed after each test, and requests between two of them.
import { afterEach, beforeEach, expect } from 'vitest';
import { WrOpcode } from '#lib/verbs/index.js';
import { connectedPair, End, type EndOptions } from './ends.js';

export interface Pairs {
  pair(options?: EndOptions): [End, End];
  single(options?: EndOptions): End;
}

/** To be called inside a describe(): its tests get their ends from what this returns. */
export function usePairs(devices: readonly [string, string]): Pairs {
  const ends: End[] = [];
  beforeEach(() => {
    expect(ends).toEqual([]);
  });
  afterEach(() => {
    for (const end of ends.splice(0)) end.close();
  });
  return {
    pair(options = {}) {
      const made = connectedPair(devices, options);
      ends.push(...made);
      return made;
    },
    single(options = {}) {
      const end = new End(devices[ends.length === 1 ? 1 : 0], options);
      ends.push(end);
      return end;
    },
  };
}

/** A WRITE (or another opcode) from `a`'s memory at 0 to `b`'s memory at 4096. */
export function transfer(a: End, b: End, length: number, more: object = {}) {
  return {
    wrId: 7,
    opcode: WrOpcode.RDMA_WRITE as (typeof WrOpcode)[keyof typeof WrOpcode],
    localAddress: a.memory.address,
    length,
    lkey: a.region.lkey,
    remoteAddress: b.memory.address + 4096,
    rkey: b.region.rkey,
    ...more,
  };
}

/** A receive into `length` bytes of the end's memory from `offset`. */
export function receive(end: End, wrId: number, offset: number, length: number) {
  return { wrId, localAddress: end.memory.address + offset, length, lkey: end.region.lkey };
}
