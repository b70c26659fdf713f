// One run of the demo: starts the cluster, drives commands through its leader, takes replicas down in the middle of it
// round by round, brings them back, and at the end compares what all replicas hold with what was acknowledged.
import { build, type Histogram } from 'hdr-histogram-js';
import type { ProfileName, ReplicaStatus } from '../../replica/replica-options.js';
import { KeyValueStore } from '../../rsm/key-value-store.js';
import { encodeAudited } from './audited-store.js';
import { Cluster, type ClusterOptions, compareEpochs, type ReplicaProcess } from './cluster.js';
import { type Deadline, DemoError } from './deadline.js';
import { Driver } from './driver.js';
import { formatUs } from './figures.js';
import type { CommandSource } from './input.js';
import { type FromReplica, monotonic_ns, type ReportMessage, type ServingMessage } from './messages.js';
import { judge, type Verdict } from './verdict.js';

export interface RunOptions {
  readonly replicas: number;
  readonly devices: readonly string[];
  readonly profile: ProfileName | undefined;
  readonly ops: number;
  readonly source: CommandSource;
  readonly kill: 'SIGKILL' | 'SIGSTOP' | 'none';
  /** `all`: every replica at once; they must be durable. */
  readonly victim: 'leader' | 'follower' | 'all';
  /** Part of the order to open each replica. */
  readonly openWith?: NonNullable<ClusterOptions['openWith']>;
  readonly rounds: number;
  /** Most commands on their way at a time. */
  readonly window: number;
  readonly openTimeoutMs: number;
  readonly random: () => number;
  readonly deadline: Deadline;
  /** Progress, for people. */
  readonly say: (line: string) => void;
}

/** One round: a replica was taken down and came back. */
export interface Round {
  readonly victim: number;
  /** Commands on their way when it was struck. */
  readonly inFlight: number;
  /** From the signal to the new leader's election, by the new leader's stamp; undefined if a follower was struck. */
  readonly electionUs: number | undefined;
  /** From the signal to the new leader's first commit, by the new leader's stamp. */
  readonly failoverUs: number | undefined;
  /** From the signal to the first acknowledgement of the new leader that reached the driver. */
  readonly driverUs: number | undefined;
  /** From its start, or from SIGCONT, until the victim was an active, caught-up voter again. */
  readonly returnUs: number;
}

export interface RunResult {
  readonly verdict: Verdict;
  readonly acknowledged: number;
  readonly rounds: readonly Round[];
  /** Nanoseconds from propose() to its settled promise, at the leader. */
  readonly commit: Histogram;
  /** Status of the last leader. */
  readonly status: ReplicaStatus;
  readonly keys: number;
  readonly digest: string;
  readonly appliedLsn: number;
  readonly leaderChanges: number;
  readonly resent: number;
  readonly duplicatesRecognised: number;
  /** Longest time between two acknowledgements while a follower was down. */
  readonly longestPauseUs: number;
  readonly loadUs: number;
}

/** Origin of the driver's session; those of the replicas' own commands are below 2^31 + 2^16. */
const DRIVER_ORIGIN = 2 ** 32 - 1;
const LATENCY_NS_MAX = 3_600_000_000_000;
const WINDOW_BYTES = 1024 * 1024;
/** Of rounds in which all replicas are killed; between two of them in the others, at most. */
const ALL_AT_ONCE_PROBABILITY = 0.5;
const STRIKE_GAP_US_MAX = 60_000;
const RETRY_PAUSE_MS = 5;
/** The blow falls at a random moment: after this part of the round's commands, and up to so much later. */
const STRIKE_AFTER_MIN = 0.1;
const STRIKE_AFTER_MAX = 0.6;
const STRIKE_DELAY_US_MAX = 3000;
/** Times that a blow may miss because the leader changed by itself just before. */
const MISSED_BLOWS_MAX = 20;
/** Times that the final comparison is tried again because something was still being applied. */
const REPORT_TRIES_MAX = 20;
/** Refusals that belong to a failover; the commands are sent again. */
const EXPECTED_REFUSALS = new Set([
  'QUORATE_NOT_LEADER',
  'QUORATE_OUTCOME_UNKNOWN',
  'QUORATE_BACKPRESSURE',
  'QUORATE_SESSION_GAP',
]);

/** The run did not get to its end; carries what is known all the same. */
export class RunFailed extends DemoError {
  constructor(
    message: string,
    readonly known: { acknowledged: number; rounds: readonly Round[]; commit: Histogram; fabric: string | undefined },
  ) {
    super(message);
  }
}

export class Run {
  private readonly driver: Driver;
  private readonly commit = build({ lowestDiscernibleValue: 1, highestTrackableValue: LATENCY_NS_MAX });
  private readonly rounds: Round[] = [];
  private readonly serving: { id: number; message: ServingMessage }[] = [];
  private readonly deposed: { pid: number; epoch: string; at_ns: number }[] = [];
  /** When the driver last heard an acknowledgement, by process id of the replica. */
  private readonly heardFrom_ns = new Map<number, number>();
  private lastHeard_ns = 0;
  private watchesPauses = false;
  private longestPause_ns = 0;
  private leaderChanges = 0;
  private lastLeaderEpoch: string | undefined;
  private duplicatesRecognised = 0;

  /** Runs the demo. Throws a DemoError if there was no cluster to run it on, RunFailed if it got stuck on the way. */
  static async execute(options: RunOptions): Promise<RunResult> {
    const cluster = await Cluster.start(options);
    const run = new Run(options, cluster);
    try {
      const result = await run.perform();
      const problems = await cluster.stop();
      if (problems.length === 0) return result;
      return { ...result, verdict: { ...result.verdict, problems: [...result.verdict.problems, ...problems] } };
    } catch (error) {
      const { rounds, commit, driver } = run;
      const fabric = cluster.replicas.find((replica) => replica.status !== undefined)?.status?.fabric;
      const message = error instanceof DemoError ? error.message : `${(error as Error).stack}`;
      for (const line of cluster.describe()) options.say(line);
      throw new RunFailed(message, { acknowledged: driver.acknowledgedCount, rounds, commit, fabric });
    } finally {
      cluster.killAll();
    }
  }

  private constructor(
    private readonly options: RunOptions,
    private readonly cluster: Cluster,
  ) {
    this.driver = new Driver({
      total: options.ops,
      window: options.window,
      windowBytes: WINDOW_BYTES,
      payload: (sequence) => encodeAudited(DRIVER_ORIGIN, sequence, options.source.command(sequence)),
      send: (id, generation, sequences, payloads) => this.send(id, generation, sequences, payloads),
      pause: (callback) => {
        setTimeout(callback, RETRY_PAUSE_MS);
      },
    });
    cluster.on('message', (replica, message) => this.onMessage(replica, message));
    cluster.on('change', () => this.followLeader());
    this.followLeader();
  }

  // -- driving -----------------------------------------------------------------------------------------------------

  private send(id: number, generation: number, sequences: number[], payloads: Uint8Array[]): void {
    this.cluster.send(this.cluster.replicas[id] as ReplicaProcess, {
      type: 'propose',
      origin: DRIVER_ORIGIN,
      generation,
      sequences: Uint32Array.from(sequences),
      payloadBytes: Uint32Array.from(payloads, (payload) => payload.length),
      payloads: Buffer.concat(payloads),
    });
  }

  private followLeader(): void {
    const { leader } = this.cluster;
    if (leader?.leaderEpoch !== undefined && leader.leaderEpoch !== this.lastLeaderEpoch) {
      if (this.lastLeaderEpoch !== undefined) this.leaderChanges++;
      this.lastLeaderEpoch = leader.leaderEpoch;
      this.driver.setLeader(undefined); // also the same replica in another epoch starts afresh
    }
    this.driver.setLeader(leader?.id);
  }

  private onMessage(replica: ReplicaProcess, message: FromReplica): void {
    switch (message.type) {
      case 'acknowledged': {
        const now_ns = monotonic_ns();
        if (this.watchesPauses) this.longestPause_ns = Math.max(this.longestPause_ns, now_ns - this.lastHeard_ns);
        this.lastHeard_ns = now_ns;
        this.heardFrom_ns.set(replica.pid, now_ns);
        this.duplicatesRecognised += message.duplicates;
        for (const latency_ns of message.latency_ns) {
          this.commit.recordValue(Math.min(Math.max(1, Math.round(latency_ns)), LATENCY_NS_MAX));
        }
        this.driver.onAcknowledged(message.generations, message.sequences);
        break;
      }
      case 'refused':
        if (!EXPECTED_REFUSALS.has(message.code)) {
          const which = `command ${message.sequences[0]} at replica ${replica.id}`;
          this.options.deadline.fail(new DemoError(`${which} was refused: ${message.code}: ${message.message}`));
        }
        this.driver.onRefused(message.generations, message.sequences);
        break;
      case 'serving':
        this.serving.push({ id: replica.id, message });
        break;
      case 'deposed':
        this.deposed.push({ pid: replica.pid, epoch: message.epoch, at_ns: message.at_ns });
        break;
      default:
        break;
    }
  }

  // -- the run -----------------------------------------------------------------------------------------------------

  private async perform(): Promise<RunResult> {
    const { options, cluster, driver } = this;
    const { ops, rounds } = options;
    const leader = await cluster.waitFor('a leader', () => cluster.leader);
    await cluster.waitFor('the status of all replicas', () =>
      cluster.replicas.every(({ status }) => status !== undefined) ? true : undefined,
    );
    const first = leader.status as ReplicaStatus;
    const devices = cluster.replicas.map((replica) => replica.status?.device);
    options.say(
      `${options.replicas} replicas on ${[...new Set(devices)].join(', ')} (fabric ${first.fabric}, permission strategy ` +
        `${first.permissionStrategy}, profile ${first.profile}); replica ${leader.id} leads in epoch ${leader.leaderEpoch}`,
    );
    const start_ns = monotonic_ns();
    for (let round = 1, missed = 0; round <= rounds; ) {
      const from = Math.floor((ops * (round - 1)) / rounds);
      const upTo = Math.floor((ops * round) / rounds);
      const outcome = await this.performRound(`round ${round}/${rounds}`, from, upTo);
      if (outcome === undefined) {
        if (++missed > MISSED_BLOWS_MAX) throw new DemoError(`the leader changed by itself before ${missed} blows`);
        continue;
      }
      this.rounds.push(outcome);
      round++;
    }
    driver.allow(ops);
    await cluster.waitFor('all commands to be acknowledged', () =>
      driver.acknowledgedCount === ops ? true : undefined,
    );
    const loadUs = (monotonic_ns() - start_ns) / 1000;
    options.say(`${ops} commands acknowledged; comparing the states of all replicas`);
    const reports = await this.collectReports();
    const model = new KeyValueStore();
    for (let sequence = 1; sequence <= ops; sequence++) model.apply(options.source.command(sequence));
    const verdict = judge({
      replicas: cluster.replicas.map((replica) => replica.id),
      reports,
      acknowledged: driver.acknowledged,
      modelDigest: model.digest(),
      roundsWanted: rounds,
      roundsDone: this.rounds.length,
    });
    return {
      verdict,
      acknowledged: driver.acknowledgedCount,
      rounds: this.rounds,
      commit: this.commit,
      status: cluster.leader?.status ?? first,
      keys: model.size,
      digest: model.digest(),
      appliedLsn: reports[0]?.appliedLsn ?? 0,
      leaderChanges: this.leaderChanges,
      resent: driver.resent,
      duplicatesRecognised: this.duplicatesRecognised,
      longestPauseUs: this.longestPause_ns / 1000,
      loadUs,
    };
  }

  /** Returns undefined if the blow missed: the replica struck as the leader had been replaced just before. */
  private async performRound(name: string, from: number, upTo: number): Promise<Round | undefined> {
    const { options, cluster, driver } = this;
    const { random, kill } = options;
    const part = STRIKE_AFTER_MIN + random() * (STRIKE_AFTER_MAX - STRIKE_AFTER_MIN);
    const delay_ns = Math.floor(random() * STRIKE_DELAY_US_MAX) * 1000;
    const strikeAfter = from + Math.floor((upTo - from) * part);
    driver.allow(upTo);
    const leader = await cluster.waitFor(`${name}: a leader and load on it`, () =>
      driver.acknowledgedCount >= strikeAfter ? cluster.leader : undefined,
    );
    // Answers arrive in bursts; without this the blow would always fall in the same place between two, and never
    // between the commit of a command and its acknowledgement.
    for (const until_ns = monotonic_ns() + delay_ns; monotonic_ns() < until_ns; );

    const epoch = leader.leaderEpoch as string;
    if (options.victim === 'all') return await this.loseAll(name, leader, epoch);
    const followers = cluster.replicas.filter((replica) => replica !== leader);
    const victim =
      options.victim === 'leader' ? leader : (followers[Math.floor(random() * followers.length)] as ReplicaProcess);
    const inFlight = driver.inFlight;
    const struckAt_ns = cluster.strike(victim, kill === 'SIGSTOP' ? 'SIGSTOP' : 'SIGKILL');
    options.say(
      `${name}: ${kill} to replica ${victim.id} (${victim === leader ? `leader, epoch ${epoch}` : 'a follower'}) ` +
        `after ${driver.acknowledgedCount} commands, ${inFlight} in flight`,
    );
    return options.victim === 'leader'
      ? this.failOver(name, victim, epoch, struckAt_ns, inFlight)
      : this.outlastFollower(name, victim, leader, upTo, inFlight);
  }

  /** Every replica is killed within a moment, in any order, and all are started again. */
  private async loseAll(name: string, leader: ReplicaProcess, epoch: string): Promise<Round> {
    const { options, cluster, driver } = this;
    const { random } = options;
    const inFlight = driver.inFlight;
    const victims = [...cluster.replicas].map((replica) => ({ replica, order: random() }));
    victims.sort((a, b) => a.order - b.order);
    // Mostly at once, as when the power goes; now and then those that are left have the time to elect another leader.
    const gapUsMax = random() < ALL_AT_ONCE_PROBABILITY ? 0 : STRIKE_GAP_US_MAX;
    for (const { replica } of victims) {
      if (replica.state !== 'ended') cluster.strike(replica, 'SIGKILL');
      const gap_ns = Math.floor(random() * gapUsMax) * 1000;
      for (const until_ns = monotonic_ns() + gap_ns; monotonic_ns() < until_ns; );
    }
    options.say(
      `${name}: SIGKILL to all replicas (replica ${leader.id} led in epoch ${epoch}) after ${driver.acknowledgedCount} ` +
        `commands, ${inFlight} in flight`,
    );
    await cluster.waitFor(`${name}: all replicas to end`, () =>
      cluster.replicas.every(({ state }) => state === 'ended') ? true : undefined,
    );
    const since_ns = monotonic_ns();
    const ledBefore = this.serving.length;
    await Promise.all(cluster.replicas.map(({ id }) => cluster.restart(id)));
    const next = await cluster.waitFor(`${name}: a leader's first commit`, () => this.serving[ledBefore]);
    if (compareEpochs(next.message.epoch, epoch) <= 0) {
      throw new DemoError(`${name}: replica ${next.id} leads in epoch ${next.message.epoch}, after epoch ${epoch}`);
    }
    const electionUs = (next.message.leaderAt_ns - since_ns) / 1000;
    const failoverUs = (next.message.at_ns - since_ns) / 1000;
    await cluster.waitFor(`${name}: all replicas to be voters`, () =>
      cluster.replicas.every(({ status, statusAt_ns }) => statusAt_ns > since_ns && status?.isVoter === true)
        ? true
        : undefined,
    );
    const returnUs = (monotonic_ns() - since_ns) / 1000;
    options.say(
      `${name}: replica ${next.id} leads in epoch ${next.message.epoch}; first commit ${formatUs(failoverUs)} after the ` +
        `start of the processes, all are voters after ${formatUs(returnUs)}`,
    );
    return { victim: leader.id, inFlight, electionUs, failoverUs, driverUs: undefined, returnUs };
  }

  /** The leader was struck: waits for the next one, brings the old one back. */
  private async failOver(
    name: string,
    victim: ReplicaProcess,
    epoch: string,
    struckAt_ns: number,
    inFlight: number,
  ): Promise<Round | undefined> {
    const { options, cluster, driver } = this;
    const next = await cluster.waitFor(`${name}: another leader's first commit`, () =>
      this.serving.find(({ id, message }) => id !== victim.id && compareEpochs(message.epoch, epoch) > 0),
    );
    const successor = cluster.replicas[next.id] as ReplicaProcess;
    const { leaderAt_ns, at_ns, epoch: nextEpoch } = next.message;
    const isMiss = leaderAt_ns < struckAt_ns;
    if (isMiss) options.say(`${name}: replica ${next.id} had taken over before the signal; the round does not count`);
    const electionUs = (leaderAt_ns - struckAt_ns) / 1000;
    const failoverUs = (at_ns - struckAt_ns) / 1000;
    // With nothing left to send the driver hears nothing.
    const heard = await cluster.waitFor(`${name}: the new leader to answer the driver`, () => {
      const heard_ns = this.heardFrom_ns.get(successor.pid);
      if (heard_ns !== undefined && heard_ns > struckAt_ns) return { driverUs: (heard_ns - struckAt_ns) / 1000 };
      return driver.idle || cluster.leader !== successor ? { driverUs: undefined } : undefined;
    });
    if (!isMiss) {
      options.say(
        `${name}: replica ${next.id} leads in epoch ${nextEpoch}; election ${formatUs(electionUs)}, first commit ` +
          `${formatUs(failoverUs)}${heard.driverUs === undefined ? '' : `, driver served ${formatUs(heard.driverUs)}`} ` +
          'after the signal',
      );
    }
    const returnUs = await this.bringBack(name, victim, epoch);
    return isMiss
      ? undefined
      : { victim: victim.id, inFlight, electionUs, failoverUs, driverUs: heard.driverUs, returnUs };
  }

  /** A follower was struck: commits must go on under the same leader. */
  private async outlastFollower(
    name: string,
    victim: ReplicaProcess,
    leader: ReplicaProcess,
    upTo: number,
    inFlight: number,
  ): Promise<Round> {
    const { options, cluster, driver } = this;
    const changes = this.leaderChanges;
    this.lastHeard_ns = monotonic_ns();
    this.watchesPauses = true;
    await cluster.waitFor(`${name}: commits to go on without replica ${victim.id}`, () =>
      driver.acknowledgedCount >= upTo ? true : undefined,
    );
    this.watchesPauses = false;
    if (this.leaderChanges !== changes || cluster.leader !== leader) {
      throw new DemoError(`${name}: the loss of follower ${victim.id} cost replica ${leader.id} its leadership`);
    }
    options.say(`${name}: replica ${leader.id} committed everything without replica ${victim.id}`);
    const returnUs = await this.bringBack(name, victim, undefined);
    return { victim: victim.id, inFlight, electionUs: undefined, failoverUs: undefined, driverUs: undefined, returnUs };
  }

  /** Starts or continues the victim and waits until it is an active, caught-up voter. `epoch`: the one that it led. */
  private async bringBack(name: string, victim: ReplicaProcess, epoch: string | undefined): Promise<number> {
    const { options, cluster } = this;
    let back = victim;
    let since_ns: number;
    if (options.kill === 'SIGKILL') {
      await cluster.waitFor(`${name}: replica ${victim.id} to end`, () =>
        victim.state === 'ended' ? true : undefined,
      );
      since_ns = monotonic_ns();
      back = await cluster.restart(victim.id);
      const openedUs = (monotonic_ns() - since_ns) / 1000;
      options.say(
        `${name}: replica ${victim.id} was started again and is part of the cluster after ${formatUs(openedUs)}`,
      );
    } else {
      since_ns = cluster.continue(victim);
      if (epoch !== undefined) {
        const deposed = await cluster.waitFor(`${name}: replica ${victim.id} to find itself deposed`, () =>
          this.deposed.find((one) => one.pid === victim.pid && one.epoch === epoch),
        );
        options.say(
          `${name}: replica ${victim.id} found itself deposed ${formatUs((deposed.at_ns - since_ns) / 1000)} after SIGCONT`,
        );
      }
    }
    const isCurrent = (replica: ReplicaProcess): boolean => replica.statusAt_ns > since_ns;
    const targetLsn = await cluster.waitFor(`${name}: replica ${victim.id} to be an active voter`, () => {
      const { leader } = cluster;
      if (leader?.status === undefined || !isCurrent(leader) || !isCurrent(back)) return undefined;
      if (leader === back) return back.status?.isVoter ? back.status.commitLsn : undefined; // elected meanwhile
      const peer = leader.status.peers.find(({ id }) => id === back.id);
      const isActive = peer?.voter === true && peer.phase === 'active' && back.status?.isVoter === true;
      return isActive ? leader.status.commitLsn : undefined;
    });
    await cluster.waitFor(`${name}: replica ${victim.id} to catch up`, () =>
      (back.status?.appliedLsn ?? -1) >= targetLsn ? true : undefined,
    );
    const returnUs = (monotonic_ns() - since_ns) / 1000;
    options.say(`${name}: replica ${victim.id} is a caught-up voter again after ${formatUs(returnUs)}`);
    return returnUs;
  }

  /** States of all replicas, taken when all have applied everything. */
  private async collectReports(): Promise<ReportMessage[]> {
    const { cluster } = this;
    let reports: ReportMessage[] = [];
    for (let attempt = 0; attempt < REPORT_TRIES_MAX; attempt++) {
      await cluster.quiet();
      reports = await Promise.all(
        cluster.replicas.map((replica) =>
          cluster.request(replica, { type: 'report', origin: DRIVER_ORIGIN }, 'report'),
        ),
      );
      // A membership change or a new leader's noop may have come in between.
      if (new Set(reports.map((report) => report.appliedLsn)).size === 1) break;
    }
    return reports;
  }
}
