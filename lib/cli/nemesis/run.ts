// One run of the nemesis: a cluster of processes, client processes that use it, and faults; then calm, in which the
// cluster must converge; then the judgement.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Random } from '../../fabric/sim/random.js';
import type { RecoveryStatus } from '../../replica/recovery/recovery.js';
import type { ProfileName } from '../../replica/replica-options.js';
import { Cluster } from '../demo/cluster.js';
import { type Deadline, DemoError } from '../demo/deadline.js';
import { monotonic_ns } from '../demo/messages.js';
import { ClientProcesses } from './client-processes.js';
import { type DiskKind, Disks, whyNoDisks } from './disks.js';
import { Faults, type JournalEntry } from './faults.js';
import type { OperationRecord } from './history.js';
import { Judge } from './judge.js';
import { type Failover, LeaderLog } from './leader-log.js';
import type { KeyVerdict } from './messages.js';
import { Network } from './network.js';
import { privateMemory } from './private-memory.js';
import { openShortage } from './scarce-memory.js';
import { type ClusterSettings, drawSettings, FAULT_KINDS, type FaultKind, SCALES } from './swarm.js';

export interface NemesisOptions {
  readonly replicas: number;
  readonly devices: readonly string[];
  readonly profile: ProfileName | undefined;
  /** Replicas keep their logs on disk. */
  readonly durable: boolean;
  /** The kind of their disks; undefined: as the seed says. Where that is not to be had it is the next simpler one. */
  readonly disks: DiskKind | undefined;
  readonly durationMs: number;
  /** Time that the cluster has after a fault; undefined: by the kind of device. */
  readonly recoveryTimeoutMs: number | undefined;
  readonly clients: number;
  readonly kinds: readonly FaultKind[];
  readonly seed: number;
  /** Say every fault. */
  readonly verbose: boolean;
  readonly deadline: Deadline;
  readonly say: (line: string) => void;
}

export interface NemesisResult {
  readonly fabric: 'shm' | 'verbs';
  readonly settings: ClusterSettings;
  readonly operations: number;
  readonly failed: number;
  readonly unknown: number;
  readonly keys: number;
  /** Reads that did not go through the log, by what vouched for the state that was read. */
  readonly stateReads: ReadonlyMap<string, number>;
  /** Returns of killed replicas by what had outlived them. */
  readonly recoveries: readonly RecoveryStatus[];
  /** Executed commands that were proposed at a replica that did not lead. */
  readonly forwarded: number;
  readonly leaderChanges: number;
  readonly failovers: readonly Failover[];
  readonly faults: ReadonlyMap<FaultKind, number>;
  readonly shortageCodes: ReadonlyMap<string, number>;
  /** Losses of all power; undefined if replicas were not durable. */
  readonly powerLosses: PowerLosses | undefined;
  /** What broke safety. */
  readonly violations: readonly string[];
  /** What else went wrong: no convergence, a check that was given up, a process that did not end in order. */
  readonly problems: readonly string[];
  readonly verdicts: readonly KeyVerdict[];
  readonly journal: readonly JournalEntry[];
  /** Of a sample of keys. */
  readonly history: readonly OperationRecord[];
  /** Of one digest that all replicas agreed on. */
  readonly digest: string | undefined;
}

export interface PowerLosses {
  readonly count: number;
  /** From the start of the processes to the first commit, of each loss that was not followed by another one before. */
  readonly returnsUs: readonly number[];
  /** Within which each of them had to come. */
  readonly limitMs: number;
  /** Where the directories are; undefined once they are removed, as they are after a run in which nothing went wrong. */
  readonly folder: string | undefined;
}

const CLIENT_PROCESSES = 2;
const KEYS_PER_GENERATION = 4;
/** Time that the cluster has after the last fault; also for a killed replica to come back. */
const TIMES = {
  shm: {
    keyLifetimeMs: 1500,
    attemptTimeoutMs: 400,
    operationTimeoutMs: 4000,
    recoveryTimeoutMs: 45_000,
    openTimeoutMs: 30_000,
    calmMs: 500,
  },
  verbs: {
    keyLifetimeMs: 6000,
    attemptTimeoutMs: 4000,
    operationTimeoutMs: 20_000,
    recoveryTimeoutMs: 180_000,
    openTimeoutMs: 150_000,
    calmMs: 2000,
  },
} as const;
const FILLER_BYTES_MAX = 512;
/** Longest pause of a client between two operations. */
const THINK_MS_MAX: readonly [number, number] = [4, 40];
/** Times that digests are compared again because something was still being applied. */
const DIGEST_TRIES_MAX = 20;
/** Messages of the control channel about peers that are down are no news here. */
const LINES_SAID_MAX = 40;

export async function runNemesis(options: NemesisOptions): Promise<NemesisResult> {
  const { seed, deadline, devices, say } = options;
  const random = new Random(seed);
  const isShm = devices.every((device) => device === 'shm');
  const fabric = isShm ? 'shm' : 'verbs';
  const settings = drawSettings(random.fork(), fabric, options.profile, options.durable);
  const times = TIMES[fabric];
  const recoveryTimeoutMs = options.recoveryTimeoutMs ?? times.recoveryTimeoutMs;
  const folder = mkdtempSync(join(tmpdir(), 'quorate-nemesis-'));
  const sharedMemory = privateMemory() ?? '/dev/shm';
  const regionDirectory = settings.regionsSurvive ? mkdtempSync(join(sharedMemory, 'quorate-nemesis-')) : undefined;
  const disks = options.durable ? new Disks(options.replicas, options.disks ?? settings.disks) : undefined;
  const removeFolder = () => {
    for (const one of [folder, regionDirectory]) if (one !== undefined) rmSync(one, { recursive: true, force: true });
  };
  const removeAll = () => {
    removeFolder();
    disks?.remove();
  };
  process.on('exit', removeAll);
  const sockets = Array.from({ length: options.replicas }, (_, id) => join(folder, `${id}`));

  // Left out, each with its reason, is what cannot be done here.
  const shortage = openShortage(fabric, privateMemory());
  const network = isShm ? 'shared memory has no links' : await Network.open(devices);
  const whyNotOn = (kind: DiskKind) =>
    whyNoDisks(kind) ?? `the disks of this run are others (${disks?.kind}): add --disks ${kind}`;
  const reasonAgainst = (kind: FaultKind): string | undefined => {
    if (kind === 'exhaust') return typeof shortage === 'string' ? shortage : undefined;
    if (kind === 'diskFull') return disks?.canBeFilled ? undefined : whyNotOn('memory');
    if (kind === 'diskFailure') return disks?.canFail ? undefined : whyNotOn('thin');
    if (kind !== 'linkDown' && kind !== 'oneWay' && kind !== 'isolate' && kind !== 'degrade') return undefined;
    return typeof network === 'string' ? network : undefined;
  };
  const kinds = options.kinds.filter((kind) => reasonAgainst(kind) === undefined);
  for (const kind of FAULT_KINDS) {
    const reason = options.kinds.includes(kind) ? reasonAgainst(kind) : undefined;
    if (reason !== undefined) say(`left out: ${kind}, since ${reason}`);
  }
  if (kinds.length === 0) throw new DemoError('no fault that was asked for can be injected here');
  const strategy = settings.permissionStrategy ?? 'by device';
  const { snapshotAfterBytes } = settings;
  const memory = settings.regionsSurvive ? 'regions survive' : 'regions are lost';
  say(
    `${options.replicas} replicas on ${devices.join(', ')}; log ${settings.logBytes} bytes, profile ` +
      `${settings.profile ?? 'by device'}, permission strategy ${strategy}, ` +
      `${disks === undefined ? memory : `durable in ${disks.folder} (disks: ${disks.kind}), a snapshot after ${snapshotAfterBytes} bytes`}; ` +
      `faults: ${kinds.join(', ')}`,
  );

  const violations: string[] = [];
  const problems: string[] = [];
  const stopFaults = new AbortController();
  let linesSaid = 0;
  const cluster = await Cluster.start({
    replicas: options.replicas,
    devices,
    profile: settings.profile,
    program: 'nemesis-replica.js',
    openWith: (id) => ({
      ...settings,
      regionDirectory,
      clientSocket: sockets[id],
      durable:
        disks === undefined || snapshotAfterBytes === undefined
          ? undefined
          : { directory: disks.directory(id), snapshotAfterBytes },
    }),
    openTimeoutMs: times.openTimeoutMs,
    random: () => random.next(),
    deadline,
    say: (line) => {
      if (/ECONNREFUSED|ECONNRESET|EPIPE|QUORATE_OUTCOME_UNKNOWN|QUORATE_NOT_LEADER/.test(line)) return;
      if (++linesSaid < LINES_SAID_MAX) say(line);
      else if (linesSaid === LINES_SAID_MAX) say('... more of the replicas is not shown');
    },
  });
  const leaders = new LeaderLog(cluster);
  const judge = new Judge(KEYS_PER_GENERATION, random.uint32(), deadline, () => stopFaults.abort());
  const faults = new Faults({
    cluster,
    leaders,
    random: random.fork(),
    kinds,
    scale: SCALES[fabric],
    network: typeof network === 'string' ? undefined : network,
    shortage: typeof shortage === 'string' ? undefined : shortage,
    disks,
    recoveryTimeoutMs,
    operations: () => judge.operations,
    verbose: options.verbose,
    say,
  });
  const clients = new ClientProcesses({
    processes: CLIENT_PROCESSES,
    start: {
      clients: Math.ceil(options.clients / CLIENT_PROCESSES),
      sockets,
      keys: {
        start_ns: monotonic_ns(),
        lifetime_ns: times.keyLifetimeMs * 1e6,
        perGeneration: KEYS_PER_GENERATION,
      },
      thinkMsMax: random.logBetween(...THINK_MS_MAX),
      attemptTimeoutMs: times.attemptTimeoutMs,
      operationTimeoutMs: times.operationTimeoutMs,
      fillerBytesMax: FILLER_BYTES_MAX,
    },
    seed: () => random.uint32(),
    deadline,
    onOperations: (operations) => judge.add(operations),
    onOpenGeneration: (generation) => judge.close(generation),
  });
  let history: OperationRecord[] = [];
  let digest: string | undefined;
  try {
    await deadline.until('the faults to end', faults.run(options.durationMs, stopFaults.signal));
    await faults.settled();
    say('all replicas are voters; the clients go on for a moment without faults');
    await deadline.until('the calm to end', sleep(times.calmMs));
    await clients.stop();
    history = await judge.finish(await clients.read(await judge.keptKeys()));
    digest = await compareDigests(cluster, violations, problems);
  } catch (error) {
    problems.push(error instanceof DemoError ? error.message : `${(error as Error).stack}`);
    for (const line of cluster.describe()) say(line);
  }
  clients.end();
  if (problems.length === 0) problems.push(...(await cluster.stop()));
  else {
    faults.giveUp();
    cluster.killAll();
  }
  if (typeof network !== 'string') network.healNow();
  await judge.end();

  for (const { key, kind } of judge.verdicts) {
    if (kind === 'violation') violations.push(`the history of key ${key} has no linearization`);
    else problems.push(`the check of key ${key} was given up`);
  }
  // A session's next command can only be refused when the one before, which was acknowledged, is lost.
  for (const code of clients.strange) {
    if (code === 'QUORATE_SESSION_GAP') violations.push('a session lost a command that had been acknowledged');
    else problems.push(`a client was answered with ${code}`);
  }
  if (leaders.changes === 0) problems.push('the leader never changed');
  const { operations, failed, unknown, keys, stateReads, forwarded } = judge;
  if (operations === 0) problems.push('no operation was executed');
  const powerLossCount = faults.injected.get('powerLoss') ?? 0;
  if (kinds.includes('powerLoss') && powerLossCount === 0) problems.push('there was no power loss');
  const isGood = violations.length + problems.length === 0;
  process.off('exit', removeAll);
  removeFolder();
  if (isGood) disks?.remove();
  else disks?.keep();
  const powerLosses = disks && {
    count: powerLossCount,
    returnsUs: faults.returnsUs,
    limitMs: recoveryTimeoutMs,
    folder: isGood ? undefined : disks.folder,
  };
  return {
    ...{ fabric, settings, operations, failed, unknown, keys, stateReads, forwarded },
    recoveries: cluster.recoveries,
    leaderChanges: leaders.changes,
    failovers: leaders.failovers,
    faults: faults.injected,
    shortageCodes: faults.shortageCodes,
    powerLosses,
    ...{ violations, problems },
    verdicts: judge.verdicts,
    journal: faults.journal,
    ...{ history, digest },
  };
}

/** All replicas at the same LSN must have the same state. */
async function compareDigests(cluster: Cluster, violations: string[], problems: string[]): Promise<string | undefined> {
  for (let attempt = 0; attempt < DIGEST_TRIES_MAX; attempt++) {
    await cluster.quiet();
    const digests = await Promise.all(
      cluster.replicas.map((replica) => cluster.request(replica, { type: 'digest' }, 'digest')),
    );
    // A membership change or a new leader's noop may have come in between.
    if (new Set(digests.map(({ appliedLsn }) => appliedLsn)).size > 1) continue;
    if (new Set(digests.map(({ digest }) => digest)).size === 1) return digests[0]?.digest;
    violations.push(`replicas at LSN ${digests[0]?.appliedLsn} have different states`);
    return undefined;
  }
  problems.push('the replicas did not come to rest at one LSN');
  return undefined;
}
