// Warnings that are found while open() is under way: each is kept once, and told when somebody can listen; of more than
// there is room for it is told how many they were.
import { expect, it } from 'vitest';
import { EarlyWarnings } from '#lib/replica/early-warnings.js';

const nextTurn = () => new Promise((resolve) => setImmediate(resolve));

it('tells each of them once, in the turn after, and later ones at once', async () => {
  const told: string[] = [];
  const warnings = new EarlyWarnings(({ message }) => told.push(message));
  for (const message of ['one', 'two', 'one']) warnings.warn(new Error(message));
  expect(warnings.messages).toEqual(['one', 'two']);
  warnings.tellSoon();
  expect(told).toEqual([]);
  await nextTurn();
  expect(told).toEqual(['one', 'two']);
  warnings.warn(new Error('one'));
  expect(told).toEqual(['one', 'two', 'one']);
  expect(warnings.messages).toEqual([]);
});

it('says how many there was no room for', async () => {
  const told: Error[] = [];
  const warnings = new EarlyWarnings((warning) => told.push(warning));
  const count = 40;
  for (let number = 0; number < count; number++) warnings.warn(new Error(`warning ${number}.`));
  warnings.warn(new Error('warning 0.')); // is told
  const last = warnings.messages.at(-1);
  warnings.tellSoon();
  await nextTurn();
  const kept = told.length - 1;
  expect(kept).toBe(32);
  expect(told.slice(0, kept).map(({ message }) => message)).toEqual(
    Array.from({ length: kept }, (_, number) => `warning ${number}.`),
  );
  expect(told.at(-1)).toMatchObject({
    code: 'QUORATE_WARNINGS_LEFT_OUT',
    message: expect.stringContaining(`left out: ${count - kept},`),
  });
  expect(last).toBe(told.at(-1)?.message); // so does the error of an open() that fails
});
