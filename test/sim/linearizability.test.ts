// The linearizability checker itself: histories known to be good and known to be bad, and agreement with a brute-force
// search over all orders on small random histories.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  checkLinearizability,
  formatHistory,
  type HistoryOperation,
  logOrderIsLinearization,
} from '#lib/testing/checkers/linearizability.js';
import { type Command, Operation, step } from '#lib/testing/sim-state-machine.js';

let process = 0;

function operation(from: number, to: number, kind: number, value: number, result: number, expected = 0, key = 0) {
  const command: Command = { operation: kind, key, value, expected };
  return { process: process++, command, invoked_ns: from, returned_ns: to, result };
}

const write = (from: number, to: number, value: number, key = 0) =>
  operation(from, to, Operation.write, value, 0, 0, key);
const read = (from: number, to: number, result: number, key = 0) =>
  operation(from, to, Operation.read, 0, result, 0, key);
const add = (from: number, to: number, value: number, result: number) =>
  operation(from, to, Operation.add, value, result);
const compareAndSet = (from: number, to: number, expected: number, value: number, result: number) =>
  operation(from, to, Operation.compareAndSet, value, result, expected);

const NEVER = Number.POSITIVE_INFINITY;

describe('linearizability checker', () => {
  test.each<[string, HistoryOperation]>([
    ['no response, as JSON has it', { ...write(10, NEVER, 5), returned_ns: null as unknown as number }],
    ['no response, left out', { ...write(10, NEVER, 5), returned_ns: undefined as unknown as number }],
    ['a response before the invocation', write(10, 5, 5)],
    ['no time of invocation', write(Number.NaN, NEVER, 5)],
    ['no command', { ...write(10, 20, 5), command: undefined as unknown as Command }],
    ['an operation by its name', operation(10, 20, 'write' as unknown as number, 5, 0)],
    ['an operation that there is not', operation(10, NEVER, 5, 5, 0)],
    ['digits for a register, which would be another one', write(10, 20, 5, '0' as unknown as number)],
    ['digits for a value, which would never be read', write(10, 20, '5' as unknown as number)],
    ['digits for an answer', read(10, 20, '5' as unknown as number)],
    ['no answer, but a response', read(10, 20, undefined as unknown as number)],
  ])('does not judge a history in which an operation has %s', (_, bad) => {
    const judge = () => checkLinearizability([read(20, 30, 5), bad]);
    expect(judge).toThrow(expect.objectContaining({ code: 'QUORATE_INVALID_ARGUMENT' }));
    expect(judge).toThrow(/^operation 1 of the history: /);
  });

  test.each([undefined, null, 'history', {}, new Set([write(0, 1, 5)])])(
    'does not judge what is no list: %s',
    (bad) => {
      const judge = () => checkLinearizability(bad as never);
      expect(judge).toThrow(expect.objectContaining({ code: 'QUORATE_INVALID_ARGUMENT' }));
    },
  );

  const good: [string, HistoryOperation[]][] = [
    ['nothing at all', []],
    ['a read of the initial value', [read(0, 1, 0)]],
    ['operations one after the other', [write(0, 1, 5), read(2, 3, 5), add(4, 5, 2, 7), read(6, 7, 7)]],
    ['a read during a write sees the old value', [write(0, 10, 5), read(1, 2, 0)]],
    ['a read during a write sees the new value', [write(0, 10, 5), read(1, 2, 5)]],
    ['two writes at the same time, in either order', [write(0, 10, 1), write(0, 10, 2), read(11, 12, 1)]],
    ['operations that touch at one instant overlap', [write(0, 5, 1), read(5, 6, 0)]],
    ['a write of unknown outcome that took effect', [write(0, NEVER, 9), read(5, 6, 9)]],
    ['a write of unknown outcome that did not', [write(0, NEVER, 9), read(5, 6, 0)]],
    ['a write of unknown outcome that took effect late', [write(0, NEVER, 9), read(5, 6, 0), read(7, 8, 9)]],
    ['a compare-and-set that failed', [write(0, 1, 3), compareAndSet(2, 3, 4, 5, 0), read(4, 5, 3)]],
    ['registers do not touch each other', [write(0, 1, 5, 0), read(2, 3, 0, 1)]],
    ['a read without a response says nothing', [write(0, 1, 5), { ...read(2, 3, 77), returned_ns: NEVER }]],
  ];
  test.each(good)('accepts %s', (_, history) => {
    expect(checkLinearizability(history)).toEqual({ kind: 'linearizable' });
  });

  const bad: [string, HistoryOperation[]][] = [
    ['a read of a value that nobody wrote', [write(0, 1, 5), read(2, 3, 6)]],
    ['a stale read after an acknowledged write', [write(0, 1, 5), read(2, 3, 0)]],
    ['a lost write', [write(0, 1, 1), write(2, 3, 2), read(4, 5, 1)]],
    ['reads that go back in time', [write(0, 100, 5), read(1, 2, 5), read(3, 4, 0)]],
    ['an unknown write that took effect and was undone', [write(0, NEVER, 9), read(5, 6, 9), read(7, 8, 0)]],
    ['an unknown write that took effect before it began', [read(0, 1, 9), write(2, NEVER, 9)]],
    ['an addition applied twice', [add(0, 1, 1, 1), read(2, 3, 2)]],
    ['two compare-and-sets that both won', [compareAndSet(0, 9, 0, 1, 1), compareAndSet(0, 9, 0, 2, 1)]],
    ['two additions with one result', [add(0, 9, 1, 1), add(0, 9, 1, 1)]],
    ['an impossible result on one register of several', [write(0, 1, 5, 0), write(0, 1, 6, 1), read(2, 3, 5, 1)]],
  ];
  test.each(bad)('rejects %s', (_, history) => {
    expect(checkLinearizability(history).kind).toBe('violation');
  });

  test('agrees with a brute-force search over all orders', () => {
    const operations = fc.array(
      fc.record({
        from: fc.nat({ max: 12 }),
        length: fc.nat({ max: 6 }),
        isUnknown: fc.boolean(),
        kind: fc.constantFrom(Operation.write, Operation.read, Operation.add, Operation.compareAndSet),
        value: fc.nat({ max: 2 }),
        expected: fc.nat({ max: 2 }),
        result: fc.nat({ max: 3 }),
      }),
      { maxLength: 6 },
    );
    const count = { linearizable: 0, violation: 0, undecided: 0 };
    fc.assert(
      fc.property(operations, (drawn) => {
        const history = drawn.map(({ from, length, isUnknown, kind, value, expected, result }) => {
          const answer = kind === Operation.write ? 0 : kind === Operation.compareAndSet ? result & 1 : result;
          return operation(from, isUnknown ? NEVER : from + length, kind, value, answer, expected);
        });
        const verdict = checkLinearizability(history).kind;
        count[verdict]++;
        expect(verdict).toBe(bruteForce(history, 0) ? 'linearizable' : 'violation');
      }),
      { numRuns: 1500 },
    );
    // Both outcomes were really tried.
    expect(Math.min(count.linearizable, count.violation)).toBeGreaterThan(50);
  });

  test('copes with long histories of many clients and with operations of unknown outcome', () => {
    const history: HistoryOperation[] = [];
    let register = 0;
    for (let index = 0; index < 4000; index++) {
      // Eight clients at a time, whose effects happen in the order of the index.
      const value = index + 1;
      if (index % 400 === 399) {
        history.push(write(index * 10, NEVER, value));
        if (index % 800 === 799) register = value;
      } else if (index % 3 === 0) history.push(read(index * 10, index * 10 + 80, register));
      else {
        register = value;
        history.push(write(index * 10, index * 10 + 80, value));
      }
    }
    expect(checkLinearizability(history)).toEqual({ kind: 'linearizable' });
    expect(checkLinearizability([...history.slice(0, 100), read(5000, 5001, 3)]).kind).toBe('violation');
  });

  test('knows the order of the log for a linearization when it is one, and only then', () => {
    const inSession = (operation: HistoryOperation, session: string) => ({ ...operation, session });
    const history = [
      inSession(write(0, 10, 1), 'a'),
      inSession(read(1, 12, 1), 'b'),
      inSession(add(13, 14, 2, 3), 'c'),
    ];
    const order = (...lsns: number[]) =>
      new Map(['a', 'b', 'c'].map((session, index) => [session, lsns[index] as number]));
    expect(logOrderIsLinearization(history, order(0, 64, 128))).toBe(true);
    expect(logOrderIsLinearization(history, order(64, 0, 128)), 'a read before the write it saw').toBe(false);
    expect(logOrderIsLinearization(history, order(64, 128, 0)), 'against the order in time').toBe(false);
    expect(logOrderIsLinearization(history, new Map([['a', 0]])), 'answered but not in the log').toBe(false);
    const unknown = inSession(write(0, NEVER, 1), 'a');
    expect(logOrderIsLinearization([unknown], new Map())).toBe(true);
  });

  test('says so when it gives a search up', () => {
    const history = [write(0, 100, 1), write(0, 100, 2), write(0, 100, 3), read(200, 201, 9)];
    expect(checkLinearizability(history, 3)).toEqual({ kind: 'undecided', key: 0, steps: 3 });
  });

  test('prints a history in the order of invocation', () => {
    const lines = formatHistory([read(5e6, 6e6, 9), write(0, NEVER, 9), compareAndSet(1e6, 2e6, 1, 2, 0)]);
    expect(lines).toHaveLength(3);
    expect(lines[0]).toMatch(/^0\.000 \.\. \.\.\. ms .*write\(0, 9\) = unknown$/);
    expect(lines[1]).toMatch(/compareAndSet\(0, 1 -> 2\) = 0$/);
    expect(lines[2]).toMatch(/read\(0\) = 9$/);
  });
});

function bruteForce(remaining: readonly HistoryOperation[], register: number): boolean {
  if (remaining.every(({ returned_ns }) => returned_ns === NEVER)) return true;
  const firstReturn = Math.min(...remaining.map(({ returned_ns }) => returned_ns));
  return remaining.some((candidate, index) => {
    if (candidate.invoked_ns > firstReturn) return false;
    const after = step(register, candidate.command);
    if (candidate.returned_ns !== NEVER && after.result !== candidate.result) return false;
    return bruteForce(remaining.toSpliced(index, 1), after.register);
  });
}
