// A voter can be asked by a candidate that it cannot read yet: its links to a replica that was just started may be made later
// than those of the others, and than those of that replica to it. It grants, and does not take what it cannot see for dead.
import { expect, test } from 'vitest';
import { ScriptedCluster } from '#lib/testing/scripted-cluster.js';
import { standsBehindItsGrant, under } from '../support/mutants.js';

const LONG_NS = 5e9;

/** Replica 2 grants replica 1, which leads by the grants of the others, without being able to read it. */
function grantedUnseen() {
  const cluster = new ScriptedCluster({
    replicas: 5,
    // What is written to replica 2 arrives, though replica 1 does not hear so; and no link breaks of that.
    adjust: (options) => ({
      ...options,
      network: { ...options.network, giveUpMin_ns: LONG_NS, giveUpMax_ns: LONG_NS },
    }),
  });
  cluster.cluster.startAll();
  cluster.runUntilLeader(0);
  cluster.runUntilConverged();
  cluster.run(200e6);
  const trusts = (id: number, other: number): boolean =>
    (cluster.life(id).replication.trustedMask & (1 << other)) !== 0;
  cluster.cut(2, 1);
  cluster.runUntil('replica 2 to suspect replica 1', () => !trusts(2, 1));
  cluster.hold(2, 'background stalled');
  cluster.cluster.crash(0);
  const leader = cluster.runUntilLeader(1);
  const { leaderEpoch } = leader.replication;
  cluster.release(2);
  const voter = cluster.life(2);
  cluster.runUntil('the grant of replica 2', () => voter.replication.promisedEpoch >= leaderEpoch);
  return { cluster, leader, leaderEpoch, voter, trusts };
}

/** Epochs that the leader began, by the time that all is well again. */
function epochsLed(): number {
  const { cluster, leader, leaderEpoch, trusts } = grantedUnseen();
  cluster.run(50e6);
  cluster.heal();
  cluster.runUntil('replica 2 to trust replica 1', () => trusts(2, 1));
  cluster.run(1e9);
  expect(leader.replication.role).toBe('leader');
  return leader.replication.leaderEpoch === leaderEpoch ? 1 : 2;
}

test('a voter that granted a candidate which it cannot read leaves it the time to take over', () => {
  expect(epochsLed()).toBe(1);
  expect(under(standsBehindItsGrant, epochsLed)).toBe(2);
});

test('it does not wait for ever', () => {
  const { cluster, leaderEpoch, voter } = grantedUnseen();
  cluster.cluster.crash(1);
  cluster.runUntil('another leader', () => {
    const next = cluster.cluster.leader();
    return next !== null && next.replication.leaderEpoch > leaderEpoch;
  });
  expect(voter.replication.promisedEpoch).toBeGreaterThan(leaderEpoch);
});

test('nor for a candidate that it has seen since, and does not see any more', () => {
  const { cluster, leaderEpoch, voter, trusts } = grantedUnseen();
  cluster.heal();
  cluster.runUntil('replica 2 to trust replica 1', () => trusts(2, 1));
  cluster.cluster.crash(1);
  cluster.runUntil('replica 2 to suspect replica 1', () => !trusts(2, 1));
  // All three that are left see it at nearly the same time, and replica 2 is the one to stand.
  cluster.runUntil('replica 2 to stand', () => voter.replication.promisedEpoch > leaderEpoch, 30e6);
});
