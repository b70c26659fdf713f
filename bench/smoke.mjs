// npm run bench:smoke: the figures that the project publishes, in a few minutes, and no more than printed: nothing here
// passes or fails by time. Each figure says on which fabric and with which profile it was taken.
//
//   node bench/smoke.mjs [--device NAME[,NAME,NAME]] [--proposals N] [--rounds N] [--payload BYTES] [--profile NAME]
//                        [--fanout PROGRAM] [--seed N] [--json]
//
// 1. propose: from the call of propose() to its settled promise, one after the other, at the leader of three processes; then
//    at a follower, which forwards.
// 2. failover: SIGKILL of the leader under load to the first commit of the next one, by the machinery of the demo.
// 3. with RDMA devices, the ratio of 1 to a C loop that posts the two WRITEs that an entry takes and polls for both (bench/native),
//    in one run: both take turns while the cluster is up, so that a drift of the machine and what the cluster takes itself
//    weigh on both. A commit needs one of the two; on software devices the other one is posted after it.
import { execFile } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { decodeFromCompressedBase64 } from 'hdr-histogram-js';
import { endWithSignals } from '#lib/cli/as-program.js';
import { Cluster } from '#lib/cli/demo/cluster.js';
import { Deadline } from '#lib/cli/demo/deadline.js';
import { formatUs, percentile } from '#lib/cli/demo/figures.js';
import { CommandSource } from '#lib/cli/demo/input.js';
import { seededRandom } from '#lib/cli/demo/random.js';
import { Run } from '#lib/cli/demo/run.js';
import { entryBytes } from '#lib/consensus/entry.js';
import { profileName, readOptions, refuse, wholeNumber } from './support/options.mjs';

const REPLICAS = 3;
const FANOUT = fileURLToPath(new URL('../out/native/write_fanout', import.meta.url));
const TIMEOUT_MS = 20 * 60_000;
const OPEN_TIMEOUT_MS = 60_000;
const FANOUT_TIMEOUT_MS = 180_000;
/** The proposals are measured in so many parts, and the C loop before, between and after them. */
const FANOUT_TURNS = 5;
const WINDOW = 64;
const OPS_PER_ROUND = 1000;
/** How often a part is measured that was not one leader's from its first proposal to its last. */
const PART_TRIES_MAX = 3;
/** Of the proposals that are measured at the leader, so many are measured at a follower. */
const FORWARDED_PART = 0.2;
/** What a replica did while it started is not idling. */
const SETTLE_MS = 5_000;
const IDLE_MS = 3_000;
/** How often the replicas report their status while they are measured. */
const REPORT_MS = 1_000;
/** Kernel ticks per second in /proc/<pid>/stat: always 100 for user space on Linux. */
const TICKS_PER_SECOND = 100;
/** Software RDMA devices take a hundred times longer. */
const DEFAULTS = { shm: { proposals: '50000', rounds: '20' }, verbs: { proposals: '20000', rounds: '5' } };

const options = readOptions(import.meta.url, {
  device: { type: 'string', default: 'shm' },
  proposals: { type: 'string' },
  rounds: { type: 'string' },
  payload: { type: 'string', default: '64' },
  profile: { type: 'string' },
  fanout: { type: 'string', default: FANOUT },
  seed: { type: 'string' },
  json: { type: 'boolean', default: false },
});

/** @param {string} line */
function say(line) {
  (options.json ? process.stderr : process.stdout).write(`${line}\n`);
}

const round = (/** @type {number} */ us) => Math.round(us * 100) / 100;

/**
 * Processor time that processes used so far, in seconds.
 * @param {number[]} pids
 */
function processorSeconds(pids) {
  return pids.reduce((sum, pid) => {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /s, '')
      .split(' ');
    return sum + (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
  }, 0);
}

/** What reading the clock twice costs; it is part of every latency below. */
function clockNs() {
  const samples = [];
  for (let index = 0; index < 20_000; index++) {
    const start = performance.now();
    samples.push((performance.now() - start) * 1e6);
  }
  return percentile(samples, 50) ?? 0;
}

/**
 * Parts 1 and 3: a quiet cluster, then proposals one after the other.
 * @param {import('#lib/cli/demo/cluster.js').ClusterOptions} common
 * @param {number} proposals
 * @param {number} payloadBytes
 * @param {((iterations: number) => Promise<number>) | undefined} writes the median of the C loop in microseconds
 */
async function measurePropose(common, proposals, payloadBytes, writes) {
  const cluster = await Cluster.start(common);
  try {
    const first = await cluster.waitFor('a leader', () => cluster.leader);
    const status = await cluster.waitFor('its status', () => first.status);
    const pids = cluster.replicas.map(({ pid }) => pid);
    // What the replicas tell this process takes processor time that they would not use without it.
    for (const replica of cluster.replicas) cluster.send(replica, { type: 'statusInterval', intervalMs: REPORT_MS });
    await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
    const before = processorSeconds(pids);
    await new Promise((resolve) => setTimeout(resolve, IDLE_MS));
    const idlePercent = ((processorSeconds(pids) - before) / pids.length / (IDLE_MS / 1000)) * 100;
    const { fabric, device, profile, permissionStrategy } = status;
    say(
      `fabric ${fabric} (device ${device}), permission strategy ${permissionStrategy}, profile ${profile}, ${REPLICAS} processes`,
    );
    say(`idle: ${idlePercent.toFixed(1)} % of one processor per replica`);
    const warmUp = Math.ceil(proposals / 2);
    const turns = writes === undefined ? 1 : FANOUT_TURNS;
    const perTurn = Math.ceil(proposals / turns);
    const histograms = [];
    const writtenUs = writes === undefined ? [] : [await writes(perTurn)];
    let wall_ns = 0;
    for (let turn = 0; turn < turns; turn++) {
      const request = { warmUp: turn === 0 ? warmUp : 0, count: perTurn, payloadBytes };
      const answer = await measureAt(cluster, 'leader', () => cluster.leader, request, warmUp);
      histograms.push(decodeFromCompressedBase64(answer.histogram));
      wall_ns += answer.wall_ns;
      if (writes !== undefined) writtenUs.push(await writes(perTurn));
    }
    const proposedUs = histograms.map((ofTurn) => ofTurn.getValueAtPercentile(50) / 1000);
    // Adds to the first one, whose median has been taken.
    const histogram = histograms.reduce((sum, ofTurn) => {
      sum.add(ofTurn);
      return sum;
    });
    const at = (/** @type {number} */ percent) => histogram.getValueAtPercentile(percent) / 1000;
    say(
      `propose to settled promise, ${payloadBytes} bytes: p50 ${formatUs(at(50))}   p99 ${formatUs(at(99))}   max ` +
        `${formatUs(histogram.maxValue / 1000)}   (${perTurn * turns} after ${warmUp} to warm up; ${Math.round((perTurn * turns) / (wall_ns / 1e9))}` +
        ` per second)   [${fabric}, ${profile}]`,
    );
    const forwardedUs = await measureForwarded(cluster, Math.ceil(proposals * FORWARDED_PART), payloadBytes, status);
    return {
      fabric,
      device,
      profile,
      permissionStrategy,
      idlePercent: round(idlePercent),
      proposeUs: { p50: round(at(50)), p99: round(at(99)), max: round(histogram.maxValue / 1000) },
      forwardedUs,
      ...(writes === undefined ? {} : { fanout: compareWithWrites(proposedUs, writtenUs) }),
    };
  } finally {
    for (const problem of await cluster.stop()) say(`warning: ${problem}`);
    cluster.killAll();
  }
}

/**
 * Has the replica that `find` names measure proposals. Where it was not of this role from the first to the last, in one
 * epoch, they were somebody else's in part, and are measured again.
 * @param {Cluster} cluster
 * @param {'leader' | 'follower'} role
 * @param {() => import('#lib/cli/demo/cluster.js').ReplicaProcess | undefined} find
 * @param {{ warmUp: number, count: number, payloadBytes: number }} request
 * @param {number} warmUpAgain of a replica that measures for another one
 */
async function measureAt(cluster, role, find, request, warmUpAgain) {
  let wanted = request;
  for (let tries = 0; tries < PART_TRIES_MAX; tries++) {
    const replica = await cluster.waitFor(`a ${role}`, find);
    const answer = await cluster.request(replica, { type: 'measure', ...wanted }, 'measured');
    if (answer.role === role) return answer;
    say(`replica ${replica.id} was not ${role} all the time: its ${request.count} proposals are measured again`);
    wanted = { ...request, warmUp: warmUpAgain };
  }
  throw new Error(`no replica was ${role} for ${request.count} proposals, ${PART_TRIES_MAX} times in a row`);
}

/**
 * Part 3: each part of the proposals with the WRITEs right before and after it.
 * @param {number[]} proposedUs
 * @param {number[]} writtenUs one more
 */
function compareWithWrites(proposedUs, writtenUs) {
  const ratios = proposedUs.map((us, turn) => (us * 2) / (Number(writtenUs[turn]) + Number(writtenUs[turn + 1])));
  const [p50, min, max] = [50, 0, 100].map((percent) => round(percentile(ratios, percent) ?? Number.NaN));
  return { writesUs: writtenUs.map(round), ratio: p50, ratioMin: min, ratioMax: max };
}

/**
 * Part 1, at a follower.
 * @param {Cluster} cluster
 * @param {number} count
 * @param {number} payloadBytes
 * @param {{ fabric: string, profile: string }} status
 */
async function measureForwarded(cluster, count, payloadBytes, { fabric, profile }) {
  const find = () => cluster.replicas.find(({ status }) => status?.role === 'follower' && status.leader !== undefined);
  const warmUp = Math.ceil(count / 2);
  const answer = await measureAt(cluster, 'follower', find, { warmUp, count, payloadBytes }, warmUp);
  const histogram = decodeFromCompressedBase64(answer.histogram);
  const at = (/** @type {number} */ percent) => histogram.getValueAtPercentile(percent) / 1000;
  const maxUs = histogram.maxValue / 1000;
  say(
    `the same at a follower, which forwards:           p50 ${formatUs(at(50))}   p99 ${formatUs(at(99))}   max ` +
      `${formatUs(maxUs)}   (${count} after ${warmUp} to warm up)   [${fabric}, ${profile}]`,
  );
  return { p50: round(at(50)), p99: round(at(99)), max: round(maxUs) };
}

/**
 * Part 2: the demo's rounds.
 * @param {import('#lib/cli/demo/cluster.js').ClusterOptions} common
 * @param {number} rounds
 * @param {number} payloadBytes
 */
async function measureFailover(common, rounds, payloadBytes) {
  const commands = Array.from({ length: 1024 }, (_, index) => ({
    operation: /** @type {const} */ ('set'),
    key: `${index}`.padStart(8, '0'),
    value: '',
  }));
  const result = await Run.execute({
    ...common,
    ops: rounds * OPS_PER_ROUND,
    source: new CommandSource(commands, payloadBytes),
    kill: 'SIGKILL',
    victim: 'leader',
    rounds,
    window: WINDOW,
    say: () => {},
  });
  if (result.verdict.problems.length > 0) throw new Error(`the run is void: ${result.verdict.problems.join('; ')}`);
  const { fabric, profile } = result.status;
  const figures = (/** @type {'failoverUs' | 'electionUs'} */ name) => {
    const values = result.rounds.map((one) => one[name]).filter((us) => us !== undefined);
    const at = (/** @type {number} */ percent) => percentile(values, percent) ?? Number.NaN;
    return { p50: at(50), p99: at(99), max: at(100) };
  };
  const { p50, p99, max } = figures('failoverUs');
  const election = figures('electionUs').p50;
  const unplanned = result.leaderChanges - result.rounds.length;
  say(
    `SIGKILL failover under load, signal to first commit: p50 ${formatUs(p50)} (election ${formatUs(election)})   p99 ${formatUs(p99)}   ` +
      `max ${formatUs(max)}   (${result.rounds.length} rounds, ${unplanned} unplanned changes of leader)   [${fabric}, ${profile}]`,
  );
  return {
    failoverUs: { p50: round(p50), p99: round(p99), max: round(max) },
    rounds: result.rounds.length,
    unplannedLeaderChanges: unplanned,
  };
}

/**
 * Part 3: the WRITEs of one commit, posted and polled in C, from the first device to the others.
 * @param {string[]} devices
 * @param {number} size bytes of each WRITE
 * @param {number} iterations
 * @returns {Promise<number>} the median in microseconds
 */
async function measureFanout(devices, size, iterations) {
  const [device, ...peers] = devices.length === 1 ? Array(REPLICAS).fill(devices[0]) : devices;
  const args = ['--device', device, '--peers', peers.join(','), '--size', `${size}`, '--iterations', `${iterations}`];
  const { stdout } = await promisify(execFile)(options.fanout, [...args, '--json'], { timeout: FANOUT_TIMEOUT_MS });
  return JSON.parse(stdout).medianUs;
}

const seed = wholeNumber('seed', options.seed ?? `${randomInt(2 ** 32)}`, 0, 2 ** 32 - 1);
const devices = options.device.split(',').map((name) => name.trim());
if (devices.length !== 1 && devices.length !== REPLICAS) refuse(`--device takes one name, or ${REPLICAS} of them`);
const profile = options.profile === undefined ? undefined : profileName(options.profile);
const defaults = devices.includes('shm') ? DEFAULTS.shm : DEFAULTS.verbs;
const proposals = wholeNumber('proposals', options.proposals ?? defaults.proposals, 100, 10_000_000);
const rounds = wholeNumber('rounds', options.rounds ?? defaults.rounds, 0, 1000);
const payloadBytes = wholeNumber('payload', options.payload, 32, 65_536);
const deadline = new Deadline(TIMEOUT_MS);
const common = {
  replicas: REPLICAS,
  devices,
  profile,
  openTimeoutMs: OPEN_TIMEOUT_MS,
  random: seededRandom(seed),
  deadline,
  say,
};
endWithSignals();

say(
  `${cpus()[0]?.model.trim() ?? 'unknown processor'}, ${cpus().length} processors, Linux ${release()}, Node.js ${process.version}, seed ${seed}`,
);
const clock = clockNs();
say(`reading the clock twice: ${clock.toFixed(0)} ns, part of every latency`);
const size = entryBytes(payloadBytes);
const isRdma = !devices.includes('shm');
const hasFanout = existsSync(options.fanout);
if (isRdma && !hasFanout) {
  say(`no ratio: ${options.fanout} is not there; make it with`);
  say('  node scripts/build.mjs write-fanout');
}
const writes = (/** @type {number} */ iterations) => measureFanout(devices, size, iterations);
const propose = await measurePropose(common, proposals, payloadBytes, isRdma && hasFanout ? writes : undefined);
if (propose.fanout !== undefined) {
  const { writesUs, ratio, ratioMin, ratioMax } = propose.fanout;
  say(
    `the WRITEs of an entry (${REPLICAS - 1} of ${size} bytes) in C, in turns with it: p50 ${writesUs.map(formatUs).join(', ')}; a commit ` +
      `takes ${ratio} times that (${ratioMin} to ${ratioMax})   [${propose.fabric}, ${propose.profile}]`,
  );
}
const failover = rounds > 0 ? await measureFailover(common, rounds, payloadBytes) : undefined;
deadline.end();
if (options.json) {
  const summary = {
    ...propose,
    payloadBytes,
    proposals,
    clockNs: Math.round(clock),
    ...failover,
    seed,
  };
  process.stdout.write(`${JSON.stringify(summary)}\n`);
}
