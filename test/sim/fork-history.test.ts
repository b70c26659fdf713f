// What a new cluster has to explain of the answers that clients got from the old one: those that were given from a log that
// both have, and no others. The case is one that random runs came upon, twice in some thousands: an acknowledged command stands
// twice in the logs, where it took effect, which no survivor held, and before that, in the end of the survivor's log, which had
// never been committed.
import { describe, expect, test } from 'vitest';
import { EntryType } from '#lib/consensus/entry.js';
import { checkLinearizability, type HistoryOperation } from '#lib/testing/checkers/linearizability.js';
import { ForkHistory } from '#lib/testing/fork-history.js';
import type { LogNode } from '#lib/testing/log-tree.js';
import { type Command, Operation, SimStateMachine } from '#lib/testing/sim-state-machine.js';

const FORK_NS = 100;
const COPY_LSN = 128;
const WRITE_LSN = 256;
const EFFECT_LSN = 320;
const WRITE: Command = { operation: Operation.write, key: 0, value: 10, expected: 0 };
const ADD: Command = { operation: Operation.add, key: 0, value: 5, expected: 0 };
const READ: Command = { operation: Operation.read, key: 0, value: 0, expected: 0 };

/** A write and then an addition were answered by the old cluster; the new one reads what the addition alone makes. */
const history: HistoryOperation[] = [
  { process: 0, command: WRITE, invoked_ns: 1, returned_ns: 2, result: 0, session: '2:1' },
  { process: 1, command: ADD, invoked_ns: 3, returned_ns: 4, result: 15, session: '1:1' },
  { process: 0, command: READ, invoked_ns: FORK_NS + 1, returned_ns: FORK_NS + 2, result: 5, session: '2:2' },
];

/** The survivor has a copy of the addition at COPY_LSN, and nothing else. */
function fork(effectsBefore: ReadonlyMap<string, number>): ForkHistory {
  const state = new SimStateMachine(1);
  state.apply(1, 1, ADD);
  const tip = { type: EntryType.command, origin: 1, sequence: 1, startLsn: COPY_LSN, parent: null } as LogNode;
  return new ForkHistory(tip, state.snapshot(), FORK_NS, effectsBefore);
}

describe('of a command that stands twice in the logs the survivor executes its own copy', () => {
  const forked = fork(
    new Map([
      ['2:1', WRITE_LSN],
      ['1:1', EFFECT_LSN],
    ]),
  );

  test('the old cluster explains what it answered', () => {
    const { history: before } = forked.before(history);
    expect(before.length).toBe(2);
    expect(checkLinearizability(before)).toEqual({ kind: 'linearizable' });
  });

  test('what was answered does not bind the new cluster, which has executed the command', () => {
    const { history: after } = forked.after(history, forked.kept);
    expect(after.map(({ session }) => session)).toEqual(['1:1', '2:2']);
    expect(checkLinearizability(after)).toEqual({ kind: 'linearizable' });
  });
});

test('what was answered from a log that both clusters have binds the new one', () => {
  const forked = fork(new Map([['1:1', COPY_LSN]]));
  const { history: after } = forked.after(history, forked.kept);
  expect(checkLinearizability(after).kind).toBe('violation');
});
