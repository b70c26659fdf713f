// Whole clusters under faults: fresh random seeds at every run, printed, so that a failure can be replayed. Defects that
// were found this way come back as mutations (mutations.test.ts), which must be noticed.
import { randomInt } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { runSimulation, type SimulationRequest, type SimulationResult } from '#lib/testing/simulation.js';

/** Wall-clock time for the fresh seeds of one cluster size; as many are run as fit. */
const BUDGET_MS = { 3: 45_000, 5: 35_000, 7: 20_000 } as const;
const SEEDS_MAX = { 3: 200, 5: 100, 7: 40 } as const;
const VIRTUAL_SECONDS = 20;

function explain(request: SimulationRequest, { violation }: SimulationResult): string {
  return (
    `${violation?.invariant}: ${violation?.message}\n  replay: npm run sim -- --seed ${request.seed} ` +
    `--replicas ${request.replicas} --virtual-seconds ${request.virtualSeconds} --trace`
  );
}

function runChecked(request: SimulationRequest): SimulationResult {
  const result = runSimulation(request);
  expect(result.violation, explain(request, result)).toBeNull();
  return result;
}

describe('fresh seeds', () => {
  test.each([3, 5, 7] as const)('%i replicas keep every invariant and converge', { timeout: 180_000 }, (replicas) => {
    const first = randomInt(2 ** 40);
    const until_ms = performance.now() + BUDGET_MS[replicas];
    let seeds = 0;
    let operations = 0;
    let leaderChanges = 0;
    while (seeds < SEEDS_MAX[replicas] && (seeds < 3 || performance.now() < until_ms)) {
      const result = runChecked({ seed: first + seeds, replicas, virtualSeconds: VIRTUAL_SECONDS });
      seeds++;
      operations += result.operations;
      leaderChanges += result.leaderChanges;
    }
    console.log(
      `${replicas} replicas: seeds ${first} to ${first + seeds - 1}, ${operations} operations, ${leaderChanges} leader changes`,
    );
    expect(operations).toBeGreaterThan(seeds * 10);
    expect(leaderChanges).toBeGreaterThanOrEqual(seeds);
  });
});

describe('a seed', () => {
  test('gives the same run every time, with and without a trace', () => {
    const request = { seed: 4711, replicas: 3, virtualSeconds: 12 };
    const { trace: _none, ...first } = runSimulation(request);
    const { trace, ...second } = runSimulation({ ...request, traceLines: 100 });
    expect(second).toEqual(first);
    expect(trace.length).toBeGreaterThan(10);
  });

  test('gives another run without a kind of fault', () => {
    const without = ['crash', 'pause', 'stallMain', 'stallBackground', 'partition', 'oneWayCut', 'breakLink'];
    const result = runChecked({ seed: 4711, replicas: 3, virtualSeconds: 12, without });
    expect(result.crashes).toBe(0);
  });

  test('with an unknown name to leave out is an error', () => {
    expect(() => runSimulation({ seed: 1, replicas: 3, virtualSeconds: 12, without: ['gremlins'] })).toThrow(
      'gremlins',
    );
  });
});

describe('without faults', () => {
  test.each([3, 5, 7])('%i replicas elect a leader and keep it once all are linked', (replicas) => {
    const result = runChecked({
      seed: replicas,
      replicas,
      virtualSeconds: 16,
      adjust: (options) => ({
        ...options,
        preemptProbability: 0,
        tickJitter: 0.05,
        network: {
          ...options.network,
          latencyMin_ns: 20e3,
          latencyMax_ns: 200e3,
          latencySpikeProbability: 0,
          lossProbability: 0,
          lateCompletionProbability: 0,
        },
        faults: { ...options.faults, interval_ns: 1e15 },
      }),
    });
    // While links come up one by one, a replica that cannot see the first leader yet may cause a second election.
    expect(result.leaderChanges).toBeGreaterThanOrEqual(1);
    expect(result.leaderChanges).toBeLessThanOrEqual(2);
    expect(result.unknown).toBe(0);
    expect(result.operations).toBeGreaterThan(100);
  });
});
