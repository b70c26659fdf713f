// A replica whose disk fails hands leadership over, and does not stand for election. Its background plane may have asked for
// permission already when that is noticed: then nothing comes of it.
import { expect, test } from 'vitest';
import { ScriptedCluster } from '#lib/testing/scripted-cluster.js';
import type { SimDisk } from '#lib/testing/sim-disk.js';

test('a candidate whose disk has failed does not take over', () => {
  const script = new ScriptedCluster({
    replicas: 5,
    adjust: (options) => ({
      ...options,
      faults: { ...options.faults, restartDelayMax_ns: 1e15 },
      disk: {
        syncMin_ns: 100e3,
        syncMax_ns: 200e3,
        segmentBytes: 64 * 1024,
        snapshotAfterBytes: 1024 * 1024,
        snapshotMax_ns: 1e6,
        diskLossProbability: 0,
      },
    }),
  });
  const { cluster } = script;
  cluster.startAll();
  script.runUntilLeader(0);
  script.runUntilConverged();
  script.run(200e6);

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
