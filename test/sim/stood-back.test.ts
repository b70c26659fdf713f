// Who loses an election, or its leadership, stands back for a random time, so that candidates do not keep in step. When
// another one leads, that is over: the next election may come at once, and nobody may be left to stand in it.
import { expect, test } from 'vitest';
import { ScriptedCluster } from '#lib/testing/scripted-cluster.js';
import { standsBackForALeader, under } from '../support/mutants.js';

/** Who leads when the leader dies that led while replica 0 was cut off, shortly after that one follows it. */
function nextLeader(): number {
  const cluster = new ScriptedCluster({
    replicas: 3,
    adjust: ({ profile, ...options }) => ({
      ...options,
      profile: { ...profile, takeoverTimeout_ns: 1e9 }, // so it stands back for 250 ms at least
      exitNoticeProbability: 1,
    }),
  });
  cluster.cluster.startAll();
  const former = cluster.runUntilLeader(0);
  cluster.runUntilConverged();
  cluster.run(200e6);
  cluster.partition([0], [1, 2]);
  cluster.runUntil('replica 0 to give up', () => former.replication.role === 'follower');
  cluster.heal();
  const trusts = (id: number, other: number): boolean =>
    (cluster.life(id).replication.trustedMask & (1 << other)) !== 0;
  cluster.runUntil('replica 0 to follow', () => former.replication.leader === 1 && trusts(0, 2) && trusts(2, 0));
  expect(cluster.cluster.leader()?.id).toBe(1);
  cluster.run(20e6);
  cluster.cluster.crash(1);
  cluster.runUntil('the next leader', () => (cluster.cluster.leader()?.id ?? 1) !== 1);
  return cluster.cluster.leader()?.id as number;
}

test('a deposed leader that follows the next one may stand again when that dies', () => {
  expect(nextLeader()).toBe(0); // which comes before replica 2
  expect(under(standsBackForALeader, nextLeader)).toBe(2);
});
