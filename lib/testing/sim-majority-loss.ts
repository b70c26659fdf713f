// The loss of a majority for ever, and what an operator does about it: asks those that are left for the ends of their logs,
// ends all but the best of them, and forces a new cluster from that one, again and again until it is not refused any more.
// The rules are those of the code under test (consensus/fork.ts); what a host does around them is done here.
import { genesisConfiguration, majority, memberWithId } from '../consensus/configuration.js';
import type { ChainPosition } from '../consensus/entry.js';
import { forkPosition, forkRefusal, isBetterLog, type LogEnd } from '../consensus/fork.js';
import type { MembershipChange } from '../consensus/membership.js';
import type { Random } from '../fabric/sim/random.js';
import type { SimWorld } from '../fabric/sim/sim-world.js';
import type { CheckedCluster } from './checked-cluster.js';
import type { HeldLog } from './checkers/new-cluster.js';
import type { LogNode } from './log-tree.js';
import type { SimFork } from './sim-cluster.js';
import type { SimDisk } from './sim-disk.js';
import type { SimLife } from './sim-life.js';
import type { MajorityLossOptions, SimOptions } from './sim-options.js';
import type { StateSnapshot } from './sim-state-machine.js';

// Times at pace 1.

/** All that are lost are lost within this time. */
const BLOWS_WITHIN_NS = 50e6;
/** Between two attempts to force the new cluster. */
const RETRY_NS = 50e6;
/** Writing a new cluster to the disk of its survivor takes so long, at most. */
const STORE_MAX_NS = 100e6;
/** How often the survivors of durable replicas have lost power, too, and how often one does while it is forced. */
const POWER_LOSS_PROBABILITY = 0.5;
const DEATH_PROBABILITY = 0.3;

/** A change of the membership that changes nothing. */
function anyChange({ id, replication }: SimLife): MembershipChange {
  return { kind: 'setPriority', id, priority: memberWithId(replication.configuration, id)?.priority ?? 0 };
}

/** What a survivor says of its log. */
interface Survivor {
  readonly life: SimLife;
  readonly end: LogEnd;
  readonly held: HeldLog;
}

/** The new cluster, and what of the old one it has. */
export interface Forked {
  readonly fork: SimFork;
  /** The last entry of the old log that is part of the new cluster's state. */
  readonly tip: LogNode | null;
}

export class MajorityLoss {
  /** Once it has come to that. */
  forked: Forked | null = null;
  /**
   * Changes of the membership were on their way when the others died, and there is no cluster to be forced: they removed all
   * survivors, which have ended as no members; or the lost ones, and the survivors go on by themselves.
   */
  isOver = false;
  /** Why the last attempt was refused. */
  refusal = 'the survivors were not asked yet';

  constructor(
    private readonly world: SimWorld,
    private readonly checked: CheckedCluster,
    private readonly options: SimOptions,
    private readonly random: Random,
  ) {}

  /** All but a minority of the voters die at this moment, or nearly. False if there are too few voters for that. */
  strike(): boolean {
    const { world, random, options } = this;
    const { cluster } = this.checked;
    const { inForce, lives } = cluster;
    const isAlive = (id: number, bootId: number): boolean => lives[id]?.bootId === bootId;
    const voters = (inForce[0]?.voters ?? []).filter(({ id, bootId }) => isAlive(id, bootId));
    const survivors = new Set<number>();
    const areFew = (): boolean =>
      inForce.every((one) => one.voters.filter(({ id }) => survivors.has(id)).length < majority(one));
    const inRandomOrder = voters.map(({ id }) => ({ id, order: random.next() })).sort((a, b) => a.order - b.order);
    for (const { id } of inRandomOrder) {
      survivors.add(id);
      if (!areFew()) survivors.delete(id);
    }
    if (survivors.size === 0) return false;
    cluster.giveUp();
    world.trace('faults', `all but {${[...survivors].join(' ')}} are lost for ever`);
    for (const life of lives) {
      if (life === null || survivors.has(life.id)) continue;
      world.schedule(random.integer(BLOWS_WITHIN_NS * options.pace), () => {
        if (lives[life.id] === life) cluster.crash(life.id, options.disk !== null);
      });
    }
    if (options.disk !== null && random.chance(POWER_LOSS_PROBABILITY)) {
      world.schedule(BLOWS_WITHIN_NS * options.pace, () => {
        for (const id of survivors) this.startAgain(id);
      });
    }
    const { wait_ns } = options.majorityLoss as MajorityLossOptions;
    world.schedule(BLOWS_WITHIN_NS * options.pace + wait_ns, () => this.ask(survivors));
    return true;
  }

  /** The power of a survivor goes, and it comes back with what its disk holds. */
  private startAgain(id: number): SimLife | null {
    const { cluster } = this.checked;
    cluster.crash(id);
    cluster.startSurvivor(id);
    return cluster.lives[id] as SimLife | null;
  }

  /** Their status, each of its own moment. */
  private ask(asked: ReadonlySet<number>): void {
    const { cluster, newCluster } = this.checked;
    const lives = cluster.lives.filter((life): life is SimLife => life !== null);
    const survivors: Survivor[] = [];
    const isMember = (id: number): boolean => cluster.inForce.some((one) => memberWithId(one, id) !== undefined);
    this.isOver = lives.length === 0 && ![...asked].some(isMember);
    for (const life of lives) {
      life.postToMain(() => {
        const { tailEpoch, tailLsn } = life.replication;
        survivors.push({ life, end: { tailEpoch, tailLsn }, held: newCluster.held(life) });
        if (survivors.length < lives.length) return;
        const best = this.choose(survivors);
        const held = survivors.map((one) => one.held);
        this.world.schedule(0, () => {
          for (const other of lives) if (other !== best.life) cluster.crash(other.id);
          this.force(best.life, best.held, held);
        });
      });
    }
  }

  private choose(survivors: readonly Survivor[]): Survivor {
    return survivors.reduce((best, one) => (isBetterLog(one.end, best.end) ? one : best));
  }

  private force(life: SimLife, chosen: HeldLog, survivors: readonly HeldLog[]): void {
    const { world, options } = this;
    life.postToMain(() => {
      const { replication } = life;
      replication.poll(life.clock_ns());
      const refusal = forkRefusal(
        {
          id: life.id,
          bootId: life.bootId,
          leader: replication.leader < 0 ? undefined : replication.leader,
          isFollower: replication.role === 'follower',
          tailLsn: replication.tailLsn,
          configurations: [replication.configuration, replication.appliedConfiguration],
          isReachable: (id) =>
            (replication.trustedMask & (1 << id)) !== 0 || (id !== life.id && this.checked.cluster.lives[id] !== null),
        },
        false,
      );
      if (refusal === null) this.fork(life, chosen, survivors);
      else if (this.leadsMajority(life)) this.isOver = true;
      else {
        this.refusal = `${refusal.code}: ${refusal.why}`;
        // It leads and has had nothing to write since the others died, or no room for it: a change tells it that they did.
        if (replication.leader === life.id) life.changeMembership(anyChange(life));
        world.schedule(RETRY_NS * options.pace, () => this.force(life, chosen, survivors));
      }
    });
  }

  /** Those that live are enough to commit what it proposes, by the only configuration there is. */
  private leadsMajority({ id, replication }: SimLife): boolean {
    const { lives } = this.checked.cluster;
    const { configuration } = replication;
    const living = configuration.voters.filter((voter) => lives[voter.id]?.bootId === voter.bootId);
    const isOnlyOne = configuration === replication.appliedConfiguration;
    return replication.leader === id && isOnlyOne && living.length >= majority(configuration);
  }

  /** As Replica.forceNewCluster() does, in one turn. */
  private fork(life: SimLife, chosen: HeldLog, survivors: readonly HeldLog[]): void {
    const { world, checked, random } = this;
    const { cluster, newCluster, safety } = checked;
    const committed = safety.tip;
    // Whatever the log holds counts now: the invariants of the old cluster end with it.
    checked.silence();
    life.replication.commitWholeLog();
    const end = { ...life.replication.appliedPosition };
    const clusterId = 1 + random.integer(2 ** 31) * 2 ** 16;
    const priority = memberWithId(life.replication.configuration, life.id)?.priority ?? 0;
    const fork: SimFork = {
      disk: life.disk,
      genesis: genesisConfiguration(clusterId, [{ id: life.id, bootId: cluster.nextBootId(life.id), priority }]),
      position: this.position(end, life.replication.promisedEpoch, clusterId),
      state: this.stateOf(life),
      livesStarted: cluster.livesStarted,
    };
    life.trace(`a new cluster begins at LSN ${end.lsn}, with its state`);
    const forked = { fork, tip: newCluster.check(fork, end, chosen, survivors, committed) };
    world.schedule(0, () => {
      cluster.crash(life.id);
      if (fork.disk === null) this.forked = forked;
      else this.store(life.id, fork.disk, forked);
    });
  }

  /** Makes the disk that of the new cluster; the process may die before that, or behind it. */
  private store(id: number, disk: SimDisk, forked: Forked): void {
    const { world, random, options } = this;
    const { position, state, genesis } = forked.fork;
    const bootId = memberWithId(genesis, id)?.bootId as number;
    world.schedule(random.between(0, STORE_MAX_NS * options.pace), () => {
      const diesBefore = random.chance(DEATH_PROBABILITY);
      const refusal = disk.refusal(world.now_ns);
      if (diesBefore) this.dieBefore(forked.fork, disk);
      else if (refusal !== null) {
        this.refusal = refusal.message;
        this.store(id, disk, forked); // the state is in memory still
        return;
      } else {
        disk.become(genesis, bootId, { position, state, configuration: genesis, isDetached: true });
        if (random.chance(DEATH_PROBABILITY)) disk.loseSegments(random);
      }
      // Who starts it next finds out of which cluster it is.
      if (disk.bootId === bootId) this.forked = forked;
      else this.forceAgain(id);
    });
  }

  /** From what its disk holds: what only the memory held is gone. */
  private forceAgain(id: number): void {
    const life = this.startAgain(id);
    if (life === null) return; // a checker has said why
    const held = this.checked.newCluster.held(life);
    this.force(life, held, [held]);
  }

  /** A part of the state is on disk, and means nothing. */
  private dieBefore(_fork: SimFork, _disk: SimDisk): void {
    this.world.trace('faults', 'the process of the survivor dies before the new cluster is in force');
  }

  private stateOf(life: SimLife): StateSnapshot {
    return life.state.snapshot();
  }

  private position(end: ChainPosition, promisedEpoch: number, clusterId: number): ChainPosition {
    return forkPosition(end, promisedEpoch, clusterId);
  }
}
