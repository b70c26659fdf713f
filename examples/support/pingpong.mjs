// What rc-pingpong.mjs and ud-pingpong.mjs share with each other, and with rdma-core's ibv_rc_pingpong and
// ibv_ud_pingpong, whose protocol they speak: over TCP both sides tell each other where their queue pair is, then they
// send each other a message of fixed size in turn.
import { createServer, connect as tcpConnect } from 'node:net';
import {
  Access,
  monotonicNs,
  normalizeGid,
  openDevice,
  WcStatus,
  WrOpcode,
  wcStatusExplanation,
  wcStatusName,
} from 'quorate/verbs';
import { readArguments, refuse, wholeNumber } from './options.mjs';

/** lid:qpn:psn:gid in hexadecimal digits, and a NUL. */
const ADDRESS_BYTES = '0000:000000:000000:00000000000000000000000000000000'.length + 1;
const DONE = 'done\0';
/** First bytes of pages are 0 so that `ibv_rc_pingpong --chk` finds what it looks for; all others have this value. */
const FILL = 0x7b;
const PAGE_BYTES = 4096;
const RECEIVE_ID = 1;
const SEND_ID = 2;

/**
 * @param {string} url of the program
 * @param {number} defaultSize
 */
export function readOptions(url, defaultSize) {
  const { values, positionals } = readArguments(url, {
    allowPositionals: true,
    options: {
      device: { type: 'string', default: 'shm' },
      'gid-index': { type: 'string' },
      port: { type: 'string', default: '18515' },
      size: { type: 'string', default: String(defaultSize) },
      iterations: { type: 'string', default: '1000' },
      mtu: { type: 'string', default: '1024' },
      'timeout-ms': { type: 'string', default: '60000' },
    },
  });
  const gidIndex = values['gid-index'];
  return {
    host: positionals[0], // without one this is the server
    device: values.device,
    gidIndex: gidIndex === undefined ? undefined : wholeNumber('gid-index', gidIndex, 0, 255),
    port: wholeNumber('port', values.port, 1, 65_535),
    size: wholeNumber('size', values.size, 1, 2 ** 24),
    iterations: wholeNumber('iterations', values.iterations, 1, 1e7),
    mtu: wholeNumber('mtu', values.mtu, 256, 4096),
    timeoutMs: wholeNumber('timeout-ms', values['timeout-ms'], 1, 1e7),
  };
}

/** Device, memory and queue pair of this side. `headBytes`: room in front of the message (the routing header of UD). */
export function open(/** @type {ReturnType<typeof readOptions>} */ options, type, headBytes) {
  const context = openDevice(options.device);
  const domain = context.allocateProtectionDomain();
  const memory = context.allocateMemory({ lengthBytes: options.size + headBytes });
  const region = domain.registerMemory(memory, 0, memory.length, Access.LOCAL_WRITE);
  const queue = context.createCompletionQueue(64);
  const queuePair = domain.createQueuePair({ type, sendCq: queue, cap: { maxSendWr: 1, maxRecvWr: 32 } });
  const gid =
    options.gidIndex === undefined
      ? context.chooseGid()
      : context.queryGids().find((entry) => entry.index === options.gidIndex);
  if (gid === undefined) refuse(`${options.device} has no GID ${options.gidIndex}`);
  return { context, domain, memory, region, queue, queuePair, gid, headBytes };
}

/** @typedef {{ lid: number, qpNum: number, psn: number, gid: string }} Address */

/** @param {ReturnType<typeof open>} side */
function ownAddress(side) {
  const { queuePair, gid, context } = side;
  return { lid: context.queryPort().lid, qpNum: queuePair.number, psn: queuePair.psn, gid: gid.gid };
}

/** @param {Address} address */
function toWire(address) {
  /** @type {(value: number, digits: number) => string} */
  const hex = (value, digits) => value.toString(16).padStart(digits, '0');
  return `${hex(address.lid, 4)}:${hex(address.qpNum, 6)}:${hex(address.psn, 6)}:${address.gid.replaceAll(':', '')}\0`;
}

/** @param {Buffer} bytes @returns {Address} */
function fromWire(bytes) {
  const match = /^([0-9a-f]{4}):([0-9a-f]{6}):([0-9a-f]{6}):([0-9a-f]{32})\0$/i.exec(bytes.toString('latin1'));
  if (match === null) throw new Error(`the peer sent no address: ${JSON.stringify(bytes.toString('latin1'))}`);
  const [, lid = '', qpNum = '', psn = '', gid = ''] = match;
  return {
    lid: Number.parseInt(lid, 16),
    qpNum: Number.parseInt(qpNum, 16),
    psn: Number.parseInt(psn, 16),
    gid: normalizeGid(gid.replace(/....(?!$)/g, '$&:')),
  };
}

/** Exactly `length` bytes of the stream. */
async function read(/** @type {import('node:net').Socket} */ socket, /** @type {number} */ length) {
  for (;;) {
    const bytes = socket.read(length);
    if (bytes !== null && bytes.length === length) return bytes;
    await new Promise((resolve, reject) => {
      socket.once('readable', resolve);
      socket.once('error', reject);
      socket.once('end', () => reject(new Error('the peer closed the connection before it was ready')));
    });
  }
}

/** @type {(socket: import('node:net').Socket, text: string) => Promise<void>} */
const write = (socket, text) =>
  new Promise((resolve, reject) => socket.write(text, 'latin1', (error) => (error ? reject(error) : resolve())));

/**
 * Tells the peer where we are and learns where it is. `ready` is called with the peer's address: on the server before it
 * answers, so that the client may begin at once; on the client at the end.
 *
 * @param {ReturnType<typeof readOptions>} options
 * @param {ReturnType<typeof open>} side
 * @param {(peer: Address) => Promise<void>} ready
 */
export async function exchange(options, side, ready) {
  const own = toWire(ownAddress(side));
  if (options.host !== undefined) {
    const socket = tcpConnect({ host: options.host, port: options.port });
    await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject));
    await write(socket, own);
    const peer = fromWire(await read(socket, ADDRESS_BYTES));
    await write(socket, DONE);
    socket.end();
    await ready(peer);
    return;
  }
  const server = createServer({ allowHalfOpen: true });
  server.listen(options.port);
  await new Promise((resolve, reject) => server.once('listening', resolve).once('error', reject));
  process.stderr.write(`waiting on TCP port ${options.port}\n`);
  /** @type {import('node:net').Socket} */
  const socket = await new Promise((resolve) => server.once('connection', resolve));
  server.close();
  const peer = fromWire(await read(socket, ADDRESS_BYTES));
  await ready(peer);
  await write(socket, own);
  await read(socket, DONE.length);
  socket.end();
}

/** Posts as many receives as the queue pair takes. */
export function postReceives(/** @type {ReturnType<typeof open>} */ side) {
  const { queuePair, memory, region } = side;
  const receive = { wrId: RECEIVE_ID, localAddress: memory.address, length: memory.length, lkey: region.lkey };
  const posted = queuePair.postReceive(new Array(queuePair.capabilities.maxRecvWr).fill(receive)).accepted;
  if (posted === 0) throw new Error('no receive could be posted');
  return posted;
}

/**
 * Sends and receives in turn, the client first.
 *
 * @param {ReturnType<typeof readOptions>} options
 * @param {ReturnType<typeof open>} side
 * @param {number} receives posted
 * @param {object} destination members of the send request that name it (UD)
 */
export function play(options, side, receives, destination) {
  const { queuePair, memory, region, queue, headBytes } = side;
  const { size, iterations } = options;
  const bytes = new Uint8Array(memory.buffer, headBytes);
  bytes.fill(FILL);
  for (let at = 0; at < size; at += PAGE_BYTES) bytes[at] = 0;
  const request = {
    wrId: SEND_ID,
    opcode: WrOpcode.SEND,
    localAddress: memory.address + headBytes,
    length: size,
    lkey: region.lkey,
    ...destination,
  };
  const send = () => {
    const { accepted, errno } = queuePair.postSend([request]);
    if (accepted !== 1) throw new Error(`a send was refused: errno ${errno}`);
  };
  let sent = 0;
  let received = 0;
  let posted = receives;
  let pending = RECEIVE_ID;
  const begin = monotonicNs();
  const deadline = begin + options.timeoutMs * 1e6;
  if (options.host !== undefined) {
    send();
    pending |= SEND_ID;
  }
  while (sent < iterations || received < iterations) {
    const completions = queue.poll();
    if (completions.length === 0 && monotonicNs() > deadline) {
      throw new Error(`only ${sent} sent and ${received} received in time; a datagram may have been lost`);
    }
    for (const { wrId, status, byteLen } of completions) {
      if (status !== WcStatus.SUCCESS) throw new Error(`${wcStatusName(status)}: ${wcStatusExplanation(status)}`);
      if (wrId === SEND_ID) {
        sent++;
      } else {
        if (byteLen !== size + headBytes)
          throw new Error(`a message of ${byteLen - headBytes} bytes instead of ${size}`);
        received++;
        if (--posted <= 1) posted += postReceives(side);
      }
      pending &= ~wrId;
      if (sent < iterations && pending === 0) {
        send();
        pending = RECEIVE_ID | SEND_ID;
      }
    }
  }
  const microseconds = (monotonicNs() - begin) / 1000;
  for (let at = 0; at < size; at++) {
    if (bytes[at] !== FILL && at % PAGE_BYTES !== 0) throw new Error(`byte ${at} is ${bytes[at]}, not ${FILL}`);
  }
  const total = size * iterations * 2;
  process.stdout.write(
    `${total} bytes in ${(microseconds / 1e6).toFixed(2)} seconds = ${((total * 8) / microseconds).toFixed(2)} Mbit/sec\n` +
      `${iterations} iters in ${(microseconds / 1e6).toFixed(2)} seconds = ${(microseconds / iterations).toFixed(2)} usec/iter\n`,
  );
}
