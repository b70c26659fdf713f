// The checksum of what other processes wrote.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { checksum } from '#lib/verbs/checksum.js';

const bytes = fc.uint8Array({ minLength: 1, maxLength: 400 });

test('any change of a byte, of the length or of what came before is noticed', () => {
  fc.assert(
    fc.property(bytes, fc.nat(), fc.integer({ min: 1, max: 255 }), fc.nat(), (data, place, change, before) => {
      const sum = checksum(data, before);
      expect(Number.isSafeInteger(sum) && sum >= 0).toBe(true);
      const changed = data.slice();
      const at = place % data.length;
      changed[at] = (changed[at] as number) ^ change;
      expect(checksum(changed, before)).not.toBe(sum);
      expect(checksum(data.subarray(1), before)).not.toBe(sum);
      expect(checksum(Uint8Array.of(...data, 0), before)).not.toBe(sum);
      expect(checksum(data, before + 1)).not.toBe(sum);
    }),
  );
});

test('equal bytes have equal checksums, wherever they lie', () => {
  fc.assert(
    fc.property(bytes, fc.integer({ min: 0, max: 70 }), (data, offset) => {
      const elsewhere = new Uint8Array(offset + data.length + 5).fill(9);
      elsewhere.set(data, offset);
      expect(checksum(elsewhere.subarray(offset, offset + data.length), 7)).toBe(checksum(data, 7));
    }),
  );
});

test('bytes in several pieces have the checksum that they have as one, wherever they are cut', () => {
  fc.assert(
    fc.property(bytes, fc.array(fc.nat(400), { maxLength: 6 }), fc.nat(), (data, cuts, before) => {
      const places = [0, ...cuts.map((cut) => Math.min(cut, data.length)).sort((a, b) => a - b), data.length];
      const pieces = places.slice(1).map((end, index) => data.slice(places[index], end));
      expect(checksum(pieces, before)).toBe(checksum(data, before));
    }),
  );
  expect(checksum([], 5)).toBe(checksum(new Uint8Array(0), 5));
});

test('words that are swapped, and a block that is moved, are noticed', () => {
  const data = Uint8Array.from({ length: 4096 }, (_, index) => (index * 7919) >>> 3);
  const sum = checksum(data, 0);
  const swapped = data.slice();
  swapped.set(data.subarray(64, 72), 128);
  swapped.set(data.subarray(128, 136), 64);
  expect(checksum(swapped, 0)).not.toBe(sum);
  const moved = Uint8Array.of(...data.subarray(64), ...data.subarray(0, 64));
  expect(checksum(moved, 0)).not.toBe(sum);
});

test('what it is stays the same: replicas of different builds compare it', () => {
  const data = Uint8Array.from({ length: 200 }, (_, index) => index);
  expect([checksum(new Uint8Array(0), 0), checksum(data.subarray(0, 64), 1), checksum(data, 2 ** 53 - 1)]).toEqual(
    GOLDEN,
  );
});

const GOLDEN = [7325396463083418, 5574460296092424, 4472298381227548];

test('arguments of other kinds are refused', () => {
  const call = checksum as (...parameters: unknown[]) => number;
  for (const wrong of [
    undefined,
    'text',
    new Uint16Array(2),
    new ArrayBuffer(8),
    ['text'],
    [new Uint8Array(1), null],
  ]) {
    expect(() => call(wrong, 0)).toThrow(expect.objectContaining({ code: 'QUORATE_INVALID_ARGUMENT' }));
  }
  for (const wrong of [-1, 2 ** 53, Number.NaN]) expect(() => call(new Uint8Array(1), wrong)).toThrow();
});
