// A leader whose ring is full leaves the follower behind that blocks it, if a majority can do without. A voter whose disk has
// failed follows in memory, and is no part of such a majority: nothing is committed by it.
import { expect, test } from 'vitest';
import type { SimDisk } from '#lib/testing/sim-disk.js';
import { durableCluster } from './durable-cluster.ts';

test('a leader does not leave the voter behind that stands still for a while and without whose disk nothing commits', () => {
  const script = durableCluster(3);
  (script.life(2).disk as SimDisk).failsOnce = true;
  const first = script.propose(0, 'x=1');
  script.runUntil('the disk to fail', () => script.cluster.diskFailures === 1 && first.outcome?.kind === 'applied');
  script.run(50e6);
  const { replication } = script.life(0);
  const { logBytes } = script.options;
  // Commits are under way when it stops.
  const proposeSome = () => {
    for (let count = 0; count < 8; count++) script.propose(0, 'x=2', 1000);
  };
  proposeSome();
  script.run(10e6);
  proposeSome();
  script.run(300e3);
  script.hold(1, 'main stalled');
  for (let bytes = 0; bytes < logBytes; bytes += 1000) {
    script.propose(0, 'x=2', 1000);
    script.run(50e3);
  }
  for (let elapsed_ms = 0; elapsed_ms < 400; elapsed_ms++) {
    script.run(1e6);
    expect(replication.peerPhase(1)).toBe('active');
  }
  script.release(1);
  const last = script.propose(0, 'x=3');
  script.runUntil('the last command', () => last.outcome?.kind === 'applied');
});
