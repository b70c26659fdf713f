// One member of a cluster: composes the verbs endpoint, the two planes, the control channel and the user's state
// machine into the object that a service embeds. Everything that touches the log and the state machine runs in the
// thread that opened the replica; the background plane has a thread of its own.
import { randomInt } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { type Configuration, memberWithId, voterWithId } from '../consensus/configuration.js';
import type { DurableLog } from '../consensus/durable-log.js';
import { EPOCH_NONE, formatEpoch } from '../consensus/epoch.js';
import { Exchange } from '../consensus/exchange.js';
import { forkPosition, hasForkEpochs } from '../consensus/fork.js';
import type { LeaseSettings } from '../consensus/lease.js';
import { MAX_REPLICAS, PRIORITY_MAX, payloadBytesMax } from '../consensus/limits.js';
import type { RecoveredState, ReplicationHost } from '../consensus/replication-host.js';
import { PROPOSE_NOT_LEADER, ReplicationPlane } from '../consensus/replication-plane.js';
import { QuorateError } from '../errors.js';
import { closeAll } from '../fabric/close-all.js';
import { VerbsEndpoint } from '../fabric/verbs-endpoint.js';
import { VerbsReplicationFabric } from '../fabric/verbs-replication-fabric.js';
import { SessionTable } from '../rsm/session-table.js';
import { type ExitHold, monotonicNs, type PeerProcess, setSchedulingSlice } from '../verbs/objects.js';
import { Admission, answerPings } from './admission.js';
import type { DurableVoter, ToMain } from './background-messages.js';
import { BackgroundThread } from './background-thread.js';
import {
  checkAddress,
  checkInteger,
  checkMember,
  checkProposeOptions,
  checkReplaceAfter,
  checkReplicaOptions,
  checkScheduling,
  checkTimeout,
  copyMembers,
  invalid,
  takeReplicaOptions,
} from './check-options.js';
import { compileAtFirstCall, keepCompiledCode } from './compiled-code.js';
import { isUnspecified } from './control/address.js';
import { type ControlConnection, ControlServer, WarningLimit } from './control-channel.js';
import type { Durability } from './durable/durability.js';
import { TAKEOVER_EXTRA_NS } from './durable/limits.js';
import { EarlyWarnings } from './early-warnings.js';
import { FlushSchedule } from './flush-schedule.js';
import { FollowerReads, type ReadIndex } from './follower-reads.js';
import {
  checkForced,
  type ForceNewClusterOptions,
  type Fork,
  newClusterId,
  whyNotForced,
} from './force-new-cluster.js';
import { Formation } from './formation.js';
import { holdAtExit } from './hold-at-exit.js';
import { inTime } from './in-time.js';
import { KnownMembership } from './known-membership.js';
import { LeaderWatch } from './leader-watch.js';
import { resolveLease } from './lease-options.js';
import { LinkManager } from './link-manager.js';
import { ListeningPlace } from './listening-place.js';
import { ForwardedProposals, unknownWithin } from './mailbox/forwarded-proposals.js';
import { FORWARD_TIMEOUT_DEFAULT_MS, READ_INDEX_TIMEOUT_MS } from './mailbox/limits.js';
import { Mailbox } from './mailbox/mailbox.js';
import { askReadIndex } from './mailbox/read-index.js';
import { MemberDirectory } from './member-directory.js';
import { memberStatuses, peerStatuses } from './member-statuses.js';
import { CATCH_UP_TIMEOUT_DEFAULT_MS, MembershipRequests, TRANSFER_TIMEOUT_DEFAULT_MS } from './membership-requests.js';
import { NotLeaderError } from './not-leader-error.js';
import { elsewhere, Opening } from './opening.js';
import { OutcomeUnknownError } from './pending-proposals.js';
import { housekeepingIntervalMs, resolveProfile } from './profiles.js';
import { type Elsewhere, Proposals } from './proposals.js';
import { ReadBarriers } from './read-barriers.js';
import { CrashSurvival } from './recovery/crash-survival.js';
import { logAfter } from './recovery/log-source.js';
import type { Recovered } from './recovery/recovery.js';
import { isWorthRehearsing, rehearseOnce } from './rehearsal.js';
import type {
  BackgroundScheduling,
  MemberAddress,
  NewMember,
  ProposeOptions,
  ProposeResult,
  ReadOptions,
  ReplicaEvents,
  ReplicaOptions,
  ReplicaStatus,
  SessionCommand,
  StateMachine,
  StateMemory,
} from './replica-options.js';
import { ReplicatedState } from './replicated-state.js';
import { SnapshotSender } from './snapshot-sender.js';
import { SnapshotSource } from './transfer/snapshot-stream.js';
import { Transfers } from './transfer/transfers.js';
import { callUserAtOnce, checkRead } from './user-code.js';

const PENDING_PROPOSALS_DEFAULT = 65_536;
const PENDING_READ_BARRIERS_DEFAULT = 65_536;
/** How long one flush may busy-poll for completions before the completion channel takes over. */
const SPIN_NS = 100_000;
const SPIN_SOFTWARE_DEVICE_NS = 2_000_000;
/** Their WRITEs are mostly through, acknowledgement and all, when the call that posts them returns. */
const MAJORITY_FIRST_SOFTWARE_DEVICE_NS = 200_000;
/** See ReplicationOptions.lagTimeout_ns. */
const LAG_TIMEOUT_NS = 1_000_000_000;
/**
 * Slices of this thread, too: a takeover must not wait until a dying process has freed its memory, several
 * milliseconds, on the processor that it was woken on.
 */
const SCHEDULING_SLICE_NS = 100_000;
const READ_TIMEOUT_DEFAULT_MS = 5_000;
/** A leader that was removed stays for so long, or until another leads, so that others read that it ceded. */
const REMOVED_LINGER_MS = 2_000;
/** Any replica may introduce itself; what it may ask for depends on whether it is a member. */
const ALL_IDS: readonly number[] = Array.from({ length: MAX_REPLICAS }, (_, id) => id);

/**
 * One replica of a replicated state machine. Create it with {@link Replica.open}; see {@link ReplicaOptions}.
 *
 * Errors that reject calls, by `code`: QUORATE_INVALID_ARGUMENT, QUORATE_CLUSTER_KEY (missing, too short, or too long),
 * QUORATE_NO_DEVICE, QUORATE_NO_LIBRARY, QUORATE_NO_GID, QUORATE_MEMLOCK, QUORATE_SYSTEM (see `errno` and `syscall`),
 * QUORATE_ADDRESS_IN_USE and QUORATE_DUPLICATE_ID (another process has this id), QUORATE_OUT_OF_RANGE (the device has no such
 * `devicePort`), QUORATE_UNSUPPORTED (a `permissionStrategy` that is not safe on the device),
 * QUORATE_REGION_IN_USE (of `surviveCrash`: another process has this id and key), QUORATE_BACKGROUND_THREAD (Node.js could not start it),
 * QUORATE_OPEN_TIMEOUT, QUORATE_NOT_LEADER, QUORATE_OUTCOME_UNKNOWN, QUORATE_BACKPRESSURE,
 * QUORATE_PAYLOAD_TOO_LARGE, QUORATE_SESSION_GAP, QUORATE_LEADERSHIP_ENDED (of a read, which can be repeated),
 * QUORATE_REMOVED (this replica is no member any more), QUORATE_CLOSED. Those about the membership are at its calls.
 * Of a durable replica also: QUORATE_STORE_IN_USE (another process has its directory), QUORATE_STORE_MISMATCH (it is another
 * replica's), QUORATE_STORE_INVALID and QUORATE_LOG_CORRUPT (the disk lost what it had), QUORATE_DISK_FULL and
 * QUORATE_DISK_FAILED, which a running replica reports as "warning"; it then leads and acknowledges no more.
 */
export class Replica<Result = unknown> extends EventEmitter<ReplicaEvents> implements ReplicationHost {
  /** Number of this replica, as given. */
  readonly id: number;
  /** Largest command in bytes that propose() takes, by the size of the log. */
  readonly payloadBytesMax: number;
  /** This process; a durable life has one after the other. */
  private readonly processId = randomInt(1, 2 ** 48 - 1);
  /** This life, as the configuration names it. */
  private readonly bootId: number;
  private readonly durability: Durability | null;
  private exitHold: ExitHold | null = null;
  /** What the disk held of an earlier process. */
  private fromDisk: RecoveredState | null = null;
  private readonly stateMachine: StateMachine<Result>;
  private readonly logBytes: number;
  private readonly profileName: string;
  private readonly rehearses: boolean;
  /** Kept, since status() also serves a replica that has closed itself. */
  private readonly deviceName: string;
  private readonly fabricName: 'shm' | 'verbs';
  private readonly profile: ReturnType<typeof resolveProfile>['profile'];
  private readonly lease: LeaseSettings | null;
  /** This process as its peers see it: they may count on its end before this thread has come to it. */
  private readonly ownProcess: PeerProcess | null;
  private readonly pendingMax: number;
  private readonly readBarriersMax: number;
  private readonly replaceAfterMs: number;
  private readonly shmDirectory: string | undefined;
  private readonly scheduling: BackgroundScheduling | undefined;
  private readonly fabric: VerbsReplicationFabric;
  private readonly exchange: Exchange;
  private readonly statusWords: Uint32Array;
  private readonly sessions = new SessionTable();
  private readonly proposals: Proposals<Result>;
  private readonly flushSchedule = new FlushSchedule(() => this.flush());
  private readonly readBarriers = new ReadBarriers();
  private readonly followerReads = new FollowerReads({
    ask: () => this.askReadIndex(),
    onAnswer: ({ epoch, lsn }) => {
      this.plane?.noteCommit(epoch, lsn);
      this.poll();
    },
    appliedLsn: () => this.plane?.appliedLsn ?? 0,
  });
  private readonly place: ListeningPlace;
  private readonly directory: MemberDirectory;
  private readonly connections = new Map<number, ControlConnection>();
  private readonly admission = new Admission();
  private readonly formation: Formation;
  private plane: ReplicationPlane | undefined;
  private requests: MembershipRequests | undefined;
  private readonly membership: KnownMembership;
  /** The configuration that others told when this replica found its cluster: all that it knows while it recovers. */
  private found: Configuration | null = null;
  private removal: QuorateError | undefined;
  private lingering: NodeJS.Timeout | undefined;
  private background: BackgroundThread | undefined;
  private links: LinkManager | undefined;
  private readonly mailbox: Mailbox;
  private readonly forwarded: ForwardedProposals;
  private readonly housekeepingMs: number;
  private housekeeping: NodeJS.Timeout | undefined;
  private readonly state: ReplicatedState;
  private readonly snapshots: SnapshotSender;
  private readonly transfers: Transfers;
  private pollScheduled = false;
  private armed = false;
  private closing: Promise<void> | undefined;
  private failure: Error | undefined;
  private readonly leaderWatch = new LeaderWatch({
    onLeaderKnown: (leader) => this.leaderKnown(leader),
    announce: (leader, epoch) => this.announce('leader', leader, epoch),
  });
  /** Where another cluster begins in the state of this replica. */
  private fork: Fork | null = null;
  /** The state machine is another replica's, or is about to be: from the fork on it has what that one applies. */
  private hasSuccessor = false;
  /** Where this replica began to listen. */
  private self: MemberAddress = { id: 0, host: '', port: 0 };
  /** What keeps a permission from being taken back does so at every tick. */
  private readonly grantWarnings = new WarningLimit();
  private readonly earlyWarnings = new EarlyWarnings((warning) => this.announce('warning', warning));
  private readonly opening: Opening;
  /** open() has nothing left to do but to resolve. */
  private isOpen = false;
  /** Its plane has told what it promised; until then nothing of the log that a disk brought back counts as valid. */
  private isBackgroundReady = false;

  /**
   * Starts a replica and waits until it is part of a formed cluster that has a leader (see `waitForLeader`). A cluster forms
   * when all members have been reached once; from then on a majority suffices.
   */
  static async open<Result = unknown>(options: ReplicaOptions<Result>): Promise<Replica<Result>> {
    return await Replica.openAs(options, null);
  }

  /**
   * **Unsafe.** When a majority of the voters is lost for ever: makes a survivor the only voter of a new cluster, which goes on
   * with its log and its state. Closes `survivor` and resolves with another Replica in its place, with the same options and
   * state machine, that leads; members are added to it as to any cluster. Members of the old cluster that are still
   * alive cannot take part in it. docs/OPERATIONS.md, "When a majority is lost", says when and how, and what is lost.
   *
   * From a durable replica a durable one is made, in the same directory, which then stands for the new cluster and no more for
   * the old one: all at once, whenever the process or the power should end. What the disk lacks and memory has is kept, also
   * where the disk had failed.
   *
   * Everything that the survivor's log holds is taken for committed. Commands that were acknowledged by voters that are lost,
   * and had not reached it, are gone. Choose the survivor by {@link bestSurvivor}.
   *
   * Rejects, and changes nothing, with QUORATE_UNSAFE (the option is missing), QUORATE_LEADER_EXISTS (a leader is known),
   * QUORATE_QUORUM_REACHABLE (a majority of the voters is alive), QUORATE_NOT_A_VOTER, QUORATE_NO_LOG, QUORATE_NOT_READY,
   * QUORATE_EPOCHS_EXHAUSTED and QUORATE_CLOSED (also if a new cluster was forced from this survivor already). If the new
   * replica cannot be opened (errors of {@link Replica.open}; of a durable one also QUORATE_SNAPSHOT_FAILED, when its state
   * machine gives no snapshot) the state machine holds the state still, and the same call with the same survivor tries again.
   */
  static async forceNewCluster<Result = unknown>(
    survivor: Replica<Result>,
    options: ForceNewClusterOptions,
  ): Promise<Replica<Result>> {
    if (!(survivor instanceof Replica)) return invalid('forceNewCluster() takes a Replica');
    checkForced(options);
    const fork = await survivor.forkOff(options.evenIfNotVoter === true);
    await survivor.close();
    survivor.durability?.checkQuiet();
    if (survivor.hasSuccessor) {
      throw new QuorateError(
        'QUORATE_CLOSED',
        `a new cluster was forced from replica ${survivor.id} already, and has its state machine: go on with the replica that ` +
          'forceNewCluster() resolved with',
      );
    }
    const { members: _, join: __, address: ___, signal: ____, ...rest } = survivor.options;
    survivor.hasSuccessor = true;
    try {
      return await Replica.openAs<Result>({ ...rest, members: [fork.place], waitForLeader: true }, fork);
    } catch (error) {
      survivor.hasSuccessor = false;
      throw error;
    }
  }

  private static async openAs<Result>(asked: ReplicaOptions<Result>, fork: Fork | null): Promise<Replica<Result>> {
    const given = takeReplicaOptions(asked);
    const { self, logBytes, openTimeoutMs, durable, shmDirectory } = checkReplicaOptions(
      given as unknown as ReplicaOptions<never>,
    );
    const { id, surviveCrash, signal, members, join } = given;
    signal?.throwIfAborted();
    // Needed whenever a member is added or moves; whoever passed it may wipe it as soon as open() has returned.
    const clusterKey = typeof given.clusterKey === 'string' ? given.clusterKey : Uint8Array.from(given.clusterKey);
    // Directories are needed again, too, by the rehearsal and by a new cluster that is forced from this replica.
    const options = {
      ...given,
      ...(members === undefined ? {} : { members: copyMembers(members) }),
      ...(join === undefined ? {} : { join: copyMembers(join) }),
      clusterKey,
      durable: durable ?? false,
      ...(shmDirectory === undefined ? {} : { shmDirectory }),
    };
    const durability =
      durable === null
        ? null
        : await (await import('./durable/durability.js')).Durability.open(
            { ...durable, id, logBytes },
            fork && {
              ...fork,
              source: () => new SnapshotSource(options.stateMachine as StateMachine<never>, fork.sessions),
            },
          );
    let endpoint: VerbsEndpoint | undefined;
    let replica: Replica<Result>;
    try {
      const survival = CrashSurvival.prepare({ id, clusterKey, logBytes, shmDirectory, surviveCrash });
      const openEndpoint = (logPath?: string): VerbsEndpoint =>
        VerbsEndpoint.open({
          device: options.device,
          devicePort: options.devicePort,
          gidIndex: options.gidIndex,
          shmDirectory,
          logBytes,
          logPath,
          permissionStrategy: options.permissionStrategy,
        });
      endpoint = survival === null ? openEndpoint() : await survival.openLog(openEndpoint);
      survival?.take(endpoint.logMemory.buffer);
      replica = new Replica(options, logBytes, endpoint, survival, fork, durability);
    } catch (error) {
      endpoint?.close();
      await durability?.close();
      throw error;
    }
    try {
      await replica.start(self, openTimeoutMs);
    } catch (error) {
      await replica.close();
      throw replica.failure ?? error;
    }
    replica.earlyWarnings.tellSoon();
    return replica;
  }

  private constructor(
    private readonly options: ReplicaOptions<Result>,
    logBytes: number,
    private readonly endpoint: VerbsEndpoint,
    private readonly survival: CrashSurvival | null,
    /** This replica founds a cluster that goes on with the state of another one. */
    private readonly origin: Fork | null,
    durability: Durability | null,
  ) {
    super();
    this.durability = durability;
    this.bootId = durability?.bootId ?? this.processId;
    this.id = options.id;
    this.stateMachine = options.stateMachine;
    // What a new cluster begins with lies where it lay before.
    if (origin === null) {
      const { stateMemory } = endpoint;
      const memory: StateMemory = {
        allocate: (lengthBytes) => stateMemory.allocate(lengthBytes),
        release: (bytes) => stateMemory.release(bytes),
      };
      callUserAtOnce('attachMemory() of the state machine', () => this.stateMachine.attachMemory?.(memory));
    }
    this.logBytes = logBytes;
    this.payloadBytesMax = payloadBytesMax(logBytes);
    const { pendingProposalsMax = PENDING_PROPOSALS_DEFAULT, pendingReadBarriersMax = PENDING_READ_BARRIERS_DEFAULT } =
      options;
    this.pendingMax = checkInteger(pendingProposalsMax, 1, 2 ** 24, 'pendingProposalsMax');
    this.proposals = new Proposals({
      stateMachine: options.stateMachine,
      sessions: this.sessions,
      payloadBytesMax: this.payloadBytesMax,
      logBytes,
      pendingMax: this.pendingMax,
      refusal: () => this.removal ?? (this.closing ? this.closedError() : new NotLeaderError(this.leaderId())),
      flushSchedule: this.flushSchedule,
      onFailure: (error) => this.fail(error),
    });
    this.readBarriersMax = checkInteger(pendingReadBarriersMax, 1, 2 ** 24, 'pendingReadBarriersMax');
    const { name, profile } = resolveProfile(options.profile, endpoint.isSoftware);
    this.housekeepingMs = housekeepingIntervalMs(profile);
    this.replaceAfterMs = checkReplaceAfter(options.replaceAfterMs, this.housekeepingMs);
    this.shmDirectory = options.shmDirectory;
    this.scheduling = checkScheduling(options.backgroundThread);
    this.profileName = name;
    this.rehearses = options.rehearseTakeovers ?? isWorthRehearsing(name, endpoint.isSoftware);
    this.deviceName = endpoint.context.device.name;
    this.fabricName = endpoint.isShm ? 'shm' : 'verbs';
    this.profile =
      durability === null
        ? profile
        : { ...profile, takeoverTimeout_ns: profile.takeoverTimeout_ns + TAKEOVER_EXTRA_NS };
    this.lease = resolveLease(options.lease, profile);
    this.ownProcess = endpoint.ownProcess();
    this.exchange = new Exchange(endpoint.controlMemory.buffer);
    this.statusWords = new Uint32Array(endpoint.statusMemory.buffer);
    this.fabric = new VerbsReplicationFabric(
      this.id,
      endpoint.mainQueue,
      endpoint.fence,
      {
        log: endpoint.logMemory,
        logKey: endpoint.logRegion.lkey,
        workspace: endpoint.workspaceMemory,
        workspaceBytes: endpoint.workspaceBytes,
        workspaceKey: endpoint.workspaceRegion.lkey,
      },
      endpoint.transferBytesMax,
    );
    const connectionTo = (peer: number) => this.connections.get(peer);
    const isMember = (peer: number) => this.membership.isMember(peer);
    const isClosed = () => this.closing !== undefined;
    this.formation = new Formation({
      id: this.id,
      bootId: this.bootId,
      members: options.members ?? options.join ?? [],
      mayFound: options.members !== undefined,
      clusterId: origin?.clusterId,
      current: () => this.membership.known,
      connectionTo,
      onFormed: (genesis, current) => void this.formed(genesis, current),
      onRefused: (error) => this.opening.reject(error),
    });
    this.membership = new KnownMembership({
      id: this.id,
      bootId: this.bootId,
      inForce: () => this.plane?.configuration,
      latestInLog: () => this.plane?.latestConfiguration(),
      lookAtLog: () => this.poll(),
      tell: (peer, configuration) => this.tell(peer, 'configuration', configuration),
      isClosed,
      follow: (genesis, later, earlier) => this.directory.follow(genesis, later, earlier),
      onReplacement: (news) => this.announce('replacement', news),
      onMoved: (host, port) => void this.place.move(host, port),
      onSpare: () => this.opening.resolve(),
      onRemoved: (reason) => this.leave(reason),
      onWarning: (error) => this.warn(error),
    });
    this.state = new ReplicatedState({
      id: this.id,
      stateMachine: this.stateMachine as StateMachine<never>,
      sessions: this.sessions,
      ring: () => new Uint8Array(endpoint.logMemory.buffer),
      plane: () => this.plane,
      isClosed,
      closedError: () => this.closedError(),
      guard: (action) => this.guard(action),
      onInstalled: (configuration) => {
        this.membership.observe(configuration);
        this.followerReads.look();
      },
    });
    this.transfers = new Transfers({
      id: this.id,
      endpoint,
      stateMachine: this.stateMachine as StateMachine<never>,
      connectionTo,
      isMember,
      appliedLsn: () => this.plane?.appliedLsn,
      freeze: () => {
        this.survival?.makeWay();
        return this.state.freeze();
      },
      logAfter: (position) => logAfter(this.state.logHolder(), position),
      install: (position, configuration, sessions, put) => this.state.put(position, configuration, sessions, put),
      onSnapshotKnown: (peer, lsn) => this.plane?.snapshotKnown(peer, lsn),
      onProgress: (status) => {
        this.survival?.noteTransfer(status);
        this.announce('transfer', status);
      },
      mailboxTo: (peer, processId) => (this.links?.messagesReach(peer, processId) ? this.mailbox : undefined),
      onWarning: (error) => this.warn(error),
    });
    this.snapshots = new SnapshotSender({
      plane: () => this.plane,
      connectionTo,
      isMember,
      isClosed,
      order: (connection, order) => this.transfers.order(connection, order),
      encode: (plane) => this.state.encode(plane),
      onEnded: (plane, peer) => {
        // Either way its permission is asked for again: the grant shows where its log stands now.
        if (this.closing === undefined) this.guard(() => plane.peerInstalledSnapshot(peer));
        this.background?.wake();
      },
      onWarning: (error) => this.warn(error),
    });
    this.survival?.attach({
      id: this.id,
      stateMachine: this.stateMachine as StateMachine<never>,
      replay: this,
      // The lowest id is the likeliest leader, on which commits wait: it is asked last.
      donors: () => [...this.connections.keys()].sort((a, b) => b - a),
      readLog: (donor, after, bytesMax, onBytes) => this.transfers.readLog(donor, after, bytesMax, onBytes),
      restoreSessions: (sessions) => this.sessions.restore(sessions),
      appliedLsn: () => this.plane?.appliedLsn ?? 0,
      ringBeginLsn: () => this.plane?.ringBeginLsn ?? 0,
      freeze: () => this.state.freeze(),
      isGiving: () => this.transfers.statuses.some(({ role }) => role === 'donor'),
      isClosed,
      onStatus: (status) => this.announce('recovery', status),
      onWarning: (error) => this.warn(error),
    });
    this.mailbox = new Mailbox({
      id: this.id,
      endpoint,
      isMember,
      proposeHere: (command, session) => this.proposeHere(command, session),
      readIndex: () => this.readIndexForPeer(),
      onTold: (peer, type, body) => this.transfers.told(peer, type, body),
      onBroken: (peer) => this.links?.broken(peer, 'message'),
      onStreamEnded: (peer) => this.forwarded.streamEnded(peer),
      onWarning: (error) => this.warn(error),
    });
    this.forwarded = new ForwardedProposals({
      id: this.id,
      leaderId: () => this.reachableLeaderId(),
      trusts: (peer) => this.trusts(peer),
      proposeHere: (command, session) => this.proposeHere(command, session),
      send: (leader, command, session, settle) => this.mailbox.propose(leader, command, session, settle),
      withdraw: (question) => this.mailbox.withdraw(question),
      forget: (question) => this.mailbox.forget(question),
      notLeader: (leader) => new NotLeaderError(leader),
    });
    const hello = () => ({
      id: this.id,
      bootId: this.bootId,
      processId: this.processId,
      isDurable: this.durability !== null,
      clusterId: this.formation.genesis?.clusterId ?? null,
    });
    const identity = { clusterKey: options.clusterKey, memberIds: ALL_IDS, hello };
    this.place = new ListeningPlace({
      makeServer: () => {
        const server = new ControlServer(identity);
        server.on('connection', (connection) => this.serve(connection));
        server.on('warning', (error) => this.warn(error));
        return server;
      },
      isClosed,
      onWarning: (error) => this.warn(error),
    });
    this.directory = new MemberDirectory({
      id: this.id,
      identity,
      contacts: options.members ?? options.join ?? [],
      onConnected: (peer, connection) => this.dialed(peer, connection),
      onDisconnected: (peer) => this.lost(peer),
      onDropped: (peer) => this.links?.forget(peer),
      onWarning: (error) => this.warn(error),
    });
    this.opening = new Opening(() => ({
      id: this.id,
      place: this.place.at,
      known: this.membership.known ?? this.found,
      isFormed: this.formation.genesis !== null,
      isJoining: options.join !== undefined,
      missing: this.formation.missing(),
      reasons: [...this.directory.reasons, ...this.formation.reasons, ...this.earlyWarnings.messages],
    }));
  }

  // -- life cycle --------------------------------------------------------------------------------------------------

  private async start(self: MemberAddress, timeoutMs: number): Promise<void> {
    const { signal } = this.options;
    this.self = self;
    this.exitHold = holdAtExit(this.options.holdAtExitMs, this.endpoint.isShm, (error) => this.warn(error));
    setSchedulingSlice(SCHEDULING_SLICE_NS);
    await this.recover();
    signal?.throwIfAborted();
    this.background = new BackgroundThread(this.endpoint, {
      id: this.id,
      bootId: this.bootId,
      processId: this.processId,
      durable: this.durableVoter(),
      profile: this.profile,
      lease: this.lease,
      rehearses: this.rehearses,
      shmDirectory: this.shmDirectory,
      scheduling: this.scheduling,
      onWake: () => this.poll(),
      onReport: (message) => this.hear(message),
      onFailure: (error) => this.fail(error),
    });
    if (this.rehearses) await this.rehearse(this.background);
    signal?.throwIfAborted();
    await this.place.listen(self.host, self.port);
    if (this.closing !== undefined) throw this.closedError(); // it has failed meanwhile
    signal?.throwIfAborted();
    await this.opening.wait(timeoutMs, signal, () => {
      this.directory.start();
      const { durability, fromDisk } = this;
      if (durability?.genesis && fromDisk !== null) {
        this.formation.resume(durability.genesis, fromDisk.configuration);
      } else {
        this.formation.start();
      }
    });
    if (this.failure !== undefined) throw this.failure;
    this.isOpen = true;
    this.warnIfElsewhere();
  }

  /**
   * Others look for this replica where the configuration lists it. One that follows a leader is found; one that waited for
   * none may not be. Under what names the founders know each other is their own business.
   */
  private warnIfElsewhere(): void {
    const { known } = this.membership;
    const { genesis } = this.formation;
    if (known === null || genesis === null || this.leaderId() !== undefined) return;
    const [listed, founder] = [known, genesis].map((configuration) => memberWithId(configuration, this.id));
    if (listed?.host === founder?.host && listed?.port === founder?.port) return;
    for (const text of elsewhere({ id: this.id, place: this.place.at, known })) {
      const message = `replica ${this.id} is open, and others may not find it: ${text}`;
      this.warn(new QuorateError('QUORATE_ADDRESS_CHANGE', message));
    }
  }

  // -- durable mode ------------------------------------------------------------------------------------------------

  /** Brings back what the disk holds of an earlier process, and the sessions that a new cluster begins with. */
  private async recover(): Promise<void> {
    const { durability, origin } = this;
    if (origin !== null) this.sessions.restore(origin.sessions);
    if (durability === null) return;
    this.fromDisk = await durability.recover(
      {
        stateMachine: this.stateMachine as StateMachine<never>,
        ring: this.fabric.logBytes,
        restoreSessions: (sessions) => this.sessions.restore(sessions),
        onWarning: (error) => this.warn(error),
        applyCommand: (lsn, from, sequence, bytes, payloadOffset, payloadBytes) =>
          this.applyCommand(lsn, from, sequence, bytes, payloadOffset, payloadBytes),
      },
      origin?.position,
    );
  }

  private durableVoter(): DurableVoter | null {
    const { durability, lease } = this;
    if (durability === null) return null;
    const leaseWait_ns = lease === null ? 0 : Math.ceil(lease.length_ns * (1 + lease.driftBound));
    return { directory: durability.directory, promise: durability.promise, leaseWait_ns };
  }

  /** The log of this replica's disk, from the moment on in which others may see anything of it. */
  private beginDurableLog(): DurableLog | null {
    return (
      this.durability?.begin(this.fabric.logBytes, {
        freeze: () => this.state.freeze(),
        onProgress: () => {
          this.guard(() => this.plane?.durableProgress());
          this.poll();
        },
        onFailure: (error) => this.diskFailed(error),
        onWarning: (error) => this.warn(error),
      }) ?? null
    );
  }

  private diskFailed(error: QuorateError): void {
    this.warn(error);
    // Not inside the plane's own call.
    setImmediate(() => {
      if (this.closing !== undefined) return;
      this.guard(() => this.plane?.stopForDisk(error.message));
      this.background?.wake();
      this.pollSoon();
    });
  }

  private isSyncAwaited = false;

  /** What waits for the disks of others is looked at more often, from now on; and a snapshot may be due. */
  private lookAtDurability(plane: ReplicationPlane): void {
    const isAwaited = plane.role !== 'follower' && plane.commitLsn < plane.tailLsn;
    if (isAwaited && !this.isSyncAwaited) {
      plane.publish();
      this.background?.wake();
    }
    this.isSyncAwaited = isAwaited;
    this.durability?.look();
  }

  /** The cluster's first configuration is known. What an earlier process left is used before this one has links. */
  private async formed(genesis: Configuration, current: Configuration): Promise<void> {
    this.found = current;
    const { survival, origin, durability } = this;
    if (origin !== null && durability === null) {
      this.join(genesis, current, { position: origin.position, configuration: genesis });
      return;
    }
    if (survival === null && durability === null) {
      this.join(genesis, current, null);
      return;
    }
    try {
      await durability?.join(genesis);
      this.join(genesis, current, survival === null ? null : await survival.recover(genesis));
    } catch (error) {
      this.fail(error as Error);
    }
  }

  /** From here on this replica has a log and a background plane. */
  private join(genesis: Configuration, current: Configuration, recovered: Recovered | null): void {
    if (this.closing !== undefined) return;
    this.guard(() => {
      this.membership.begin(genesis, current);
      const durableLog = this.beginDurableLog();
      this.plane = new ReplicationPlane(
        {
          id: this.id,
          bootId: this.bootId,
          processId: this.processId,
          durableLog,
          recovered: this.fromDisk,
          logBytes: this.logBytes,
          genesis,
          spin_ns: this.endpoint.isSoftware ? SPIN_SOFTWARE_DEVICE_NS : SPIN_NS,
          majorityFirst_ns: this.endpoint.isSoftware ? MAJORITY_FIRST_SOFTWARE_DEVICE_NS : 0,
          lagTimeout_ns: LAG_TIMEOUT_NS,
          replaceAfter_ns: this.replaceAfterMs * 1e6,
        },
        this.fabric,
        this.exchange,
        this.statusWords,
        new Uint32Array(this.endpoint.mailboxMemory.buffer),
        this,
      );
      if (recovered !== null && this.plane.isSnapshotNews(recovered.position)) {
        this.plane.installSnapshot(recovered.position, recovered.configuration);
      }
      this.survival?.begin(genesis, recovered);
      const background = this.background as BackgroundThread;
      this.links = new LinkManager({
        clusterId: genesis.clusterId,
        endpoint: this.endpoint,
        fabric: this.fabric,
        messages: this.mailbox.fabric,
        background,
        onLogLinked: (peer, bootId, processId) => this.guard(() => this.plane?.peerLinked(peer, bootId, processId)),
        onLogUnlinked: (peer) => this.guard(() => this.plane?.peerUnlinked(peer)),
        tellLogDead: (peer, generation) => this.tell(peer, 'logDead', { generation }),
        onRefused: (peer) => this.membership.tellOfMembership(peer),
        onWarning: (error) => this.warn(error),
      });
      this.requests = new MembershipRequests({
        plane: this.plane,
        now_ns: monotonicNs,
        onBegun: () => {
          this.flushSchedule.soon();
          this.pollSoon();
        },
        notLeader: () => {
          const leader = this.leaderId();
          // One that was removed still is the leader for a moment, and must not send the caller back to itself.
          return new NotLeaderError(leader === this.id ? undefined : leader, 'change');
        },
      });
      for (const [peer, connection] of this.connections) this.links.connected(peer, connection);
      this.membership.follow();
      this.membership.noticeSpare();
      this.endpoint.channel.onEvent(() => {
        this.armed = false;
        this.poll();
      });
      this.housekeeping = setInterval(() => {
        this.survival?.look();
        this.poll();
        this.forwarded.look();
      }, this.housekeepingMs);
    });
  }

  private hear(message: ToMain): void {
    switch (message.type) {
      case 'ready':
        this.isBackgroundReady = true;
        this.poll();
        break;
      case 'rehearsalFailed':
        this.warn(new QuorateError(message.code, `the background thread could not rehearse: ${message.message}`));
        break;
      case 'schedulingRefused':
        this.warn(new QuorateError(message.code, `the background thread runs as any other thread: ${message.message}`));
        break;
      case 'probeBroken':
        this.links?.broken(message.peer, 'probe');
        this.announce('peer', message.peer, false);
        break;
      case 'incomingLogDead':
        this.links?.incomingLogDead(message.peer, message.generation);
        break;
      case 'grantFailed':
        if (message.code === 'QUORATE_DISK_FULL' || message.code === 'QUORATE_DISK_FAILED') {
          this.durability?.promiseFailed(new QuorateError(message.code, message.message));
          break;
        }
        if (message.code === 'QUORATE_LINK_DEAD') break;
        this.warnOfPermissions(message.code, `granting replica ${message.peer}: ${message.message}`);
        break;
      case 'permissionsFailed':
        this.warnOfPermissions(message.code, `${message.what}: ${message.message}; it is tried again`);
        break;
    }
  }

  private warnOfPermissions(code: string, text: string): void {
    const told = this.grantWarnings.limited(new QuorateError(code, text), code);
    if (told !== undefined) this.warn(told);
  }

  /**
   * Leaves the cluster quietly: proposals that are not settled reject, the background plane stops (so others take over),
   * links and memory are released. The returned promise settles when nothing is left; but a write of a durable replica to a disk
   * that stands still is waited for for 5 s only, and what it uses, such as the directory, is in use until it ends.
   */
  close(): Promise<void> {
    if (this.closing === undefined) {
      // Known before anything is settled or told: what comes of that finds a replica that is closed.
      let begun: (end: Promise<void>) => void = () => {};
      this.closing = new Promise<void>((resolve) => {
        begun = resolve;
      });
      begun(this.shutDown());
    }
    return this.closing;
  }

  private async shutDown(): Promise<void> {
    clearInterval(this.housekeeping);
    this.leaderWatch.close();
    clearTimeout(this.lingering);
    this.formation.close();
    const error = () =>
      this.failure ?? this.removal ?? new QuorateError('QUORATE_CLOSED', `replica ${this.id} was closed`);
    const how = this.failure === undefined ? 'was closed' : `failed (${this.failure.message})`;
    this.opening.reject(error());
    this.proposals.rejectAll(
      () =>
        new OutcomeUnknownError(`replica ${this.id} ${how} before the command was known to be committed and applied`),
      // Not the failure itself: one that another replica has forwarded goes to the next leader.
      () =>
        this.removal ?? new QuorateError('QUORATE_CLOSED', `replica ${this.id} ${how} before the command was proposed`),
    );
    this.readBarriers.rejectAll(error);
    this.followerReads.rejectAll(error);
    this.forwarded.close(error);
    this.requests?.close(error());
    this.transfers.close(error());
    this.links?.close();
    await Promise.all([this.place.close(), this.directory.close(), this.survival?.close()]);
    const stopped = this.background?.stop() ?? Promise.resolve();
    await this.durability?.close(stopped);
    this.endpoint.channel.onEvent(null);
    const released = stopped.then(() => this.release());
    // The thread uses its memory until the disk has let go of it, which may stand still with the promise that it writes.
    if (this.durability === null || this.background?.hasEnded !== false) await released;
    else released.catch((failure: Error) => this.warn(failure));
  }

  /** Nobody uses links and memory any more. */
  private release(): void {
    const region = this.removal === undefined ? undefined : { close: () => this.survival?.remove() };
    closeAll([this.mailbox, this.fabric, this.ownProcess, this.endpoint, region, this.exitHold]);
  }

  /** An invariant, the state machine or the background thread failed: better no replica than a wrong one. */
  private fail(error: Error): void {
    if (this.failure !== undefined || this.closing !== undefined) return;
    this.failure = error;
    void this.close();
    if (!this.isOpen) return; // open() rejects with it; nobody can listen yet
    if (this.listenerCount('fatal') > 0) this.announce('fatal', error);
    else
      queueMicrotask(() => {
        throw error;
      });
  }

  private guard(action: () => void): void {
    try {
      action();
    } catch (error) {
      this.fail(error as Error);
    }
  }

  /**
   * Tells the listeners, until the replica is closed. What one of them throws is nobody's here, and must not keep from its
   * end what tells it: it is thrown as by a listener of a timer.
   */
  private announce<Name extends keyof ReplicaEvents>(name: Name, ...news: ReplicaEvents[Name]): void {
    if (this.closing !== undefined && name !== 'fatal') return;
    try {
      (this as EventEmitter).emit(name, ...news);
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }

  private warn(error: Error): void {
    this.earlyWarnings.warn(error);
  }

  // -- control channel ---------------------------------------------------------------------------------------------

  private dialed(peer: number, connection: ControlConnection): void {
    this.connections.set(peer, connection);
    answerPings(connection);
    this.transfers.dialed(connection);
    connection.on('warning', (error) => this.warn(error));
    this.links?.connected(peer, connection);
    this.membership.connected(peer, connection);
    this.announce('peer', peer, true);
  }

  /** This replica is no member any more. */
  private leave(reason: string): void {
    if (this.removal !== undefined || this.closing !== undefined) return;
    const message = `replica ${this.id} was removed from the cluster: ${reason}; it is closed`;
    this.removal = new QuorateError('QUORATE_REMOVED', message);
    this.opening.reject(this.removal);
    // Not inside the plane's own call; and a leader has to cede first, and to be seen to.
    if (this.plane?.role === 'follower') setImmediate(() => void this.close());
    else this.lingering = setTimeout(() => void this.close(), REMOVED_LINGER_MS);
    this.announce('removed', this.removal); // behind that: who hears of it may close at once
  }

  /** Best effort: what a peer must know is said again when there is a connection to it again. */
  private tell(peer: number, type: string, body: unknown): void {
    const connection = this.connections.get(peer);
    if (connection === undefined || connection.isClosed) return;
    try {
      connection.send(type, body);
    } catch (error) {
      this.warn(error as Error);
    }
  }

  private lost(peer: number): void {
    this.connections.delete(peer);
    this.links?.disconnected(peer);
  }

  private serve(connection: ControlConnection): void {
    const { id: peer } = connection.peer;
    // It may have been away for long, and the next attempt to reach it would come late.
    this.directory.hurry(peer);
    connection.on('warning', (error) => this.warn(error));
    this.transfers.serve(connection);
    this.membership.serve(connection);
    this.admission.serve(connection);
    connection.onRequest('formation', async () => {
      await this.admission.admit(connection);
      return this.formation.reply();
    });
    connection.onRequest('found', (genesis) => this.formation.accept(genesis));
    connection.onRequest('link', async (request) => {
      await this.admission.admit(connection);
      if (this.links === undefined) {
        throw new QuorateError('QUORATE_NOT_READY', `replica ${this.id} is not part of a formed cluster yet`);
      }
      if (!this.membership.isMember(peer)) {
        throw new QuorateError(
          'QUORATE_NOT_A_MEMBER',
          `replica ${peer} is no member as far as replica ${this.id} knows (configuration ${this.membership.known?.version}): add ` +
            'it at the leader, with addLearner()',
        );
      }
      return this.links.accept(peer, request);
    });
    connection.onMessage('logDead', (body) =>
      this.links?.logDeadAtPeer(peer, (body as { generation?: unknown })?.generation),
    );
    const checkSender = (): void => {
      if (this.membership.isMember(peer)) return;
      throw new QuorateError('QUORATE_NOT_A_MEMBER', `replica ${peer} is no member and sends a snapshot`);
    };
    connection.onBlobStream('snapshot', async (blob) => {
      checkSender(); // before there is memory for all of it
      const bytes = await blob.bytes();
      checkSender();
      this.state.install(peer, bytes);
    });
  }

  private trusts(peer: number): boolean {
    return this.plane !== undefined && (this.plane.trustedMask & (1 << peer)) !== 0;
  }

  // -- loss of a majority ------------------------------------------------------------------------------------------

  /** Where a new cluster begins in the state of this replica. From here on this one must be closed. */
  private async forkOff(evenIfNotVoter: boolean): Promise<Fork> {
    if (this.fork !== null) return this.fork; // the new replica could not be opened then
    if (this.closing !== undefined) throw this.closedError();
    if (this.plane === undefined) {
      throw new QuorateError('QUORATE_NOT_READY', `replica ${this.id} is not part of a formed cluster`);
    }
    const answering = await this.admission.answering();
    const { plane, closing } = this;
    if (closing !== undefined) throw this.closedError();
    plane.poll(monotonicNs());
    // Who follows a leader, or is one, has told what it promised by that, perhaps before it was told to be ready.
    if (!this.isBackgroundReady && plane.leader < 0) {
      throw new QuorateError('QUORATE_NOT_READY', `replica ${this.id} does not know yet what it promised: try again`);
    }
    const refusal = whyNotForced(
      {
        id: this.id,
        bootId: this.bootId,
        leader: this.leaderId(),
        isFollower: plane.role === 'follower',
        tailLsn: plane.tailLsn,
        configurations: [plane.configuration, plane.appliedConfiguration],
        isReachable: (id) => this.trusts(id) || answering.has(id),
      },
      evenIfNotVoter,
    );
    if (refusal !== null) throw refusal;
    const listed = memberWithId(plane.configuration, this.id) ?? this.self;
    const { priority } = listed;
    // Not where it is listed: it may be unable to listen there, as when its directory was brought to another host.
    const { host: listensOn, port } = this.place.at;
    const host = isUnspecified(listensOn) ? listed.host : listensOn;
    // What the log holds besides is of no later epoch than these.
    if (!hasForkEpochs(plane.appliedPosition.epoch, plane.promisedEpoch)) {
      throw new QuorateError(
        'QUORATE_EPOCHS_EXHAUSTED',
        `a new cluster was not forced from replica ${this.id}, and nothing was changed: no epochs are left above those that ` +
          'it has promised',
      );
    }
    // Until the directory is that of the new cluster it is a voter of the old one, and what is not committed there must not get
    // into a snapshot of it.
    this.durability?.stop();
    try {
      plane.commitWholeLog();
    } catch (error) {
      this.fail(error as Error);
      throw error;
    }
    const clusterId = newClusterId(plane.configuration.clusterId);
    this.fork = {
      clusterId,
      survivorBootId: this.bootId,
      position: forkPosition(plane.appliedPosition, plane.promisedEpoch, clusterId),
      sessions: this.sessions.snapshot(),
      place: { id: this.id, host, port, priority: priority ?? 0 },
    };
    // Not a turn later: until then somebody might write this log, or take this replica for a voter.
    void this.close();
    return this.fork;
  }

  // -- the plane's loop --------------------------------------------------------------------------------------------

  private poll(): void {
    const { plane } = this;
    if (plane === undefined || this.closing !== undefined) return;
    try {
      const more = plane.poll(monotonicNs());
      this.afterPlane(plane);
      if (more) this.pollSoon();
      else if (this.opening.isPending && this.options.waitForLeader === false && this.isBackgroundReady) {
        this.opening.resolve();
      }
    } catch (error) {
      this.fail(error as Error);
    }
  }

  private pollSoon(): void {
    if (this.pollScheduled) return;
    this.pollScheduled = true;
    setImmediate(() => {
      this.pollScheduled = false;
      this.poll();
    });
  }

  private afterPlane(plane: ReplicationPlane): void {
    if (this.proposals.isWaiting) this.proposals.proposeWaiting(plane);
    if (this.requests?.isWaiting) this.requests.look();
    if (plane.isPublicationDue && !this.publishScheduled) {
      this.publishScheduled = true;
      setImmediate(this.publishNow);
    }
    if (this.durability !== null) this.lookAtDurability(plane);
    if (plane.operationsInFlight > 0) this.arm(plane);
    this.followerReads.look();
    this.forwarded.noticeLeader();
    // A barrier waits for commands that are committed and not applied yet: nothing else announces that they can be.
    if (this.readBarriers.size > 0 && plane.appliedLsn < plane.commitLsn) this.pollSoon();
    this.leaderWatch.look(plane);
  }

  /** Has the completion channel call back for what is on its way; what came before the arming is taken at once. */
  private arm(plane: ReplicationPlane): void {
    if (this.armed) return;
    this.armed = true;
    this.endpoint.mainQueue.requestNotify(false);
    if (plane.poll(monotonicNs())) this.pollSoon();
  }

  private leaderKnown(leader: number): void {
    this.opening.resolve();
    this.requests?.leaderKnown(leader);
    this.followerReads.leaderChanged();
    if (this.removal !== undefined && leader !== this.id) setImmediate(() => void this.close());
  }

  // -- what the plane tells ----------------------------------------------------------------------------------------

  /** @internal */
  applyCommand(
    lsn: number,
    origin: number,
    sequence: number,
    bytes: Uint8Array,
    payloadOffset: number,
    payloadBytes: number,
  ): void {
    this.proposals.apply(lsn, origin, sequence, bytes, payloadOffset, payloadBytes);
  }

  /** @internal */
  onLeader(epoch: number): void {
    if (this.plane !== undefined) this.leaderWatch.tookOver(this.plane, epoch);
  }

  /** @internal */
  onDeposed(epoch: number, reason: string): void {
    const error = `leadership of epoch ${formatEpoch(epoch)} ended (${reason}) before the command was known to be committed`;
    this.proposals.rejectAll(
      () => new OutcomeUnknownError(error),
      () => new NotLeaderError(undefined),
    );
    this.requests?.deposed(`leadership of epoch ${formatEpoch(epoch)} ended (${reason})`);
    this.readBarriers.rejectAll(
      () =>
        new QuorateError(
          'QUORATE_LEADERSHIP_ENDED',
          `leadership of epoch ${formatEpoch(epoch)} ended (${reason}) before the read was known to be current; nothing ` +
            'was changed: read again, at the replica that leads now',
        ),
    );
    this.background?.wake();
    this.announce('deposed', formatEpoch(epoch), reason);
  }

  /** @internal */
  onReadBarrier(round: number): void {
    this.readBarriers.passed(round);
  }

  /** @internal */
  onConfiguration(configuration: Configuration): void {
    // Not inside the plane's own call, which may be the first one, of its constructor.
    queueMicrotask(() => this.membership.follow());
    this.announce(
      'configuration',
      configuration.voters.map((voter) => voter.id),
      configuration.version,
    );
  }

  /** @internal */
  onConfigurationApplied(configuration: Configuration, endLsn: number): void {
    this.requests?.applied(endLsn);
    for (const peer of this.connections.keys()) this.membership.tellIfApart(peer, configuration);
    this.membership.observe(configuration);
    this.pollSoon(); // a leader that the configuration is without steps down
  }

  /** @internal */
  onTransferEnded(reason: string): void {
    this.requests?.transferEnded(reason);
    this.pollSoon();
  }

  /** @internal */
  onSnapshotNeeded(peer: number): void {
    this.snapshots.needed(peer);
  }

  /** @internal */
  onPeerBroken(peer: number): void {
    // Not inside the plane's own call: the link is dropped, which calls the plane.
    queueMicrotask(() => this.links?.broken(peer, 'log'));
  }

  // -- what users call ---------------------------------------------------------------------------------------------

  /**
   * Proposes a command. Resolves when it is committed (a majority of the voters has it in memory) and applied at the
   * leader, with what the leader's state machine returned. At any other replica it is forwarded to the leader, or waits for
   * one, up to `timeoutMs`; the state machine here may apply it a moment later ({@link Replica.read} waits for that). What
   * travels back is plain data (null, booleans, numbers, strings, bytes, arrays, plain objects) of up to 256 KiB, 65,536
   * values with the keys of objects, 16 levels of nesting and 128 bytes for a key; undefined inside of it becomes null, and -0
   * becomes 0.
   *
   * The bytes must not be changed until the promise settles. A rejection with QUORATE_OUTCOME_UNKNOWN means that the
   * command may or may not take effect: propose it again with the same session to find out, exactly once. With a session
   * propose() does that by itself, across changes of leadership, until `timeoutMs` is over.
   *
   * Beside what every call may reject with: QUORATE_NOT_LEADER with `forward: false`, or when no leader was known in time,
   * and QUORATE_TIMEOUT when the leader could not be reached in time (neither was proposed); QUORATE_RESULT_TOO_LARGE (more
   * than 256 KiB) and QUORATE_RESULT_NOT_SENDABLE (it was applied, but its result cannot travel: it is no such data, has half of a
   * surrogate pair in a string, or found more than 8 MiB on their way to this replica already).
   */
  propose(command: Uint8Array, options?: ProposeOptions): Promise<ProposeResult<Result>> {
    const { log } = this;
    if (log !== undefined && options === undefined) return this.proposals.propose(log, command, undefined, undefined);
    try {
      if (options !== undefined) checkProposeOptions(options);
      // This replica may lead since this very turn of its plane, and those of a session that wait for a leader come first.
      if (log !== undefined) this.forwarded.noticeLeader();
      const settled = this.proposals.propose(log, command, options?.session, this.elsewhere(options ?? {}));
      const { session, timeoutMs } = options ?? {};
      // What goes elsewhere has a limit there. A timer for each command here only where it is asked for.
      if (log === undefined || session === undefined || timeoutMs === undefined) return settled;
      return inTime(settled, timeoutMs, () => new OutcomeUnknownError(unknownWithin(timeoutMs)));
    } catch (error) {
      return Promise.reject(error as Error);
    }
  }

  /** What commands are proposed to: the log of the leader that this replica is, if it is one. */
  private get log(): ReplicationPlane | undefined {
    const { plane } = this;
    return plane !== undefined && this.closing === undefined && plane.role === 'leader' ? plane : undefined;
  }

  private proposeHere(command: Uint8Array, session: SessionCommand | undefined): Promise<ProposeResult<Result>> {
    return this.proposals.propose(this.log, command, session, undefined);
  }

  /** Has the leader propose what this replica cannot propose, or has lost track of; undefined if that is not wanted. */
  private elsewhere(options: ProposeOptions): Elsewhere<Result> | undefined {
    const { forward = true, timeoutMs: limitMs = FORWARD_TIMEOUT_DEFAULT_MS } = options;
    checkInteger(limitMs, 1, 2 ** 31 - 1, 'timeoutMs');
    if (!forward || this.removal !== undefined || this.closing !== undefined) return undefined;
    const begun_ns = monotonicNs();
    return (command, session, resolve, reject, error) => {
      const restMs = error === undefined ? limitMs : Math.floor(limitMs - (monotonicNs() - begun_ns) / 1e6);
      if (error !== undefined && (this.closing !== undefined || restMs < 1)) {
        reject(error);
      } else if (this.forwarded.size >= this.pendingMax) {
        const text = `${this.pendingMax} forwarded proposals are under way already`;
        const backpressure = `${text}; the command was not proposed: slow down and try again`;
        reject(error ?? new QuorateError('QUORATE_BACKPRESSURE', backpressure));
      } else {
        const proposal = { command, session, timeoutMs: restMs, resolve: resolve as never, reject };
        this.forwarded.add(proposal, error instanceof OutcomeUnknownError);
      }
    };
  }

  /**
   * Resolves when the state machine of this replica, which must be the leader, reflects every command that was
   * acknowledged, by whichever leader, before this call: what is read from it then is linearizable. Nothing is written to
   * the log: it costs one round trip that proves the permission of a majority, which calls of one turn of the event loop
   * share, and none where commands are being replicated anyway.
   *
   * The field knows the mechanism as *read index* (Raft). This is named after the other half of it, the *barrier* that
   * separates a read from all writes before it (Raft implementations; ZooKeeper's sync), because the caller gets no index:
   * there is nothing left to compare.
   *
   * Rejects with QUORATE_NOT_LEADER elsewhere, QUORATE_LEADERSHIP_ENDED if leadership ends first (a read has no effect:
   * read again), QUORATE_BACKPRESSURE beyond `pendingReadBarriersMax` and QUORATE_CLOSED.
   */
  readBarrier(): Promise<void> {
    const { plane } = this;
    if (this.closing !== undefined) {
      return Promise.reject(this.closedError());
    }
    const round = plane === undefined ? PROPOSE_NOT_LEADER : plane.readBarrier();
    if (round === PROPOSE_NOT_LEADER) {
      const leader = plane === undefined || plane.leader < 0 ? undefined : plane.leader;
      return Promise.reject(new NotLeaderError(leader, 'read'));
    }
    if (this.readBarriers.size >= this.readBarriersMax) {
      return Promise.reject(
        new QuorateError(
          'QUORATE_BACKPRESSURE',
          `${this.readBarriersMax} read barriers wait already; nothing was done: slow down and read again`,
        ),
      );
    }
    const passed = this.readBarriers.join(round);
    this.flushSchedule.soon();
    return passed;
  }

  /**
   * Runs `read`, which reads the state machine of this replica, and returns what it returned if that is linearizable: this
   * replica leads, and holds a lease at the end of it. Otherwise returns undefined, and what was read may be stale; then
   * use {@link Replica.read}. So `read` should return something. Costs a look at the clock and nothing else.
   *
   * `read` is called once at most, in this turn, and must neither wait nor return a promise (QUORATE_INVALID_ARGUMENT). What it
   * throws is thrown.
   * Leases depend on clocks, unlike all else in this package: see the option `lease`.
   */
  leasedRead<Value>(read: () => Value): Value | undefined {
    if (typeof read !== 'function') invalid('leasedRead() takes a function that reads the state');
    const { plane } = this;
    if (plane === undefined || this.closing !== undefined) return undefined;
    // Also of what counts for nothing without a lease: a promise might reject, and nobody would wait for it.
    const value = plane.leasedRead(read, monotonicNs, checkRead);
    return value !== undefined && this.peersTakeItForAlive() ? value : undefined;
  }

  /**
   * Peers on this host wait for no lease of a process whose exit has begun. That is so from the first moment of a
   * process's end, when this thread may still have some instructions left: what it reads then counts only if that moment
   * is not come.
   */
  private peersTakeItForAlive(): boolean {
    return this.ownProcess === null || this.ownProcess.alive;
  }

  /**
   * Runs `read`, which reads the state machine of this replica, when that is linearizable, and resolves with what it
   * returned. At the leader at once if it holds a lease, else behind a {@link Replica.readBarrier}; at a follower when it
   * has applied what the leader says, one round trip of messages in registered memory that reads of one turn share.
   *
   * `read` may be called more than once, the last time for good; it must have no effect, not wait, and return no promise
   * (QUORATE_INVALID_ARGUMENT): what it reads after it has waited may be stale.
   *
   * Rejects with what `read` throws; with QUORATE_NOT_LEADER if no leader is known or the one that was asked leads no
   * more, QUORATE_LEADERSHIP_ENDED, QUORATE_DISCONNECTED or QUORATE_PEER_CLOSED (the leader is gone), QUORATE_TIMEOUT, QUORATE_BACKPRESSURE
   * beyond `pendingReadBarriersMax`, QUORATE_NOT_A_MEMBER (the leader knows that this replica was removed, which it does not yet), and
   * QUORATE_REMOVED and QUORATE_CLOSED. In all these cases reading again is safe.
   */
  async read<Value>(read: () => Value, options: ReadOptions = {}): Promise<Value> {
    if (typeof read !== 'function') invalid('read() takes a function that reads the state');
    const timeoutMs = checkTimeout(options, 'read()', READ_TIMEOUT_DEFAULT_MS);
    const value = this.leasedRead(read);
    if (value !== undefined) return value;
    if (this.closing === undefined && this.plane?.role === 'leader') await this.readAsLeader(options.timeoutMs);
    else await this.readAsFollower(timeoutMs);
    const current = read();
    checkRead(current);
    return current;
  }

  /** A timer for each read only where it is asked for: all of them end with the leadership, which is lost without a majority. */
  private readAsLeader(timeoutMs: number | undefined): Promise<void> {
    const passed = this.readBarrier();
    if (timeoutMs === undefined) return passed;
    return inTime(passed, timeoutMs, () => {
      const text = `no majority confirmed within ${timeoutMs} ms that this replica leads; nothing was changed: read again`;
      return new QuorateError('QUORATE_TIMEOUT', text);
    });
  }

  private async readAsFollower(timeoutMs: number): Promise<void> {
    if (this.closing !== undefined) throw this.closedError();
    if (this.followerReads.size >= this.readBarriersMax) {
      throw new QuorateError(
        'QUORATE_BACKPRESSURE',
        `${this.readBarriersMax} reads wait already; nothing was done: slow down and read again`,
      );
    }
    await this.followerReads.join(timeoutMs);
  }

  /** Up to where a follower must have applied the log; asked of the leader, which may be this replica by now. */
  private async askReadIndex(): Promise<ReadIndex> {
    const leader = this.leaderId();
    if (leader === this.id) return await this.readIndex();
    if (leader === undefined) throw new NotLeaderError(undefined, 'read');
    return await askReadIndex(this.mailbox, leader, READ_INDEX_TIMEOUT_MS);
  }

  /**
   * The commit LSN, and proof that everything that was acknowledged before is below: the lease, or else a read barrier
   * that is asked for afterwards.
   */
  private readIndex(): ReadIndex | Promise<ReadIndex> {
    const { plane } = this;
    if (plane === undefined || this.closing !== undefined) throw new NotLeaderError(undefined, 'read');
    const index = { epoch: plane.leaderEpoch, lsn: plane.commitLsn };
    if (plane.holdsLease(monotonicNs()) && this.peersTakeItForAlive()) return index;
    return this.readBarrier().then(() => index);
  }

  /** That this replica closes, or fails, would be taken by the peer's caller for what that one does, which goes on. */
  private async readIndexForPeer(): Promise<ReadIndex> {
    try {
      return await this.readIndex();
    } catch (error) {
      throw this.closing === undefined ? error : new NotLeaderError(undefined, 'read');
    }
  }

  private flush(): void {
    const { plane } = this;
    if (plane === undefined || this.closing !== undefined) return;
    try {
      const more = plane.flush();
      this.afterPlane(plane);
      if (more) this.pollSoon();
    } catch (error) {
      this.fail(error as Error);
    }
  }

  private publishScheduled = false;

  private readonly publishNow = (): void => {
    this.publishScheduled = false;
    if (this.closing === undefined) this.plane?.publish();
  };

  private closedError(): QuorateError {
    return this.removal ?? new QuorateError('QUORATE_CLOSED', `replica ${this.id} is closed`);
  }

  private leaderId(): number | undefined {
    return this.plane === undefined || this.plane.leader < 0 ? undefined : this.plane.leader;
  }

  /** The leader, if it can be sent proposals: not one that is taken for dead, while another may be about to lead. */
  private reachableLeaderId(): number | undefined {
    const leader = this.leaderId();
    if (leader === undefined || leader === this.id) return leader;
    return this.trusts(leader) && this.mailbox.fabric.isKnown(leader) ? leader : undefined;
  }

  // -- membership --------------------------------------------------------------------------------------------------

  /** The requests about the membership, which only a leader serves. */
  private async leading(): Promise<MembershipRequests> {
    if (this.closing !== undefined) throw this.closedError();
    if (this.requests === undefined) throw new NotLeaderError(undefined, 'change');
    return this.requests;
  }

  /**
   * Adds a member that gets the log and counts for nothing, to be promoted once it has caught up; its process is opened
   * with `join`, before or after. A spare becomes a learner, with the priority that it has unless one is given. Like all
   * changes of the membership this works at the leader, one change at a time, and resolves when the change is committed.
   *
   * Rejects with QUORATE_NOT_LEADER (whose `leader` says where to go), QUORATE_CHANGE_IN_PROGRESS (another change,
   * perhaps one that the leader makes by itself for a replica that came back, is not committed yet: try again),
   * QUORATE_TRANSFER_IN_PROGRESS, QUORATE_BACKPRESSURE (the log is full), QUORATE_MEMBER_EXISTS (the id or the address is
   * in use), QUORATE_LIMIT (16 members), QUORATE_INVALID_ARGUMENT, or QUORATE_OUTCOME_UNKNOWN (leadership ended first:
   * `status().members` at the next leader tells).
   */
  async addLearner(member: NewMember): Promise<void> {
    await this.add('addLearner', member);
  }

  /** Adds a member that is known and linked, but gets no log until it becomes a learner. See {@link Replica.addLearner}. */
  async addSpare(member: NewMember): Promise<void> {
    await this.add('addSpare', member);
  }

  private async add(kind: 'addLearner' | 'addSpare', member: NewMember): Promise<void> {
    checkMember(member, 'member');
    const { id, host, port, priority } = member;
    await (await this.leading()).change({ kind, id, host, port, priority });
  }

  /**
   * Makes a learner a voter. It must hold the leader's log but for 64 KiB (a sixteenth of the log, if that is less):
   * otherwise QUORATE_NOT_CAUGHT_UP, at once or after `timeoutMs` (default 0) of waiting for it. Rejects besides with
   * QUORATE_UNKNOWN_MEMBER, QUORATE_MEMBER_EXISTS (it is a voter already), QUORATE_QUORUM_AT_RISK (fewer than a majority
   * of the voters that there would be can be written now), QUORATE_BACKPRESSURE (also if 64 calls wait already), and as
   * {@link Replica.addLearner}.
   */
  async promote(id: number, options: { readonly timeoutMs?: number } = {}): Promise<void> {
    checkInteger(id, 0, MAX_REPLICAS - 1, 'id');
    const timeoutMs = checkTimeout(options, 'promote()', 0, 0);
    await (await this.leading()).promote(id, timeoutMs);
  }

  /**
   * Removes a member, which learns of it and closes (event "removed"). A leader that removes itself takes no commands
   * any more, and steps down when the change is committed. Rejects with QUORATE_UNKNOWN_MEMBER, QUORATE_LAST_VOTER,
   * QUORATE_QUORUM_AT_RISK, and as {@link Replica.addLearner}.
   */
  async remove(id: number): Promise<void> {
    checkInteger(id, 0, MAX_REPLICAS - 1, 'id');
    await (await this.leading()).change({ kind: 'remove', id });
  }

  /**
   * Puts a new member in the place of another: adds it as learner, promotes it when it has caught up, then removes the
   * other. Waits for its turn behind other changes, all within `timeoutMs` (default 60,000). If it rejects, the steps
   * that were done remain; asked for again, here or at the next leader, it goes on where it stopped. The new member has
   * another id; a process that moves under its id needs {@link Replica.changeAddress} only. Rejects as the single steps.
   */
  async replace(id: number, member: NewMember, options: { readonly timeoutMs?: number } = {}): Promise<void> {
    checkInteger(id, 0, MAX_REPLICAS - 1, 'id');
    checkMember(member, 'member');
    if (member.id === id) {
      invalid(`replica ${id} cannot replace itself: change its address, and start it there with the same id`);
    }
    const timeoutMs = checkTimeout(options, 'replace()', CATCH_UP_TIMEOUT_DEFAULT_MS);
    await (await this.leading()).replace(id, member, timeoutMs);
  }

  /**
   * Changes where the control channel of a member is reached. The member, if it runs, listens there from then on (or
   * warns that it cannot); one that is down is started there. Links and commits go on. Rejects with
   * QUORATE_UNKNOWN_MEMBER, QUORATE_MEMBER_EXISTS (the address is another member's), and as {@link Replica.addLearner}.
   */
  async changeAddress(id: number, address: { readonly host: string; readonly port: number }): Promise<void> {
    checkInteger(id, 0, MAX_REPLICAS - 1, 'id');
    checkAddress(address, 'address');
    await (await this.leading()).change({ kind: 'changeAddress', id, host: address.host, port: address.port });
  }

  /**
   * Changes a member's election priority, 0 .. 1000; it counts in the next election. Rejects with QUORATE_UNKNOWN_MEMBER, and
   * as {@link Replica.addLearner}.
   */
  async setPriority(id: number, priority: number): Promise<void> {
    checkInteger(id, 0, MAX_REPLICAS - 1, 'id');
    checkInteger(priority, 0, PRIORITY_MAX, 'priority');
    await (await this.leading()).change({ kind: 'setPriority', id, priority });
  }

  /**
   * Hands leadership over to a voter, by default to the one that would be elected. This leader takes no commands from
   * now on (they wait), until the successor holds the whole log, all of it committed; then it cedes. Resolves with the
   * successor's id when that leads; commands that waited are rejected with QUORATE_NOT_LEADER then, or go to the successor if
   * they have a session, and none is left in doubt. If the successor does not get that far within `timeoutMs` (1 .. 2^30,
   * default 5000) this replica goes on leading, with the commands that waited; when nobody was seen to lead within twice that
   * it rejects, too.
   *
   * Rejects with QUORATE_TRANSFER_FAILED (this replica leads on, or another one was elected: the message says which),
   * QUORATE_NO_SUCCESSOR, QUORATE_TRANSFER_IN_PROGRESS, QUORATE_CHANGE_IN_PROGRESS and QUORATE_NOT_LEADER.
   */
  async transferLeadership(id?: number, options: { readonly timeoutMs?: number } = {}): Promise<number> {
    if (id !== undefined) checkInteger(id, 0, MAX_REPLICAS - 1, 'id');
    const timeoutMs = checkTimeout(options, 'transferLeadership()', TRANSFER_TIMEOUT_DEFAULT_MS, 1, 2 ** 30);
    return await (await this.leading()).transferLeadership(id, timeoutMs);
  }

  /** Both threads do, each on its own, and what V8 compiles for that it is to keep. */
  private async rehearse({ started, ready }: BackgroundThread): Promise<void> {
    const isKept = this.options.keepCompiledCode !== false;
    // Under other settings than before V8 takes no code cache, and the background thread would not start as fast.
    await started;
    const done = isKept ? compileAtFirstCall() : () => {};
    const own = rehearseOnce({ strategy: this.endpoint.strategy, shmDirectory: this.shmDirectory, isKept })
      .catch((error: Error) => this.warn(error))
      .then(() => this.rehearseOwnPart());
    void Promise.allSettled([own, ready]).then(done);
    await own;
    if (isKept) keepCompiledCode();
  }

  /** What a new leader's first commit runs of this class, while there is nothing to commit: V8 compiles it by that. */
  private rehearseOwnPart(): void {
    this.onLeader(EPOCH_NONE);
    this.flushSchedule.soon();
    this.propose(new Uint8Array(0), { forward: false }).catch(() => {}); // there is no leader yet
  }

  /** What this replica knows now; of one that is closed, what it knew last, but that it leads no more. */
  status(): ReplicaStatus {
    const { plane } = this;
    const { known } = this.membership;
    const isClosed = this.closing !== undefined;
    const inForce = plane?.configuration;
    // A spare has no log, and that of a life that is no member any more may not say so: they know what they were told.
    const own = known === null ? undefined : memberWithId(known, this.id);
    const isTold =
      known !== null &&
      (inForce === undefined ||
        own?.role === 'spare' ||
        (own?.bootId !== this.bootId && known.version > inForce.version));
    const configuration = isTold ? known : inForce;
    const { id, links } = this;
    // Of what a leader has of the others' logs nothing is left, as its role says.
    const view = { id, plane: isClosed ? undefined : plane, links, trusts: (peer: number) => this.trusts(peer) };
    return {
      id,
      role: isClosed ? 'follower' : (plane?.role ?? 'follower'),
      leader: isClosed ? undefined : this.leaderId(),
      epoch: formatEpoch(plane?.promisedEpoch ?? 0),
      commitLsn: plane?.commitLsn ?? 0,
      appliedLsn: plane?.appliedLsn ?? 0,
      tailLsn: plane?.tailLsn ?? 0,
      tailEpoch: formatEpoch(plane?.tailEpoch ?? 0),
      clusterId: this.formation.genesis?.clusterId.toString(16),
      isVoter: configuration !== undefined && voterWithId(configuration, this.id)?.bootId === this.bootId,
      device: this.deviceName,
      fabric: this.fabricName,
      permissionStrategy: this.endpoint.strategy,
      profile: this.profileName,
      voters: configuration?.voters.map((voter) => voter.id) ?? [],
      configurationVersion: configuration?.version ?? 0,
      members: configuration === undefined ? [] : memberStatuses(view, configuration),
      transferringTo: isClosed || plane === undefined || plane.transferringTo < 0 ? undefined : plane.transferringTo,
      pendingProposals: this.proposals.size + this.forwarded.size,
      pendingReadBarriers: this.readBarriers.size + this.followerReads.size,
      leaseRemainingUs: isClosed ? 0 : Math.floor((plane?.leaseRemaining_ns(monotonicNs()) ?? 0) / 1000),
      peers: peerStatuses(view, this.directory.ids, configuration),
      transfers: this.transfers.statuses,
      recovery: this.survival?.recoveryStatus,
      region: this.survival?.regionStatus,
      lastTakeover: this.leaderWatch.lastTakeover,
      durable:
        this.durability === null
          ? undefined
          : {
              directory: this.durability.directory,
              syncedLsn: this.durability.syncedLsn,
              snapshotLsn: this.durability.snapshotLsn,
              failure: this.durability.failure?.code,
            },
    };
  }
}
