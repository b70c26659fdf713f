// Whole clusters under faults: fresh random seeds at every run (printed, so that a failure can be replayed), and a few
// seeds that once showed a defect.
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

describe('seeds that once showed a defect', () => {
  const once: [string, number, number, number][] = [
    ['a follower kept a tail that the new leader was about to repair', 101, 3, 20],
    ['a replica that had promised a later epoch stayed out for ever', 117, 3, 20],
    ['a lost voter could not be brought up to date during a takeover', 115, 3, 20],
    ['candidates too far behind kept the others from being elected', 1077, 5, 20],
    ['half an entry was counted as committed', 2051, 3, 24],
  ];
  test.each(once)('%s (seed %i, %i replicas)', (_, seed, replicas, virtualSeconds) => {
    runChecked({ seed, replicas, virtualSeconds });
  });
});

describe('without faults', () => {
  test.each([3, 5, 7])('%i replicas elect one leader and keep it', (replicas) => {
    const result = runChecked({
      seed: replicas,
      replicas,
      virtualSeconds: 12,
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
    expect(result.leaderChanges).toBe(1);
    expect(result.unknown).toBe(0);
    expect(result.operations).toBeGreaterThan(100);
  });
});
