// npm run bench:permissions: the ways to give and take the right to write into one's memory, measured side by side (in
// the Mu paper, section 5.2 and figure 2, extended). For each: how long taking and giving take, what a writer sees that
// has lost the right, and whether the right was really gone when the call had returned, by the race test.
//
//   node bench/permissions.mjs [--device shm | b0,b1] [--parts latency,race] [--iterations N] [--trials N]
//                              [--max-mib 1024] [--from FILE,FILE] [--save NAME] [--json]
//
// --device names the responder's device, and the writer's if it is another. --save writes docs/figures/permissions-NAME
// (.json, .svg) and the tables of docs/PERMISSIONS.md. --from takes results of earlier runs instead of measuring, those
// of a virtual machine for example, and joins them: of several medians the best counts, trials add up. Nothing here
// passes or fails by time.
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { fileURLToPath } from 'node:url';
import { formatUs, percentile } from '#lib/cli/demo/figures.js';
import { monotonicNs, wcStatusName } from '#lib/verbs/index.js';
import { nearAndFar } from './support/ends.mjs';
import { readOptions, refuse, wholeNumber } from './support/options.mjs';
import { MECHANISMS, Pair, SIZES, sizeText } from './support/permission-mechanisms.mjs';

const RACE = fileURLToPath(new URL('revocation-race.mjs', import.meta.url));
/** Time that one mechanism with one size may take at most; then fewer iterations must do, but not fewer than these. */
const BUDGET_NS = 6e9;
const ITERATIONS_MIN = 5;
const DENIED_WRITES = 5;
const RACE_TIMEOUT_S = 240;
const MIB = 1_048_576;
/** Region for what does not depend on its size. */
const USUAL_BYTES = MIB;
const DEFAULTS = { shm: { iterations: 1000, trials: 1000 }, ibverbs: { iterations: 200, trials: 100 } };

const options = readOptions(import.meta.url, {
  device: { type: 'string', default: 'shm' },
  parts: { type: 'string', default: 'latency,race' },
  mechanisms: { type: 'string', default: MECHANISMS.map(({ name }) => name).join() },
  iterations: { type: 'string' },
  trials: { type: 'string' },
  'max-mib': { type: 'string', default: '1024' },
  from: { type: 'string' },
  save: { type: 'string' },
  json: { type: 'boolean', default: false },
});

/** @typedef {{ p50: number, p99: number }} Summary times in microseconds */
/**
 * @typedef {object} Latency
 * @property {string} mechanism
 * @property {number | null} sizeBytes null where it does not matter
 * @property {number} iterations
 * @property {Summary} revokeUs
 * @property {Summary} grantUs
 * @property {Record<string, number>} statuses of WRITEs after the right was gone
 */
/**
 * @typedef {object} Race
 * @property {string} mechanism
 * @property {number} trials
 * @property {number} late trials in which memory changed after the call had returned
 * @property {number} latestUs
 * @property {Record<string, number>} statuses
 * @property {Summary} revokeUs
 * @property {number} seed
 */
/**
 * @typedef {object} Results
 * @property {string} device
 * @property {string} provider
 * @property {string[]} machines on what the parts were measured
 * @property {Latency[]} latency
 * @property {Race[]} race
 * @property {{ mechanism: string, sizeBytes: number | null, why: string }[]} leftOut
 */

const say = (/** @type {string} */ line) => (options.json ? process.stderr : process.stdout).write(`${line}\n`);

/** @param {number[]} ns @returns {Summary} */
function summary(ns) {
  const us = (/** @type {number} */ percent) => Math.round((percentile(ns, percent) ?? Number.NaN) / 10) / 100;
  return { p50: us(50), p99: us(99) };
}

const messageOf = (/** @type {unknown} */ error) => (error instanceof Error ? error.message : String(error));

/**
 * Gives and takes the right many times, then a few times more with a WRITE after it was taken.
 * @param {import('./support/permission-mechanisms.mjs').Mechanism} mechanism
 * @param {Pair} pair
 * @param {number} iterations at most
 */
function measure(mechanism, pair, iterations) {
  /** @type {number[]} */
  const revokeNs = [];
  /** @type {number[]} */
  const grantNs = [];
  const once = () => {
    mechanism.before?.(pair);
    const begin = monotonicNs();
    mechanism.grant(pair);
    const granted = monotonicNs();
    mechanism.settle?.(pair);
    const status = pair.write();
    if (status !== 0) throw new Error(`a WRITE with the right to it ended with ${wcStatusName(status)}`);
    const revoking = monotonicNs();
    mechanism.revoke(pair);
    revokeNs.push(monotonicNs() - revoking);
    grantNs.push(granted - begin);
  };
  mechanism.prepare(pair);
  once(); // to warm up
  revokeNs.length = 0;
  grantNs.length = 0;
  const limit = monotonicNs() + BUDGET_NS;
  while (revokeNs.length < iterations && (revokeNs.length < ITERATIONS_MIN || monotonicNs() < limit)) once();
  const [revokeUs, grantUs] = [summary(revokeNs), summary(grantNs)];
  const count = revokeNs.length;
  /** @type {Record<string, number>} */
  const statuses = {};
  for (let i = 0; i < DENIED_WRITES; i++) {
    once();
    const name = wcStatusName(pair.write());
    statuses[name] = (statuses[name] ?? 0) + 1;
    pair.connect(); // a denied WRITE is the end of the connection
  }
  mechanism.finish?.(pair);
  return { iterations: count, revokeUs, grantUs, statuses };
}

/**
 * @param {[string, string]} devices
 * @param {typeof MECHANISMS} mechanisms
 * @param {number} maxBytes
 * @param {Results} results
 */
function measureLatency(devices, mechanisms, maxBytes, results) {
  let wanted = maxBytes;
  /** @type {Pair | undefined} */
  let pair;
  while (pair === undefined) {
    try {
      pair = new Pair(devices[0], devices[1], wanted);
    } catch (error) {
      if (wanted <= MIB) throw error;
      results.leftOut.push({ mechanism: 'all', sizeBytes: wanted, why: messageOf(error) });
      wanted /= 2;
    }
  }
  const { provider } = pair.responder.context.device;
  results.provider = provider;
  const iterations = options.iterations
    ? wholeNumber('iterations', options.iterations, 5, 1_000_000)
    : DEFAULTS[provider].iterations;
  try {
    for (const mechanism of mechanisms) {
      const lacking = mechanism.lacks(pair);
      if (lacking !== undefined) {
        results.leftOut.push({ mechanism: mechanism.name, sizeBytes: null, why: lacking });
        say(`${mechanism.title}: not supported: ${lacking}`);
        continue;
      }
      for (const sizeBytes of mechanism.sized ? SIZES : [USUAL_BYTES]) {
        const label = `${mechanism.title}${mechanism.sized ? `, ${sizeText(sizeBytes)}` : ''}`;
        if (sizeBytes > wanted) {
          results.leftOut.push({
            mechanism: mechanism.name,
            sizeBytes,
            why: `memory was limited to ${sizeText(wanted)}`,
          });
          continue;
        }
        pair.sizeBytes = sizeBytes;
        try {
          const one = measure(mechanism, pair, iterations);
          results.latency.push({ mechanism: mechanism.name, sizeBytes: mechanism.sized ? sizeBytes : null, ...one });
          const { revokeUs, grantUs } = one;
          say(
            `${label}: revoke ${formatUs(revokeUs.p50)} (p99 ${formatUs(revokeUs.p99)}), grant ${formatUs(grantUs.p50)} ` +
              `(p99 ${formatUs(grantUs.p99)}), ${one.iterations} times; a writer sees ${Object.keys(one.statuses).join(', ')}`,
          );
        } catch (error) {
          // One size or mechanism that the device refuses does not spoil the others; what failed is in the results.
          results.leftOut.push({ mechanism: mechanism.name, sizeBytes, why: messageOf(error) });
          say(`${label}: left out: ${messageOf(error)}`);
          mechanism.finish?.(pair);
          pair.connect();
        }
      }
    }
  } finally {
    pair.close();
  }
}

/**
 * The race test with one strategy, in a process of its own.
 * @param {string} strategy
 * @param {number} trials
 */
async function race(strategy, trials) {
  const args = ['--device', options.device, '--strategy', strategy, '--trials', `${trials}`];
  const child = spawn(process.execPath, [RACE, ...args, '--timeout', `${RACE_TIMEOUT_S}`, '--json'], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  let problems = '';
  child.stdout.on('data', (chunk) => (output += chunk));
  child.stderr.on('data', (chunk) => (problems += chunk));
  const code = await new Promise((resolve) => child.once('close', resolve));
  // 1: late bytes were seen, which is a result.
  if (code !== 0 && code !== 1) throw new Error(problems.trim().split('\n')[0] || `it ended with ${code}`);
  return JSON.parse(output);
}

/**
 * @param {typeof MECHANISMS} mechanisms
 * @param {Results} results
 */
async function measureRace(mechanisms, results) {
  const trials = options.trials
    ? wholeNumber('trials', options.trials, 1, 1_000_000)
    : DEFAULTS[options.device.startsWith('shm') ? 'shm' : 'ibverbs'].trials;
  for (const { name, title, race: strategy } of mechanisms) {
    if (results.leftOut.some(({ mechanism, sizeBytes }) => mechanism === name && sizeBytes === null)) continue;
    try {
      const { trials: done, late, latestUs, statuses, revokeUs, seed } = await race(strategy, trials);
      results.race.push({ mechanism: name, trials: done, late, latestUs, statuses, revokeUs, seed });
      say(
        `race, ${title}: ${late} of ${done} late${late > 0 ? `, the latest ${formatUs(latestUs)} after the call` : ''}; ` +
          `revoke ${formatUs(revokeUs.p50)} (p99 ${formatUs(revokeUs.p99)}); writers saw ${JSON.stringify(statuses)}`,
      );
    } catch (error) {
      results.leftOut.push({ mechanism: name, sizeBytes: null, why: `race test: ${messageOf(error)}` });
      say(`race, ${title}: failed: ${messageOf(error)}`);
    }
  }
}

/** @returns {Promise<Results>} */
async function measureAll() {
  const parts = options.parts.split(',');
  if (parts.some((part) => part !== 'latency' && part !== 'race')) refuse('--parts takes latency and race');
  const names = options.mechanisms.split(',');
  const mechanisms = MECHANISMS.filter(({ name }) => names.includes(name));
  if (mechanisms.length !== names.length) {
    refuse(`--mechanisms takes ${MECHANISMS.map(({ name }) => name).join(', ')}`);
  }
  const machine = `${cpus()[0]?.model.trim() ?? 'unknown processor'}, ${cpus().length} processors, Linux ${release()}, Node.js ${process.version}`;
  say(machine);
  /** @type {Results} */
  const results = {
    device: options.device,
    provider: '',
    machines: [`${parts.join(' and ')}: ${machine}`],
    latency: [],
    race: [],
    leftOut: [],
  };
  if (parts.includes('latency')) {
    const maxBytes = wholeNumber('max-mib', options['max-mib'], 1, 1_048_576) * MIB;
    measureLatency(nearAndFar(options.device), mechanisms, maxBytes, results);
  }
  if (parts.includes('race')) await measureRace(mechanisms, results);
  return results;
}

/**
 * Results of earlier runs as one. Where a time was measured in several runs, that with the lowest median stays, since the
 * machine's other work only adds; the trials of races add up.
 * @param {string[]} files
 * @returns {Results}
 */
function joinResults(files) {
  const all = files.map((file) => /** @type {Results} */ (JSON.parse(readFileSync(file, 'utf8'))));
  /** @type {Map<string, Latency>} */
  const latency = new Map();
  for (const one of all.flatMap((results) => results.latency)) {
    const key = `${one.mechanism} ${one.sizeBytes}`;
    const known = latency.get(key);
    if (known === undefined) latency.set(key, structuredClone(one));
    else {
      if (one.revokeUs.p50 < known.revokeUs.p50) known.revokeUs = one.revokeUs;
      if (one.grantUs.p50 < known.grantUs.p50) known.grantUs = one.grantUs;
      known.iterations = Math.max(known.iterations, one.iterations);
    }
  }
  /** @type {Map<string, Race>} */
  const races = new Map();
  for (const one of all.flatMap((results) => results.race)) {
    const known = races.get(one.mechanism);
    if (known === undefined) {
      races.set(one.mechanism, structuredClone(one));
      continue;
    }
    known.trials += one.trials;
    known.late += one.late;
    known.latestUs = Math.max(known.latestUs, one.latestUs);
    for (const [status, count] of Object.entries(one.statuses)) {
      known.statuses[status] = (known.statuses[status] ?? 0) + count;
    }
    if (one.revokeUs.p50 < known.revokeUs.p50) known.revokeUs = one.revokeUs;
  }
  const leftOut = new Map(all.flatMap((one) => one.leftOut).map((one) => [JSON.stringify(one), one]));
  return {
    device: all[0]?.device ?? '',
    provider: all.map(({ provider }) => provider).find((provider) => provider !== '') ?? '',
    machines: [...new Set(all.flatMap(({ machines }) => machines))],
    latency: [...latency.values()],
    race: [...races.values()],
    leftOut: [...leftOut.values()],
  };
}

const results = options.from === undefined ? await measureAll() : joinResults(options.from.split(','));
if (options.json) process.stdout.write(`${JSON.stringify(results)}\n`);
if (options.save !== undefined) {
  // Loaded on demand: the virtual machine that only measures need not wait for a plotting library.
  const { saveFigures } = await import('./support/permission-figures.mjs');
  for (const file of await saveFigures(options.save, results)) say(`written: ${file}`);
}
