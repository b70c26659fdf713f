// npm run bench:failover: how long a cluster is without a leader, and of what that time is made. Kills or stops the leader
// of three processes again and again, and prints percentiles, and next to them what the profile costs: processor time of
// an idle replica, and changes of leader without a cause per hour, idle and with all processors busy. Nothing here passes
// or fails by time.
//
//   node bench/failover.mjs [--device shm|NAME[,NAME,NAME]] [--profile fast|balanced|relaxed] [--signal SIGKILL|SIGSTOP]
//                           [--rounds N] [--realtime PRIORITY] [--lease-us N] [--load] [--quiet-seconds S] [--json]
//                           [--collections N [--forget-code]]
//
// The stages, by the clock that all processes of the host share: detect (signal to the moment when the next leader saw no
// leader any more), grant (to the permission of a majority), repair (to the commit of its epoch's first entry), firstCommit
// (to the settled promise of the first proposal, made when the application learns that it leads).
//
// --collections N has every replica collect the garbage of its whole heap so often before each round, as in processes that have
// been running for long; --forget-code lets V8 forget the code of a takeover by that (option keepCompiledCode: false).
//
// With SIGKILL on shm it tells besides how long the host takes for nothing but waking the threads of such a takeover, by a C++
// program (bench/native/takeover_wakes.cc) that runs right before and right after: what is left is quorate's own work.
//
// A round in which the cluster was changing its leader already when the signal was sent measures something else: it is
// counted as a false failover and repeated.
import { fork, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { fileURLToPath } from 'node:url';
import { endWithSignals } from '#lib/cli/as-program.js';
import { percentile } from '#lib/cli/demo/figures.js';
import { freePorts } from '#lib/cli/demo/ports.js';
import { monotonicNs } from '#lib/verbs/index.js';
import { oneOf, profileName, readOptions, refuse, wholeNumber } from './support/options.mjs';
import { runYardstick } from './support/yardstick.mjs';

const REPLICAS = 3;
const PROGRAM = fileURLToPath(new URL('support/failover-replica.mjs', import.meta.url));
const WAIT_MS_MAX = 90_000;
const TOTAL_MS_MAX = 60 * 60_000;
const STATUS_INTERVAL_MS = 10;
/** A cluster that is whole again is left alone for so long before the next round, and a little more by chance. */
const REST_MS = 250;
const SETTLE_MS = 3_000;
/** For so long after the signal, which is longer than most failovers take, this process stands still. */
const STANDSTILL_MS = 20;
const STANDSTILL = new Int32Array(new SharedArrayBuffer(4));
const TICKS_PER_SECOND = 100;
const WAKES_ROUNDS = 100;
const NS_PER_HOUR = 3.6e12;

const options = readOptions(import.meta.url, {
  device: { type: 'string', default: 'shm' },
  profile: { type: 'string', default: 'fast' },
  signal: { type: 'string', default: 'SIGKILL' },
  rounds: { type: 'string', default: '50' },
  realtime: { type: 'string' },
  'lease-us': { type: 'string' },
  load: { type: 'boolean', default: false },
  collections: { type: 'string', default: '0' },
  'forget-code': { type: 'boolean', default: false },
  'quiet-seconds': { type: 'string', default: '20' },
  json: { type: 'boolean', default: false },
});

/** @param {string} line */
const say = (line) => void (options.json ? process.stderr : process.stdout).write(`${line}\n`);

const profile = profileName(options.profile);
const signal = oneOf('signal', options.signal, /** @type {const} */ (['SIGKILL', 'SIGSTOP']));
const rounds = wholeNumber('rounds', options.rounds, 1, 10_000);
const collections = wholeNumber('collections', options.collections, 0, 100);
const quietSeconds = wholeNumber('quiet-seconds', options['quiet-seconds'], 0, 600);
const realtimePriority = options.realtime === undefined ? null : wholeNumber('realtime', options.realtime, 1, 99);
/** Length of leases, 0 for none, null for the profile's: a leader whose memory cannot be reached is followed after that time only. */
const leaseUs = options['lease-us'] === undefined ? null : wholeNumber('lease-us', options['lease-us'], 0, 10_000_000);
const devices = options.device.split(',').map((name) => name.trim());
if (devices.length !== 1 && devices.length !== REPLICAS) {
  refuse(`--device takes one name, or ${REPLICAS} of them`);
}

const deadline = setTimeout(() => {
  process.stderr.write(`failover: stopped after ${TOTAL_MS_MAX} ms\n`);
  process.exit(1);
}, TOTAL_MS_MAX);

const ports = await freePorts(REPLICAS, Math.random);
const members = ports.map((port, id) => ({ id, host: '127.0.0.1', port }));
const clusterKey = randomBytes(32).toString('hex');
/** @type {import('node:child_process').ChildProcess[]} */
const replicas = [];
/** @type {Set<import('node:child_process').ChildProcess>} */
const living = new Set();
/** @type {((message: any) => void)[]} */
let listeners = [];
let leader = -1;
let leaderChanges = 0;
process.on('exit', () => {
  for (const child of living) child.kill('SIGKILL');
});
endWithSignals();

/**
 * The first message for which `test` gives something.
 * @template T
 * @param {string} what
 * @param {(message: any) => T | undefined} test
 * @returns {Promise<T>}
 */
function heard(what, test) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no ${what} within ${WAIT_MS_MAX} ms`)), WAIT_MS_MAX);
    const listener = (/** @type {any} */ message) => {
      const result = test(message);
      if (result === undefined) return;
      clearTimeout(timer);
      listeners = listeners.filter((other) => other !== listener);
      resolve(result);
    };
    listeners.push(listener);
  });
}

/** @param {number} id */
function launch(id) {
  const device = devices.length === 1 ? devices[0] : devices[id];
  const { load, 'forget-code': forgetCode } = options;
  const order = { id, members, clusterKey, device, profile, realtimePriority, leaseUs, load, forgetCode };
  const child = fork(PROGRAM, [JSON.stringify(order)]);
  replicas[id] = child;
  living.add(child);
  child.on('message', (/** @type {any} */ message) => {
    if (message.type === 'leads') {
      leader = message.id;
      leaderChanges++;
      for (const warning of message.warnings) say(`replica ${message.id}: ${warning}`);
    }
    for (const listener of listeners) listener(message);
  });
  child.on('exit', () => living.delete(child));
  return heard(`opening of replica ${id}`, (message) => (message.type === 'open' && message.id === id) || undefined);
}

/** One leader, and all others are voters that hold its log. */
async function whole() {
  const until = performance.now() + WAIT_MS_MAX;
  for (;;) {
    if (leader >= 0 && living.has(/** @type {any} */ (replicas[leader]))) {
      const asked = leader;
      const answer = heard('status', (message) => (message.type === 'status' ? message : undefined));
      replicas[asked]?.send({ type: 'status' });
      const status = await answer;
      if (status.isWhole && leader === asked) return status;
    }
    if (performance.now() > until) throw new Error(`the cluster was not whole within ${WAIT_MS_MAX} ms`);
    await new Promise((resolve) => setTimeout(resolve, STATUS_INTERVAL_MS));
  }
}

/** @param {number} ms */
const rest = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Processor time that the replicas used so far, in seconds. */
function processorSeconds() {
  return replicas.reduce((sum, { pid }) => {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /s, '')
      .split(' ');
    return sum + (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
  }, 0);
}

/** Has all replicas collect garbage, as processes have that have been running for long. */
async function growOld() {
  await Promise.all(
    replicas.map((child, id) => {
      const old = heard(`old replica ${id}`, (message) => (message.type === 'old' && message.id === id) || undefined);
      child.send({ type: 'grow old', collections });
      return old;
    }),
  );
}

/** One round: undefined if the leader was changing already. */
async function round() {
  await whole();
  if (collections > 0) {
    await growOld();
    await whole(); // a collection can take long enough to cost the leader its place
  }
  await rest(REST_MS + Math.random() * 50);
  const victim = leader;
  const child = /** @type {import('node:child_process').ChildProcess} */ (replicas[victim]);
  const changesBefore = leaderChanges;
  const next = heard('new leader', (message) =>
    message.type === 'leads' && message.id !== victim ? message : undefined,
  );
  const at_ns = monotonicNs();
  child.kill(signal);
  // This process would only compete with the replicas: what it learns of the death of its child can wait.
  Atomics.wait(STANDSTILL, 0, 0, STANDSTILL_MS);
  const { stages, firstCommitAtNs } = await next;
  if (signal === 'SIGSTOP') child.kill('SIGKILL');
  if (living.has(child)) await new Promise((resolve) => child.once('exit', resolve));
  await launch(victim);
  if (stages.leaderLostAtNs < at_ns || leaderChanges !== changesBefore + 1) return undefined;
  return {
    total: firstCommitAtNs - at_ns,
    detect: stages.leaderLostAtNs - at_ns,
    grant: stages.majorityAtNs - stages.leaderLostAtNs,
    repair: stages.activeAtNs - stages.majorityAtNs,
    firstCommit: firstCommitAtNs - stages.activeAtNs,
  };
}

/** What is compared is a process that dies, and whose death the host tells. */
const isHostsPartKnown = signal === 'SIGKILL' && devices.every((name) => name === 'shm');

/** In microseconds: how long the host takes to wake threads as a takeover does. Undefined if the program is not there. */
async function hostsPart() {
  if (!isHostsPartKnown) return undefined;
  const { p50, p99, max } = (await runYardstick('takeover_wakes', ['--rounds', WAKES_ROUNDS])) ?? {};
  return p50 === undefined ? undefined : { p50, p99, max };
}

/**
 * Changes of leader without a cause, and what the replicas cost, while nothing is done to them.
 * @param {number} busyProcesses
 */
async function leftAlone(busyProcesses) {
  await whole();
  const busy = Array.from({ length: busyProcesses }, () => spawn(process.execPath, ['-e', 'for (;;);']));
  for (const child of busy) living.add(child);
  try {
    await rest(SETTLE_MS);
    const changes = leaderChanges;
    const seconds = processorSeconds();
    const from_ns = monotonicNs();
    await rest(quietSeconds * 1000);
    const passed_ns = monotonicNs() - from_ns;
    return {
      changesPerHour: ((leaderChanges - changes) * NS_PER_HOUR) / passed_ns,
      processorPercent: ((processorSeconds() - seconds) * 1e11) / passed_ns / REPLICAS,
    };
  } finally {
    for (const child of busy) {
      child.kill('SIGKILL');
      living.delete(child);
    }
  }
}

say(
  `${cpus()[0]?.model.trim() ?? 'unknown processor'}, ${cpus().length} processors, Linux ${release()}, Node.js ${process.version}`,
);
const before = await hostsPart();
await Promise.all(members.map(({ id }) => launch(id)));
const { device, permissionStrategy } = await whole();
say(
  `device ${device}, permission strategy ${permissionStrategy}, profile ${profile}, ${REPLICAS} processes, ${signal}` +
    (leaseUs === null ? '' : leaseUs === 0 ? ', no leases' : `, leases of ${leaseUs} us`),
);

let idle;
let loaded;
if (quietSeconds > 0) {
  idle = await leftAlone(0);
  loaded = await leftAlone(cpus().length);
  say(`idle: ${idle.processorPercent.toFixed(1)} % of one processor per replica`);
  say(
    `false failovers per hour: ${idle.changesPerHour.toFixed(0)} idle, ${loaded.changesPerHour.toFixed(0)} with ` +
      `${cpus().length} busy processes besides   (${quietSeconds} s each)`,
  );
}

const results = [];
let overlapped = 0;
while (results.length < rounds) {
  const result = await round();
  if (result !== undefined) results.push(result);
  else if (++overlapped > 10 * rounds) throw new Error('the cluster changes its leader all the time');
}
const us = (/** @type {keyof typeof results[number]} */ stage, /** @type {number} */ percent) =>
  Math.round(
    (percentile(
      results.map((result) => result[stage]),
      percent,
    ) ?? Number.NaN) / 1e3,
  );
const failoverUs = { p50: us('total', 50), p99: us('total', 99), max: us('total', 100) };
const breakdownUs = {
  detect: us('detect', 50),
  grant: us('grant', 50),
  repair: us('repair', 50),
  firstCommit: us('firstCommit', 50),
};
say(
  `failover, ${signal} to first commit: p50 ${failoverUs.p50} us   p99 ${failoverUs.p99} us   max ${failoverUs.max} us   ` +
    `(${rounds} rounds, ${overlapped} more into which a false failover fell)   [${device}, ${profile}]`,
);
say(
  `medians of its stages: detect ${breakdownUs.detect} us, grant ${breakdownUs.grant} us, repair ${breakdownUs.repair} us, ` +
    `first commit ${breakdownUs.firstCommit} us`,
);
for (const child of replicas) child.disconnect();
await Promise.all([...living].map((child) => new Promise((resolve) => child.once('exit', resolve))));
const after = await hostsPart();
const wakesUs = before && after && { before, after };
if (wakesUs !== undefined) {
  say(
    `of it the host's part, to wake the threads of a takeover one after the other, in C++: p50 ${before.p50} us before, ` +
      `${after.p50} us after   p99 ${before.p99} and ${after.p99} us`,
  );
} else if (isHostsPartKnown) {
  say('the part of the host is not known; build its program with node scripts/build.mjs takeover-wakes');
}
clearTimeout(deadline);
const summary = {
  device,
  profile,
  signal,
  rounds,
  overlapped,
  realtimePriority,
  leaseUs,
  failoverUs,
  breakdownUs,
  wakesUs,
  falseFailoversPerHour: idle && loaded && { idle: idle.changesPerHour, loaded: loaded.changesPerHour },
  idlePercent: idle?.processorPercent,
};
if (options.json) process.stdout.write(`${JSON.stringify(summary)}\n`);
