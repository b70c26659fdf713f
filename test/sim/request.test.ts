// What runSimulation(), tryMutation() and minimize() say of a request that is none, as programs in JavaScript may make it.
import { expect, test } from 'vitest';
import {
  LEAVE_OUT,
  MUTATIONS,
  type Mutation,
  type MutationRequest,
  minimize,
  runSimulation,
  type SimulationRequest,
  tryMutation,
} from '#lib/testing/index.js';

const GOOD = { seed: 1, replicas: 3, virtualSeconds: 2 };

test.each<[unknown, string]>([
  [undefined, 'it must be an object with seed, replicas, virtualSeconds'],
  [null, 'it must be an object'],
  [{}, 'seed is missing, an integer'],
  [{ seed: 1, virtualSeconds: 2 }, 'replicas is missing, an integer'],
  [{ seed: 1, replicas: 3 }, 'virtualSeconds is missing, a number'],
  [{ ...GOOD, seed: '1' }, "seed '1' is not an integer in 0..2251799813685247"],
  [{ ...GOOD, seed: 1.5 }, 'seed 1.5 is not an integer'],
  [{ ...GOOD, replicas: 0 }, 'replicas 0 is not an integer in 1..14'],
  [{ ...GOOD, replicas: 15 }, 'replicas 15 is not'],
  [{ ...GOOD, replicas: null }, 'replicas null is not'],
  [{ ...GOOD, virtualSeconds: Number.NaN }, 'virtualSeconds NaN is not a number in 0..86400'],
  [{ ...GOOD, virtualSeconds: Number.POSITIVE_INFINITY }, 'virtualSeconds Infinity is not'],
  [{ ...GOOD, pace: 0.5 }, 'pace 0.5 is not a number in 1..1000'],
  [{ ...GOOD, traceLines: 'all' }, "traceLines 'all' is not an integer"],
  [{ ...GOOD, without: 'crash' }, `without is not an array of ${LEAVE_OUT.join(', ')}`],
  [{ ...GOOD, without: ['gremlins'] }, "without has 'gremlins', which cannot be left out; known are crash, "],
  [{ ...GOOD, without: [undefined] }, 'without has undefined, which'],
  [{ ...GOOD, adjust: {} }, 'adjust is not a function'],
  [{ ...GOOD, virtualSecond: 2 }, "there is no member 'virtualSecond'; there are: seed, replicas, virtualSeconds, "],
])('%j is refused by name', (request, message) => {
  const run = (): unknown => runSimulation(request as SimulationRequest);
  expect(run).toThrow(expect.objectContaining({ code: 'QUORATE_INVALID_ARGUMENT' }));
  expect(run).toThrow(message);
});

test.each<[unknown, string]>([
  [undefined, 'it must be an object with firstSeed, virtualSeconds'],
  [{ virtualSeconds: 2 }, 'firstSeed is missing, an integer'],
  [{ firstSeed: '1', virtualSeconds: 2 }, "firstSeed '1' is not an integer in 0..2251799813685247"],
  [{ firstSeed: 1 }, 'virtualSeconds is missing, a number'],
  [{ firstSeed: 1, virtualSeconds: 2, seedsMax: Number.NaN }, 'seedsMax NaN is not an integer in 1..'],
  [{ firstSeed: 1, virtualSeconds: 2, seedsMax: 0 }, 'seedsMax 0 is not'],
  [{ firstSeed: 1, virtualSeconds: 2, seeds: 3 }, "there is no member 'seeds'; there are: firstSeed, virtualSeconds, "],
])('%j is refused by name before anything is broken', (request, message) => {
  const [mutation] = MUTATIONS as [Mutation];
  let isInstalled = false;
  const install = (): (() => void) => {
    isInstalled = true;
    return mutation.install();
  };
  const run = (): unknown => tryMutation({ ...mutation, install }, request as MutationRequest);
  expect(run).toThrow(expect.objectContaining({ code: 'QUORATE_INVALID_ARGUMENT' }));
  expect(run).toThrow(message);
  expect(isInstalled).toBe(false);
});

test.each<[string, unknown, string]>([
  ['none', undefined, 'the mutation has no function install()'],
  ['its name', 'commit-on-minority', 'the mutation has no function install()'],
  ['one without a limit', { ...MUTATIONS[0], seedsMax: undefined }, "the mutation's seedsMax is missing, an integer"],
])('a mutation that is %s is refused', (_, mutation, message) => {
  const run = (): unknown => tryMutation(mutation as Mutation, { firstSeed: 1, virtualSeconds: 2 });
  expect(run).toThrow(expect.objectContaining({ code: 'QUORATE_INVALID_ARGUMENT' }));
  expect(run).toThrow(message);
});

test('a simulation that does not fail is refused by minimize()', () => {
  const run = (): unknown => minimize({ seed: 7, replicas: 1, virtualSeconds: 1, without: ['majorityLoss'] });
  expect(run).toThrow(expect.objectContaining({ code: 'QUORATE_INVALID_ARGUMENT' }));
  expect(run).toThrow('seed 7 does not fail, there is nothing to minimize');
});

test('options that adjust() makes impossible are an error, and no finding of the simulation', () => {
  const adjust: SimulationRequest['adjust'] = (options) => ({ ...options, logBytes: 16 * 1024 });
  expect(() => runSimulation({ ...GOOD, adjust })).toThrow('logBytes 16384 is not in 65536..1073741824');
});

test('a cluster may be of one replica, or of fourteen, to which two are added', () => {
  for (const replicas of [1, 14]) {
    expect(runSimulation({ seed: 7, replicas, virtualSeconds: 1, without: ['majorityLoss'] }).violation).toBeNull();
  }
});
