// How much memory a transfer takes at either end.
import { expect, it } from 'vitest';
import { transferGeometry } from '#lib/replica/transfer/geometry.js';
import { CHUNK_BYTES_MAX, SLOTS_MAX, STAGING_BYTES_MAX } from '#lib/replica/transfer/limits.js';

const KIB = 2 ** 10;
const MIB = 2 ** 20;

it('takes no more memory than the state needs, and no more than 16 MiB however large that is', () => {
  expect(transferGeometry(false, 0)).toEqual({ chunkBytes: 4 * MIB, slots: 1 });
  expect(transferGeometry(false, 4 * MIB)).toEqual({ chunkBytes: 4 * MIB, slots: 1 });
  expect(transferGeometry(false, 4 * MIB + 1)).toEqual({ chunkBytes: 4 * MIB, slots: 2 });
  expect(transferGeometry(false, 2 ** 40)).toEqual({ chunkBytes: 4 * MIB, slots: 4 });
});

it('brings the state in small chunks over a device whose protocol runs on the processors', () => {
  expect(transferGeometry(true, 100_000)).toEqual({ chunkBytes: 64 * KIB, slots: 2 });
  expect(transferGeometry(true, 2 ** 40)).toEqual({ chunkBytes: 64 * KIB, slots: 32 });
});

it('takes all the memory for a state of which nobody knows how large it is', () => {
  expect(transferGeometry(false, undefined)).toEqual({ chunkBytes: 4 * MIB, slots: 4 });
  expect(transferGeometry(true, undefined)).toEqual({ chunkBytes: 64 * KIB, slots: 32 });
});

it('asks no receiver for more than it accepts', () => {
  for (const isSoftware of [false, true]) {
    const { chunkBytes, slots } = transferGeometry(isSoftware, undefined);
    expect(chunkBytes).toBeLessThanOrEqual(CHUNK_BYTES_MAX);
    expect(slots).toBeLessThanOrEqual(SLOTS_MAX);
    expect(chunkBytes * slots).toBeLessThanOrEqual(STAGING_BYTES_MAX);
  }
});
