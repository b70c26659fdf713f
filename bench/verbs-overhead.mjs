// What the JavaScript binding costs: nanoseconds per call into the addon, and per operation from posting to completion.
//
//   node bench/verbs-overhead.mjs [--device shm | b0,b1] [--milliseconds 300] [--json]
//
// Each figure is the best of several rounds (the machine's other work only ever adds) with the median beside it. Both
// ends are in this process; the shm device and a READ or WRITE need nothing of the far end but its memory.
import { parseArgs } from 'node:util';
import {
  Access,
  Fence,
  monotonicNs,
  Notifier,
  OP_FENCED_COPY,
  openDevice,
  PostList,
  WC,
  WR,
  WR_STRIDE,
  WrOpcode,
} from '#lib/verbs/index.js';

const { values: options } = parseArgs({
  options: {
    device: { type: 'string', default: 'shm' },
    milliseconds: { type: 'string', default: '300' },
    json: { type: 'boolean', default: false },
  },
});
const ROUNDS = 9;
const roundNs = (Number(options.milliseconds) / ROUNDS) * 1e6;
if (!(roundNs > 1e5)) throw new Error('--milliseconds must be at least 1');
const WAIT_NS = 5e9;
const [device = 'shm', farDevice = device] = options.device.split(',');
const ACCESS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC;

/** @param {string} name */
function end(name) {
  const context = openDevice(name);
  const domain = context.allocateProtectionDomain();
  const memory = context.allocateMemory({ lengthBytes: 65_536 });
  const region = domain.registerMemory(memory, 0, memory.length, ACCESS);
  const queue = context.createCompletionQueue(256);
  const queuePair = domain.createQueuePair({ sendCq: queue });
  queuePair.toInit({ accessFlags: ACCESS });
  return { context, memory, region, queue, queuePair };
}

const near = end(device);
const far = end(farDevice);
near.queuePair.toReadyToReceive(far.queuePair.endpoint());
far.queuePair.toReadyToReceive(near.queuePair.endpoint());
near.queuePair.toReadyToSend();
far.queuePair.toReadyToSend();

const BATCH = 16;
const list = new PostList(near.queue, { maxWorkRequests: BATCH, maxCompletions: 64 });
list.bindQueuePair(0, near.queuePair);
list.bindMemory(0, near.memory);
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

if (options.json) {
  process.stdout.write(`${JSON.stringify({ device: options.device, unit: 'ns', results })}\n`);
} else {
  for (const [name, { best, median }] of Object.entries(results)) {
    process.stdout.write(`${String(best).padStart(10)} ns best ${String(median).padStart(10)} ns median   ${name}\n`);
  }
}
notifier.close();
near.context.close();
far.context.close();
