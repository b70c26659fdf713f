// Whole clusters under faults: fresh random seeds at every run, printed, so that a failure can be replayed. Defects that
// were found this way come back as mutations (mutations.test.ts), which must be noticed.
import { randomInt } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { Random } from '#lib/fabric/sim/random.js';
import { drawOptions, LEAVE_OUT } from '#lib/testing/sim-options.js';
import { runSimulation, type SimulationRequest, type SimulationResult } from '#lib/testing/simulation.js';

/** Wall-clock time for the fresh seeds of one cluster size; as many are run as fit. */
const BUDGET_MS = { 3: 12_000, 5: 9_000, 7: 6_000 } as const;
const SEEDS_MAX = { 3: 150, 5: 60, 7: 30 } as const;
/** In turns: short runs of fast clusters, for many mixes of faults, and long ones, which mostly are of slow clusters. */
const VIRTUAL_SECONDS = [5, 5, 180, 5, 5, 13, 5, 5] as const;

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

test('a trace has as many lines as were asked for, the last ones', () => {
  const request = { seed: 4711, replicas: 3, virtualSeconds: 5 };
  const { trace } = runSimulation({ ...request, traceLines: 1_000_000 });
  expect(trace.length).toBeGreaterThan(100);
  for (const traceLines of [1, 7, 64]) {
    expect(runSimulation({ ...request, traceLines }).trace).toEqual(trace.slice(-traceLines));
  }
});

describe('fresh seeds', () => {
  test.each([3, 5, 7] as const)('%i replicas keep every invariant and converge', { timeout: 180_000 }, (replicas) => {
    const first = randomInt(2 ** 40);
    const until_ms = performance.now() + BUDGET_MS[replicas];
    let seeds = 0;
    let operations = 0;
    let leaderChanges = 0;
    let virtualSeconds = 0;
    while (seeds < SEEDS_MAX[replicas] && (seeds < 3 || performance.now() < until_ms)) {
      const result = runChecked({
        seed: first + seeds,
        replicas,
        virtualSeconds: VIRTUAL_SECONDS[seeds % VIRTUAL_SECONDS.length] as number,
      });
      seeds++;
      virtualSeconds += result.virtualSeconds;
      operations += result.operations;
      leaderChanges += result.leaderChanges;
    }
    console.log(
      `${replicas} replicas: ${seeds} seeds, ${first} to ${first + seeds - 1}, ${VIRTUAL_SECONDS.join(', ')} s in turns: ` +
        `${virtualSeconds.toFixed(0)} virtual seconds, ${operations} operations, ${leaderChanges} leader changes`,
    );
    expect(operations).toBeGreaterThan(seeds * 10);
    expect(leaderChanges).toBeGreaterThanOrEqual(seeds);
  });
});

describe('the pace', () => {
  const paces = (virtualSeconds: number) =>
    Array.from({ length: 1000 }, (_, seed) => drawOptions(new Random(seed), { replicas: 3, virtualSeconds }).pace);

  test('of a short run is the fastest, whatever the seed', () => {
    expect(new Set(paces(13))).toEqual(new Set([1]));
  });

  test('of long runs is slow, from that of short ticks to that of long ones, with a share at the fastest', () => {
    const drawn = paces(180);
    const fastest = drawn.filter((pace) => pace === 1).length;
    expect(fastest).toBeGreaterThanOrEqual(5); // 10 are expected; the seeds are fixed
    expect(fastest).toBeLessThan(100);
    expect(Math.min(...drawn.filter((pace) => pace > 1))).toBeLessThan(6);
    expect(Math.max(...drawn)).toBeGreaterThan(18);
    expect(Math.max(...drawn)).toBeLessThanOrEqual(20);
  });

  test('that is asked for takes the place of the one that the seed draws', () => {
    const options = drawOptions(new Random(1), { replicas: 3, virtualSeconds: 13, pace: 4 });
    expect(options.pace).toBe(4);
    expect(options.profile.tick_ns % 20e6).toBe(0);
  });

  test('that the seed draws is the same run when it is asked for', () => {
    const request = { replicas: 3, virtualSeconds: 180 };
    for (let seed = 0; seed < 100; seed++) {
      const drawn = drawOptions(new Random(seed), request);
      expect(drawOptions(new Random(seed), { ...request, pace: drawn.pace })).toEqual(drawn);
    }
  });

  test('makes no run shorter than was asked for', () => {
    const result = runChecked({ seed: 4713, replicas: 3, virtualSeconds: 60 });
    expect(result.options.pace).toBeGreaterThan(1);
    expect(result.virtualSeconds).toBeGreaterThanOrEqual(60);
    expect(result.faults).toBeGreaterThan(0);
  });
});

describe('a seed', () => {
  test('gives the same run every time, with and without a trace', () => {
    const request = { seed: 4711, replicas: 3, virtualSeconds: 5 };
    const { trace: _none, ...first } = runSimulation(request);
    const { trace, ...second } = runSimulation({ ...request, traceLines: 100 });
    expect(second).toEqual(first);
    expect(trace.length).toBeGreaterThan(10);
  });

  test('gives another run without a kind of fault', () => {
    const without = LEAVE_OUT.filter((name) => name !== 'slowNetwork'); // who is removed ends, too
    const result = runChecked({ seed: 4711, replicas: 3, virtualSeconds: 5, without });
    expect(result.crashes).toBe(0);
  });

  test('with an unknown name to leave out is an error', () => {
    expect(() => runSimulation({ seed: 1, replicas: 3, virtualSeconds: 5, without: ['gremlins'] })).toThrow('gremlins');
  });
});

describe('without faults', () => {
  test.each([3, 5, 7])('%i replicas elect a leader and keep it once all are linked', (replicas) => {
    const result = runChecked({
      seed: replicas,
      replicas,
      virtualSeconds: 9,
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
        thinkMax_ns: Math.min(options.thinkMax_ns, 100e6), // some draw few clients, slow ones
      }),
    });
    // While links come up one by one, a replica that cannot see the first leader yet may cause a second election.
    expect(result.leaderChanges).toBeGreaterThanOrEqual(1);
    expect(result.leaderChanges).toBeLessThanOrEqual(2);
    expect(result.unknown).toBe(0);
    expect(result.operations).toBeGreaterThan(100);
  });
});
