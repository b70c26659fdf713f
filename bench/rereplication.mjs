// npm run bench:rereplication: how long it takes until a cluster that lost a voter has its redundancy back, and what that
// costs. Three replicas, one process each, with a state of some size, and a spare; one of the followers is killed, and the
// spare is called up by the leader, pulls the state from the other follower and takes the place. Nothing here passes or
// fails by time; the targets are printed next to the figures.
//
//   node bench/rereplication.mjs [--device shm|NAME] [--profile fast|balanced|relaxed] [--sizes 1,64,1024 (MiB)]
//                                [--state in-place|copied|both] [--replace-after-ms N] [--rounds N] [--json]
//
// The state lies in memory that READs reach (in-place: StateMachine.attachMemory), or in other memory and is copied at both
// ends. For each size: the rate of the transfer (from its first byte to the state being in place) against a bare READ loop that
// brings as many bytes over the same device, in chunks of the same size, into memory of the same size, in the same run; the
// time of a commit at the leader, one command a millisecond, before and during the transfer; and the way from SIGKILL to
// full redundancy by its stages: gone (until the leader has waited long enough to call up the spare), catchUp (until the spare has
// state and log), takeover (until it is a voter).
import { fork } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { cpus, release } from 'node:os';
import { fileURLToPath } from 'node:url';
import { endWithSignals } from '#lib/cli/as-program.js';
import { percentile } from '#lib/cli/demo/figures.js';
import { freePorts } from '#lib/cli/demo/ports.js';
import { CHUNK_BYTES, CHUNK_READS_MAX } from '#lib/replica/transfer/limits.js';
import { Access, monotonicNs, openDevice, WcStatus, WrOpcode } from '#lib/verbs/index.js';
import { oneOf, profileName, readOptions, wholeNumber } from './support/options.mjs';

const MIB = 1024 * 1024;
const VOTERS = 3;
const SPARE = VOTERS;
const PROGRAM = fileURLToPath(new URL('support/rereplication-replica.mjs', import.meta.url));
const SOURCE = fileURLToPath(new URL('support/read-source.mjs', import.meta.url));
const LOG_BYTES = 16 * MIB;
const WAIT_MS_MAX = 120_000;
const TOTAL_MS_MAX = 20 * 60_000;
const STATUS_INTERVAL_MS = 5;
const QUIET_MS = 3_000;
const TARGET_RATIO = 0.6;
const TARGET_P99 = 1.5;

const options = readOptions(import.meta.url, {
  device: { type: 'string', default: 'shm' },
  profile: { type: 'string', default: 'balanced' },
  sizes: { type: 'string', default: '1,64,1024' },
  'replace-after-ms': { type: 'string', default: '1000' },
  rounds: { type: 'string', default: '3' },
  state: { type: 'string', default: 'both' },
  json: { type: 'boolean', default: false },
});
/** @param {string} line */
const say = (line) => void (options.json ? process.stderr : process.stdout).write(`${line}\n`);

const sizes = options.sizes.split(',').map((text) => wholeNumber('sizes', text, 1, 2048) * MIB);
const replaceAfterMs = wholeNumber('replace-after-ms', options['replace-after-ms'], 1000, 60_000);
const rounds = wholeNumber('rounds', options.rounds, 1, 100);
const { device } = options;
const profile = profileName(options.profile);
const state = oneOf('state', options.state, ['in-place', 'copied', 'both']);
const states = state === 'both' ? ['in-place', 'copied'] : [state];

const deadline = setTimeout(() => {
  process.stderr.write(`rereplication: stopped after ${TOTAL_MS_MAX} ms\n`);
  process.exit(1);
}, TOTAL_MS_MAX);
/** @type {Set<import('node:child_process').ChildProcess>} */
const living = new Set();
process.on('exit', () => {
  for (const child of living) child.kill('SIGKILL');
});
endWithSignals();

/**
 * @param {string} program
 * @param {object} order
 */
function launch(program, order) {
  const child = fork(program, [JSON.stringify(order)], { execArgv: ['--max-old-space-size=512'] });
  living.add(child);
  child.on('exit', () => living.delete(child));
  return child;
}

/** @param {number} ms */
const rest = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * @template T
 * @param {() => Promise<T | undefined>} probe
 * @param {string} what
 * @returns {Promise<T>}
 */
async function until(probe, what) {
  for (const end = performance.now() + WAIT_MS_MAX; performance.now() < end; await rest(STATUS_INTERVAL_MS)) {
    const value = await probe();
    if (value !== undefined) return value;
  }
  throw new Error(`no ${what} within ${WAIT_MS_MAX} ms`);
}

// -- the bare READ loop --------------------------------------------------------------------------------------------

/**
 * READs `lengthBytes` of another process's memory, `CHUNK_READS_MAX` chunks in flight, into memory of the same size that is
 * there already. Bytes per second, the best of three.
 * @param {number} lengthBytes
 */
async function readLoop(lengthBytes) {
  const child = launch(SOURCE, { device, lengthBytes });
  const context = openDevice(device);
  try {
    const next = () => new Promise((resolve) => child.once('message', resolve));
    const source = /** @type {any} */ (await next());
    const domain = context.allocateProtectionDomain();
    const memory = context.allocateMemory({ lengthBytes });
    const region = domain.registerMemory(memory, 0, lengthBytes, Access.LOCAL_WRITE);
    const queue = context.createCompletionQueue(64);
    const queuePair = domain.createQueuePair({ sendCq: queue });
    queuePair.toInit();
    const ready = next();
    child.send(queuePair.endpoint());
    await ready;
    await queuePair.toReadyToReceiveAsync(source.endpoint);
    queuePair.toReadyToSend();
    let best = 0;
    for (let round = 0; round < 3; round++) {
      const from = monotonicNs();
      let outstanding = 0;
      for (let at = 0; at < lengthBytes || outstanding > 0; ) {
        while (at < lengthBytes && outstanding < CHUNK_READS_MAX) {
          const length = Math.min(CHUNK_BYTES, lengthBytes - at);
          queuePair.postSend([
            {
              opcode: WrOpcode.RDMA_READ,
              localAddress: region.address + at,
              length,
              lkey: region.lkey,
              remoteAddress: source.address + at,
              rkey: source.rkey,
            },
          ]);
          at += length;
          outstanding++;
        }
        for (const { status } of queue.poll()) {
          if (status !== WcStatus.SUCCESS) throw new Error(`a READ failed with status ${status}`);
          outstanding--;
        }
      }
      best = Math.max(best, (lengthBytes * 1e9) / (monotonicNs() - from));
    }
    return best;
  } finally {
    context.close();
    child.kill('SIGKILL');
  }
}

// -- the cluster ---------------------------------------------------------------------------------------------------

class Cluster {
  /** @type {Map<number, import('node:child_process').ChildProcess>} */
  replicas = new Map();
  /** @type {any[]} */
  events = [];
  number = 0;
  /** @type {Map<number, { resolve: (result: any) => void, reject: (error: Error) => void }>} */
  waiting = new Map();

  /**
   * @param {number} id
   * @param {object} order
   */
  open(id, order) {
    const child = launch(PROGRAM, { id, ...order });
    this.replicas.set(id, child);
    return new Promise((resolve, reject) => {
      child.once('exit', () => reject(new Error(`replica ${id} ended`)));
      child.on('message', (/** @type {any} */ message) => {
        if (message.type === 'open') resolve(undefined);
        if (message.type === 'warning') say(`  replica ${id}: ${message.message}`);
        if (message.type === 'answer') {
          const waiting = this.waiting.get(message.number);
          this.waiting.delete(message.number);
          if (message.error === undefined) waiting?.resolve(message.result);
          else waiting?.reject(new Error(message.error));
        } else {
          this.events.push(message);
        }
      });
    });
  }

  /**
   * @param {number} id
   * @param {string} action
   * @param {object} more
   * @returns {Promise<any>}
   */
  ask(id, action, more = {}) {
    const number = ++this.number;
    return new Promise((resolve, reject) => {
      this.waiting.set(number, { resolve, reject });
      this.replicas.get(id)?.send({ action, number, ...more });
    });
  }

  async leader() {
    return await until(async () => {
      for (const id of this.replicas.keys()) if ((await this.ask(id, 'status')).role === 'leader') return id;
      return undefined;
    }, 'leader');
  }

  close() {
    for (const child of this.replicas.values()) child.kill('SIGKILL');
  }
}

/**
 * @param {number} stateBytes
 * @param {boolean} inPlace
 */
async function round(stateBytes, inPlace) {
  const cluster = new Cluster();
  try {
    const ports = await freePorts(VOTERS + 1, Math.random);
    const places = ports.map((port, id) => ({ id, host: '127.0.0.1', port }));
    const founders = places.slice(0, VOTERS);
    const common = {
      founders,
      clusterKey: randomBytes(32).toString('hex'),
      device,
      profile,
      stateBytes,
      inPlace,
      replaceAfterMs,
    };
    const order = { ...common, logBytes: LOG_BYTES };
    await Promise.all(founders.map((place) => cluster.open(place.id, { ...order, place })));
    const leader = await cluster.leader();
    await cluster.ask(leader, 'fill');
    const spare = places[SPARE];
    await cluster.ask(leader, 'addSpare', { member: spare });
    await cluster.open(SPARE, { ...order, place: spare, spare: true });
    await until(async () => {
      const { active, members } = await cluster.ask(leader, 'status');
      const known = members.find((/** @type {any} */ { id }) => id === SPARE)?.bootId > 0;
      return (active.length === VOTERS && known) || undefined;
    }, 'whole cluster');
    await cluster.ask(leader, 'load');
    await rest(500);
    await cluster.ask(leader, 'latencies');
    await rest(QUIET_MS);
    const quiet = await cluster.ask(leader, 'latencies');

    const victim = founders.map(({ id }) => id).find((id) => id !== leader);
    if (victim === undefined) throw new Error('nobody follows');
    cluster.events = [];
    const killedAtNs = monotonicNs();
    cluster.replicas.get(victim)?.kill('SIGKILL');
    cluster.replicas.delete(victim);
    const event = (/** @type {(message: any) => boolean} */ test) =>
      until(async () => cluster.events.find(test), 'event of the replacement');
    const replaced = (/** @type {string} */ state) => (/** @type {any} */ message) =>
      message.type === 'replacement' && message.id === leader && message.news.state === state;
    const transfer = (/** @type {string} */ role, /** @type {string} */ state) => (/** @type {any} */ message) =>
      message.type === 'transfer' && message.status.role === role && message.status.state === state;
    const begun = await event(replaced('begun'));
    const reading = await event(transfer('receiver', 'reading'));
    await cluster.ask(leader, 'latencies');
    const put = await event(transfer('receiver', 'done'));
    const during = await cluster.ask(leader, 'latencies');
    const removed = await event(replaced('removed'));
    const given = [await event(transfer('donor', 'reading')), await event(transfer('donor', 'done'))];
    const whole = await until(async () => {
      const { active, voters } = await cluster.ask(leader, 'status');
      return active.length === VOTERS && voters.includes(SPARE) ? monotonicNs() : undefined;
    }, 'full redundancy');
    await cluster.ask(leader, 'unload');
    const expected = (await cluster.ask(leader, 'status')).applied;
    await until(
      async () => ((await cluster.ask(SPARE, 'status')).applied >= expected ? true : undefined),
      'same state',
    );
    const { status } = put;
    return {
      bytes: status.bytesDone,
      donorIsFollower: status.donor !== leader,
      bytesPerSecond: (status.bytesDone * 1e9) / (put.atNs - reading.atNs),
      receiverNs: put.processorNs - reading.processorNs,
      donorNs: given[1].processorNs - given[0].processorNs,
      quiet,
      during,
      total: whole - killedAtNs,
      gone: begun.atNs - killedAtNs,
      catchUp: removed.atNs - begun.atNs,
      takeover: whole - removed.atNs,
    };
  } finally {
    cluster.close();
  }
}

const gib = (/** @type {number} */ bytesPerSecond) => Number((bytesPerSecond / 2 ** 30).toFixed(3));
const ms = (/** @type {number} */ ns) => Number((ns / 1e6).toFixed(1));
const median = (/** @type {number[]} */ values) => /** @type {number} */ (percentile(values, 50));

/**
 * @param {number} stateBytes
 * @param {string} state
 * @param {number} bare
 */
async function measure(stateBytes, state, bare) {
  const all = [];
  for (let count = 0; count < rounds; count++) all.push(await round(stateBytes, state === 'in-place'));
  const transfer = median(all.map(({ bytesPerSecond }) => bytesPerSecond));
  const quiet = all.flatMap((one) => one.quiet);
  const during = all.flatMap((one) => one.during);
  const p99 = (/** @type {number[]} */ values) => (values.length < 100 ? null : (percentile(values, 99) ?? null));
  const [quietP99, duringP99] = [p99(quiet), p99(during)];
  const result = {
    stateMiB: stateBytes / MIB,
    state,
    readLoopGiBs: gib(bare),
    transferGiBs: gib(transfer),
    ratio: Number((transfer / bare).toFixed(2)),
    processorMsPerGiB: {
      donor: Math.round(median(all.map(({ donorNs, bytes }) => (donorNs / bytes) * (2 ** 30 / 1e6)))),
      receiver: Math.round(median(all.map(({ receiverNs, bytes }) => (receiverNs / bytes) * (2 ** 30 / 1e6)))),
    },
    commitP99Us: { quiet: quietP99 && Math.round(quietP99 / 1e3), during: duringP99 && Math.round(duringP99 / 1e3) },
    commitP50Us: {
      quiet: Math.round(median(quiet) / 1e3),
      during: during.length > 0 ? Math.round(median(during) / 1e3) : null,
    },
    commitSamples: { quiet: quiet.length, during: during.length },
    p99Ratio: quietP99 && duringP99 ? Number((duringP99 / quietP99).toFixed(2)) : null,
    redundancyMs: {
      total: ms(median(all.map(({ total }) => total))),
      gone: ms(median(all.map(({ gone }) => gone))),
      catchUp: ms(median(all.map(({ catchUp }) => catchUp))),
      takeover: ms(median(all.map(({ takeover }) => takeover))),
    },
    donorIsFollower: all.every(({ donorIsFollower }) => donorIsFollower),
  };
  const { redundancyMs: way, commitP99Us } = result;
  say(`state of ${result.stateMiB} MiB, ${state}, given by ${result.donorIsFollower ? 'a follower' : 'the leader'}:`);
  say(
    `  transfer ${result.transferGiBs} GiB/s, bare READ loop ${result.readLoopGiBs} GiB/s: ${result.ratio} of it   (target for 1 GiB: ${TARGET_RATIO})`,
  );
  say(
    `  processor time per GiB: donor ${result.processorMsPerGiB.donor} ms, receiver ${result.processorMsPerGiB.receiver} ms (main threads)`,
  );
  say(
    result.p99Ratio === null
      ? `  commit at the leader: p99 ${commitP99Us.quiet} us before; too short for a p99 of its own (${during.length} commits)`
      : `  commit at the leader: p99 ${commitP99Us.quiet} us before, ${commitP99Us.during} us during: ${result.p99Ratio} times (target: at most ${TARGET_P99})`,
  );
  say(
    `  SIGKILL to full redundancy ${way.total} ms: gone ${way.gone}, catch-up ${way.catchUp}, takeover ${way.takeover} ms   (medians)`,
  );
  return result;
}

say(
  `${cpus()[0]?.model ?? 'unknown processor'}, ${cpus().length} processors, Linux ${release()}, Node.js ${process.version}`,
);
say(
  `device ${device}, profile ${profile}, ${VOTERS} voters and a spare, replaceAfterMs ${replaceAfterMs}, ${rounds} rounds each`,
);
const results = [];
for (const stateBytes of sizes) {
  const bare = await readLoop(stateBytes);
  for (const state of states) results.push(await measure(stateBytes, state, bare));
}
clearTimeout(deadline);
if (options.json) process.stdout.write(`${JSON.stringify({ device, profile, replaceAfterMs, rounds, results })}\n`);
process.exit(0);
