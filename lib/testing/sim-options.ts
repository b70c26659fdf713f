// Everything that a simulation's seed decides before it begins: sizes, speeds and the mix of faults. Each kind of fault
// is absent from some runs and frequent in others (swarm testing), because faults that always occur together hide what
// one of them alone would show.

import type { BackgroundProfile } from '../consensus/background-plane.js';
import { LEASE_TICKS_MIN, type LeaseSettings } from '../consensus/lease.js';
import { payloadBytesMax } from '../consensus/limits.js';
import { PERMISSION_STRATEGIES } from '../fabric/permissions.js';
import { Random } from '../fabric/sim/random.js';
import type { SimNetworkOptions } from '../fabric/sim/sim-network.js';
import type { SimDiskOptions } from './sim-disk.js';

const US = 1e3;
const MS = 1e6;

/** Which faults are injected, how often and for how long. */
export interface FaultRates {
  /** Mean time between two faults of any kind; which, is drawn by weight. */
  readonly interval_ns: number;
  /** How often each kind occurs, against the others. */
  readonly weights: {
    /** A process dies; its memory is gone, or survives. */
    readonly crash: number;
    /** A process stops; its memory stays readable and writable. */
    readonly pause: number;
    /** The event loop of a process is blocked. */
    readonly stallMain: number;
    /** The background thread of a process does not run. */
    readonly stallBackground: number;
    /** The replicas fall into two groups that do not reach each other. */
    readonly partition: number;
    /** Packets from one replica to another are lost. */
    readonly oneWayCut: number;
    /** A queue pair breaks and is replaced. */
    readonly breakLink: number;
    /** All packets take longer. */
    readonly slowNetwork: number;
    /** A member is added, promoted, removed or described anew; or leadership is handed over. */
    readonly membership: number;
    /** The leader is asked to hand leadership over. */
    readonly transfer: number;
    /** All replicas, or most of them, lose power at once; only where they are durable. */
    readonly powerLoss: number;
    /** A write to a replica's disk fails, or all do for a while; only where they are durable. */
    readonly diskFailure: number;
  };
  /** Shortest and longest pause, stall and partition. */
  readonly durationMin_ns: number;
  /** Longest pause, stall and partition. */
  readonly durationMax_ns: number;
  /** How often the leader is the one that is hit. */
  readonly leaderBias: number;
  /** A process that died comes back within this time. */
  readonly restartDelayMax_ns: number;
}

/** A majority of the voters is lost for ever, and a new cluster is forced from what is left. */
export interface MajorityLossOptions {
  /** Part of the time with faults that passes before. */
  readonly after: number;
  /** How long it takes until anybody does something about it. */
  readonly wait_ns: number;
}

/** What a seed decides before a run begins; times are virtual, in nanoseconds. */
export interface SimOptions {
  /** Processes; the first `founders` of them form the cluster, the others may be added to it. */
  readonly replicas: number;
  /** All times, but those of the transport where it keeps its own, are so many times longer than at pace 1. */
  readonly pace: number;
  /** Members of the first configuration. */
  readonly founders: number;
  /** Election priorities of the founders, 0 where there is none. */
  readonly priorities: readonly number[];
  /** Size of each log, in bytes. */
  readonly logBytes: number;
  /** Failure detection. */
  readonly profile: BackgroundProfile;
  /** A follower that blocks the recycling of the ring for so long is dropped. */
  readonly lagTimeout_ns: number;
  /** Voters that are gone for so long are replaced by spares; 0: never. */
  readonly replaceAfter_ns: number;
  /** How long a flush busy-polls for completions. */
  readonly spin_ns: number;
  /** How long a flush waits for the followers that a commit takes before it writes to the others; 0: not at all. */
  readonly majorityFirst_ns: number;
  /** How long after a wake-up the main plane runs, at most. */
  readonly mainLatencyMax_ns: number;
  /** Ticks come late by up to this fraction. */
  readonly tickJitter: number;
  /** At every call into the fabric the caller may lose the processor, for up to preemptMax_ns. */
  readonly preemptProbability: number;
  /** Longest loss of the processor within a call. */
  readonly preemptMax_ns: number;
  /** The transport: delays, loss, tearing, how permissions are revoked. */
  readonly network: SimNetworkOptions;
  /** The mix of faults. */
  readonly faults: FaultRates;
  /** How often a survivor's host sees at once that a process has died. */
  readonly exitNoticeProbability: number;
  /** A broken link is replaced within this time. */
  readonly relinkDelayMax_ns: number;
  /** How often the log of a replica that crashes, and a snapshot of its state, are there for its next life. */
  readonly regionSurvives: number;
  /** Clients that propose commands, each one after the other. */
  readonly clients: number;
  /** Registers that they use. */
  readonly keys: number;
  /** Longest pause of a client between two operations. */
  readonly thinkMax_ns: number;
  /** A client gives up waiting for an answer after this time. */
  readonly attemptTimeout_ns: number;
  /** Largest command, in bytes. */
  readonly payloadBytesMax: number;
  /** Small payloads are more frequent, every order of magnitude as likely as the next; otherwise all sizes are. */
  readonly payloadsAreMostlySmall: boolean;
  /** Part of the reads that are answered from the leader's state behind a read barrier; the others go through the log. */
  readonly barrierReads: number;
  /** Part of the proposals at followers that are forwarded, by messages, as are questions for the read index; 0: no messages. */
  readonly forwarding: number;
  /** Part of the operations, of all clients, that have no session: what became of them is left open. */
  readonly sessionless: number;
  /** Null where there are no leases. */
  readonly lease: LeaseSettings | null;
  /** The replicas' disks; null where they are not durable. */
  readonly disk: SimDiskOptions | null;
  /** Null where a majority keeps its memory to the end. */
  readonly majorityLoss: MajorityLossOptions | null;
  /** By how much the rates of clocks differ from true time, as a fraction; at most the lease's drift bound. */
  readonly clockDeviation: number;
  /** Part of those reads that are answered by lease where there is one, and part that a follower takes on. */
  readonly leasedReads: number;
  /** Part of the reads that a follower takes on. */
  readonly followerReads: number;
  /** Clients that do nothing but read from the state of a replica, often, at whichever. */
  readonly readers: number;
  /** Entries that a main plane applies in one go, at most, and how long the state machine takes for each, at most. */
  readonly applyEntriesMax: number;
  /** Longest time that the state machine takes for an entry. */
  readonly applyTimeMax_ns: number;
  /** How long faults last, and the time within which the cluster must then have converged. */
  readonly faultyTime_ns: number;
  /** Calm time within which the cluster must have converged. */
  readonly convergenceTime_ns: number;
}

/** Size and length of a run. */
export interface SimRequest {
  /** Processes; some of them may join a cluster of fewer founders. */
  readonly replicas: number;
  /** Length of the run, at least; it ends when the cluster has converged after the faults. */
  readonly virtualSeconds: number;
  /** Instead of the pace that the seed draws. */
  readonly pace?: number;
}

/** Slower than anything that is of use. */
export const PACE_MAX = 1000;
/** Most processes that are added to those of a request. */
export const JOINERS_MAX = 2;

/** Ample: a converged cluster ends the run, so this costs time only where something is wrong. */
const CONVERGENCE_TIME_NS = 8e9;
/** Clients go on for this part of the calm time, so a run is at least that much longer than its faults. */
export const CALM_WITH_CLIENTS = 0.1;
const FAULTY_TIME_MIN_NS = 1e9;

/** A run is slowed down only as far as it still holds as much as so many seconds at pace 1 do. */
const PACED_SECONDS_MIN = 9;
const PACE_MIN = 4;
/** Part of the long runs that are at pace 1. */
const FULL_PACE_PROBABILITY = 0.01;

/** Draws the options of a run. */
export function drawOptions(random: Random, request: SimRequest): SimOptions {
  return withPermissionFailures(withMajorityFirst(withLateVisibility(random, drawKind(random, request))));
}

/** Devices that fail when a permission is given or taken. Drawn apart: the other runs stay what they were before there was this. */
function withPermissionFailures(options: SimOptions): SimOptions {
  const apart = new Random(Math.floor(options.network.latencySpike_ns));
  if (!apart.chance(PERMISSION_FAILURES_PROBABILITY)) return options;
  return failingPermissions(options, apart.logBetween(0.02, 0.5));
}

/** Calls by which permissions are given and taken fail so often. */
export function failingPermissions(options: SimOptions, permissionFailureProbability: number): SimOptions {
  return { ...options, network: { ...options.network, permissionFailureProbability } };
}

/** Devices that take their time to post a WRITE. Drawn apart: the other runs stay what they were before there was this. */
function withMajorityFirst(options: SimOptions): SimOptions {
  const apart = new Random(Math.floor(options.mainLatencyMax_ns));
  if (!apart.chance(MAJORITY_FIRST_PROBABILITY)) return options;
  return { ...options, majorityFirst_ns: options.network.latencyMax_ns * apart.between(1, 3) };
}

/** Devices that are slow to show what was written, in two thirds of the runs. */
function withLateVisibility(random: Random, options: SimOptions): SimOptions {
  const lateVisibilityProbability = random.pick([0, 0.1, 0.5]);
  const lateVisibilityMax_ns = Math.ceil(options.network.latencyMax_ns * random.logBetween(1, 20));
  return { ...options, network: { ...options.network, lateVisibilityProbability, lateVisibilityMax_ns } };
}

function drawKind(random: Random, request: SimRequest): SimOptions {
  const drawn = drawAtFullPace(random, request.replicas);
  // Drawn in any case: a run whose own pace is asked for is to be that run.
  const drawnPace = drawPace(random, request.virtualSeconds);
  const pace = request.pace ?? drawnPace;
  const paced = pace === 1 ? drawn : slowDown(random, drawn, pace);
  const calm_ns = paced.convergenceTime_ns * CALM_WITH_CLIENTS;
  const faultyTime_ns = Math.max(FAULTY_TIME_MIN_NS, request.virtualSeconds * 1e9 - calm_ns);
  const leased = random.chance(0.5) ? withLeases(random, paced) : paced;
  const timed = { ...withMessages(random.fork(), leased), followerReads: random.pick([0, 0.5, 1]), faultyTime_ns };
  // Where there are more processes than founders, some of them are spares, half of the time.
  const isReplacing = timed.replicas !== timed.founders && !random.chance(0.5);
  const replacing = isReplacing
    ? withReplacing(timed, random.logBetween(REPLACE_AFTER_MIN_NS, REPLACE_AFTER_MAX_NS))
    : timed;
  if (!random.chance(0.7)) return { ...replacing, regionSurvives: random.pick([0.5, 1]) };
  if (random.chance(DURABLE_PROBABILITY)) {
    const durable = withDisks(random, replacing);
    // Drawn apart: the other durable runs stay what they were before there was this.
    const apart = new Random(Math.floor(durable.faults.interval_ns));
    return apart.chance(MAJORITY_LOSS_PROBABILITY) ? withMajorityLoss(apart, durable) : durable;
  }
  return random.chance(MAJORITY_LOSS_PROBABILITY) ? withMajorityLoss(random, replacing) : replacing;
}

const DURABLE_PROBABILITY = 0.25;
const MAJORITY_LOSS_PROBABILITY = 0.15;
const MAJORITY_FIRST_PROBABILITY = 0.25;
const PERMISSION_FAILURES_PROBABILITY = 0.2;
/** What was on its way when the majority died has arrived by then, at pace 1. */
const MAJORITY_LOSS_WAIT_MIN_NS = 500 * MS;
const MAJORITY_LOSS_WAIT_MAX_NS = 2000 * MS;

/** A majority is lost for ever, somewhere in the middle. */
export function withMajorityLoss(random: Random, options: SimOptions): SimOptions {
  const wait_ns = random.logBetween(MAJORITY_LOSS_WAIT_MIN_NS, MAJORITY_LOSS_WAIT_MAX_NS) * options.pace;
  return { ...options, majorityLoss: { after: random.between(0.2, 0.7), wait_ns } };
}

/** Durable replicas, that lose power one at a time or all together. */
export function withDisks(random: Random, options: SimOptions, powerLoss = random.between(0.2, 1)): SimOptions {
  const { logBytes, profile, faults, pace } = options;
  const syncMax_ns = random.logBetween(100 * US * pace, profile.tick_ns);
  return {
    ...options,
    regionSurvives: 0,
    majorityLoss: null,
    // A takeover waits for the disks of a majority, and for the promises before that.
    profile: { ...profile, takeoverTimeout_ns: profile.takeoverTimeout_ns + 20 * syncMax_ns },
    disk: {
      syncMin_ns: syncMax_ns * random.between(0.1, 0.9),
      syncMax_ns,
      segmentBytes: logBytes * random.pick([1 / 16, 1 / 4, 1]),
      snapshotAfterBytes: logBytes * random.pick([1 / 8, 1 / 2, 2]),
      snapshotMax_ns: random.logBetween(1 * MS, 200 * MS) * pace,
      diskLossProbability: random.pick([0, 0.2, 0.5]),
    },
    faults: { ...faults, weights: { ...faults.weights, powerLoss, diskFailure: random.pick([0, 0.3, 1]) } },
  };
}

/** Clients of some clusters propose anywhere, and some of their commands have no session. */
function withMessages(random: Random, options: SimOptions): SimOptions {
  if (random.chance(0.6)) return options;
  return { ...options, forwarding: random.pick([0.5, 1, 1]), sessionless: random.pick([0, 0.3, 1]) };
}

/** Leases of some length, and clocks that differ as much as these leases bear, or less. */
function withLeases(random: Random, options: SimOptions): SimOptions {
  const { tick_ns, scoreMax } = options.profile;
  const driftBound = random.pick([0, 0.001, 0.02, 0.2]);
  const length_ns = Math.floor(random.between(LEASE_TICKS_MIN, 2 * scoreMax) * tick_ns);
  return {
    ...options,
    lease: { length_ns, driftBound },
    clockDeviation: random.pick([0, 0.5, 1]) * driftBound,
    leasedReads: random.pick([0.5, 1]),
  };
}

const REPLACE_AFTER_MIN_NS = 250 * MS;
const REPLACE_AFTER_MAX_NS = 1500 * MS;

/** Voters are replaced when they are gone for so long, at pace 1, and replicas often stay away for longer. */
export function withReplacing(options: SimOptions, replaceAfter_ns: number): SimOptions {
  const { faults, pace } = options;
  const restartDelayMax_ns = Math.max(faults.restartDelayMax_ns, 4 * replaceAfter_ns * pace);
  return { ...options, replaceAfter_ns: replaceAfter_ns * pace, faults: { ...faults, restartDelayMax_ns } };
}

/**
 * Slow clusters do in minutes what fast ones do in seconds, for the same cost: a long run is worth its time only if it is
 * slow, or else it repeats the same mix of faults again and again. Short runs are at pace 1.
 */
function drawPace(random: Random, virtualSeconds: number): number {
  const max = virtualSeconds / PACED_SECONDS_MIN;
  if (max <= PACE_MIN || random.chance(FULL_PACE_PROBABILITY)) return 1;
  return random.logBetween(PACE_MIN, max);
}

/**
 * The same run, slower. In half of the runs the network is as fast as before, or anything between: then a tick, a fault
 * and a client's pause are long against a packet's time. And since a slow run holds fewer faults, they are such that
 * more of them depose a leader.
 */
function slowDown(random: Random, drawn: SimOptions, pace: number): SimOptions {
  const { profile, network, faults } = drawn;
  const networkPace = random.chance(0.5) ? pace : random.logBetween(1, pace);
  const scoreMax = random.pick([8, 10, 15]);
  const pausesMost = random.chance(0.5);
  return {
    ...drawn,
    pace,
    profile: {
      tick_ns: profile.tick_ns * pace,
      electionTick_ns: profile.electionTick_ns * pace,
      takeoverTimeout_ns: profile.takeoverTimeout_ns * pace,
      scoreMax,
      failBelow: profile.failBelow,
      recoverAbove: random.pick([4, 6]),
      stallTimeout_ns: profile.stallTimeout_ns * pace,
    },
    lagTimeout_ns: drawn.lagTimeout_ns * pace,
    spin_ns: drawn.spin_ns * networkPace,
    mainLatencyMax_ns: drawn.mainLatencyMax_ns * networkPace,
    preemptMax_ns: drawn.preemptMax_ns * pace,
    network: {
      ...network,
      latencyMin_ns: network.latencyMin_ns * networkPace,
      latencyMax_ns: network.latencyMax_ns * networkPace,
      latencySpike_ns: network.latencySpike_ns * networkPace,
      retransmit_ns: network.retransmit_ns * networkPace,
      giveUpMin_ns: network.giveUpMin_ns * networkPace,
      giveUpMax_ns: network.giveUpMax_ns * networkPace,
      tearGapMax_ns: network.tearGapMax_ns * networkPace,
      lateCompletionMax_ns: network.lateCompletionMax_ns * networkPace,
    },
    faults: {
      ...faults,
      interval_ns: random.logBetween(80 * MS, 500 * MS) * pace,
      weights: pausesMost ? { ...faults.weights, pause: Math.max(2, faults.weights.pause) } : faults.weights,
      durationMin_ns: random.logBetween(1 * MS, 100 * MS) * pace,
      durationMax_ns: random.logBetween(200 * MS, 2000 * MS) * pace,
      leaderBias: Math.max(faults.leaderBias, random.between(0.3, 1)),
      restartDelayMax_ns: faults.restartDelayMax_ns * pace,
    },
    relinkDelayMax_ns: drawn.relinkDelayMax_ns * pace,
    thinkMax_ns: drawn.thinkMax_ns * pace,
    payloadsAreMostlySmall: random.chance(0.7),
    attemptTimeout_ns: drawn.attemptTimeout_ns * pace,
    applyTimeMax_ns: drawn.applyTimeMax_ns * networkPace,
    convergenceTime_ns: drawn.convergenceTime_ns * pace,
  };
}

function drawAtFullPace(random: Random, replicas: number): SimOptions {
  const weight = (): number => (random.chance(0.4) ? 0 : random.between(0.2, 1));
  const logBytes = random.pick([64, 64, 64, 64, 256, 256, 512]) * 1024;
  const tick_ns = random.pick([5, 10]) * MS;
  const latencyMax_ns = random.logBetween(50 * US, 3 * MS);
  const maxPayload = payloadBytesMax(logBytes);
  const drawn: SimOptions = {
    replicas: replicas,
    pace: 1,
    founders: replicas,
    priorities: [],
    logBytes,
    profile: {
      tick_ns,
      electionTick_ns: tick_ns / 2,
      takeoverTimeout_ns: tick_ns * random.between(20, 60),
      scoreMax: 15,
      failBelow: 2,
      recoverAbove: 6,
      stallTimeout_ns: tick_ns * random.between(10, 200),
    },
    lagTimeout_ns: random.between(100, 600) * MS,
    replaceAfter_ns: 0,
    spin_ns: random.chance(0.3) ? random.logBetween(10 * US, 500 * US) : 0,
    majorityFirst_ns: 0,
    mainLatencyMax_ns: random.logBetween(10 * US, 5 * MS),
    tickJitter: random.pick([0, 0.05, 0.3]),
    preemptProbability: random.chance(0.3) ? 0 : random.logBetween(0.0005, 0.02),
    preemptMax_ns: random.logBetween(100 * US, 100 * MS),
    network: {
      strategy: random.pick(PERMISSION_STRATEGIES),
      latencyMin_ns: latencyMax_ns * random.between(0.2, 0.9),
      latencyMax_ns,
      latencySpike_ns: random.between(2, 40) * MS,
      latencySpikeProbability: random.chance(0.5) ? 0 : random.logBetween(0.001, 0.05),
      lossProbability: random.chance(0.5) ? 0 : random.logBetween(0.0005, 0.02),
      retransmit_ns: 4 * MS,
      giveUpMin_ns: 24 * MS,
      giveUpMax_ns: 85 * MS,
      tearProbability: random.chance(0.2) ? 0 : random.between(0.02, 0.5),
      tearOutOfOrder: random.chance(0.5),
      tearGapMax_ns: random.logBetween(10 * US, 10 * MS),
      lateCompletionMax_ns: random.logBetween(1 * MS, 60 * MS),
      lateCompletionProbability: random.chance(0.5) ? 0 : random.logBetween(0.001, 0.1),
      lateVisibilityProbability: 0,
      lateVisibilityMax_ns: 0,
      gatherAtPost: random.chance(0.5),
      strayProbability: random.chance(0.3) ? 0 : random.between(0.1, 1),
      hostSeesProcesses: random.chance(0.25),
      permissionFailureProbability: 0,
    },
    faults: {
      interval_ns: random.logBetween(80 * MS, 3000 * MS),
      weights: {
        crash: weight(),
        pause: weight(),
        stallMain: weight(),
        stallBackground: weight(),
        partition: weight(),
        oneWayCut: weight(),
        breakLink: weight(),
        slowNetwork: weight() * 0.3,
        membership: 0,
        transfer: 0,
        powerLoss: 0,
        diskFailure: 0,
      },
      durationMin_ns: 1 * MS,
      durationMax_ns: random.logBetween(50 * MS, 2000 * MS),
      leaderBias: random.between(0, 1),
      restartDelayMax_ns: random.logBetween(10 * MS, 2000 * MS),
    },
    exitNoticeProbability: random.pick([0, 0.5, 1]),
    relinkDelayMax_ns: random.logBetween(1 * MS, 100 * MS),
    regionSurvives: 0,
    clients: 1 + random.integer(6),
    keys: 1 + random.integer(6),
    thinkMax_ns: random.chance(0.2) ? random.logBetween(5 * MS, 40 * MS) : random.logBetween(40 * MS, 400 * MS),
    attemptTimeout_ns: random.between(200, 1500) * MS,
    // The largest take more than one WRITE, where the ring is large enough for them.
    payloadBytesMax: random.pick([16, 16, 1024, 1024, Math.min(maxPayload, 8 * 1024), maxPayload]),
    payloadsAreMostlySmall: false,
    barrierReads: 0,
    forwarding: 0,
    sessionless: 0,
    lease: null,
    disk: null,
    majorityLoss: null,
    clockDeviation: 0,
    leasedReads: 0,
    followerReads: 0,
    readers: 0,
    ...drawApplying(random),
    faultyTime_ns: FAULTY_TIME_MIN_NS,
    convergenceTime_ns: CONVERGENCE_TIME_NS,
  };
  return drawMembership(random, random.chance(0.4) ? drawn : drawReading(random, drawn));
}

/** Most clusters keep their members. Some change them all the time, between the other faults. */
function drawMembership(random: Random, drawn: SimOptions): SimOptions {
  const priorities = random.chance(0.7) ? [] : Array.from({ length: drawn.founders }, () => random.integer(3));
  const transfer = random.chance(0.7) ? 0 : random.between(0.2, 2);
  const changing = withTransfers({ ...drawn, priorities }, transfer);
  return random.chance(0.6) ? changing : withJoiners(changing, 1 + random.integer(JOINERS_MAX), random.between(0.5, 4));
}

function withTransfers(options: SimOptions, transfer: number): SimOptions {
  const { faults } = options;
  return { ...options, faults: { ...faults, weights: { ...faults.weights, transfer } } };
}

/** Changes of membership with this weight among the faults, and so many processes that can be added. */
export function withJoiners(options: SimOptions, joiners: number, membership: number): SimOptions {
  const { faults } = options;
  return {
    ...options,
    replicas: options.founders + joiners,
    faults: {
      ...faults,
      interval_ns: Math.min(faults.interval_ns, 600 * MS),
      weights: { ...faults.weights, membership },
    },
  };
}

/**
 * A read behind a barrier is wrong only where two replicas believe to lead and one of them has acknowledged something
 * since. So there are readers that ask anybody, clients soon turn from a replica that does not answer, and mostly leaders
 * stand still for long enough to be replaced.
 */
export function drawReading(random: Random, drawn: SimOptions, standsStill = false): SimOptions {
  const { faults } = drawn;
  const reading = {
    ...drawn,
    barrierReads: random.pick([0, 0.5, 1]),
    readers: 1 + random.integer(3),
    keys: 1 + random.integer(2),
    attemptTimeout_ns: random.logBetween(20 * MS, 300 * MS),
  };
  if (!standsStill && random.chance(0.3)) return reading;
  return {
    ...reading,
    faults: {
      ...faults,
      interval_ns: random.logBetween(300 * MS, 1000 * MS),
      weights: { ...faults.weights, pause: 3 },
      durationMax_ns: random.between(500 * MS, 2000 * MS),
      leaderBias: random.between(0.5, 1),
    },
  };
}

/** Most state machines take next to no time; a slow one falls behind what is committed. */
function drawApplying(random: Random): { applyEntriesMax: number; applyTimeMax_ns: number } {
  if (random.chance(0.7)) return { applyEntriesMax: 4096, applyTimeMax_ns: 0 };
  return { applyEntriesMax: 1 + random.integer(2), applyTimeMax_ns: random.logBetween(100 * US, 4 * MS) };
}

/** Names that leaveOut() knows: each kind of fault, and each trait of the network and of the scheduling. */
export const LEAVE_OUT = [
  'crash',
  'pause',
  'stallMain',
  'stallBackground',
  'partition',
  'oneWayCut',
  'breakLink',
  'slowNetwork',
  'membership',
  'transfer',
  'powerLoss',
  'diskFailure',
  'majorityLoss',
  'tear',
  'loss',
  'spike',
  'late',
  'unseen',
  'stray',
  'permissionFailure',
  'preempt',
  'jitter',
] as const;

/** The options without some of their faults: what makes a failing run simpler, if it still fails. */
export function leaveOut(options: SimOptions, names: readonly string[]): SimOptions {
  const weights: Record<string, number> = { ...options.faults.weights };
  const network: Record<string, unknown> = { ...options.network };
  let { preemptProbability, tickJitter, majorityLoss } = options;
  for (const name of names) {
    if (!(LEAVE_OUT as readonly string[]).includes(name)) {
      throw new RangeError(`'${name}' cannot be left out; known are ${LEAVE_OUT.join(', ')}`);
    }
    if (name in weights) weights[name] = 0;
    else if (name === 'majorityLoss') majorityLoss = null;
    else if (name === 'tear') network['tearProbability'] = 0;
    else if (name === 'loss') network['lossProbability'] = 0;
    else if (name === 'spike') network['latencySpikeProbability'] = 0;
    else if (name === 'late') network['lateCompletionProbability'] = 0;
    else if (name === 'unseen') network['lateVisibilityProbability'] = 0;
    else if (name === 'stray') network['strayProbability'] = 0;
    else if (name === 'permissionFailure') network['permissionFailureProbability'] = 0;
    else if (name === 'preempt') preemptProbability = 0;
    else tickJitter = 0;
  }
  return {
    ...options,
    preemptProbability,
    tickJitter,
    majorityLoss,
    network: network as unknown as SimOptions['network'],
    faults: { ...options.faults, weights: weights as FaultRates['weights'] },
  };
}
