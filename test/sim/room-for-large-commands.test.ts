// A follower that does not apply keeps the log from being recycled, and is left behind when that has lasted. What waits for
// room then may be a large command, for which there is none while a small one would find some.
import { expect, test } from 'vitest';
import { ScriptedCluster } from '#lib/testing/scripted-cluster.js';

const MS = 1e6;
const SMALL_BYTES = 1000;
const LARGE_BYTES = 8000;

test('a large command does not wait for ever behind a follower that stands still', () => {
  const script = new ScriptedCluster({ replicas: 3 });
  script.cluster.startAll();
  const { replication } = script.runUntilLeader(0);
  script.runUntilConverged();
  script.run(200 * MS);
  script.hold(2, 'paused');
  const appliedLsn = script.life(2).replication.appliedLsn;
  while (appliedLsn + script.options.logBytes - replication.tailLsn > 10_000) {
    script.propose(0, 'x+=1', SMALL_BYTES);
    script.runUntilAnswered();
  }
  // As a client does that finds the log full: again and again.
  const large = () => script.propose(0, 'y+=1', LARGE_BYTES);
  let last = large();
  for (let attempts = 0; attempts < 100 && last.outcome?.kind !== 'applied'; attempts++) {
    script.run(10 * MS);
    if (last.outcome?.kind === 'full') last = large();
  }
  expect(last.outcome?.kind).toBe('applied');
  script.release(2);
  script.runUntilConverged();
  expect(script.valueAt(2, 'y')).toBe(1);
});
