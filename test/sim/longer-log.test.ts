// A voter may hold the longest log, in a ring that begins at a snapshot above what the others have applied, and yet not
// lead: its event loop is blocked, say. The others need not wait for it where their own logs lead to that snapshot.
import { expect, test } from 'vitest';
import { ScriptedCluster } from '#lib/testing/scripted-cluster.js';

const MS = 1e6;

test('voters that hold all that is committed do not wait for one with a longer log that does not lead', () => {
  const script = new ScriptedCluster({ replicas: 5 });
  const { cluster } = script;
  cluster.startAll();
  const { replication } = script.runUntilLeader(0);
  script.runUntilConverged();
  script.run(200 * MS);
  const longest = script.life(1);

  script.partition([0, 2, 3, 4], [1]);
  script.run(100 * MS);
  for (let count = 0; count < 20; count++) {
    script.propose(0, 'x+=1', 4000);
    script.runUntilAnswered();
    script.run(10 * MS);
  }
  script.heal();
  script.partition([0], [1]);
  script.run(100 * MS);
  // What is committed from here on replicas 2, 3 and 4 hold, and do not know for committed.
  for (const id of [2, 3, 4]) script.hold(id, 'paused');
  script.propose(0, 'x+=1');
  script.runUntilAnswered();
  const snapshotLsn = replication.appliedLsn;
  script.runUntil('the leader to suspect them', () => replication.trustedMask === 0);
  script.heal();
  script.runUntil('replica 1 to be written again', () => replication.peerPhase(1) === 'active');
  expect(longest.replication.ringBeginLsn).toBe(snapshotLsn);

  // One entry more, which replica 1 alone gets before its event loop is blocked and the leader dies.
  for (const id of [2, 3, 4]) script.cut(0, id);
  script.propose(0, 'x+=1');
  script.runUntil('the longest log', () => longest.replication.tailLsn > replication.commitLsn);
  script.hold(1, 'main stalled');
  cluster.crash(0);
  script.heal();
  for (const id of [2, 3, 4]) script.release(id);
  const next = script.runUntilLeader();
  expect([2, 3, 4]).toContain(next.id);

  script.release(1);
  cluster.start(0);
  script.runUntilConverged();
});
