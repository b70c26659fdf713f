// What the two sides of a connection over shared memory tell each other, over a Unix socket in the folder of the device.
// The messages are those of the InfiniBand connection manager (REQ, REP, RTU, REJ, DREQ, DREP). Whoever may open the
// folder may send anything: a frame that is not exactly right ends the conversation.
import { SocketAddress } from 'node:net';
import { gidToIpv4, normalizeGid } from '../gid.js';
import type { QueuePairEndpoint } from '../queue-pair.js';
import type { CmAddress, CmConnectionParameters } from './native.js';

export const FrameType = { REQ: 1, REP: 2, RTU: 3, REJ: 4, DREQ: 5, DREP: 6 } as const;
export type FrameType = (typeof FrameType)[keyof typeof FrameType];

const MAGIC = 0x324d4351; // "QCM2"
/** Length, magic, type, reason. */
const HEAD_BYTES = 4 + 4 + 2 + 2;
/** What REQ and REP carry beside private data. */
const CONNECTION_BYTES = 4 + 4 + 16 + 2 + 2 + 16 + 6;
export const MAX_PRIVATE_DATA_BYTES = 256;
export const MAX_FRAME_BYTES = HEAD_BYTES + CONNECTION_BYTES + MAX_PRIVATE_DATA_BYTES;
const MTUS = [256, 512, 1024, 2048, 4096];

export interface Frame {
  type: FrameType;
  /** Of REJ, as in InfiniBand; else 0. */
  reason: number;
  /** Of REQ and REP. */
  connection?: { endpoint: QueuePairEndpoint; source: CmAddress; parameters: CmConnectionParameters };
  /** Of REJ. */
  privateData?: Uint8Array;
}

/** The 16 bytes of an address, an IPv4 one as IPv6 has it, in hexadecimal digits. Which interface it is of stays here. */
function hexOf(host: string): string {
  return normalizeGid(host.split('%')[0] ?? '').replaceAll(':', '');
}

function grouped(hex: string): string {
  return hex.replace(/....(?!$)/g, '$&:');
}

export function encodeFrame(frame: Frame): Buffer {
  const { connection } = frame;
  const privateData = connection?.parameters.privateData ?? frame.privateData ?? new Uint8Array(0);
  const bodyBytes = connection === undefined ? 0 : CONNECTION_BYTES;
  const bytes = Buffer.alloc(HEAD_BYTES + bodyBytes + privateData.length);
  bytes.writeUInt32LE(bytes.length, 0);
  bytes.writeUInt32LE(MAGIC, 4);
  bytes.writeUInt16LE(frame.type, 8);
  bytes.writeUInt16LE(frame.reason, 10);
  if (connection !== undefined) {
    const { endpoint, source, parameters } = connection;
    let at = HEAD_BYTES;
    at = bytes.writeUInt32LE(endpoint.qpNum, at);
    at = bytes.writeUInt32LE(endpoint.psn, at);
    at += bytes.write(endpoint.gid.replaceAll(':', ''), at, 16, 'hex');
    at = bytes.writeUInt16LE(endpoint.pathMtuBytes, at);
    at = bytes.writeUInt16LE(source.port, at);
    at += bytes.write(hexOf(source.host), at, 16, 'hex');
    at = bytes.writeUInt8(parameters.responderResources, at);
    at = bytes.writeUInt8(parameters.initiatorDepth, at);
    at = bytes.writeUInt8(parameters.flowControl ? 1 : 0, at);
    at = bytes.writeUInt8(parameters.retryCount, at);
    at = bytes.writeUInt8(parameters.rnrRetryCount, at);
    bytes.writeUInt8(parameters.srq ? 1 : 0, at);
  }
  bytes.set(privateData, HEAD_BYTES + bodyBytes);
  return bytes;
}

/** The frame, or undefined for bytes that are none. */
export function decodeFrame(bytes: Buffer): Frame | undefined {
  if (bytes.length < HEAD_BYTES || bytes.length > MAX_FRAME_BYTES || bytes.readUInt32LE(0) !== bytes.length) return;
  if (bytes.readUInt32LE(4) !== MAGIC) return;
  const type = bytes.readUInt16LE(8);
  const reason = bytes.readUInt16LE(10);
  const rest = bytes.subarray(HEAD_BYTES);
  switch (type) {
    case FrameType.REQ:
    case FrameType.REP: {
      if (rest.length < CONNECTION_BYTES || reason !== 0) return;
      const [responderResources, initiatorDepth, flowControl, retryCount, rnrRetryCount, srq] = rest.subarray(44, 50);
      const pathMtuBytes = rest.readUInt16LE(24);
      const qpNum = rest.readUInt32LE(0);
      const psn = rest.readUInt32LE(4);
      if (qpNum > 0xffffff || psn > 0xffffff || !MTUS.includes(pathMtuBytes)) return;
      if ((retryCount ?? 8) > 7 || (rnrRetryCount ?? 8) > 7 || (flowControl ?? 2) > 1 || (srq ?? 2) > 1) return;
      const gid = grouped(rest.toString('hex', 8, 24));
      const address = grouped(rest.toString('hex', 28, 44));
      const host = gidToIpv4(address) ?? new SocketAddress({ address, family: 'ipv6' }).address;
      const parameters: CmConnectionParameters = {
        privateData: Uint8Array.from(rest.subarray(CONNECTION_BYTES)),
        responderResources: responderResources ?? 0,
        initiatorDepth: initiatorDepth ?? 0,
        flowControl: flowControl === 1,
        retryCount: retryCount ?? 0,
        rnrRetryCount: rnrRetryCount ?? 0,
        srq: srq === 1,
        qpNum,
      };
      const endpoint = { qpNum, psn, gid, lid: 0, pathMtuBytes };
      return { type, reason, connection: { endpoint, source: { host, port: rest.readUInt16LE(26) }, parameters } };
    }
    case FrameType.REJ:
      if (rest.length > MAX_PRIVATE_DATA_BYTES) return;
      return { type, reason, privateData: Uint8Array.from(rest) };
    case FrameType.RTU:
    case FrameType.DREQ:
    case FrameType.DREP:
      if (rest.length !== 0 || reason !== 0) return;
      return { type, reason };
    default:
      return;
  }
}

/** Cuts a stream into frames. */
export class FrameReader {
  #bytes: Buffer = Buffer.alloc(0);

  /**
   * The frames that are complete with these bytes. Throws for what is no frame.
   */
  push(chunk: Buffer): Frame[] {
    this.#bytes = this.#bytes.length === 0 ? chunk : Buffer.concat([this.#bytes, chunk]);
    const frames: Frame[] = [];
    while (this.#bytes.length >= 4) {
      const length = this.#bytes.readUInt32LE(0);
      if (length < HEAD_BYTES || length > MAX_FRAME_BYTES) throw new Error(`a frame of ${length} bytes`);
      if (this.#bytes.length < length) break;
      const frame = decodeFrame(this.#bytes.subarray(0, length));
      if (frame === undefined) throw new Error('a frame that makes no sense');
      frames.push(frame);
      this.#bytes = this.#bytes.subarray(length);
    }
    return frames;
  }
}
