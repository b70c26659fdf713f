// How the shm device maps what its peers registered: once for each memory, however many there are and in whatever order they
// are used, and only for as long as they are there.
import { readFileSync } from 'node:fs';
import { afterEach, expect, it } from 'vitest';
import { Access, type Memory, type MemoryRegion, WcStatus, WrOpcode } from '#lib/verbs/index.js';
import { connectedPair, type End, pollFor } from './support/ends.js';
import { useShmDirectory } from './support/shm-directory.js';

const directory = useShmDirectory();
const MEMORIES = 40;
const BYTES = 1024 * 1024;
const ends: End[] = [];

afterEach(() => {
  for (const end of ends.splice(0)) end.close();
});

/** Memory of owners, which is mapped where they have it, and stays so until nobody looks at it. */
const owned = new Set<number>();

/** Where in this process memory of this size is mapped by those who READ it. */
function mappings(): number[] {
  const found: number[] = [];
  for (const line of readFileSync('/proc/self/maps', 'utf8').split('\n')) {
    const [range, , , , , file] = line.split(/\s+/);
    if (range === undefined || !file?.startsWith(directory)) continue;
    const [begin, end] = range.split('-').map((text) => Number.parseInt(text, 16)) as [number, number];
    if (end - begin === BYTES && !owned.has(begin)) found.push(begin);
  }
  return found.sort((x, y) => x - y);
}

function registered(owner: End, value: number): { memory: Memory; region: MemoryRegion } {
  const memory = owner.context.allocateMemory({ lengthBytes: BYTES });
  owned.add(memory.address);
  new Uint8Array(memory.buffer)[5] = value;
  return { memory, region: owner.domain.registerMemory(memory, 0, BYTES, Access.REMOTE_READ) };
}

function setUp(): {
  reader: End;
  owner: End;
  regions: { memory: Memory; region: MemoryRegion }[];
  readAll: () => void;
} {
  const [reader, owner] = connectedPair(['shm', 'shm']);
  ends.push(reader, owner);
  const regions = Array.from({ length: MEMORIES }, (_, index) => registered(owner, index + 1));
  const readAll = (): void => {
    for (const [index, { region }] of regions.entries()) {
      reader.queuePair.postSend([
        {
          opcode: WrOpcode.RDMA_READ,
          localAddress: reader.memory.address + index,
          length: 1,
          lkey: reader.region.lkey,
          remoteAddress: region.address + 5,
          rkey: region.rkey,
        },
      ]);
      expect(pollFor(reader.queue, 1)[0]?.status).toBe(WcStatus.SUCCESS);
      expect(reader.bytes[index]).toBe(index + 1);
    }
  };
  return { reader, owner, regions, readAll };
}

it(`maps each of ${MEMORIES} memories of a peer once, and never again while it is there`, () => {
  const { readAll } = setUp();
  readAll();
  const first = mappings();
  expect(first).toHaveLength(MEMORIES);
  for (let round = 0; round < 3; round++) readAll();
  expect(mappings()).toEqual(first);
});

it('lets go of the mappings of memory that the peer has closed, and of all when the connection ends', () => {
  const { reader, owner, regions, readAll } = setUp();
  readAll();
  expect(mappings()).toHaveLength(MEMORIES);
  for (const { region, memory } of regions.splice(3)) {
    region.close();
    memory.close();
  }
  // A mapping that is missing is the occasion to look which others are of no use any more.
  regions.push(registered(owner, 4));
  readAll();
  expect(mappings()).toHaveLength(4);
  reader.queuePair.close();
  expect(mappings()).toEqual([]);
});
