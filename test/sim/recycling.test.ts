// A grant reads the own log from the LSN that the main block publishes as applied. The leader publishes when it has nothing
// more urgent to do; however long that takes, it may not overwrite what a grant would have to read.
import { expect, test } from 'vitest';
import { MAIN_BLOCK_OFFSET_WORDS } from '#lib/consensus/limits.js';
import { readU53 } from '#lib/consensus/sealed-block.js';
import { MainField } from '#lib/consensus/status-layout.js';
import { ScriptedCluster } from '#lib/testing/scripted-cluster.js';
import { encodeCommand, Operation } from '#lib/testing/sim-state-machine.js';

test('a leader that goes around the ring between two publications overwrites nothing that is not published as applied', () => {
  const cluster = new ScriptedCluster({ replicas: 1 });
  cluster.cluster.startAll();
  const { replication, node } = cluster.runUntilLeader(0);
  const { logBytes } = cluster.options;
  const status = new Uint32Array(node.status.buffer);
  const payload = encodeCommand({ operation: Operation.add, key: 0, value: 1, expected: 0 }, 1000);
  const firstLsn = replication.tailLsn;
  let sequence = 0;
  while (replication.tailLsn < firstLsn + 3 * logBytes) {
    // A replica that is alone commits with each flush. Its background plane may grant the log at any instant.
    expect(replication.propose(99, ++sequence, payload)).toBeGreaterThan(0);
    replication.flush();
    const publishedLsn = readU53(status, MAIN_BLOCK_OFFSET_WORDS + MainField.appliedLsn);
    expect(replication.tailLsn - logBytes).toBeLessThanOrEqual(publishedLsn);
  }
});
