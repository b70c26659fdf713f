// npm run sim: deterministic simulations of the consensus core, seed by seed. A seed that fails prints the command that
// replays it; the exit code says whether any did.

import { randomInt } from 'node:crypto';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { Command, InvalidArgumentError } from 'commander';
import { minimize } from '../testing/minimize.js';
import { LEAVE_OUT, PACE_MAX } from '../testing/sim-options.js';
import { runSimulation, type SimulationRequest } from '../testing/simulation.js';
import { endWithReader } from './as-program.js';
import { integerFrom } from './integer-option.js';
import type { SimWorkerRequest, SimWorkerResult } from './sim-worker.js';

const SEED_MAX = 2 ** 40;
/** Background ticks are 5 or 10 ms of virtual time at pace 1; --ticks counts the long ones. */
const TICK_SECONDS = 0.01;
const PROGRESS_EVERY_MS = 15_000;
/** A seed takes seconds; one that takes longer than this hangs, and counts as failed. */
const SEED_TIMEOUT_MS = 20 * 60_000;
const TRACE_LINES_DEFAULT = 400;
const REPLICAS = [3, 5, 7];

interface Options {
  readonly seeds: number;
  readonly seed?: number;
  readonly replicas: number;
  readonly virtualSeconds: number;
  readonly ticks?: number;
  readonly pace?: number;
  readonly workers: number;
  readonly without: readonly string[];
  readonly trace?: true | number;
  readonly minimize?: boolean;
  readonly json?: boolean;
  readonly keepGoing?: boolean;
}

function secondsFrom(text: string): number {
  const value = Number(text);
  if (!(value >= 2 && value <= 86_400)) throw new InvalidArgumentError('must be from 2 to 86400 seconds.');
  return value;
}

function paceFrom(text: string): number {
  const value = Number(text);
  if (!(value >= 1 && value <= PACE_MAX)) throw new InvalidArgumentError(`must be from 1 to ${PACE_MAX}.`);
  return value;
}

function leftOut(text: string): readonly string[] {
  const names = text.split(',').filter((name) => name !== '');
  for (const name of names) {
    if (!(LEAVE_OUT as readonly string[]).includes(name)) {
      throw new InvalidArgumentError(`'${name}' is unknown; known are ${LEAVE_OUT.join(', ')}.`);
    }
  }
  return names;
}

function replicaCount(text: string): number {
  const count = Number(text);
  if (!REPLICAS.includes(count)) throw new InvalidArgumentError(`must be one of ${REPLICAS.join(', ')}.`);
  return count;
}

function replayCommand(request: SimulationRequest, more = ''): string {
  const without = (request.without ?? []).length > 0 ? ` --without ${request.without?.join(',')}` : '';
  const pace = request.pace === undefined ? '' : ` --pace ${request.pace}`;
  return (
    `npm run sim -- --seed ${request.seed} --replicas ${request.replicas} ` +
    `--virtual-seconds ${request.virtualSeconds}${pace}${without}${more}`
  );
}

interface Totals {
  seeds: number;
  violations: number;
  /** Seeds whose run did not end by itself: the thread died or hung. */
  crashed: number;
  virtualSeconds: number;
  operations: number;
  leaderChanges: number;
  faults: number;
  undecided: number;
}

const WORKER_PATH = fileURLToPath(new URL('./sim-worker.js', import.meta.url));

/** The result of one seed, or the error with which its thread ended; the thread is of no use any more then. */
function runOn(worker: Worker, request: SimWorkerRequest): Promise<SimWorkerResult | Error> {
  return new Promise((resolve) => {
    const settle = (outcome: SimWorkerResult | Error): void => {
      clearTimeout(timer);
      for (const event of ['message', 'error', 'exit']) worker.removeAllListeners(event);
      // What a thread that is given up still has to say concerns nobody, but must not end the program.
      if (outcome instanceof Error) worker.on('error', () => {});
      resolve(outcome);
    };
    const timer = setTimeout(
      () => settle(new Error(`no result after ${SEED_TIMEOUT_MS / 1e3} s of real time`)),
      SEED_TIMEOUT_MS,
    );
    worker.once('message', settle);
    worker.once('error', (error) => settle(error instanceof Error ? error : new Error(String(error))));
    worker.once('exit', (code) => settle(new Error(`the thread ended with code ${code}`)));
    worker.postMessage(request);
  });
}

/**
 * Runs the seeds on `workers` threads, each taking the next when it is done with one. A thread that dies takes its seed
 * with it and nothing else: another takes its place.
 */
async function runSeeds(
  requests: readonly SimulationRequest[],
  workers: number,
  onOutcome: (request: SimulationRequest, outcome: SimWorkerResult | Error) => boolean,
): Promise<void> {
  let next = 0;
  let isStopped = false;
  const runSome = async (): Promise<void> => {
    let worker: Worker | null = null;
    while (next < requests.length && !isStopped) {
      const request = requests[next++] as SimulationRequest;
      worker ??= new Worker(WORKER_PATH);
      const outcome = await runOn(worker, request);
      if (outcome instanceof Error) {
        await worker.terminate();
        worker = null;
      }
      if (!onOutcome(request, outcome)) isStopped = true;
    }
    await worker?.terminate();
  };
  await Promise.all(Array.from({ length: Math.min(workers, requests.length) }, runSome));
}

function showTrace(request: SimulationRequest, lines: number): void {
  const { trace, violation } = runSimulation({ ...request, traceLines: lines });
  for (const line of trace) console.log(line);
  console.log(violation === null ? 'no violation' : `${violation.invariant}: ${violation.message}`);
}

async function main(): Promise<void> {
  const command = new Command('sim')
    .description('Simulates clusters under faults, deterministically by seed, and checks what must hold.')
    .option('--seeds <count>', 'how many seeds to run', integerFrom(1, 10_000_000), 1)
    .option('--seed <number>', 'first seed; random if it is not given', integerFrom(0, SEED_MAX))
    .option('--replicas <count>', `replicas of the cluster: ${REPLICAS.join(', ')}`, replicaCount, 3)
    .option('--virtual-seconds <seconds>', 'length of each run in virtual time', secondsFrom, 30)
    .option('--ticks <count>', 'the same, in ticks of 10 ms', integerFrom(200, 8_640_000))
    .option('--pace <factor>', 'how many times slower than the fastest clusters; drawn if not given', paceFrom)
    .option('--workers <count>', 'threads', integerFrom(1, 256), Math.min(4, availableParallelism()))
    .option('--without <list>', `leave kinds of faults out: ${LEAVE_OUT.join(',')}`, leftOut, [])
    .option('--trace [lines]', 'print the trace of the first seed, the last lines of it', integerFrom(1, 10_000_000))
    .option('--minimize', 'look for a simpler run that fails in the same way')
    .option('--keep-going', 'do not stop at the first seed that fails')
    .option('--json', 'print the totals as the last line, in JSON')
    .parse();
  const options = command.opts<Options>();
  const first = options.seed ?? randomInt(SEED_MAX);
  const virtualSeconds = options.ticks === undefined ? options.virtualSeconds : options.ticks * TICK_SECONDS;
  const { replicas, without } = options;
  const pace = options.pace === undefined ? {} : { pace: options.pace };
  const requests = Array.from({ length: options.seeds }, (_, index) => {
    return { seed: first + index, replicas, virtualSeconds, without, ...pace };
  });
  console.log(
    `seeds ${first} to ${first + options.seeds - 1}, ${replicas} replicas, ${virtualSeconds} s of virtual time each`,
  );
  if (options.trace !== undefined) {
    showTrace(requests[0] as SimulationRequest, options.trace === true ? TRACE_LINES_DEFAULT : options.trace);
  }
  const totals: Totals = {
    seeds: 0,
    violations: 0,
    crashed: 0,
    virtualSeconds: 0,
    operations: 0,
    leaderChanges: 0,
    faults: 0,
    undecided: 0,
  };
  const begun_ms = performance.now();
  const failed: SimulationRequest[] = [];
  const progress = setInterval(() => {
    const seconds = (performance.now() - begun_ms) / 1e3;
    const left = totals.seeds === 0 ? '?' : (((options.seeds - totals.seeds) * seconds) / totals.seeds).toFixed(0);
    console.log(
      `${totals.seeds} of ${options.seeds} seeds, ${totals.violations} violations, ${totals.crashed} crashed, ` +
        `${seconds.toFixed(0)} s, about ${left} s left`,
    );
  }, PROGRESS_EVERY_MS);
  await runSeeds(requests, options.workers, (request, result) => {
    totals.seeds++;
    if (result instanceof Error) {
      totals.crashed++;
      console.log(`seed ${request.seed} crashed: ${result.message}`);
      console.log(`  replay: ${replayCommand(request, ' --trace')}`);
      return options.keepGoing === true;
    }
    totals.faults += result.faults;
    totals.virtualSeconds += result.virtualSeconds;
    totals.operations += result.operations;
    totals.leaderChanges += result.leaderChanges;
    if (result.undecided) {
      totals.undecided++;
      console.log(`seed ${request.seed}: the search for a linearization was given up; the other checkers passed`);
    }
    if (result.violation === null) return true;
    totals.violations++;
    failed.push(request);
    const { invariant, message, time_ns } = result.violation;
    console.log(`seed ${request.seed} breaks ${invariant} at ${(time_ns / 1e9).toFixed(3)} s: ${message}`);
    console.log(`  replay: ${replayCommand(request, ' --trace')}`);
    return options.keepGoing === true;
  });
  clearInterval(progress);
  if (options.minimize && failed[0] !== undefined) {
    const { request, result } = minimize(failed[0]);
    console.log(`simplest failing run found: ${result.violation?.message}`);
    console.log(`  replay: ${replayCommand(request, ' --trace')}`);
  }
  const wallSeconds = (performance.now() - begun_ms) / 1e3;
  const rate = totals.virtualSeconds / wallSeconds;
  console.log(
    `${totals.seeds} seeds, ${totals.violations} violations, ${totals.crashed} crashed, ` +
      `${totals.operations} operations, ${totals.leaderChanges} leader changes, ${totals.faults} faults, ${totals.virtualSeconds.toFixed(0)} virtual seconds in ` +
      `${wallSeconds.toFixed(1)} s (${rate.toFixed(0)} per second)`,
  );
  if (options.json) {
    const { seeds, violations, crashed, operations, leaderChanges, faults, undecided } = totals;
    const rounded = { virtualSeconds: Math.round(totals.virtualSeconds), wallSeconds: Number(wallSeconds.toFixed(3)) };
    console.log(
      JSON.stringify({
        seeds,
        violations,
        crashed,
        ...rounded,
        operations,
        leaderChanges,
        faults,
        undecided,
        firstSeed: first,
      }),
    );
  }
  process.exitCode = totals.violations + totals.crashed > 0 ? 1 : 0;
}

endWithReader();
await main();
