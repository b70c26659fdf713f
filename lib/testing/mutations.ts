// Ways to break the protocol on purpose, each named: a simulation that cannot tell the broken protocol from the real one
// proves nothing. They are applied from outside, by replacing methods of the production classes (or of the simulated
// device and host) while they are installed; the production code has no switches for them.
import { BackgroundPlane } from '../consensus/background-plane.js';
import type { Configuration } from '../consensus/configuration.js';
import { type ChainPosition, entryBytes } from '../consensus/entry.js';
import { IntactRing } from '../consensus/intact-ring.js';
import { LOG_BYTES_MIN, payloadBytesMax } from '../consensus/limits.js';
import { LogScanner } from '../consensus/log-scan.js';
import { ReadRounds } from '../consensus/read-rounds.js';
import { ReplicationPlane } from '../consensus/replication-plane.js';
import { readU53, SealedBlockReader, writeU53 } from '../consensus/sealed-block.js';
import { ToMainField } from '../consensus/status-layout.js';
import { LogPermissions } from '../fabric/permissions.js';
import { SimBackgroundFabric } from '../fabric/sim/sim-background-fabric.js';
import type { SimLink } from '../fabric/sim/sim-link.js';
import { SimNode } from '../fabric/sim/sim-node.js';
import { SimReplicationFabric } from '../fabric/sim/sim-replication-fabric.js';
import { DURABLE_MUTATIONS } from './durable-mutations.js';
import { FORK_MUTATIONS } from './fork-mutations.js';
import { LEASE_MUTATIONS } from './lease-mutations.js';
import { MEMBERSHIP_MUTATIONS } from './membership-mutations.js';
import { MESSAGE_MUTATIONS } from './message-mutations.js';
import { all, replace, replaceGetter } from './replace-method.js';
import { SimCluster } from './sim-cluster.js';
import { SimLife } from './sim-life.js';
import { failingPermissions, type SimOptions } from './sim-options.js';
import { decodeCommand, Operation, SimStateMachine, type StateSnapshot, step } from './sim-state-machine.js';
import { SURVIVAL_MUTATIONS } from './survival-mutations.js';

export { replace } from './replace-method.js';

/** A way to break the protocol that the checkers must notice: what shows that they can fail. */
export interface Mutation {
  /** Unique, for `npm run sim:mutations -- --only`. */
  readonly name: string;
  /** What is broken, in a sentence. */
  readonly breaks: string;
  /** Seeds within which a simulation must notice. */
  readonly seedsMax: number;
  /** Replicas of the simulated cluster. */
  readonly replicas: number;
  /** Makes what is broken happen more often than the seeds draw it. */
  readonly adjust?: (options: SimOptions) => SimOptions;
  /** Breaks the protocol; the function returned mends it. */
  readonly install: () => () => void;
}

const replication = ReplicationPlane.prototype;
const background = BackgroundPlane.prototype;

/** How long a device that does not drain goes on placing the bytes of a revoked peer. */
const LATE_PLACEMENT_NS = 30e6;

/** Small rings that large commands fill soon, and leaders that go on appending where nobody hears them. */
function overwriting(options: SimOptions): SimOptions {
  const { faults } = options;
  const logBytes = LOG_BYTES_MIN;
  return {
    ...options,
    ...{ logBytes, payloadBytesMax: payloadBytesMax(logBytes), payloadsAreMostlySmall: false },
    ...{ clients: 6, thinkMax_ns: 10e6, barrierReads: 0, readers: 0, lease: null },
    faults: {
      ...faults,
      ...{ interval_ns: 300e6, durationMax_ns: 1000e6, leaderBias: 0.8 },
      weights: { ...faults.weights, partition: 2, oneWayCut: 1, pause: 1, slowNetwork: 0, crash: 0.2 },
    },
  };
}

/** Of the calls by which permissions are given and taken one in three fails. */
const failingOften = (options: SimOptions): SimOptions => failingPermissions(options, 1 / 3);

/** The replication plane finds whatever it asks of voters true of all of them. */
const allVotersCount = (): (() => void) =>
  replace(
    replication,
    'countVoters',
    () =>
      function () {
        return this.configuration.voters.length;
      },
  );

/** All mutations. */
export const MUTATIONS: readonly Mutation[] = [
  {
    name: 'grant-without-drain',
    breaks: 'revoking returns while WRITEs of the revoked peer are on their way, and they land later',
    seedsMax: 40,
    replicas: 3,
    install: () => {
      const revoked = new WeakMap<SimNode, { peer: number; until_ns: number }>();
      return all(
        replace(
          SimNode.prototype,
          'revoke',
          (original) =>
            function (peer: number) {
              revoked.set(this, { peer, until_ns: this.world.now_ns + LATE_PLACEMENT_NS });
              return original.call(this, peer);
            },
        ),
        replace(SimNode.prototype, 'drainWrites', () => () => {}),
        replace(
          SimNode.prototype,
          'mayWrite',
          (original) =>
            function (link: SimLink, key: number) {
              const late = revoked.get(this as SimNode);
              if (late?.peer === link.initiator.id && this.world.now_ns < late.until_ns) return true;
              return original.call(this, link, key);
            },
        ),
      );
    },
  },
  {
    name: 'append-not-fenced',
    breaks: 'a deposed leader appends to its own log after that was granted to another',
    seedsMax: 300,
    replicas: 3,
    install: () =>
      replace(
        SimReplicationFabric.prototype,
        'append',
        (original) =>
          function (epoch: number, ...rest: unknown[]) {
            const { node } = this;
            const { fence } = node;
            node.fence = epoch;
            try {
              return original.call(this, epoch, ...rest);
            } finally {
              node.fence = fence;
            }
          },
      ),
  },
  {
    name: 'fence-raised-late',
    breaks: 'the fence is raised some time after the grant instead of before it',
    seedsMax: 300,
    replicas: 3,
    install: () =>
      replace(
        SimBackgroundFabric.prototype,
        'raiseFence',
        () =>
          function (epoch: number) {
            const { node } = this;
            node.preempt('background');
            const raise = (): void => {
              node.fence = Math.max(node.fence, epoch);
            };
            // The own candidacy needs it at once, or nothing would be appended at all.
            if (node.id === epoch % 2 ** 20) raise();
            else node.world.schedule(node.world.random.integer(20e6), raise);
            node.observer.onFenceRaised(node, epoch);
          },
      ),
  },
  {
    name: 'writer-not-revoked',
    breaks: 'a new writer is let in while the one before keeps its permission',
    seedsMax: 20,
    replicas: 3,
    install: () =>
      replace(
        LogPermissions.prototype,
        'revoke',
        () =>
          function () {
            this.granted = null;
          },
      ),
  },
  {
    name: 'failed-revocation-counts',
    breaks: 'a permission counts as taken back although the device failed to, or did not prove it',
    seedsMax: 40,
    replicas: 3,
    adjust: failingOften,
    install: () =>
      replace(
        LogPermissions.prototype,
        'revoke',
        (original) =>
          function (peer: number) {
            try {
              original.call(this, peer);
            } catch {
              this.granted = null;
            }
          },
      ),
  },
  {
    name: 'failed-grant-left-open',
    breaks: 'what a grant that failed may have opened is not closed again',
    seedsMax: 200,
    replicas: 3,
    adjust: failingOften,
    install: () => {
      const enabling = new WeakSet<object>();
      return all(
        replace(
          LogPermissions.prototype,
          'enable',
          (original) =>
            function (peer: number) {
              enabling.add(this);
              try {
                return original.call(this, peer);
              } finally {
                enabling.delete(this);
              }
            },
        ),
        replace(
          LogPermissions.prototype,
          'revoke',
          (original) =>
            function (peer: number) {
              if (enabling.has(this)) this.granted = null;
              else original.call(this, peer);
            },
        ),
      );
    },
  },
  {
    name: 'failed-grant-forgotten',
    breaks: 'a voter forgets whom it may have let in by a grant that failed, if that could not be taken back at once',
    seedsMax: 40,
    replicas: 3,
    adjust: failingOften,
    install: () => replace(SimBackgroundFabric.prototype, 'logWriter', () => () => -1),
  },
  {
    name: 'count-old-epoch-entries',
    breaks: 'a new leader counts entries of earlier epochs as committed when a majority holds them',
    seedsMax: 300,
    replicas: 5,
    install: () =>
      replace(
        replication,
        'appendNoop',
        (original) =>
          function () {
            original.call(this);
            if (this.noopAppended()) this.noopEndLsn = this.noopStartLsn;
          },
      ),
  },
  {
    name: 'skip-tail-repair',
    breaks: "a voter's log is continued from its end, whatever it holds there, not from where it diverges",
    seedsMax: 100,
    replicas: 3,
    install: () =>
      replace(
        replication,
        'beginRepair',
        (original) =>
          function (peer: number) {
            original.call(this, peer);
            const follower = this.followers[peer];
            if (this.peerPhase(peer) !== 'repairing') return;
            follower.sentLsn = Math.min(Math.max(follower.sentLsn, follower.grantTailLsn), this.tail.lsn);
          },
      ),
  },
  {
    name: 'ignore-chain-hash',
    breaks: 'an entry is taken as valid when its header fits, whatever its hash says',
    seedsMax: 100,
    replicas: 3,
    install: () =>
      replace(
        LogScanner.prototype,
        'step',
        () =>
          function (position: ChainPosition, epochMax: number) {
            const { words, capacityBytes } = this;
            const offset = this.physical(position.lsn);
            const at = offset >>> 2;
            const type = words[at + 5] & 0xffff;
            const size = entryBytes(words[at + 4]);
            const epoch = readU53(words, at + 2);
            if (readU53(words, at) !== position.lsn || words[at + 5] >>> 16 !== 0x51e7 || type < 1 || type > 4)
              return -1;
            if (offset + size > capacityBytes || epoch > epochMax) return -1;
            position.lsn += size;
            position.epoch = epoch;
            position.hashLow = words[at + 8];
            position.hashHigh = words[at + 9];
            return offset;
          },
      ),
  },
  {
    name: 'apply-before-own-epoch-entry',
    breaks: 'a follower applies up to the commit LSN before an entry of the current epoch vouches for its log',
    seedsMax: 200,
    replicas: 3,
    install: () =>
      replace(
        replication,
        'follow',
        (original) =>
          function () {
            const more = original.call(this);
            return this.applyCommitted() || more;
          },
      ),
  },
  {
    name: 'no-grant-guard',
    breaks: 'a voter helps to depose a leader that it trusts',
    seedsMax: 60,
    replicas: 3,
    install: () => replace(background, 'liveLeader', () => () => false),
  },
  {
    name: 'recycle-too-early',
    breaks: 'the ring is recycled as soon as the leader itself has applied it',
    seedsMax: 60,
    replicas: 3,
    install: () =>
      replace(
        replication,
        'lowestNeededLsn',
        () =>
          function () {
            return this.applied.lsn;
          },
      ),
  },
  {
    name: 'recycle-unchecked',
    breaks: 'as recycle-too-early, and the leader believes that followers have applied what they acknowledged',
    seedsMax: 200,
    replicas: 3,
    install: () =>
      all(
        replace(
          replication,
          'lowestNeededLsn',
          () =>
            function () {
              return this.applied.lsn;
            },
        ),
        replace(
          replication,
          'pumpAll',
          (original) =>
            function () {
              for (const follower of this.followers)
                follower.appliedLsn = Math.max(follower.appliedLsn, this.applied.lsn);
              original.call(this);
            },
        ),
      ),
  },
  {
    name: 'left-out-follower-forgotten',
    breaks: 'a follower that was not needed for a commit is not sent what it was left out of',
    seedsMax: 20,
    replicas: 3,
    adjust: (options) => ({ ...options, disk: null, majorityFirst_ns: 3 * options.network.latencyMax_ns }),
    install: () =>
      replace(
        replication,
        'pumpAll',
        (original) =>
          function () {
            if (!this.areWritesDeferred) original.call(this);
          },
      ),
  },
  {
    name: 'repair-from-overwritten-ring',
    breaks:
      'a leader repairs others from its ring as it is: over what a truncated suffix overwrote, or below a snapshot',
    seedsMax: 60,
    replicas: 3,
    adjust: overwriting,
    install: () =>
      all(
        replace(IntactRing.prototype, 'noteForeign', () => () => {}),
        replace(IntactRing.prototype, 'sendableLsn', () => () => Number.POSITIVE_INFINITY),
      ),
  },
  {
    name: 'promise-not-recorded',
    breaks: 'a voter forgets the epoch that it has just granted',
    seedsMax: 20,
    replicas: 3,
    install: () =>
      replace(
        background,
        'grant',
        (original) =>
          function (candidate: number, ...rest: unknown[]) {
            const before = this.promisedEpoch;
            const isGranted = original.call(this, candidate, ...rest);
            if (candidate !== this.options.id) this.promisedEpoch = before;
            return isGranted;
          },
      ),
  },
  {
    name: 'commit-on-minority',
    breaks: 'the leader commits what it alone holds',
    seedsMax: 20,
    replicas: 3,
    install: () => {
      let isAlone = false;
      return all(
        replaceGetter(
          replication,
          'configuration',
          (original) =>
            function (): Configuration {
              const configuration = original.call(this) as Configuration;
              if (!isAlone) return configuration;
              return { ...configuration, voters: configuration.voters.filter(({ id }) => id === this.options.id) };
            },
        ),
        replace(
          replication,
          'advanceCommit',
          (original) =>
            function () {
              isAlone = true;
              try {
                original.call(this);
              } finally {
                isAlone = false;
              }
            },
        ),
      );
    },
  },
  {
    name: 'commit-within-an-entry',
    breaks: 'bytes that a majority holds are committed, also where they end inside an entry',
    seedsMax: 300,
    replicas: 3,
    install: () => replace(replication, 'entryBoundary', () => (lsn: number) => lsn),
  },
  {
    name: 'elect-on-minority',
    breaks: 'a candidate takes over with its own vote alone',
    seedsMax: 400,
    replicas: 3,
    install: () =>
      all(
        replace(
          background,
          'announceMajority',
          () =>
            function () {
              this.takeoverAnnounced = true;
              writeU53(this.toMainWriter.body, ToMainField.takeoverEpoch, this.candidateEpoch);
              this.publishToMain();
              this.options.notifyMain();
            },
        ),
        allVotersCount(),
      ),
  },
  {
    // The majority that the background plane counted is mostly still there when the replication plane begins: rarely caught.
    name: 'majority-not-counted-again',
    breaks: 'a takeover goes on though a link that carried one of the grants has been lost since',
    seedsMax: 3000,
    replicas: 3,
    install: allVotersCount,
  },
  {
    name: 'torn-status-accepted',
    breaks: 'a status block is taken as it comes, without its checksum',
    seedsMax: 200,
    replicas: 3,
    install: () =>
      replace(
        SealedBlockReader.prototype,
        'read',
        () =>
          function (source: Uint32Array, offsetWords: number) {
            for (let index = 0; index < this.sizeWords; index++) this.body[index] = source[offsetWords + index];
            return this.body[0] !== 0;
          },
      ),
  },
  {
    name: 'old-life-counts',
    breaks: 'a replica that lost its memory votes and acknowledges as the voter it was',
    seedsMax: 200,
    replicas: 3,
    install: () =>
      all(
        replaceGetter(
          replication,
          'configuration',
          (original) =>
            function (): Configuration {
              const configuration = original.call(this) as Configuration;
              const members = configuration.members.map((member) => {
                const linkBootId = this.followers?.[member.id]?.linkBootId ?? 0;
                return { ...member, bootId: linkBootId !== 0 ? linkBootId : member.bootId };
              });
              return { ...configuration, members, voters: members.filter(({ role }) => role === 'voter') };
            },
        ),
        replace(
          background,
          'voterBootId',
          (original) =>
            function (peer: number) {
              const bootId = original.call(this, peer);
              if (bootId === 0) return bootId;
              const grant = this.peers[peer].grant.body;
              return readU53(grant, 5) || bootId;
            },
        ),
      ),
  },
  {
    name: 'tail-not-published',
    breaks: 'a grant says where the voter has applied, not where its log ends',
    seedsMax: 200,
    replicas: 3,
    install: () => replace(LogScanner.prototype, 'scan', () => () => {}),
  },
  {
    name: 'best-log-not-adopted',
    breaks: 'a candidate leads with its own log, though a voter that granted holds a better one',
    seedsMax: 40,
    replicas: 3,
    install: () =>
      replace(
        replication,
        'readNext',
        () =>
          function () {
            this.extendTail(this.epoch, Number.POSITIVE_INFINITY);
            this.appendNoop();
          },
      ),
  },
  {
    name: 'tail-not-forgotten',
    breaks: 'a follower keeps the tail that it validated before another leader was let in',
    seedsMax: 150,
    replicas: 3,
    install: () =>
      replace(
        replication,
        'forgetTail',
        (original) =>
          function () {
            if (this.role !== 'follower') original.call(this);
          },
      ),
  },
  {
    name: 'tail-not-revalidated',
    breaks: 'a follower goes on from a tail of the old epoch, under which the new leader repairs the log',
    seedsMax: 150,
    replicas: 3,
    install: () =>
      replace(
        replication,
        'follow',
        (original) =>
          function () {
            this.forgetTail = () => {};
            try {
              return original.call(this);
            } finally {
              delete this.forgetTail;
            }
          },
      ),
  },
  {
    name: 'no-snapshot-in-takeover',
    breaks: 'the host sends no snapshot before the takeover is complete, though that may need the one who waits for it',
    seedsMax: 200,
    replicas: 3,
    install: () =>
      replace(
        SimCluster.prototype,
        'sendSnapshot',
        (original) =>
          function (life: SimLife, peer: number) {
            if (life.replication.role === 'leader') original.call(this, life, peer);
          },
      ),
  },
  {
    name: 'voter-without-catching-up',
    breaks: 'a replica that is being repaired counts as a voter that holds the whole log',
    seedsMax: 200,
    replicas: 3,
    install: () =>
      replace(
        replication,
        'beginRepair',
        (original) =>
          function (peer: number) {
            original.call(this, peer);
            const follower = this.followers[peer];
            if (this.peerPhase(peer) === 'repairing') follower.ackedLsn = this.tail.lsn;
          },
      ),
  },
  {
    name: 'outpromised-voter-left-out',
    breaks: 'a leader never begins a later epoch for a voter that promised one',
    seedsMax: 100,
    replicas: 3,
    install: () => replace(background, 'outpromised', () => () => false),
  },
  {
    name: 'broken-link-not-reported',
    breaks: 'the host is not told of a link that failed',
    seedsMax: 100,
    replicas: 3,
    install: () => replace(replication, 'noticeBroken', () => () => {}),
  },
  {
    name: 'sessions-not-checked',
    breaks: 'the state machine applies a command again that it has applied before',
    seedsMax: 40,
    replicas: 3,
    install: () =>
      replace(
        SimStateMachine.prototype,
        'apply',
        (original) =>
          function (origin: number, ...rest: unknown[]) {
            const session = this.sessions.get(origin);
            if (session !== undefined) session.sequence = 0;
            return original.call(this, origin, ...rest);
          },
      ),
  },
  {
    name: 'sessions-not-in-snapshot',
    breaks: 'a snapshot carries the state without the table of sessions',
    seedsMax: 100,
    replicas: 3,
    install: () =>
      replace(
        SimStateMachine.prototype,
        'restore',
        (original) =>
          function (snapshot: StateSnapshot) {
            return original.call(this, { ...snapshot, sessions: [] });
          },
      ),
  },
  {
    name: 'stale-reads',
    breaks: 'any replica that believes to lead answers reads from its own state, without asking a majority',
    seedsMax: 60,
    replicas: 3,
    install: () =>
      replace(
        SimLife.prototype,
        'propose',
        (original) =>
          function (origin: number, sequence: number, payload: Uint8Array, answer: (outcome: unknown) => void) {
            const command = decodeCommand(payload, 0, payload.length);
            if (command.operation !== Operation.read) return original.call(this, origin, sequence, payload, answer);
            this.postToMain(() => {
              const { registers } = this.state;
              const { result } = step(registers[command.key], command);
              answer({ kind: 'applied', result });
            });
          },
      ),
  },
  {
    name: 'barrier-without-round',
    breaks: 'a read barrier is passed by what the leader believes, without proof from a majority',
    seedsMax: 100,
    replicas: 3,
    install: () =>
      all(
        replace(replication, 'isEpochProven', () => () => true),
        replace(replication, 'provePermissions', () => () => {}),
      ),
  },
  {
    name: 'barrier-counts-earlier-writes',
    breaks: 'a WRITE that was posted before a read was asked for counts as proof for it',
    seedsMax: 800,
    replicas: 3,
    install: () => replace(ReadRounds.prototype, 'noteEarlier', () => () => {}),
  },
  {
    name: 'barrier-before-applied',
    breaks: 'a read barrier does not wait until what was committed before it is applied',
    seedsMax: 800,
    replicas: 3,
    install: () => replace(replication, 'isReadLsnApplied', () => () => true),
  },
  {
    name: 'barrier-before-own-noop',
    breaks: 'a read barrier is asked for, and passed, before the noop of the own epoch is committed',
    seedsMax: 800,
    replicas: 3,
    install: () =>
      replace(
        replication,
        'readBarrier',
        (original) =>
          function () {
            return this.role === 'takingOver' ? this.reads.request() : original.call(this);
          },
      ),
  },
  {
    name: 'answer-before-commit',
    breaks: 'a proposal is answered when it is in the log of the leader',
    seedsMax: 40,
    replicas: 3,
    install: () =>
      replace(
        replication,
        'propose',
        (original) =>
          function (origin: number, sequence: number, payload: Uint8Array) {
            const lsn = original.call(this, origin, sequence, payload);
            if (lsn >= 0) this.commitLsn_ = this.tail.lsn;
            return lsn;
          },
      ),
  },
  ...MEMBERSHIP_MUTATIONS,
  ...LEASE_MUTATIONS,
  ...SURVIVAL_MUTATIONS,
  ...MESSAGE_MUTATIONS,
  ...DURABLE_MUTATIONS,
  ...FORK_MUTATIONS,
];
