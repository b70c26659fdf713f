// The bytes of a key-value snapshot: a header with the number of entries, then each entry's lengths, key and value.
// Written and read piece by piece; where the pieces begin and end means nothing.
import { QuorateError } from '../errors.js';

const MAGIC = 0x31_56_4b_51; // "QKV1"
/** Magic, number of entries. */
export const HEADER_BYTES = 8;
/** Length of the key, length of the value. */
export const ENTRY_HEADER_BYTES = 8;
/** Pieces are so long, unless an entry is longer. */
const PIECE_BYTES = 512 * 1024;

/** The bytes of the snapshot. With `isReused` each piece is valid only until the next one is asked for. */
export function* encodeEntries(
  entries: Iterable<[key: string, value: string]>,
  count: number,
  isReused: boolean,
): Generator<Uint8Array> {
  let piece = Buffer.allocUnsafeSlow(PIECE_BYTES);
  piece.writeUInt32LE(MAGIC, 0);
  piece.writeUInt32LE(count, 4);
  let at = HEADER_BYTES;
  for (const [key, value] of entries) {
    const entryBytes = ENTRY_HEADER_BYTES + key.length + value.length;
    if (at + entryBytes > piece.length) {
      yield piece.subarray(0, at);
      at = 0;
      if (!isReused || entryBytes > piece.length) piece = Buffer.allocUnsafeSlow(Math.max(PIECE_BYTES, entryBytes));
    }
    piece.writeUInt32LE(key.length, at);
    piece.writeUInt32LE(value.length, at + 4);
    at += ENTRY_HEADER_BYTES;
    at += piece.write(key, at, 'latin1');
    at += piece.write(value, at, 'latin1');
  }
  yield piece.subarray(0, at);
}

export interface EntryLimits {
  readonly keyBytesMax: number;
  readonly valueBytesMax: number;
  readonly stateBytesMax: number;
  readonly entryOverheadBytes: number;
}

/** Takes a snapshot's bytes, checks them and builds the map. Throws QUORATE_SNAPSHOT_INVALID. */
export class EntryDecoder {
  private readonly values = new Map<string, string>();
  private stateBytes = 0;
  private count = -1;
  /** Bytes of an entry, or of the header, that are not all there yet. */
  private partial: Buffer = Buffer.alloc(0);
  private partialBytes = 0;

  constructor(private readonly limits: EntryLimits) {}

  private refuse(what: string): QuorateError {
    return new QuorateError('QUORATE_SNAPSHOT_INVALID', `the snapshot's key-value state cannot be used: ${what}`);
  }

  /** The next bytes; they are not needed any more afterwards. */
  push(chunk: Uint8Array): void {
    const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length);
    let at = 0;
    // Completes what the chunk before ended in, then goes on without copying.
    while (this.partialBytes > 0 && at < bytes.length) at += this.complete(bytes, at);
    while (at < bytes.length) {
      const used = this.take(bytes, at, bytes.length);
      if (used === 0) {
        this.keep(bytes, at, bytes.length);
        return;
      }
      at += used;
    }
  }

  /** Adds as much of the chunk to the partial entry as that lacks, as far as its lengths are known. */
  private complete(bytes: Buffer, at: number): number {
    const wanted = this.neededBytes(this.partial, 0, this.partialBytes) - this.partialBytes;
    const part = Math.min(wanted, bytes.length - at);
    this.keep(bytes, at, at + part);
    const used = this.take(this.partial, 0, this.partialBytes);
    if (used > 0) this.partialBytes = 0;
    return part;
  }

  private keep(bytes: Buffer, start: number, end: number): void {
    const lengthBytes = this.partialBytes + end - start;
    if (this.partial.length < lengthBytes) {
      const larger = Buffer.allocUnsafeSlow(Math.max(1024, lengthBytes * 2));
      this.partial.copy(larger, 0, 0, this.partialBytes);
      this.partial = larger;
    }
    bytes.copy(this.partial, this.partialBytes, start, end);
    this.partialBytes = lengthBytes;
  }

  /** Bytes that the item at `at` has, as far as what is there tells. Refuses lengths that no entry can have. */
  private neededBytes(bytes: Buffer, at: number, end: number): number {
    if (this.count < 0) return HEADER_BYTES;
    if (this.values.size === this.count) throw this.refuse(`${end - at} bytes follow its last entry`);
    if (end - at < ENTRY_HEADER_BYTES) return ENTRY_HEADER_BYTES;
    const { keyBytesMax, valueBytesMax } = this.limits;
    const keyBytes = bytes.readUInt32LE(at);
    const valueBytes = bytes.readUInt32LE(at + 4);
    const entry = this.values.size;
    if (keyBytes === 0 || keyBytes > keyBytesMax) throw this.refuse(`entry ${entry} has a key of ${keyBytes} bytes`);
    if (valueBytes > valueBytesMax) throw this.refuse(`entry ${entry} has a value of ${valueBytes} bytes`);
    return ENTRY_HEADER_BYTES + keyBytes + valueBytes;
  }

  /** Takes header or entry at `at` if it is all there; returns its length, or 0. */
  private take(bytes: Buffer, at: number, end: number): number {
    const needed = this.neededBytes(bytes, at, end);
    if (end - at < needed || (this.count >= 0 && needed === ENTRY_HEADER_BYTES)) return 0;
    if (this.count < 0) {
      if (bytes.readUInt32LE(at) !== MAGIC) throw this.refuse('it does not begin as one');
      this.count = bytes.readUInt32LE(at + 4);
      return HEADER_BYTES;
    }
    const keyBytes = bytes.readUInt32LE(at);
    const start = at + ENTRY_HEADER_BYTES;
    const key = bytes.toString('latin1', start, start + keyBytes);
    if (this.values.has(key)) throw this.refuse(`entry ${this.values.size} repeats a key`);
    this.values.set(key, bytes.toString('latin1', start + keyBytes, at + needed));
    this.stateBytes += needed - ENTRY_HEADER_BYTES + this.limits.entryOverheadBytes;
    const { stateBytesMax } = this.limits;
    if (this.stateBytes > stateBytesMax) throw this.refuse(`it is larger than the limit of ${stateBytesMax} bytes`);
    return needed;
  }

  /** All bytes were there. */
  finish(): { values: Map<string, string>; stateBytes: number } {
    const { values, count, stateBytes } = this;
    if (count < 0) throw this.refuse('it does not begin as one');
    if (values.size < count) throw this.refuse(`it ends in entry ${values.size} of ${count}`);
    return { values, stateBytes };
  }
}
