// Simulated clusters that lose a majority of their voters for ever, under load: the best survivor becomes a new cluster, which
// takes the others in again. What no survivor held is lost, and nothing else; clients go on, and all end in the same state.
import { expect, test } from 'vitest';
import { Random } from '#lib/fabric/sim/random.js';
import { losingDirectories, losingMajority } from '#lib/testing/fork-mutations.js';
import { ScriptedCluster } from '#lib/testing/scripted-cluster.js';
import { MajorityLoss } from '#lib/testing/sim-majority-loss.js';
import { drawOptions } from '#lib/testing/sim-options.js';
import { runSimulation } from '#lib/testing/simulation.js';

const SEEDS = 3;

test.each([3, 5])('%i replicas go on after the loss of a majority', { timeout: 120_000 }, (replicas) => {
  let forks = 0;
  let operationsAfter = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    const result = runSimulation({ seed, replicas, virtualSeconds: 13, adjust: losingMajority, traceLines: 1_000_000 });
    expect(result.violation, `seed ${seed}, ${replicas} replicas`).toBeNull();
    if (result.forks === 0) continue;
    forks++;
    const begun = result.trace.findIndex((line) => line.includes('a new cluster begins'));
    const after = result.trace.slice(begun).join('\n');
    // It has taken in others, and been led in epochs far above those of the old one.
    expect(after, `seed ${seed}`).toMatch(/configuration \d+: voter r\d\/\d+,voter r\d/);
    for (const [, counter] of after.matchAll(/leads in epoch (\d+)\./g))
      expect(Number(counter)).toBeGreaterThan(2 ** 16);
    operationsAfter += result.operations;
  }
  expect(forks).toBeGreaterThan(SEEDS / 2);
  expect(operationsAfter).toBeGreaterThan(100 * forks);
});

test('durable replicas go on with the directory of one that is left, whenever its power goes', {
  timeout: 180_000,
}, () => {
  let forks = 0;
  let deaths = 0;
  let starts = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    const adjust = losingDirectories;
    const result = runSimulation({ seed, replicas: 3, virtualSeconds: 13, adjust, traceLines: 1_000_000 });
    expect(result.violation, `seed ${seed}`).toBeNull();
    if (result.trace.some((line) => line.includes('dies before the new cluster is in force'))) deaths++;
    if (result.forks === 0) continue;
    forks++;
    const begun = result.trace.findLastIndex((line) => line.includes('a new cluster begins'));
    const after = result.trace.slice(begun).join('\n');
    expect(after, `seed ${seed}`).toMatch(/configuration \d+: voter r\d\/\d+,voter r\d/);
    // The same life in another process: the directory is its own.
    starts += [...after.matchAll(/r\d\/\d+\/\d+ .*starts/g)].length;
  }
  expect(forks).toBeGreaterThan(SEEDS / 2);
  expect(deaths).toBeGreaterThan(0);
  expect(starts).toBeGreaterThan(forks);
});

/** All voters but this one die, 10 ms later. */
function strike(cluster: ScriptedCluster, survivor: number): MajorityLoss {
  const voters = cluster.cluster.inForce[0]?.voters.map(({ id }) => id) ?? [];
  const drawn = { next: () => (voters.shift() === survivor ? 0 : 1), integer: () => 10e6, chance: () => false };
  const loss = new MajorityLoss(cluster.world, cluster.checked, cluster.options, drawn as unknown as Random);
  expect(loss.strike()).toBe(true);
  return loss;
}

/** Removes a member, and waits for that to be committed, or does not. */
function remove(cluster: ScriptedCluster, id: number, isCommitted: boolean): void {
  const leader = cluster.life(0);
  expect(leader.changeMembership({ kind: 'remove', id })).toBe('');
  if (!isCommitted) return;
  cluster.runUntil('the change', () =>
    leader.replication.appliedConfiguration.voters.every((voter) => voter.id !== id),
  );
  cluster.run(500e6);
}

test('a loss is over where a change of the membership that was on its way removes the only survivor, or all others', () => {
  const lost = (removedBefore: readonly number[], removed: number, survivor: number) => {
    const cluster = new ScriptedCluster({
      replicas: 3,
      adjust: (options) => ({ ...options, majorityLoss: { after: 0, wait_ns: 500e6 } }),
    });
    cluster.cluster.startAll();
    cluster.runUntilLeader(0);
    cluster.runUntilConverged();
    cluster.run(200e6);
    for (const id of removedBefore) remove(cluster, id, true);
    const loss = strike(cluster, survivor);
    remove(cluster, removed, false);
    cluster.runUntil('the end of it', () => loss.isOver || loss.forked !== null, 5e9);
    const { lives } = cluster.cluster;
    return { isForked: loss.forked !== null, alive: lives.flatMap((life) => (life === null ? [] : [life.id])) };
  };
  expect(lost([], 2, 2)).toEqual({ isForked: false, alive: [] });
  expect(lost([2], 0, 1)).toEqual({ isForked: false, alive: [1] });
  expect(lost([2], 1, 1)).toEqual({ isForked: false, alive: [] });
  // A change that does not help the survivor leaves it in need of a new cluster.
  expect(lost([], 2, 1)).toEqual({ isForked: true, alive: [] });
});

test('acknowledged commands that no survivor held are counted as lost', { timeout: 120_000 }, () => {
  const lost = [];
  for (let seed = 1; seed <= 3 * SEEDS; seed++) {
    const result = runSimulation({ seed, replicas: 3, virtualSeconds: 7, adjust: losingMajority });
    expect(result.violation, `seed ${seed}`).toBeNull();
    if (result.lost > 0) lost.push(seed);
  }
  expect(lost.length).toBeGreaterThan(0);
  expect(lost.length).toBeLessThan(SEEDS);
});

test('some runs draw it, of replicas with disks and of others', () => {
  const drawn = Array.from({ length: 1000 }, (_, seed) =>
    drawOptions(new Random(seed), { replicas: 3, virtualSeconds: 13 }),
  );
  const losing = drawn.filter(({ majorityLoss }) => majorityLoss !== null);
  expect(losing.length).toBeGreaterThan(20);
  expect(losing.length).toBeLessThan(200);
  const durable = losing.filter(({ disk }) => disk !== null).length;
  expect(durable).toBeGreaterThan(5);
  expect(losing.length - durable).toBeGreaterThan(durable);
});
