// Values on the wire: MessagePack (by msgpackr), cut down to plain data. What arrives is scanned before it is decoded:
// only nil, booleans, numbers, strings, bytes, arrays and maps with string keys pass, within limits of depth and count,
// and every length is inside the frame. So the decoder never sees extensions (which make dates, errors, regular
// expressions, records ...) nor a container larger than the bytes that are there. What is sent passes the same scan:
// a value that the peer would refuse is an error of the caller, here.
import { Packr, Unpackr } from 'msgpackr';
import { invalidArgument, QuorateError } from '../../errors.js';
import { thrownError } from '../user-code.js';
import { FRAME_BYTES_MAX, KEY_BYTES_MAX, VALUE_DEPTH_MAX, VALUES_PER_FRAME_MAX } from './limits.js';

const packr = new Packr({ useRecords: false, mapsAsObjects: true, encodeUndefinedAsNil: true });
const unpackr = new Unpackr({ useRecords: false, mapsAsObjects: true });

const PROTO_KEY = Buffer.from('__proto__');

/** What is wrong with the encoded value, or undefined if it is plain data within the limits. */
export function findFault(bytes: Buffer): string | undefined {
  // Values still to come at each level of nesting; in a map keys and values alternate, keys at even counts.
  const pending = new Uint32Array(VALUE_DEPTH_MAX + 1);
  const isMap = new Uint8Array(VALUE_DEPTH_MAX + 1);
  const total = bytes.length;
  let position = 0;
  let depth = 0;
  let values = 0;
  pending[0] = 1;
  for (;;) {
    while (depth >= 0 && pending[depth] === 0) depth--;
    if (depth < 0) return position === total ? undefined : `${total - position} bytes behind the value`;
    if (position >= total) return 'it ends in the middle of a value';
    if (++values > VALUES_PER_FRAME_MAX) return `more than ${VALUES_PER_FRAME_MAX} values`;
    const isKey = isMap[depth] === 1 && (pending[depth] as number) % 2 === 0;
    (pending[depth] as number)--;
    const token = bytes[position++] as number;
    let elements = -1;
    let elementsAreMap = 0;
    let length = 0;
    let isString = false;
    if (token <= 0x7f || token >= 0xe0) length = 0;
    else if (token <= 0x8f) {
      elements = (token & 0x0f) * 2;
      elementsAreMap = 1;
    } else if (token <= 0x9f) elements = token & 0x0f;
    else if (token <= 0xbf) {
      length = token & 0x1f;
      isString = true;
    } else {
      const width = LENGTH_BYTES[token - 0xc0] as number;
      if (width < 0) return `a value of type 0x${token.toString(16)}, which is not plain data`;
      if (position + width > total) return 'it ends in the middle of a value';
      const operand = width === 0 ? 0 : bytes.readUIntBE(position, width);
      position += width;
      switch (token) {
        case 0xc4:
        case 0xc5:
        case 0xc6:
          length = operand;
          break;
        case 0xd9:
        case 0xda:
        case 0xdb:
          length = operand;
          isString = true;
          break;
        case 0xdc:
        case 0xdd:
          elements = operand;
          break;
        case 0xde:
        case 0xdf:
          elements = operand * 2;
          elementsAreMap = 1;
          break;
        default:
          length = FIXED_BYTES[token - 0xc0] as number;
      }
    }
    if (length > total - position) return `a length of ${length} bytes, of which ${total - position} are there`;
    if (isKey) {
      if (!isString) return 'a key that is not a string';
      if (length > KEY_BYTES_MAX) return `a key of ${length} bytes, more than ${KEY_BYTES_MAX}`;
      if (PROTO_KEY.equals(bytes.subarray(position, position + length))) return 'the key __proto__';
    }
    position += length;
    if (elements >= 0) {
      // Every element takes at least one byte, so this also bounds what the decoder allocates.
      if (elements > total - position) return `${elements} elements in ${total - position} bytes`;
      if (depth === VALUE_DEPTH_MAX) return `nested deeper than ${VALUE_DEPTH_MAX}`;
      depth++;
      pending[depth] = elements;
      isMap[depth] = elementsAreMap;
    }
  }
}

/** Bytes of the length field behind tokens 0xc0 .. 0xdf; -1 for what is refused (never-used and extensions). */
// biome-ignore format: a table
const LENGTH_BYTES = Int8Array.of(
  0, -1, 0, 0, 1, 2, 4, -1, -1, -1, 0, 0, 0, 0, 0, 0, // nil, never used, booleans, bin, ext, floats, uints
  0, 0, 0, 0, -1, -1, -1, -1, -1, 1, 2, 4, 2, 4, 2, 4, // ints, fixext, str, array, map
);
/** Bytes of the value itself behind tokens 0xc0 .. 0xdf that have a fixed size: floats and integers. */
// biome-ignore format: a table
const FIXED_BYTES = Uint8Array.of(
  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 8, 1, 2, 4, 8,
  1, 2, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
);

/** Bytes that what findForeign() has seen of a value takes at least. */
let leastBytes = 0;

/** An array within many others is written out for each: a small value would take hours, or all memory there is. */
function takesAtLeast(lengthBytes: number): void {
  leastBytes += lengthBytes;
  if (leastBytes > FRAME_BYTES_MAX) throw tooLarge(`more than ${FRAME_BYTES_MAX}`);
}

function tooLarge(lengthBytes: string): QuorateError {
  return new QuorateError(
    'QUORATE_LIMIT',
    `the value takes ${lengthBytes} bytes; a frame holds ${FRAME_BYTES_MAX}: send it as a blob`,
  );
}

/**
 * What is wrong with a value that is to be sent. The encoder would take more, but not faithfully: sets become arrays,
 * functions null, and of a Float64Array it sends bytes of memory that are not the array's.
 */
function findForeign(value: unknown, depth: number): string | undefined {
  takesAtLeast(1);
  switch (typeof value) {
    case 'string':
      takesAtLeast(value.length);
      return undefined;
    case 'undefined':
    case 'boolean':
    case 'number':
    case 'bigint':
      return undefined;
    case 'object':
      break;
    default:
      return `a ${typeof value}`;
  }
  if (value === null) return undefined;
  if (value instanceof Uint8Array) {
    takesAtLeast(value.length);
    return undefined;
  }
  if (depth >= VALUE_DEPTH_MAX) return `more than ${VALUE_DEPTH_MAX} levels of nesting`;
  if (Array.isArray(value)) {
    for (const element of value) {
      const foreign = findForeign(element, depth + 1);
      if (foreign !== undefined) return foreign;
    }
    return undefined;
  }
  const prototype: unknown = Object.getPrototypeOf(value);
  if (prototype !== Object.prototype && prototype !== null) return `a ${value.constructor?.name ?? 'foreign object'}`;
  for (const key of Object.keys(value)) {
    const foreign = findForeign((value as Record<string, unknown>)[key], depth + 1);
    if (foreign !== undefined) return foreign;
  }
  return undefined;
}

function cannotSend(fault: string, cause?: unknown): Error {
  return Object.assign(
    invalidArgument(
      `the value cannot be sent: it has ${fault}; only null, booleans, numbers, strings, Uint8Arrays, arrays and plain objects travel`,
    ),
    cause === undefined ? {} : { cause },
  );
}

/** Encodes plain data; undefined becomes null. Throws QUORATE_INVALID_ARGUMENT or QUORATE_LIMIT (larger than a frame). */
export function encodeValue(value: unknown): Buffer {
  leastBytes = 0;
  const foreign = findForeign(value, 0);
  if (foreign !== undefined) throw cannotSend(foreign);
  let bytes: Buffer;
  try {
    bytes = packr.pack(value);
  } catch (error) {
    const { message } = thrownError(error, 'a property of it');
    throw cannotSend(`something that cannot be encoded (${message})`, error);
  }
  if (bytes.length > FRAME_BYTES_MAX) throw tooLarge(`${bytes.length}`);
  const fault = findFault(bytes);
  if (fault !== undefined) throw cannotSend(fault);
  return bytes;
}

/** Decodes what a peer sent. Throws QUORATE_PROTOCOL for anything but plain data within the limits. */
export function decodeValue(bytes: Buffer): unknown {
  const fault = findFault(bytes);
  if (fault !== undefined)
    throw new QuorateError('QUORATE_PROTOCOL', `a frame of ${bytes.length} bytes cannot be used: ${fault}`);
  try {
    return unpackr.unpack(bytes);
  } catch (error) {
    throw new QuorateError('QUORATE_PROTOCOL', `a frame of ${bytes.length} bytes cannot be decoded`, { cause: error });
  }
}
