// npm run bench:overhead: what the JavaScript binding costs. First nanoseconds per call into the addon and per
// operation, from posting to completion; then the same 64-byte WRITE from a loop in C, measured in turn with ours.
//
//   node bench/verbs-overhead.mjs [--device shm | b0,b1] [--milliseconds 300] [--pairs 7] [--json]
//
// Each figure is the best of several rounds (the machine's other work only ever adds) with the median beside it. Both
// ends are in this process; the shm device and a READ or WRITE need nothing of the far end but its memory. The
// yardstick is out/native/shm_write on shared memory (the same provider, from C++) and out/native/write_fanout on RDMA
// devices (libibverbs, from C). Nothing here passes or fails by time: it prints what it found beside what is aimed at.
import { percentile } from '#lib/cli/demo/figures.js';
import { Fence, monotonicNs, Notifier, OP_FENCED_COPY, WC, WR, WR_STRIDE, WrOpcode } from '#lib/verbs/index.js';
import { connectEnds, listFor, nearAndFar, openEnd } from './support/ends.mjs';
import { readOptions, wholeNumber } from './support/options.mjs';
import { runYardstick } from './support/yardstick.mjs';

const options = readOptions(import.meta.url, {
  device: { type: 'string', default: 'shm' },
  milliseconds: { type: 'string', default: '300' },
  pairs: { type: 'string', default: '7' },
  json: { type: 'boolean', default: false },
});
const ROUNDS = 9;
const milliseconds = wholeNumber('milliseconds', options.milliseconds, 1, 60_000);
const roundNs = (milliseconds / ROUNDS) * 1e6;
const pairs = wholeNumber('pairs', options.pairs, 0, 100);
const WAIT_NS = 5e9;
const [device, farDevice] = nearAndFar(options.device);
const near = openEnd(device);
const far = openEnd(farDevice);
connectEnds(near, far);

const BATCH = 16;
/** Aims: how much a WRITE of 64 bytes may take beyond the loop in C. */
const AIM_ADDED_NS = 150;
const AIM_RATIO = 1.15;
/** On RDMA devices: operations between two readings of the clock, and how often. */
const PER_SAMPLE = 10;
const SAMPLES = 300;
const WARM_UP_SAMPLES = 20;
const list = listFor(near);
const fence = new Fence();
list.bindFence(0, fence);
const { workRequests: w, completions: c, submit } = list;

/** @type {(op: number, length: number) => void} */
function prepare(op, length) {
  for (let i = 0; i < BATCH; i++) {
    const at = i * WR_STRIDE;
    w[at + WR.op] = op;
    w[at + WR.wrId] = i;
    w[at + WR.localAddress] = near.memory.address;
    w[at + WR.length] = length;
    w[at + WR.lkey] = near.region.lkey;
    w[at + WR.remoteAddress] = op === OP_FENCED_COPY ? near.memory.address + 8192 : far.memory.address;
    w[at + WR.rkey] = far.region.rkey;
  }
}

function one() {
  let count = submit(1, WAIT_NS, 1);
  while (count === 0) count = submit(0, WAIT_NS, 1);
  if (count !== 1 || c[WC.status] !== 0) throw new Error(`${count} completions, status ${c[WC.status]}`);
}

function batch() {
  const count = submit(BATCH, WAIT_NS, BATCH);
  if (count !== BATCH || c[WC.status] !== 0) throw new Error(`${count} completions, status ${c[WC.status]}`);
}

/** ns per call; `step` is how many calls make a measured piece, so that the clock costs nothing. */
function measure(/** @type {() => unknown} */ call, perCall = 1, step = 256) {
  /** @type {number[]} */
  const rounds = [];
  const warmUp = monotonicNs() + roundNs;
  while (monotonicNs() < warmUp) for (let i = 0; i < step; i++) call();
  for (let round = 0; round < ROUNDS; round++) {
    let calls = 0;
    const begin = monotonicNs();
    let now = begin;
    while (now < begin + roundNs) {
      for (let i = 0; i < step; i++) call();
      calls += step;
      now = monotonicNs();
    }
    rounds.push((now - begin) / calls / perCall);
  }
  rounds.sort((a, b) => a - b);
  /** @type {(ns?: number) => number} */
  const round = (ns = 0) => Math.round(ns * 10) / 10;
  return { best: round(rounds[0]), median: round(rounds[ROUNDS >> 1]) };
}

const step = device === 'shm' ? 256 : 1;
/** @type {Record<string, { best: number, median: number }>} */
const results = {};
const notifier = new Notifier(() => {});
results['submit(0, 0, 0): empty list, one poll of the queue'] = measure(() => submit(0, 0, 0));
results['monotonicNs()'] = measure(() => monotonicNs());
results['notifier.notify(), already pending'] = measure(() => notifier.notify());
prepare(OP_FENCED_COPY, 64);
results['fenced copy of 64 bytes, submitted and completed'] = measure(() => submit(1, 0, 0));
prepare(WrOpcode.RDMA_WRITE, 64);
results['WRITE of 64 bytes, posted and completed'] = measure(one, 1, step);
results[`WRITE of 64 bytes, ${BATCH} in one submit, each`] = measure(batch, BATCH, step);
prepare(WrOpcode.RDMA_WRITE, 4096);
results['WRITE of 4096 bytes, posted and completed'] = measure(one, 1, step);
prepare(WrOpcode.RDMA_READ, 64);
results['READ of 64 bytes, posted and completed'] = measure(one, 1, step);
prepare(WrOpcode.COMPARE_SWAP, 8);
results['COMPARE_SWAP, posted and completed'] = measure(one, 1, step);

const round1 = (/** @type {number} */ value) => Math.round(value * 10) / 10;

/** The WRITE on shared memory: best of several rounds on each side, in ns per operation. */
async function pairOnSharedMemory(/** @type {number} */ batchSize) {
  const args = ['--size', 64, '--batch', batchSize, '--milliseconds', Math.max(10, milliseconds)];
  const yardstick = await runYardstick('shm_write', args);
  if (yardstick === undefined) return undefined;
  return { c: yardstick.bestNs, js: measure(batchSize === 1 ? one : batch, batchSize).best };
}

/** The WRITE on an RDMA device: the median time of an operation, in ns, timed in groups on both sides. */
async function pairOnDevice() {
  const sizes = ['--size', 64, '--iterations', SAMPLES, '--per-sample', PER_SAMPLE];
  const yardstick = await runYardstick('write_fanout', ['--device', device, '--peers', farDevice, ...sizes, '--json']);
  if (yardstick === undefined) return undefined;
  /** @type {number[]} */
  const times = [];
  for (let sample = -WARM_UP_SAMPLES; sample < SAMPLES; sample++) {
    const begin = monotonicNs();
    for (let i = 0; i < PER_SAMPLE; i++) one();
    if (sample >= 0) times.push((monotonicNs() - begin) / PER_SAMPLE);
  }
  return { c: yardstick.medianUs * 1000, js: percentile(times, 50) ?? Number.NaN };
}

/**
 * Ours and the yardstick in turn, so that a drift of the machine meets both.
 * @param {string} what
 * @param {() => Promise<{ c: number, js: number } | undefined>} takePair
 */
async function compare(what, takePair) {
  const taken = [];
  for (let i = 0; i < pairs; i++) {
    const pair = await takePair();
    if (pair === undefined) return undefined;
    taken.push({ c: round1(pair.c), js: round1(pair.js) });
  }
  if (taken.length === 0) return undefined;
  const middle = (/** @type {number[]} */ values) => percentile(values, 50) ?? Number.NaN;
  const thousandths = (/** @type {number} */ value) => Math.round(value * 1000) / 1000;
  const [cNs, jsNs] = [Math.min(...taken.map((pair) => pair.c)), Math.min(...taken.map((pair) => pair.js))];
  return {
    what,
    pairs: taken,
    best: { cNs, jsNs, addedNs: round1(jsNs - cNs), ratio: thousandths(jsNs / cNs) },
    median: {
      cNs: round1(middle(taken.map((pair) => pair.c))),
      jsNs: round1(middle(taken.map((pair) => pair.js))),
      addedNs: round1(middle(taken.map((pair) => pair.js - pair.c))),
      ratio: thousandths(middle(taken.map((pair) => pair.js / pair.c))),
    },
  };
}

prepare(WrOpcode.RDMA_WRITE, 64);
const comparisons = [];
const isShm = near.context.device.provider === 'shm';
const first = await compare(
  'WRITE of 64 bytes, posted and completed',
  isShm ? () => pairOnSharedMemory(1) : pairOnDevice,
);
if (first !== undefined) comparisons.push(first);
if (first !== undefined && isShm) {
  const batches = await compare(`WRITE of 64 bytes, ${BATCH} in one call, each`, () => pairOnSharedMemory(BATCH));
  if (batches !== undefined) comparisons.push(batches);
}
const aim = isShm ? `at most ${AIM_ADDED_NS} ns added` : `at most ${AIM_RATIO} times`;
const met =
  first === undefined ? undefined : isShm ? first.best.addedNs <= AIM_ADDED_NS : first.best.ratio <= AIM_RATIO;

if (options.json) {
  const summary = {
    device: options.device,
    provider: near.context.device.provider,
    unit: 'ns',
    results,
    comparisons,
    aim,
  };
  process.stdout.write(`${JSON.stringify({ ...summary, met: met ?? null })}\n`);
} else {
  for (const [name, { best, median }] of Object.entries(results)) {
    process.stdout.write(`${String(best).padStart(10)} ns best ${String(median).padStart(10)} ns median   ${name}\n`);
  }
  for (const { what, best, median } of comparisons) {
    process.stdout.write(
      `${what}: ${best.jsNs} ns, from C ${best.cNs} ns; ${best.addedNs} ns added, ${best.ratio} times (best of ${pairs} ` +
        `pairs; medians: ${median.addedNs} ns added, ${median.ratio} times)\n`,
    );
  }
  if (met !== undefined) process.stdout.write(`aim: ${aim}: ${met ? 'met' : 'missed'}\n`);
  else if (pairs > 0) {
    const variant = isShm ? 'shm-write' : 'write-fanout';
    process.stdout.write(`no comparison: the yardstick is not there; make it with node scripts/build.mjs ${variant}\n`);
  }
}
notifier.close();
near.context.close();
far.context.close();
