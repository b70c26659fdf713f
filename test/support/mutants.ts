// Ways to break single claims, for scripted tests. Most of those that break safety are in lib/testing/mutations.ts, where
// random simulations must notice them; most of the ones here cost time, progress or one guarantee only, and some bring
// defects back that were found before (docs/bugs).
import { BackgroundPlane } from '#lib/consensus/background-plane.js';
import { memberWithId } from '#lib/consensus/configuration.js';
import { FailureDetector } from '#lib/consensus/failure-detector.js';
import { PHASE_REPAIRING } from '#lib/consensus/follower.js';
import { IntactRing } from '#lib/consensus/intact-ring.js';
import { MembershipWatch } from '#lib/consensus/membership.js';
import { MembershipChanges } from '#lib/consensus/membership-changes.js';
import { Replacement } from '#lib/consensus/replacement.js';
import { ReplicationPlane } from '#lib/consensus/replication-plane.js';
import { readU53 } from '#lib/consensus/sealed-block.js';
import { GrantField } from '#lib/consensus/status-layout.js';
import { SimBackgroundFabric } from '#lib/fabric/sim/sim-background-fabric.js';
import { SimReplicationFabric } from '#lib/fabric/sim/sim-replication-fabric.js';
import { MUTATIONS, replace } from '#lib/testing/mutations.js';

export interface Mutant {
  readonly name: string;
  /** Breaks the code; the function returned mends it. */
  readonly install: () => () => void;
}

/** What comes of it in broken code. */
export function under<Value>(mutant: Mutant, run: () => Value): Value {
  const mend = mutant.install();
  try {
    return run();
  } finally {
    mend();
  }
}

/** A mutation of lib/testing/mutations.ts by its name. */
export function mutation(name: string): Mutant {
  const found = MUTATIONS.find((candidate) => candidate.name === name);
  if (found === undefined) throw new Error(`there is no mutation ${name}`);
  return found;
}

const replication = ReplicationPlane.prototype;
const background = BackgroundPlane.prototype;

export const stallUnnoticed: Mutant = {
  name: 'a background plane that takes no notice of a blocked event loop',
  install: () => replace(background, 'watchProgress', () => () => {}),
};

export const otherNotTried: Mutant = {
  name: 'a leader that waits for the followers it chose, whether they answer or not',
  install: () => replace(replication, 'tryOthers', () => () => {}),
};

export const leftOutHoweverMuchItLacks: Mutant = {
  name: 'a leader that leaves a follower out of flushes, however much it lacks',
  install: () => replace(replication, 'mayBeLeftOut', () => () => true),
};

export const standsBackForALeader: Mutant = {
  name: 'a replica that stands back from elections for all of its time, although another one leads by now',
  install: () => replace(background, 'followsLeader', () => () => false),
};

export const standsBehindItsGrant: Mutant = {
  name: 'a voter that grants a candidate which it cannot read, and stands itself',
  install: () => replace(background, 'isUnseenCandidateInTime', () => () => false),
};

export const stallAtOnce: Mutant = {
  name: 'a background plane that takes every pause of the event loop for a blocked one',
  install: () =>
    replace(
      background,
      'watchProgress',
      () =>
        function () {
          this.isStalled = this.leads();
        },
    ),
};

export const nobodyIsWoken: Mutant = {
  name: 'requests and grants that wait for the next tick of those whom they concern',
  install: () =>
    replace(
      SimBackgroundFabric.prototype,
      'queueMailboxWrite',
      (original) =>
        function (peer: number, token: number) {
          original.call(this, peer, token, false);
        },
    ),
};

export const applyUncommitted: Mutant = {
  name: 'a follower that takes what is in its log for committed',
  install: () =>
    replace(
      replication,
      'extendTail',
      (original) =>
        function (...parameters: unknown[]) {
          const more = original.call(this, ...parameters);
          this.commitLsn_ = Math.max(this.commitLsn_, this.tail.lsn);
          return more;
        },
    ),
};

export const commitByEntriesOnly: Mutant = {
  name: 'a follower that learns the commit LSN from later entries only',
  install: () => replace(replication, 'peerLeaderEpoch', () => () => 0),
};

export const twoWritesPerEntry: Mutant = {
  name: 'an entry that is written in two parts',
  install: () =>
    replace(
      SimReplicationFabric.prototype,
      'queueWrite',
      (original) =>
        function (peer: number, offset: number, lengthBytes: number, token: number) {
          original.call(this, peer, offset, lengthBytes / 2, token - lengthBytes);
          original.call(this, peer, offset + lengthBytes / 2, lengthBytes / 2, token);
        },
    ),
};

export const successorNotWaitedFor: Mutant = {
  name: 'a successor that nobody gives way to',
  install: () => replace(background, 'successor', () => () => -1),
};

export const commitWhenApplied: Mutant = {
  name: 'a commit that waits until followers have applied',
  install: () =>
    replace(
      replication,
      'advanceCommit',
      (original) =>
        function () {
          const acked = this.followers.map((follower: { ackedLsn: number }) => follower.ackedLsn);
          for (const follower of this.followers) {
            if (this.role === 'leader') follower.ackedLsn = Math.min(follower.ackedLsn, follower.appliedLsn);
          }
          original.call(this);
          for (const [peer, lsn] of acked.entries()) this.followers[peer].ackedLsn = lsn;
        },
    ),
};

export const commitByAll: Mutant = {
  name: 'a commit that waits for every follower',
  install: () =>
    replace(
      replication,
      'advanceCommit',
      (original) =>
        function () {
          const voters = this.configuration.voters.filter(({ id }: { id: number }) => id !== this.options.id);
          const acked = voters.map(({ id }: { id: number }) => this.followers[id].ackedLsn);
          if (this.role !== 'leader' || Math.min(...acked) >= this.tail.lsn) original.call(this);
        },
    ),
};

export const oneThreshold: Mutant = {
  name: 'one threshold for both directions',
  install: () =>
    replace(
      FailureDetector.prototype,
      'judge',
      () =>
        function (peer: number) {
          if (this.scores[peer] > this.thresholds.recoverAbove) this.mask |= 1 << peer;
          else this.mask &= ~(1 << peer);
        },
    ),
};

export const slowMeansDead: Mutant = {
  name: 'a READ that is not back after a tick ends trust',
  install: () =>
    replace(
      background,
      'score',
      (original) =>
        function () {
          original.call(this);
          for (const [peer, watch] of this.peers.entries()) {
            if (watch.readOutstanding) this.detector.observeUnreachable(peer);
          }
        },
    ),
};

export const detectorIsBlind: Mutant = {
  name: 'a READ that works counts as a sign of life',
  install: () =>
    replace(
      FailureDetector.prototype,
      'observe',
      (original) =>
        function (peer: number) {
          original.call(this, peer, this.lastCounters[peer] + 1);
        },
    ),
};

export const neverDropped: Mutant = {
  name: 'a follower that is never dropped',
  install: () => replace(replication, 'relieve', () => () => {}),
};

export const repairNeverComplete: Mutant = {
  name: 'a repair with nothing to send that is never complete',
  install: () =>
    replace(
      replication,
      'beginRepair',
      (original) =>
        function (peer: number) {
          original.call(this, peer);
          if (this.peerPhase(peer) === 'active') this.followers[peer].phase = PHASE_REPAIRING;
        },
    ),
};

export const repairsWithoutALink: Mutant = {
  name: 'a takeover that begins a repair over a link that it has lost',
  install: () =>
    replace(
      replication,
      'appendNoop',
      (original) =>
        function () {
          original.call(this);
          for (const [peer, { hasGrant, linkBootId }] of this.followers.entries()) {
            if (this.role === 'takingOver' && hasGrant && linkBootId === 0) this.beginRepair(peer);
          }
        },
    ),
};

export const walkBegunAnew: Mutant = {
  name: 'a walk through the log that begins anew at each step',
  install: () =>
    replace(
      replication,
      'follow',
      (original) =>
        function () {
          if (this.tail.epoch !== this.promisedEpoch && this.tail.lsn !== this.applied.lsn) this.forgetTail();
          original.call(this);
          return false;
        },
    ),
};

export const waitsForEver: Mutant = {
  name: 'a voter that waits without end for another that shall stand',
  install: () =>
    replace(
      background,
      'mustWaitForAnother',
      () =>
        function () {
          return this.isAnotherPreferred();
        },
    ),
};

/** The token of requests in background-plane.ts. */
const KIND_MAILBOX_WRITE = 2;

export const requestsWakeNobody: Mutant = {
  name: 'requests that wait for the next tick of the voter',
  install: () =>
    replace(
      SimBackgroundFabric.prototype,
      'queueMailboxWrite',
      (original) =>
        function (peer: number, token: number, wake: boolean) {
          original.call(this, peer, token, wake && token !== KIND_MAILBOX_WRITE);
        },
    ),
};

export const forgetsWhatHasNotChanged: Mutant = {
  name: 'a follower that forgets its tail whenever nothing new is behind it',
  install: () => replace(replication, 'recheckTail', () => () => true),
};

export const wakesForWhatWasCutOff: Mutant = {
  name: 'a background plane that takes whatever names its place behind the end of the log for news',
  install: () =>
    replace(
      background,
      'hasGrown',
      () =>
        function (tailLsn: number) {
          const at = this.scanner.physical(tailLsn) >>> 2;
          return readU53(this.fabric.logWords, at) === tailLsn;
        },
    ),
};

export const placesOfIds: Mutant = {
  name: 'a place that is taken by whatever member has the id of the voter before',
  install: () => replace(Replacement.prototype, 'holderOf', () => memberWithId),
};

export const candidatesTooFarBehind: Mutant = {
  name: 'candidates whose logs cannot be completed from any other',
  install: () => replace(background, 'isTooFarBehind', () => () => false),
};

export const ringNotProven: Mutant = {
  name: 'a repair from a ring of which only a log that validated is known to have overwritten it',
  install: () => replace(IntactRing.prototype, 'sendableLsn', () => () => Number.POSITIVE_INFINITY),
};

export const removedLeaderBeginsAChange: Mutant = {
  name: 'a leader that begins a change in the turn in which its removal is committed',
  install: () =>
    replace(
      MembershipChanges.prototype,
      'whyNoChange',
      (original) =>
        function () {
          const refusal = original.call(this);
          return this.log.role === 'leader' && refusal?.code === 'QUORATE_NOT_LEADER' ? null : refusal;
        },
    ),
};

export const lonelyLeaderGoesOn: Mutant = {
  name: 'a leader that leads on though it sees no majority',
  install: () => replace(replication, 'leaveIfAlone', () => () => {}),
};

export const removalBelieved: Mutant = {
  name: 'a replica that believes in its removal before it has looked at the rest of its log',
  install: () =>
    replace(
      MembershipWatch.prototype,
      'observe',
      (original) =>
        function (configuration) {
          return original.call(this, configuration);
        },
    ),
};

export const removalBelievedHalfWay: Mutant = {
  name: 'a replica that believes in its removal when it has looked at a part of its log',
  install: () =>
    replace(
      replication,
      'latestConfiguration',
      () =>
        function () {
          return this.configuration;
        },
    ),
};

export const placeOfReturningForgotten: Mutant = {
  name: 'a leader that replaces no voter that came back without its memory and went again',
  install: () =>
    replace(
      Replacement.prototype,
      'holdsPlace',
      () =>
        ({ role }) =>
          role === 'voter',
    ),
};

export const newerStateUnbelievable: Mutant = {
  name: 'a leader that fails when anybody, voter or not, has applied more than its log holds',
  install: () =>
    replace(
      replication,
      'beginRepair',
      (original) =>
        function (peer: number) {
          const { grantAppliedLsn } = this.followers[peer];
          if (grantAppliedLsn > this.tail.lsn) throw new Error(`replica ${peer} applied LSN ${grantAppliedLsn}`);
          original.call(this, peer);
        },
    ),
};

export const snapshotsUnbelievable: Mutant = {
  name: 'a leader that fails when a voter has applied, by a snapshot, what its own log does not lead to',
  install: () =>
    replace(
      replication,
      'beginRepair',
      (original) =>
        function (peer: number) {
          this.followers[peer].grant.body[GrantField.isSnapshot] = 0;
          original.call(this, peer);
        },
    ),
};

export const commonLogForgotten: Mutant = {
  name: 'a candidate that reads a better log from what it has applied itself, whatever both are known to have',
  install: () => replace(replication, 'keepCommonLog', () => () => {}),
};

export const snapshotIsNotNoted: Mutant = {
  name: 'a replica that takes its ring for the log below a snapshot that it installed',
  install: () =>
    replace(
      replication,
      'installSnapshot',
      (original) =>
        function (...parameters: unknown[]) {
          const mend = replace(IntactRing.prototype, 'noteForeign', () => () => {});
          try {
            original.apply(this, parameters);
          } finally {
            mend();
          }
        },
    ),
};
