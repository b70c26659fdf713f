// Two ends of a connection in this process, for benchmarks of the verbs: a READ or WRITE needs nothing of the far end
// but its memory and its device.
import { Access, openDevice, PostList, QpType } from '#lib/verbs/index.js';

export const ALL_ACCESS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC;
/** UD: the key that both ends use. */
export const QKEY = 0x1dea;
/** The most requests that one submit takes here. */
export const MAX_BATCH = 64;
const CQ_DEPTH = 1024;

/**
 * One end with a queue pair in RESET.
 * @param {string} device
 * @param {{ lengthBytes?: number, type?: number, cap?: object }} [options]
 */
export function openEnd(device, { lengthBytes = 65_536, type = QpType.RC, cap = {} } = {}) {
  const context = openDevice(device);
  const domain = context.allocateProtectionDomain();
  const memory = context.allocateMemory({ lengthBytes });
  const region = domain.registerMemory(memory, 0, memory.length, ALL_ACCESS);
  const queue = context.createCompletionQueue(CQ_DEPTH);
  const queuePair = domain.createQueuePair({ type: /** @type {any} */ (type), sendCq: queue, cap });
  return { context, domain, memory, region, queue, queuePair };
}

/** @typedef {ReturnType<typeof openEnd>} End */

/**
 * Both queue pairs to RTS, connected with each other (RC, UC).
 * @param {End} near
 * @param {End} far
 */
export function connectEnds(near, far) {
  for (const { queuePair } of [near, far]) queuePair.toInit({ accessFlags: ALL_ACCESS & ~Access.LOCAL_WRITE });
  near.queuePair.toReadyToReceive(far.queuePair.endpoint());
  far.queuePair.toReadyToReceive(near.queuePair.endpoint());
  // 7 repetitions are no limit on rxe: it would never give up.
  for (const { queuePair } of [near, far]) queuePair.toReadyToSend({ retryCnt: 6 });
}

/**
 * A list for requests from `end`, with its queue pair and memory in slot 0.
 * @param {End} end
 */
export function listFor(end) {
  const list = new PostList(end.queue, { maxWorkRequests: MAX_BATCH, maxCompletions: CQ_DEPTH });
  list.bindQueuePair(0, end.queuePair);
  list.bindMemory(0, end.memory);
  return list;
}

/**
 * The names in `--device NAME[,NAME]`: near and far.
 * @param {string} text
 * @returns {[string, string]}
 */
export function nearAndFar(text) {
  const [near = 'shm', far = near] = text.split(',');
  return [near, far];
}
