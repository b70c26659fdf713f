import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import * as hash from '#lib/consensus/hash.js';

function digest(words: Uint32Array, start: number, count: number, skip = -2, low = 0, high = 0): string {
  hash.hashWords(words, start, count, skip, low, high);
  return `${hash.hashLow}:${hash.hashHigh}`;
}

const words = fc.uint32Array({ minLength: 1, maxLength: 64 });

describe('hashWords', () => {
  test('gives two unsigned 32-bit words, the same for the same input', () => {
    fc.assert(
      fc.property(words, (input) => {
        const first = digest(input, 0, input.length);
        expect(digest(input.slice(), 0, input.length)).toBe(first);
        for (const part of first.split(':').map(Number)) {
          expect(Number.isInteger(part) && part >= 0 && part < 2 ** 32).toBe(true);
        }
      }),
    );
  });

  test('sees every change of a single bit', () => {
    fc.assert(
      fc.property(words, fc.nat(), fc.nat({ max: 31 }), (input, place, bit) => {
        const changed = input.slice();
        const index = place % input.length;
        changed[index] = (changed[index] as number) ^ (1 << bit);
        expect(digest(changed, 0, changed.length)).not.toBe(digest(input, 0, input.length));
      }),
    );
  });

  test('tells apart two words that changed places', () => {
    fc.assert(
      fc.property(words, fc.nat(), fc.nat(), (input, one, other) => {
        const a = one % input.length;
        const b = other % input.length;
        fc.pre(input[a] !== input[b]);
        const swapped = input.slice();
        swapped[a] = input[b] as number;
        swapped[b] = input[a] as number;
        expect(digest(swapped, 0, swapped.length)).not.toBe(digest(input, 0, input.length));
      }),
    );
  });

  test('depends on the seed and on the number of words', () => {
    fc.assert(
      fc.property(words, fc.integer({ min: 1, max: 2 ** 32 - 1 }), (input, seed) => {
        const plain = digest(input, 0, input.length);
        expect(digest(input, 0, input.length, -2, seed, 0)).not.toBe(plain);
        expect(digest(input, 0, input.length, -2, 0, seed)).not.toBe(plain);
        const longer = new Uint32Array(input.length + 1);
        longer.set(input);
        expect(digest(longer, 0, longer.length)).not.toBe(plain);
      }),
    );
  });

  test('leaves out the two words where the hash itself is stored, and no others', () => {
    const input = Uint32Array.from({ length: 14 }, (_, index) => index * 2654435761);
    const plain = digest(input, 0, 14, 8);
    for (let index = 0; index < 14; index++) {
      const changed = input.slice();
      changed[index] = (changed[index] as number) ^ 1;
      const isSkipped = index === 8 || index === 9;
      expect(digest(changed, 0, 14, 8) === plain).toBe(isSkipped);
    }
  });

  test('has no collision among 200,000 small differences', () => {
    const seen = new Set<string>();
    const input = new Uint32Array(8);
    for (let count = 0; count < 200_000; count++) {
      input[count % 8] = (input[count % 8] as number) + 1;
      seen.add(digest(input, 0, 8));
    }
    expect(seen.size).toBe(200_000);
  });
});
