// A replicated map from keys to values, both byte strings: the state machine that the demo and the examples run, and
// the simplest useful one. Commands are compact binary, and every one has a result, also one that makes no sense to
// the store: apply() never throws, because all replicas must survive whatever was committed.
//
// A snapshot can be read piece by piece while commands are applied (snapshotChunks). From the moment it is taken the map
// is left as it is, and changes go to a second, small map in front of it; when the snapshot has been read, or nobody wants
// it any more, they are moved over, some with each command. So neither taking the snapshot nor ending it stops anything.
//
// Keys and values are kept as one-byte ("latin1") strings of their bytes: a Map finds them fast, they cost the garbage
// collector little, and no sequence of bytes is mapped to another one, as decoding invalid UTF-8 would.
import { createHash } from 'node:crypto';
import { PAYLOAD_BYTES_MAX } from '../consensus/limits.js';
import { invalidArgument, outOfRange, QuorateError, unknownMember } from '../errors.js';
import type { SnapshotStream, StateMachine } from '../replica/replica-options.js';
import { ChangesAside, type Values } from './changes-aside.js';
import { ENTRY_HEADER_BYTES, EntryDecoder, encodeEntries, HEADER_BYTES } from './key-value-snapshot.js';

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

/**
 * What a command did. "full": the store's limit would be exceeded; "invalid": the bytes are no command. Neither
 * changed anything.
 */
export type KeyValueResult = 'created' | 'replaced' | 'deleted' | 'absent' | 'full' | 'invalid';

/** Key or value as text (UTF-8) or bytes. */
export type Text = string | Uint8Array;

/** A command of the store, decoded. */
export interface KeyValueCommand {
  /** "set" or "del". */
  readonly operation: 'set' | 'del';
  /** 1 to 1024 bytes. */
  readonly key: Uint8Array;
  /** Undefined for "del". */
  readonly value: Uint8Array | undefined;
}

/** Options of {@link KeyValueStore}. */
export interface KeyValueStoreOptions {
  /** Limit of the whole store in bytes, 64 for each key included; the same at every replica. Default and most: 512 MiB. */
  readonly stateBytesMax?: number;
}

function bytesOf(text: Text, what: string): Uint8Array {
  if (typeof text === 'string') return Buffer.from(text, 'utf8');
  if (!(text instanceof Uint8Array)) throw invalidArgument(`the ${what} is neither a string nor a Uint8Array`);
  return text;
}

function encode(opcode: number, key: Text, value: Text): Uint8Array {
  const keyBytes = bytesOf(key, 'key');
  const valueBytes = bytesOf(value, 'value');
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

/**
 * The command that sets `key`, of 1 to 1024 bytes, to `value`, of at most 1,047,549 bytes. A log of 8 MiB or less takes
 * less: see Replica.payloadBytesMax. Throws QUORATE_INVALID_ARGUMENT, QUORATE_OUT_OF_RANGE or QUORATE_PAYLOAD_TOO_LARGE.
 */
export function encodeSet(key: Text, value: Text): Uint8Array {
  return encode(OPCODE_SET, key, value);
}

/** The command that removes `key`. Throws QUORATE_INVALID_ARGUMENT or QUORATE_OUT_OF_RANGE. */
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
  private values: Values = new ChangesAside();
  private stateBytes_ = 0;
  private readonly stateBytesMax: number;
  /** Of the buffer that commands came in last (the log's), so that reading one creates no view of its own. */
  private source: Buffer = Buffer.alloc(0);

  constructor(options: KeyValueStoreOptions = {}) {
    if (typeof options !== 'object' || options === null)
      throw invalidArgument('the options of the store are no object');
    // A replica with another limit than the others comes to another state.
    const problem = unknownMember('KeyValueStore: options', options, { stateBytesMax: true });
    if (problem !== undefined) throw invalidArgument(problem);
    const { stateBytesMax = STATE_BYTES_MAX } = options;
    if (!(typeof stateBytesMax === 'number' && stateBytesMax >= 0 && stateBytesMax <= STATE_BYTES_MAX)) {
      throw outOfRange(`stateBytesMax is ${stateBytesMax}; it must be a number of bytes from 0 to ${STATE_BYTES_MAX}`);
    }
    this.stateBytesMax = stateBytesMax;
  }

  /** Number of keys. */
  get size(): number {
    return this.values.size;
  }

  /** What counts towards the limit: keys, values and 64 bytes for each key. */
  get stateBytes(): number {
    return this.stateBytes_;
  }

  /** The value as bytes, undefined if there is no such key. */
  get(key: Text): Uint8Array | undefined {
    const value = this.values.get(Buffer.from(bytesOf(key, 'key')).toString('latin1'));
    return value === undefined ? undefined : Uint8Array.from(Buffer.from(value, 'latin1'));
  }

  /** The value as UTF-8 text, undefined if there is no such key. */
  getText(key: Text): string | undefined {
    const value = this.get(key);
    return value === undefined ? undefined : Buffer.from(value).toString('utf8');
  }

  /** Whether the key has a value. */
  has(key: Text): boolean {
    return this.values.has(Buffer.from(bytesOf(key, 'key')).toString('latin1'));
  }

  /** All keys and values as bytes. */
  *entries(): IterableIterator<[key: Uint8Array, value: Uint8Array]> {
    for (const [key, value] of this.values.entries()) yield [Buffer.from(key, 'latin1'), Buffer.from(value, 'latin1')];
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
    const { values } = this;
    const previous = values.get(key);
    if (command[0] === OPCODE_DELETE) {
      if (previous === undefined) return 'absent';
      values.delete(key);
      this.stateBytes_ -= keyBytes + previous.length + ENTRY_OVERHEAD_BYTES;
      return 'deleted';
    }
    const growth = text.length - (previous === undefined ? -ENTRY_OVERHEAD_BYTES : keyBytes + previous.length);
    if (this.stateBytes_ + growth > this.stateBytesMax) return 'full';
    this.stateBytes_ += growth;
    // A new key is read a second time: a substring would keep its first value's bytes alive for as long as the key.
    const kept = previous === undefined ? this.source.toString('latin1', start, start + keyBytes) : key;
    values.set(kept, text.substring(keyBytes));
    return previous === undefined ? 'created' : 'replaced';
  }

  /**
   * SHA-256 over the state, in hexadecimal: equal if and only if the same keys have the same values, however the state
   * was reached. Takes time in proportion to the state.
   */
  digest(): string {
    const hash = createHash('sha256');
    const lengths = Buffer.alloc(ENTRY_HEADER_BYTES);
    for (const [key, value] of [...this.values.entries()].sort(([one], [other]) => (one < other ? -1 : 1))) {
      lengths.writeUInt32LE(key.length, 0);
      lengths.writeUInt32LE(value.length, 4);
      hash.update(lengths).update(key, 'latin1').update(value, 'latin1');
    }
    return hash.digest('hex');
  }

  /** Bytes of a snapshot of the present state. */
  private get snapshotBytes(): number {
    const { size } = this.values;
    return HEADER_BYTES + this.stateBytes_ + size * (ENTRY_HEADER_BYTES - ENTRY_OVERHEAD_BYTES);
  }

  snapshot(): Uint8Array {
    return Buffer.concat([...encodeEntries(this.values.entries(), this.values.size, false)], this.snapshotBytes);
  }

  /**
   * The snapshot of this moment in pieces of at most a few MiB; commands may be applied while it is read. Only one can be
   * open at a time: while it is, another one is made as a whole.
   */
  snapshotChunks(): SnapshotStream {
    const { size } = this.values;
    const lengthBytes = this.snapshotBytes;
    const frozen = this.values.freeze();
    if (frozen === null) return Object.assign([this.snapshot()], { lengthBytes });
    const pieces = encodeEntries(frozen.entries(), size, true);
    let isBegun = false;
    const iterator: IterableIterator<Uint8Array> = {
      next: () => {
        isBegun = true;
        const step = pieces.next();
        if (step.done === true) frozen.release();
        return step;
      },
      return: () => {
        if (isBegun) pieces.return(undefined);
        frozen.release();
        return { done: true, value: undefined };
      },
      [Symbol.iterator]: () => iterator,
    };
    return Object.assign(iterator, { lengthBytes });
  }

  /** Replaces the state. A snapshot that does not hold a state is refused and changes nothing. */
  restore(snapshot: Uint8Array): void {
    const decoder = this.decoder();
    decoder.push(snapshot);
    this.put(decoder);
  }

  async restoreChunks(chunks: AsyncIterable<Uint8Array>): Promise<() => void> {
    const decoder = this.decoder();
    for await (const chunk of chunks) decoder.push(chunk);
    decoder.finish();
    return () => this.put(decoder);
  }

  private decoder(): EntryDecoder {
    return new EntryDecoder({
      keyBytesMax: KEY_BYTES_MAX,
      valueBytesMax: VALUE_BYTES_MAX,
      stateBytesMax: this.stateBytesMax,
      entryOverheadBytes: ENTRY_OVERHEAD_BYTES,
    });
  }

  private put(decoder: EntryDecoder): void {
    const { values, stateBytes } = decoder.finish();
    this.values = new ChangesAside(values);
    this.stateBytes_ = stateBytes;
  }
}
