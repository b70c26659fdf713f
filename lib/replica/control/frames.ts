// The frames of the control protocol. On the wire: 4 bytes of length (big endian, so the first is always 0, which tells
// a frame from a TLS record or an HTTP request), then a MessagePack array whose first element is the kind.
import { errorCode, QuorateError } from '../../errors.js';
import {
  BLOB_BYTES_MAX,
  BLOB_CHUNK_BYTES,
  BLOB_WINDOW_BYTES,
  ERROR_MESSAGE_CHARACTERS_MAX,
  TYPE_CHARACTERS_MAX,
} from './limits.js';
import { decodeValue, encodeValue } from './message-pack.js';
import { badShape, checkBytes, checkInteger, checkRecord, checkString } from './shape.js';

export const FRAME_HEADER_BYTES = 4;

/** First element of every frame (wire). */
export const FrameKind = {
  hello: 0,
  accept: 1,
  /** Last frame of its sender; says why, or nothing if it closes in good order. */
  farewell: 2,
  request: 3,
  response: 4,
  failure: 5,
  message: 6,
  blobOpen: 7,
  blobChunk: 8,
  /** Receiver of a blob: so many more bytes of its window are free. */
  blobCredit: 9,
  /** Sender of a blob: no more of it will come. */
  blobAbort: 10,
  blobDone: 11,
  blobFailed: 12,
} as const;

/** An error as it travels. */
export interface WireError {
  readonly code: string;
  readonly message: string;
  readonly errno?: number | undefined;
  readonly syscall?: string | undefined;
}

export type Frame =
  | { readonly kind: typeof FrameKind.hello; readonly body: unknown }
  | { readonly kind: typeof FrameKind.accept }
  | { readonly kind: typeof FrameKind.farewell; readonly error: WireError | null }
  | { readonly kind: typeof FrameKind.request; readonly id: number; readonly type: string; readonly body: unknown }
  | { readonly kind: typeof FrameKind.response; readonly id: number; readonly body: unknown }
  | { readonly kind: typeof FrameKind.failure; readonly id: number; readonly error: WireError }
  | { readonly kind: typeof FrameKind.message; readonly type: string; readonly body: unknown }
  | {
      readonly kind: typeof FrameKind.blobOpen;
      readonly id: number;
      readonly type: string;
      readonly lengthBytes: number;
      readonly body: unknown;
    }
  | { readonly kind: typeof FrameKind.blobChunk; readonly id: number; readonly bytes: Uint8Array }
  | { readonly kind: typeof FrameKind.blobCredit; readonly id: number; readonly bytes: number }
  | { readonly kind: typeof FrameKind.blobAbort; readonly id: number; readonly error: WireError }
  | { readonly kind: typeof FrameKind.blobDone; readonly id: number; readonly body: unknown }
  | { readonly kind: typeof FrameKind.blobFailed; readonly id: number; readonly error: WireError };

const CODE_PATTERN = /^QUORATE_[A-Z0-9_]{1,48}$/;
const TYPE_PATTERN = /^[A-Za-z][A-Za-z0-9._-]*$/;

export function isTypeName(value: unknown): value is string {
  return typeof value === 'string' && value.length <= TYPE_CHARACTERS_MAX && TYPE_PATTERN.test(value);
}

function checkType(value: unknown): string {
  if (!isTypeName(value)) throw badShape('the type', 'a short name', value);
  return value;
}

function checkId(value: unknown): number {
  return checkInteger(value, 1, Number.MAX_SAFE_INTEGER, 'the id');
}

function checkError(value: unknown): WireError {
  const from = checkRecord(value, 'the error');
  const code = checkString(from['code'], 64, "the error's code");
  if (!CODE_PATTERN.test(code)) throw badShape("the error's code", 'a QUORATE_ code', code);
  const errno = from['errno'] ?? undefined;
  const syscall = from['syscall'] ?? undefined;
  return {
    code,
    // It ends up on somebody's terminal: no control characters.
    message: checkString(from['message'], ERROR_MESSAGE_CHARACTERS_MAX, "the error's message").replace(/\p{Cc}/gu, ' '),
    errno: errno === undefined ? undefined : checkInteger(errno, 0, 4095, "the error's errno"),
    syscall: syscall === undefined ? undefined : checkString(syscall, 64, "the error's syscall"),
  };
}

/** The error as it travels. One without a code of this project becomes QUORATE_INTERNAL. */
export function toWireError(error: unknown): WireError {
  const { message, errno, syscall } = (
    error instanceof Error ? error : new Error(String(error))
  ) as Partial<QuorateError>;
  const code = errorCode(error);
  return {
    code: code !== undefined && CODE_PATTERN.test(code) ? code : 'QUORATE_INTERNAL',
    message: String(message).slice(0, ERROR_MESSAGE_CHARACTERS_MAX),
    errno: Number.isInteger(errno) && (errno as number) >= 0 && (errno as number) <= 4095 ? errno : undefined,
    syscall: typeof syscall === 'string' ? syscall.slice(0, 64) : undefined,
  };
}

/** An error that a peer reported; `by` names the peer. */
export function fromWireError(error: WireError, by: string): QuorateError {
  return new QuorateError(error.code, `${error.message} (said ${by})`, {
    ...(error.errno === undefined ? {} : { errno: error.errno }),
    ...(error.syscall === undefined ? {} : { syscall: error.syscall }),
  });
}

/** The payload of a frame. Throws QUORATE_INVALID_ARGUMENT or QUORATE_LIMIT for a body that cannot be sent. */
export function encodeFrame(frame: Frame): Buffer {
  switch (frame.kind) {
    case FrameKind.hello:
      return encodeValue([frame.kind, frame.body]);
    case FrameKind.accept:
      return encodeValue([frame.kind]);
    case FrameKind.farewell:
      return encodeValue([frame.kind, frame.error]);
    case FrameKind.message:
      return encodeValue([frame.kind, frame.type, frame.body]);
    case FrameKind.request:
      return encodeValue([frame.kind, frame.id, frame.type, frame.body]);
    case FrameKind.response:
    case FrameKind.blobDone:
      return encodeValue([frame.kind, frame.id, frame.body]);
    case FrameKind.failure:
    case FrameKind.blobAbort:
    case FrameKind.blobFailed:
      return encodeValue([frame.kind, frame.id, frame.error]);
    case FrameKind.blobOpen:
      return encodeValue([frame.kind, frame.id, frame.type, frame.lengthBytes, frame.body]);
    case FrameKind.blobChunk:
    case FrameKind.blobCredit:
      return encodeValue([frame.kind, frame.id, frame.bytes]);
  }
}

/** Decodes and checks a payload. Throws QUORATE_PROTOCOL. */
export function decodeFrame(payload: Buffer): Frame {
  const value = decodeValue(payload);
  if (!Array.isArray(value)) throw badShape('a frame', 'an array', value);
  const [kind, first, second, third, fourth] = value as unknown[];
  switch (kind) {
    case FrameKind.hello:
      return { kind, body: first };
    case FrameKind.accept:
      return { kind };
    case FrameKind.farewell:
      return { kind, error: first === null ? null : checkError(first) };
    case FrameKind.message:
      return { kind, type: checkType(first), body: second };
    case FrameKind.request:
      return { kind, id: checkId(first), type: checkType(second), body: third };
    case FrameKind.response:
    case FrameKind.blobDone:
      return { kind, id: checkId(first), body: second };
    case FrameKind.failure:
    case FrameKind.blobAbort:
    case FrameKind.blobFailed:
      return { kind, id: checkId(first), error: checkError(second) };
    case FrameKind.blobOpen:
      return {
        kind,
        id: checkId(first),
        type: checkType(second),
        lengthBytes: checkInteger(third, 0, BLOB_BYTES_MAX, 'the length of a blob'),
        body: fourth,
      };
    case FrameKind.blobChunk: {
      const bytes = checkBytes(second, BLOB_CHUNK_BYTES, 'a chunk');
      if (bytes.length === 0) throw badShape('a chunk', 'at least one byte', bytes);
      return { kind, id: checkId(first), bytes };
    }
    case FrameKind.blobCredit:
      return { kind, id: checkId(first), bytes: checkInteger(second, 1, BLOB_WINDOW_BYTES, 'a credit') };
    default:
      throw badShape("a frame's kind", 'a known one', kind);
  }
}
