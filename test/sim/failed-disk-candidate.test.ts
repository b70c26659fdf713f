// A replica whose disk fails hands leadership over, and does not stand for election. Its background plane may have asked for
// permission already when that is noticed: then nothing comes of it.
import { expect, test } from 'vitest';
import type { SimDisk } from '#lib/testing/sim-disk.js';
import { durableCluster } from './durable-cluster.ts';

test('a candidate whose disk has failed does not take over', () => {
  const script = durableCluster(5);
  const { cluster } = script;

  const candidate = script.life(1);
  const { tailLsn } = candidate.replication;
  script.propose(0, 'x=1');
  script.runUntil('replica 1 to write to its disk', () => candidate.replication.tailLsn > tailLsn);
  script.hold(1, 'main stalled');
  cluster.crash(0);
  const before = candidate.background.promised;
  const voters = [1, 2, 3, 4].map((id) => script.life(id));
  script.runUntil('replica 1 to have permission', () => {
    const { promised } = candidate.background;
    return promised > before && voters.every(({ background }) => background.promised === promised);
  });
  script.run(20e6);
  (candidate.disk as SimDisk).failsOnce = true;
  script.release(1);
  script.runUntil('replica 1 to notice', () => cluster.diskFailures === 1);
  expect(script.runUntilLeader().id).toBe(2);
});
