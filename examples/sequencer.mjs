// A sequencer: hands out the numbers 0, 1, 2, ... to clients in other processes, each number once. After Kalia, Kaminsky
// and Andersen ("Design Guidelines for High Performance RDMA Systems", USENIX ATC 2016, section 4): requests and answers
// are SENDs over UD without any payload, and the number is in the immediate data of the answer, so that the whole message
// is its header; a request has the number of the client there. One queue pair serves all clients, and only every 16th
// answer is signaled.
//
//   node examples/sequencer.mjs [--device shm | b0,b1] [--clients 2] [--window 16] [--requests 20000]
//
// The server runs on the first device, the clients on the others in turn. Datagrams can be lost: a client that hears
// nothing for a while asks anew, and the number of a lost answer is then a gap. Prints requests per second, and checks
// that no number was given twice.
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { setImmediate } from 'node:timers/promises';
import {
  Access,
  GRH_BYTES,
  monotonicNs,
  openDevice,
  POST_UNSIGNALED,
  PostList,
  QpType,
  Waiter,
  WC,
  WC_STRIDE,
  WcOpcode,
  WR,
  WR_STRIDE,
  WrOpcode,
  wcStatusName,
} from 'quorate/verbs';
import { readArguments, wholeNumber } from './support/options.mjs';

const QKEY = 0x5e9;
const CLIENTS_MAX = 32;
const WINDOW_MAX = 64;
const REQUESTS_MAX = 1_000_000;
/** Receives that the server keeps posted: room for the whole window of each client. */
const SERVER_RECEIVES = CLIENTS_MAX * WINDOW_MAX;
const BATCH = 64;
const SIGNAL_EVERY = 16;
/** A client asks anew after this time without an answer, and gives up after so many times in a row. */
const ANSWER_TIMEOUT_NS = 500e6;
const ATTEMPTS_MAX = 20;
/** How long a submit spins for something to do; then the process sleeps, so that others can use the processor. */
const SPIN_NS = 5_000;
/** How long it sleeps at most, before the event loop gets its turn. */
const SLEEP_NS = 10e6;
const RUN_TIMEOUT_MS = 120_000;

const { values: options } = readArguments(import.meta.url, {
  options: {
    device: { type: 'string', default: 'shm' },
    clients: { type: 'string', default: '2' },
    window: { type: 'string', default: '16' },
    requests: { type: 'string', default: '20000' },
  },
});
const clientCount = wholeNumber('clients', options.clients, 1, CLIENTS_MAX);
const window = wholeNumber('window', options.window, 1, WINDOW_MAX);
const requestCount = wholeNumber('requests', options.requests, 1, REQUESTS_MAX);
const [serverDevice = 'shm', ...clientDevices] = options.device.split(',');

/** A UD queue pair on `device`, with `receives` receives of which each has its own place for the routing header. */
function openSide(device, receives) {
  const context = openDevice(device);
  const domain = context.allocateProtectionDomain();
  const memory = context.allocateMemory({ lengthBytes: receives * GRH_BYTES });
  const region = domain.registerMemory(memory, 0, memory.length, Access.LOCAL_WRITE);
  const channel = context.createCompletionChannel();
  const queue = context.createCompletionQueue(receives + 4 * BATCH, channel);
  const waiter = new Waiter();
  waiter.watchQueue(queue, channel);
  const cap = { maxSendWr: 4 * BATCH, maxRecvWr: receives };
  const queuePair = domain.createQueuePair({ type: QpType.UD, sendCq: queue, cap });
  queuePair.toDatagrams({ qkey: QKEY });
  const list = new PostList(queue, { maxWorkRequests: BATCH, maxCompletions: 4 * BATCH });
  list.bindQueuePair(0, queuePair);
  const places = Array.from({ length: receives }, (_, place) => ({
    wrId: place,
    localAddress: memory.address + place * GRH_BYTES,
    length: GRH_BYTES,
    lkey: region.lkey,
  }));
  return { context, domain, memory, queuePair, list, places, waiter };
}

/** @type {(queuePair: import('quorate/verbs').QueuePair, receives: object[]) => void} */
function post(queuePair, receives) {
  const { accepted, errno } = queuePair.postReceive(receives);
  if (accepted !== receives.length) throw new Error(`a receive was refused: errno ${errno}`);
}

/** One datagram without payload, as request `index` of the list. */
function writeHeader(list, index, number, addressHandle, remoteQpNum, signaled) {
  const w = list.workRequests;
  const at = index * WR_STRIDE;
  w[at + WR.op] = WrOpcode.SEND_WITH_IMM;
  w[at + WR.immData] = number;
  w[at + WR.remoteQpNum] = remoteQpNum;
  w[at + WR.remoteQkey] = QKEY;
  w[at + WR.addressHandle] = addressHandle;
  w[at + WR.sendFlags] = signaled ? 0 : POST_UNSIGNALED;
}

/** Calls `received` for each receive among the completions of the last submit. */
function takeReceives(list, count, received) {
  const c = list.completions;
  for (let at = 0; at < count * WC_STRIDE; at += WC_STRIDE) {
    if (c[at + WC.status] !== 0) throw new Error(`a request ended with ${wcStatusName(c[at + WC.status])}`);
    if (c[at + WC.opcode] === WcOpcode.RECV) received(at);
  }
}

async function serve() {
  const { context, domain, memory, queuePair, list, places, waiter } = openSide(serverDevice, SERVER_RECEIVES);
  post(queuePair, places);
  /** Queue pair of each client: they are met by their first request. Its address handle is in the slot of its number. */
  const clients = new Map();
  let next = 0;
  let answers = 0;
  let waiting = [];
  const again = [];

  const answer = (at) => {
    const c = list.completions;
    const client = c[at + WC.immData];
    const sender = c[at + WC.srcQpNum];
    const place = c[at + WC.wrId];
    again.push(places[place]);
    if (!(client < clientCount)) return; // from a stranger
    if (!clients.has(client)) {
      const completion = {
        ...PLAIN_COMPLETION,
        qpNum: c[at + WC.qpNum],
        wcFlags: c[at + WC.wcFlags],
        srcQpNum: sender,
      };
      list.bindAddressHandle(client, domain.createAddressHandleFromCompletion(completion, memory, place * GRH_BYTES));
      clients.set(client, sender);
    }
    if (clients.get(client) === sender) waiting.push(client);
  };

  /** @type {Promise<number[]>[]} */
  const results = [];
  const children = [];
  let running = clientCount;
  const begin = monotonicNs();
  for (let id = 0; id < clientCount; id++) {
    const device = clientDevices[id % Math.max(1, clientDevices.length)] ?? serverDevice;
    const args = ['--device', device, '--window', `${window}`, '--requests', `${requestCount}`];
    const child = fork(import.meta.filename, args);
    children.push(child);
    child.send({ server: queuePair.endpoint(), id });
    results.push(once(child, 'message').then(([numbers]) => numbers));
    child.once('exit', (code) => {
      running--;
      if (code !== 0) process.exitCode = 1;
    });
  }
  const timer = setTimeout(() => {
    console.error(`not done after ${RUN_TIMEOUT_MS / 1000} s`);
    for (const child of children) child.kill('SIGKILL');
    process.exit(1);
  }, RUN_TIMEOUT_MS);
  while (running > 0) {
    const batch = waiting.slice(0, BATCH);
    waiting = waiting.slice(BATCH);
    for (const [index, client] of batch.entries()) {
      writeHeader(list, index, next, client, clients.get(client), ++answers % SIGNAL_EVERY === 0);
      next = (next + 1) >>> 0;
    }
    const count = list.submit(batch.length, waiting.length > 0 ? 0 : SPIN_NS, 1);
    takeReceives(list, count, answer);
    if (again.length > 0) post(queuePair, again.splice(0));
    if (count > 0) continue;
    waiter.wait(SLEEP_NS);
    await setImmediate();
  }
  clearTimeout(timer);
  if (process.exitCode === 1) throw new Error('a client failed');
  const seconds = (monotonicNs() - begin) / 1e9;
  const all = (await Promise.all(results)).flat();
  const distinct = new Set(all).size;
  if (distinct !== all.length) throw new Error(`${all.length - distinct} numbers were given twice`);
  console.log(
    `${all.length} numbers to ${clientCount} clients, each once, below ${next}; ${next - all.length} gaps; ` +
      `${Math.round(all.length / seconds)} per second with the start of the clients`,
  );
  context.close();
}

/** What is the same in all completions that the server takes. */
const PLAIN_COMPLETION = {
  wrId: 0,
  status: 0,
  opcode: WcOpcode.RECV,
  byteLen: GRH_BYTES,
  immData: 0,
  vendorErr: 0,
  pkeyIndex: 0,
  slid: 0,
  sl: 0,
  dlidPathBits: 0,
};

async function ask() {
  const [{ server, id }] = await once(process, 'message');
  const { context, domain, queuePair, list, places, waiter } = openSide(serverDevice, 2 * WINDOW_MAX);
  post(queuePair, places);
  list.bindAddressHandle(0, domain.createAddressHandle(context.addressVectorFor(server)));
  /** @type {number[]} */
  const numbers = [];
  const again = [];
  const answered = (at) => {
    numbers.push(list.completions[at + WC.immData]);
    again.push(places[list.completions[at + WC.wrId]]);
    outstanding = Math.max(0, outstanding - 1);
    heardNs = monotonicNs();
    attempts = 0;
  };
  let outstanding = 0;
  let asked = 0;
  let attempts = 0;
  let heardNs = monotonicNs();
  while (numbers.length < requestCount) {
    const wanted = Math.min(window, requestCount - numbers.length) - outstanding;
    const count = Math.max(0, wanted);
    for (let i = 0; i < count; i++) {
      writeHeader(list, i, id, 0, server.qpNum, ++asked % SIGNAL_EVERY === 0);
    }
    outstanding += count;
    const completed = list.submit(count, SPIN_NS, 1);
    takeReceives(list, completed, answered);
    if (again.length > 0) post(queuePair, again.splice(0));
    if (completed === 0) waiter.wait(SLEEP_NS);
    if (monotonicNs() - heardNs > ANSWER_TIMEOUT_NS) {
      if (++attempts > ATTEMPTS_MAX) throw new Error('the server does not answer');
      outstanding = 0;
      heardNs = monotonicNs();
    }
  }
  process.send?.(numbers.slice(0, requestCount), () => process.disconnect());
  context.close();
}

await (process.send === undefined ? serve() : ask());
