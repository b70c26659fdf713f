// A cluster of simulated replicas: starts and restarts their lives, makes and replaces their links, carries snapshots
// from the leader to those who need one. It is the host's part, with the same order of steps as the real one and with
// every step taking its own time, so that lives end, links break and leaders change between any two of them.
import { type Configuration, genesisConfiguration, memberWithId } from '../consensus/configuration.js';
import type { ChainPosition } from '../consensus/entry.js';
import { QuorateError } from '../errors.js';
import { Random } from '../fabric/sim/random.js';
import { SimLink, type SimLinkKind } from '../fabric/sim/sim-link.js';
import { SimNetwork } from '../fabric/sim/sim-network.js';
import type { SimWorld } from '../fabric/sim/sim-world.js';
import { SimDisk } from './sim-disk.js';
import { type ReadIndex, SimLife, type SimLifeEvents } from './sim-life.js';
import type { SimOptions } from './sim-options.js';
import type { StateSnapshot } from './sim-state-machine.js';
import { leaveBehind, type SimRegion, SimReturn } from './sim-survival.js';

// Times at pace 1.

/** A handshake that took longer is given up and begun again. */
const HANDSHAKE_TIMEOUT_NS = 500e6;
const SNAPSHOT_TRANSFER_MAX_NS = 20e6;
const SNAPSHOT_SLOW_PROBABILITY = 0.1;
const SNAPSHOT_SLOW_MAX_NS = 3e9;
const SNAPSHOT_RETRY_NS = 200e6;
const SNAPSHOT_TIMEOUT_NS = 1e9;
/** How long a cut control connection takes to come back once the cut has ended, at most. */
const RECONNECT_NS = 50e6;
const BOOT_IDS_PER_REPLICA = 1000;
/** A removed replica is told, and its links are kept for so long, that it may learn of it from its log, too. */
const REMOVED_GRACE_NS = 300e6;
/** A replica that learned of its removal closes within this time. */
const RETIRE_NS = 100e6;

/** What a host knows of its links to one peer. */
class PeerLinks {
  /** Process of the peer that the links lead to. */
  processId = 0;
  /** Process that the stream of messages goes to, also while there is no link. */
  messagesTo = 0;
  readonly generation = { probe: 0, log: 0, message: 0 };
  readonly live = { probe: false, log: false, message: false };
  /** Generation of the link that is being made, 0 if none is. */
  readonly making = { probe: 0, log: 0, message: 0 };
  isSnapshotUnderWay = false;
}

/** What a checker or a fault scheduler may be told; the cluster itself serves the rest of SimLifeEvents. */
export type SimClusterObserver = Omit<
  SimLifeEvents,
  | 'onPeerBroken'
  | 'onProbeBroken'
  | 'onMessageLinkBroken'
  | 'onLogLinkDead'
  | 'onSnapshotNeeded'
  | 'onConfiguration'
  | 'onConfigurationApplied'
  | 'onReadIndexWanted'
  | 'onDiskFailed'
> & {
  onStarted(life: SimLife): void;
  onCrashed(life: SimLife): void;
};

/** How a cluster begins that is forked off another one. */
export interface SimFork {
  /** Its only voter is the survivor, in a new life. */
  readonly genesis: Configuration;
  readonly position: ChainPosition;
  readonly state: StateSnapshot;
  /** Durable replicas: the survivor's, which is of the new cluster by now. */
  readonly disk: SimDisk | null;
  /** Lives of each replica in the old cluster. */
  readonly livesStarted: readonly number[];
}

export class SimCluster {
  readonly network: SimNetwork;
  /** The current life of each replica, null while it is down. */
  readonly lives: (SimLife | null)[];
  readonly genesis: Configuration;
  readonly random: Random;
  /** What each replica keeps while it is down; null where it has no disk, or lost it. */
  readonly disks: (SimDisk | null)[];
  readonly livesStarted: number[];
  private readonly linkTables = new Map<SimLife, PeerLinks[]>();
  private nextGeneration = 1;
  /** The latest committed configuration, and those that may yet follow it: majorities of all of them matter. */
  private committed: Configuration;
  private readonly pending = new Map<string, Configuration>();
  private readonly events: SimLifeEvents;
  /** What the last life of each replica left behind. */
  private readonly regions: (SimRegion | null)[];
  /** Its own, so that a run in which nothing has to survive is what it would be otherwise. */
  private readonly survivalRandom: Random | null;
  /** What becomes of writes that nobody had synced when the power went. */
  private readonly diskRandom: Random;
  /** Lives that came back by what the one before left, and those that could not. */
  returns = 0;
  returnsFailed = 0;
  /** Lives that stopped using their disks because a write failed. */
  diskFailures = 0;
  private isGivenUp = false;

  constructor(
    readonly world: SimWorld,
    readonly options: SimOptions,
    private readonly observer: SimClusterObserver,
    /** Null if it is founded with nothing. */
    private fork: SimFork | null = null,
  ) {
    this.random = world.random.fork();
    this.network = new SimNetwork(options.network, world.random);
    this.lives = new Array<SimLife | null>(options.replicas).fill(null);
    this.disks = new Array<SimDisk | null>(options.replicas).fill(null);
    this.livesStarted = fork === null ? new Array<number>(options.replicas).fill(0) : [...fork.livesStarted];
    this.genesis = fork?.genesis ?? this.found();
    this.committed = this.genesis;
    this.regions = new Array<SimRegion | null>(options.replicas).fill(null);
    this.diskRandom = new Random(this.genesis.clusterId);
    this.survivalRandom = options.regionSurvives > 0 ? new Random(this.genesis.clusterId) : null;
    this.events = Object.create(observer, {
      onPeerBroken: { value: (life: SimLife, peer: number) => this.broken(life, peer, 'log') },
      onProbeBroken: { value: (life: SimLife, peer: number) => this.broken(life, peer, 'probe') },
      onMessageLinkBroken: { value: (life: SimLife, peer: number) => this.broken(life, peer, 'message') },
      onLogLinkDead: {
        value: (life: SimLife, peer: number, generation: number) => this.logLinkDied(life, peer, generation),
      },
      onSnapshotNeeded: { value: (life: SimLife, peer: number) => this.sendSnapshot(life, peer) },
      onConfiguration: {
        value: (life: SimLife, configuration: Configuration) => this.configured(life, configuration),
      },
      onConfigurationApplied: {
        value: (life: SimLife, configuration: Configuration) => this.configurationApplied(life, configuration),
      },
      onRemoved: { value: (life: SimLife, reason: string) => this.removed(life, reason) },
      onDiskFailed: { value: (life: SimLife) => this.diskFailed(life) },
      onReadIndexWanted: {
        value: (life: SimLife, leader: number, answer: (index: ReadIndex) => void) =>
          this.askReadIndex(life, leader, answer),
      },
    }) as SimLifeEvents;
  }

  private found(): Configuration {
    const { founders, priorities } = this.options;
    return genesisConfiguration(
      1 + this.random.integer(2 ** 31) * 2 ** 16,
      Array.from({ length: founders }, (_, id) => ({
        id,
        bootId: this.bootIdOf(id, 1),
        priority: priorities[id] ?? 0,
      })),
    );
  }

  /** Of the life that a replica would begin now. */
  nextBootId(id: number): number {
    return this.bootIdOf(id, (this.livesStarted[id] as number) + 1);
  }

  private bootIdOf(id: number, life: number): number {
    return life * BOOT_IDS_PER_REPLICA + id;
  }

  startAll(): void {
    const { fork } = this;
    if (fork !== null) {
      for (const { id } of this.genesis.voters) {
        this.disks[id] = fork.disk;
        this.start(id);
      }
      return;
    }
    for (let id = 0; id < this.options.replicas; id++) this.start(id);
  }

  /** Starts the next life of a replica and links it with all others. */
  start(id: number): void {
    if (this.lives[id] !== null) throw new QuorateError('QUORATE_INVALID_ARGUMENT', `replica ${id} is up already`);
    if (this.isGivenUp) return;
    this.startSurvivor(id);
  }

  /** Starts the process of a replica that is down, even though the cluster is given up. */
  startSurvivor(id: number): void {
    const count = ++this.livesStarted[id]!;
    const processId = this.bootIdOf(id, count);
    const { world, network, genesis, committed, options, events } = this;
    if (options.disk !== null) this.disks[id] ??= new SimDisk(this.freshLife(id, processId), genesis);
    const disk = this.disks[id] as SimDisk | null;
    const bootId = disk?.bootId ?? processId;
    let life: SimLife;
    try {
      life = new SimLife(world, network, id, bootId, processId, disk, genesis, committed, options, events);
    } catch (error) {
      // Without anything on a disk only the options can be wrong, which is no finding.
      if (disk === null || !disk.isUsed) throw error;
      world.fail('recovery', `replica ${id} cannot start from its disk: ${(error as Error).message}`);
      return;
    }
    this.lives[id] = life;
    life.trace('starts');
    this.observer.onStarted(life);
    if (life.isRecovered) this.observer.onSnapshotInstalled(life);
    if (this.fork?.disk === null) life.installSnapshot(this.fork.position, genesis, this.fork.state);
    this.fork = null; // whoever starts later gets the state from others
    this.comeBack(life);
    for (const peer of this.lives) {
      if (peer === null || peer === life) continue;
      this.connect(life, peer);
      this.connect(peer, life);
    }
  }

  /** A life that has something left of the one before looks at that first; until it is done it links with nobody. */
  private comeBack(life: SimLife): void {
    const { regions, survivalRandom: random, world, network } = this;
    const region = regions[life.id];
    if (!region || random === null) return;
    regions[life.id] = null;
    life.isReturning = true;
    const coming = new SimReturn(life, region, {
      donors: () => this.lives.filter((one): one is SimLife => one !== null && one !== life),
      controlIsOpen: (one, other) => this.controlIsOpen(one, other),
      latency_ns: () => network.latency_ns(),
      giveUp_ns: HANDSHAKE_TIMEOUT_NS * this.options.pace,
      transfer_ns: () => random.between(0, SNAPSHOT_TRANSFER_MAX_NS * this.options.pace),
      over: (_life, position) => {
        life.isReturning = false;
        if (position === null) this.returnsFailed++;
        else this.returns++;
      },
    });
    world.schedule(network.latency_ns(), () => {
      if (life.alive) life.postToMain(() => coming.begin());
    });
  }

  /** The control connection from `life` to the peer comes up, as soon as nothing is in its way. */
  private connect(life: SimLife, peer: SimLife): void {
    this.world.schedule(this.random.integer(RECONNECT_NS * this.options.pace), () => {
      if (!life.alive || !peer.alive) return;
      const isOpen = this.controlIsOpen(life.id, peer.id) && !life.isReturning && !peer.isReturning;
      if (isOpen) life.postToMain(() => this.connected(life, peer));
      else this.connect(life, peer);
    });
  }

  /** The life of a replica whose disk is new: one that there never was. */
  private freshLife(_id: number, processId: number): number {
    return processId;
  }

  /** No process starts any more. */
  giveUp(): void {
    this.isGivenUp = true;
  }

  /** A replica that is durable comes back as the same life, unless its disk is lost, too. Its process ends, or its power does. */
  crash(id: number, losesDisk = false, losesPower = true): void {
    const life = this.lives[id];
    if (!life) return;
    this.lives[id] = null;
    const { survivalRandom } = this;
    if (survivalRandom?.chance(this.options.regionSurvives)) this.regions[id] = leaveBehind(life, survivalRandom);
    life.crash();
    this.disks[id]?.processEnded(this.random);
    if (losesPower) this.disks[id]?.powerLost(this.diskRandom);
    if (losesDisk) this.disks[id] = null;
    this.observer.onCrashed(life);
    for (const other of this.lives) {
      if (other !== null && this.random.chance(this.options.exitNoticeProbability)) this.noticeExit(other, life);
    }
    this.linkTables.delete(life);
  }

  /** Somebody sees the warning, and starts the process again on its disk, whether or not that is better by then. */
  private diskFailed(life: SimLife): void {
    this.diskFailures++;
    this.world.schedule(this.random.between(0.1, 1) * this.options.faults.restartDelayMax_ns, () => {
      if (this.lives[life.id] !== life || this.isGivenUp) return; // memory may be all that is left
      this.crash(life.id);
      this.start(life.id);
    });
  }

  /** The host of `life` sees that the process of the dead one has ended: for certain, or by its connection alone. */
  private noticeExit(life: SimLife, dead: SimLife): void {
    const isCertain = this.random.chance(0.5);
    this.world.schedule(this.network.latency_ns(), () => {
      if (!life.alive) return;
      life.postToBackground(() => {
        if (isCertain) life.backgroundFabric.noticeExit(dead.node);
        else life.background.peerDisconnected(dead.id);
      });
    });
  }

  /** Replicas that may crash now without a majority of the voters of any configuration in force losing its memory. */
  expendable(): number[] {
    return this.lives.flatMap((life, id) => {
      if (life === null) return [];
      return this.inForce.every(({ voters }) => this.keepsMajority(voters, id) && this.survivesReplacing(voters, id))
        ? [id]
        : [];
    });
  }

  /**
   * A leader that replaces who is gone may take any one of these voters out at this moment that it does not see: what one
   * more death does then is the same as if it had died before.
   */
  private survivesReplacing(voters: Configuration['voters'], without: number): boolean {
    if (this.options.replaceAfter_ns === 0) return true;
    const leaders = this.lives.filter((life) => life !== null && life.replication.role !== 'follower');
    const isSeen = (id: number): boolean =>
      leaders.every((life) => life?.id === id || ((life?.replication.trustedMask ?? 0) & (1 << id)) !== 0);
    return voters
      .filter(({ id }) => id !== without && !isSeen(id))
      .every((gone) =>
        this.keepsMajority(
          voters.filter((voter) => voter !== gone),
          without,
        ),
      );
  }

  /** A majority of these voters is up, in the lives that are meant, without the replica `without`. */
  keepsMajority(voters: Configuration['voters'], without = -1): boolean {
    const { lives, disks, options } = this;
    const holders = options.disk === null ? lives : disks;
    const kept = voters.filter(({ id, bootId }) => id !== without && holders[id]?.bootId === bootId);
    return kept.length > voters.length >> 1;
  }

  leader(): SimLife | null {
    let best: SimLife | null = null;
    for (const life of this.lives) {
      if (life === null || life.replication.role !== 'leader') continue;
      if (best === null || life.replication.leaderEpoch > best.replication.leaderEpoch) best = life;
    }
    return best;
  }

  /** Why the cluster has not converged: one leader, everybody a voter in the current life, all logs applied alike. */
  notConverged(): string | null {
    const leader = this.leader();
    if (leader === null) return 'there is no leader';
    const { replication } = leader;
    if (replication.appliedLsn !== replication.tailLsn) return `${leader.name} has not applied its log`;
    if (replication.appliedConfiguration.version !== replication.configuration.version) {
      return 'a configuration is not committed';
    }
    for (const { id, bootId, role, returning } of replication.configuration.members) {
      const life = this.lives[id];
      if (!life) return `replica ${id} is down`;
      if (life.bootId !== bootId) return `${life.name} is not a member in this life`;
      if (returning) return `${life.name} is not a voter again`;
      if (role !== 'spare' && life.replication.appliedLsn !== replication.appliedLsn) {
        return `${life.name} has applied LSN ${life.replication.appliedLsn}, the leader ${replication.appliedLsn}`;
      }
    }
    for (const life of this.lives) {
      if (life === null || life === leader) continue;
      if (life.replication.role !== 'follower') return `${life.name} is ${life.replication.role}`;
    }
    return null;
  }

  /** Lives that the leader's configuration lists as voters or learners: those that get its log. */
  holders(): SimLife[] {
    const configuration = this.leader()?.replication.configuration;
    return (configuration?.members ?? []).flatMap(({ id, bootId, role }) => {
      const life = this.lives[id];
      return role !== 'spare' && life?.bootId === bootId ? [life as SimLife] : [];
    });
  }

  /** The latest committed configuration, and those that may yet follow it. */
  get inForce(): readonly Configuration[] {
    return [this.committed, ...this.pending.values()];
  }

  get committedVersion(): number {
    return this.committed.version;
  }

  // -- configurations ----------------------------------------------------------------------------------------------

  private configured(life: SimLife, configuration: Configuration): void {
    if (configuration.version > this.committed.version) {
      this.pending.set(JSON.stringify(configuration), configuration);
    }
    // The constructor of a life tells of its first configuration, before the life is known here.
    if (this.lives[life.id] === life) this.linkMembers(life);
  }

  private linkMembers(life: SimLife): void {
    life.postToMain(() => {
      for (const peer of this.lives) {
        if (peer === null || peer === life || !this.mayLink(life, peer.id)) continue;
        if (peer.isReturning || life.isReturning) continue; // they are connected when that is over
        // Also to a life that was linked before: while it was no member nobody saw to a link that broke.
        if (this.links(life, peer.id).processId === peer.processId) this.connected(life, peer);
        else this.connect(life, peer);
      }
    });
  }

  private configurationApplied(life: SimLife, configuration: Configuration): void {
    this.linkMembers(life);
    if (configuration.version > this.committed.version) {
      this.committed = configuration;
      for (const [key, { version }] of this.pending) if (version <= configuration.version) this.pending.delete(key);
    }
    for (const peer of this.lives) {
      if (peer === null || peer === life || this.links(life, peer.id).processId === 0) continue;
      const isMember = this.mayLink(life, peer.id);
      // A spare has no log to learn from, and who was removed may get nothing any more.
      if (!isMember || memberWithId(configuration, peer.id)?.role === 'spare') this.tell(life, peer, configuration);
      if (isMember) continue;
      this.world.schedule(REMOVED_GRACE_NS, () => {
        if (!life.alive) return;
        life.postToMain(() => {
          if (this.mayLink(life, peer.id)) return;
          for (const kind of this.kinds) this.drop(life, peer.id, kind);
          this.links(life, peer.id).processId = 0;
        });
      });
    }
  }

  private tell(life: SimLife, peer: SimLife, configuration: Configuration): void {
    const { world, network } = this;
    if (!life.alive || !peer.alive) return;
    if (!this.controlIsOpen(life.id, peer.id)) {
      world.schedule(RECONNECT_NS, () => this.tell(life, peer, configuration));
      return;
    }
    world.schedule(network.latency_ns(), () => {
      if (peer.alive) peer.postToMain(() => peer.hearOf(configuration));
    });
  }

  private removed(life: SimLife, reason: string): void {
    this.observer.onRemoved(life, reason);
    this.world.schedule(this.random.integer(RETIRE_NS), () => {
      if (this.lives[life.id] !== life) return;
      this.crash(life.id, true);
      // It was added again before it knew that it had been removed: whoever added it starts it for that.
      const isWanted = this.inForce.some((one) => memberWithId(one, life.id) !== undefined);
      if (isWanted) this.start(life.id);
    });
  }

  /** Members link with members. Who is none, or does not know it yet, links with whoever accepts it. */
  private mayLink(life: SimLife, peer: number): boolean {
    const { configuration } = life.replication;
    const lists = (id: number): boolean =>
      memberWithId(configuration, id) !== undefined || memberWithId(life.known, id) !== undefined;
    return lists(peer) || !lists(life.id);
  }

  // -- links -------------------------------------------------------------------------------------------------------

  /** The control connection works in both directions, or the replicas cannot agree on anything. */
  private controlIsOpen(one: number, other: number): boolean {
    return this.network.connected(one, other) && this.network.connected(other, one);
  }

  private links(life: SimLife, peer: number): PeerLinks {
    let table = this.linkTables.get(life);
    if (table === undefined) {
      table = Array.from({ length: this.options.replicas }, () => new PeerLinks());
      this.linkTables.set(life, table);
    }
    return table[peer] as PeerLinks;
  }

  /** The control channel reaches a peer, which may be in another life than the links lead to. Main plane. */
  private connected(life: SimLife, peer: SimLife): void {
    if (!this.mayLink(life, peer.id)) return;
    const links = this.links(life, peer.id);
    if (links.processId !== peer.processId) {
      links.processId = peer.processId;
      for (const kind of this.kinds) this.drop(life, peer.id, kind);
      if (links.messagesTo !== peer.processId) life.messages.restart(peer.id);
      links.messagesTo = peer.processId;
    }
    for (const kind of this.kinds) this.ensure(life, peer.id, kind);
  }

  private get kinds(): readonly SimLinkKind[] {
    return this.options.forwarding > 0 ? ['probe', 'log', 'message'] : ['probe', 'log'];
  }

  /** A link was found broken: it is replaced. Not inside the plane's own call, which reported it. */
  private broken(life: SimLife, peer: number, kind: SimLinkKind): void {
    const generation = this.links(life, peer).generation[kind];
    life.postToMain(() => {
      if (this.links(life, peer).generation[kind] !== generation) return;
      this.drop(life, peer, kind);
      this.ensure(life, peer, kind);
    });
  }

  /** The responder's end of a log link is dead: its initiator is told, for as long as it takes to reach it. */
  private logLinkDied(responder: SimLife, initiator: number, generation: number): void {
    const { world, network } = this;
    const tell = (): void => {
      const life = this.lives[initiator];
      if (!responder.alive || !life) return; // a new life makes new links
      if (!this.controlIsOpen(responder.id, initiator)) {
        world.schedule(RECONNECT_NS * this.options.pace, tell);
        return;
      }
      world.schedule(network.latency_ns(), () => {
        if (!life.alive) return;
        const links = this.links(life, responder.id);
        if (links.live.log && links.generation.log === generation) this.broken(life, responder.id, 'log');
      });
    };
    tell();
  }

  private drop(life: SimLife, peer: number, kind: SimLinkKind): void {
    const links = this.links(life, peer);
    if (!links.live[kind]) return;
    links.live[kind] = false;
    if (kind === 'probe') {
      life.postToBackground(() => life.backgroundFabric.setProbe(peer, null));
      return;
    }
    if (kind === 'message') {
      life.messages.remove(peer);
      return;
    }
    life.postToBackground(() => life.backgroundFabric.setOutgoingLogGeneration(peer, 0));
    life.replicationFabric.setPeer(peer, null);
    life.replication.peerUnlinked(peer);
  }

  private ensure(life: SimLife, peer: number, kind: SimLinkKind): void {
    const links = this.links(life, peer);
    if (links.live[kind] || links.making[kind] !== 0) return;
    const { world, network } = this;
    const generation = this.nextGeneration++;
    links.making[kind] = generation;
    const stream = kind === 'message' ? life.messages.streamTo(peer) : 0;
    const isCurrent = (): boolean => life.alive && links.making[kind] === generation;
    const again = (): void => {
      if (!isCurrent()) return;
      links.making[kind] = 0;
      if (this.mayLink(life, peer)) this.ensure(life, peer, kind);
    };
    world.schedule(this.random.between(0.2, 1) * this.options.relinkDelayMax_ns, () => {
      if (!isCurrent()) return;
      const target = this.lives[peer];
      if (!target || target.isReturning || !this.controlIsOpen(life.id, peer)) {
        again();
        return;
      }
      if (!this.mayLink(target, life.id)) {
        // It may have missed how this one became a member, and have nobody to learn it from.
        if (memberWithId(life.known, life.id) !== undefined) this.tell(life, target, life.known);
        again();
        return;
      }
      world.schedule(HANDSHAKE_TIMEOUT_NS * this.options.pace, again);
      target.postToMain(() => {
        if (!isCurrent()) return;
        const link = new SimLink(kind, generation, life.node, target.node);
        if (kind === 'log') target.postToBackground(() => target.node.setIncomingLog(life.id, link));
        const position = kind === 'message' ? target.messages.accept(life.id, link, stream) : null;
        if (!this.controlIsOpen(life.id, peer)) return; // the answer is lost
        world.schedule(network.latency_ns(), () => {
          if (!isCurrent()) return;
          life.postToMain(() => {
            if (!isCurrent()) return;
            links.making[kind] = 0;
            const isWanted = links.processId === target.processId;
            if (isWanted && kind === 'message' && !life.messages.install(peer, link, stream, position)) again();
            else if (isWanted) this.install(life, target, kind, link);
            else this.ensure(life, peer, kind);
          });
        });
      });
    });
  }

  private install(life: SimLife, peer: SimLife, kind: SimLinkKind, link: SimLink): void {
    life.trace(`${kind} link ${link.generation} to ${peer.name}`);
    const links = this.links(life, peer.id);
    links.generation[kind] = link.generation;
    links.live[kind] = true;
    if (kind === 'probe') {
      life.postToBackground(() => life.backgroundFabric.setProbe(peer.id, link));
      return;
    }
    if (kind === 'message') return;
    life.replicationFabric.setPeer(peer.id, link);
    life.replication.peerLinked(peer.id, peer.bootId, peer.processId);
    life.postToBackground(() => life.backgroundFabric.setOutgoingLogGeneration(peer.id, link.generation));
  }

  // -- reads at followers ------------------------------------------------------------------------------------------

  /** Over the control connection; a question or an answer that is lost on the way is asked again by the client. */
  private askReadIndex(life: SimLife, leader: number, answer: (index: ReadIndex) => void): void {
    const { world, network } = this;
    const target = this.lives[leader];
    if (!target || !this.controlIsOpen(life.id, leader)) return;
    world.schedule(network.latency_ns(), () => {
      if (!target.alive) return;
      target.serveReadIndex((index) => {
        if (!this.controlIsOpen(life.id, leader)) return;
        world.schedule(network.latency_ns(), () => {
          if (life.alive) life.postToMain(() => answer(index));
        });
      });
    });
  }

  // -- snapshots ---------------------------------------------------------------------------------------------------

  /**
   * Has the peer get a snapshot from a follower, or from the leader itself if there is no other; whether or not it
   * arrived, the peer's permission is asked for again afterwards.
   */
  private sendSnapshot(life: SimLife, peer: number): void {
    const links = this.links(life, peer);
    if (links.isSnapshotUnderWay) return;
    links.isSnapshotUnderWay = true;
    const { world } = this;
    const finish = (delay_ns: number): void => {
      world.schedule(delay_ns, () => {
        if (!life.alive) return;
        life.postToMain(() => {
          if (!links.isSnapshotUnderWay) return;
          links.isSnapshotUnderWay = false;
          life.replication.peerInstalledSnapshot(peer);
        });
      });
    };
    life.postToMain(() => {
      if (life.replication.role === 'follower') {
        links.isSnapshotUnderWay = false;
        return;
      }
      const target = this.lives[peer];
      if (!target || !this.controlIsOpen(life.id, peer)) {
        finish(SNAPSHOT_RETRY_NS * this.options.pace);
        return;
      }
      const minLsn = life.replication.beginSnapshot(peer);
      const donors = life.replication.snapshotDonors(peer);
      finish(SNAPSHOT_TIMEOUT_NS * this.options.pace);
      this.pullSnapshot(life, target, donors, minLsn, () => finish(this.network.latency_ns()));
    });
  }

  /** The first donor that can be reached, holds enough and lives until it has given everything. */
  private pullSnapshot(
    life: SimLife,
    target: SimLife,
    [first, ...others]: readonly number[],
    minLsn: number,
    done: () => void,
  ): void {
    const { world, network } = this;
    if (first === undefined || !target.alive) return;
    const next = (): void => this.pullSnapshot(life, target, others, minLsn, done);
    const donor = this.lives[first];
    if (!donor || !this.controlIsOpen(first, target.id)) {
      next();
      return;
    }
    world.schedule(donor === life ? 0 : network.latency_ns(), () => {
      if (!donor.alive) {
        next();
        return;
      }
      donor.postToMain(() => {
        const { position, configuration } = donor.replication.snapshotPlace;
        if (position.lsn < minLsn) {
          next();
          return;
        }
        donor.trace(`gives ${target.name} a snapshot at LSN ${position.lsn}`);
        const state = donor.state.snapshot();
        if (life.alive) life.postToMain(() => life.replication.snapshotKnown(target.id, position.lsn));
        // A large state, or a slow receiver: by then the leader may have ordered another one, which arrives before.
        const isSlow = this.random.chance(SNAPSHOT_SLOW_PROBABILITY);
        const max_ns = isSlow ? SNAPSHOT_SLOW_MAX_NS : SNAPSHOT_TRANSFER_MAX_NS;
        const transfer_ns = this.random.between(0, max_ns * this.options.pace);
        world.schedule(network.latency_ns() + transfer_ns, () => {
          if (!target.alive) return;
          if (!donor.alive || !this.controlIsOpen(first, target.id)) {
            next();
            return;
          }
          target.postToMain(() => {
            if (target.replication.isSnapshotNews(position)) target.installSnapshot(position, configuration, state);
            if (this.controlIsOpen(life.id, target.id)) done();
          });
        });
      });
    });
  }
}
