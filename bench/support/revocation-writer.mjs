// The writer of bench/revocation-race.mjs: streams WRITEs with changing patterns as fast as it can, until one fails.
import { Access, monotonicNs, openDevice, PostList, WC, WC_STRIDE, WR, WR_STRIDE, WrOpcode } from '#lib/verbs/index.js';

const [device = 'shm'] = process.argv.slice(2);
/** WRITEs in flight; large ones are few, since some devices fail under many. */
const SMALL_IN_FLIGHT = 8;
const LARGE_IN_FLIGHT = 2;
const LARGE_BYTES = 4096;
const SIZE_MAX = 1_048_576;
const DRAIN_LIMIT_NS = 10e9;

const context = openDevice(device);
const domain = context.allocateProtectionDomain();
const memory = context.allocateMemory({ lengthBytes: SIZE_MAX * LARGE_IN_FLIGHT });
const region = domain.registerMemory(memory, 0, memory.length, Access.LOCAL_WRITE);
const bytes = new Uint8Array(memory.buffer);
const queue = context.createCompletionQueue(64);
const list = new PostList(queue, { maxWorkRequests: SMALL_IN_FLIGHT, maxCompletions: 64 });
const { workRequests, completions, submit } = list;

/**
 * @typedef {object} Trial
 * @property {import('#lib/verbs/index.js').QueuePairEndpoint} endpoint
 * @property {number} address
 * @property {number} size bytes per WRITE
 * @property {number} length bytes that are written over and over
 * @property {number} limitMs
 * @property {number} firstPattern
 */

/** @type {(message: object) => void} */
const tell = (message) => process.send?.(message);

/**
 * Streams until a completion fails or the time is over; then waits for what is in flight.
 * @param {Trial} trial
 * @param {number} rkey
 */
function stream(trial, rkey) {
  const { size, length, address, limitMs } = trial;
  const inFlightMax = size > LARGE_BYTES ? LARGE_IN_FLIGHT : SMALL_IN_FLIGHT;
  const places = length / size;
  const deadline = monotonicNs() + limitMs * 1e6;
  let pattern = trial.firstPattern;
  let place = 0;
  let status = 0;
  let inFlight = 0;
  let writes = 0;
  const free = Array.from({ length: inFlightMax }, (_, index) => index);
  /** @type {(count: number) => void} */
  const take = (count) => {
    for (let i = 0; i < count; i++) {
      const at = i * WC_STRIDE;
      free.push(completions[at + WC.wrId] ?? 0);
      inFlight--;
      if (status === 0) status = completions[at + WC.status] ?? 0;
    }
  };
  while (status === 0 && monotonicNs() < deadline) {
    let count = 0;
    for (let slot = free.pop(); slot !== undefined; slot = free.pop()) {
      bytes.fill(pattern, slot * size, (slot + 1) * size);
      pattern = (pattern % 255) + 1;
      const at = count++ * WR_STRIDE;
      workRequests[at + WR.op] = WrOpcode.RDMA_WRITE;
      workRequests[at + WR.wrId] = slot;
      workRequests[at + WR.localAddress] = memory.address + slot * size;
      workRequests[at + WR.length] = size;
      workRequests[at + WR.lkey] = region.lkey;
      workRequests[at + WR.remoteAddress] = address + place * size;
      workRequests[at + WR.rkey] = rkey;
      place = (place + 1) % places;
    }
    inFlight += count;
    writes += count;
    take(submit(count, 1e6, 1));
  }
  const drainDeadline = monotonicNs() + DRAIN_LIMIT_NS;
  while (inFlight > 0 && monotonicNs() < drainDeadline) take(submit(0, 1e6, 1));
  return { status, writes };
}

/** @type {Trial | undefined} */
let trial;
/** @type {import('#lib/verbs/index.js').QueuePair | undefined} */
let queuePair;

process.on('message', (/** @type {any} */ message) => {
  if (message.type === 'trial') {
    trial = /** @type {Trial} */ (message);
    queuePair = domain.createQueuePair({ sendCq: queue, cap: { maxSendWr: 64 } });
    queuePair.toInit();
    queuePair.toReadyToReceive(trial.endpoint);
    queuePair.toReadyToSend({ timeout: 8, retryCnt: 2 });
    list.bindQueuePair(0, queuePair);
    tell({ type: 'endpoint', endpoint: queuePair.endpoint() });
  } else if (message.type === 'go' && trial !== undefined) {
    const report = stream(trial, message.rkey);
    list.bindQueuePair(0, null);
    queuePair?.close();
    while (queue.poll(64).length > 0);
    tell({ type: 'report', ...report });
  }
});
// The parent went away: nothing is left to do.
process.on('disconnect', () => process.exit(0));
