// npm run sim: deterministic simulations of the consensus core, seed by seed. A seed that fails prints the command that
// replays it; the exit code says whether any did.

import { randomInt } from 'node:crypto';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { Command, InvalidArgumentError } from 'commander';
import { minimize } from '../testing/minimize.js';
import { LEAVE_OUT } from '../testing/sim-options.js';
import { runSimulation, type SimulationRequest } from '../testing/simulation.js';
import type { SimWorkerRequest, SimWorkerResult } from './sim-worker.js';

const SEED_MAX = 2 ** 40;
/** Background ticks are 5 or 10 ms of virtual time; --ticks counts the long ones. */
const TICK_SECONDS = 0.01;
const TRACE_LINES_DEFAULT = 400;
const REPLICAS = [3, 5, 7];

interface Options {
  readonly seeds: number;
  readonly seed?: number;
  readonly replicas: number;
  readonly virtualSeconds: number;
  readonly ticks?: number;
  readonly workers: number;
  readonly without: readonly string[];
  readonly trace?: true | number;
  readonly minimize?: boolean;
  readonly json?: boolean;
  readonly keepGoing?: boolean;
}

function integerFrom(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!Number.isInteger(value) || value < min || value > max) {
      throw new InvalidArgumentError(`must be an integer from ${min} to ${max}.`);
    }
    return value;
  };
}

function secondsFrom(text: string): number {
  const value = Number(text);
  if (!(value >= 10 && value <= 86_400)) throw new InvalidArgumentError('must be from 10 to 86400 seconds.');
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
  return (
    `npm run sim -- --seed ${request.seed} --replicas ${request.replicas} ` +
    `--virtual-seconds ${request.virtualSeconds}${without}${more}`
  );
}

interface Totals {
  seeds: number;
  violations: number;
  virtualSeconds: number;
  operations: number;
  leaderChanges: number;
  undecided: number;
}

/** Runs the seeds on `workers` threads, each taking the next when it is done with one. */
async function runSeeds(
  requests: readonly SimulationRequest[],
  workers: number,
  onResult: (request: SimulationRequest, result: SimWorkerResult) => boolean,
): Promise<void> {
  let next = 0;
  let isStopped = false;
  const path = fileURLToPath(new URL('./sim-worker.js', import.meta.url));
  const runOne = async (): Promise<void> => {
    const worker = new Worker(path);
    try {
      while (next < requests.length && !isStopped) {
        const request = requests[next++] as SimulationRequest;
        const result = await new Promise<SimWorkerResult>((resolve, reject) => {
          worker.once('message', resolve);
          worker.once('error', reject);
          worker.postMessage(request satisfies SimWorkerRequest);
        });
        worker.removeAllListeners('error');
        if (!onResult(request, result)) isStopped = true;
      }
    } finally {
      await worker.terminate();
    }
  };
  await Promise.all(Array.from({ length: Math.min(workers, requests.length) }, runOne));
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
    .option('--ticks <count>', 'the same, in ticks of 10 ms', integerFrom(1000, 8_640_000))
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
  const requests = Array.from({ length: options.seeds }, (_, index) => {
    return { seed: first + index, replicas, virtualSeconds, without };
  });
  console.log(
    `seeds ${first} to ${first + options.seeds - 1}, ${replicas} replicas, ${virtualSeconds} s of virtual time each`,
  );
  if (options.trace !== undefined) {
    showTrace(requests[0] as SimulationRequest, options.trace === true ? TRACE_LINES_DEFAULT : options.trace);
  }
  const totals: Totals = { seeds: 0, violations: 0, virtualSeconds: 0, operations: 0, leaderChanges: 0, undecided: 0 };
  const begun_ms = performance.now();
  const failed: SimulationRequest[] = [];
  await runSeeds(requests, options.workers, (request, result) => {
    totals.seeds++;
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
  if (options.minimize && failed[0] !== undefined) {
    const { request, result } = minimize(failed[0]);
    console.log(`simplest failing run found: ${result.violation?.message}`);
    console.log(`  replay: ${replayCommand(request, ' --trace')}`);
  }
  const wallSeconds = (performance.now() - begun_ms) / 1e3;
  const rate = totals.virtualSeconds / wallSeconds;
  console.log(
    `${totals.seeds} seeds, ${totals.violations} violations, ${totals.operations} operations, ` +
      `${totals.leaderChanges} leader changes, ${totals.virtualSeconds.toFixed(0)} virtual seconds in ` +
      `${wallSeconds.toFixed(1)} s (${rate.toFixed(0)} per second)`,
  );
  if (options.json) {
    const { seeds, violations, operations, leaderChanges, undecided } = totals;
    const rounded = { virtualSeconds: Math.round(totals.virtualSeconds), wallSeconds: Number(wallSeconds.toFixed(3)) };
    console.log(
      JSON.stringify({ seeds, violations, ...rounded, operations, leaderChanges, undecided, firstSeed: first }),
    );
  }
  process.exitCode = totals.violations > 0 ? 1 : 0;
}

await main();
