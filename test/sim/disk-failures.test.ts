// Simulated durable replicas whose disks fail writes, or are full for a while, between losses of all power: the log, promises
// and snapshots are all hit. Those replicas lead no more and acknowledge nothing until they are started again; every invariant
// holds, and all end in the same state.
import { expect, test } from 'vitest';
import { DURABLE_MUTATIONS } from '#lib/testing/durable-mutations.js';
import { runSimulation, type SimulationResult } from '#lib/testing/simulation.js';

const SEEDS = 3;

/** Runs of both tests, by size of the cluster and seed. Whichever test is first makes them. */
const runs = new Map<string, SimulationResult>();

function traced(seed: number, replicas: number): SimulationResult {
  const key = `${replicas} replicas, seed ${seed}`;
  const known = runs.get(key);
  if (known !== undefined) return known;
  const { adjust } = DURABLE_MUTATIONS.find(({ name }) => name === 'disk-error-ignored') ?? {};
  if (adjust === undefined) throw new Error('there is no mutation for which disks fail');
  const result = runSimulation({ seed, replicas, virtualSeconds: 13, adjust, traceLines: 1_000_000 });
  runs.set(key, result);
  return result;
}

test.each([3, 5])('%i replicas whose disks fail lose nothing', { timeout: 120_000 }, (replicas) => {
  let failures = 0;
  let operations = 0;
  const errors = new Set<string>();
  for (let seed = 1; seed <= SEEDS; seed++) {
    const result = traced(seed, replicas);
    expect(result.violation, `seed ${seed}, ${replicas} replicas`).toBeNull();
    failures += result.diskFailures;
    operations += result.operations;
    for (const line of result.trace) {
      const error = /(its disk|the grant to r\d) failed: .*(EIO|ENOSPC)/.exec(line);
      if (error !== null) errors.add(`${error[1] === 'its disk' ? 'log' : 'promise'} ${error[2]}`);
    }
  }
  expect(failures).toBeGreaterThan(5 * SEEDS);
  expect(operations).toBeGreaterThan(100 * SEEDS);
  expect([...errors].sort()).toEqual(['log EIO', 'log ENOSPC', 'promise EIO', 'promise ENOSPC']);
});

test('a leader whose disk failed hands over, and leads in no later epoch of that process', () => {
  let deposed = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    const failed = new Set<string>();
    for (const line of traced(seed, 3).trace) {
      const [, name = '', text = ''] = /(r\d\/\d+\/\d+|r\d\/\d+) +(.*)$/.exec(line) ?? [];
      if (text.startsWith('its disk failed')) failed.add(name);
      if (failed.has(name) && /^deposed .*(EIO|ENOSPC)/.test(text)) deposed++;
      expect(failed.has(name) && text.startsWith('leads in epoch'), `seed ${seed}: ${line}`).toBe(false);
    }
  }
  expect(deposed).toBeGreaterThan(SEEDS);
});
