// What a run is made of, drawn from its seed: settings of the cluster, and phases with a mix of faults each. In the
// manner of swarm testing some kinds of faults are left out of each phase, since a mix of everything hides what only a
// few kinds together bring about.
import type { Random } from '../../fabric/sim/random.js';
import type { ProfileName } from '../../replica/replica-options.js';
import type { PermissionStrategy } from '../demo/messages.js';
import { DISK_KINDS, type DiskKind } from './disks.js';

export const FAULT_KINDS = [
  /** SIGKILL, and a new start after a while. */
  'kill',
  /** SIGSTOP, and SIGCONT after a while: all threads stand still. */
  'pause',
  /** SIGSTOP to a majority at once, for a short time. */
  'pauseMajority',
  /** The event loop does not turn; the background thread goes on. */
  'block',
  /** Queue pairs go to the error state. */
  'breakLinks',
  /** SIGKILL, and a new start for which there is no memory, then one for which there is. */
  'exhaust',
  /** SIGKILL to all replicas at once, thin disks lose what they had not written, and a new start of each replica on its directory. */
  'powerLoss',
  /** SIGKILL, and a new start of a durable replica whose directory is gone. */
  'diskLoss',
  /** The disk of a durable replica is full for a while; then there is room, and its process is started again. */
  'diskFull',
  /** The disk of a durable replica refuses all writes until its process has ended; then it is sound, but for what it had not written. */
  'diskFailure',
  /** The leader is asked to hand leadership over. */
  'transfer',
  /** A follower is removed from the cluster and added to it again with empty memory, or priorities change. */
  'membership',
  /** An interface or its port goes down. */
  'linkDown',
  /** Packets from one replica to another, or to all others, or from all others, are dropped. */
  'oneWay',
  /** Packets between one replica and the others are dropped. */
  'isolate',
  /** Packets to one replica are delayed, and some are lost. */
  'degrade',
] as const;
export type FaultKind = (typeof FAULT_KINDS)[number];

/** Kinds that only replicas with disks can have. */
export const DURABLE_KINDS: readonly FaultKind[] = ['powerLoss', 'diskLoss', 'diskFull', 'diskFailure'];

/** Kinds that make another replica lead when they hit the leader: there is one in every phase. */
const DEPOSING: readonly FaultKind[] = ['kill', 'pause', 'linkDown', 'isolate', ...DURABLE_KINDS];

export interface Phase {
  readonly weights: ReadonlyMap<FaultKind, number>;
  /** Probability that the leader is the victim. */
  readonly leaderBias: number;
  /** Probability that the next fault waits until all replicas are voters and one of them leads. */
  readonly patience: number;
  /** Mean time between faults. */
  readonly intervalMs: number;
}

/** Time scales: shared memory and RDMA devices in software differ by much. */
export interface Scale {
  /**
   * Of kinds that are not as frequent as others. A start takes seconds on shared memory, and up to a minute on RDMA
   * devices in an emulated machine; without this most of a run would be starts.
   */
  readonly weights: Partial<Record<FaultKind, number>>;
  /** Range of Phase.leaderBias. */
  readonly leaderBias: readonly [number, number];
  readonly phaseMs: number;
  readonly intervalMs: readonly [number, number];
  readonly pauseMs: readonly [number, number];
  readonly majorityPauseMs: readonly [number, number];
  readonly blockMs: readonly [number, number];
  readonly restartDelayMs: readonly [number, number];
  readonly networkMs: readonly [number, number];
  /** How long a transfer of leadership may take before the leader goes on. */
  readonly transferMs: readonly [number, number];
  /** How long an operator waits for an answer before it looks what came of its wish. */
  readonly wishTimeoutMs: number;
}

export const SCALES: Readonly<Record<'shm' | 'verbs', Scale>> = {
  shm: {
    weights: {
      kill: 0.5,
      pause: 1.5,
      pauseMajority: 0.3,
      exhaust: 0.15,
      powerLoss: 0.6,
      diskLoss: 0.15,
      diskFull: 0.3,
      diskFailure: 0.3,
      transfer: 0.3,
      membership: 0.2,
    },
    leaderBias: [0.6, 0.95],
    phaseMs: 15_000,
    intervalMs: [40, 500],
    pauseMs: [2, 1500],
    majorityPauseMs: [2, 300],
    blockMs: [2, 800],
    restartDelayMs: [1, 800],
    networkMs: [50, 2000],
    transferMs: [5, 2000],
    wishTimeoutMs: 3000,
  },
  verbs: {
    weights: {
      kill: 0.1,
      pause: 2,
      pauseMajority: 0.2,
      exhaust: 0.1,
      powerLoss: 0.2,
      diskLoss: 0.05,
      diskFull: 0.1,
      diskFailure: 0.1,
      degrade: 0.3,
      breakLinks: 0.5,
      transfer: 0.3,
      membership: 0.05,
    },
    leaderBias: [0.8, 0.98],
    phaseMs: 25_000,
    intervalMs: [200, 1200],
    pauseMs: [800, 3000],
    majorityPauseMs: [50, 1000],
    blockMs: [50, 7000],
    restartDelayMs: [10, 2000],
    networkMs: [500, 5000],
    transferMs: [500, 10_000],
    wishTimeoutMs: 15_000,
  },
};

export interface ClusterSettings {
  readonly profile: ProfileName | undefined;
  readonly logBytes: number;
  readonly permissionStrategy: PermissionStrategy | undefined;
  /** What a replica has outlives its process, so that the next one comes back in two stages. */
  readonly regionsSurvive: boolean;
  /** Of durable replicas: how much log they write from one snapshot to the next. Undefined: replicas are not durable. */
  readonly snapshotAfterBytes: number | undefined;
  /** The kind of their disks. */
  readonly disks: DiskKind;
}

const KIB = 1024;
const MIB = 1024 * 1024;
/** Small, so that logs are cut and snapshots replayed in a short run, too. */
const SNAPSHOT_AFTER_BYTES = [64 * KIB, 256 * KIB, MIB] as const;

/** Small logs make followers fall behind and take snapshots. What durable replicas have on disk takes the place of regions. */
export function drawSettings(
  random: Random,
  fabric: 'shm' | 'verbs',
  profile: ProfileName | undefined,
  isDurable: boolean,
): ClusterSettings {
  const settings = {
    ...drawReplicaSettings(random, fabric, profile),
    snapshotAfterBytes: undefined,
    disks: 'machine' as const,
  };
  if (!isDurable) return settings;
  return {
    ...settings,
    regionsSurvive: false,
    snapshotAfterBytes: random.pick(SNAPSHOT_AFTER_BYTES),
    disks: random.pick(DISK_KINDS),
  };
}

function drawReplicaSettings(
  random: Random,
  fabric: 'shm' | 'verbs',
  profile: ProfileName | undefined,
): Omit<ClusterSettings, 'snapshotAfterBytes' | 'disks'> {
  const logBytes = random.pick([MIB / 4, MIB, 16 * MIB]);
  if (fabric === 'verbs') {
    const permissionStrategy = random.pick(['mr-dereg', 'qp-flush', undefined] as const);
    return { profile, logBytes, permissionStrategy, regionsSurvive: random.chance(0.5) };
  }
  return {
    profile: profile ?? random.pick(['fast', 'balanced', 'balanced']),
    logBytes,
    permissionStrategy: random.pick(['mr-dereg', 'qp-flush', 'qp-flags', undefined]),
    regionsSurvive: random.chance(0.5),
  };
}

export function drawPhase(random: Random, kinds: readonly FaultKind[], scale: Scale): Phase {
  const weights = new Map<FaultKind, number>();
  for (const kind of kinds) {
    if (random.chance(0.6)) weights.set(kind, (scale.weights[kind] ?? 1) * random.between(0.2, 1));
  }
  const deposing = DEPOSING.filter((kind) => kinds.includes(kind));
  if (deposing.length > 0 && !deposing.some((kind) => weights.has(kind))) weights.set(random.pick(deposing), 1);
  if (weights.size === 0) weights.set(random.pick(kinds), 1);
  return {
    weights,
    leaderBias: random.between(...scale.leaderBias),
    patience: random.between(0.3, 1),
    intervalMs: random.logBetween(...scale.intervalMs),
  };
}

export function drawKind(random: Random, { weights }: Phase): FaultKind {
  const total = [...weights.values()].reduce((sum, weight) => sum + weight, 0);
  let rest = random.next() * total;
  for (const [kind, weight] of weights) {
    rest -= weight;
    if (rest < 0) return kind;
  }
  return [...weights.keys()][0] as FaultKind;
}

/** For people. */
export function describePhase({ weights, leaderBias, patience, intervalMs }: Phase): string {
  const total = [...weights.values()].reduce((sum, weight) => sum + weight, 0);
  const shares = [...weights].map(([kind, weight]) => `${kind} ${Math.round((100 * weight) / total)} %`).join(', ');
  return `${shares}; leader ${Math.round(leaderBias * 100)} %, patience ${Math.round(patience * 100)} %, every ${Math.round(intervalMs)} ms`;
}
