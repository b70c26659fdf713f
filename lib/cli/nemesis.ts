// npm run nemesis: real faults on real processes. A cluster of replica processes, client processes that use it, and
// SIGKILL, SIGSTOP, blocked event loops, broken queue pairs, exhausted memory, broken networks, the loss of all power;
// what the clients were answered is checked for linearizability, and at the end all replicas must agree.
import { randomInt } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Command, InvalidArgumentError, Option } from 'commander';
import { PROFILES } from '../replica/profiles.js';
import type { ProfileName } from '../replica/replica-options.js';
import { formatHistory, type Verdict } from '../testing/index.js';
import { runAsProgram } from './as-program.js';
import { Deadline, DemoError } from './demo/deadline.js';
import { DISK_KINDS, type DiskKind, whyNoDisks } from './nemesis/disks.js';
import {
  checkOperations,
  formatHistoryFile,
  type OperationRecord,
  parseHistoryFile,
  unpackOperations,
} from './nemesis/history.js';
import {
  canMountPrivately,
  privateMemory,
  removeMountPointAtExit,
  runWithPrivateMemory,
} from './nemesis/private-memory.js';
import { renderReport, summarize } from './nemesis/report.js';
import { type NemesisResult, runNemesis } from './nemesis/run.js';
import { DURABLE_KINDS, FAULT_KINDS, type FaultKind } from './nemesis/swarm.js';

const MINUTES_DEFAULT = 1;
const MINUTES_MAX = 24 * 60;
const RECOVERY_SECONDS_MAX = 3600;
const CLIENTS_DEFAULT = 12;
const CLIENTS_MAX = 256;
/** Besides the time with faults: to form the cluster, to converge, to check. */
const TIMEOUT_BASE_MS = 480_000;
const FOLDER_DEFAULT = 'out/results/nemesis';
/** Lines of a violation's history that are printed; all of it is in the file. */
const HISTORY_LINES_MAX = 40;

interface CliOptions {
  minutes: number;
  recoverySeconds?: number;
  device: string[];
  replicas: string;
  profile?: ProfileName;
  durable: boolean;
  disks?: DiskKind;
  clients: number;
  faults?: FaultKind[];
  seed?: number;
  out: string;
  history: boolean;
  check?: string;
  verbose: boolean;
  json: boolean;
}

function number(min: number, max: number, isWhole: boolean): (text: string) => number {
  return (text) => {
    const value = Number(text);
    const isGood = text.trim() !== '' && value >= min && value <= max && (!isWhole || Number.isInteger(value));
    if (isGood) return value;
    throw new InvalidArgumentError(`It must be a ${isWhole ? 'whole ' : ''}number from ${min} to ${max}.`);
  };
}

function names<Name extends string>(known: readonly Name[] | undefined): (text: string) => Name[] {
  return (text) => {
    const parts = text.split(',').map((name) => name.trim());
    if (parts.some((name) => name === '' || (known !== undefined && !known.includes(name as Name)))) {
      throw new InvalidArgumentError(
        `It must be one or several, with commas${known ? `, of ${known.join(', ')}` : ''}.`,
      );
    }
    return parts as Name[];
  };
}

function makeCommand(): Command {
  return new Command('npm run nemesis --')
    .description(
      'Starts a cluster of replicas, one process each, and client processes that write, read, compare-and-set and add\n' +
        'to a few registers; kills, stops, blocks and cuts off replicas meanwhile. What the clients were answered is\n' +
        'checked for linearizability. At the end everything is healed and all replicas must come to the same state.',
    )
    .addOption(
      new Option('--minutes <m>', 'time with faults')
        .argParser(number(0.05, MINUTES_MAX, false))
        .default(MINUTES_DEFAULT),
    )
    .addOption(
      new Option(
        '--recovery-seconds <s>',
        'limit for the cluster to be whole again after a fault, and for the first commit after a loss of all power\n' +
          '(default: 45, on RDMA devices 180)',
      ).argParser(number(1, RECOVERY_SECONDS_MAX, true)),
    )
    .addOption(
      new Option('--device <names>', '"shm", or one RDMA device for each replica, with commas')
        .argParser(names(undefined))
        .default(['shm'], 'shm'),
    )
    .addOption(new Option('--replicas <n>', 'number of replicas').choices(['3', '5', '7']).default('3'))
    .addOption(
      new Option('--profile <name>', 'failure detection (default: by seed and device)').choices(Object.keys(PROFILES)),
    )
    .addOption(
      new Option(
        '--durable',
        'replicas keep their logs in directories that the run makes and removes; among the faults is the loss of all power',
      ).default(false),
    )
    .addOption(
      new Option(
        '--disks <kind>',
        "of durable replicas: the machine's, file systems in memory, or thin devices, which fail and lose power (default: by seed and faults)",
      ).choices(DISK_KINDS),
    )
    .addOption(
      new Option('--clients <n>', 'clients at the same time')
        .argParser(number(1, CLIENTS_MAX, true))
        .default(CLIENTS_DEFAULT),
    )
    .addOption(
      new Option(
        '--faults <kinds>',
        `only these (default: all, of ${FAULT_KINDS.join(', ')}; ${DURABLE_KINDS.join(', ')} with --durable)`,
      ).argParser(names(FAULT_KINDS)),
    )
    .addOption(new Option('--seed <n>', 'draws settings, mixes and times').argParser(number(0, 2 ** 32 - 1, true)))
    .addOption(new Option('--out <folder>', 'for the files of a violation').default(FOLDER_DEFAULT))
    .addOption(new Option('--history', 'write the history of a sample of keys in any case').default(false))
    .addOption(new Option('--check <file>', 'check a history that a run has written, and do nothing else'))
    .addOption(new Option('--verbose', 'print every fault').default(false))
    .addOption(
      new Option('--json', 'print one object as the last line, everything else to standard error').default(false),
    )
    .configureHelp({ helpWidth: 120 });
}

/** Checks the history in a file; returns the exit code. */
function checkFile(path: string, json: boolean): number {
  let operations: OperationRecord[];
  let verdict: Verdict;
  try {
    operations = parseHistoryFile(readFileSync(path, 'utf8'));
    verdict = checkOperations(operations);
  } catch (error) {
    process.stderr.write(`error: ${path}: ${(error as Error).message}\n`);
    return 2;
  }
  const say = (line: string): void => {
    (json ? process.stderr : process.stdout).write(`${line}\n`);
  };
  if (verdict.kind === 'linearizable') say(`${operations.length} operations: linearizable`);
  else if (verdict.kind === 'violation') {
    for (const line of formatHistory(verdict.operations)) say(line);
    say(`the history of key ${verdict.key} has no linearization`);
  } else say(`the check of key ${verdict.key} was given up after ${verdict.steps} steps`);
  if (json) {
    const key = verdict.kind === 'linearizable' ? null : verdict.key;
    process.stdout.write(`${JSON.stringify({ operations: operations.length, verdict: verdict.kind, key })}\n`);
  }
  return { linearizable: 0, violation: 1, undecided: 2 }[verdict.kind];
}

/** Writes what is needed to look into a run; returns the paths. */
function writeFiles(result: NemesisResult, options: CliOptions, seed: number): string[] {
  const { verdicts, journal, history, violations, problems, settings } = result;
  const files: [string, readonly OperationRecord[]][] = verdicts.map(({ key, kind, rows }) => [
    `nemesis-${seed}-${kind}-key-${key}.json`,
    unpackOperations(rows),
  ]);
  if (options.history || violations.length + problems.length > 0) files.push([`nemesis-${seed}-sample.json`, history]);
  const about = { seed, options, settings, violations, problems, faults: journal };
  if (files.length > 0) mkdirSync(options.out, { recursive: true });
  return files.map(([name, operations]) => {
    const path = join(options.out, name);
    writeFileSync(path, formatHistoryFile(operations, about));
    return path;
  });
}

/** The simplest disks to which all that was asked for can be done; undefined if it is nothing that needs certain ones. */
function disksFor(faults: readonly FaultKind[]): DiskKind | undefined {
  if (faults.includes('diskFailure')) return 'thin';
  return faults.includes('diskFull') ? 'memory' : undefined;
}

/** Runs the nemesis with these arguments; returns the exit code. */
export async function main(argv: readonly string[]): Promise<number> {
  const command = makeCommand();
  command.parse(argv, { from: 'user' });
  const options = command.opts<CliOptions>();
  if (options.check !== undefined) return checkFile(options.check, options.json);
  const replicas = Number(options.replicas);
  const isShm = options.device.every((name) => name === 'shm');
  const devices =
    options.device.length === 1 ? Array<string>(replicas).fill(options.device[0] as string) : options.device;
  if (devices.length !== replicas) {
    command.error(
      `error: --device names ${devices.length} devices for ${replicas} replicas; give one, or one for each`,
    );
  }
  const needsDisks = options.faults?.filter((kind) => DURABLE_KINDS.includes(kind)) ?? [];
  if (!options.durable && needsDisks.length > 0) {
    command.error(
      `error: --faults ${needsDisks.join(',')} needs replicas with a disk to come back from: add --durable`,
    );
  }
  const kinds = options.faults ?? FAULT_KINDS.filter((kind) => options.durable || !DURABLE_KINDS.includes(kind));
  const wantsMounts = (isShm && kinds.includes('exhaust')) || options.durable;
  if (wantsMounts && privateMemory() === undefined && canMountPrivately()) {
    return runWithPrivateMemory(replicas, fileURLToPath(import.meta.url), argv);
  }
  if (options.disks !== undefined) {
    const whyNot = options.durable ? whyNoDisks(options.disks) : 'replicas are not durable: add --durable';
    if (whyNot !== undefined) command.error(`error: --disks ${options.disks}: ${whyNot}`);
  }
  removeMountPointAtExit();
  const say = (line: string): void => {
    (options.json ? process.stderr : process.stdout).write(`${line}\n`);
  };
  const seed = options.seed ?? randomInt(2 ** 32);
  const durationMs = options.minutes * 60_000;
  const deadline = new Deadline(durationMs + TIMEOUT_BASE_MS);
  say(`seed ${seed}, ${options.minutes} minutes`);
  try {
    const result = await runNemesis({
      ...{ replicas, devices, durationMs, seed, deadline },
      profile: options.profile,
      durable: options.durable,
      disks: options.disks ?? disksFor(options.faults ?? []),
      recoveryTimeoutMs: options.recoverySeconds === undefined ? undefined : options.recoverySeconds * 1000,
      clients: options.clients,
      kinds,
      verbose: options.verbose,
      say,
    });
    say(`\n${renderReport(result, seed)}\n`);
    const first = result.verdicts.find(({ kind }) => kind === 'violation');
    if (first !== undefined) {
      const verdict = checkOperations(unpackOperations(first.rows));
      const lines = verdict.kind === 'violation' ? formatHistory(verdict.operations) : [];
      say(`key ${first.key}, the last ${HISTORY_LINES_MAX} of ${lines.length} operations:`);
      for (const line of lines.slice(-HISTORY_LINES_MAX)) say(`  ${line}`);
    }
    const problems = [...result.problems];
    try {
      for (const path of writeFiles(result, options, seed)) {
        say(`history and faults: ${path}; check it again with: npm run nemesis -- --check ${path}`);
      }
    } catch (error) {
      // What was found is told all the same.
      problems.push(`the files of the run cannot be written: ${(error as Error).message}`);
    }
    const { folder } = result.powerLosses ?? {};
    if (folder !== undefined) say(`the directories of the replicas are kept: ${folder}`);
    for (const violation of result.violations) process.stderr.write(`VIOLATION: ${violation}\n`);
    for (const problem of problems) process.stderr.write(`FAILED: ${problem}\n`);
    const isGood = result.violations.length + problems.length === 0;
    if (isGood) say('Linearizable, and all replicas agree.');
    else process.stderr.write(`seed ${seed}\n`);
    if (options.json) process.stdout.write(`${JSON.stringify(summarize(result))}\n`);
    return isGood ? 0 : 1;
  } catch (error) {
    if (!(error instanceof DemoError)) throw error;
    process.stderr.write(`error: ${error.message} (seed ${seed})\n`);
    if (options.json) process.stdout.write(`${JSON.stringify(summarize())}\n`);
    return 1;
  } finally {
    deadline.end();
  }
}

await runAsProgram(import.meta.url, main);
