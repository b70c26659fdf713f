// What a replica publishes is copied block by block, and each block as it comes: a grant of a new life may be there before
// its main block is. What the block of the life before says was applied, the new one has yet to apply.
import { expect, test } from 'vitest';
import { MAIN_BLOCK_OFFSET_WORDS, MAIN_BLOCK_WORDS } from '#lib/consensus/limits.js';
import { PROPOSE_LOG_FULL } from '#lib/consensus/replication-plane.js';
import { readU53 } from '#lib/consensus/sealed-block.js';
import { MainField } from '#lib/consensus/status-layout.js';
import { ScriptedCluster } from '#lib/testing/scripted-cluster.js';
import { encodeCommand, Operation } from '#lib/testing/sim-state-machine.js';

test('a leader overwrites nothing that a new life has yet to apply, whatever is still to be read of the life before', () => {
  const cluster = new ScriptedCluster({ replicas: 3 });
  cluster.cluster.startAll();
  const { replication, exchange } = cluster.runUntilLeader(0);
  const { logBytes } = cluster.options;
  cluster.runUntilConverged();
  for (let count = 0; count < 13; count++) cluster.propose(0, 'a+=1', 4000);
  cluster.runUntilAnswered();
  cluster.run(50e6);
  const at = exchange.peerViewOffset(2) + MAIN_BLOCK_OFFSET_WORDS;
  const before = exchange.words.slice(at, at + MAIN_BLOCK_WORDS);
  expect(readU53(before, MainField.appliedLsn)).toBe(replication.appliedLsn);

  cluster.cluster.crash(2);
  cluster.run(50e6);
  cluster.cluster.start(2);
  cluster.runUntil('the new life to be repaired', () => replication.peerPhase(2) === 'repairing');
  const { appliedLsn } = cluster.life(2).replication;
  expect(appliedLsn).toBe(0);
  // The READ that brought the grant found the main block torn.
  exchange.words.set(before, at);
  const payload = encodeCommand({ operation: Operation.add, key: 0, value: 1, expected: 0 }, 1000);
  let sequence = 0;
  while (replication.propose(99, ++sequence, payload) !== PROPOSE_LOG_FULL) {
    replication.flush();
    expect(replication.tailLsn - logBytes).toBeLessThanOrEqual(appliedLsn);
  }
  expect(sequence).toBeGreaterThan(3); // it is the ring that is full
  cluster.runUntilConverged();
  expect(cluster.valueAt(2, 'a')).toBe(cluster.valueAt(0, 'a'));
});
