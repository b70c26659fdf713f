import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { EpochHistory, findDivergence } from '#lib/consensus/epoch-history.js';

/** A log in a model: the epoch of each entry; every entry takes one unit of LSN. */
type ModelLog = readonly number[];

/** Where two logs differ first; entries are the same if their position, epoch and all before are (log matching). */
function divergenceOf(leader: ModelLog, voter: ModelLog): number {
  let lsn = 0;
  while (lsn < leader.length && lsn < voter.length && leader[lsn] === voter[lsn]) lsn++;
  return lsn;
}

function historyOf(log: ModelLog, from: number, capacity = 64): EpochHistory {
  const history = new EpochHistory(capacity);
  for (let lsn = from; lsn < log.length; lsn++) history.note(log[lsn] as number, lsn);
  return history;
}

/**
 * Logs as the protocol makes them: each leader takes one of the logs as it is (or cut back to a prefix, for a voter that
 * had not received everything), appends entries of its own new epoch, and some replicas get a prefix of the result.
 */
const clusterLogs = fc
  .array(
    fc.record({
      base: fc.nat({ max: 2 }),
      keep: fc.nat({ max: 30 }),
      append: fc.integer({ min: 1, max: 6 }),
      receivers: fc.array(fc.nat({ max: 30 }), { minLength: 3, maxLength: 3 }),
      reaches: fc.array(fc.boolean(), { minLength: 3, maxLength: 3 }),
    }),
    { minLength: 1, maxLength: 12 },
  )
  .map((steps) => {
    const logs: number[][] = [[], [], []];
    steps.forEach(({ base, append, receivers, reaches }, index) => {
      const log = [...(logs[base] as number[])];
      for (let count = 0; count < append; count++) log.push(index + 1);
      logs[base] = log;
      logs.forEach((old, replica) => {
        if (replica === base || !reaches[replica]) return;
        const common = divergenceOf(log, old);
        const length = Math.max(common, Math.min(log.length, common + (receivers[replica] as number)));
        logs[replica] = log.slice(0, length);
      });
    });
    return logs as [number[], number[], number[]];
  });

describe('findDivergence', () => {
  test('finds exactly where two logs part when both histories show everything', () => {
    fc.assert(
      fc.property(clusterLogs, ([leader, voter]) => {
        const found = findDivergence(historyOf(leader, 0), leader.length, historyOf(voter, 0), voter.length, 0);
        expect(found).toBe(divergenceOf(leader, voter));
      }),
      { numRuns: 2000 },
    );
  });

  test('finds it also when the histories begin at what is agreed on, as after applying or a snapshot', () => {
    fc.assert(
      fc.property(clusterLogs, fc.nat(), fc.nat(), ([leader, voter], pick, leaderPick) => {
        const common = divergenceOf(leader, voter);
        const agreed = pick % (common + 1);
        const leaderFrom = leaderPick % (agreed + 1);
        const found = findDivergence(
          historyOf(leader, leaderFrom),
          leader.length,
          historyOf(voter, agreed),
          voter.length,
          agreed,
        );
        expect(found).toBe(common);
      }),
      { numRuns: 2000 },
    );
  });

  test('never claims more than is common, nor less than is agreed, when old runs were forgotten', () => {
    fc.assert(
      fc.property(
        clusterLogs,
        fc.integer({ min: 1, max: 4 }),
        fc.integer({ min: 1, max: 4 }),
        fc.nat(),
        (logs, a, b, pick) => {
          const [leader, voter] = logs;
          const common = divergenceOf(leader, voter);
          const agreed = pick % (common + 1);
          const leaderHistory = historyOf(leader, 0, a);
          const voterHistory = historyOf(voter, agreed, b);
          const found = findDivergence(leaderHistory, leader.length, voterHistory, voter.length, agreed);
          expect(found).toBeLessThanOrEqual(common);
          expect(found).toBeGreaterThanOrEqual(agreed);
        },
      ),
      { numRuns: 2000 },
    );
  });
});

describe('epoch history', () => {
  test('keeps one run per epoch and forgets the oldest when it is full', () => {
    const history = new EpochHistory(2);
    for (const [epoch, lsn] of [
      [1, 0],
      [1, 64],
      [2, 128],
      [4, 192],
    ] as const) {
      history.note(epoch, lsn);
    }
    expect(history.count).toBe(2);
    expect([...history.epochs]).toEqual([2, 4]);
    expect([...history.startLsns]).toEqual([128, 192]);
  });

  test('forgets runs that begin at or above the place it is cut to', () => {
    const history = new EpochHistory(8);
    history.note(1, 0);
    history.note(2, 100);
    history.note(3, 200);
    history.truncateTo(200);
    expect(history.count).toBe(2);
    history.truncateTo(150);
    expect(history.count).toBe(2);
    history.truncateTo(100);
    expect(history.count).toBe(1);
  });

  test('copies another history', () => {
    const from = new EpochHistory(4);
    from.note(1, 0);
    from.note(5, 64);
    const to = new EpochHistory(1);
    to.copyFrom(from);
    expect([to.count, to.epochs[0], to.startLsns[0]]).toEqual([1, 5, 64]);
  });
});
