// A replica that has granted its log to a candidate which then writes nothing waits, for as long as that takes. It does
// not go through the same entries again and again, nor tell its host of the same configurations (docs/bugs), and does not
// take its log for committed by the word of the leader before.
import { expect, test, vi } from 'vitest';
import { ScriptedCluster } from '#lib/testing/scripted-cluster.js';
import { forgetsWhatHasNotChanged, under, wakesForWhatWasCutOff } from '../support/mutants.js';

/** Replica 0, whose log ends in a configuration that it could not commit as leader, has granted it to replica 1, which is held. */
function waitingForSuccessor() {
  const cluster = new ScriptedCluster({ replicas: 3 });
  cluster.cluster.startAll();
  const former = cluster.runUntilLeader(0);
  cluster.runUntilConverged();
  cluster.run(200e6);
  const formerEpoch = former.replication.promisedEpoch;
  cluster.partition([0], [1, 2]);
  expect(former.changeMembership({ kind: 'remove', id: 2 })).toBe('');
  former.replication.flush();
  const successor = cluster.runUntilLeader(1);
  cluster.heal();
  cluster.runUntil('replica 0 to grant its log', () => former.background.writer === 1);
  cluster.hold(1, 'main stalled'); // before it has read the grant
  cluster.run(1e6);
  expect(former.replication.tailLsn).toBeGreaterThan(former.replication.appliedLsn);
  return { cluster, former, formerEpoch, successor };
}

/** Events of the simulation while replica 0 waits. */
function eventsWhileWaiting(): number {
  const { cluster, former, successor } = waitingForSuccessor();
  expect(former.replication.configuration.version).toBe(2);
  const { world } = cluster;
  const before = world.eventsRun;
  cluster.run(50e6);
  const events = world.eventsRun - before;
  cluster.release(1);
  cluster.runUntilConverged();
  expect(former.replication.appliedLsn).toBe(successor.replication.tailLsn);
  expect(world.violation).toBeNull();
  return events;
}

test('a follower whose log ends in a configuration of a deposed leader does nothing while nothing is written', () => {
  expect(eventsWhileWaiting()).toBeLessThan(1000);
  expect(() => under(forgetsWhatHasNotChanged, eventsWhileWaiting)).toThrow(/a loop/);
});

test('a follower takes only the leader that it has promised at its word for what is committed', () => {
  const { former, formerEpoch } = waitingForSuccessor();
  const { commitLsn, tailLsn, promisedEpoch } = former.replication;
  former.replication.noteCommit(formerEpoch, tailLsn);
  expect(former.replication.commitLsn).toBe(commitLsn);
  former.replication.noteCommit(promisedEpoch, commitLsn + 64);
  expect(former.replication.commitLsn).toBe(commitLsn + 64);
});

/** How often replica 0 looks at its log while nothing is written, after what it alone had was cut off and a noop took its place. */
function looksAfterCut(): number {
  const cluster = new ScriptedCluster({ replicas: 3 });
  cluster.cluster.startAll();
  const former = cluster.runUntilLeader(0);
  cluster.runUntilConverged();
  cluster.partition([0], [1, 2]);
  // As large as a noop, so that the second one stands where the log ends afterwards.
  for (let count = 0; count < 2; count++)
    expect(former.replication.propose(0, 0, new Uint8Array(8))).toBeGreaterThan(0);
  former.replication.flush();
  cluster.runUntilLeader(1);
  cluster.heal();
  cluster.runUntilConverged();
  cluster.run(200e6);
  const looks = vi.spyOn(former.replication, 'poll');
  cluster.run(1e9);
  return looks.mock.calls.length;
}

test('a follower is not woken by what was cut off behind the end of its log', () => {
  const looks = looksAfterCut();
  expect(under(wakesForWhatWasCutOff, looksAfterCut)).toBeGreaterThan(5 * looks);
});
