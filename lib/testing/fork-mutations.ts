// Ways to break the forcing of a new cluster when a majority is lost for ever.
import { ReplicationPlane } from '../consensus/replication-plane.js';
import { Random } from '../fabric/sim/random.js';
import type { Mutation } from './mutations.js';
import { replace } from './replace-method.js';
import type { SimFork } from './sim-cluster.js';
import { SimDisk } from './sim-disk.js';
import { MajorityLoss } from './sim-majority-loss.js';
import { type SimOptions, withDisks, withMajorityLoss } from './sim-options.js';

/** A majority is lost in every run, under load, when some of the others were cut off or stood still. */
export function losingMajority(options: SimOptions): SimOptions {
  const random = new Random(Math.floor(options.faults.interval_ns));
  const { faults, pace } = options;
  const weights = { ...faults.weights, partition: 2, oneWayCut: 2, pause: 1, crash: 0.3 };
  return withMajorityLoss(random, {
    ...options,
    ...{ disk: null, regionSurvives: 0, clients: 6, thinkMax_ns: 10e6 * pace },
    faults: { ...faults, weights, interval_ns: Math.min(faults.interval_ns, 200e6 * pace) },
  });
}

/** The same of durable replicas, whose power goes often, before and after. */
export function losingDirectories(options: SimOptions): SimOptions {
  const random = new Random(Math.floor(options.faults.interval_ns) + 1);
  const losing = losingMajority(options);
  const { majorityLoss } = losing;
  return { ...withDisks(random, losing, 2), majorityLoss };
}

export const FORK_MUTATIONS: readonly Mutation[] = [
  {
    name: 'fork-of-worse-log',
    breaks: 'a new cluster is forced from the survivor whose log is the worst',
    seedsMax: 60,
    replicas: 5,
    adjust: losingMajority,
    install: () =>
      replace(
        MajorityLoss.prototype,
        'choose',
        (original) =>
          function (survivors: unknown[]) {
            const best = original.call(this, survivors);
            return survivors.find((one) => one !== best) ?? best;
          },
      ),
  },
  {
    name: 'fork-drops-tail',
    breaks: 'a new cluster begins with what its survivor has applied, not with all that its log holds',
    seedsMax: 60,
    replicas: 3,
    adjust: losingMajority,
    install: () => replace(ReplicationPlane.prototype, 'commitWholeLog', () => () => {}),
  },
  {
    name: 'fork-forgets-sessions',
    breaks: 'a new cluster does not know which commands of sessions its state holds',
    seedsMax: 60,
    replicas: 3,
    adjust: losingMajority,
    install: () =>
      replace(
        MajorityLoss.prototype,
        'stateOf',
        (original) =>
          function (life: unknown) {
            return { ...original.call(this, life), sessions: [] };
          },
      ),
  },
  {
    name: 'fork-keeps-epochs',
    breaks: 'the epochs of a new cluster go on from the last one in the log of its survivor',
    seedsMax: 60,
    replicas: 3,
    adjust: losingMajority,
    install: () =>
      replace(
        MajorityLoss.prototype,
        'position',
        (original) =>
          function (end: { epoch: number }, ...rest: unknown[]) {
            return { ...original.call(this, end, ...rest), epoch: end.epoch };
          },
      ),
  },
  {
    name: 'fork-in-force-before-whole',
    breaks: 'the disk of a survivor is of the new cluster before the state is on it, and the power goes in between',
    seedsMax: 60,
    replicas: 3,
    adjust: losingDirectories,
    install: () =>
      replace(
        MajorityLoss.prototype,
        'dieBefore',
        () => (fork: SimFork, disk: { genesis: unknown; bootId: number; epochFloor: number }) => {
          disk.genesis = fork.genesis;
          disk.bootId = fork.genesis.voters[0]?.bootId as number;
          disk.epochFloor = fork.position.epoch;
        },
      ),
  },
  {
    name: 'fork-leaves-old-log',
    breaks: 'segments of the old cluster stay on the disk of a new one, in front of its own',
    seedsMax: 60,
    replicas: 3,
    adjust: losingDirectories,
    install: () =>
      replace(
        SimDisk.prototype,
        'drop',
        (original) =>
          function (segments: number[]) {
            if (this.epochFloor === 0) original.call(this, segments);
          },
      ),
  },
  {
    name: 'fork-keeps-promise',
    breaks: 'what the survivor promised in the old cluster counts as a promise in the new one',
    seedsMax: 60,
    replicas: 3,
    adjust: losingDirectories,
    install: () =>
      replace(
        SimDisk.prototype,
        'become',
        (original) =>
          function (...parameters: unknown[]) {
            original.apply(this, parameters);
            this.epochFloor = 0;
          },
      ),
  },
];
