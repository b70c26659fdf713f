// One simulation from beginning to end: a cluster and its clients under faults for a while, then calm, in which the
// cluster must elect, converge and answer everything within a bounded time; then the history is checked.
import { Random } from '../fabric/sim/random.js';
import { SimWorld, type Violation } from '../fabric/sim/sim-world.js';
import { checkRequest } from './check-request.js';
import { type CheckedCluster, createCheckedCluster } from './checked-cluster.js';
import type { Checker } from './checkers/checker.js';
import { checkLinearizability, formatHistory, logOrderIsLinearization } from './checkers/linearizability.js';
import { FaultScheduler } from './fault-scheduler.js';
import { ForkHistory } from './fork-history.js';
import { SimClients } from './sim-clients.js';
import type { ReadMeans, SimLife } from './sim-life.js';
import { MajorityLoss } from './sim-majority-loss.js';
import { CALM_WITH_CLIENTS, drawOptions, leaveOut, type SimOptions, type SimRequest } from './sim-options.js';

/** A simulation to run. The same request gives the same run everywhere. */
export interface SimulationRequest extends SimRequest {
  /** Decides everything that is not given here. */
  readonly seed: number;
  /** Last lines of trace to keep; 0 for none. */
  readonly traceLines?: number;
  /** Kinds of faults that are left out of what the seed drew; see leaveOut(). */
  readonly without?: readonly string[];
  /** Changes what the seed drew: for tests that need a certain run. */
  readonly adjust?: (options: SimOptions) => SimOptions;
}

/** What happened in a simulation. */
export interface SimulationResult {
  /** The request's seed. */
  readonly seed: number;
  /** The first invariant that was broken, when and how; null if none was. */
  readonly violation: Violation | null;
  /** The linearizability search was given up; the other checkers decided alone. */
  readonly undecided: boolean;
  /** Virtual time that passed, in seconds. */
  readonly virtualSeconds: number;
  /** Commands of clients that were answered. */
  readonly operations: number;
  /** Reads answered from the state of a replica, by how it was made sure that it is current; `operations` are those
   * through the log. */
  readonly reads: Readonly<Record<ReadMeans, number>>;
  /** Commands whose outcome stayed unknown. */
  readonly unknown: number;
  /** Leaders that became active, without the first one. */
  readonly leaderChanges: number;
  /** Processes that died. */
  readonly crashes: number;
  /** Snapshots that replicas installed. */
  readonly snapshots: number;
  /** Lives that came back by what the one before left in memory that outlived it. */
  readonly returns: number;
  /** Lives that could not use it. */
  readonly returnsFailed: number;
  /** Lives that stopped using their disks because a write failed. */
  readonly diskFailures: number;
  /** Calls by which a permission is given or taken that failed, and proofs that one is gone that were late. */
  readonly permissionFailures: number;
  /** New clusters that were forced after the loss of a majority, at most one. */
  readonly forks: number;
  /** Commands that were answered and are not part of the new cluster, since no survivor held them. */
  readonly lost: number;
  /** Faults that were injected, of all kinds. */
  readonly faults: number;
  /** Changes of the membership that were committed, those that follow crashes included. */
  readonly configurations: number;
  /** Transfers of leadership that the leader ceded for, and those that ended at the leader. */
  readonly transfers: number;
  /** Transfers of leadership that ended at the leader. */
  readonly transfersEnded: number;
  /** Steps of the simulation. */
  readonly events: number;
  /** What the seed drew. */
  readonly options: SimOptions;
  /** The last lines of the trace, as many as were asked for. */
  readonly trace: readonly string[];
}

const CONVERGENCE_STEP_NS = 50e6;

class Counters implements Checker {
  readonly invariant = 'none';
  leaders = 0;
  crashes = 0;
  snapshots = 0;
  transfers = 0;
  transfersEnded = 0;
  onLeader(): void {
    this.leaders++;
  }
  onDeposed(_life: SimLife, _epoch: number, reason: string): void {
    if (reason.startsWith('leadership was transferred')) this.transfers++;
  }
  onTransferEnded(): void {
    this.transfersEnded++;
  }
  onCrashed(): void {
    this.crashes++;
  }
  onSnapshotInstalled(): void {
    this.snapshots++;
  }
}

/** Between two looks whether an operator has forced a new cluster, at pace 1. */
const FORK_STEP_NS = 10e6;
/** Between two looks of the operator of a new cluster whether there is somebody to take in, at pace 1. */
const GROWTH_INTERVAL_NS = 100e6;

/**
 * Runs one simulation: a cluster and its clients under faults, then calm, in which it must converge; then checks the history.
 * Every invariant is checked at every step; the first that breaks ends the run. Synchronous: a run of three minutes of
 * virtual time takes some tenths of a second. Throws QUORATE_INVALID_ARGUMENT for a request that is none.
 */
export function runSimulation(request: SimulationRequest): SimulationResult {
  checkRequest(request);
  const world = new SimWorld(request.seed, request.traceLines ?? 0);
  const drawn = leaveOut(drawOptions(new Random(request.seed * 2 + 1), request), request.without ?? []);
  return new Simulation(request, world, request.adjust?.(drawn) ?? drawn).run();
}

class Simulation {
  private readonly counters = new Counters();
  private checked: CheckedCluster;
  private readonly clients: SimClients;
  private faults: FaultScheduler;
  private faultCount = 0;
  /** Of clusters that are gone. */
  private configurations = 0;
  private returns = 0;
  private returnsFailed = 0;
  private diskFailures = 0;
  private permissionFailures = 0;
  private fork: ForkHistory | null = null;
  /** A majority was to be lost, and there is no new cluster to go on with: the run ends. */
  private isOver = false;
  private lost = 0;
  /** Commands that the cluster before had answered. */
  private acknowledgedBefore = 0;

  constructor(
    private readonly request: SimulationRequest,
    private readonly world: SimWorld,
    private readonly options: SimOptions,
  ) {
    this.checked = createCheckedCluster(world, options, [this.counters]);
    this.checked.cluster.startAll();
    this.clients = new SimClients(world, this.checked.cluster, options);
    this.faults = new FaultScheduler(world, this.checked.cluster, options);
  }

  run(): SimulationResult {
    const { world, options } = this;
    this.loseMajority();
    if (!this.isOver) {
      if (world.violation === null) world.run(options.faultyTime_ns);
      if (world.violation === null) this.converge();
      if (world.violation === null) this.judgeState();
    }
    const undecided = world.violation === null && this.judgeHistory();
    return this.result(undecided);
  }

  /** Where the seed has it so: a majority is lost, and the run goes on with a new cluster. */
  private loseMajority(): void {
    const { world, options, clients } = this;
    if (options.majorityLoss === null) return;
    world.run(options.faultyTime_ns * options.majorityLoss.after);
    if (world.violation !== null) return;
    const loss = new MajorityLoss(world, this.checked, options, world.random.fork());
    if (!loss.strike()) return;
    this.faults.halt();
    const deadline_ns = world.now_ns + options.majorityLoss.wait_ns + options.convergenceTime_ns;
    while (loss.forked === null && !loss.isOver && world.violation === null && world.now_ns < deadline_ns) {
      world.run(world.now_ns + FORK_STEP_NS * options.pace);
    }
    this.isOver = loss.isOver;
    if (world.violation !== null || this.isOver) return;
    if (loss.forked === null) {
      const waited = `${(options.convergenceTime_ns / 1e9).toFixed(1)} s`;
      world.fail('liveness', `no new cluster could be forced within ${waited}: ${loss.refusal}`);
      return;
    }
    const { fork, tip } = loss.forked;
    const before = this.checked;
    this.configurations += before.cluster.committedVersion - 1;
    this.returns += before.cluster.returns;
    this.returnsFailed += before.cluster.returnsFailed;
    this.diskFailures += before.cluster.diskFailures;
    this.permissionFailures += before.cluster.network.permissionFailures;
    this.faultCount += this.faults.count;
    this.fork = new ForkHistory(tip, fork.state, world.now_ns, before.atMostOnce.effects);
    this.lost = clients.acknowledged.filter((one) => !this.isKept(one)).length;
    this.acknowledgedBefore = clients.acknowledged.length;
    this.checked = createCheckedCluster(world, options, [this.counters], { from: before, fork });
    const { cluster, atMostOnce } = this.checked;
    for (const [key, lsn] of this.fork.kept) atMostOnce.effects.set(key, lsn);
    cluster.startAll();
    clients.moveTo(cluster);
    this.faults = new FaultScheduler(world, cluster, options);
    this.grow();
  }

  private isKept({ origin, sequence }: { origin: number; sequence: number }): boolean {
    return this.fork?.kept.has(`${origin}:${sequence}`) ?? true;
  }

  private grow(): void {
    this.faults.operator.grow();
    this.world.schedule(GROWTH_INTERVAL_NS * this.options.pace, () => this.grow());
  }

  private converge(): void {
    const { world, options, clients } = this;
    const { cluster } = this.checked;
    this.faults.stop();
    const calmSince_ns = world.now_ns;
    const deadline_ns = calmSince_ns + options.convergenceTime_ns;
    world.run(calmSince_ns + options.convergenceTime_ns * CALM_WITH_CLIENTS);
    clients.stop();
    let missing = 'nothing was looked at';
    while (world.violation === null && world.now_ns < deadline_ns) {
      world.run(world.now_ns + CONVERGENCE_STEP_NS * options.pace);
      missing = clients.underWay > 0 ? `${clients.underWay} operations are not answered` : '';
      missing = cluster.notConverged() ?? missing;
      if (missing === '') break;
    }
    if (world.violation === null && missing !== '') {
      for (const life of cluster.lives) life?.trace(life.describe());
      world.fail('liveness', `${(options.convergenceTime_ns / 1e9).toFixed(1)} s after the last fault: ${missing}`);
    }
  }

  /** Whether those that hold the log have the same state, with all that was acknowledged. */
  private judgeState(): void {
    const { world, clients } = this;
    const { cluster } = this.checked;
    const holders = cluster.holders();
    const digests = new Set(holders.map((life) => life.state.digest()));
    if (digests.size !== 1) world.fail('state machine safety', 'replicas at the same LSN have different states');
    for (const [index, { origin, sequence }] of clients.acknowledged.entries()) {
      if (index < this.acknowledgedBefore && !this.isKept({ origin, sequence })) continue;
      const lost = holders.find((life) => life.state.lastSequence(origin) < sequence);
      if (lost) world.fail('durability', `${lost.name} lost command ${origin}:${sequence}, which was acknowledged`);
    }
  }

  /** Whether the history was left undecided. */
  private judgeHistory(): boolean {
    const { world, clients, fork } = this;
    const all = clients.history;
    const { effects: effectsNow } = this.checked.atMostOnce;
    const histories =
      fork === null ? [{ history: all, effects: effectsNow }] : [fork.before(all), fork.after(all, effectsNow)];
    let undecided = false;
    for (const { history, effects } of histories) {
      const verdict = checkLinearizability(history);
      if (verdict.kind === 'violation') {
        for (const line of formatHistory(verdict.operations)) world.trace('history', line);
        world.fail('linearizability', `the history of register ${verdict.key} has no linearization`);
      }
      // A search that was given up leaves nothing open if the log itself is an order that explains all answers.
      undecided ||= verdict.kind === 'undecided' && !logOrderIsLinearization(history, effects);
    }
    return undecided;
  }

  private result(undecided: boolean): SimulationResult {
    const { request, world, clients, counters, options } = this;
    const { cluster } = this.checked;
    return {
      seed: request.seed,
      violation: world.violation,
      undecided,
      virtualSeconds: world.now_ns / 1e9,
      operations: clients.acknowledged.length,
      reads: clients.reads,
      unknown: clients.history.filter(({ returned_ns }) => returned_ns === Infinity).length,
      leaderChanges: counters.leaders,
      crashes: counters.crashes,
      snapshots: counters.snapshots,
      returns: this.returns + cluster.returns,
      returnsFailed: this.returnsFailed + cluster.returnsFailed,
      diskFailures: this.diskFailures + cluster.diskFailures,
      permissionFailures: this.permissionFailures + cluster.network.permissionFailures,
      forks: this.fork === null ? 0 : 1,
      lost: this.lost,
      faults: this.faultCount + this.faults.count,
      configurations: this.configurations + cluster.committedVersion - 1,
      transfers: counters.transfers,
      transfersEnded: counters.transfersEnded,
      events: world.eventsRun,
      options,
      trace: world.traceLines,
    };
  }
}
