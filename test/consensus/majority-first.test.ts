// What a flush does that writes to a majority first (ReplicationOptions.majorityFirst_ns), where no script can say it: how
// much of it is done when flush() returns, before anything else has its turn.
import { expect, test } from 'vitest';
import { ReplicationPlane } from '#lib/consensus/replication-plane.js';
import { SimLink } from '#lib/fabric/sim/sim-link.js';
import { replace } from '#lib/testing/replace-method.js';
import { parseCommand, ScriptedCluster } from '#lib/testing/scripted-cluster.js';
import { encodeCommand } from '#lib/testing/sim-state-machine.js';

const US = 1e3;
const MS = 1e6;
const LOG_BYTES = 256 * 1024;

/** A cluster with a leader, replica 0, and learners, whose main plane does what the test does and nothing else. */
function heldLeader(replicas: number, learners: readonly number[] = []) {
  const cluster = new ScriptedCluster({
    replicas,
    joiners: learners.length,
    adjust: (options) => ({ ...options, majorityFirst_ns: 50 * US, spin_ns: 50 * US, logBytes: LOG_BYTES }),
  });
  cluster.cluster.startAll();
  cluster.runUntilLeader(0);
  cluster.runUntilConverged();
  const life = cluster.life(0);
  const { replication } = life;
  for (const id of learners) {
    expect(life.changeMembership({ kind: 'addLearner', id, host: `r${id}`, port: 1, priority: 0 })).toBe('');
    cluster.runUntil('the learner to catch up', () => replication.isCaughtUp(id));
  }
  cluster.run(200 * MS);
  cluster.hold(0, 'main stalled');
  cluster.run(1 * MS);
  let sequence = 0;
  const propose = (fillerBytes = 0): void => {
    const command = encodeCommand(parseCommand('x=1'), fillerBytes);
    expect(replication.propose(1000, ++sequence, command)).toBeGreaterThan(0);
  };
  return { cluster, replication, propose };
}

test('those that are tried last of all, too, have been written to when flush() returns', () => {
  const { cluster, replication, propose } = heldLeader(5);
  // Replica 3 was sent three WRITEs, which it acknowledges one by one while the flush waits for replicas 1 and 2.
  // biome-ignore lint/suspicious/noExplicitAny: no flush leaves out all but one
  const internals = replication as any;
  for (const factor of [1.5, 6.5, 11.5]) {
    cluster.slowDown(factor);
    propose();
    internals.endRun();
    internals.pump(3);
    internals.submit(0);
  }
  cluster.slowDown(1);
  cluster.cut(0, 1);
  cluster.cut(0, 2);
  propose();
  replication.flush();
  expect(replication.commitLsn).toBeLessThan(replication.tailLsn);
  cluster.run(10 * MS);
  expect(cluster.life(4).replication.tailLsn).toBe(replication.tailLsn);
});

test('a learner that is left out has caught up all the same, also in small rings', () => {
  const { replication, propose } = heldLeader(3, [3]);
  const isCaughtUp: boolean[] = [];
  let leftOut = 0;
  for (let flushes = 0; flushes < 20; flushes++) {
    propose(4000);
    replication.flush();
    isCaughtUp.push(replication.isCaughtUp(3));
    if (replication.peerAckedLsn(3) < replication.commitLsn) leftOut++;
  }
  expect(isCaughtUp).not.toContain(false);
  expect(leftOut).toBeGreaterThan(10);
});

/** All that is sent to the replica's log takes so many times as long; the function returned ends that. */
function slowLog(cluster: ScriptedCluster, id: number, factor: number): () => void {
  return replace(
    SimLink.prototype,
    'post',
    (original) =>
      function (request: unknown) {
        cluster.slowDown(this.kind === 'log' && this.responder.id === id ? factor : 1);
        original.call(this, request);
        cluster.slowDown(1);
      },
  );
}

test('a follower that always answers late is not waited for in vain again and again', () => {
  const { cluster, replication, propose } = heldLeader(3);
  let inVain = 0;
  const mend = [
    slowLog(cluster, 1, 12),
    replace(
      ReplicationPlane.prototype,
      'tryOthers',
      (original) =>
        function () {
          inVain++;
          original.call(this);
        },
    ),
  ];
  for (let flushes = 0; flushes < 128; flushes++) {
    propose();
    replication.flush();
    expect(replication.commitLsn).toBe(replication.tailLsn);
  }
  for (const undo of mend) undo();
  expect(inVain).toBeGreaterThan(0);
  expect(inVain).toBeLessThan(8);
});
