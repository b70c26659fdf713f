// RDMA ping over a connection that the connection manager makes, with another of its kind or with rping of rdmacm-utils,
// whose protocol it speaks: the client tells where its data is, the server READs it and says "go on", the client tells
// where it wants it back, the server WRITEs it there and says "go on".
//
//   node examples/rping.mjs [--provider shm] [--address 0.0.0.0] [--port 7174] [--size 64]               the server
//   node examples/rping.mjs [--provider shm] [--port 7174] [--size 64] [--count 10] [--verbose] HOST     the client
//
//   node examples/rping.mjs --provider ibverbs ...    over an RDMA device, where these are the same in C:
//   rping -s -a ADDRESS -p 7174                       the server
//   rping -c -a HOST -p 7174 -C 10 -V                 the client
//
// Everything is event-driven: this thread sleeps between messages.
import {
  Access,
  CmEventChannel,
  CompletionEvents,
  monotonicNs,
  openDevice,
  SendFlags,
  WcOpcode,
  WcStatus,
  WrOpcode,
  wcStatusExplanation,
  wcStatusName,
} from 'quorate/verbs';
import { readArguments, refuse, wholeNumber } from './support/options.mjs';

/** What the client tells the server: address (8 bytes), rkey (4), length (4), in network byte order. */
const ADVERT_BYTES = 16;
/** As in rping: the number of the ping must fit in. */
const LEAST_SIZE = 40;
const MOST_SIZE = 64 * 1024 - 1;
/** The memory: what is sent, what is received, and the data; the client has two areas of data. */
const SEND_AT = 0;
const RECEIVE_AT = 64;
const DATA_AT = 4096;
const RECEIVE_ID = 1;
const SEND_ID = 2;
const DATA_ID = 3;

const { values, positionals } = readArguments(import.meta.url, {
  allowPositionals: true,
  options: {
    provider: { type: 'string', default: 'shm' },
    address: { type: 'string', default: '0.0.0.0' },
    port: { type: 'string', default: '7174' },
    size: { type: 'string', default: '64' },
    count: { type: 'string', default: '10' },
    verbose: { type: 'boolean', default: false },
  },
});
const [host] = positionals; // without one this is the server
const port = wholeNumber('port', values.port, 1, 65_535);
const size = wholeNumber('size', values.size, LEAST_SIZE, MOST_SIZE);
const count = wholeNumber('count', values.count, 1, 1e9);
const { provider } = values;
if (provider !== 'shm' && provider !== 'ibverbs') refuse(`--provider is "${provider}"; it must be shm or ibverbs`);

/**
 * What a connection needs, and the completions one after the other.
 * @param {import('quorate/verbs').CmId} id
 */
function makeEnd(id) {
  const context = openDevice(id.deviceName);
  const domain = context.allocateProtectionDomain();
  const memory = context.allocateMemory({ lengthBytes: DATA_AT + 2 * (MOST_SIZE + 1) });
  const access = Access.LOCAL_WRITE | Access.REMOTE_READ | Access.REMOTE_WRITE;
  const region = domain.registerMemory(memory, 0, memory.length, access);
  const channel = context.createCompletionChannel();
  const queue = context.createCompletionQueue(64, channel);
  // Only the client's memory is read and written by its peer.
  const accessFlags = host === undefined ? 0 : Access.REMOTE_READ | Access.REMOTE_WRITE;
  const queuePair = id.createQueuePair(domain, { sendCq: queue, cap: { maxSendWr: 16, maxRecvWr: 2 }, accessFlags });
  const bytes = Buffer.from(memory.buffer);

  /** @type {import('quorate/verbs').WorkCompletion[]} */
  const arrived = [];
  let wake = () => {};
  const events = new CompletionEvents(channel);
  events.watch(queue, (completions) => {
    arrived.push(...completions);
    wake();
  });
  id.disconnected().then(
    () => wake(),
    () => wake(),
  );
  /** The next completion; undefined when the peer has disconnected instead. */
  const next = async () => {
    while (arrived.length === 0) {
      if (!id.connected) return undefined;
      await new Promise((resolve) => (wake = () => resolve(undefined)));
    }
    const completion = arrived.shift();
    if (completion === undefined || completion.status === WcStatus.WR_FLUSH_ERR) return undefined;
    if (completion.status === WcStatus.SUCCESS) return completion;
    throw new Error(`${wcStatusName(completion.status)}: ${wcStatusExplanation(completion.status)}`);
  };
  /** Waits for a message; false when the peer has disconnected. Completions of sends on the way mean nothing more. */
  const received = async () => {
    for (;;) {
      const completion = await next();
      if (completion === undefined) return false;
      if (completion.opcode !== WcOpcode.RECV) continue;
      if (completion.byteLen !== ADVERT_BYTES) throw new Error(`a message of ${completion.byteLen} bytes`);
      return true;
    }
  };
  const postReceive = () =>
    queuePair.postReceive([
      { wrId: RECEIVE_ID, localAddress: memory.address + RECEIVE_AT, length: ADVERT_BYTES, lkey: region.lkey },
    ]);
  /** @param {import('quorate/verbs').SendWorkRequest} request */
  const post = (request) => {
    const { accepted, errno } = queuePair.postSend([{ lkey: region.lkey, sendFlags: SendFlags.SIGNALED, ...request }]);
    if (accepted !== 1) throw new Error(`a request was refused: errno ${errno}`);
  };
  const send = () =>
    post({ wrId: SEND_ID, opcode: WrOpcode.SEND, localAddress: memory.address + SEND_AT, length: ADVERT_BYTES });
  postReceive();
  const close = () => {
    events.close();
    context.close();
  };
  return { memory, region, bytes, next, received, postReceive, post, send, close };
}

/** @typedef {ReturnType<typeof makeEnd>} End */

/**
 * READs or WRITEs, and waits until it has happened; false when the peer has disconnected.
 * @param {End} end
 * @param {typeof WrOpcode.RDMA_READ | typeof WrOpcode.RDMA_WRITE} opcode
 * @param {{ address: number, rkey: number }} remote
 * @param {number} length
 */
async function transfer(end, opcode, remote, length) {
  const { address: remoteAddress, rkey } = remote;
  end.post({ wrId: DATA_ID, opcode, localAddress: end.memory.address + DATA_AT, length, remoteAddress, rkey });
  for (;;) {
    const completion = await end.next();
    if (completion === undefined) return false;
    if (completion.wrId === DATA_ID) return true;
  }
}

/** What the client told, checked: it is the peer's word. */
function readAdvert(/** @type {End} */ end) {
  const address = Number(end.bytes.readBigUInt64BE(RECEIVE_AT));
  const rkey = end.bytes.readUInt32BE(RECEIVE_AT + 8);
  const length = end.bytes.readUInt32BE(RECEIVE_AT + 12);
  if (length < 1 || length > MOST_SIZE + 1) throw new Error(`the client wants ${length} bytes`);
  if (!Number.isSafeInteger(address)) throw new Error('the client names an address that is none');
  return { address, rkey, length };
}

async function serve(/** @type {End} */ end) {
  for (let pings = 0; ; pings++) {
    if (!(await end.received())) return pings;
    const source = readAdvert(end);
    end.postReceive();
    if (!(await transfer(end, WrOpcode.RDMA_READ, source, source.length))) return pings;
    // As rping does: what is written back ends with the first NUL, or where the data ends.
    const nul = end.bytes.indexOf(0, DATA_AT) - DATA_AT;
    const length = nul >= 0 && nul < source.length ? nul + 1 : source.length;
    const text = end.bytes.toString('latin1', DATA_AT, DATA_AT + length - 1);
    if (values.verbose) process.stdout.write(`server ping data: ${text}\n`);
    end.send();
    if (!(await end.received())) return pings;
    const sink = readAdvert(end);
    end.postReceive();
    if (sink.length < length) throw new Error(`the client has room for ${sink.length} bytes only`);
    if (!(await transfer(end, WrOpcode.RDMA_WRITE, sink, length))) return pings + 1;
    end.send();
  }
}

async function ping(/** @type {End} */ end) {
  const source = DATA_AT;
  const sink = DATA_AT + MOST_SIZE + 1;
  const advertise = (/** @type {number} */ at) => {
    end.bytes.writeBigUInt64BE(BigInt(end.memory.address + at), SEND_AT);
    end.bytes.writeUInt32BE(end.region.rkey, SEND_AT + 8);
    end.bytes.writeUInt32BE(size, SEND_AT + 12);
    end.send();
  };
  const goOn = async () => {
    if (!(await end.received())) throw new Error('the server disconnected');
    end.postReceive();
  };
  for (let number = 0; number < count; number++) {
    // The text that rping sends: its number, then characters that begin one further each time.
    const head = `rdma-ping-${number}: `;
    end.bytes.write(head, source, 'latin1');
    let character = 65 + (number % 58);
    for (let at = head.length; at < size - 1; at++) {
      end.bytes[source + at] = character;
      character = character === 122 ? 65 : character + 1;
    }
    end.bytes[source + size - 1] = 0;
    advertise(source);
    await goOn();
    advertise(sink);
    await goOn();
    const back = end.bytes.subarray(sink, sink + size);
    if (!back.equals(end.bytes.subarray(source, source + size))) throw new Error(`ping ${number} came back changed`);
    if (values.verbose) process.stdout.write(`ping data: ${back.toString('latin1', 0, size - 1)}\n`);
  }
}

const channel = CmEventChannel.open({ provider });
if (host === undefined) {
  const listener = channel.createId();
  await listener.listen({ host: values.address, port, backlog: 1 });
  process.stderr.write(`waiting on port ${port}\n`);
  for await (const id of listener.requests()) {
    const end = makeEnd(id);
    await id.accept({ responderResources: 1, initiatorDepth: 1 });
    const pings = await serve(end);
    await id.disconnected();
    process.stdout.write(`${pings} pings served\n`);
    end.close();
    break;
  }
} else {
  const id = channel.createId();
  await id.resolveAddress({ host, port });
  await id.resolveRoute();
  const end = makeEnd(id);
  await id.connect({ responderResources: 1, initiatorDepth: 1 });
  const begin = monotonicNs();
  await ping(end);
  const microseconds = (monotonicNs() - begin) / 1000;
  await id.disconnect();
  process.stdout.write(`${count} pings of ${size} bytes, ${(microseconds / count).toFixed(1)} usec each\n`);
  end.close();
}
channel.close();
