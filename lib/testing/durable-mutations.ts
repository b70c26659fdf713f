// Ways to break the durable mode, for clusters that lose power all the time, one replica at a time and all together.
import { BackgroundPlane } from '../consensus/background-plane.js';
import { DurableLog } from '../consensus/durable-log.js';
import { copyPosition, entryPayloadBytes } from '../consensus/entry.js';
import { LeasePromise } from '../consensus/lease.js';
import { emptyFrame, FRAME_BYTES, readFrame } from '../consensus/log-frames.js';
import { LogRecovery } from '../consensus/log-recovery.js';
import { ReplicationPlane } from '../consensus/replication-plane.js';
import { Random } from '../fabric/sim/random.js';
import type { Mutation } from './mutations.js';
import { all, replace } from './replace-method.js';
import { SimCluster } from './sim-cluster.js';
import { SimDisk } from './sim-disk.js';
import { drawReading, type SimOptions, withDisks } from './sim-options.js';

/** Disks take long, and the power goes often. */
function losingPower(options: SimOptions): SimOptions {
  const random = new Random(Math.floor(options.faults.interval_ns));
  const durable = withDisks(random, { ...options, lease: null, barrierReads: 0, readers: 0 }, 3);
  const { faults, profile } = durable;
  return {
    ...durable,
    disk: {
      ...(durable.disk as NonNullable<SimOptions['disk']>),
      ...{ syncMin_ns: profile.tick_ns / 2, syncMax_ns: 2 * profile.tick_ns, diskLossProbability: 0 },
    },
    ...{ clients: 6, thinkMax_ns: 10e6 },
    faults: {
      ...faults,
      ...{ interval_ns: 300e6, restartDelayMax_ns: 100e6 },
      weights: { ...faults.weights, crash: 1, diskFailure: 0 },
    },
  };
}

/** Besides, writes to the disks fail. */
function failingDisks(options: SimOptions): SimOptions {
  const losing = losingPower(options);
  return { ...losing, faults: { ...losing.faults, weights: { ...losing.faults.weights, diskFailure: 4 } } };
}

/** Besides, disks are lost as often as the cluster bears it. */
function losingDisks(options: SimOptions): SimOptions {
  const losing = losingPower(options);
  const disk = { ...(losing.disk as NonNullable<SimOptions['disk']>), diskLossProbability: 0.8 };
  const weights = { ...losing.faults.weights, powerLoss: 0.5, crash: 3 };
  return { ...losing, disk, faults: { ...losing.faults, weights } };
}

/** Besides, followers get snapshots often, and storing one takes long. */
function storingSlowly(options: SimOptions): SimOptions {
  const losing = losingDisks(options);
  const disk = { ...(losing.disk as NonNullable<SimOptions['disk']>), snapshotMax_ns: 300e6 };
  return { ...losing, disk, logBytes: 64 * 1024, payloadBytesMax: 4096 };
}

/** Leases longer than it takes a voter to come back, and leaders that stand still meanwhile. */
function losingLeases(options: SimOptions): SimOptions {
  const random = new Random(Math.floor(options.faults.interval_ns));
  const durable = losingPower(drawReading(random, options, true));
  const { faults, profile } = durable;
  return {
    ...durable,
    ...{ lease: { length_ns: 40 * profile.tick_ns, driftBound: 0.001 }, clockDeviation: 0.001, leasedReads: 1 },
    ...{ barrierReads: 1, readers: 3, exitNoticeProbability: 0 },
    faults: {
      ...faults,
      ...{ interval_ns: 100e6, restartDelayMax_ns: 5e6, leaderBias: 0.3, durationMin_ns: 300e6, durationMax_ns: 600e6 },
      weights: { ...faults.weights, crash: 3, powerLoss: 0, pause: 1, partition: 2, oneWayCut: 1 },
    },
  };
}

export const DURABLE_MUTATIONS: readonly Mutation[] = [
  {
    name: 'counts-before-synced',
    breaks: 'an entry counts as on disk as soon as it is on its way there',
    seedsMax: 20,
    replicas: 3,
    adjust: losingPower,
    install: () =>
      replace(
        DurableLog.prototype,
        'take',
        (original) =>
          function (...parameters: unknown[]) {
            original.apply(this, parameters);
            copyPosition(this.taken, this.synced);
          },
      ),
  },
  {
    name: 'commit-on-memory',
    breaks: 'a durable leader counts what is in the memory of the others, not what is on their disks',
    seedsMax: 20,
    replicas: 3,
    adjust: losingPower,
    install: () =>
      replace(
        ReplicationPlane.prototype,
        'syncedLsn',
        () =>
          function (id: number, bootId: number) {
            if (id === this.options.id) return this.appendedLsn;
            const follower = this.followers[id];
            return follower.linkBootId === bootId && this.peerPhase(id) === 'active' ? follower.ackedLsn : 0;
          },
      ),
  },
  {
    name: 'promise-not-on-disk',
    breaks: 'a voter grants before its promise is on disk, and loses power',
    seedsMax: 40,
    replicas: 3,
    adjust: losingPower,
    install: () => replace(BackgroundPlane.prototype, 'recordPromise', () => () => true),
  },
  {
    name: 'torn-tail-taken',
    breaks: 'a log on disk is taken up to where it seems to end, whatever the hashes of its last entries say',
    seedsMax: 40,
    replicas: 3,
    adjust: losingPower,
    install: () =>
      replace(
        LogRecovery.prototype,
        'takeGroup',
        (original) =>
          function (words: Uint32Array, segment: number, offset: number) {
            const size = original.call(this, words, segment, offset);
            const frame = emptyFrame();
            if (size !== 0 || !readFrame(words, offset, segment, this.clusterId, frame)) return size;
            // All entries whose headers seem to be there, up to the end of the file.
            const end = { ...frame.position };
            let at = offset + FRAME_BYTES;
            while (at + FRAME_BYTES <= words.length * 4 && end.lsn < frame.position.lsn + frame.entriesBytes) {
              const bytes = Math.ceil((56 + entryPayloadBytes(words, at >>> 2)) / 64) * 64;
              if (at + bytes > words.length * 4) break;
              end.lsn += bytes;
              end.hashLow = words[(at >>> 2) + 8] as number;
              end.hashHigh = words[(at >>> 2) + 9] as number;
              at += bytes;
            }
            this.goTo(frame.position, segment, offset);
            this.groups.push({ segment, offset: offset + FRAME_BYTES, start: { ...frame.position }, end });
            this.tail = end;
            return words.length * 4 - offset;
          },
      ),
  },
  {
    name: 'found-log-not-synced',
    breaks:
      'a process that starts takes what it reads of the log for synced, which may be nowhere but in the memory of the kernel',
    seedsMax: 240,
    replicas: 3,
    adjust: losingPower,
    install: () => replace(SimDisk.prototype, 'settle', () => () => {}),
  },
  {
    name: 'disk-error-ignored',
    breaks: 'a write to the log on disk that failed counts as one that succeeded',
    seedsMax: 20,
    replicas: 3,
    adjust: failingDisks,
    install: () =>
      replace(
        DurableLog.prototype,
        'fail',
        () =>
          function () {
            this.written(null);
          },
      ),
  },
  {
    name: 'promise-error-ignored',
    breaks: 'a voter grants although its promise could not be written',
    seedsMax: 100,
    replicas: 3,
    adjust: failingDisks,
    install: () =>
      replace(
        BackgroundPlane.prototype,
        'recordPromise',
        (original) =>
          function (...parameters: unknown[]) {
            original.apply(this, parameters);
            return true;
          },
      ),
  },
  {
    name: 'lost-disk-votes',
    breaks: 'a replica whose disk is new comes back as the voter that it was, without its promises and its log',
    seedsMax: 60,
    replicas: 3,
    adjust: losingDisks,
    install: () =>
      replace(
        SimCluster.prototype,
        'freshLife',
        () =>
          function (id: number) {
            return this.bootIdOf(id, 1);
          },
      ),
  },
  {
    name: 'lease-forgotten-by-restart',
    breaks: 'a voter that comes back does not wait out the lease that it may have promised',
    seedsMax: 100,
    replicas: 3,
    adjust: losingLeases,
    install: () => replace(LeasePromise.prototype, 'resume', () => () => {}),
  },
  {
    name: 'snapshot-before-log',
    breaks: 'a snapshot that was received counts for the log behind it before it is on disk',
    seedsMax: 100,
    replicas: 3,
    adjust: storingSlowly,
    install: () =>
      all(
        replace(
          DurableLog.prototype,
          'restart',
          (original) =>
            function (...parameters: unknown[]) {
              original.apply(this, parameters);
              this.isHeld = false;
            },
        ),
      ),
  },
  {
    name: 'earlier-snapshot-releases',
    breaks: 'a snapshot that gets to the disk counts for one that was received while it was being stored',
    seedsMax: 100,
    replicas: 3,
    adjust: storingSlowly,
    install: () =>
      replace(
        DurableLog.prototype,
        'forget',
        (original) =>
          function (lsn: number) {
            this.heldFromLsn = 0;
            return original.call(this, lsn);
          },
      ),
  },
];
