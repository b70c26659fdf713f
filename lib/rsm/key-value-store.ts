// A replicated map from keys to values, both byte strings: the state machine that the demo and the examples run, and
// the simplest useful one. Commands are compact binary, and every one has a result, also one that makes no sense to
// the store: apply() never throws, because all replicas must survive whatever was committed.
//
// Keys and values are kept as one-byte ("latin1") strings of their bytes: a Map finds them fast, they cost the garbage
// collector little, and no sequence of bytes is mapped to another one, as decoding invalid UTF-8 would.
import { createHash } from 'node:crypto';
import { PAYLOAD_BYTES_MAX } from '../consensus/limits.js';
import { outOfRange, QuorateError } from '../errors.js';
import type { StateMachine } from '../replica/replica-options.js';

/** opcode (1 byte), length of the key (2 bytes, little-endian), key, value. */
const COMMAND_HEADER_BYTES = 3;
const OPCODE_SET = 1;
const OPCODE_DELETE = 2;

/** Largest key; the smallest has 1 byte. */
export const KEY_BYTES_MAX = 1024;
/** Largest value: with the largest key it makes the largest command that any log takes. */
export const VALUE_BYTES_MAX = PAYLOAD_BYTES_MAX - KEY_BYTES_MAX - COMMAND_HEADER_BYTES;
/** Counted for each key on top of its bytes and its value's, so that the limit bounds memory, not only payload. */
export const ENTRY_OVERHEAD_BYTES = 64;
/** Default limit of the whole store: keys, values and ENTRY_OVERHEAD_BYTES for each key. */
export const STATE_BYTES_MAX = 512 * 1024 * 1024;

const SNAPSHOT_MAGIC = 0x31_56_4b_51; // "QKV1"
const SNAPSHOT_HEADER_BYTES = 8; // magic, number of entries
const SNAPSHOT_ENTRY_HEADER_BYTES = 8; // length of the key, length of the value

/**
 * What a command did. "full": the store's limit would be exceeded; "invalid": the bytes are no command. Neither
 * changed anything.
 */
export type KeyValueResult = 'created' | 'replaced' | 'deleted' | 'absent' | 'full' | 'invalid';

/** Key or value as text (UTF-8) or bytes. */
export type Text = string | Uint8Array;

export interface KeyValueCommand {
  readonly operation: 'set' | 'del';
  readonly key: Uint8Array;
  /** Undefined for "del". */
  readonly value: Uint8Array | undefined;
}

export interface KeyValueStoreOptions {
  /** Limit of the whole store in bytes, the same at every replica; default STATE_BYTES_MAX. */
  readonly stateBytesMax?: number;
}

function bytesOf(text: Text): Uint8Array {
  return typeof text === 'string' ? Buffer.from(text, 'utf8') : text;
}

function encode(opcode: number, key: Text, value: Text): Uint8Array {
  const keyBytes = bytesOf(key);
  const valueBytes = bytesOf(value);
  if (keyBytes.length === 0 || keyBytes.length > KEY_BYTES_MAX) {
    throw outOfRange(`key of ${keyBytes.length} bytes; a key has 1 to ${KEY_BYTES_MAX} bytes`);
  }
  if (valueBytes.length > VALUE_BYTES_MAX) {
    throw new QuorateError(
      'QUORATE_PAYLOAD_TOO_LARGE',
      `value of ${valueBytes.length} bytes; a value has at most ${VALUE_BYTES_MAX} bytes`,
    );
  }
  const command = new Uint8Array(COMMAND_HEADER_BYTES + keyBytes.length + valueBytes.length);
  command[0] = opcode;
  command[1] = keyBytes.length & 0xff;
  command[2] = keyBytes.length >>> 8;
  command.set(keyBytes, COMMAND_HEADER_BYTES);
  command.set(valueBytes, COMMAND_HEADER_BYTES + keyBytes.length);
  return command;
}

/** The command that sets `key` to `value`. Throws QUORATE_OUT_OF_RANGE or QUORATE_PAYLOAD_TOO_LARGE. */
export function encodeSet(key: Text, value: Text): Uint8Array {
  return encode(OPCODE_SET, key, value);
}

/** The command that removes `key`. Throws QUORATE_OUT_OF_RANGE. */
export function encodeDelete(key: Text): Uint8Array {
  return encode(OPCODE_DELETE, key, '');
}

/** Length of the key of a command, or -1 if the bytes are no command. */
function keyLengthOf(command: Uint8Array): number {
  if (command.length <= COMMAND_HEADER_BYTES) return -1;
  const keyBytes = (command[1] as number) | ((command[2] as number) << 8);
  const valueBytes = command.length - COMMAND_HEADER_BYTES - keyBytes;
  if (keyBytes === 0 || keyBytes > KEY_BYTES_MAX || valueBytes < 0 || valueBytes > VALUE_BYTES_MAX) return -1;
  const opcode = command[0] as number;
  if (opcode === OPCODE_SET) return keyBytes;
  return opcode === OPCODE_DELETE && valueBytes === 0 ? keyBytes : -1;
}

/** The parts of a command, or undefined if the bytes are none. Key and value are views of `command`. */
export function decodeCommand(command: Uint8Array): KeyValueCommand | undefined {
  const keyBytes = keyLengthOf(command);
  if (keyBytes < 0) return undefined;
  const key = command.subarray(COMMAND_HEADER_BYTES, COMMAND_HEADER_BYTES + keyBytes);
  if (command[0] === OPCODE_DELETE) return { operation: 'del', key, value: undefined };
  return { operation: 'set', key, value: command.subarray(COMMAND_HEADER_BYTES + keyBytes) };
}

export class KeyValueStore implements StateMachine<KeyValueResult> {
  private values = new Map<string, string>();
  private stateBytes_ = 0;
  private readonly stateBytesMax: number;
  /** Of the buffer that commands came in last (the log's), so that reading one creates no view of its own. */
  private source: Buffer = Buffer.alloc(0);

  constructor(options: KeyValueStoreOptions = {}) {
    this.stateBytesMax = options.stateBytesMax ?? STATE_BYTES_MAX;
    if (!(this.stateBytesMax >= 0 && this.stateBytesMax <= STATE_BYTES_MAX)) {
      throw outOfRange(`stateBytesMax is ${this.stateBytesMax}; it must be from 0 to ${STATE_BYTES_MAX} bytes`);
    }
  }

  /** Number of keys. */
  get size(): number {
    return this.values.size;
  }

  /** What counts towards the limit: keys, values and ENTRY_OVERHEAD_BYTES for each key. */
  get stateBytes(): number {
    return this.stateBytes_;
  }

  /** The value as bytes, undefined if there is no such key. */
  get(key: Text): Uint8Array | undefined {
    const value = this.values.get(Buffer.from(bytesOf(key)).toString('latin1'));
    return value === undefined ? undefined : Uint8Array.from(Buffer.from(value, 'latin1'));
  }

  /** The value as UTF-8 text, undefined if there is no such key. */
  getText(key: Text): string | undefined {
    const value = this.get(key);
    return value === undefined ? undefined : Buffer.from(value).toString('utf8');
  }

  has(key: Text): boolean {
    return this.values.has(Buffer.from(bytesOf(key)).toString('latin1'));
  }

  /** All keys and values as bytes. */
  *entries(): IterableIterator<[key: Uint8Array, value: Uint8Array]> {
    for (const [key, value] of this.values) yield [Buffer.from(key, 'latin1'), Buffer.from(value, 'latin1')];
  }

  apply(command: Uint8Array): KeyValueResult {
    const keyBytes = keyLengthOf(command);
    if (keyBytes < 0) return 'invalid';
    // One native call for key and value together, relative to the buffer they lie in.
    const { buffer } = command;
    if (this.source.buffer !== buffer || this.source.length !== buffer.byteLength) this.source = Buffer.from(buffer);
    const start = command.byteOffset + COMMAND_HEADER_BYTES;
    const text = this.source.toString('latin1', start, command.byteOffset + command.length);
    const key = text.substring(0, keyBytes);
    const previous = this.values.get(key);
    if (command[0] === OPCODE_DELETE) {
      if (previous === undefined) return 'absent';
      this.values.delete(key);
      this.stateBytes_ -= keyBytes + previous.length + ENTRY_OVERHEAD_BYTES;
      return 'deleted';
    }
    const growth = text.length - (previous === undefined ? -ENTRY_OVERHEAD_BYTES : keyBytes + previous.length);
    if (this.stateBytes_ + growth > this.stateBytesMax) return 'full';
    this.stateBytes_ += growth;
    // A new key is read a second time: a substring would keep its first value's bytes alive for as long as the key.
    const kept = previous === undefined ? this.source.toString('latin1', start, start + keyBytes) : key;
    this.values.set(kept, text.substring(keyBytes));
    return previous === undefined ? 'created' : 'replaced';
  }

  /**
   * SHA-256 over the state, in hexadecimal: equal if and only if the same keys have the same values, however the state
   * was reached. Takes time in proportion to the state.
   */
  digest(): string {
    const hash = createHash('sha256');
    const lengths = Buffer.alloc(SNAPSHOT_ENTRY_HEADER_BYTES);
    for (const key of [...this.values.keys()].sort()) {
      const value = this.values.get(key) as string;
      lengths.writeUInt32LE(key.length, 0);
      lengths.writeUInt32LE(value.length, 4);
      hash.update(lengths).update(key, 'latin1').update(value, 'latin1');
    }
    return hash.digest('hex');
  }

  snapshot(): Uint8Array {
    let length = SNAPSHOT_HEADER_BYTES + this.values.size * SNAPSHOT_ENTRY_HEADER_BYTES;
    for (const [key, value] of this.values) length += key.length + value.length;
    const bytes = Buffer.alloc(length);
    bytes.writeUInt32LE(SNAPSHOT_MAGIC, 0);
    bytes.writeUInt32LE(this.values.size, 4);
    let at = SNAPSHOT_HEADER_BYTES;
    for (const [key, value] of this.values) {
      bytes.writeUInt32LE(key.length, at);
      bytes.writeUInt32LE(value.length, at + 4);
      at += SNAPSHOT_ENTRY_HEADER_BYTES;
      at += bytes.write(key, at, 'latin1');
      at += bytes.write(value, at, 'latin1');
    }
    return bytes;
  }

  /** Replaces the state. A snapshot that does not hold a state is refused and changes nothing. */
  restore(snapshot: Uint8Array): void {
    const refuse = (what: string): QuorateError =>
      new QuorateError('QUORATE_SNAPSHOT_INVALID', `the snapshot's key-value state cannot be used: ${what}`);
    const bytes = Buffer.from(snapshot.buffer, snapshot.byteOffset, snapshot.length);
    if (bytes.length < SNAPSHOT_HEADER_BYTES || bytes.readUInt32LE(0) !== SNAPSHOT_MAGIC)
      throw refuse('it does not begin as one');
    const count = bytes.readUInt32LE(4);
    const values = new Map<string, string>();
    let stateBytes = 0;
    let at = SNAPSHOT_HEADER_BYTES;
    for (let entry = 0; entry < count; entry++) {
      if (bytes.length - at < SNAPSHOT_ENTRY_HEADER_BYTES) throw refuse(`it ends in entry ${entry} of ${count}`);
      const keyBytes = bytes.readUInt32LE(at);
      const valueBytes = bytes.readUInt32LE(at + 4);
      at += SNAPSHOT_ENTRY_HEADER_BYTES;
      if (keyBytes === 0 || keyBytes > KEY_BYTES_MAX) throw refuse(`entry ${entry} has a key of ${keyBytes} bytes`);
      if (valueBytes > VALUE_BYTES_MAX) throw refuse(`entry ${entry} has a value of ${valueBytes} bytes`);
      if (bytes.length - at < keyBytes + valueBytes) throw refuse(`it ends in entry ${entry} of ${count}`);
      const key = bytes.toString('latin1', at, at + keyBytes);
      if (values.has(key)) throw refuse(`entry ${entry} repeats a key`);
      values.set(key, bytes.toString('latin1', at + keyBytes, at + keyBytes + valueBytes));
      at += keyBytes + valueBytes;
      stateBytes += keyBytes + valueBytes + ENTRY_OVERHEAD_BYTES;
      if (stateBytes > this.stateBytesMax) throw refuse(`it is larger than the limit of ${this.stateBytesMax} bytes`);
    }
    if (at !== bytes.length) throw refuse(`${bytes.length - at} bytes follow its last entry`);
    this.values = values;
    this.stateBytes_ = stateBytes;
  }
}
