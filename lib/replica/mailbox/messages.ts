// What replicas say to each other in messages: a question has a tag, and its answer carries the same. What comes from a
// peer is bounded and checked here before anybody uses it.
//
//   byte 0 kind   1 flags   4-7 number of the question (32 bits)   8 asker   then by kind; numbers are doubles, little-endian:
//   propose        16 origin  24 sequence   32.. command
//   readIndex      nothing
//   proposed       16 LSN     24.. result (MessagePack)
//   readIndexIs    16 epoch   24 LSN
//   failed         16.. {code, message, leader} (MessagePack)
//   told           16.. [type, body] (MessagePack); asks for nothing, its tag is 0
import { errorCode, QuorateError } from '../../errors.js';
import { decodeValue, encodeValue } from '../control/message-pack.js';
import { thrownError } from '../user-code.js';
import { FORWARDED_RESULT_BYTES_MAX } from './limits.js';

export const MessageKind = { propose: 1, readIndex: 2, proposed: 3, readIndexIs: 4, failed: 5, told: 6 } as const;

const FLAG_DUPLICATE = 1;
/** The result is undefined, which MessagePack does not have. */
const FLAG_UNDEFINED = 2;

const HEADER_BYTES = 16;
const PROPOSE_BYTES = 32;
const PROPOSED_BYTES = 24;
const READ_INDEX_IS_BYTES = 32;
const TEXT_CHARACTERS_MAX = 1000;
const TYPE_CHARACTERS_MAX = 64;
const CODE = /^[A-Z][A-Z0-9_]{0,63}$/;

/** Names a question. Its answer may come when another process has the replica's id, which counts its questions as well. */
export interface Tag {
  /** Of the process that asks: random. */
  readonly asker: number;
  readonly number: number;
}
const NO_TAG: Tag = { asker: 0, number: 0 };

export type Message =
  | {
      readonly kind: typeof MessageKind.propose;
      readonly tag: Tag;
      /** 0 for no session. */
      readonly origin: number;
      readonly sequence: number;
      readonly command: Uint8Array;
    }
  | { readonly kind: typeof MessageKind.readIndex; readonly tag: Tag }
  | {
      readonly kind: typeof MessageKind.proposed;
      readonly tag: Tag;
      readonly lsn: number;
      readonly duplicate: boolean;
      readonly result: unknown;
    }
  | {
      readonly kind: typeof MessageKind.readIndexIs;
      readonly tag: Tag;
      readonly epoch: number;
      readonly lsn: number;
    }
  | {
      readonly kind: typeof MessageKind.failed;
      readonly tag: Tag;
      readonly code: string;
      readonly text: string;
      readonly leader: number | undefined;
    }
  | { readonly kind: typeof MessageKind.told; readonly tag: Tag; readonly type: string; readonly body: unknown };

function begin(
  kind: number,
  flags: number,
  { asker, number }: Tag,
  lengthBytes: number,
): { bytes: Uint8Array; view: DataView } {
  const bytes = new Uint8Array(lengthBytes);
  const view = new DataView(bytes.buffer);
  view.setUint8(0, kind);
  view.setUint8(1, flags);
  view.setUint32(4, number, true);
  view.setFloat64(8, asker, true);
  return { bytes, view };
}

export function encodePropose(tag: Tag, origin: number, sequence: number, command: Uint8Array): Uint8Array {
  const { bytes, view } = begin(MessageKind.propose, 0, tag, PROPOSE_BYTES + command.length);
  view.setFloat64(16, origin, true);
  view.setFloat64(24, sequence, true);
  bytes.set(command, PROPOSE_BYTES);
  return bytes;
}

export function encodeReadIndex(tag: Tag): Uint8Array {
  return begin(MessageKind.readIndex, 0, tag, HEADER_BYTES).bytes;
}

/**
 * Throws QUORATE_RESULT_TOO_LARGE, or QUORATE_RESULT_NOT_SENDABLE if the result is no plain data: the command was applied
 * all the same.
 */
export function encodeProposed(tag: Tag, lsn: number, duplicate: boolean, result: unknown): Uint8Array {
  const packed = result === undefined ? new Uint8Array(0) : packResult(lsn, result);
  const flags = (duplicate ? FLAG_DUPLICATE : 0) | (result === undefined ? FLAG_UNDEFINED : 0);
  const { bytes, view } = begin(MessageKind.proposed, flags, tag, PROPOSED_BYTES + packed.length);
  view.setFloat64(16, lsn, true);
  bytes.set(packed, PROPOSED_BYTES);
  return bytes;
}

/** Half of a surrogate pair, as cutting a text leaves it: in UTF-8 it would become something else. */
const LONE_SURROGATE = /\p{Surrogate}/u;

/** Of a value that can be encoded otherwise. */
function hasLoneSurrogate(value: unknown): boolean {
  if (typeof value === 'string') return LONE_SURROGATE.test(value);
  if (typeof value !== 'object' || value === null || value instanceof Uint8Array) return false;
  if (Array.isArray(value)) return value.some(hasLoneSurrogate);
  return Object.entries(value).some(([key, member]) => LONE_SURROGATE.test(key) || hasLoneSurrogate(member));
}

function packResult(lsn: number, result: unknown): Uint8Array {
  const cannotSend = (code: string, why: string): QuorateError => {
    const text = `the command was applied at LSN ${lsn}, but its result cannot be sent to the replica that forwarded it: ${why}`;
    return new QuorateError(code, text);
  };
  let packed: Uint8Array;
  let isAltered: boolean;
  try {
    packed = encodeValue(result);
    isAltered = hasLoneSurrogate(result);
  } catch (thrown) {
    const error = thrownError(thrown, 'a property of it');
    const tooLarge = errorCode(error) === 'QUORATE_LIMIT';
    throw cannotSend(tooLarge ? 'QUORATE_RESULT_TOO_LARGE' : 'QUORATE_RESULT_NOT_SENDABLE', error.message);
  }
  if (isAltered) {
    throw cannotSend(
      'QUORATE_RESULT_NOT_SENDABLE',
      'a string in it has half of a surrogate pair, which would be altered',
    );
  }
  if (packed.length > FORWARDED_RESULT_BYTES_MAX) {
    throw new QuorateError(
      'QUORATE_RESULT_TOO_LARGE',
      `the command was applied at LSN ${lsn}; its result takes ${packed.length} bytes, and no more than ` +
        `${FORWARDED_RESULT_BYTES_MAX} are sent to the replica that forwarded it: propose such commands at the leader, or ` +
        'have them return less',
    );
  }
  return packed;
}

export function encodeReadIndexIs(tag: Tag, epoch: number, lsn: number): Uint8Array {
  const { bytes, view } = begin(MessageKind.readIndexIs, 0, tag, READ_INDEX_IS_BYTES);
  view.setFloat64(16, epoch, true);
  view.setFloat64(24, lsn, true);
  return bytes;
}

export function encodeFailed(tag: Tag, error: Error): Uint8Array {
  const { code, leader } = error as { code?: unknown; leader?: unknown };
  const body = {
    code: typeof code === 'string' && CODE.test(code) ? code : 'QUORATE_INTERNAL',
    message: error.message.slice(0, TEXT_CHARACTERS_MAX),
    leader: typeof leader === 'number' ? leader : null,
  };
  const packed = encodeValue(body);
  const { bytes } = begin(MessageKind.failed, 0, tag, HEADER_BYTES + packed.length);
  bytes.set(packed, HEADER_BYTES);
  return bytes;
}

/** What the peer is to know, of some type. Throws QUORATE_INVALID_ARGUMENT for what is no plain data. */
export function encodeTold(type: string, body: unknown): Uint8Array {
  const packed = encodeValue([type, body]);
  const { bytes } = begin(MessageKind.told, 0, NO_TAG, HEADER_BYTES + packed.length);
  bytes.set(packed, HEADER_BYTES);
  return bytes;
}

function refuse(what: string): never {
  throw new QuorateError('QUORATE_PROTOCOL', `a message cannot be used: ${what}`);
}

function integerAt(view: DataView, offset: number, what: string): number {
  const value = view.getFloat64(offset, true);
  if (!Number.isSafeInteger(value) || value < 0) refuse(`${what} is no integer from 0 to 2^53 - 1`);
  return value;
}

/** Throws QUORATE_PROTOCOL. */
export function decodeMessage(bytes: Uint8Array): Message {
  const lengthAtLeast = (least: number): void => {
    if (bytes.length < least) refuse(`it has ${bytes.length} bytes, fewer than ${least}`);
  };
  lengthAtLeast(HEADER_BYTES);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const kind = view.getUint8(0);
  const flags = view.getUint8(1);
  const tag = { number: view.getUint32(4, true), asker: integerAt(view, 8, 'asker') };
  switch (kind) {
    case MessageKind.propose: {
      lengthAtLeast(PROPOSE_BYTES);
      const origin = integerAt(view, 16, 'origin');
      const sequence = integerAt(view, 24, 'sequence');
      if ((origin === 0) !== (sequence === 0)) refuse(`origin ${origin} with sequence ${sequence}`);
      return { kind, tag, origin, sequence, command: bytes.subarray(PROPOSE_BYTES) };
    }
    case MessageKind.readIndex:
      return { kind, tag };
    case MessageKind.proposed: {
      lengthAtLeast(PROPOSED_BYTES);
      const lsn = integerAt(view, 16, 'LSN');
      const result = (flags & FLAG_UNDEFINED) !== 0 ? undefined : unpack(bytes, PROPOSED_BYTES);
      return { kind, tag, lsn, duplicate: (flags & FLAG_DUPLICATE) !== 0, result };
    }
    case MessageKind.readIndexIs:
      lengthAtLeast(READ_INDEX_IS_BYTES);
      return { kind, tag, epoch: integerAt(view, 16, 'epoch'), lsn: integerAt(view, 24, 'LSN') };
    case MessageKind.failed: {
      const { code, message, leader } = (unpack(bytes, HEADER_BYTES) ?? {}) as Record<string, unknown>;
      if (typeof code !== 'string' || !CODE.test(code)) refuse('an error without a code');
      if (typeof message !== 'string' || message.length > TEXT_CHARACTERS_MAX) refuse('an error without a text');
      return { kind, tag, code, text: message, leader: typeof leader === 'number' ? leader : undefined };
    }
    case MessageKind.told: {
      const value = unpack(bytes, HEADER_BYTES);
      const [type, body] = Array.isArray(value) ? (value as unknown[]) : [];
      if (typeof type !== 'string' || type.length > TYPE_CHARACTERS_MAX) refuse('something told without a type');
      return { kind, tag, type, body };
    }
    default:
      return refuse(`its kind ${kind} is not known`);
  }
}

function unpack(bytes: Uint8Array, offset: number): unknown {
  return decodeValue(Buffer.from(bytes.buffer, bytes.byteOffset + offset, bytes.length - offset));
}
