// What clients of a nemesis run write must tell an observer who wrote it, also where values are added.
import { expect, test } from 'vitest';
import { clientValue } from '#lib/cli/nemesis/values.js';

const PROCESSES = 4;
const MODULUS = 2 ** 32;

const values = (count: number) =>
  Array.from({ length: PROCESSES * count }, (_, index) => clientValue(Math.floor(index / count), (index % count) + 1));

test('values of all clients differ, and are 32 bits', () => {
  const many = values(50_000);
  expect(new Set(many).size).toBe(many.length);
  expect(many.every((value) => Number.isInteger(value) && value > 0 && value < MODULUS)).toBe(true);
});

test('none of the first values is the sum of two others', () => {
  const first = values(100);
  const known = new Set(first);
  const sums = first.flatMap((one, index) => first.slice(index).map((other) => (one + other) % MODULUS));
  expect(sums.filter((sum) => known.has(sum))).toEqual([]);
});
