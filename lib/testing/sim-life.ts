// One life of one replica in a simulation: a process with its two planes over the simulated fabric, each run at its own
// pace by the events of the world. What a host does around the core is done here and in sim-cluster.ts.
import { BackgroundPlane, type DurablePromise } from '../consensus/background-plane.js';
import type { Configuration } from '../consensus/configuration.js';
import { DurableLog } from '../consensus/durable-log.js';
import { chainBeginning } from '../consensus/entry.js';
import { formatEpoch } from '../consensus/epoch.js';
import { EXCHANGE_BYTES, Exchange } from '../consensus/exchange.js';
import { workspaceBytesMin } from '../consensus/limits.js';
import { type MembershipChange, MembershipWatch } from '../consensus/membership.js';
import { replacementNews } from '../consensus/replacement.js';
import {
  PROPOSE_LEAVING,
  PROPOSE_LOG_FULL,
  PROPOSE_NOT_LEADER,
  ReplicationPlane,
} from '../consensus/replication-plane.js';
import { SimBackgroundFabric } from '../fabric/sim/sim-background-fabric.js';
import { SimMessageFabric } from '../fabric/sim/sim-message-fabric.js';
import type { SimNetwork } from '../fabric/sim/sim-network.js';
import { type SimFabricObserver, SimNode, SimProcessDied } from '../fabric/sim/sim-node.js';
import { SimReplicationFabric } from '../fabric/sim/sim-replication-fabric.js';
import type { SimWorld } from '../fabric/sim/sim-world.js';
import { type SimDisk, SimDiskError, type SimDiskOptions, SimLogDisk } from './sim-disk.js';
import { SimForwarding } from './sim-forwarding.js';
import type { SimOptions } from './sim-options.js';
import { decodeCommand, isSessionless, SimStateMachine, type StateSnapshot } from './sim-state-machine.js';
import { firstAnchor, nextAnchor, type SimAnchor } from './sim-survival.js';

export type ProposalOutcome =
  | { readonly kind: 'applied'; readonly result: number }
  | { readonly kind: 'notLeader'; readonly leader: number }
  | { readonly kind: 'full' }
  | { readonly kind: 'unknown' }
  /** A read that is no command, from the state at this LSN. */
  | { readonly kind: 'read'; readonly result: number; readonly lsn: number; readonly by: ReadMeans }
  /** Leadership ended before the barrier was passed. */
  | { readonly kind: 'readAgain' };

/** How it was made sure that the state that was read is current. */
export type ReadMeans = 'barrier' | 'lease' | 'follower';

interface WaitingRound {
  readonly round: number;
  readonly passed: () => void;
  readonly failed: () => void;
}

/** A follower's read that is answered when this is applied. */
interface IndexedRead {
  readonly lsn: number;
  readonly key: number;
  readonly answer: (outcome: ProposalOutcome) => void;
}

/** What the cluster and its checkers want to know of a life. */
export interface SimLifeEvents extends SimFabricObserver {
  onApplied(life: SimLife, lsn: number, origin: number, sequence: number, tookEffect: boolean): void;
  onSnapshotInstalled(life: SimLife): void;
  onLeader(life: SimLife, epoch: number): void;
  onDeposed(life: SimLife, epoch: number, reason: string): void;
  afterMain(life: SimLife): void;
  afterBackground(life: SimLife): void;
  onPeerBroken(life: SimLife, peer: number): void;
  onProbeBroken(life: SimLife, peer: number): void;
  onMessageLinkBroken(life: SimLife, peer: number): void;
  onLogLinkDead(life: SimLife, peer: number, generation: number): void;
  onSnapshotNeeded(life: SimLife, peer: number): void;
  /** A configuration is in force at this life; one is committed, as far as it knows. */
  onConfiguration(life: SimLife, configuration: Configuration): void;
  onConfigurationApplied(life: SimLife, configuration: Configuration): void;
  /** This life is no member any more. */
  onRemoved(life: SimLife, reason: string): void;
  onTransferEnded(life: SimLife, reason: string): void;
  /** Its disk failed: it does not use it again, acknowledges nothing and does not lead. */
  onDiskFailed(life: SimLife): void;
  /** This follower asks the leader up to where it must apply before it reads; `answer` runs in its main plane, if ever. */
  onReadIndexWanted(life: SimLife, leader: number, answer: (index: ReadIndex) => void): void;
}

export interface ReadIndex {
  /** Epoch of the leader that answered. */
  readonly epoch: number;
  readonly lsn: number;
}

/** The host calls poll() at least this often at pace 1, for what only time brings about. */
const IDLE_POLL_NS = 50e6;
const POLLS_PER_RUN_MAX = 8;
/** How often a poll that serves followers that were left out is a turn of its own. */
const POLL_LATER_PROBABILITY = 0.5;
/** Between two looks whether the log on disk reaches the place of a snapshot. */
const SNAPSHOT_LOOK_NS = 1e6;
/** A wake-up this close before one that is scheduled is joined with it. */
const WAKE_JOIN_NS = 20e3;

export class SimLife {
  readonly node: SimNode;
  readonly replicationFabric: SimReplicationFabric;
  readonly backgroundFabric: SimBackgroundFabric;
  readonly messages: SimMessageFabric;
  private readonly forwarding: SimForwarding;
  readonly replication: ReplicationPlane;
  readonly background: BackgroundPlane;
  readonly state: SimStateMachine;
  readonly exchange: Exchange;
  readonly name: string;
  private readonly membership: MembershipWatch;
  /** The latest committed configuration that this life has heard of, in its log or from another member. */
  known: Configuration;
  private isRemoved = false;
  /** What would be left of its state if it died now, where that outlives it. */
  anchor: SimAnchor;
  /** It looks at what the life before left, and has no links yet. */
  isReturning = false;
  /** Stopped as by SIGSTOP until then: nothing runs, memory stays reachable. */
  pausedUntil_ns = 0;
  mainStalledUntil_ns = 0;
  backgroundStalledUntil_ns = 0;
  private isMainRunning = false;
  private mustRunAgain = false;
  /** The last run left the poll to the next one. */
  private isPollDue = false;
  private lastWake_ns = -1;
  private backgroundDue_ns = Number.NaN;
  private isBackgroundRunning = false;
  private mustTickAgain = false;
  private readonly mainTasks: (() => void)[] = [];
  private readonly backgroundTasks: (() => void)[] = [];
  /** Who waits for each command; several, if it was proposed again meanwhile. */
  private readonly proposals = new Map<string, ((outcome: ProposalOutcome) => void)[]>();
  /** By ascending round. */
  private rounds: WaitingRound[] = [];
  private indexedReads: IndexedRead[] = [];
  /** Its clock runs at this rate, from this offset. */
  private readonly clockRate: number = 1;
  private readonly clockOffset_ns: number = 0;
  private readonly durableLog: DurableLog | null = null;
  /** It came back with what its disk held. */
  readonly isRecovered: boolean;
  private isSyncAwaited = false;
  /** Whom the operator had this leader remove. */
  readonly removals = new Set<number>();
  private isTakingSnapshot = false;
  private bytesAtSnapshot = 0;
  private readonly answers: { answer: (outcome: ProposalOutcome) => void; outcome: ProposalOutcome }[] = [];

  constructor(
    readonly world: SimWorld,
    network: SimNetwork,
    readonly id: number,
    readonly bootId: number,
    /** This process of the life; the only one, unless it is durable. */
    readonly processId: number,
    /** Null if it is not durable. */
    readonly disk: SimDisk | null,
    genesis: Configuration,
    /** Committed when this life begins. */
    current: Configuration,
    private readonly options: SimOptions,
    private readonly events: SimLifeEvents,
  ) {
    this.membership = new MembershipWatch(id, bootId, current);
    this.known = current;
    this.name = processId === bootId ? `r${id}/${bootId}` : `r${id}/${bootId}/${processId}`;
    if (options.lease !== null) {
      const { random } = world;
      const deviation = random.chance(0.5) ? random.pick([-1, 1]) : random.between(-1, 1);
      this.clockRate = 1 + options.clockDeviation * deviation;
      this.clockOffset_ns = random.integer(1e12);
    }
    this.node = new SimNode(world, network, id, events, options.logBytes, workspaceBytesMin(options.logBytes));
    this.node.processId = processId;
    this.node.wakeMain = (at_ns) => this.wakeMain(at_ns);
    this.node.preempt = () => this.preempt();
    this.node.isStopped = () => this.pausedUntil_ns > world.now_ns;
    this.node.trace = (text) => this.trace(text);
    this.node.onLinkDead = (peer, generation) => events.onLogLinkDead(this, peer, generation);
    this.state = new SimStateMachine(options.keys);
    this.anchor = firstAnchor(genesis, this.state.snapshot());
    this.exchange = new Exchange(new ArrayBuffer(EXCHANGE_BYTES));
    this.replicationFabric = new SimReplicationFabric(this.node);
    this.backgroundFabric = new SimBackgroundFabric(this.node, (peer) => events.onProbeBroken(this, peer));
    this.messages = new SimMessageFabric(this.node, {
      onMessage: (peer, message) => this.forwarding.hear(peer, message),
      onStreamEnded: (peer) => this.forwarding.streamEnded(peer),
      onBroken: (peer) => events.onMessageLinkBroken(this, peer),
    });
    this.forwarding = new SimForwarding(this, this.messages, processId);
    const resumed = disk?.isUsed ? disk.resume(this.node.log, this.state) : null;
    this.isRecovered = resumed !== null && resumed.applied.lsn > 0;
    if (disk !== null) this.durableLog = this.openLog(disk, genesis, resumed);
    this.replication = new ReplicationPlane(
      {
        id,
        bootId,
        processId,
        durableLog: this.durableLog,
        recovered: resumed?.recovered ?? null,
        logBytes: options.logBytes,
        genesis,
        spin_ns: options.spin_ns,
        majorityFirst_ns: options.majorityFirst_ns,
        lagTimeout_ns: options.lagTimeout_ns,
        replaceAfter_ns: options.replaceAfter_ns,
        applyEntriesMax: options.applyEntriesMax,
      },
      this.replicationFabric,
      this.exchange,
      new Uint32Array(this.node.status.buffer),
      new Uint32Array(this.node.mailboxes.buffer),
      {
        applyCommand: (lsn, origin, sequence, bytes, offset, lengthBytes) => {
          this.takeTimeToApply();
          const tookEffect = this.state.apply(origin, sequence, decodeCommand(bytes, offset, lengthBytes));
          events.onApplied(this, lsn, origin, sequence, tookEffect);
          this.resolve(origin, sequence);
        },
        onLeader: (epoch) => {
          this.trace(`leads in epoch ${formatEpoch(epoch)}`);
          events.onLeader(this, epoch);
        },
        onDeposed: (epoch, reason) => {
          this.trace(`deposed from epoch ${formatEpoch(epoch)}: ${reason}`);
          for (const answers of this.proposals.values()) {
            for (const answer of answers) this.answers.push({ answer, outcome: { kind: 'unknown' } });
          }
          this.proposals.clear();
          for (const { failed } of this.rounds.splice(0)) failed();
          events.onDeposed(this, epoch, reason);
        },
        onConfiguration: (configuration) => {
          this.trace(
            `configuration ${configuration.version}: ${configuration.members.map(({ id, bootId, role }) => `${role} r${id}/${bootId}`)}`,
          );
          events.onConfiguration(this, configuration);
        },
        onConfigurationApplied: (configuration) => this.observeCommitted(configuration),
        onTransferEnded: (reason) => {
          this.trace(`the transfer of leadership ended: ${reason}`);
          events.onTransferEnded(this, reason);
        },
        onPeerBroken: (peer) => events.onPeerBroken(this, peer),
        onSnapshotNeeded: (peer) => {
          this.trace(`r${peer} needs a snapshot`);
          events.onSnapshotNeeded(this, peer);
        },
        onReadBarrier: (round) => this.passRounds(round),
      },
    );
    this.background = new BackgroundPlane(
      {
        id,
        bootId,
        processId,
        durable: disk === null ? null : this.durablePromise(disk),
        logBytes: options.logBytes,
        profile: options.profile,
        lease: options.lease,
        random: () => world.random.next(),
        notifyMain: () => this.wakeMain(world.now_ns),
        onGrantFailure: (peer, error) => {
          this.trace(`the grant to r${peer} failed: ${error}`);
          if (error instanceof SimDiskError) this.postToMain(() => this.durableLog?.fail(error));
        },
      },
      this.backgroundFabric,
      this.exchange,
    );
    this.node.wakeBackground = () => this.wakeBackground();
    this.scheduleBackground(world.random.integer(options.profile.tick_ns));
    world.schedule(0, () => this.idlePoll());
  }

  // -- durable mode ------------------------------------------------------------------------------------------------

  private openLog(disk: SimDisk, genesis: Configuration, resumed: ReturnType<SimDisk['resume']> | null): DurableLog {
    const { world, options } = this;
    const { syncMin_ns, syncMax_ns, segmentBytes } = options.disk as SimDiskOptions;
    const position = resumed?.log.tail ?? chainBeginning(genesis.clusterId);
    this.bytesAtSnapshot = (resumed?.log.start.lsn ?? 0) - position.lsn;
    const later = (then: () => void): void => {
      world.schedule(world.random.between(syncMin_ns, syncMax_ns), () => {
        // The disk's part is done by the disk; the process hears of it when its turn comes.
        if (this.alive) this.postToMain(then);
      });
    };
    const files = new SimLogDisk(disk, later, () => world.now_ns);
    return new DurableLog(
      {
        clusterId: genesis.clusterId,
        ring: this.node.log,
        segmentBytes,
        applied: resumed?.applied ?? position,
        position,
        segments: resumed?.log.segments ?? [],
        nextSegment: resumed?.log.nextSegment ?? 1,
        isDetached: resumed?.log.isDetached ?? false,
        onProgress: () => this.replication.durableProgress(),
        onFailure: (error) => this.diskFailed(error),
      },
      files,
    );
  }

  /** As the host does: not inside the plane's own call. */
  private diskFailed(error: Error): void {
    this.trace(`its disk failed: ${error.message}`);
    this.postToMain(() => {
      this.replication.stopForDisk(error.message);
      this.wakeBackground();
    });
    this.events.onDiskFailed(this);
  }

  /** The own leases are never longer than those of an earlier process: the settings do not change. */
  private durablePromise(disk: SimDisk): DurablePromise {
    const { lease } = this.options;
    const leaseWait_ns = lease === null ? 0 : Math.ceil(lease.length_ns * (1 + lease.driftBound));
    const { epoch, to } = disk.promised;
    return {
      epoch,
      to,
      leaseWait_ns,
      record: (promised, candidate) => {
        this.preempt(); // a sync takes its time
        const refusal = disk.refusal(this.world.now_ns);
        if (refusal !== null) throw refusal;
        disk.recordPromise(promised, candidate, leaseWait_ns);
        this.preempt();
      },
    };
  }

  /** Stores a snapshot when the log has grown, or one was received; takes its time. */
  private lookAtDisk(): void {
    const { durableLog, disk, replication, world, options } = this;
    if (durableLog === null || disk === null) return;
    const isAwaited = replication.role !== 'follower' && replication.commitLsn < replication.tailLsn;
    if (isAwaited && !this.isSyncAwaited) {
      replication.publish();
      this.wakeBackground();
    }
    this.isSyncAwaited = isAwaited;
    const { snapshotAfterBytes, snapshotMax_ns } = options.disk as SimDiskOptions;
    const grown = durableLog.bytesWritten - this.bytesAtSnapshot >= snapshotAfterBytes;
    if (durableLog.failure !== null || this.isTakingSnapshot || !(grown || durableLog.awaitsSnapshot)) return;
    this.isTakingSnapshot = true;
    const { position, configuration } = replication.snapshotPlace;
    const state = this.state.snapshot();
    const bytes = durableLog.bytesWritten;
    const commit = (): void => {
      if (durableLog.failure !== null || durableLog.isBehind(position.lsn)) {
        this.isTakingSnapshot = false;
        return;
      }
      if (!durableLog.reaches(position.lsn)) {
        world.schedule(SNAPSHOT_LOOK_NS * options.pace, () => this.postToMain(commit));
        return;
      }
      const snapshot = { position, configuration, state, isDetached: durableLog.isDetached };
      // The process goes on meanwhile, and may receive another snapshot; and it may end before the log is cut.
      world.schedule(world.random.between(0, snapshotMax_ns), () => {
        if (!this.alive) return;
        const refusal = disk.refusal(world.now_ns);
        if (refusal === null) disk.snapshot = snapshot;
        this.postToMain(() => stored(refusal));
      });
    };
    const stored = (refusal: SimDiskError | null): void => {
      this.isTakingSnapshot = false;
      if (refusal !== null) {
        durableLog.fail(refusal);
        return;
      }
      this.trace(`stored a snapshot at LSN ${position.lsn}`);
      this.bytesAtSnapshot = bytes;
      for (const segment of durableLog.forget(position.lsn)) {
        disk.drop([segment]);
        this.preempt(); // the process may end before the rest of them is gone
      }
      replication.durableProgress();
    };
    world.schedule(world.random.between(0, snapshotMax_ns), () => {
      if (this.alive) this.postToMain(commit);
    });
  }

  /** What this replica's clock shows: it has its own rate where leases depend on it. */
  clock_ns(): number {
    return this.clockOffset_ns + Math.floor(this.world.now_ns * this.clockRate);
  }

  get alive(): boolean {
    return this.node.alive;
  }

  crash(): void {
    this.trace('crashes');
    this.node.crash();
  }

  /** Runs in the main thread, before its next poll. */
  postToMain(task: () => void): void {
    this.mainTasks.push(task);
    this.wakeMain(this.world.now_ns);
  }

  /** Runs in the background thread, before its next tick. */
  postToBackground(task: () => void): void {
    this.backgroundTasks.push(task);
    this.wakeBackground();
  }

  /** A client's request arrives; `answer` is called exactly once unless the process dies first. */
  propose(origin: number, sequence: number, payload: Uint8Array, answer: (outcome: ProposalOutcome) => void): void {
    if (this.options.forwarding === 0) {
      this.proposeHere(origin, sequence, payload, answer);
      return;
    }
    this.postToMain(() => {
      const { role, leader } = this.replication;
      const isElsewhere = role !== 'leader' && leader >= 0 && leader !== this.id;
      if (!isElsewhere || !this.world.random.chance(this.options.forwarding)) {
        this.proposeHere(origin, sequence, payload, answer);
        return;
      }
      this.forwarding.forward(leader, origin, sequence, payload, (outcome) => this.answers.push({ answer, outcome }));
    });
  }

  /** As propose(), by this replica and no other. */
  proposeHere(origin: number, sequence: number, payload: Uint8Array, answer: (outcome: ProposalOutcome) => void): void {
    this.postToMain(() => {
      const known = isSessionless(origin) ? undefined : this.state.resultOf(origin, sequence);
      if (known !== undefined) {
        this.answers.push({ answer, outcome: { kind: 'applied', result: known } });
        return;
      }
      const lsn = this.replication.propose(origin, sequence, payload);
      if (lsn === PROPOSE_NOT_LEADER) {
        this.answers.push({ answer, outcome: { kind: 'notLeader', leader: this.replication.leader } });
      } else if (lsn === PROPOSE_LOG_FULL || lsn === PROPOSE_LEAVING) {
        this.answers.push({ answer, outcome: { kind: 'full' } });
      } else {
        const key = `${origin}:${sequence}`;
        const earlier = this.proposals.get(key);
        if (earlier === undefined) this.proposals.set(key, [answer]);
        else earlier.push(answer);
      }
    });
  }

  /**
   * A client's read arrives; it is answered from the state here: by lease, once a read barrier is passed, or, at a
   * follower, once it has applied what the leader says.
   */
  read(key: number, answer: (outcome: ProposalOutcome) => void): void {
    this.postToMain(() => {
      const { replication, world, options, answers } = this;
      if (world.random.chance(options.leasedReads)) {
        const outcome = this.readByLease(key);
        if (outcome !== undefined) {
          answers.push({ answer, outcome });
          return;
        }
      }
      const round = replication.readBarrier();
      if (round !== PROPOSE_NOT_LEADER) {
        this.rounds.push({
          round,
          passed: () => answers.push({ answer, outcome: this.readNow(key, 'barrier') }),
          failed: () => answers.push({ answer, outcome: { kind: 'readAgain' } }),
        });
        return;
      }
      const { leader } = replication;
      if (leader < 0 || !world.random.chance(options.followerReads)) {
        answers.push({ answer, outcome: { kind: 'notLeader', leader } });
        return;
      }
      const answered = ({ epoch, lsn }: ReadIndex): void => {
        replication.noteCommit(epoch, lsn);
        this.indexedReads.push({ lsn, key, answer });
      };
      if (options.forwarding > 0) this.forwarding.askReadIndex(leader, answered);
      else this.events.onReadIndexWanted(this, leader, answered);
    });
  }

  private readNow(key: number, by: ReadMeans): ProposalOutcome {
    return { kind: 'read', result: this.state.registerAt(key), lsn: this.replication.appliedLsn, by };
  }

  /** The process may be stopped before, between and after the steps of it. */
  private readByLease(key: number): ProposalOutcome | undefined {
    return this.replication.leasedRead(
      () => {
        this.preempt();
        const outcome = this.readNow(key, 'lease');
        this.preempt();
        return outcome;
      },
      () => {
        const now_ns = this.clock_ns();
        this.preempt();
        return now_ns;
      },
    );
  }

  /** A follower asks up to where it must apply; `answer` is not called if this is not the leader, or not to the end. */
  serveReadIndex(answer: (index: ReadIndex) => void): void {
    this.postToMain(() => {
      const { replication } = this;
      const index = { epoch: replication.leaderEpoch, lsn: replication.commitLsn };
      if (replication.holdsLease(this.clock_ns())) {
        answer(index);
        return;
      }
      const round = replication.readBarrier();
      if (round !== PROPOSE_NOT_LEADER) this.rounds.push({ round, passed: () => answer(index), failed: () => {} });
    });
  }

  private passRounds(round: number): void {
    for (let first = this.rounds[0]; first !== undefined && first.round <= round; first = this.rounds[0]) {
      this.rounds.shift();
      first.passed();
    }
  }

  private hasApplied(lsn: number): boolean {
    return this.replication.appliedLsn >= lsn;
  }

  private answerIndexedReads(): void {
    if (this.indexedReads.length === 0) return;
    const rest: IndexedRead[] = [];
    for (const read of this.indexedReads) {
      const { lsn, key, answer } = read;
      if (this.hasApplied(lsn)) this.answers.push({ answer, outcome: this.readNow(key, 'follower') });
      else rest.push(read);
    }
    this.indexedReads = rest;
  }

  installSnapshot(
    position: Parameters<ReplicationPlane['installSnapshot']>[0],
    configuration: Configuration,
    state: StateSnapshot,
  ): void {
    this.trace(`installs a snapshot at LSN ${position.lsn}`);
    this.state.restore(state);
    this.install(position, configuration);
  }

  /** The state is that of this place in the log by now. */
  install(position: Parameters<ReplicationPlane['installSnapshot']>[0], configuration: Configuration): void {
    this.replication.installSnapshot(position, configuration);
    this.events.onSnapshotInstalled(this);
    this.observeCommitted(configuration);
  }

  // -- membership --------------------------------------------------------------------------------------------------

  /** A member tells a committed configuration. Main plane. */
  hearOf(configuration: Configuration): void {
    this.replication.poll(this.clock_ns()); // the own log may say more
    this.observeCommitted(configuration);
  }

  /** A configuration that is committed, from the own log or from another member. */
  observeCommitted(configuration: Configuration): void {
    if (configuration.version <= this.known.version) return; // or two that are not linked any more tell each other for ever
    for (const { state, voter, spare } of replacementNews(this.known, configuration)) {
      this.trace(`replacement of r${voter} by r${spare}: ${state}`);
    }
    this.known = configuration;
    this.events.onConfigurationApplied(this, configuration);
    const reason = this.membership.observe(configuration, () => this.replication.latestConfiguration());
    if (reason === null || this.isRemoved) return;
    this.isRemoved = true;
    this.trace(`was removed: ${reason}`);
    this.events.onRemoved(this, reason);
  }

  /** An operator's request; refused unless this is a leader that may. Main plane. */
  changeMembership(change: MembershipChange): string {
    const isRemoval = change.kind === 'remove' && !this.removals.has(change.id);
    if (isRemoval) this.removals.add(change.id);
    const result = this.replication.changeMembership(change);
    if (isRemoval && typeof result !== 'number') this.removals.delete(change.id);
    const text = typeof result === 'number' ? `up to LSN ${result}` : `refused: ${result.code}`;
    this.trace(`${JSON.stringify(change)} ${text}`);
    return typeof result === 'number' ? '' : result.code;
  }

  transferLeadership(to: number | undefined, timeout_ns: number): string {
    const result = this.replication.transferLeadership(to, this.clock_ns(), timeout_ns);
    const text = typeof result === 'number' ? `to r${result}` : `refused: ${result.code}`;
    this.trace(`transfer of leadership ${text}`);
    return typeof result === 'number' ? '' : result.code;
  }

  trace(text: string): void {
    if (this.world.isTraced) this.world.trace(this.name, text);
  }

  /** One line about where this replica stands. */
  describe(): string {
    const { replication, background } = this;
    const phases = Array.from({ length: this.options.replicas }, (_, peer) => {
      const link = this.replicationFabric.linkTo(peer);
      const state = link === null ? 'no link' : link.responder.alive && !link.responderClosed ? 'linked' : 'dead link';
      return peer === this.id ? 'self' : `${replication.peerPhase(peer)} (${state})`;
    });
    const { voters, version } = replication.configuration;
    return (
      `${replication.role}, promised ${formatEpoch(background.promised)}, writer ${background.writer}, ` +
      `applied ${replication.appliedLsn}, commit ${replication.commitLsn}, tail ${replication.tailLsn}, ` +
      `trusts ${replication.trustedMask.toString(2)}, configuration ${version} of ${voters.map(({ id }) => id)}, ` +
      `peers: ${phases.join(', ')}`
    );
  }

  private lastPromised = 0;
  private lastWriter = -1;
  private lastTrusted = 0;

  private traceBackground(): void {
    const { background, replication } = this;
    const trusted = replication.trustedMask;
    if (background.promised !== this.lastPromised || background.writer !== this.lastWriter) {
      this.lastPromised = background.promised;
      this.lastWriter = background.writer;
      const writer = background.writer < 0 ? 'nobody' : `r${background.writer}`;
      this.trace(`promised epoch ${formatEpoch(background.promised)}; ${writer} may write its log`);
    }
    if (trusted !== this.lastTrusted) {
      this.lastTrusted = trusted;
      this.trace(`trusts {${Array.from({ length: 16 }, (_, id) => id).filter((id) => trusted & (1 << id))}}`);
    }
  }

  // -- pace --------------------------------------------------------------------------------------------------------

  // One function for all events of a kind, instead of one per event.
  private readonly onMainDue = (): void => this.runMain();
  private readonly onBackgroundDue = (): void => {
    // An earlier run was scheduled since, or this one was joined with it.
    if (this.world.now_ns === this.backgroundDue_ns) this.runBackground();
  };
  private readonly onIdlePollDue = (): void => this.idlePoll();

  private wakeMain(at_ns: number): void {
    const { world, options } = this;
    if (this.lastWake_ns >= at_ns && this.lastWake_ns <= at_ns + WAKE_JOIN_NS && this.lastWake_ns >= world.now_ns)
      return;
    const due_ns = Math.max(at_ns, world.now_ns) + world.random.integer(options.mainLatencyMax_ns);
    this.lastWake_ns = due_ns;
    world.at(due_ns, this.onMainDue);
  }

  private idlePoll(): void {
    if (!this.alive) return;
    this.wakeMain(this.world.now_ns);
    this.world.schedule(IDLE_POLL_NS * this.options.pace, this.onIdlePollDue);
  }

  private runMain(): void {
    const { world, replication, options } = this;
    if (!this.alive) return;
    if (this.lastWake_ns <= world.now_ns) this.lastWake_ns = -1; // this is it: what happens from now on needs another
    if (this.isMainRunning) {
      this.mustRunAgain = true;
      return;
    }
    const blockedUntil_ns = Math.max(this.pausedUntil_ns, this.mainStalledUntil_ns);
    if (blockedUntil_ns > world.now_ns) {
      this.wakeMain(blockedUntil_ns);
      return;
    }
    this.isMainRunning = true;
    this.mustRunAgain = false;
    let more = false;
    this.guarded(() => {
      if (options.forwarding > 0) this.messages.turn();
      const isTurnOver = this.runTasks();
      more = true;
      // Between two commands that take their time whatever else arrived gets its turn.
      const pollsMax = options.applyTimeMax_ns > 0 ? 1 : POLLS_PER_RUN_MAX;
      for (let polls = 0; isTurnOver && more && polls < pollsMax; polls++) more = replication.poll(this.clock_ns());
      this.answerIndexedReads();
      this.lookAtDisk();
      if (options.forwarding > 0) {
        this.forwarding.look();
        this.messages.turn();
      }
    });
    this.isMainRunning = false;
    if (options.regionSurvives > 0 && this.alive) this.anchor = nextAnchor(this, this.anchor);
    if (!this.alive) return;
    this.events.afterMain(this);
    if (this.answers.length > 0) for (const { answer, outcome } of this.answers.splice(0)) answer(outcome);
    if (more || this.mustRunAgain || this.mainTasks.length > 0) this.wakeMain(world.now_ns);
  }

  /**
   * Tasks, and the flush that they end with. Returns whether the poll comes in the same run: not always where a flush has left
   * followers out, as in the host, whose event loop has other things to do between the two.
   */
  private runTasks(): boolean {
    const { world, replication, options, mainTasks } = this;
    const flushesEach = options.majorityFirst_ns > 0;
    let isLeftOut = false;
    for (let task = mainTasks.shift(); task !== undefined; task = mainTasks.shift()) {
      task();
      // Several in a row leave out another follower each time.
      if (flushesEach) isLeftOut = replication.flush();
    }
    if (!flushesEach) replication.flush();
    this.isPollDue = isLeftOut && !this.isPollDue && world.random.chance(POLL_LATER_PROBABILITY);
    return !this.isPollDue;
  }

  /** A peer's message, the death of one or the main thread ends the background thread's sleep. */
  wakeBackground(): void {
    if (this.isBackgroundRunning) this.mustTickAgain = true;
    else this.scheduleBackground(0);
  }

  private scheduleBackground(delay_ns: number): void {
    this.backgroundDue_ns = this.world.now_ns + delay_ns;
    this.world.at(this.backgroundDue_ns, this.onBackgroundDue);
  }

  private runBackground(): void {
    const { world, options } = this;
    if (!this.alive) return;
    const blockedUntil_ns = Math.max(this.pausedUntil_ns, this.backgroundStalledUntil_ns);
    if (blockedUntil_ns > world.now_ns) {
      this.scheduleBackground(blockedUntil_ns - world.now_ns);
      return;
    }
    let next_ns = 0;
    this.backgroundDue_ns = Number.NaN;
    this.isBackgroundRunning = true;
    this.mustTickAgain = false;
    this.guarded(() => {
      for (let task = this.backgroundTasks.shift(); task !== undefined; task = this.backgroundTasks.shift()) task();
      next_ns = this.background.tick(this.clock_ns());
    });
    this.isBackgroundRunning = false;
    if (!this.alive) return;
    if (world.isTraced) this.traceBackground();
    this.events.afterBackground(this);
    const delay_ns = (next_ns / this.clockRate) * (1 + world.random.next() * options.tickJitter);
    this.scheduleBackground(this.mustTickAgain ? 0 : delay_ns);
  }

  private guarded(run: () => void): void {
    try {
      run();
    } catch (error) {
      if (error instanceof SimProcessDied) return;
      const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
      this.world.fail('assertion', `${this.name}: ${text}`);
    }
  }

  /** Called at every call into the fabric: time may pass here, and the process may be stopped or die meanwhile. */
  private preempt(): void {
    const { world, options } = this;
    if (!this.alive) throw new SimProcessDied();
    if (options.preemptProbability === 0 || !world.random.chance(options.preemptProbability)) return;
    const duration_ns = world.random.logBetween(1e3, options.preemptMax_ns);
    // Half of the time the whole process stands still, otherwise only this plane does.
    if (world.random.chance(0.5)) this.pausedUntil_ns = Math.max(this.pausedUntil_ns, world.now_ns + duration_ns);
    world.interleave(duration_ns);
    if (this.pausedUntil_ns > world.now_ns) world.interleave(this.pausedUntil_ns - world.now_ns);
    if (!this.alive) throw new SimProcessDied();
  }

  /** A slow state machine keeps its thread busy, while everything else goes on. */
  private takeTimeToApply(): void {
    const { world, options } = this;
    if (options.applyTimeMax_ns === 0) return;
    world.interleave(world.random.integer(options.applyTimeMax_ns));
    if (!this.alive) throw new SimProcessDied();
  }

  private resolve(origin: number, sequence: number): void {
    const key = `${origin}:${sequence}`;
    const answers = this.proposals.get(key);
    if (answers === undefined) return;
    this.proposals.delete(key);
    const result = this.state.resultOf(origin, sequence);
    const outcome: ProposalOutcome = result === undefined ? { kind: 'unknown' } : { kind: 'applied', result };
    for (const answer of answers) this.answers.push({ answer, outcome });
  }
}
