// Does the damage: draws faults, hits replicas with them, and heals what it hit. What it may do is bounded by what the
// protocol promises. Of the voters of the configuration in force a majority keeps its memory, or its disks if they are
// durable: a replica loses them only when all of them are voters and agree on the configuration. And at most a minority is
// down at a time, but for short pauses of a majority, and the loss of all power, in which nothing can be committed and
// nothing may be lost.
import { setTimeout as sleepFor } from 'node:timers/promises';
import type { Random } from '../../fabric/sim/random.js';
import { type Cluster, compareEpochs, type ReplicaProcess } from '../demo/cluster.js';
import { DemoError } from '../demo/deadline.js';
import { type FromReplica, monotonic_ns, type OperatorWish } from '../demo/messages.js';
import type { Disks } from './disks.js';
import type { LeaderLog } from './leader-log.js';
import type { Network } from './network.js';
import type { Shortage } from './scarce-memory.js';
import { describePhase, drawKind, drawPhase, type FaultKind, type Phase, type Scale } from './swarm.js';

/** Most queue pairs broken at once. */
const BROKEN_LINKS_MAX = 6;
/** A recovery that takes longer is written down. */
const NOTED_MS = 500;
/** Most faults that are written down, for the file of a violation. */
const JOURNAL_MAX = 20_000;
const DEGRADED_DELAY_MS: readonly [number, number] = [0.2, 20];
const DEGRADED_LOSS_PERCENT_MAX = 10;
/** Starts of a killed replica, the memory being there, before its failure counts. */
const RESTARTS_MAX = 5;
/** Operations between the last of the other faults and the power loss at the end, so that there is something to lose. */
const OPERATIONS_BEFORE_LAST_LOSS = 200;
/** Part of the log that is there after a power loss, or the cluster has begun anew. */
const LOG_KEPT_MIN = 0.5;
/** Power losses that come on top of another fault. */
const AMIDST_PROBABILITY = 0.6;
/** Election priorities that are given: 0 and up. */
const PRIORITIES = 3;
/** How often the room that a disk has by then is taken. */
const STOP_INTERVAL_MS = 50;
/** What a replica may call a disk that stopped. A device without room tells the first write that it has none, and all others that it fails. */
const DISK_CODES = {
  diskFull: ['QUORATE_DISK_FULL'],
  diskFailure: ['QUORATE_DISK_FAILED', 'QUORATE_DISK_FULL'],
} as const satisfies Partial<Record<FaultKind, readonly string[]>>;
const NO_LEADER = 'there being no leader';
const NO_ANSWER = 'no answer';

export interface FaultOptions {
  readonly cluster: Cluster;
  readonly leaders: LeaderLog;
  readonly random: Random;
  readonly kinds: readonly FaultKind[];
  readonly scale: Scale;
  readonly network: Network | undefined;
  readonly shortage: Shortage | undefined;
  /** Of durable replicas. */
  readonly disks: Disks | undefined;
  /** Until all replicas are voters again with nothing else in the way; after a power loss, until one of them serves. */
  readonly recoveryTimeoutMs: number;
  /** What clients have been answered so far. */
  readonly operations: () => number;
  /** Say everything that is written down. */
  readonly verbose: boolean;
  readonly say: (line: string) => void;
}

export interface JournalEntry {
  readonly at_ns: number;
  readonly text: string;
}

/** Where a replica that was removed is on its way back. */
interface FormerLife {
  /** Its last process. */
  process: ReplicaProcess;
  /** Whether nothing is left of it, on disk either. */
  isGone: boolean;
}

export class Faults {
  readonly injected = new Map<FaultKind, number>();
  readonly journal: JournalEntry[] = [];
  /** Codes with which replicas failed to start under a shortage of memory. */
  readonly shortageCodes = new Map<string, number>();
  /** From the start of the processes after a power loss to the first commit, where no other loss came in between. */
  readonly returnsUs: number[] = [];
  private readonly impaired = new Set<number>();
  /** Replicas whose next process is the business of a fault that is under way. */
  private readonly away = new Set<number>();
  /** A start is under way for which there may be no memory. */
  private isMemoryScarce = false;
  private powerLosses = 0;
  private readonly healing = new Set<Promise<void>>();
  private readonly calm = new AbortController();
  private failure: Error | undefined;
  private wishes = 0;
  private readonly start_ns = monotonic_ns();

  constructor(private readonly options: FaultOptions) {}

  /** Injects faults until the time is over or `signal` says so, then heals everything. */
  async run(durationMs: number, signal: AbortSignal): Promise<void> {
    const { random, kinds, scale } = this.options;
    const end_ns = monotonic_ns() + durationMs * 1e6;
    signal.addEventListener('abort', () => this.calm.abort(), { once: true });
    const timer = setTimeout(() => this.calm.abort(), durationMs);
    try {
      while (!this.isOver(end_ns)) {
        const phase = drawPhase(random, kinds, scale);
        this.note(`phase: ${describePhase(phase)}`, true);
        const phaseEnd_ns = Math.min(end_ns, monotonic_ns() + scale.phaseMs * 1e6);
        while (!this.isOver(phaseEnd_ns)) {
          await this.sleep(-Math.log(1 - random.next()) * phase.intervalMs);
          if (this.isOver(phaseEnd_ns)) break;
          if (random.chance(phase.patience)) await this.settled();
          await this.inject(drawKind(random, phase), phase);
        }
      }
    } finally {
      clearTimeout(timer);
      this.calm.abort();
    }
    while (this.healing.size > 0) await Promise.race(this.healing);
    this.goOn();
    if (kinds.includes('powerLoss') && !signal.aborted) {
      // At last everything has to come back from the disks, and on a slow machine there is little so far.
      await this.settled();
      const { operations } = this.options;
      const enough = operations() + OPERATIONS_BEFORE_LAST_LOSS;
      await this.within('what clients do while all is well', () => (operations() >= enough ? true : undefined));
      await this.losePower();
    }
    this.note('all is healed', true);
  }

  /** The run has failed: nothing is started again, or this process would not end. */
  giveUp(): void {
    this.failure ??= new DemoError('the run has ended');
  }

  /** Once a fault has failed the run has, and nobody waits for the others. */
  private goOn(): void {
    if (this.failure !== undefined) throw this.failure;
  }

  private isOver(end_ns: number): boolean {
    this.goOn();
    return this.calm.signal.aborted || monotonic_ns() >= end_ns;
  }

  private note(text: string, aloud = false): void {
    if (this.journal.length < JOURNAL_MAX) this.journal.push({ at_ns: monotonic_ns(), text });
    if (aloud || this.options.verbose)
      this.options.say(`${((monotonic_ns() - this.start_ns) / 1e9).toFixed(3)} s  ${text}`);
  }

  /** Sleeps for so long, or until the calm begins. */
  private async sleep(durationMs: number): Promise<void> {
    const { signal } = this.calm;
    await sleepFor(durationMs, undefined, { signal }).catch(() => {});
  }

  // -- what the cluster is like ------------------------------------------------------------------------------------

  /** All replicas are voters, agree on the configuration, and one of them leads. */
  private isSettled(): boolean {
    const { cluster } = this.options;
    const { leader, replicas } = cluster;
    if (leader === undefined || leader.state !== 'open') return false;
    const version = leader.status?.configurationVersion;
    return replicas.every(
      ({ state, status }) =>
        state === 'open' &&
        status !== undefined &&
        status.isVoter &&
        status.voters.length === replicas.length &&
        status.configurationVersion === version,
    );
  }

  /** Waits until it is, after what is being healed is healed. */
  async settled(): Promise<void> {
    while (this.healing.size > 0) await Promise.race(this.healing);
    const since_ns = monotonic_ns();
    await this.within('all replicas to be voters of one leader', () => (this.isSettled() ? true : undefined));
    const tookMs = (monotonic_ns() - since_ns) / 1e6;
    if (tookMs > NOTED_MS) this.note(`  all replicas were voters of one leader again after ${tookMs.toFixed(0)} ms`);
  }

  private async within<T>(what: string, condition: () => T | undefined): Promise<T> {
    this.goOn();
    const { cluster, recoveryTimeoutMs } = this.options;
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(
        () => reject(new DemoError(`the cluster does not converge: no sign of ${what} after ${recoveryTimeoutMs} ms`)),
        recoveryTimeoutMs,
      );
    });
    try {
      return await Promise.race([cluster.waitFor(what, condition), late]);
    } finally {
      clearTimeout(timer);
    }
  }

  private victim(phase: Phase): ReplicaProcess {
    const { cluster, random } = this.options;
    const { leader } = cluster;
    if (leader !== undefined && random.chance(phase.leaderBias)) return leader;
    return random.pick(cluster.replicas.filter((replica) => replica !== leader));
  }

  private mayImpair(id: number): boolean {
    const minority = (this.options.cluster.replicas.length - 1) >> 1;
    return !this.impaired.has(id) && !this.away.has(id) && this.impaired.size < minority;
  }

  // -- injection ---------------------------------------------------------------------------------------------------

  /** Does what was drawn, if it may be done now; waits for the blow, not for the healing. */
  private async inject(kind: FaultKind, phase: Phase): Promise<void> {
    const { random, scale, cluster, disks } = this.options;
    const victim = this.victim(phase);
    if (victim.state !== 'open') return;
    switch (kind) {
      case 'kill':
      case 'exhaust':
      case 'diskLoss': {
        if (!this.mayImpair(victim.id)) return;
        // With its disk a replica loses nothing, so it may be killed whatever the others are about.
        const mayHit = kind === 'kill' && disks !== undefined ? !this.isMemoryScarce : this.isSettled();
        if (!mayHit || (kind === 'exhaust' && this.away.size > 0)) return;
        this.impair(kind, victim, (healed) => this.kill(victim, kind, healed));
        break;
      }
      case 'diskFull':
      case 'diskFailure':
        if (disks === undefined || !this.mayImpair(victim.id)) return;
        this.impair(kind, victim, (healed) => this.stopDisk(disks, victim, kind, healed));
        break;
      case 'powerLoss':
        if (this.isMemoryScarce) return;
        this.track(this.losePowerAmidst(phase), () => {});
        break;
      case 'pause':
        if (!this.mayImpair(victim.id)) return;
        this.impair(kind, victim, (healed) => this.pause([victim], random.logBetween(...scale.pauseMs), healed));
        break;
      case 'pauseMajority': {
        if (this.impaired.size > 0) return;
        const open = cluster.replicas.filter(({ state }) => state === 'open');
        const count = (cluster.replicas.length >> 1) + 1 + (random.chance(0.3) ? 1 : 0);
        const victims = [victim, ...open.filter((replica) => replica !== victim)].slice(0, count);
        this.impair(kind, victim, (healed) => this.pause(victims, random.logBetween(...scale.majorityPauseMs), healed));
        break;
      }
      case 'block': {
        const durationMs = random.logBetween(...scale.blockMs);
        this.count(kind, victim, `for ${durationMs.toFixed(1)} ms`);
        cluster.send(victim, { type: 'block', durationMs });
        break;
      }
      case 'transfer': {
        const to = random.chance(0.5) ? undefined : random.integer(cluster.replicas.length);
        const timeoutMs = Math.round(random.logBetween(...scale.transferMs));
        this.operate(kind, { kind: 'transfer', to, timeoutMs });
        break;
      }
      case 'membership': {
        if (random.chance(0.3)) {
          this.operate(kind, { kind: 'setPriority', id: victim.id, priority: random.integer(PRIORITIES) });
          break;
        }
        // A removed voter is one that is down: the others must be a majority that keeps its memory.
        const follower = random.pick(cluster.replicas.filter((replica) => replica !== cluster.leader));
        if (!this.mayImpair(follower.id) || !this.isSettled()) return;
        this.impair(kind, follower, () => this.removeAndAdd(follower.id));
        break;
      }
      case 'breakLinks': {
        const choices = Array.from({ length: 1 + random.integer(BROKEN_LINKS_MAX) }, () => random.next());
        this.count(kind, victim, `${choices.length} of them`);
        cluster.send(victim, { type: 'breakLinks', choices });
        break;
      }
      default: {
        const { network } = this.options;
        if (network === undefined || !this.mayImpair(victim.id)) return;
        this.impair(kind, victim, () => this.disturb(network, kind, victim.id));
      }
    }
  }

  private count(kind: FaultKind, { id, pid }: ReplicaProcess, more = ''): void {
    this.injected.set(kind, (this.injected.get(kind) ?? 0) + 1);
    const { leader } = this.options.cluster;
    const role = leader?.id === id ? `leader of ${leader.leaderEpoch}` : 'follower';
    this.note(`${kind} replica ${id} (process ${pid}, ${role}) ${more}`);
  }

  /** Runs a fault that takes a replica away for a while, and notes when it is back. */
  private impair(
    kind: FaultKind,
    victim: ReplicaProcess,
    fault: (healed: (at_ns: number) => void) => Promise<void>,
  ): void {
    const { cluster, leaders } = this.options;
    this.count(kind, victim);
    this.impaired.add(victim.id);
    const epoch = cluster.leader === victim ? victim.leaderEpoch : undefined;
    const healed = epoch === undefined ? () => {} : leaders.struck(kind, epoch, monotonic_ns());
    this.track(fault(healed), () => {
      healed(monotonic_ns());
      this.impaired.delete(victim.id);
      this.note(`${kind} replica ${victim.id}: over`);
    });
  }

  /** What a fault is about until it is over; if it fails the run does. */
  private track(fault: Promise<void>, over: () => void): void {
    const done = fault
      .catch((error: unknown) => {
        this.failure ??= error as Error;
        this.calm.abort();
      })
      .finally(() => {
        this.healing.delete(done);
        over();
      });
    this.healing.add(done);
  }

  /** Kills the process of a replica, and waits for its end. `which` says of the replica why. */
  private async end(replica: ReplicaProcess, which: string): Promise<void> {
    this.options.cluster.strike(replica, 'SIGKILL');
    await this.within(`the end of replica ${replica.id}, ${which}`, () =>
      replica.state === 'ended' ? true : undefined,
    );
  }

  private async kill(
    victim: ReplicaProcess,
    kind: 'kill' | 'exhaust' | 'diskLoss',
    healed: (at_ns: number) => void,
  ): Promise<void> {
    const { random, scale, shortage, disks } = this.options;
    const { id } = victim;
    this.away.add(id);
    if (kind === 'exhaust') this.isMemoryScarce = true;
    await this.end(victim, 'which was killed');
    await this.sleep(random.logBetween(...scale.restartDelayMs));
    if (kind === 'diskLoss') disks?.lose(id);
    let replica: ReplicaProcess | undefined;
    if (kind === 'exhaust' && shortage !== undefined) replica = await this.startWithoutMemory(id, shortage);
    if (kind === 'exhaust') this.isMemoryScarce = false;
    if (replica === undefined || replica.state === 'ended') await this.startAgain(id);
    this.away.delete(id);
    healed(monotonic_ns());
    await this.within(`replica ${id} as a voter again`, () => (this.isVoter(id) ? true : undefined));
  }

  /**
   * Has the disk of a replica run out of room, or refuse writes, until the replica says so. It must go on without the disk, under
   * a leader that is another one, until somebody makes room, or puts an empty disk in its place, and starts its process again.
   */
  private async stopDisk(
    disks: Disks,
    victim: ReplicaProcess,
    kind: 'diskFull' | 'diskFailure',
    healed: (at_ns: number) => void,
  ): Promise<void> {
    const { cluster, random, scale } = this.options;
    const { id } = victim;
    const isFailure = kind === 'diskFailure';
    // A power loss ends it as well: whoever brings the power back sees to the disk.
    const isOther = () => cluster.replicas[id] !== victim || victim.state !== 'open';
    try {
      await this.untilDiskStops(disks, victim, kind, isOther);
      if (!isOther()) {
        await this.within(`another leader than replica ${id}, whose disk ${isFailure ? 'failed' : 'is full'}`, () =>
          isOther() || (cluster.leader !== undefined && cluster.leader !== victim) ? true : undefined,
        );
        await this.sleep(random.logBetween(...scale.restartDelayMs));
      }
    } finally {
      if (!isFailure) disks.makeRoom(id);
    }
    if (!isOther()) {
      this.note(`  replica ${cluster.leader?.id} leads, and the disk of replica ${id} is seen to`);
      this.away.add(id);
      await this.end(victim, `whose disk ${isFailure ? 'failed' : 'was full'}`);
      if (isFailure) disks.losePower(id);
      await this.startAgain(id);
      this.away.delete(id);
    }
    healed(monotonic_ns());
    await this.within(`replica ${id} as a voter again`, () => (this.isVoter(id) ? true : undefined));
  }

  /** Makes a disk stop, and waits until its replica calls that what it is. */
  private async untilDiskStops(
    disks: Disks,
    victim: ReplicaProcess,
    kind: 'diskFull' | 'diskFailure',
    isOther: () => boolean,
  ): Promise<void> {
    const { recoveryTimeoutMs } = this.options;
    const { id } = victim;
    const failure = () => victim.status?.durable?.failure;
    const until_ns = monotonic_ns() + recoveryTimeoutMs * 1e6;
    while (failure() === undefined && !isOther()) {
      this.goOn();
      if (monotonic_ns() > until_ns) {
        throw new DemoError(
          `replica ${id} did not notice within ${recoveryTimeoutMs} ms what became of its disk: ${kind}`,
        );
      }
      // With an old snapshot, or old log, it makes room itself.
      if (kind === 'diskFull') disks.fill(id);
      else disks.fail(id);
      await sleepFor(STOP_INTERVAL_MS);
    }
    if (isOther()) return;
    const code = failure();
    if (code === undefined || !(DISK_CODES[kind] as readonly string[]).includes(code)) {
      throw new DemoError(`to the disk of replica ${id} came ${kind}, and it failed with ${code}`);
    }
    this.note(
      kind === 'diskFull'
        ? `  the disk of replica ${id} is full, and it says so`
        : `  the disk of replica ${id} failed: ${code}`,
    );
  }

  /** Starts a replica that has ended; what the power took in the middle of it is no failure. */
  private async startAgain(id: number): Promise<void> {
    for (let failures = 0; ; ) {
      this.goOn();
      const powerLossesBefore = this.powerLosses;
      const { failure, replica } = await this.options.cluster.tryRestart(id);
      if (failure === undefined && replica.state !== 'ended') return;
      if (this.powerLosses > powerLossesBefore) continue;
      const why = failure === undefined ? 'it ended at once' : `${failure.code}: ${failure.message}`;
      const text = `replica ${id} could not be started again: ${why}`;
      this.note(text, true);
      if (++failures === RESTARTS_MAX) throw new DemoError(text);
    }
  }

  /** Often in the middle of another fault, or of what heals it. */
  private async losePowerAmidst(phase: Phase): Promise<void> {
    const { random, kinds, scale } = this.options;
    const others = kinds.filter((kind) => kind !== 'powerLoss' && kind !== 'exhaust');
    if (others.length > 0 && random.chance(AMIDST_PROBABILITY)) {
      await this.inject(random.pick(others), phase);
      await this.sleep(random.logBetween(...scale.restartDelayMs));
    }
    if (!this.isMemoryScarce) await this.losePower();
  }

  /**
   * Ends all replicas at once, whatever they are about, and starts them again on their directories. Over when one of them
   * has committed a command as leader of a later epoch. A cluster that forgot all comes to the epochs of before in time, so
   * the log must go on, too; that nothing of its end is missing the clients' history tells, which says what.
   */
  private async losePower(): Promise<void> {
    const { cluster, leaders, random, scale, disks } = this.options;
    const number = ++this.powerLosses;
    const before = cluster.epoch;
    const committedLsn = Math.max(0, ...cluster.replicas.map(({ status }) => status?.commitLsn ?? 0));
    const struck = cluster.replicas.filter(({ state }) => state !== 'ended');
    this.injected.set('powerLoss', (this.injected.get('powerLoss') ?? 0) + 1);
    this.note(`power loss ${number}, after epoch ${before}: processes ${struck.map(({ pid }) => pid).join(', ')}`);
    for (const replica of struck) cluster.strike(replica, 'SIGKILL');
    leaders.forgetStrikes();
    let served:
      | { readonly id: number; readonly epoch: string; readonly lsn: number; readonly at_ns: number }
      | undefined;
    const onMessage = (replica: ReplicaProcess, message: FromReplica): void => {
      if (message.type !== 'serving' || struck.includes(replica)) return;
      served ??= { id: replica.id, epoch: message.epoch, lsn: message.commitLsn, at_ns: message.at_ns };
    };
    cluster.on('message', onMessage);
    try {
      await this.within('the end of all replicas, which lost power', () =>
        struck.every(({ state }) => state === 'ended') ? true : undefined,
      );
      // A fault that was under way may have started one of them again by now.
      for (const { id, state } of cluster.replicas) if (state === 'ended') disks?.losePower(id);
      await this.sleep(random.logBetween(...scale.restartDelayMs));
      const ids = cluster.replicas.filter(({ id }) => !this.away.has(id)).map(({ id }) => id);
      for (const id of ids) this.away.add(id);
      const since_ns = monotonic_ns();
      const starts = ids.map(async (id) => {
        await this.startAgain(id);
        this.away.delete(id);
      });
      const all = Promise.all(starts);
      all.catch(() => {}); // it is waited for below
      const { id, epoch, lsn, at_ns } = await this.within(`a commit after power loss ${number}`, () => served);
      if (compareEpochs(epoch, before) <= 0 || lsn < committedLsn * LOG_KEPT_MIN) {
        throw new DemoError(
          `after power loss ${number} replica ${id} leads in epoch ${epoch}, and epoch ${before} was before it; what it ` +
            `committed first ends at LSN ${lsn}, and all up to LSN ${committedLsn} was committed before it`,
        );
      }
      await all;
      if (this.powerLosses === number) this.returnsUs.push((at_ns - since_ns) / 1000);
      this.note(`power loss ${number}: replica ${id} serves in epoch ${epoch}, and all are open`);
    } finally {
      cluster.off('message', onMessage);
    }
  }

  // -- the operator ------------------------------------------------------------------------------------------------

  /** Has the leader asked for something, whatever comes of it. */
  private operate(kind: FaultKind, wish: OperatorWish): void {
    const { leader } = this.options.cluster;
    if (leader === undefined) return;
    this.count(kind, leader, JSON.stringify(wish));
    const done = this.ask(wish).then((code) => {
      this.healing.delete(done);
      this.note(`${kind} ${code === undefined ? 'done' : `ended with ${code}`}`);
    });
    this.healing.add(done);
  }

  /** Resolves with the code of the error, undefined if the wish is fulfilled. Without an answer its fate is open. */
  private async ask(wish: OperatorWish): Promise<string | undefined> {
    const { cluster, scale } = this.options;
    const { leader } = cluster;
    if (leader?.state !== 'open') return NO_LEADER;
    const number = ++this.wishes;
    let onMessage: (from: ReplicaProcess, message: FromReplica) => void = () => {};
    const answered = new Promise<string | undefined>((resolve) => {
      onMessage = (_, message) => {
        if (message.type === 'operated' && message.number === number) resolve(message.code);
      };
      cluster.on('message', onMessage);
    });
    const ac = new AbortController();
    const late = sleepFor(scale.wishTimeoutMs, NO_ANSWER, { signal: ac.signal }).catch(() => NO_ANSWER);
    cluster.send(leader, { type: 'operate', number, wish });
    try {
      return await Promise.race([answered, late]);
    } finally {
      ac.abort();
      cluster.off('message', onMessage);
    }
  }

  /** Removes a voter, and has it become one again, with a process and memory that know nothing of before. */
  private async removeAndAdd(id: number): Promise<void> {
    const { cluster, recoveryTimeoutMs } = this.options;
    this.away.add(id);
    const code = await this.ask({ kind: 'remove', id });
    if (code !== undefined) this.note(`  the removal of replica ${id} ended with ${code}`);
    const former: FormerLife = { process: cluster.replicas[id] as ReplicaProcess, isGone: false };
    const until_ns = monotonic_ns() + recoveryTimeoutMs * 1e6;
    // Any step may get lost with its leader: what is next follows from what the present one says.
    for (let from_ns = monotonic_ns(); !(await this.takeInAgain(id, former, from_ns)); from_ns = monotonic_ns()) {
      if (monotonic_ns() > until_ns) {
        throw new DemoError(`replica ${id}, which was removed, was no voter again after ${recoveryTimeoutMs} ms`);
      }
    }
    this.away.delete(id);
    const replica = cluster.replicas[id] as ReplicaProcess;
    await this.within(`replica ${id} (process ${replica.pid}) as a voter again`, () =>
      this.isVoter(id) ? true : undefined,
    );
  }

  /** The next step on the way back, by what the leader says after `from_ns`; true when there is none left. */
  private async takeInAgain(id: number, former: FormerLife, from_ns: number): Promise<boolean> {
    const { cluster, scale, disks } = this.options;
    const leader = await this.within('a leader that tells its members', () => {
      const one = cluster.leader;
      return one?.state === 'open' && one.statusAt_ns > from_ns ? one : undefined;
    });
    const member = leader.status?.members.find((one) => one.id === id);
    if (member === undefined) {
      await this.ask({ kind: 'addLearner', id });
      return false;
    }
    const replica = cluster.replicas[id] as ReplicaProcess;
    if (member.role !== 'learner') {
      if (replica.state !== 'ended') return member.role === 'voter' && !member.returning;
      // The power went before the removal was committed, or after the promotion: this voter has a disk.
      const start = await cluster.tryRestart(id);
      if (start.failure !== undefined) this.note(`  replica ${id} did not return: ${start.failure.code}`);
      if (!former.isGone) former.process = start.replica;
      return false;
    }
    if (replica === former.process || replica.state === 'ended') {
      // What is left of the life that was removed knows that it was, and takes no part any more.
      if (replica.state !== 'ended') {
        await this.end(replica, 'which was removed');
      }
      if (!former.isGone) disks?.lose(id);
      former.isGone = true;
      const { failure } = await cluster.tryRestart(id);
      if (failure !== undefined) this.note(`  replica ${id} did not join: ${failure.code}: ${failure.message}`);
      return false;
    }
    await this.ask({ kind: 'promote', id, timeoutMs: scale.wishTimeoutMs });
    return false;
  }

  private isVoter(id: number): boolean {
    const { leader, replicas } = this.options.cluster;
    const { status } = replicas[id] as ReplicaProcess;
    if (leader?.status === undefined || status?.isVoter !== true) return false;
    return (
      leader.id === id || leader.status.peers.some((peer) => peer.id === id && peer.voter && peer.phase === 'active')
    );
  }

  /** A start that must fail, with an error that has a code; where the shortage passed, the replica that started. */
  private async startWithoutMemory(id: number, shortage: Shortage): Promise<ReplicaProcess | undefined> {
    shortage.begin();
    try {
      const { failure, replica } = await this.options.cluster.tryRestart(id, shortage.wrapper);
      if (failure === undefined) {
        if (shortage.mayPass) {
          this.note(`replica ${id} found memory that another one gave back`);
          return replica;
        }
        throw new DemoError(`replica ${id} (process ${replica.pid}) started although there was no memory for it`);
      }
      if (!failure.code.startsWith('QUORATE_')) {
        throw new DemoError(`without memory replica ${id} failed with no code of its own: ${failure.message}`);
      }
      this.shortageCodes.set(failure.code, (this.shortageCodes.get(failure.code) ?? 0) + 1);
      this.note(`replica ${id} without memory: ${failure.code}: ${failure.message}`);
      return undefined;
    } finally {
      shortage.end();
    }
  }

  private async pause(
    victims: readonly ReplicaProcess[],
    durationMs: number,
    healed: (at_ns: number) => void,
  ): Promise<void> {
    const { cluster } = this.options;
    this.note(`  replica ${victims.map(({ id }) => id).join(', ')} stopped for ${durationMs.toFixed(1)} ms`);
    for (const victim of victims) cluster.strike(victim, 'SIGSTOP');
    await this.sleep(durationMs);
    healed(monotonic_ns());
    for (const victim of victims) cluster.continue(victim);
  }

  private async disturb(network: Network, kind: FaultKind, id: number): Promise<void> {
    const { cluster, random, scale } = this.options;
    const durationMs = random.logBetween(...scale.networkMs);
    const others = cluster.replicas.map((replica) => replica.id).filter((other) => other !== id);
    const during = async (begin: () => Promise<void>, end: () => Promise<void>): Promise<void> => {
      try {
        await begin();
        await this.sleep(durationMs);
      } finally {
        await end();
      }
    };
    const say = (what: string) => this.note(`  ${what} for ${durationMs.toFixed(0)} ms`);
    if (kind === 'linkDown') {
      const which = random.pick(['interface', 'port'] as const);
      say(`${which} of replica ${id} down`);
      await during(
        () => network.down(id, which),
        () => network.up(id),
      );
    } else if (kind === 'degrade') {
      const delayMs = random.logBetween(...DEGRADED_DELAY_MS);
      const lossPercent = random.chance(0.5) ? 0 : random.between(0, DEGRADED_LOSS_PERCENT_MAX);
      say(`replica ${id} receives ${delayMs.toFixed(1)} ms late and loses ${lossPercent.toFixed(1)} %`);
      await during(
        () => network.degrade(id, delayMs, lossPercent),
        () => network.restore(id),
      );
    } else {
      let cuts: [number, number][] = others.flatMap((other) => [
        [id, other],
        [other, id],
      ]);
      if (kind === 'oneWay') {
        const one = random.pick(others);
        cuts = random.pick<[number, number][]>([
          [[id, one]],
          [[one, id]],
          others.map((other) => [id, other]),
          others.map((other) => [other, id]),
        ]);
      }
      say(`no packets ${cuts.map(([from, to]) => `${from} to ${to}`).join(', ')}`);
      await during(
        async () => {
          for (const [from, to] of cuts) await network.cut(from, to);
        },
        async () => {
          for (const [from, to] of cuts) await network.mend(from, to);
        },
      );
    }
  }
}
