// What the nemesis's checking thread says of histories: in full while nothing was found, and soon once a run is convicted.
import { afterAll, afterEach, expect, test } from 'vitest';
import { Deadline } from '#lib/cli/demo/deadline.js';
import { Means, type OperationRecord, Outcome } from '#lib/cli/nemesis/history.js';
import { Judge } from '#lib/cli/nemesis/judge.js';
import { Operation } from '#lib/testing/sim-state-machine.js';

const UNKNOWN_ADDS = 15;

const deadline = new Deadline(25_000);
afterAll(() => deadline.end());
const judges: Judge[] = [];
afterEach(async () => {
  for (const judge of judges.splice(0)) await judge.end();
});

function makeJudge(): Judge {
  const judge = new Judge(1, 1, deadline, () => {});
  judges.push(judge);
  return judge;
}

function operation(key: number, more: Partial<OperationRecord>): OperationRecord {
  const answered = { invoked_ns: 1, returned_ns: 2, outcome: Outcome.ok, result: 0, by: Means.log } as const;
  return { client: 0, operation: Operation.read, key, value: 0, expected: 0, ...answered, ...more };
}

/** A read of what nobody wrote. */
const plain = (key: number) => [operation(key, { result: 7 })];

/** The same, and any of these additions may have been executed before it: the search tries all sets of them. */
const hard = (key: number) => [
  ...Array.from({ length: UNKNOWN_ADDS }, (_, bit) =>
    operation(key, { client: bit + 1, operation: Operation.add, value: 2 ** (bit + 1), outcome: Outcome.unknown }),
  ),
  operation(key, { invoked_ns: 3, returned_ns: 4, result: 7 }),
];

const kinds = (judge: Judge) => judge.verdicts.map(({ key, kind }) => [key, kind]);

test('a history is searched to the end while no other has convicted the run', async () => {
  const judge = makeJudge();
  judge.add(hard(0));
  expect(await judge.keptKeys()).toEqual([0]);
  expect(kinds(judge)).toEqual([[0, 'violation']]);
});

test('once a run is convicted a long search is given up early, and short ones say what they did', async () => {
  const judge = makeJudge();
  judge.add([...plain(0), ...hard(1), ...plain(2), operation(3, { result: 0 })]);
  await judge.keptKeys();
  expect(kinds(judge)).toEqual([
    [0, 'violation'],
    [1, 'undecided'],
    [2, 'violation'],
  ]);
});

test('a last read of a register convicts it once, and not again', async () => {
  const judge = makeJudge();
  judge.add([...plain(0), operation(1, { result: 0 })]);
  expect(await judge.keptKeys()).toEqual([0, 1]);
  const last = { invoked_ns: 5, returned_ns: 6, result: 9 };
  const history = await judge.finish([operation(0, last), operation(1, last)]);
  expect(kinds(judge)).toEqual([
    [0, 'violation'],
    [1, 'violation'],
  ]);
  expect(judge.violations).toBe(2);
  expect(history.map(({ key, result }) => [key, result])).toEqual([
    [0, 7],
    [0, 9],
    [1, 0],
    [1, 9],
  ]);
});
