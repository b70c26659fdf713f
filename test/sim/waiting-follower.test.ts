// A replica that has granted its log to a candidate which then writes nothing waits, for as long as that takes. It does
// not go through the same entries again and again, nor tell its host of the same configurations (docs/bugs).
import { expect, test } from 'vitest';
import { ScriptedCluster } from '#lib/testing/scripted-cluster.js';
import { forgetsWhatHasNotChanged } from '../support/mutants.js';

/** Events of the simulation while replica 0, whose log ends in a configuration of a deposed leader, waits for replica 1. */
function eventsWhileWaiting(): number {
  const cluster = new ScriptedCluster({ replicas: 3 });
  cluster.cluster.startAll();
  const leader = cluster.runUntilLeader(0);
  cluster.runUntilConverged();
  cluster.run(200e6);
  cluster.partition([0], [1, 2]);
  expect(leader.changeMembership({ kind: 'remove', id: 2 })).toBe('');
  leader.replication.flush();
  const successor = cluster.runUntilLeader(1);
  cluster.heal();
  cluster.runUntil('replica 0 to grant its log', () => leader.background.writer === 1);
  cluster.hold(1, 'main stalled'); // before it has read the grant
  cluster.run(1e6);
  expect(leader.replication.configuration.version).toBe(2);
  expect(leader.replication.tailLsn).toBeGreaterThan(leader.replication.appliedLsn);
  const { world } = cluster;
  const before = world.eventsRun;
  cluster.run(50e6);
  const events = world.eventsRun - before;
  cluster.release(1);
  cluster.runUntilConverged();
  expect(leader.replication.appliedLsn).toBe(successor.replication.tailLsn);
  expect(world.violation).toBeNull();
  return events;
}

test('a follower whose log ends in a configuration of a deposed leader does nothing while nothing is written', () => {
  const events = eventsWhileWaiting();
  const mend = forgetsWhatHasNotChanged.install();
  try {
    expect(eventsWhileWaiting).toThrow(/a loop/);
  } finally {
    mend();
  }
  expect(events).toBeLessThan(1000);
});
