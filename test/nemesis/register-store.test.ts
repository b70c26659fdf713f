// The nemesis's state machine: its snapshots, and what it makes of bytes that are no command.

import { expect, test } from 'vitest';
import { encodeRegisterCommand, PROBE, RegisterStore } from '#lib/cli/nemesis/register-store.js';
import { Operation } from '#lib/testing/sim-state-machine.js';

const command = (operation: number, key: number, value: number, expected = 0) =>
  encodeRegisterCommand({ operation, key, value, expected }, 5);

test('registers start at 0 and do what the checker takes them to do', () => {
  const store = new RegisterStore();
  const results = [
    command(Operation.read, 7, 0),
    command(Operation.write, 7, 10),
    command(Operation.add, 7, 5),
    command(Operation.compareAndSet, 7, 20, 10),
    command(Operation.compareAndSet, 7, 20, 15),
    command(Operation.read, 7, 0),
  ].map((bytes, index) => store.apply(bytes, index * 64));
  expect(results).toEqual([0, 0, 15, 0, 1, 20]);
});

test('what is no command changes nothing', () => {
  const store = new RegisterStore();
  const before = store.digest();
  expect(store.apply(PROBE, 0)).toBe(-1);
  expect(store.apply(command(0, 1, 1), 64)).toBe(-1);
  expect(store.apply(command(9, 1, 1), 128)).toBe(-1);
  expect(store.digest()).toBe(before);
});

test('an LSN that does not ascend is refused', () => {
  const store = new RegisterStore();
  store.apply(PROBE, 64);
  expect(() => store.apply(PROBE, 64)).toThrow(/LSN 64/);
});

test('a snapshot brings another store to the same state, also of LSNs', () => {
  const store = new RegisterStore();
  store.apply(command(Operation.write, 1, 2 ** 32 - 1), 64);
  store.apply(command(Operation.write, 2, 3), 128);
  const copy = new RegisterStore();
  copy.restore(store.snapshot());
  expect(copy.digest()).toBe(store.digest());
  expect(copy.apply(command(Operation.read, 1, 0), 192)).toBe(2 ** 32 - 1);
  expect(() => copy.apply(PROBE, 128)).toThrow(/LSN 128/);
});

test('a snapshot that is cut, or of something else, is refused and changes nothing', () => {
  const store = new RegisterStore();
  store.apply(command(Operation.write, 1, 5), 64);
  const before = store.digest();
  const snapshot = store.snapshot();
  for (let length = 0; length < snapshot.length; length++) {
    expect(() => store.restore(snapshot.subarray(0, length))).toThrow(/QUORATE_SNAPSHOT_INVALID|holds no registers/);
  }
  expect(store.digest()).toBe(before);
});
