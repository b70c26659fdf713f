import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { EPOCH_NONE, epochCounter, epochIncarnation, formatEpoch, makeEpoch } from '#lib/consensus/epoch.js';
import { INCARNATION_MAX } from '#lib/consensus/limits.js';

const counter = fc.integer({ min: 1, max: 2 ** 33 - 1 });
const incarnation = fc.integer({ min: 1, max: INCARNATION_MAX - 1 });

describe('epoch', () => {
  test('carries counter and incarnation in one safe integer', () => {
    fc.assert(
      fc.property(counter, incarnation, (count, life) => {
        const epoch = makeEpoch(count, life);
        expect(Number.isSafeInteger(epoch)).toBe(true);
        expect([epochCounter(epoch), epochIncarnation(epoch)]).toEqual([count, life]);
        expect(formatEpoch(epoch)).toBe(`${count}.${life}`);
        expect(epoch).toBeGreaterThan(EPOCH_NONE);
      }),
    );
  });

  test('is ordered by counter, then by incarnation', () => {
    fc.assert(
      fc.property(counter, incarnation, counter, incarnation, (counterA, lifeA, counterB, lifeB) => {
        const expected = Math.sign(counterA - counterB) || Math.sign(lifeA - lifeB);
        expect(Math.sign(makeEpoch(counterA, lifeA) - makeEpoch(counterB, lifeB))).toBe(expected);
      }),
    );
  });

  test('refuses what does not fit', () => {
    for (const count of [0, -1, 1.5, 2 ** 33, Number.NaN]) expect(() => makeEpoch(count, 1)).toThrow(RangeError);
    for (const life of [0, -1, 0.5, INCARNATION_MAX]) expect(() => makeEpoch(1, life)).toThrow(RangeError);
  });
});
