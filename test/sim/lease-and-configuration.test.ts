// A lease holds by the promises of the voters of one configuration. Once another one is in force its voters have to be
// counted: two changes within one lease could put a majority in place that has promised nothing.
import { expect, test } from 'vitest';
import { ScriptedCluster } from '#lib/testing/scripted-cluster.js';

const LENGTH_NS = 210e6;

test('a lease counts for nothing from the append of another configuration on, until its voters have been counted', () => {
  const cluster = new ScriptedCluster({
    replicas: 3,
    adjust: (options) => ({ ...options, lease: { length_ns: LENGTH_NS, driftBound: 0 } }),
  });
  cluster.cluster.startAll();
  const leader = cluster.runUntilLeader(0);
  const { replication } = leader;
  cluster.runUntilConverged();
  cluster.run(200e6);
  const read = (): number | undefined =>
    replication.leasedRead(
      () => 4711,
      () => leader.clock_ns(),
    );
  expect(read()).toBe(4711);
  expect(replication.leaseRemaining_ns(leader.clock_ns())).toBeGreaterThan(0);

  // No promise has ended, and no time passes: only the voters are others.
  expect(leader.changeMembership({ kind: 'remove', id: 2 })).toBe('');
  expect(replication.configuration.voters.map(({ id }) => id)).toEqual([0, 1]);
  expect(replication.leaseRemaining_ns(leader.clock_ns())).toBe(0);
  expect(read()).toBeUndefined();
  expect(replication.holdsLease(leader.clock_ns())).toBe(false);

  // The voters of the next configuration promise as before.
  replication.flush();
  cluster.runUntil('a lease by the next configuration', () => read() !== undefined, 50e6);
  expect(replication.configuration.version).toBe(2);
});
