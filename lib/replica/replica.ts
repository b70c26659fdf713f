// One member of a cluster: composes the verbs endpoint, the two planes, the control channel and the user's state
// machine into the object that a service embeds. Everything that touches the log and the state machine runs in the
// thread that opened the replica; the background plane has a thread of its own.
import { randomInt } from 'node:crypto';
import { EventEmitter } from 'node:events';
import type { Configuration } from '../consensus/configuration.js';
import { voterWithId } from '../consensus/configuration.js';
import { formatEpoch } from '../consensus/epoch.js';
import { Exchange } from '../consensus/exchange.js';
import { LOG_BYTES_MAX, LOG_BYTES_MIN, MAX_REPLICAS } from '../consensus/limits.js';
import {
  PROPOSE_LOG_FULL,
  PROPOSE_NOT_LEADER,
  payloadBytesMax,
  type ReplicationHost,
  ReplicationPlane,
} from '../consensus/replication-plane.js';
import { QuorateError } from '../errors.js';
import { VerbsEndpoint } from '../fabric/verbs-endpoint.js';
import { VerbsReplicationFabric } from '../fabric/verbs-replication-fabric.js';
import { SessionTable } from '../rsm/session-table.js';
import { monotonicNs, setSchedulingSlice } from '../verbs/index.js';
import type { ToMain } from './background-messages.js';
import { BackgroundThread } from './background-thread.js';
import { type ControlConnection, ControlServer, Dialer } from './control-channel.js';
import { Formation } from './formation.js';
import { LinkManager } from './link-manager.js';
import { OutcomeUnknownError, PendingProposals } from './pending-proposals.js';
import { resolveProfile } from './profiles.js';
import { ReadBarriers } from './read-barriers.js';
import { rehearse } from './rehearsal.js';
import type {
  BackgroundScheduling,
  MemberAddress,
  PeerStatus,
  ProposeOptions,
  ProposeResult,
  ReplicaEvents,
  ReplicaOptions,
  ReplicaStatus,
  SessionCommand,
  StateMachine,
  TakeoverStages,
} from './replica-options.js';
import { decodeSnapshot, encodeSnapshot } from './snapshot-transfer.js';

const LOG_BYTES_DEFAULT = 16 * 1024 * 1024;
/** Of CPU_SET(3). */
const CPU_MAX = 1023;
const PENDING_PROPOSALS_DEFAULT = 65_536;
const PENDING_READ_BARRIERS_DEFAULT = 65_536;
const OPEN_TIMEOUT_DEFAULT_MS = 30_000;
/** How long one flush may busy-poll for completions before the completion channel takes over. */
const SPIN_NS = 100_000;
const SPIN_SOFTWARE_DEVICE_NS = 2_000_000;
/** A follower that blocks the recycling of the ring for so long is dropped. */
const LAG_TIMEOUT_NS = 1_000_000_000;
/** Housekeeping that no event announces: a blocked ring, a membership change that waits. At least two ticks apart. */
const HOUSEKEEPING_INTERVAL_MIN_MS = 20;
/** Flushes in a row before the event loop gets its turn. */
const FLUSHES_PER_TURN_MAX = 256;
/**
 * Slices of this thread, too: a takeover must not wait until a dying process has freed its memory, several
 * milliseconds, on the processor that it was woken on.
 */
const SCHEDULING_SLICE_NS = 100_000;
/** Listeners are told that there is no leader when it has been so for this long. */
const LEADER_LOST_GRACE_MS = 10;
const SNAPSHOT_TIMEOUT_MS = 120_000;
const SNAPSHOT_RETRY_MS = 200;
/** A process that does not answer for so long is not taken for alive when another one comes with its id. */
const PING_TIMEOUT_MS = 1_000;

const RESOLVED = Promise.resolve();

/**
 * This replica does not lead: nothing was proposed, or no read is current here. `leader` is the id of the one that does,
 * if it is known.
 */
export class NotLeaderError extends QuorateError {
  constructor(
    readonly leader: number | undefined,
    what: 'propose' | 'read' = 'propose',
  ) {
    const consequence = what === 'propose' ? 'the command was not proposed' : 'its state may be stale';
    const remedy = what === 'propose' ? 'propose it' : 'read';
    super(
      'QUORATE_NOT_LEADER',
      leader === undefined
        ? `this replica is not the leader and knows none; ${consequence}: try again or elsewhere`
        : `this replica is not the leader; ${consequence}: ${remedy} at replica ${leader}`,
    );
  }
}

interface WaitingProposal {
  readonly payload: Uint8Array;
  readonly session: SessionCommand | undefined;
  readonly resolve: (result: ProposeResult<never>) => void;
  readonly reject: (error: Error) => void;
}

function invalid(message: string): never {
  throw new QuorateError('QUORATE_INVALID_ARGUMENT', message);
}

function checkInteger(value: number, min: number, max: number, name: string): number {
  if (!Number.isInteger(value) || value < min || value > max)
    invalid(`${name} ${value} is not an integer in ${min}..${max}`);
  return value;
}

function checkScheduling(scheduling: BackgroundScheduling | undefined): BackgroundScheduling | undefined {
  if (scheduling === undefined) return undefined;
  if (typeof scheduling !== 'object' || scheduling === null) invalid('backgroundThread is not an object');
  const { realtimePriority, cpus } = scheduling;
  if (realtimePriority !== undefined) checkInteger(realtimePriority, 1, 99, 'backgroundThread.realtimePriority');
  if (cpus !== undefined) {
    if (!Array.isArray(cpus) || cpus.length === 0) invalid('backgroundThread.cpus must list processors');
    for (const cpu of cpus) checkInteger(cpu, 0, CPU_MAX, 'backgroundThread.cpus');
  }
  return scheduling;
}

function checkMembers(id: number, members: readonly MemberAddress[]): MemberAddress {
  if (!Array.isArray(members) || members.length === 0) invalid('members must list the replicas of the cluster');
  if (members.length > MAX_REPLICAS) invalid(`members lists ${members.length} replicas, more than ${MAX_REPLICAS}`);
  const ids = new Set<number>();
  for (const member of members) {
    checkInteger(member.id, 0, MAX_REPLICAS - 1, 'members: id');
    if (ids.has(member.id)) invalid(`members lists id ${member.id} twice`);
    ids.add(member.id);
    if (typeof member.host !== 'string' || member.host === '')
      invalid(`members: host of replica ${member.id} is missing`);
    checkInteger(member.port, 1, 65535, `members: port of replica ${member.id}`);
  }
  const self = members.find((member) => member.id === id);
  if (self === undefined) {
    const known = [...ids].sort((a, b) => a - b).join(', ');
    return invalid(`id ${id} is not in members (${known}); every replica, this one included, must be listed`);
  }
  return self;
}

/**
 * One replica of a replicated state machine. Create it with {@link Replica.open}; see {@link ReplicaOptions}.
 *
 * Errors that reject calls, by `code`: QUORATE_INVALID_ARGUMENT, QUORATE_CLUSTER_KEY (missing, too short, or not the
 * cluster's), QUORATE_NO_DEVICE, QUORATE_MEMLOCK, QUORATE_ADDRESS_IN_USE and QUORATE_DUPLICATE_ID (another process has
 * this id), QUORATE_OPEN_TIMEOUT, QUORATE_NOT_LEADER, QUORATE_OUTCOME_UNKNOWN, QUORATE_BACKPRESSURE,
 * QUORATE_PAYLOAD_TOO_LARGE, QUORATE_SESSION_GAP, QUORATE_LEADERSHIP_ENDED (of a read, which can be repeated),
 * QUORATE_CLOSED.
 */
export class Replica<Result = unknown> extends EventEmitter<ReplicaEvents> implements ReplicationHost {
  readonly id: number;
  /** Largest command in bytes that propose() takes, by the size of the log. */
  readonly payloadBytesMax: number;
  private readonly bootId = randomInt(1, 2 ** 48 - 1);
  private readonly stateMachine: StateMachine<Result>;
  private readonly memberIds: readonly number[];
  private readonly logBytes: number;
  private readonly profileName: string;
  private readonly profile: ReturnType<typeof resolveProfile>['profile'];
  private readonly pendingMax: number;
  private readonly readBarriersMax: number;
  private readonly shmDirectory: string | undefined;
  private readonly scheduling: BackgroundScheduling | undefined;
  private readonly fabric: VerbsReplicationFabric;
  private readonly exchange: Exchange;
  private readonly statusWords: Uint32Array;
  private readonly sessions = new SessionTable();
  private readonly pending = new PendingProposals<ProposeResult<Result>>();
  private readonly readBarriers = new ReadBarriers();
  /** Proposals that found the ring full, in order. */
  private waiting: WaitingProposal[] = [];
  private readonly server: ControlServer;
  private readonly dialers = new Map<number, Dialer>();
  private readonly connections = new Map<number, ControlConnection>();
  private readonly incoming = new Map<number, ControlConnection>();
  private readonly formation: Formation;
  private plane: ReplicationPlane | undefined;
  private background: BackgroundThread | undefined;
  private links: LinkManager | undefined;
  private housekeeping: NodeJS.Timeout | undefined;
  private readonly installing = new Set<number>();
  private flushScheduled = false;
  private pollScheduled = false;
  private armed = false;
  private closing: Promise<void> | undefined;
  private failure: Error | undefined;
  private lastLeader: number | undefined;
  /** Runs while it is not told yet that there is no leader. */
  private leaderLost: NodeJS.Timeout | undefined;
  private lastLeaderEpoch = 0;
  private lastTakeover: TakeoverStages | undefined;
  private opened: { resolve: () => void; reject: (error: Error) => void } | undefined;

  /**
   * Starts a replica and waits until it is part of a formed cluster that has a leader. A cluster forms when all members
   * have been reached once; from then on a majority suffices.
   */
  static async open<Result = unknown>(options: ReplicaOptions<Result>): Promise<Replica<Result>> {
    if (typeof options !== 'object' || options === null) return invalid('Replica.open() takes an options object');
    const id = checkInteger(options.id, 0, MAX_REPLICAS - 1, 'id');
    const self = checkMembers(id, options.members);
    const logBytes = checkInteger(options.logBytes ?? LOG_BYTES_DEFAULT, LOG_BYTES_MIN, LOG_BYTES_MAX, 'logBytes');
    if ((logBytes & (logBytes - 1)) !== 0) return invalid(`logBytes ${logBytes} is not a power of two`);
    for (const method of ['apply', 'snapshot', 'restore'] as const) {
      if (typeof options.stateMachine?.[method] !== 'function')
        return invalid(`stateMachine.${method} is not a function`);
    }
    if (options.clusterKey === undefined) {
      throw new QuorateError(
        'QUORATE_CLUSTER_KEY',
        'clusterKey is missing: every replica of a cluster takes the same secret key of at least 16 bytes',
      );
    }
    const timeoutMs = checkInteger(options.openTimeoutMs ?? OPEN_TIMEOUT_DEFAULT_MS, 1, 2 ** 31 - 1, 'openTimeoutMs');
    const endpoint = VerbsEndpoint.open({
      device: options.device,
      devicePort: options.devicePort,
      gidIndex: options.gidIndex,
      shmDirectory: options.shmDirectory,
      logBytes,
      permissionStrategy: options.permissionStrategy,
    });
    let replica: Replica<Result>;
    try {
      replica = new Replica(options, logBytes, endpoint);
    } catch (error) {
      endpoint.close();
      throw error;
    }
    try {
      await replica.start(self, timeoutMs);
    } catch (error) {
      await replica.close();
      throw error;
    }
    return replica;
  }

  private constructor(
    options: ReplicaOptions<Result>,
    logBytes: number,
    private readonly endpoint: VerbsEndpoint,
  ) {
    super();
    this.id = options.id;
    this.stateMachine = options.stateMachine;
    this.memberIds = options.members.map((member) => member.id).sort((a, b) => a - b);
    this.logBytes = logBytes;
    this.payloadBytesMax = payloadBytesMax(logBytes);
    this.pendingMax = checkInteger(
      options.pendingProposalsMax ?? PENDING_PROPOSALS_DEFAULT,
      1,
      2 ** 24,
      'pendingProposalsMax',
    );
    this.readBarriersMax = checkInteger(
      options.pendingReadBarriersMax ?? PENDING_READ_BARRIERS_DEFAULT,
      1,
      2 ** 24,
      'pendingReadBarriersMax',
    );
    const { name, profile } = resolveProfile(options.profile, endpoint.isSoftware);
    this.shmDirectory = options.shmDirectory;
    this.scheduling = checkScheduling(options.backgroundThread);
    this.profileName = name;
    this.profile = profile;
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
    this.formation = new Formation({
      id: this.id,
      bootId: this.bootId,
      memberIds: this.memberIds,
      connectionTo: (peer) => this.connections.get(peer),
      onFormed: (genesis) => this.join(genesis),
      onRefused: (error) => this.opened?.reject(error),
    });
    const hello = () => ({
      id: this.id,
      bootId: this.bootId,
      clusterId: this.formation.genesis?.clusterId ?? null,
    });
    const identity = { clusterKey: options.clusterKey, memberIds: this.memberIds, hello };
    this.server = new ControlServer(identity);
    this.server.on('connection', (connection) => this.serve(connection));
    this.server.on('warning', (error) => this.warn(error));
    for (const member of options.members) {
      if (member.id === this.id) continue;
      const dialer = new Dialer({ ...identity, peerId: member.id, host: member.host, port: member.port });
      dialer.on('connected', (connection) => this.dialed(member.id, connection));
      dialer.on('disconnected', () => this.lost(member.id));
      dialer.on('warning', (error) => this.warn(error));
      this.dialers.set(member.id, dialer);
    }
  }

  // -- life cycle --------------------------------------------------------------------------------------------------

  private async start(self: MemberAddress, timeoutMs: number): Promise<void> {
    setSchedulingSlice(SCHEDULING_SLICE_NS);
    this.background = new BackgroundThread(this.endpoint, {
      id: this.id,
      bootId: this.bootId,
      profile: this.profile,
      shmDirectory: this.shmDirectory,
      scheduling: this.scheduling,
      onWake: () => this.poll(),
      onReport: (message) => this.hear(message),
      onFailure: (error) => this.fail(error),
    });
    await rehearse({ strategy: this.endpoint.strategy, shmDirectory: this.shmDirectory }).catch((error: Error) =>
      this.warn(error),
    );
    await this.server.listen(self.host, self.port);
    let timer: NodeJS.Timeout | undefined;
    const opened = new Promise<void>((resolve, reject) => {
      this.opened = { resolve, reject };
      timer = setTimeout(() => reject(this.openTimeout(timeoutMs)), timeoutMs);
    });
    try {
      for (const dialer of this.dialers.values()) dialer.start();
      this.formation.start();
      await opened;
    } finally {
      clearTimeout(timer);
      this.opened = undefined;
    }
  }

  private openTimeout(timeoutMs: number): QuorateError {
    const missing = this.formation.missing();
    const why =
      this.formation.genesis !== null
        ? 'the cluster is formed but has no leader that this replica can see: is a majority of the voters running?'
        : missing.length > 0
          ? `replicas ${missing.join(', ')} could not be reached, and a cluster forms only when all members are there once`
          : 'all members were reached but did not agree on forming a cluster';
    const last = [...this.dialers.values()].map((dialer) => dialer.lastError?.message).filter(Boolean);
    return new QuorateError(
      'QUORATE_OPEN_TIMEOUT',
      `replica ${this.id} did not become part of a cluster within ${timeoutMs} ms: ${why}` +
        (last.length > 0 ? ` (${[...new Set(last)].join('; ')})` : ''),
    );
  }

  /** The cluster's first configuration is known: from here on this replica has a log and a background plane. */
  private join(genesis: Configuration): void {
    if (this.closing !== undefined) return;
    this.guard(() => {
      this.plane = new ReplicationPlane(
        {
          id: this.id,
          bootId: this.bootId,
          logBytes: this.logBytes,
          genesis,
          spin_ns: this.endpoint.isSoftware ? SPIN_SOFTWARE_DEVICE_NS : SPIN_NS,
          lagTimeout_ns: LAG_TIMEOUT_NS,
          memberIds: this.memberIds,
        },
        this.fabric,
        this.exchange,
        this.statusWords,
        this,
      );
      const background = this.background as BackgroundThread;
      this.links = new LinkManager({
        endpoint: this.endpoint,
        fabric: this.fabric,
        background,
        onLogLinked: (peer, bootId) => this.guard(() => this.plane?.peerLinked(peer, bootId)),
        onLogUnlinked: (peer) => this.guard(() => this.plane?.peerUnlinked(peer)),
        onWarning: (error) => this.warn(error),
      });
      for (const [peer, connection] of this.connections) this.links.connected(peer, connection);
      this.endpoint.channel.onEvent(() => {
        this.armed = false;
        this.poll();
      });
      this.housekeeping = setInterval(
        () => this.poll(),
        Math.max(HOUSEKEEPING_INTERVAL_MIN_MS, (this.profile.tick_ns / 1e6) * 2),
      );
    });
  }

  private hear(message: ToMain): void {
    switch (message.type) {
      case 'ready':
        break;
      case 'rehearsalFailed':
        this.warn(new QuorateError(message.code, `the background thread could not rehearse: ${message.message}`));
        break;
      case 'schedulingRefused':
        this.warn(new QuorateError(message.code, `the background thread runs as any other thread: ${message.message}`));
        break;
      case 'probeBroken':
        this.links?.broken(message.peer, 'probe');
        this.emit('peer', message.peer, false);
        break;
      case 'incomingLogDead':
        this.tell(message.peer, 'logDead', { generation: message.generation });
        break;
      case 'grantFailed':
        if (message.code !== 'QUORATE_LINK_DEAD') {
          this.warn(new QuorateError(message.code, `granting replica ${message.peer}: ${message.message}`));
        }
        break;
    }
  }

  /**
   * Leaves the cluster quietly: proposals that are not settled reject, the background plane stops (so others take over),
   * links and memory are released. The returned promise settles when nothing is left.
   */
  close(): Promise<void> {
    this.closing ??= this.shutDown();
    return this.closing;
  }

  private async shutDown(): Promise<void> {
    clearInterval(this.housekeeping);
    this.forgetLeaderLost();
    this.formation.close();
    const error = () => this.failure ?? new QuorateError('QUORATE_CLOSED', `replica ${this.id} was closed`);
    this.opened?.reject(error());
    for (const proposal of this.waiting.splice(0)) proposal.reject(error());
    this.pending.rejectAll(
      () => new OutcomeUnknownError(`replica ${this.id} was closed before the command was known to be committed`),
    );
    this.readBarriers.rejectAll(error);
    this.links?.close();
    await Promise.all([this.server.close(), ...[...this.dialers.values()].map((dialer) => dialer.close())]);
    await this.background?.stop();
    this.endpoint.channel.onEvent(null);
    this.fabric.close();
    this.endpoint.close();
  }

  /** An invariant, the state machine or the background thread failed: better no replica than a wrong one. */
  private fail(error: Error): void {
    if (this.failure !== undefined || this.closing !== undefined) return;
    this.failure = error;
    void this.close();
    if (this.listenerCount('fatal') > 0) this.emit('fatal', error);
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

  private warn(error: Error): void {
    if (this.closing === undefined) this.emit('warning', error);
  }

  // -- control channel ---------------------------------------------------------------------------------------------

  private dialed(peer: number, connection: ControlConnection): void {
    this.connections.set(peer, connection);
    connection.onRequest('ping', () => null);
    connection.on('warning', (error) => this.warn(error));
    this.links?.connected(peer, connection);
    this.emit('peer', peer, true);
  }

  /** Best effort: a peer that is not connected makes fresh links anyway when it is again. */
  private tell(peer: number, type: string, body: unknown): void {
    try {
      this.connections.get(peer)?.send(type, body);
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
    connection.on('warning', (error) => this.warn(error));
    connection.on('close', () => {
      if (this.incoming.get(peer) === connection) this.incoming.delete(peer);
    });
    connection.onRequest('formation', async () => {
      await this.admit(connection);
      return this.formation.reply();
    });
    connection.onRequest('found', (genesis) => this.formation.accept(genesis));
    connection.onRequest('link', async (request) => {
      await this.admit(connection);
      if (this.links === undefined) {
        throw new QuorateError('QUORATE_NOT_READY', `replica ${this.id} is not part of a formed cluster yet`);
      }
      return this.links.accept(peer, request);
    });
    connection.onMessage('logDead', (body) =>
      this.links?.logDeadAtPeer(peer, (body as { generation?: unknown })?.generation),
    );
    connection.onBlob('snapshot', (bytes) => this.install(peer, bytes));
  }

  /** Refuses a second process with the id of one that is alive, which is one that answers. */
  private async admit(connection: ControlConnection): Promise<void> {
    const { id: peer, bootId } = connection.peer;
    const current = this.incoming.get(peer);
    if (current !== undefined && current.peer.bootId !== bootId && !current.isClosed) {
      const answers = await current.request('ping', null, PING_TIMEOUT_MS).then(
        () => true,
        () => false,
      );
      if (answers) {
        throw new QuorateError(
          'QUORATE_DUPLICATE_ID',
          `another process with id ${peer} is alive in this cluster; ids must be unique: stop one of the two`,
        );
      }
    }
    if (!connection.isClosed) this.incoming.set(peer, connection);
  }

  private trusts(peer: number): boolean {
    return this.plane !== undefined && (this.plane.trustedMask & (1 << peer)) !== 0;
  }

  // -- snapshots ---------------------------------------------------------------------------------------------------

  onSnapshotNeeded(peer: number): void {
    if (this.installing.has(peer) || this.closing !== undefined) return;
    this.installing.add(peer);
    void this.sendSnapshot(peer).finally(() => this.installing.delete(peer));
  }

  /** Takes a snapshot now and sends it; the log from here on is kept until the peer has it or blocks for too long. */
  private async sendSnapshot(peer: number): Promise<void> {
    // Not inside the plane's own call, and after everything that it applies in the same turn.
    await new Promise((resolve) => setImmediate(resolve));
    const { plane } = this;
    const connection = this.connections.get(peer);
    if (plane === undefined || plane.role === 'follower' || this.closing !== undefined) return;
    try {
      if (connection === undefined) throw new QuorateError('QUORATE_CLOSED', `replica ${peer} is not connected`);
      const bytes = encodeSnapshot({
        ...plane.snapshotFor(peer),
        sessions: this.sessions.snapshot(),
        state: this.stateMachine.snapshot(),
      });
      await connection.sendBlob('snapshot', bytes, SNAPSHOT_TIMEOUT_MS);
    } catch (error) {
      if (this.closing !== undefined) return;
      this.warn(error as Error);
      await new Promise((resolve) => setTimeout(resolve, SNAPSHOT_RETRY_MS));
    }
    // Either way its permission is asked for again: the grant shows where its log stands now.
    if (this.closing === undefined) this.guard(() => plane.peerInstalledSnapshot(peer));
    this.background?.wake();
  }

  private install(peer: number, bytes: Uint8Array): void {
    const { plane } = this;
    if (plane === undefined) throw new QuorateError('QUORATE_NOT_READY', `replica ${this.id} has no log yet`);
    const snapshot = decodeSnapshot(bytes);
    if (plane.role !== 'follower') {
      throw new QuorateError(
        'QUORATE_NOT_FOLLOWER',
        `replica ${this.id} leads and takes no snapshot from replica ${peer}`,
      );
    }
    if (snapshot.position.lsn <= plane.appliedLsn) return; // it has that state already
    this.guard(() => {
      this.stateMachine.restore(snapshot.state);
      this.sessions.restore(snapshot.sessions);
      plane.installSnapshot(snapshot.position, snapshot.configuration);
    });
  }

  // -- the plane's loop --------------------------------------------------------------------------------------------

  private poll(): void {
    const { plane } = this;
    if (plane === undefined || this.closing !== undefined) return;
    try {
      const more = plane.poll(monotonicNs());
      this.afterPlane(plane);
      if (more) this.pollSoon();
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
    if (this.waiting.length > 0) this.proposeWaiting(plane);
    if (plane.isPublicationDue && !this.publishScheduled) {
      this.publishScheduled = true;
      setImmediate(this.publishNow);
    }
    if (plane.operationsInFlight > 0) this.arm(plane);
    // A barrier waits for commands that are committed and not applied yet: nothing else announces that they can be.
    if (this.readBarriers.size > 0 && plane.appliedLsn < plane.commitLsn) this.pollSoon();
    this.noticeLeader(plane);
  }

  /** Has the completion channel call back for what is on its way; what came before the arming is taken at once. */
  private arm(plane: ReplicationPlane): void {
    if (this.armed) return;
    this.armed = true;
    this.endpoint.mainQueue.requestNotify(false);
    if (plane.poll(monotonicNs())) this.pollSoon();
  }

  private forgetLeaderLost(): void {
    clearTimeout(this.leaderLost);
    this.leaderLost = undefined;
  }

  private noticeLeader(plane: ReplicationPlane, isLossDue = false): void {
    const leader = plane.leader < 0 ? undefined : plane.leader;
    const epoch = leader === undefined ? this.lastLeaderEpoch : plane.promisedEpoch;
    if (leader === this.lastLeader && epoch === this.lastLeaderEpoch) {
      this.forgetLeaderLost();
      return;
    }
    if (leader === undefined && !isLossDue) {
      // A failover is mostly over before anybody could use the news that it has begun, and telling takes time from it.
      this.leaderLost ??= setTimeout(() => {
        if (this.closing === undefined) this.noticeLeader(plane, true);
      }, LEADER_LOST_GRACE_MS);
      return;
    }
    this.forgetLeaderLost();
    this.lastLeader = leader;
    this.lastLeaderEpoch = epoch;
    if (leader !== undefined) this.opened?.resolve();
    this.emit('leader', leader, formatEpoch(epoch));
  }

  // -- what the plane tells ----------------------------------------------------------------------------------------

  applyCommand(
    lsn: number,
    origin: number,
    sequence: number,
    bytes: Uint8Array,
    payloadOffset: number,
    payloadBytes: number,
  ): void {
    const proposal = this.pending.take(lsn);
    const decision = this.sessions.begin(origin, sequence);
    if (decision === 'apply') {
      const result = this.stateMachine.apply(bytes.subarray(payloadOffset, payloadOffset + payloadBytes), lsn);
      this.sessions.finish(origin, sequence, lsn, result);
      proposal?.resolve({ lsn, result, duplicate: false });
    } else if (decision === 'duplicate') {
      const result = this.sessions.lastResult(origin, sequence) as Result | undefined;
      proposal?.resolve({ lsn, result, duplicate: true });
    } else {
      proposal?.reject(
        new QuorateError(
          'QUORATE_SESSION_GAP',
          `session ${origin}: command ${sequence} came before its predecessor and was not applied; commands of a session ` +
            'must be proposed in order, without gaps',
        ),
      );
    }
  }

  onLeader(epoch: number): void {
    const stages = (this.plane as ReplicationPlane).candidacyStages;
    this.lastTakeover = {
      epoch: formatEpoch(epoch),
      leaderLostAtNs: stages.leaderLostAt_ns,
      candidateAtNs: stages.candidateAt_ns,
      majorityAtNs: stages.majorityAt_ns,
      activeAtNs: monotonicNs(),
    };
  }

  onDeposed(epoch: number, reason: string): void {
    const error = `leadership of epoch ${formatEpoch(epoch)} ended (${reason}) before the command was known to be committed`;
    this.pending.rejectAll(() => new OutcomeUnknownError(error));
    for (const proposal of this.waiting.splice(0)) proposal.reject(new NotLeaderError(undefined));
    this.readBarriers.rejectAll(
      () =>
        new QuorateError(
          'QUORATE_LEADERSHIP_ENDED',
          `leadership of epoch ${formatEpoch(epoch)} ended (${reason}) before the read was known to be current; nothing ` +
            'was changed: read again, at the replica that leads now',
        ),
    );
    this.background?.wake();
    this.emit('deposed', formatEpoch(epoch), reason);
  }

  onReadBarrier(round: number): void {
    this.readBarriers.passed(round);
  }

  onConfiguration(configuration: Configuration): void {
    this.emit(
      'configuration',
      configuration.voters.map((voter) => voter.id),
      configuration.version,
    );
  }

  onPeerBroken(peer: number): void {
    // Not inside the plane's own call: the link is dropped, which calls the plane.
    queueMicrotask(() => this.links?.broken(peer, 'log'));
  }

  // -- what users call ---------------------------------------------------------------------------------------------

  /**
   * Proposes a command. Resolves when it is committed (a majority of the voters has it in memory) and applied here.
   * Works at the leader only; elsewhere it rejects with QUORATE_NOT_LEADER, whose `leader` says where to go.
   *
   * The bytes must not be changed until the promise settles. A rejection with QUORATE_OUTCOME_UNKNOWN means that the
   * command may or may not take effect: propose it again with the same session to find out, exactly once.
   */
  propose(command: Uint8Array, options?: ProposeOptions): Promise<ProposeResult<Result>> {
    return new Promise((resolve, reject) => {
      if (!(command instanceof Uint8Array)) {
        reject(new QuorateError('QUORATE_INVALID_ARGUMENT', 'propose() takes a Uint8Array'));
        return;
      }
      if (command.length > this.payloadBytesMax) {
        reject(
          new QuorateError(
            'QUORATE_PAYLOAD_TOO_LARGE',
            `the command has ${command.length} bytes; the limit is ${this.payloadBytesMax} bytes with a log of ` +
              `${this.logBytes} bytes (at most one eighth of it, and 1 MiB)`,
          ),
        );
        return;
      }
      const session = options?.session;
      if (session !== undefined && !(isSessionNumber(session.origin) && isSessionNumber(session.sequence))) {
        reject(
          new QuorateError(
            'QUORATE_INVALID_ARGUMENT',
            'session origin and sequence must be integers from 1 to 2^53 - 1',
          ),
        );
        return;
      }
      const { plane } = this;
      if (this.closing !== undefined) {
        reject(new QuorateError('QUORATE_CLOSED', `replica ${this.id} is closed`));
        return;
      }
      if (plane === undefined || plane.role !== 'leader') {
        reject(new NotLeaderError(plane === undefined || plane.leader < 0 ? undefined : plane.leader));
        return;
      }
      if (this.pending.size + this.waiting.length >= this.pendingMax) {
        reject(
          new QuorateError(
            'QUORATE_BACKPRESSURE',
            `${this.pendingMax} proposals wait for commit already; the command was not proposed: slow down and try again`,
          ),
        );
        return;
      }
      try {
        if (this.waiting.length > 0 || !this.tryPropose(plane, command, session, resolve, reject)) {
          this.waiting.push({ payload: command, session, resolve: resolve as never, reject });
        }
        this.flushSoon();
      } catch (error) {
        this.fail(error as Error);
        reject(error as Error);
      }
    });
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
      return Promise.reject(new QuorateError('QUORATE_CLOSED', `replica ${this.id} is closed`));
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
    this.flushSoon();
    return passed;
  }

  private tryPropose(
    plane: ReplicationPlane,
    payload: Uint8Array,
    session: SessionCommand | undefined,
    resolve: (result: ProposeResult<Result>) => void,
    reject: (error: Error) => void,
  ): boolean {
    const lsn = plane.propose(session?.origin ?? 0, session?.sequence ?? 0, payload);
    if (lsn === PROPOSE_LOG_FULL) return false;
    if (lsn === PROPOSE_NOT_LEADER) reject(new NotLeaderError(undefined));
    else this.pending.add({ lsn, resolve, reject });
    return true;
  }

  /** All proposals of one turn of the event loop go out together, right after the current callback. */
  private flushSoon(): void {
    if (this.flushScheduled) return;
    this.flushScheduled = true;
    // On shm a proposal settles within its own turn, so a loop that awaits one after another would never let the event
    // loop run: now and then it gets its turn.
    if (++this.flushesThisTurn < FLUSHES_PER_TURN_MAX) {
      void RESOLVED.then(this.flushNow); // cheaper than queueMicrotask, which makes an async resource
    } else {
      setImmediate(this.flushNow);
      this.flushesThisTurn = 0;
    }
  }

  private flushesThisTurn = 0;

  private readonly flushNow = (): void => {
    this.flushScheduled = false;
    const { plane } = this;
    if (plane === undefined || this.closing !== undefined) return;
    try {
      plane.flush();
      this.afterPlane(plane);
    } catch (error) {
      this.fail(error as Error);
    }
  };

  private publishScheduled = false;

  private readonly publishNow = (): void => {
    this.publishScheduled = false;
    if (this.closing === undefined) this.plane?.publish();
  };

  private proposeWaiting(plane: ReplicationPlane): void {
    let taken = 0;
    for (const { payload, session, resolve, reject } of this.waiting) {
      if (!this.tryPropose(plane, payload, session, resolve as never, reject)) break;
      taken++;
    }
    if (taken === 0) return;
    this.waiting.splice(0, taken);
    this.flushSoon();
  }

  /** What this replica knows now. */
  status(): ReplicaStatus {
    const { plane } = this;
    const configuration = plane?.configuration;
    const peers: PeerStatus[] = this.memberIds
      .filter((id) => id !== this.id)
      .map((id) => ({
        id,
        linked: this.links?.linked(id) ?? false,
        trusted: this.trusts(id),
        voter:
          configuration !== undefined &&
          this.links !== undefined &&
          voterWithId(configuration, id)?.bootId === this.links.bootId(id),
        phase: plane?.peerPhase(id) ?? 'none',
      }));
    return {
      id: this.id,
      role: plane?.role ?? 'follower',
      leader: plane === undefined || plane.leader < 0 ? undefined : plane.leader,
      epoch: formatEpoch(plane?.promisedEpoch ?? 0),
      commitLsn: plane?.commitLsn ?? 0,
      appliedLsn: plane?.appliedLsn ?? 0,
      tailLsn: plane?.tailLsn ?? 0,
      isVoter: configuration !== undefined && voterWithId(configuration, this.id)?.bootId === this.bootId,
      device: this.endpoint.context.device.name,
      fabric: this.endpoint.isShm ? 'shm' : 'verbs',
      permissionStrategy: this.endpoint.strategy,
      profile: this.profileName,
      voters: configuration?.voters.map((voter) => voter.id) ?? [],
      configurationVersion: configuration?.version ?? 0,
      pendingProposals: this.pending.size + this.waiting.length,
      pendingReadBarriers: this.readBarriers.size,
      peers,
      lastTakeover: this.lastTakeover,
    };
  }
}

function isSessionNumber(value: unknown): boolean {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 1;
}
