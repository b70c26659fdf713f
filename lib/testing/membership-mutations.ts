// Ways to break the rules of membership change, for clusters that change their members all the time.
import { BackgroundPlane } from '../consensus/background-plane.js';
import { type Configuration, memberWithId, withMember } from '../consensus/configuration.js';
import type { ChainPosition } from '../consensus/entry.js';
import type { MembershipChange } from '../consensus/membership.js';
import { MembershipChanges } from '../consensus/membership-changes.js';
import { Replacement } from '../consensus/replacement.js';
import { ReplicationPlane } from '../consensus/replication-plane.js';
import { readU53 } from '../consensus/sealed-block.js';
import { GrantField } from '../consensus/status-layout.js';
import type { Mutation } from './mutations.js';
import { all, type Internals, replace, replaceGetter } from './replace-method.js';
import { type SimOptions, withJoiners, withReplacing } from './sim-options.js';

const replication = ReplicationPlane.prototype;
const changes = MembershipChanges.prototype;
const background = BackgroundPlane.prototype;

/** Two processes more than the founders, and most faults are changes of membership. */
const often = (options: SimOptions): SimOptions => withJoiners(options, 2, 6);

/** Shows other voters than there are to whatever runs inside of the methods named. */
function otherVoters(names: readonly string[], voters: (plane: Internals) => Configuration['voters']): () => void {
  const inside = new WeakSet<object>();
  return all(
    replaceGetter(
      replication,
      'configuration',
      (original) =>
        function (): Configuration {
          const configuration = original.call(this) as Configuration;
          if (!inside.has(this)) return configuration;
          inside.delete(this);
          try {
            return { ...configuration, voters: voters(this) };
          } finally {
            inside.add(this);
          }
        },
    ),
    ...names.map((name) =>
      replace(
        replication,
        name,
        (original) =>
          function (...parameters: unknown[]) {
            if (inside.has(this)) return original.apply(this, parameters);
            inside.add(this);
            try {
              return original.apply(this, parameters);
            } finally {
              inside.delete(this);
            }
          },
      ),
    ),
  );
}

const learnersToo = (plane: Internals): Configuration['voters'] =>
  (plane.configuration as Configuration).members.filter(({ role }) => role !== 'spare');

/**
 * Clusters in which spares stand by, replicas stay away for long, and others stand still meanwhile: their memory can be
 * written as before, but nobody trusts them.
 */
function replacing(options: SimOptions): SimOptions {
  const { faults, ...rest } = withReplacing(withJoiners(options, 2, 3), 250e6);
  const weights = { ...faults.weights, crash: 2, pause: 3, partition: 0, transfer: 0 };
  const times = { interval_ns: 150e6, durationMin_ns: 200e6, durationMax_ns: 1500e6, leaderBias: 0 };
  return { ...rest, faults: { ...faults, ...times, weights } };
}

export const MEMBERSHIP_MUTATIONS: readonly Mutation[] = [
  {
    name: 'replace-below-quorum',
    breaks: 'a voter that is gone is replaced by a leader that no majority of the others is seen to follow',
    seedsMax: 100,
    replicas: 3,
    adjust: replacing,
    install: () => replace(Replacement.prototype, 'isSafe', () => () => true),
  },
  {
    name: 'replace-before-catch-up',
    breaks: 'a voter that is gone makes way for a spare that was called up and does not hold the log yet',
    seedsMax: 100,
    replicas: 3,
    adjust: replacing,
    install: () => replace(Replacement.prototype, 'hasCaughtUp', () => () => true),
  },
  {
    name: 'snapshot-applied-out-of-order',
    breaks: 'a replica installs a snapshot that is older than what it has applied',
    seedsMax: 200,
    replicas: 3,
    install: () =>
      all(
        replace(
          replication,
          'isSnapshotNews',
          () =>
            function () {
              return this.role === 'follower';
            },
        ),
        replace(
          replication,
          'installSnapshot',
          (original) =>
            function (position: ChainPosition, configuration: Configuration) {
              if (position.lsn < this.applied.lsn) Object.assign(this.applied, position);
              return original.call(this, position, configuration);
            },
        ),
      ),
  },
  {
    name: 'two-concurrent-changes',
    breaks: 'a leader changes the membership while the change before is not committed',
    seedsMax: 40,
    replicas: 3,
    adjust: often,
    install: () =>
      replace(
        changes,
        'whyNoChange',
        (original) =>
          function () {
            const refusal = original.call(this);
            return refusal?.code === 'QUORATE_CHANGE_IN_PROGRESS' ? null : refusal;
          },
      ),
  },
  {
    name: 'change-before-own-noop',
    breaks: 'a leader changes the membership before the noop of its own epoch is committed',
    seedsMax: 200,
    replicas: 3,
    adjust: often,
    install: () =>
      replace(
        changes,
        'whyNoChange',
        (original) =>
          function () {
            const { log } = this;
            const isPremature = log.role === 'takingOver' && log.noopAppended() && log.isConfigurationApplied;
            return isPremature ? null : original.call(this);
          },
      ),
  },
  {
    name: 'promotion-before-catch-up',
    breaks: 'a learner becomes a voter as soon as it is asked for, whatever it lacks',
    seedsMax: 100,
    replicas: 3,
    adjust: often,
    install: () =>
      replace(
        changes,
        'change',
        (original) =>
          function (change: MembershipChange) {
            const { configuration } = this.log as { configuration: Configuration };
            const member = memberWithId(configuration, change.id);
            const isLearner = member?.role === 'learner' && member.bootId !== 0;
            if (change.kind !== 'promote' || !isLearner || this.whyNoChange() !== null)
              return original.call(this, change);
            this.log.appendConfiguration(withMember(configuration, { ...member, role: 'voter', returning: false }));
            return this.log.tailLsn;
          },
      ),
  },
  {
    name: 'learner-counts',
    breaks: 'what a learner acknowledges counts towards the majority that commits',
    seedsMax: 100,
    replicas: 3,
    adjust: often,
    install: () => otherVoters(['advanceCommit'], learnersToo),
  },
  {
    name: 'learner-votes',
    breaks: 'the grant of a learner counts towards the majority that elects',
    seedsMax: 400,
    replicas: 3,
    adjust: often,
    install: () =>
      all(
        otherVoters(['advanceTakeover'], learnersToo),
        replace(
          background,
          'voterBootId',
          (original) =>
            function (peer: number) {
              return original.call(this, peer) || readU53(this.peers[peer].grant.body, GrantField.bootId);
            },
        ),
      ),
  },
  {
    name: 'old-incarnation-votes',
    breaks: 'a grant counts by the id of the voter, whichever life of it gave the grant',
    seedsMax: 400,
    replicas: 3,
    install: () =>
      all(
        replace(
          replication,
          'countVoters',
          () =>
            function (predicate: (follower: Internals) => boolean) {
              const { voters } = this.configuration as Configuration;
              return voters.filter(({ id }) => id === this.options.id || predicate(this.followers[id])).length;
            },
        ),
        replace(
          background,
          'voterBootId',
          (original) =>
            function (peer: number) {
              const bootId = original.call(this, peer);
              return bootId === 0 ? 0 : readU53(this.peers[peer].grant.body, GrantField.bootId) || bootId;
            },
        ),
      ),
  },
  {
    name: 'removed-leader-goes-on',
    breaks: 'a leader that a committed configuration is without goes on leading',
    seedsMax: 60,
    replicas: 3,
    adjust: often,
    install: () =>
      all(
        replace(replication, 'leaveIfRemoved', () => () => {}),
        replace(replication, 'leavingChanged', () => () => {}),
      ),
  },
  {
    name: 'commit-by-configuration-before',
    breaks: 'a configuration counts only from its commit on, not from its append on',
    seedsMax: 400,
    replicas: 3,
    adjust: often,
    install: () => otherVoters(['advanceCommit'], (plane) => plane.appliedConfiguration.voters),
  },
  {
    name: 'configuration-not-forgotten',
    breaks: 'a configuration stays in force after its entry was overwritten by a later leader',
    seedsMax: 100,
    replicas: 3,
    adjust: often,
    install: () =>
      replace(
        replication,
        'forgetTail',
        (original) =>
          function () {
            const { configurations } = this;
            this.configurations = [...configurations];
            original.call(this);
            this.configurations = configurations;
          },
      ),
  },
  {
    name: 'returns-in-one-step',
    breaks: 'a voter that lost its memory is a voter in its new life at once, in one configuration',
    seedsMax: 40,
    replicas: 3,
    install: () =>
      replace(
        changes,
        'maintain',
        (original) =>
          function () {
            const { log, view } = this;
            const { configuration } = log as { configuration: Configuration };
            const member = configuration.voters.find(({ id, bootId }) => {
              const life = view.linkedLife(id);
              return id !== view.id && view.isActive(id) && life !== 0 && life !== bootId;
            });
            if (member === undefined || this.whyNoChange() !== null) return original.call(this);
            const bootId = view.linkedLife(member.id);
            const incarnation = configuration.nextIncarnation;
            return log.appendConfiguration(withMember(configuration, { ...member, bootId, incarnation }));
          },
      ),
  },
];
