// A takeover is code that has never run when it is needed: V8 compiles a function when it is first called, and some
// fifty first calls, in two threads, cost more than everything else that a failover does. So each thread of a replica
// rehearses at start, once for all replicas in it: three small replicas in shared memory of this process, under a clock
// of their own, elect a leader, commit, lose it (its end is seen and its links are broken, as after a kill), and take
// over. It is the real planes and the real fabric, not a copy of their steps; what it replicates is nobody's. Then the
// lost one comes back, and the next leader is lost, some dozens of times: V8 interprets a function, slowly and without
// a memory of what it has seen, until that has run so often. In the end the memory of a leader goes as well, as with a
// process.
//
// What V8 learns it learns by the shapes of objects and the kinds of numbers in them: a field that has held small integers
// only, and gets a time of day, makes it forget all that was compiled for the object. So the numbers here are as large as
// the real ones, and objects that are passed have the same fields in the same order.
import { BackgroundPlane, type BackgroundProfile } from '../consensus/background-plane.js';
import { type Configuration, genesisConfiguration } from '../consensus/configuration.js';
import { Exchange } from '../consensus/exchange.js';
import type { LeaseSettings } from '../consensus/lease.js';
import { LOG_BYTES_MIN } from '../consensus/limits.js';
import type { ReplicationHost } from '../consensus/replication-host.js';
import { ReplicationPlane } from '../consensus/replication-plane.js';
import { QuorateError } from '../errors.js';
import type { LinkKind } from '../fabric/link-parameters.js';
import { LogPermissions, type PermissionStrategy } from '../fabric/permissions.js';
import { VerbsBackgroundFabric } from '../fabric/verbs-background-fabric.js';
import { VerbsEndpoint } from '../fabric/verbs-endpoint.js';
import { VerbsReplicationFabric } from '../fabric/verbs-replication-fabric.js';
import { SessionTable } from '../rsm/session-table.js';
import { monotonicNs, type QueuePair, Waiter } from '../verbs/objects.js';
import { FlushSchedule } from './flush-schedule.js';
import { LeaderWatch } from './leader-watch.js';
import { NotLeaderError } from './not-leader-error.js';
import { Proposals } from './proposals.js';

const REPLICAS = 3;
const TICK_NS = 1_000_000;
const PROFILE: BackgroundProfile = {
  tick_ns: TICK_NS,
  electionTick_ns: TICK_NS,
  takeoverTimeout_ns: 100 * TICK_NS,
  scoreMax: 10,
  failBelow: 2,
  recoverAbove: 4,
  stallTimeout_ns: 1000 * TICK_NS,
};
/** Leases are waited out unless the end of their holder is seen, which is what the scenes are about. */
const LEASE: LeaseSettings = { length_ns: 6 * TICK_NS, driftBound: 0.001 };
/** Ticks of the rehearsal's own clock within which what a scene waits for must have come to pass. */
const SCENE_TICKS_MAX = 500;
/** Takeovers, before the one that ends the rehearsal. */
const SCENES_MAX = 40;
/** In one of so many the leader is not lost but stands still. */
const SCENES_PER_STANDSTILL = 4;
/** None but the first is begun later than this: on a slow or busy host a replica that starts soon is worth more. */
const SCENES_NS_MAX = 150_000_000;
const COMMANDS = 8;
const COMMAND_BYTES = 64;
/** As large as the random numbers that name lives and clusters, which are no small integers. */
const NAME_MIN = 2 ** 47;
/** Settled: what waits for it runs behind the flush of this turn. */
const FLUSHED = Promise.resolve();

export interface RehearsalOptions {
  readonly strategy: PermissionStrategy;
  /** Where shared memory is made; the default directory if absent. */
  readonly shmDirectory?: string | undefined;
  /** What a background plane calls when it has news for its replication plane; nothing if absent. */
  readonly notifyMain?: () => void;
  /** Of the background plane that is to come; one of the rehearsal's own if absent. */
  readonly profile?: BackgroundProfile;
  readonly lease?: LeaseSettings | null;
}

/** Options that all replicas of a rehearsal share. */
interface Setting {
  readonly genesis: Configuration;
  readonly notifyMain: () => void;
  readonly profile: BackgroundProfile;
  readonly lease: LeaseSettings | null;
}

/** What the rehearsal did, for tests. */
export interface RehearsalResult {
  /** In their order, the last but one of which was lost for good. */
  readonly leaders: readonly number[];
  readonly applied: number;
}

class RehearsedReplica implements ReplicationHost {
  readonly bootId: number;
  readonly plane: ReplicationPlane;
  readonly background: BackgroundPlane;
  readonly fabric: VerbsReplicationFabric;
  readonly backgroundFabric: VerbsBackgroundFabric;
  readonly permissions: LogPermissions;
  private readonly proposals: Proposals<number>;
  private readonly flushSchedule = new FlushSchedule(() => {
    if (this.alive) this.plane.flush();
  });
  private readonly waiter = new Waiter();
  private readonly leaderWatch = new LeaderWatch({ onLeaderKnown: () => {}, announce: () => {} });
  applied = 0;
  /** Its memory is still there. */
  alive = true;
  /** Takes part; the others take one that does not for dead. */
  isPresent = true;
  private readonly queuePairs = new Map<number, readonly QueuePair[]>();

  constructor(
    readonly id: number,
    readonly endpoint: VerbsEndpoint,
    { genesis, notifyMain, profile, lease }: Setting,
  ) {
    this.bootId = NAME_MIN + id;
    const { fence } = endpoint;
    this.proposals = new Proposals({
      stateMachine: { apply: () => ++this.applied },
      sessions: new SessionTable(),
      payloadBytesMax: COMMAND_BYTES,
      logBytes: endpoint.logMemory.length,
      pendingMax: COMMANDS,
      refusal: () => new NotLeaderError(undefined),
      flushSchedule: this.flushSchedule,
      onFailure: (error) => {
        throw error;
      },
    });
    const exchange = new Exchange(endpoint.controlMemory.buffer);
    this.fabric = new VerbsReplicationFabric(
      id,
      endpoint.mainQueue,
      fence,
      {
        log: endpoint.logMemory,
        logKey: endpoint.logRegion.lkey,
        workspace: endpoint.workspaceMemory,
        workspaceBytes: endpoint.workspaceBytes,
        workspaceKey: endpoint.workspaceRegion.lkey,
      },
      endpoint.transferBytesMax,
    );
    this.permissions = new LogPermissions(
      endpoint.strategy,
      endpoint.logDomain,
      endpoint.logMemory,
      endpoint.incomingQueue,
      () => {},
      () => {},
    );
    this.backgroundFabric = new VerbsBackgroundFabric(
      endpoint.backgroundQueue,
      fence,
      this.permissions,
      {
        status: endpoint.statusMemory,
        mailbox: endpoint.mailboxMemory,
        log: endpoint.logMemory,
        probe: endpoint.probeMemory,
        probeKey: endpoint.probeRegion.lkey,
      },
      { waiter: this.waiter, wakeQueue: endpoint.wakeQueue, wakeChannel: endpoint.wakeChannel },
    );
    this.waiter.watchQueue(endpoint.wakeQueue, endpoint.wakeChannel);
    const { logMemory } = endpoint;
    this.plane = new ReplicationPlane(
      {
        id,
        bootId: this.bootId,
        processId: this.bootId,
        durableLog: null,
        recovered: null,
        logBytes: logMemory.length,
        genesis,
        spin_ns: 0,
        majorityFirst_ns: 0,
        lagTimeout_ns: SCENE_TICKS_MAX * profile.tick_ns,
        replaceAfter_ns: 0,
      },
      this.fabric,
      exchange,
      new Uint32Array(endpoint.statusMemory.buffer),
      new Uint32Array(endpoint.mailboxMemory.buffer),
      this,
    );
    this.background = new BackgroundPlane(
      {
        id,
        bootId: this.bootId,
        processId: this.bootId,
        durable: null,
        logBytes: logMemory.length,
        profile,
        lease,
        random: () => 0.5,
        notifyMain,
        onGrantFailure: () => {},
      },
      this.backgroundFabric,
      exchange,
    );
  }

  async link(peer: RehearsedReplica, generation: number): Promise<void> {
    const probe = await this.connect('probe', peer, generation);
    this.backgroundFabric.setProbe(peer.id, {
      queuePair: probe.queuePair,
      statusAddress: probe.readable.address,
      statusKey: probe.readable.rkey,
      mailboxAddress: probe.writable.address,
      mailboxKey: probe.writable.rkey,
      process: probe.process,
      processId: peer.bootId,
    });
    peer.backgroundFabric.setIncomingProbe(this.id, probe.responder);
    const log = await this.connect('log', peer, generation);
    this.fabric.setPeer(peer.id, {
      queuePair: log.queuePair,
      logAddress: log.readable.address,
      readKey: log.readable.rkey,
      writeKey: log.writable.rkey,
    });
    peer.permissions.setLink(this.id, { generation, queuePair: log.responder });
    this.plane.peerLinked(peer.id, peer.bootId);
    this.backgroundFabric.setOutgoingLogGeneration(peer.id, generation);
    this.queuePairs.set(peer.id, [probe.queuePair, log.queuePair]);
  }

  unlink(peer: RehearsedReplica): void {
    this.backgroundFabric.setProbe(peer.id, null);
    this.backgroundFabric.setOutgoingLogGeneration(peer.id, 0);
    this.fabric.setPeer(peer.id, null);
    this.plane.peerUnlinked(peer.id);
  }

  /** Sees the peer's process end, and what is under way to it fail. */
  lose(peer: RehearsedReplica): void {
    this.backgroundFabric.noteExit(peer.id);
    for (const queuePair of this.queuePairs.get(peer.id) ?? []) queuePair.toError();
  }

  private async connect(kind: LinkKind, peer: RehearsedReplica, generation: number) {
    const pending = this.endpoint.initiate(kind, generation);
    const { queuePair: responder, reply } = await peer.endpoint.accept(this.id, pending.request);
    await this.endpoint.complete(pending, reply);
    const process = this.endpoint.peerProcess(reply);
    return { queuePair: pending.queuePair, responder, readable: reply.readable, writable: reply.writable, process };
  }

  tick(now_ns: number): void {
    this.backgroundFabric.wait(0, false);
    this.background.tick(now_ns);
    this.permissions.prepare();
    this.backgroundFabric.takeBrokenProbes();
    this.plane.poll(now_ns);
    this.leaderWatch.look(this.plane);
  }

  /** As a kill would: its memory is gone, and whoever reads it learns that. */
  kill(): void {
    this.alive = false;
    this.isPresent = false;
    this.endpoint.close();
  }

  close(): void {
    this.leaderWatch.close();
    if (this.alive) this.endpoint.close();
    this.backgroundFabric.close();
    this.fabric.close();
    this.waiter.close();
  }

  /** Proposes as a caller of Replica.propose() does. */
  propose(command: Uint8Array): void {
    this.proposals.propose(this.plane, command, undefined, undefined).catch(() => {});
  }

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
  onLeader(epoch: number): void {
    this.leaderWatch.tookOver(this.plane, epoch);
  }
  onDeposed(): void {}
  onConfiguration(): void {}
  onConfigurationApplied(): void {}
  onTransferEnded(): void {}
  onPeerBroken(peer: number): void {
    // Those that come back get fresh links then.
    queueMicrotask(() => {
      if (this.alive) this.plane.peerUnlinked(peer);
    });
  }
  onSnapshotNeeded(): void {}
  onReadBarrier(): void {}
}

/**
 * Runs the rehearsal in the calling thread. Takes about 0.15 s, on slow hosts somewhat more than 0.2 s, and about 10 MiB of
 * shared memory for as long. Errors are those of opening the shared-memory device, and QUORATE_INTERNAL if a scene did not
 * end.
 */
export async function rehearse(options: RehearsalOptions): Promise<RehearsalResult> {
  const end_ns = monotonicNs() + SCENES_NS_MAX;
  const members = Array.from({ length: REPLICAS }, (_, id) => ({ id, bootId: NAME_MIN + id }));
  const setting: Setting = {
    genesis: genesisConfiguration(NAME_MIN, members),
    notifyMain: options.notifyMain ?? (() => {}),
    profile: options.profile ?? PROFILE,
    lease: options.lease === undefined ? LEASE : options.lease,
  };
  const replicas: RehearsedReplica[] = [];
  try {
    for (const { id } of members) {
      const endpoint = VerbsEndpoint.open({
        device: 'shm',
        shmDirectory: options.shmDirectory,
        logBytes: LOG_BYTES_MIN,
        permissionStrategy: options.strategy,
      });
      replicas.push(new RehearsedReplica(id, endpoint, setting));
    }
    return await new Rehearsal(replicas, setting.profile).perform(end_ns);
  } finally {
    for (const replica of replicas) replica.close();
  }
}

/**
 * Whether a rehearsal gains more than it costs, which is a third of the processor time that a replica takes to start. A software
 * device takes milliseconds for a takeover's requests, and `relaxed` takes half a second to notice that there must be one.
 */
export function isWorthRehearsing(profileName: string, isSoftwareDevice: boolean): boolean {
  return !(isSoftwareDevice && profileName === 'relaxed');
}

/** Those of this thread whose code V8 keeps. */
const kept = new Map<PermissionStrategy, Promise<RehearsalResult>>();

/**
 * Runs the rehearsal, unless one with this strategy was run in the calling thread, or is under way, and V8 keeps what it
 * compiled then: of several replicas in one thread the first rehearses for all. `isKept` says that V8 keeps it from now on.
 */
export async function rehearseOnce({
  isKept,
  ...options
}: RehearsalOptions & { readonly isKept: boolean }): Promise<RehearsalResult> {
  const { strategy } = options;
  const rehearsal = kept.get(strategy) ?? rehearse(options);
  if (isKept) kept.set(strategy, rehearsal);
  try {
    return await rehearsal;
  } catch (error) {
    if (kept.get(strategy) === rehearsal) kept.delete(strategy); // the next replica tries again
    throw error;
  }
}

class Rehearsal {
  private readonly leaders: number[] = [];
  private readonly command = new Uint8Array(COMMAND_BYTES);
  private now_ns = monotonicNs();
  private nextGeneration = 1;

  constructor(
    private readonly replicas: readonly RehearsedReplica[],
    private readonly profile: BackgroundProfile,
  ) {}

  private get present(): RehearsedReplica[] {
    return this.replicas.filter((replica) => replica.isPresent);
  }

  async perform(end_ns: number): Promise<RehearsalResult> {
    for (const from of this.replicas) {
      for (const to of this.replicas) if (from !== to) await from.link(to, this.nextGeneration++);
    }
    let leader = await this.elect();
    for (let scene = 0; scene === 0 || (scene < SCENES_MAX && monotonicNs() < end_ns); scene++) {
      const lost = leader;
      lost.isPresent = false;
      this.tick(); // everybody sees its last beat
      for (const replica of this.present) {
        // One that merely stands still holds its lease, which is taken back from it.
        if (scene % SCENES_PER_STANDSTILL === 0) replica.background.peerDisconnected(lost.id);
        else replica.lose(lost);
      }
      leader = await this.elect();
      await this.bringBack(lost, leader);
    }
    leader.kill();
    await this.elect();
    return { leaders: this.leaders, applied: Math.max(...this.replicas.map((replica) => replica.applied)) };
  }

  private async elect(): Promise<RehearsedReplica> {
    const { present } = this;
    const leading = () => present.find((replica) => replica.plane.role === 'leader');
    this.until('an election', () => leading() !== undefined);
    const leader = leading() as RehearsedReplica;
    this.leaders.push(leader.id);
    const before = leader.applied;
    for (let index = 0; index < COMMANDS; index++) {
      leader.propose(this.command);
      await FLUSHED;
    }
    this.until('a commit', () => leader.applied === before + COMMANDS);
    this.until('its propagation', () => present.every((replica) => replica.applied >= leader.applied));
    return leader;
  }

  /** As after a partition: it learns that it is deposed, follows, and may lead again. */
  private async bringBack(lost: RehearsedReplica, leader: RehearsedReplica): Promise<void> {
    for (const replica of this.present) {
      replica.unlink(lost);
      lost.unlink(replica);
      await replica.link(lost, this.nextGeneration++);
      await lost.link(replica, this.nextGeneration++);
    }
    lost.isPresent = true;
    const all = (1 << REPLICAS) - 1;
    const isWhole = () => this.present.every(({ id, plane }) => (plane.trustedMask | (1 << id)) === all);
    this.until('a return', () => lost.applied >= leader.applied && isWhole());
    this.now_ns += 2 * this.profile.takeoverTimeout_ns; // who was deposed stands back for no longer than that
  }

  private until(what: string, done: () => boolean): void {
    for (let tick = 0; !done(); tick++) {
      if (tick === SCENE_TICKS_MAX) {
        throw new QuorateError('QUORATE_INTERNAL', `rehearsal: ${what} did not come to pass in ${tick} ticks`);
      }
      this.tick();
    }
  }

  private tick(): void {
    this.now_ns += this.profile.tick_ns;
    for (const replica of this.replicas) if (replica.isPresent) replica.tick(this.now_ns);
  }
}
