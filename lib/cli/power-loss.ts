// npm run power-loss: kills all replicas of a durable cluster at random moments under load, starts them again, round by
// round, and checks at the end that no acknowledged command was lost or applied twice and that all states agree. What
// SIGKILL takes is the memory of the processes; what the kernel has not written yet it keeps, so torn writes are the
// simulator's part (docs/TESTING.md).
import { randomInt } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Command, InvalidArgumentError, Option } from 'commander';
import { PROFILES } from '../replica/profiles.js';
import type { ProfileName } from '../replica/replica-options.js';
import { runAsProgram } from './as-program.js';
import { Deadline, DemoError } from './demo/deadline.js';
import { CommandSource, readCommands } from './demo/input.js';
import { seededRandom } from './demo/random.js';
import { type Round, Run, RunFailed } from './demo/run.js';

const ROUNDS_DEFAULT = 50;
const ROUNDS_MAX = 1000;
const OPS_PER_ROUND_DEFAULT = 4_000;
const OPS_PER_ROUND_MAX = 100_000;
const WINDOW = 256;
/** Small, so that logs are cut and snapshots replayed in a short run, too. */
const SNAPSHOT_AFTER_BYTES = 512 * 1024;
const LOG_BYTES = 1024 * 1024;
const TIMEOUT_BASE_S = 120;
const TIMEOUT_PER_ROUND_S = 30;
const OPEN_TIMEOUT_MS = 60_000;

interface CliOptions {
  rounds: number;
  ops: number;
  replicas: string;
  directory?: string;
  profile?: ProfileName;
  seed?: number;
  json: boolean;
}

function integer(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() !== '' && Number.isInteger(value) && value >= min && value <= max) return value;
    throw new InvalidArgumentError(`It must be a whole number from ${min} to ${max}.`);
  };
}

function makeCommand(): Command {
  return new Command('npm run power-loss --')
    .description(
      'Starts a durable cluster on shared memory, one process for each replica, and drives it; kills all of them at random\n' +
        'moments, starts them again, round by round, and checks that nothing acknowledged was lost or applied twice.',
    )
    .addOption(new Option('--rounds <n>', 'how often').argParser(integer(1, ROUNDS_MAX)).default(ROUNDS_DEFAULT))
    .addOption(
      new Option('--ops <n>', 'commands for each round')
        .argParser(integer(100, OPS_PER_ROUND_MAX))
        .default(OPS_PER_ROUND_DEFAULT),
    )
    .addOption(new Option('--replicas <n>', 'number of replicas').choices(['3', '5', '7']).default('3'))
    .addOption(
      new Option('--directory <path>', 'where the replicas keep their logs (default: a new one, removed at the end)'),
    )
    .addOption(new Option('--profile <name>', 'failure detection').choices(Object.keys(PROFILES)))
    .addOption(new Option('--seed <n>', 'repeats the random choices of a run').argParser(integer(0, 2 ** 32 - 1)))
    .addOption(
      new Option('--json', 'print one object as the last line, everything else to standard error').default(false),
    )
    .configureHelp({ helpWidth: 120 });
}

function figures(values: readonly number[]): { p50: number; max: number } | null {
  const sorted = [...values].sort((a, b) => a - b);
  const [p50, max] = [sorted[sorted.length >> 1], sorted.at(-1)];
  return p50 === undefined || max === undefined ? null : { p50: Math.round(p50), max: Math.round(max) };
}

/** Runs with these arguments; returns the exit code. */
export async function main(argv: readonly string[]): Promise<number> {
  const command = makeCommand();
  command.parse(argv, { from: 'user' });
  const { rounds, ops, replicas, directory, profile, json, seed = randomInt(2 ** 32) } = command.opts<CliOptions>();
  const say = (line: string): void => {
    (json ? process.stderr : process.stdout).write(`${line}\n`);
  };
  const folder = directory ?? mkdtempSync(join(tmpdir(), 'quorate-power-loss-'));
  const removeFolder = (): void => {
    if (directory === undefined) rmSync(folder, { recursive: true, force: true });
  };
  process.on('exit', removeFolder); // by a signal; the replicas have been killed then
  const deadline = new Deadline(1000 * (TIMEOUT_BASE_S + TIMEOUT_PER_ROUND_S * rounds));
  const finish = (
    done: readonly Round[],
    acknowledged: number,
    verdict: { lost: number; duplicated: number; digestsAgree: boolean } | undefined,
    problems: readonly string[],
  ): number => {
    const times = done.map(({ failoverUs }) => (failoverUs as number) / 1000);
    const summary = {
      rounds: done.length,
      replicas: Number(replicas),
      acknowledged,
      lost: verdict?.lost ?? null,
      duplicated: verdict?.duplicated ?? null,
      digestsAgree: verdict?.digestsAgree ?? null,
      startToFirstCommitMs: figures(times),
      seed,
    };
    for (const problem of problems) process.stderr.write(`FAILED: ${problem}\n`);
    if (problems.length === 0) say('Nothing was lost, nothing was applied twice.');
    else say(`the directories of the replicas are kept: ${folder}`);
    if (problems.length === 0) removeFolder();
    if (json) process.stdout.write(`${JSON.stringify(summary)}\n`);
    return problems.length === 0 ? 0 : 1;
  };
  try {
    const { commands } = await deadline.until('the input', readCommands(undefined));
    say(`${rounds} rounds of ${ops} commands, seed ${seed}, directories below ${folder}`);
    const {
      verdict,
      acknowledged,
      rounds: done,
    } = await Run.execute({
      replicas: Number(replicas),
      devices: ['shm'],
      profile,
      ops: ops * rounds,
      source: new CommandSource(commands, 0),
      kill: 'SIGKILL',
      victim: 'all',
      openWith: (id) => ({
        logBytes: LOG_BYTES,
        durable: { directory: join(folder, `replica-${id}`), snapshotAfterBytes: SNAPSHOT_AFTER_BYTES },
      }),
      rounds,
      window: WINDOW,
      openTimeoutMs: OPEN_TIMEOUT_MS,
      random: seededRandom(seed),
      deadline,
      say,
    });
    return finish(done, acknowledged, verdict, verdict.problems);
  } catch (error) {
    if (!(error instanceof DemoError)) throw error;
    const known = error instanceof RunFailed ? error.known : { rounds: [], acknowledged: 0 };
    return finish(known.rounds, known.acknowledged, undefined, [`${error.message} (seed ${seed})`]);
  } finally {
    deadline.end();
    process.off('exit', removeFolder);
  }
}

await runAsProgram(import.meta.url, main);
