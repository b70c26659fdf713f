// An operator of a simulated cluster who changes its membership and hands leadership over, at random, like a fault: asks
// whoever leads or believes so, whether or not it makes sense at that moment. It only takes care not to ask for what
// nobody could survive: a configuration whose voters have lost their memory already.
import { voterWithId } from '../consensus/configuration.js';
import type { MembershipChange } from '../consensus/membership.js';
import type { Random } from '../fabric/sim/random.js';
import type { SimWorld } from '../fabric/sim/sim-world.js';
import type { SimCluster } from './sim-cluster.js';
import type { SimLife } from './sim-life.js';

const PRIORITIES = 3;
const TRANSFER_TIMEOUT_MIN_NS = 1e6;
const TRANSFER_TIMEOUT_MAX_NS = 1e9;

export class SimOperator {
  constructor(
    private readonly world: SimWorld,
    private readonly cluster: SimCluster,
    private readonly random: Random,
  ) {}

  /** Asks a leader for a change. */
  change(): void {
    const life = this.someLeader();
    if (life === null) return;
    // Decided when it arrives: what is safe to ask for may have changed on the way.
    life.postToMain(() => {
      const change = this.draw(life);
      if (change !== null && this.isSurvivable(life, change)) life.changeMembership(change);
    });
  }

  /** As soon as somebody leads a cluster of one: takes in whoever is no member, and makes voters of learners. */
  grow(): void {
    const { cluster } = this;
    const life = cluster.leader();
    if (life === null) return;
    life.postToMain(() => {
      const { members } = life.replication.configuration;
      const learner = members.find(({ role }) => role === 'learner');
      const missing = cluster.lives.findIndex((_, id) => !members.some((member) => member.id === id));
      let change: MembershipChange;
      if (learner !== undefined) change = { kind: 'promote', id: learner.id };
      else if (missing < 0) return;
      else {
        if (cluster.lives[missing] === null) cluster.start(missing);
        change = { kind: 'addLearner', id: missing, host: 'sim', port: 1 + missing, priority: 0 };
      }
      if (this.isSurvivable(life, change)) life.changeMembership(change);
    });
  }

  /** Asks a leader to hand over, to a certain replica or to any. */
  transfer(): void {
    const life = this.someLeader();
    if (life === null) return;
    const to = this.random.chance(0.3) ? undefined : this.random.integer(this.cluster.options.replicas);
    const timeout_ns = this.random.logBetween(TRANSFER_TIMEOUT_MIN_NS, TRANSFER_TIMEOUT_MAX_NS);
    life.postToMain(() => life.transferLeadership(to, timeout_ns));
  }

  private someLeader(): SimLife | null {
    const lives = this.cluster.lives.filter((life): life is SimLife => life !== null);
    const candidates = lives.filter(({ replication }) => replication.role !== 'follower');
    return candidates.length === 0 ? null : this.random.pick(candidates);
  }

  private draw(life: SimLife): MembershipChange | null {
    const { random, cluster } = this;
    const { members, voters } = life.replication.configuration;
    const unlisted = cluster.lives.flatMap((_, id) => (members.some((member) => member.id === id) ? [] : [id]));
    const others = members.filter(({ role }) => role !== 'voter');
    const address = { host: 'sim', port: 1 + this.world.random.integer(60_000) };
    switch (random.integer(8)) {
      case 0:
      case 1: {
        if (unlisted.length === 0) return null;
        const id = random.pick(unlisted);
        if (cluster.lives[id] === null) cluster.start(id);
        const kind = random.chance(cluster.options.replaceAfter_ns > 0 ? 0.7 : 0.15) ? 'addSpare' : 'addLearner';
        return { kind, id, ...address, priority: random.integer(PRIORITIES) };
      }
      case 2:
      case 3:
      case 4: {
        if (others.length === 0) return null;
        const { id, role, host, port, priority } = random.pick(others);
        return role === 'spare' ? { kind: 'addLearner', id, host, port, priority } : { kind: 'promote', id };
      }
      case 5:
        return voters.length > 1 ? { kind: 'remove', id: random.pick(members).id } : null;
      case 6:
        return { kind: 'setPriority', id: random.pick(members).id, priority: random.integer(PRIORITIES) };
      default:
        return { kind: 'changeAddress', id: random.pick(members).id, ...address };
    }
  }

  private isSurvivable(life: SimLife, change: MembershipChange): boolean {
    const { cluster } = this;
    const { configuration } = life.replication;
    if (change.kind === 'remove' && voterWithId(configuration, change.id) !== undefined) {
      return cluster.keepsMajority(configuration.voters.filter(({ id }) => id !== change.id));
    }
    if (change.kind === 'promote') {
      const member = configuration.members.find(({ id }) => id === change.id);
      return member !== undefined && cluster.keepsMajority([...configuration.voters, member]);
    }
    return true;
  }
}
