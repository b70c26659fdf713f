// Faults, drawn from the seed: which kinds, how often, how long, and whom they hit (the leader more often than others,
// where a run is so inclined). What they may do is bounded by what the protocol promises: of the voters of every
// configuration in force a majority keeps its memory.
import type { Random } from '../fabric/sim/random.js';
import type { SimWorld } from '../fabric/sim/sim-world.js';
import type { SimCluster } from './sim-cluster.js';
import type { SimLife } from './sim-life.js';
import { SimOperator } from './sim-operator.js';
import type { FaultRates, SimOptions } from './sim-options.js';

type FaultKind = keyof FaultRates['weights'];

export class FaultScheduler {
  readonly injected: Record<FaultKind, number> = {
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
  };
  private readonly random: Random;
  private isStopped = false;
  private readonly total: number;
  readonly operator: SimOperator;

  constructor(
    private readonly world: SimWorld,
    private readonly cluster: SimCluster,
    private readonly options: SimOptions,
  ) {
    this.random = world.random.fork();
    this.operator = new SimOperator(world, cluster, this.random);
    this.total = Object.values(options.faults.weights).reduce((sum, weight) => sum + weight, 0);
    if (this.total > 0) this.scheduleNext();
  }

  /** Faults that were injected, of all kinds. */
  get count(): number {
    return Object.values(this.injected).reduce((sum, one) => sum + one, 0);
  }

  /** Nothing more happens; what has happened stays as it is. */
  halt(): void {
    this.isStopped = true;
  }

  /** Everything is healed: partitions end, stopped processes continue, dead replicas start again, disks have room. */
  stop(): void {
    this.isStopped = true;
    const { cluster, world } = this;
    cluster.network.healAll();
    for (const disk of cluster.disks) {
      if (disk === null) continue;
      disk.failsOnce = false;
      disk.fullUntil_ns = 0;
    }
    for (const [id, life] of cluster.lives.entries()) {
      if (life === null) cluster.start(id);
      else {
        life.pausedUntil_ns = 0;
        life.mainStalledUntil_ns = 0;
        life.backgroundStalledUntil_ns = 0;
      }
    }
    world.trace('faults', 'end');
  }

  private scheduleNext(): void {
    const { random, world, options } = this;
    // Exponentially distributed: faults cluster, and sometimes leave the cluster alone for long.
    world.schedule(-Math.log(1 - random.next()) * options.faults.interval_ns, () => {
      if (this.isStopped) return;
      this.inject(this.draw());
      this.scheduleNext();
    });
  }

  private draw(): FaultKind {
    const { weights } = this.options.faults;
    let rest = this.random.next() * this.total;
    for (const [kind, weight] of Object.entries(weights) as [FaultKind, number][]) {
      rest -= weight;
      if (rest < 0) return kind;
    }
    return 'pause';
  }

  private duration_ns(): number {
    const { durationMin_ns, durationMax_ns } = this.options.faults;
    return this.random.logBetween(durationMin_ns, durationMax_ns);
  }

  private victim(): SimLife | null {
    const { cluster, random, options } = this;
    const leader = cluster.leader();
    if (leader !== null && random.chance(options.faults.leaderBias)) return leader;
    return cluster.lives[random.integer(options.replicas)] as SimLife | null;
  }

  private inject(kind: FaultKind): void {
    const { world, cluster, random, options } = this;
    const life = this.victim();
    const duration_ns = this.duration_ns();
    const milliseconds = `${(duration_ns / 1e6).toFixed(1)} ms`;
    if (kind === 'powerLoss') {
      this.losePower();
      return;
    }
    if (kind === 'diskFailure') {
      if (life !== null) this.failDisk(life, duration_ns);
      return;
    }
    if (kind === 'crash' && options.disk !== null && !random.chance(options.disk.diskLossProbability)) {
      if (life === null) return;
      this.injected.crash++;
      this.crashForAWhile(life.id, false);
      return;
    }
    if (kind === 'crash') {
      const expendable = cluster.expendable();
      if (expendable.length === 0) return;
      const id = life !== null && expendable.includes(life.id) ? life.id : random.pick(expendable);
      this.injected.crash++;
      this.crashForAWhile(id, true);
      return;
    }
    if (kind === 'membership' || kind === 'transfer') {
      this.injected[kind]++;
      if (kind === 'membership') this.operator.change();
      else this.operator.transfer();
      return;
    }
    if (kind === 'slowNetwork') {
      this.injected.slowNetwork++;
      const factor = random.logBetween(2, 20);
      world.trace('faults', `network ${factor.toFixed(1)} times slower for ${milliseconds}`);
      cluster.network.latencyFactor = factor;
      world.schedule(duration_ns, () => {
        cluster.network.latencyFactor = 1;
      });
      return;
    }
    if (life === null) return;
    this.injected[kind]++;
    if (kind === 'pause') {
      life.trace(`stopped for ${milliseconds}`);
      life.pausedUntil_ns = Math.max(life.pausedUntil_ns, world.now_ns + duration_ns);
    } else if (kind === 'stallMain') {
      life.trace(`main plane stalled for ${milliseconds}`);
      life.mainStalledUntil_ns = world.now_ns + duration_ns;
    } else if (kind === 'stallBackground') {
      life.trace(`background plane stalled for ${milliseconds}`);
      life.backgroundStalledUntil_ns = world.now_ns + duration_ns;
    } else if (kind === 'breakLink') {
      const peer = random.integer(options.replicas);
      const link = random.chance(0.7) ? life.replicationFabric.linkTo(peer) : life.backgroundFabric.probeTo(peer);
      if (link !== null) {
        life.trace(`${link.kind} link ${link.generation} to r${peer} breaks`);
        link.break();
      }
    } else if (kind === 'oneWayCut') {
      const peer = random.integer(options.replicas);
      if (peer === life.id) return;
      const [from, to] = random.chance(0.5) ? [life.id, peer] : [peer, life.id];
      this.cut([[from, to]], duration_ns, `r${from} cannot reach r${to} for ${milliseconds}`);
    } else {
      // The victim and perhaps others on one side, the rest on the other.
      const side = new Set([life.id]);
      for (let id = 0; id < options.replicas; id++) if (random.chance(0.3)) side.add(id);
      const cuts: [number, number][] = [];
      for (let one = 0; one < options.replicas; one++) {
        for (let other = 0; other < options.replicas; other++) {
          if (side.has(one) !== side.has(other)) cuts.push([one, other]);
        }
      }
      this.cut(cuts, duration_ns, `partition {${[...side].join(' ')}} from the rest for ${milliseconds}`);
    }
  }

  private crashForAWhile(id: number, losesDisk: boolean, losesPower = false): void {
    const { world, cluster, random, options } = this;
    cluster.crash(id, losesDisk, losesPower);
    world.schedule(random.logBetween(1e6 * options.pace, options.faults.restartDelayMax_ns), () => {
      if (cluster.lives[id] === null) cluster.start(id);
    });
  }

  /** All replicas, or all but some, lose power at this moment, and keep their disks. */
  private losePower(): void {
    const { world, cluster, random } = this;
    if (cluster.options.disk === null) return;
    this.injected.powerLoss++;
    world.trace('faults', 'the power goes');
    const isTotal = random.chance(0.7);
    for (const life of cluster.lives) {
      if (life !== null && (isTotal || random.chance(0.7))) this.crashForAWhile(life.id, false, true);
    }
  }

  /** One write fails, or all do for a while. */
  private failDisk(life: SimLife, duration_ns: number): void {
    const { world, random } = this;
    if (life.disk === null) return;
    this.injected.diskFailure++;
    if (random.chance(0.5)) {
      life.trace('the next write to its disk fails');
      life.disk.failsOnce = true;
    } else {
      life.trace(`its disk is full for ${(duration_ns / 1e6).toFixed(1)} ms`);
      life.disk.fullUntil_ns = world.now_ns + duration_ns;
    }
  }

  private cut(pairs: readonly [number, number][], duration_ns: number, text: string): void {
    const { world, cluster } = this;
    world.trace('faults', text);
    for (const [from, to] of pairs) cluster.network.setCut(from, to, true);
    world.schedule(duration_ns, () => {
      // May end a cut that another fault made later; what matters is that none is for ever.
      for (const [from, to] of pairs) cluster.network.setCut(from, to, false);
    });
  }
}
