// Simulated replicas whose log outlives them come back by it, in two stages, some of them by a log that was scribbled over
// or ends in what was never committed; every invariant holds, and all end in the same state.
import { expect, test } from 'vitest';
import { runSimulation } from '#lib/testing/simulation.js';
import { SURVIVAL_MUTATIONS } from '#lib/testing/survival-mutations.js';

const SEEDS = 5;

test.each([3, 5])(
  '%i replicas that crash all the time come back by what they left',
  { timeout: 120_000 },
  (replicas) => {
    const { adjust } = SURVIVAL_MUTATIONS[0] ?? {};
    let returns = 0;
    let returnsFailed = 0;
    let crashes = 0;
    for (let seed = 1; seed <= SEEDS; seed++) {
      const result = runSimulation({ seed, replicas, virtualSeconds: 13, ...(adjust === undefined ? {} : { adjust }) });
      expect(result.violation, `seed ${seed}, ${replicas} replicas`).toBeNull();
      returns += result.returns;
      returnsFailed += result.returnsFailed;
      crashes += result.crashes;
    }
    // Most of them; those whose log ends before others' begin get the whole state.
    expect(returns).toBeGreaterThan(crashes / 2);
    expect(returnsFailed).toBeGreaterThan(0);
  },
);
