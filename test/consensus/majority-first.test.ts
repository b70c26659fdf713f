// What a flush does that writes to a majority first (ReplicationOptions.majorityFirst_ns), where no script can say it: how
// much of it is done when flush() returns, before anything else has its turn.
import { expect, test } from 'vitest';
import { parseCommand, ScriptedCluster } from '#lib/testing/scripted-cluster.js';
import { encodeCommand } from '#lib/testing/sim-state-machine.js';

const US = 1e3;
const MS = 1e6;

/** A cluster with a leader, replica 0, whose main plane does what the test does and nothing else. */
function heldLeader(replicas: number) {
  const cluster = new ScriptedCluster({
    replicas,
    adjust: (options) => ({ ...options, majorityFirst_ns: 50 * US }),
  });
  cluster.cluster.startAll();
  cluster.runUntilLeader(0);
  cluster.runUntilConverged();
  cluster.run(200 * MS);
  cluster.hold(0, 'main stalled');
  cluster.run(1 * MS);
  const { replication } = cluster.life(0);
  let sequence = 0;
  const propose = (): void => {
    expect(replication.propose(1000, ++sequence, encodeCommand(parseCommand('x=1'), 0))).toBeGreaterThan(0);
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
