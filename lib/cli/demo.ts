// npm run demo: a cluster of processes on this host, a replicated key-value store driven with real input, replicas
// killed or stopped in the middle of it, and a check that nothing acknowledged was lost or applied twice.
import { randomInt } from 'node:crypto';
import { Command, InvalidArgumentError, Option } from 'commander';
import { PROFILES } from '../replica/profiles.js';
import type { ProfileName } from '../replica/replica-options.js';
import { runAsProgram } from './as-program.js';
import { AUDIT_SEQUENCE_MAX } from './demo/audited-store.js';
import { Deadline, DemoError } from './demo/deadline.js';
import { CommandSource, INPUT_VALUE_BYTES_MAX, readCommands } from './demo/input.js';
import { seededRandom } from './demo/random.js';
import { renderReport, summarize } from './demo/report.js';
import { Run, RunFailed, type RunOptions } from './demo/run.js';

const REPLICA_COUNTS = ['3', '5', '7'];
const ROUNDS_DEFAULT = 3;
const ROUNDS_MAX = 1000;
/** Commands of a run on the default input; one on a given input runs it once. */
const OPS_DEFAULT = 20_000;
const WINDOW_DEFAULT = 64;
const WINDOW_MAX = 4096;
/** Default time limit: for the cluster to form and the load to run, and for each round. */
const TIMEOUT_BASE_S = 120;
const TIMEOUT_PER_ROUND_S = 30;
const TIMEOUT_MAX_S = 86_400;
/** Not before the time limit of the whole run could be reached. */
const OPEN_TIMEOUT_MS = 60_000;

interface CliOptions {
  device: string[];
  replicas: string;
  ops?: number;
  payload: number;
  kill: 'SIGKILL' | 'SIGSTOP' | 'none';
  victim: 'leader' | 'follower';
  rounds: number;
  input?: string;
  profile?: ProfileName;
  window: number;
  seed?: number;
  timeout?: number;
  json: boolean;
}

function integer(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() !== '' && Number.isInteger(value) && value >= min && value <= max) return value;
    throw new InvalidArgumentError(`It must be a whole number from ${min} to ${max}.`);
  };
}

function deviceList(text: string): string[] {
  const names = text.split(',').map((name) => name.trim());
  if (names.some((name) => name === ''))
    throw new InvalidArgumentError('It must be a device name, or several with commas.');
  return names;
}

function makeCommand(): Command {
  return new Command('npm run demo --')
    .description(
      'Starts a cluster of replicas, one process each, drives a replicated key-value store through its leader, takes\n' +
        'the leader down in the middle of it and brings it back, round by round. At the end it checks that every\n' +
        'acknowledged command was applied exactly once by every replica and that all states agree.',
    )
    .addOption(
      new Option('--device <names>', 'RDMA device or "shm", or one for each replica, with commas')
        .argParser(deviceList)
        .default([], 'the first RDMA device with an active port, else shm'),
    )
    .addOption(new Option('--replicas <n>', 'number of replicas').choices(REPLICA_COUNTS).default('3'))
    .addOption(
      new Option('--ops <n>', `number of commands (default: ${OPS_DEFAULT}, or those of --input)`).argParser(
        integer(1, AUDIT_SEQUENCE_MAX),
      ),
    )
    .addOption(
      new Option('--payload <bytes>', 'pad each "set" command to this many bytes')
        .argParser(integer(0, INPUT_VALUE_BYTES_MAX))
        .default(0, 'no padding'),
    )
    .addOption(
      new Option('--kill <signal>', 'what a victim gets').choices(['SIGKILL', 'SIGSTOP', 'none']).default('SIGKILL'),
    )
    .addOption(new Option('--victim <role>', 'who gets it').choices(['leader', 'follower']).default('leader'))
    .addOption(new Option('--rounds <n>', 'how often').argParser(integer(0, ROUNDS_MAX)).default(ROUNDS_DEFAULT))
    .addOption(
      new Option(
        '--input <file>',
        'commands to run, one "set KEY VALUE" or "del KEY" a line; "-" is standard input (default: the flattened ' +
          'package-lock.json)',
      ),
    )
    .addOption(new Option('--profile <name>', 'failure detection (default: by device)').choices(Object.keys(PROFILES)))
    .addOption(
      new Option('--window <n>', 'most commands in flight').argParser(integer(1, WINDOW_MAX)).default(WINDOW_DEFAULT),
    )
    .addOption(new Option('--seed <n>', 'repeats the random choices of a run').argParser(integer(0, 2 ** 32 - 1)))
    .addOption(
      new Option(
        '--timeout <seconds>',
        `time limit (default: ${TIMEOUT_BASE_S} and ${TIMEOUT_PER_ROUND_S} for each round)`,
      ).argParser(integer(1, TIMEOUT_MAX_S)),
    )
    .addOption(
      new Option('--json', 'print one object as the last line, everything else to standard error').default(false),
    )
    .configureHelp({ helpWidth: 120 });
}

/** Runs the demo with these arguments; returns the exit code. */
export async function main(argv: readonly string[]): Promise<number> {
  const command = makeCommand();
  command.parse(argv, { from: 'user' });
  const options = command.opts<CliOptions>();
  const replicas = Number(options.replicas);
  if (options.device.length > 1 && options.device.length !== replicas) {
    command.error(
      `error: --device names ${options.device.length} devices for ${replicas} replicas; give one, or one for each`,
    );
  }
  const say = (line: string): void => {
    (options.json ? process.stderr : process.stdout).write(`${line}\n`);
  };
  const finish = (summary: unknown, code: number): number => {
    if (options.json) process.stdout.write(`${JSON.stringify(summary)}\n`);
    return code;
  };

  const rounds = options.kill === 'none' ? 0 : options.rounds;
  const seed = options.seed ?? randomInt(2 ** 32);
  const deadline = new Deadline(1000 * (options.timeout ?? TIMEOUT_BASE_S + TIMEOUT_PER_ROUND_S * rounds));
  try {
    const { name, commands } = await deadline.until('the input', readCommands(options.input));
    const ops = options.ops ?? (options.input === undefined ? OPS_DEFAULT : commands.length);
    if (ops > AUDIT_SEQUENCE_MAX) {
      throw new DemoError(`${name} has ${ops} commands; the limit is ${AUDIT_SEQUENCE_MAX}: give --ops`);
    }
    const times = ops > commands.length ? ', repeated with a suffix' : '';
    say(`${ops} commands from ${name} (${commands.length}${times}), seed ${seed}`);
    const run: RunOptions = {
      replicas,
      devices: options.device,
      profile: options.profile,
      ops,
      source: new CommandSource(commands, options.payload),
      kill: options.kill,
      victim: options.victim,
      rounds,
      window: options.window,
      openTimeoutMs: OPEN_TIMEOUT_MS,
      random: seededRandom(seed),
      deadline,
      say,
    };
    const result = await Run.execute(run);
    say(`\n${renderReport(result, options.kill, seed, options.window)}\n`);
    const { problems } = result.verdict;
    for (const problem of problems) process.stderr.write(`FAILED: ${problem}\n`);
    if (problems.length === 0) say('Nothing was lost, nothing was applied twice.');
    return finish(
      summarize(replicas, { ...result, fabric: result.status.fabric }, result.verdict),
      problems.length === 0 ? 0 : 1,
    );
  } catch (error) {
    if (!(error instanceof DemoError)) throw error;
    process.stderr.write(`error: ${error.message}\n`);
    if (!(error instanceof RunFailed)) return 1;
    process.stderr.write(`the run did not get to its end (seed ${seed})\n`);
    return finish(summarize(replicas, error.known, undefined), 1);
  } finally {
    deadline.end();
  }
}

await runAsProgram(import.meta.url, main);
