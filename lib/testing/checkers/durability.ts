// Invariant 8: nothing that was acknowledged is lost while a majority keeps its memory. Whenever a leader has moved its
// commit forward, a majority of the voters of its configuration must hold the log up to there, in memory that can be
// looked at here; a voter that died since may have held it. And each follower that the leader counts on must hold what
// the leader believes it acknowledged, whether or not the majority needs it.
import { type Configuration, majority } from '../../consensus/configuration.js';
import type { ChainPosition } from '../../consensus/entry.js';
import { formatEpoch } from '../../consensus/epoch.js';
import { ancestorAt, type LogNode } from '../log-tree.js';
import type { SimCluster } from '../sim-cluster.js';
import type { SimDisk } from '../sim-disk.js';
import type { SimLife } from '../sim-life.js';
import type { CheckContext, Checker } from './checker.js';

/** Moves of the commit between two looks at the memory of the voters. */
const LOOK_EVERY = 8;
/** The same for disks, which takes longer. */
const LOOK_AT_DISKS_EVERY = 32;

export class DurabilityChecker implements Checker {
  readonly invariant = 'durability';
  private lastEpoch = 0;
  private lastLsn = 0;
  private moves = 0;
  looks = 0;

  constructor(private readonly context: CheckContext) {}

  afterMain(life: SimLife): void {
    const { replication } = life;
    const epoch = replication.leaderEpoch;
    if (epoch === 0 || (epoch === this.lastEpoch && replication.appliedLsn === this.lastLsn)) return;
    const isFirst = epoch !== this.lastEpoch;
    this.lastEpoch = epoch;
    this.lastLsn = replication.appliedLsn;
    if (!isFirst && ++this.moves % LOOK_EVERY !== 0) return;
    this.looks++;
    const position = replication.appliedPosition;
    const commit = this.context.tree.find(position.lsn, position.hashLow, position.hashHigh);
    if (commit === undefined) return; // reported by the state machine safety checker
    const cluster = this.context.cluster();
    const ownTip = this.tipOf(cluster, life) ?? null;
    for (let peer = 0; peer < cluster.options.replicas; peer++) this.checkAcknowledged(cluster, life, ownTip, peer);
    // The next configuration may have been appended since, in the same turn, behind what was committed without it.
    const { configuration, appliedConfiguration } = replication;
    if (cluster.options.disk !== null) {
      if (isFirst || this.moves % LOOK_AT_DISKS_EVERY === 0) this.checkDisks(cluster, life, commit);
      return;
    }
    const holders = this.holders(cluster, configuration, commit);
    if (holders >= majority(configuration)) return;
    if (this.holders(cluster, appliedConfiguration, commit) >= majority(appliedConfiguration)) return;
    this.context.world.fail(
      this.invariant,
      `${life.name} committed LSN ${commit.startLsn} in epoch ${formatEpoch(epoch)}; ` +
        `${holders} of ${configuration.voters.length} voters hold it`,
    );
  }

  /** Durable replicas: a majority of the voters must have it on disk, as it would be found if the power went now. */
  private checkDisks(cluster: SimCluster, life: SimLife, commit: LogNode): void {
    const { configuration, appliedConfiguration, leaderEpoch } = life.replication;
    const hold = ({ voters }: Configuration): number =>
      voters.filter(({ id, bootId }) => {
        const disk = cluster.disks[id];
        return disk?.bootId !== bootId || this.isOnDisk(disk, commit); // one that was lost since may have held it
      }).length;
    const onDisk = hold(configuration);
    if (onDisk >= majority(configuration) || hold(appliedConfiguration) >= majority(appliedConfiguration)) return;
    this.context.world.fail(
      this.invariant,
      `${life.name} committed LSN ${commit.startLsn} in epoch ${formatEpoch(leaderEpoch)}; ` +
        `${onDisk} of ${configuration.voters.length} voters have it on disk`,
    );
  }

  private isOnDisk(disk: SimDisk, commit: LogNode): boolean {
    let tail: ChainPosition;
    try {
      tail = disk.recover().tail;
    } catch (error) {
      this.context.world.fail(
        this.invariant,
        `the disk of life ${disk.bootId} cannot be read: ${(error as Error).message}`,
      );
      return false;
    }
    const { lsn, hashLow, hashHigh } = tail;
    const tip = this.context.tree.find(lsn, hashLow, hashHigh);
    return tip !== undefined && ancestorAt(tip, commit.endLsn) === commit;
  }

  private holders(cluster: SimCluster, { voters }: Configuration, commit: LogNode): number {
    let holders = 0;
    for (const voter of voters) {
      const life = cluster.lives[voter.id];
      if (life?.bootId !== voter.bootId || this.holds(cluster, life, commit)) holders++;
    }
    return holders;
  }

  private checkAcknowledged(cluster: SimCluster, life: SimLife, ownTip: LogNode | null, peer: number): void {
    const { replication } = life;
    const follower = cluster.lives[peer];
    // A log that was promised to a later leader is that leader's to change, the own one too, which may be before this
    // leader knows that it was deposed; a link to an earlier life says nothing.
    if (!follower || replication.peerPhase(peer) !== 'active') return;
    if (Math.max(follower.background.promised, life.background.promised) > replication.leaderEpoch) return;
    if (life.replicationFabric.linkTo(peer)?.responder !== follower.node) return;
    const ackedLsn = replication.peerAckedLsn(peer);
    // Acknowledged are bytes; the last entry that they complete is what must be there.
    const acknowledged = ancestorAt(ownTip, ackedLsn);
    if (acknowledged === null) return;
    const tip = this.tipOf(cluster, follower);
    if (tip !== undefined && ancestorAt(tip, acknowledged.endLsn) === acknowledged) return;
    this.context.world.fail(
      this.invariant,
      `${life.name} counts LSN ${acknowledged.startLsn} as held by ${follower.name}, whose log ends at ${tip?.endLsn ?? 0}`,
    );
  }

  /** The last entry that a replica's memory holds behind what it has applied; undefined if that is unknown. */
  private tipOf(cluster: SimCluster, life: SimLife): LogNode | null | undefined {
    const { tree } = this.context;
    const position = life.replication.appliedPosition;
    const applied = position.lsn === 0 ? null : tree.find(position.lsn, position.hashLow, position.hashHigh);
    if (applied === undefined) return undefined;
    return tree.walk(life.replicationFabric.logWords, cluster.options.logBytes, applied).at(-1) ?? applied;
  }

  /** The voter has applied the entry, or its log holds it behind what it has applied. */
  private holds(cluster: SimCluster, life: SimLife, commit: LogNode): boolean {
    const { tree } = this.context;
    const position = life.replication.appliedPosition;
    const applied = position.lsn === 0 ? null : tree.find(position.lsn, position.hashLow, position.hashHigh);
    if (applied === undefined) return false;
    if (applied !== null && applied.endLsn >= commit.endLsn) return ancestorAt(applied, commit.endLsn) === commit;
    return tree.walk(life.replicationFabric.logWords, cluster.options.logBytes, applied).includes(commit);
  }
}
