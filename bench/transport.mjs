// npm run bench:transport: the guidelines of Kalia, Kaminsky and Andersen ("Design Guidelines for High Performance RDMA
// Systems", USENIX ATC 2016) to try on the device at hand: inline data, batches with one doorbell, signaling every
// n-th request, the transport, and how many requests are outstanding.
//
//   node bench/transport.mjs [--device shm | b0,b1] [--milliseconds N] [--rounds N] [--only NAME,NAME] [--json]
//
// What counts are the ratios within one run. The variants of one question take turns in many short rounds; the time of
// each is its best round, since the machine's other work only ever adds, and the ratio is that to the first variant (the
// median of the ratios within the rounds is beside it in the JSON). Both ends are in this process and on its one thread: what an adapter does by itself meanwhile is
// a gain here only where a device has a processor of its own, which neither shared memory nor SoftRoCE has.
import { percentile } from '#lib/cli/demo/figures.js';
import {
  GRH_BYTES,
  monotonicNs,
  POST_UNSIGNALED,
  QpType,
  SendFlags,
  WC,
  WC_STRIDE,
  WR,
  WR_STRIDE,
  WrOpcode,
  wcStatusName,
} from '#lib/verbs/index.js';
import { connectEnds, listFor, MAX_BATCH, nearAndFar, openEnd, QKEY } from './support/ends.mjs';
import { readOptions, refuse, wholeNumber } from './support/options.mjs';

const DEFAULTS = { shm: { milliseconds: '2', rounds: '60' }, ibverbs: { milliseconds: '40', rounds: '15' } };
const WAIT_NS = 10e9;
const PAYLOAD_BYTES = 64;
const INLINE_BYTES = 256;
const BATCH = 16;
const FAR_RECEIVES = BATCH;

const options = readOptions(import.meta.url, {
  device: { type: 'string', default: 'shm' },
  milliseconds: { type: 'string' },
  rounds: { type: 'string' },
  only: { type: 'string' },
  json: { type: 'boolean', default: false },
});
const devices = nearAndFar(options.device);
const defaults = DEFAULTS[devices[0] === 'shm' ? 'shm' : 'ibverbs'];

const variantNs = wholeNumber('milliseconds', options.milliseconds ?? defaults.milliseconds, 1, 10_000) * 1e6;
const rounds = wholeNumber('rounds', options.rounds ?? defaults.rounds, 1, 1000);

/**
 * Two ends of one transport, with a list at the near one and receives where they are needed.
 * @param {import('#lib/verbs/index.js').QpType} type
 */
function connection(type) {
  const cap = { maxSendWr: 2 * MAX_BATCH, maxRecvWr: 2 * FAR_RECEIVES, maxInlineData: INLINE_BYTES };
  const [near, far] = [openEnd(devices[0], { type, cap }), openEnd(devices[1], { type, cap })];
  const list = listFor(near);
  const farList = listFor(far);
  let remoteQpNum = 0;
  if (type === QpType.UD) {
    for (const { queuePair } of [near, far]) queuePair.toDatagrams({ qkey: QKEY });
    const { context, domain } = near;
    const addressVector = context.addressVectorFor(far.queuePair.endpoint());
    list.bindAddressHandle(0, domain.createAddressHandle(addressVector));
    remoteQpNum = far.queuePair.number;
  } else {
    connectEnds(near, far);
  }
  const w = list.workRequests;
  /**
   * Writes the first `count` requests, all alike but for the signaling of every `signalEvery`-th.
   * @param {{ op: number, length?: number, count?: number, signalEvery?: number, inline?: boolean }} what
   */
  function prepare({ op, length = PAYLOAD_BYTES, count = MAX_BATCH, signalEvery = 1, inline = false }) {
    for (let i = 0; i < count; i++) {
      const at = i * WR_STRIDE;
      w.fill(0, at, at + WR_STRIDE);
      w[at + WR.op] = op;
      w[at + WR.localAddress] = near.memory.address;
      w[at + WR.length] = length;
      w[at + WR.lkey] = near.region.lkey;
      w[at + WR.sendFlags] = ((i + 1) % signalEvery === 0 ? 0 : POST_UNSIGNALED) + (inline ? SendFlags.INLINE : 0);
      if (type === QpType.UD) {
        w[at + WR.remoteQpNum] = remoteQpNum;
        w[at + WR.remoteQkey] = QKEY;
        w[at + WR.addressHandle] = 0;
      } else if (op === WrOpcode.RDMA_WRITE) {
        w[at + WR.remoteAddress] = far.memory.address;
        w[at + WR.rkey] = far.region.rkey;
      }
    }
  }
  /** Posts `count` requests with one call and waits for `wanted` completions. */
  function run(/** @type {number} */ count, /** @type {number} */ wanted) {
    let filled = list.submit(count, WAIT_NS, wanted);
    check(list.completions, filled);
    while (filled < wanted) {
      const more = list.submit(0, WAIT_NS, wanted - filled);
      if (more === 0) throw new Error(`${wanted - filled} of ${wanted} completions did not come`);
      check(list.completions, more);
      filled += more;
    }
    return filled;
  }
  const head = type === QpType.UD ? GRH_BYTES : 0;
  const receive = { localAddress: far.memory.address, length: head + PAYLOAD_BYTES, lkey: far.region.lkey };
  const receives = new Array(FAR_RECEIVES).fill(receive);
  /** Posts as many receives as one batch of SENDs takes. */
  function postReceives() {
    const { accepted, errno } = far.queuePair.postReceive(receives);
    if (accepted !== FAR_RECEIVES) throw new Error(`a receive was refused: errno ${errno}`);
  }
  /** Waits until the far end has as many messages. */
  function awaitReceives() {
    let filled = 0;
    while (filled < FAR_RECEIVES) {
      const more = farList.submit(0, WAIT_NS, FAR_RECEIVES - filled);
      if (more === 0) throw new Error(`${FAR_RECEIVES - filled} of ${FAR_RECEIVES} messages were lost`);
      check(farList.completions, more);
      filled += more;
    }
  }
  return { near, far, list, prepare, run, postReceives, awaitReceives };
}

/** @type {(completions: Float64Array, count: number) => void} */
function check(completions, count) {
  for (let i = 0; i < count; i++) {
    const status = completions[i * WC_STRIDE + WC.status] ?? -1;
    if (status !== 0) throw new Error(`a request ended with ${wcStatusName(status)}`);
  }
}

const rc = connection(QpType.RC);
const uc = connection(QpType.UC);
const ud = connection(QpType.UD);

/**
 * @typedef {object} Variant
 * @property {string} name
 * @property {() => void} [prepare]
 * @property {() => void} [before] before each run, not timed
 * @property {() => void} run
 * @property {number} requests that one run makes
 */
/** @typedef {{ name: string, question: string, variants: Variant[] }} Section */

/** @type {(bytes: number) => Section} */
const inlineSection = (bytes) => ({
  name: `inline-${bytes}`,
  question: `one WRITE of ${bytes} bytes at a time: data fetched from memory, or inline in the request`,
  variants: [false, true].map((inline) => ({
    name: inline ? 'inline' : 'not inline',
    prepare: () => rc.prepare({ op: WrOpcode.RDMA_WRITE, length: bytes, inline, count: 1 }),
    run: () => void rc.run(1, 1),
    requests: 1,
  })),
});

/** @type {Section} */
const doorbells = {
  name: 'doorbells',
  question: `${BATCH} WRITEs of ${PAYLOAD_BYTES} bytes: how many calls (doorbells) post them`,
  variants: [BATCH, 4, 1].map((calls) => ({
    name: `${calls} ${calls === 1 ? 'call' : 'calls'}`,
    prepare: () => rc.prepare({ op: WrOpcode.RDMA_WRITE }),
    run: () => {
      let completed = 0;
      for (let call = 0; call < calls; call++) completed += rc.run(BATCH / calls, 0);
      if (completed < BATCH) rc.run(0, BATCH - completed);
    },
    requests: BATCH,
  })),
};

/** @type {Section} */
const signaling = {
  name: 'signaling',
  question: `${MAX_BATCH} WRITEs of ${PAYLOAD_BYTES} bytes in one call: every n-th of them signaled`,
  variants: [1, 4, 16, MAX_BATCH].map((every) => ({
    name: every === 1 ? 'all' : `every ${every}th`,
    prepare: () => rc.prepare({ op: WrOpcode.RDMA_WRITE, signalEvery: every }),
    run: () => void rc.run(MAX_BATCH, MAX_BATCH / every),
    requests: MAX_BATCH,
  })),
};

/** @type {(name: string, on: ReturnType<typeof connection>) => Variant} */
const writeVariant = (name, on) => ({
  name,
  prepare: () => on.prepare({ op: WrOpcode.RDMA_WRITE }),
  run: () => void on.run(BATCH, BATCH),
  requests: BATCH,
});

/** @type {(name: string, on: ReturnType<typeof connection>) => Variant} */
const sendVariant = (name, on) => ({
  name,
  prepare: () => on.prepare({ op: WrOpcode.SEND }),
  before: () => on.postReceives(),
  run: () => {
    on.run(BATCH, BATCH);
    on.awaitReceives();
  },
  requests: BATCH,
});

/** @type {Section} */
const outstanding = {
  name: 'outstanding',
  question: `WRITEs of ${PAYLOAD_BYTES} bytes, one doorbell each: how many are kept in flight`,
  variants: [1, 2, 4, 8, 16, 32].map((window) => ({
    name: `${window}`,
    prepare: () => rc.prepare({ op: WrOpcode.RDMA_WRITE }),
    run: () => {
      let inFlight = 0;
      let left = MAX_BATCH;
      while (left > 0 || inFlight > 0) {
        while (left > 0 && inFlight < window) {
          inFlight += 1 - rc.run(1, 0);
          left--;
        }
        if (inFlight > 0) inFlight -= rc.run(0, 1);
      }
    },
    requests: MAX_BATCH,
  })),
};

/** @type {Section[]} */
const sections = [
  inlineSection(16),
  inlineSection(PAYLOAD_BYTES),
  inlineSection(INLINE_BYTES),
  doorbells,
  signaling,
  {
    name: 'write-transport',
    question: `WRITEs of ${PAYLOAD_BYTES} bytes in batches of ${BATCH}: the transport`,
    variants: [writeVariant('RC', rc), writeVariant('UC', uc)],
  },
  {
    name: 'send-transport',
    question: `SENDs of ${PAYLOAD_BYTES} bytes in batches of ${BATCH} and taking them at the far end: the transport`,
    variants: [sendVariant('RC', rc), sendVariant('UC', uc), sendVariant('UD', ud)],
  },
  {
    name: 'verb',
    question: `${PAYLOAD_BYTES} bytes to the other side in batches of ${BATCH} over RC: the verb`,
    variants: [writeVariant('WRITE', rc), sendVariant('SEND and receive', rc)],
  },
  outstanding,
];

/** ns per request. */
function measure(/** @type {Variant} */ variant) {
  const { prepare, before, run, requests } = variant;
  prepare?.();
  // Where nothing has to be left out, the clock is read every 64 requests or so: it takes half as long as a WRITE on shm.
  const step = before === undefined ? Math.ceil(MAX_BATCH / requests) : 1;
  let runs = 0;
  let untimed = 0;
  const begin = monotonicNs();
  let now = begin;
  while (now < begin + variantNs) {
    before?.();
    if (before !== undefined) untimed += monotonicNs() - now;
    for (let i = 0; i < step; i++) run();
    runs += step;
    now = monotonicNs();
  }
  return (now - begin - untimed) / runs / requests;
}

const only = options.only?.split(',');
if (only?.some((name) => !sections.some((section) => section.name === name))) {
  refuse(`--only takes ${sections.map(({ name }) => name).join(', ')}`);
}
const results = [];
for (const { name, question, variants } of sections) {
  if (only !== undefined && !only.includes(name)) continue;
  /** @type {number[][]} */
  const times = variants.map(() => []);
  for (const variant of variants) measure(variant); // to warm up
  for (let round = 0; round < rounds; round++) {
    for (const [index, variant] of variants.entries()) times[index]?.push(measure(variant));
  }
  const base = times[0] ?? [];
  const bestOf = (/** @type {number[]} */ values) => Math.min(...values);
  const hundredths = (/** @type {number} */ value) => Math.round(value * 100) / 100;
  const found = variants.map((variant, index) => {
    const own = times[index] ?? [];
    const ratios = own.map((ns, round) => ns / (base[round] ?? Number.NaN));
    return {
      name: variant.name,
      bestNs: Math.round(bestOf(own) * 10) / 10,
      ratio: hundredths(bestOf(own) / bestOf(base)),
      medianRatio: hundredths(percentile(ratios, 50) ?? Number.NaN),
    };
  });
  results.push({ name, question, variants: found });
  if (options.json) continue;
  process.stdout.write(`${question}\n`);
  for (const one of found) {
    process.stdout.write(
      `  ${one.name.padEnd(20)} ${one.bestNs.toFixed(1).padStart(10)} ns   ${one.ratio.toFixed(2)} times\n`,
    );
  }
}
const { provider } = rc.near.context.device;
if (options.json)
  process.stdout.write(`${JSON.stringify({ device: options.device, provider, unit: 'ns', rounds, results })}\n`);
for (const { near, far } of [rc, uc, ud]) {
  near.context.close();
  far.context.close();
}
