// Ways to break leases and reads at followers, for clusters whose leaders stand still often and whose clocks differ as
// much as the drift bound admits.
import { BackgroundPlane } from '../consensus/background-plane.js';
import { BeatTimes, LeasePromise, LeaseTally } from '../consensus/lease.js';
import { LeaseRecalls } from '../consensus/lease-recall.js';
import { MAILBOX_RECALL_WORDS, MAILBOX_SLOT_WORDS } from '../consensus/limits.js';
import { ReplicationPlane } from '../consensus/replication-plane.js';
import { Random } from '../fabric/sim/random.js';
import { SimBackgroundFabric } from '../fabric/sim/sim-background-fabric.js';
import { SimLink } from '../fabric/sim/sim-link.js';
import type { Mutation } from './mutations.js';
import { all, replace, replaceGetter } from './replace-method.js';
import { SimLife } from './sim-life.js';
import { drawReading, type SimOptions } from './sim-options.js';

const replication = ReplicationPlane.prototype;

const DRIFT_BOUND = 0.2;

/** The longer a lease is, the more clocks differ at its end. */
const LEASE_TICKS = 30;

/** Everything that leases need to go wrong, whatever the seed drew. */
function leased(options: SimOptions): SimOptions {
  const random = new Random(Math.floor(options.faults.interval_ns));
  return {
    ...drawReading(random, options, true),
    lease: { length_ns: LEASE_TICKS * options.profile.tick_ns, driftBound: DRIFT_BOUND },
    clockDeviation: DRIFT_BOUND,
    leasedReads: 1,
    followerReads: 0.5,
  };
}

/** Leaders are suspected while their memory can be written, over devices that are slow to show what was. */
function recalled(options: SimOptions): SimOptions {
  const adjusted = leased(options);
  const network = {
    ...adjusted.network,
    lateVisibilityProbability: 1,
    lateVisibilityMax_ns: LEASE_TICKS * adjusted.profile.tick_ns,
  };
  return { ...adjusted, network };
}

/** Leaders whose event loops stand still lose their protection while their leases last; not all voters see them. */
function stalling(options: SimOptions): SimOptions {
  const adjusted = leased(options);
  const { faults, profile } = adjusted;
  return {
    ...adjusted,
    ...{ readers: 6, keys: 2, clients: 6, thinkMax_ns: 5e6, exitNoticeProbability: 0 },
    profile: { ...profile, stallTimeout_ns: 4 * profile.tick_ns },
    faults: {
      ...faults,
      ...{ interval_ns: 60e6, durationMin_ns: 20e6, durationMax_ns: 400e6, leaderBias: 0.8 },
      weights: {
        ...faults.weights,
        ...{ crash: 0.1, membership: 0, transfer: 0, slowNetwork: 0 },
        ...{ stallMain: 6, pause: 1, partition: 1, oneWayCut: 6 },
      },
    },
  };
}

/** Applying falls behind, so that a new leader has much to apply that others have acknowledged. */
function applyingSlowly(options: SimOptions): SimOptions {
  return { ...leased(options), applyEntriesMax: 1, applyTimeMax_ns: 4e6 };
}

/** Every lease has to be waited out, as where the leader's memory cannot be reached. Breaks nothing. */
function waitOutAll(): () => void {
  return replace(BackgroundPlane.prototype, 'recallLease', () => () => false);
}

export const LEASE_MUTATIONS: readonly Mutation[] = [
  {
    name: 'lease-not-waited-out',
    breaks: 'a voter grants as soon as it suspects the leader, whatever it promised it',
    seedsMax: 40,
    replicas: 3,
    adjust: leased,
    install: () => replace(LeasePromise.prototype, 'remaining_ns', () => () => 0),
  },
  {
    name: 'own-log-granted-in-lease',
    breaks: 'a leader whose event loop stands still lets another one write its own log before its lease ends',
    seedsMax: 60,
    replicas: 3,
    adjust: stalling,
    install: () => replace(LeasePromise.prototype, 'holdOwn', () => () => {}),
  },
  {
    name: 'recall-not-looked-at',
    breaks: 'a leader answers reads by a lease that a voter took back in its memory',
    seedsMax: 40,
    replicas: 3,
    adjust: leased,
    install: () => replaceGetter(LeaseRecalls.prototype, 'isRecalled', () => () => false),
  },
  {
    name: 'recall-not-awaited',
    breaks: 'a voter takes its promise for recalled when it has posted the WRITE that recalls it',
    seedsMax: 200,
    replicas: 3,
    adjust: recalled,
    install: () =>
      replace(
        BackgroundPlane.prototype,
        'recallLease',
        (original) =>
          function () {
            const { promise } = this;
            const before = promise.recallableEpoch;
            const isRecalled = original.call(this);
            if (isRecalled || before === 0 || promise.holder === this.options.id) return isRecalled;
            promise.recalled(before, promise.holderProcessId);
            return true;
          },
      ),
  },
  {
    name: 'recall-not-read-behind',
    breaks: 'nothing but the assumption: what a READ finds behind a WRITE the processor there may not see yet',
    seedsMax: 200,
    replicas: 3,
    adjust: recalled,
    install: () =>
      replace(
        SimLink.prototype,
        'progress',
        (original) =>
          function () {
            const unseen = this.unseen.splice(0);
            original.call(this);
            this.unseen.unshift(...unseen);
          },
      ),
  },
  {
    name: 'recall-not-news',
    breaks: 'a voter recalls every lease by the same words, which the leader has seen before',
    seedsMax: 200,
    replicas: 3,
    adjust: recalled,
    install: () =>
      replace(
        SimBackgroundFabric.prototype,
        'queueRecallWrite',
        (original) =>
          function (peer: number, token: number) {
            this.outboxWords.fill(
              1,
              (peer + 1) * MAILBOX_SLOT_WORDS - MAILBOX_RECALL_WORDS,
              (peer + 1) * MAILBOX_SLOT_WORDS,
            );
            original.call(this, peer, token);
          },
      ),
  },
  {
    name: 'lease-ignores-drift',
    breaks: 'voters wait, and leaders rely on, the length of the lease as their clocks measure it',
    seedsMax: 200,
    replicas: 3,
    adjust: leased,
    install: () =>
      all(
        waitOutAll(),
        replace(
          LeasePromise.prototype,
          'waits_ns',
          () =>
            ({ length_ns }: { length_ns: number }) =>
              length_ns,
        ),
        replace(LeaseTally.prototype, 'relied_ns', () => (length_ns: number) => length_ns),
      ),
  },
  {
    name: 'lease-checked-before-read',
    breaks: 'a read relies on a look at the clock from the turn before, when it was not asked for yet',
    seedsMax: 200,
    replicas: 3,
    adjust: leased,
    install: () => {
      const looked = new WeakMap<object, number>();
      return all(
        waitOutAll(),
        replace(
          replication,
          'poll',
          (original) =>
            function (now_ns: number) {
              looked.set(this, now_ns);
              return original.call(this, now_ns);
            },
        ),
        replace(
          replication,
          'leasedRead',
          (original) =>
            function (read: () => unknown) {
              return original.call(this, read, () => looked.get(this) ?? Number.POSITIVE_INFINITY);
            },
        ),
      );
    },
  },
  {
    name: 'lease-not-checked',
    breaks: 'a replica that believes to lead reads as if it always held a lease',
    seedsMax: 40,
    replicas: 3,
    adjust: leased,
    install: () =>
      replace(
        replication,
        'holdsLease',
        () =>
          function () {
            return this.mayHoldLease();
          },
      ),
  },
  {
    name: 'leased-read-before-applied',
    breaks: 'a leader reads by its lease although something that is committed is not applied yet',
    seedsMax: 40,
    replicas: 3,
    adjust: applyingSlowly,
    install: () =>
      replace(
        replication,
        'mayHoldLease',
        () =>
          function () {
            return this.role_ === 'leader';
          },
      ),
  },
  {
    name: 'lease-counted-from-receipt',
    breaks: 'a leader counts a lease from when it hears of the promise, not from when it set the counter that was seen',
    seedsMax: 200,
    replicas: 3,
    adjust: leased,
    install: () => {
      const latest = new WeakMap<object, number>();
      return all(
        waitOutAll(),
        replace(
          BeatTimes.prototype,
          'note',
          (original) =>
            function (counter: number, at_ns: number) {
              latest.set(this, at_ns);
              original.call(this, counter, at_ns);
            },
        ),
        replace(
          BeatTimes.prototype,
          'timeOf',
          () =>
            function (counter: number) {
              return counter === 0 ? Number.NaN : latest.get(this);
            },
        ),
      );
    },
  },
  {
    name: 'clocks-worse-than-bound',
    breaks: 'nothing but the assumption: clocks differ more from true time than the drift bound says',
    seedsMax: 200,
    replicas: 3,
    adjust: (options) => {
      const adjusted = leased(options);
      return { ...adjusted, lease: adjusted.lease && { ...adjusted.lease, driftBound: 0.01 } };
    },
    install: waitOutAll,
  },
  {
    name: 'follower-reads-before-applied',
    breaks: 'a follower reads when it knows up to where it must apply, not when it has',
    seedsMax: 40,
    replicas: 3,
    adjust: leased,
    install: () => replace(SimLife.prototype, 'hasApplied', () => () => true),
  },
];
