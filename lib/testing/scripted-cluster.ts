// A simulated cluster that a script leads step by step: replicas are stopped, killed, cut off and asked by hand, nothing
// happens at random, and the network is calm, so that what follows is what the protocol does. The same checkers watch as
// in random simulations; a violation ends the script.
import { payloadBytesMax } from '../consensus/limits.js';
import { QuorateError } from '../errors.js';
import { SimWorld } from '../fabric/sim/sim-world.js';
import { type CheckedCluster, createCheckedCluster } from './checked-cluster.js';
import type { SimCluster, SimClusterObserver } from './sim-cluster.js';
import type { ProposalOutcome, SimLife } from './sim-life.js';
import type { SimOptions } from './sim-options.js';
import { type Command, encodeCommand, Operation } from './sim-state-machine.js';

const US = 1e3;
const MS = 1e6;

export interface ScriptedClusterRequest {
  readonly replicas: number;
  /** Processes beyond these replicas, which can be added; default 0. */
  readonly joiners?: number;
  /** Default 1. Decides in which order links come up; little else is drawn. */
  readonly seed?: number;
  readonly observers?: readonly Partial<SimClusterObserver>[];
  readonly adjust?: (options: SimOptions) => SimOptions;
}

/** One-way time of every packet of a scripted cluster. */
export const SCRIPT_LATENCY_NS = 10 * US;
/** Registers are named by letters. */
const KEYS = 26;
/** A process that is held looks again after this time whether it still is. */
const HOLD_NS = 1 * MS;
/** How finely runUntil() looks. */
const LOOK_NS = 10 * US;
const RUN_LIMIT_NS = 10e9;

export type Held = 'paused' | 'main stalled' | 'background stalled';
const HELD_FIELDS = {
  paused: 'pausedUntil_ns',
  'main stalled': 'mainStalledUntil_ns',
  'background stalled': 'backgroundStalledUntil_ns',
} as const;

function calmOptions(replicas: number, founders: number, logBytes: number): SimOptions {
  return {
    replicas,
    pace: 1,
    founders,
    priorities: [],
    logBytes,
    profile: {
      tick_ns: 5 * MS,
      electionTick_ns: 2.5 * MS,
      takeoverTimeout_ns: 200 * MS,
      scoreMax: 15,
      failBelow: 2,
      recoverAbove: 6,
      stallTimeout_ns: 500 * MS,
    },
    lagTimeout_ns: 300 * MS,
    replaceAfter_ns: 0,
    regionSurvives: 0,
    spin_ns: 0,
    majorityFirst_ns: 0,
    mainLatencyMax_ns: 1,
    tickJitter: 0,
    preemptProbability: 0,
    preemptMax_ns: 0,
    network: {
      strategy: 'mr-dereg',
      latencyMin_ns: SCRIPT_LATENCY_NS,
      latencyMax_ns: SCRIPT_LATENCY_NS,
      latencySpike_ns: 0,
      latencySpikeProbability: 0,
      lossProbability: 0,
      retransmit_ns: 4 * MS,
      giveUpMin_ns: 24 * MS,
      giveUpMax_ns: 24 * MS,
      tearProbability: 0,
      tearOutOfOrder: false,
      tearGapMax_ns: 0,
      lateCompletionMax_ns: 0,
      lateCompletionProbability: 0,
      lateVisibilityProbability: 0,
      lateVisibilityMax_ns: 0,
      gatherAtPost: true,
      strayProbability: 0,
      hostSeesProcesses: false,
      permissionFailureProbability: 0,
    },
    faults: {
      interval_ns: Number.MAX_SAFE_INTEGER,
      weights: {
        crash: 0,
        pause: 0,
        stallMain: 0,
        stallBackground: 0,
        partition: 0,
        oneWayCut: 0,
        breakLink: 0,
        slowNetwork: 0,
        membership: 0,
        transfer: 0,
        powerLoss: 0,
        diskFailure: 0,
      },
      durationMin_ns: 0,
      durationMax_ns: 0,
      leaderBias: 0,
      restartDelayMax_ns: 0,
    },
    exitNoticeProbability: 0,
    relinkDelayMax_ns: 10 * MS,
    clients: 0,
    keys: KEYS,
    thinkMax_ns: 0,
    attemptTimeout_ns: 0,
    payloadBytesMax: payloadBytesMax(logBytes),
    payloadsAreMostlySmall: false,
    forwarding: 0,
    sessionless: 0,
    barrierReads: 0,
    lease: null,
    disk: null,
    majorityLoss: null,
    clockDeviation: 0,
    leasedReads: 0,
    followerReads: 0,
    readers: 0,
    applyEntriesMax: 4096,
    applyTimeMax_ns: 0,
    faultyTime_ns: 0,
    convergenceTime_ns: 0,
  };
}

/** One command on its way. */
export class Proposal {
  outcome: ProposalOutcome | null = null;
  /** Virtual time at which the outcome was known. */
  settled_ns = Number.POSITIVE_INFINITY;

  constructor(
    readonly replica: number,
    readonly command: Command,
    readonly proposed_ns: number,
    /** The life that was asked; if it dies there is no answer any more. */
    readonly life: SimLife,
    /** A read behind a barrier, not through the log. */
    readonly isBarrierRead = false,
  ) {}

  get isOpen(): boolean {
    return this.outcome === null && this.life.alive;
  }
}

/** What is asked for cannot be done. */
export function mistake(message: string): QuorateError {
  return new QuorateError('QUORATE_INVALID_ARGUMENT', message);
}

/** "x=7", "x+=7" or "x?", where x is the register. */
export function formatCommand({ operation, key, value, expected }: Command): string {
  const name = String.fromCharCode(97 + key);
  switch (operation) {
    case Operation.write:
      return `${name}=${value}`;
    case Operation.read:
      return `${name}?`;
    case Operation.add:
      return `${name}+=${value}`;
    default:
      return `${name}:${expected}->${value}`;
  }
}

export function parseCommand(text: string): Command {
  const match = /^([a-z])(?:(=|\+=)(\d{1,9})|\?)$/.exec(text);
  if (match === null) throw mistake(`'${text}' is no command; write x=1, x+=1 or x?`);
  const operation = match[2] === undefined ? Operation.read : match[2] === '=' ? Operation.write : Operation.add;
  return { operation, key: (match[1] as string).charCodeAt(0) - 97, value: Number(match[3] ?? 0), expected: 0 };
}

export class ScriptedCluster {
  readonly world: SimWorld;
  readonly checked: CheckedCluster;
  readonly cluster: SimCluster;
  readonly options: SimOptions;
  readonly proposals: Proposal[] = [];
  /** Told of every outcome, when it is known. */
  onOutcome: (proposal: Proposal) => void = () => {};
  private readonly held = new Map<SimLife, Set<Held>>();
  private nextOrigin = 1;

  constructor(request: ScriptedClusterRequest) {
    const calm = calmOptions(request.replicas + (request.joiners ?? 0), request.replicas, 64 * 1024);
    this.options = request.adjust?.(calm) ?? calm;
    this.world = new SimWorld(request.seed ?? 1);
    this.checked = createCheckedCluster(this.world, this.options, request.observers ?? []);
    this.cluster = this.checked.cluster;
  }

  /** The current life of a replica, which must be up. */
  life(id: number): SimLife {
    const life = this.cluster.lives[id];
    if (!life) throw mistake(`replica ${id} is ${life === null ? 'down' : 'not a member'}`);
    return life;
  }

  // -- time --------------------------------------------------------------------------------------------------------

  run(duration_ns: number): void {
    this.world.run(this.world.now_ns + duration_ns);
    const { violation } = this.world;
    if (violation !== null) throw new Error(`VIOLATION of ${violation.invariant}: ${violation.message}`);
  }

  /** Runs until the condition holds; an error says what was waited for if it does not come. */
  runUntil(what: string, condition: () => boolean, limit_ns = RUN_LIMIT_NS): void {
    const deadline_ns = this.world.now_ns + limit_ns;
    while (!condition()) {
      if (this.world.now_ns >= deadline_ns) {
        const lives = this.cluster.lives.map((life) => (life === null ? 'down' : `${life.name}: ${life.describe()}`));
        const text = `waited ${limit_ns / MS} ms of virtual time for: ${what}\n${lives.join('\n')}`;
        throw new QuorateError('QUORATE_TIMEOUT', text);
      }
      this.run(LOOK_NS);
    }
  }

  /** Until the replica leads, or any does; returns it. */
  runUntilLeader(id?: number): SimLife {
    this.runUntil(id === undefined ? 'a leader' : `replica ${id} leads`, () => {
      const leader = this.cluster.leader();
      return leader !== null && (id === undefined || leader.id === id);
    });
    return this.cluster.leader() as SimLife;
  }

  /** Until there is one leader and all replicas are up, voters, and have applied the same. */
  runUntilConverged(): void {
    this.runUntil('the cluster to converge', () => this.cluster.notConverged() === null);
  }

  /** Until no proposal waits for an answer of a live replica. */
  runUntilAnswered(): void {
    this.runUntil('answers to all proposals', () => this.proposals.every(({ isOpen }) => !isOpen));
  }

  // -- faults ------------------------------------------------------------------------------------------------------

  /** Stops the process or one of its planes, as SIGSTOP does: its memory stays within reach of the others. */
  hold(id: number, how: Held): void {
    const life = this.life(id);
    let holds = this.held.get(life);
    if (holds === undefined) {
      holds = new Set();
      this.held.set(life, holds);
    }
    if (holds.has(how)) throw mistake(`replica ${id} is ${how} already`);
    holds.add(how);
    this.keepHeld(life, how);
  }

  /** Lets it go on; whatever was stopped. */
  release(id: number): void {
    const life = this.life(id);
    const holds = this.held.get(life);
    if (holds === undefined || holds.size === 0) throw mistake(`replica ${id} is not stopped`);
    for (const how of holds) life[HELD_FIELDS[how]] = 0;
    this.held.delete(life);
  }

  heldAs(id: number): readonly Held[] {
    const life = this.cluster.lives[id];
    return life ? [...(this.held.get(life) ?? [])] : [];
  }

  private keepHeld(life: SimLife, how: Held): void {
    if (!life.alive || !this.held.get(life)?.has(how)) return;
    life[HELD_FIELDS[how]] = this.world.now_ns + HOLD_NS;
    this.world.schedule(HOLD_NS / 2, () => this.keepHeld(life, how));
  }

  /** Nothing gets through from one replica to another, in this direction. */
  cut(from: number, to: number): void {
    this.cluster.network.setCut(from, to, true);
  }

  /** Cuts both directions between replicas of different groups. */
  partition(...groups: readonly (readonly number[])[]): void {
    const groupOf = new Map(groups.flatMap((ids, group) => ids.map((id) => [id, group] as const)));
    for (const [one, group] of groupOf) {
      for (const [other, otherGroup] of groupOf) if (group !== otherGroup) this.cut(one, other);
    }
  }

  /** Packets sent from now on take so many times as long. */
  slowDown(factor: number): void {
    this.cluster.network.latencyFactor = factor;
  }

  heal(): void {
    this.cluster.network.healAll();
  }

  // -- clients -----------------------------------------------------------------------------------------------------

  /** Asks a replica to replicate a command, from a client of its own each time. */
  propose(id: number, command: string | Command, fillerBytes = 0): Proposal {
    const parsed = typeof command === 'string' ? parseCommand(command) : command;
    const life = this.life(id);
    const proposal = new Proposal(id, parsed, this.world.now_ns, life);
    this.proposals.push(proposal);
    life.propose(this.nextOrigin++, 1, encodeCommand(parsed, fillerBytes), (outcome) => {
      proposal.outcome = outcome;
      proposal.settled_ns = this.world.now_ns;
      this.onOutcome(proposal);
    });
    return proposal;
  }

  /** Asks a replica for a register, to be answered from its state behind a read barrier. */
  read(id: number, register: string): Proposal {
    const command = parseCommand(`${register}?`);
    const life = this.life(id);
    const proposal = new Proposal(id, command, this.world.now_ns, life, true);
    this.proposals.push(proposal);
    life.read(command.key, (outcome) => {
      proposal.outcome = outcome;
      proposal.settled_ns = this.world.now_ns;
      this.onOutcome(proposal);
    });
    return proposal;
  }

  /** Value of a register at a replica. */
  valueAt(id: number, register: string): number {
    return this.life(id).state.snapshot().registers[register.charCodeAt(0) - 97] as number;
  }
}
