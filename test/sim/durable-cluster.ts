// A cluster of durable replicas that stands, for scripts in which disks fail.
import { ScriptedCluster } from '#lib/testing/scripted-cluster.js';

/** Durable replicas of which nobody starts those again whose disks have failed. */
export function durableCluster(replicas: number, joiners = 0): ScriptedCluster {
  const script = new ScriptedCluster({
    replicas,
    joiners,
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
  script.cluster.startAll();
  script.runUntilLeader(0);
  script.runUntilConverged();
  script.run(200e6);
  return script;
}
