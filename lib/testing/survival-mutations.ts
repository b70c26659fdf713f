// Ways to break the return from a crash by what the life before left behind.
import type { ChainPosition } from '../consensus/entry.js';
import { type LogTail, SurvivingLog } from '../consensus/surviving-log.js';
import type { Mutation } from './mutations.js';
import { replace } from './replace-method.js';
import type { SimOptions } from './sim-options.js';

/** Leaders crash often, soon after they have written, and all that they leave is there for their next life. */
function crashing(options: SimOptions): SimOptions {
  const { faults } = options;
  const weights = { ...faults.weights, crash: 4, pause: 1 };
  const restartDelayMax_ns = Math.min(faults.restartDelayMax_ns, 200e6 * options.pace);
  const interval_ns = Math.min(faults.interval_ns, 250e6 * options.pace);
  return {
    ...options,
    regionSurvives: 1,
    faults: { ...faults, weights, restartDelayMax_ns, interval_ns, leaderBias: 0.9 },
  };
}

export const SURVIVAL_MUTATIONS: readonly Mutation[] = [
  {
    name: 'surviving-log-not-compared',
    breaks: 'a replica takes all of the log that its earlier life left, without comparing it with anybody',
    seedsMax: 200,
    replicas: 3,
    adjust: crashing,
    install: () =>
      replace(
        SurvivingLog.prototype,
        'continuation',
        () =>
          (from: ChainPosition): LogTail => ({ words: new Uint32Array(0), end: { ...from } }),
      ),
  },
];
