// A ring of messages from one replica to another: the receiver owns the memory, the sender writes it with one-sided
// WRITEs and knows from the receiver's reports how much of it is free again. A message is one record, or several if it
// is long. A record is taken whole or not at all: devices place bytes in any order, so the reader copies it, and then
// looks whether its checksum is right and it is the one that must stand at this place: what an earlier lap left, or a
// sender that is gone, says another position or was sealed for another stream.
//
// Positions count bytes since the beginning of the stream. A record at position x stands at x mod MESSAGE_RING_BYTES; it
// never straddles the end of the ring, which a pad record fills. In 32-bit words:
//
//   0 payload bytes   1 magic | flags   2-3 position   4-5 checksum   6-7 number of the message in the stream
//   8.. payload, zero-padded to 32 bytes
//
// The checksum covers header and payload and is seeded with the stream's number, which the sender draws at random.
import { hashHigh, hashLow, hashWords } from './hash.js';
import {
  MESSAGE_BYTES_MAX,
  MESSAGE_FRAGMENT_BYTES_MAX,
  MESSAGE_RECORD_ALIGNMENT_BYTES,
  MESSAGE_RECORD_HEADER_BYTES,
  MESSAGE_RING_BYTES,
} from './limits.js';
import { readU53, writeU53 } from './sealed-block.js';

const MAGIC = 0x6d736700;
const FLAG_MORE = 1;
const FLAG_PAD = 2;

const LENGTH_WORD = 0;
const KIND_WORD = 1;
const POSITION_WORD = 2;
const CHECKSUM_WORD = 4;
const NUMBER_WORD = 6;
const HEADER_WORDS = MESSAGE_RECORD_HEADER_BYTES / 4;
const TWO_32 = 4294967296;

/** Bytes that a record takes in the ring. */
function recordBytes(payloadBytes: number): number {
  const alignment = MESSAGE_RECORD_ALIGNMENT_BYTES;
  return MESSAGE_RECORD_HEADER_BYTES + Math.ceil(payloadBytes / alignment) * alignment;
}

function offsetOf(position: number): number {
  return position % MESSAGE_RING_BYTES;
}

/** Seals the record at word `start` of `words`, whose header is complete but for the checksum. */
function seal(words: Uint32Array, start: number, countWords: number, stream: number): void {
  hashWords(words, start, countWords, start + CHECKSUM_WORD, stream >>> 0, Math.floor(stream / TWO_32));
}

/** The sender's end: the image of the ring in memory of its own, from which it is written. */
export class MessageRingWriter {
  private readonly words: Uint32Array;
  private readonly bytes: Uint8Array;
  private stream_ = 0;
  private tail_ = 0;
  private acknowledged_ = 0;
  private number = 1;

  /** `offsetBytes`: where the ring's image begins in `region`, a multiple of 4. */
  constructor(region: Uint8Array, offsetBytes: number) {
    this.words = new Uint32Array(region.buffer, region.byteOffset + offsetBytes, MESSAGE_RING_BYTES / 4);
    this.bytes = new Uint8Array(region.buffer, region.byteOffset + offsetBytes, MESSAGE_RING_BYTES);
  }

  get stream(): number {
    return this.stream_;
  }

  /** End of what was appended. */
  get tail(): number {
    return this.tail_;
  }

  /** Everything below was taken by the receiver, and its place is free. */
  get acknowledged(): number {
    return this.acknowledged_;
  }

  /** Forgets everything and begins another stream, 1 .. 2^53 - 1. */
  begin(stream: number): void {
    this.stream_ = stream;
    this.tail_ = 0;
    this.acknowledged_ = 0;
    this.number = 1;
  }

  /** The receiver says that it has taken everything below; false, and without effect, if that cannot be. */
  acknowledge(position: number): boolean {
    if (!(position >= this.acknowledged_ && position <= this.tail_)) return false;
    this.acknowledged_ = position;
    return true;
  }

  /**
   * Appends as much of `message` from `offset` on as one record takes; returns how much that was, 0 if the ring has no
   * room for it now. A message of no bytes at all is one record; it returns 1 for it.
   */
  append(message: Uint8Array, offset: number): number {
    const part = Math.min(message.length - offset, MESSAGE_FRAGMENT_BYTES_MAX);
    const size = recordBytes(part);
    const toEnd = MESSAGE_RING_BYTES - offsetOf(this.tail_);
    const pad = size > toEnd ? toEnd : 0;
    if (this.tail_ + pad + size - this.acknowledged_ > MESSAGE_RING_BYTES) return 0;
    if (pad > 0) this.put(FLAG_PAD, 0, pad);
    const isLast = offset + part === message.length;
    const at = offsetOf(this.tail_) + MESSAGE_RECORD_HEADER_BYTES;
    this.bytes.set(message.subarray(offset, offset + part), at);
    this.bytes.fill(0, at + part, at + size - MESSAGE_RECORD_HEADER_BYTES);
    this.put(isLast ? 0 : FLAG_MORE, part, size);
    if (isLast) this.number++;
    return Math.max(1, part);
  }

  private put(flags: number, payloadBytes: number, size: number): void {
    const { words } = this;
    const start = offsetOf(this.tail_) / 4;
    words[start + LENGTH_WORD] = payloadBytes;
    words[start + KIND_WORD] = MAGIC | flags;
    writeU53(words, start + POSITION_WORD, this.tail_);
    writeU53(words, start + NUMBER_WORD, this.number);
    seal(words, start, HEADER_WORDS + Math.ceil(payloadBytes / 4), this.stream_);
    words[start + CHECKSUM_WORD] = hashLow;
    words[start + CHECKSUM_WORD + 1] = hashHigh;
    this.tail_ += size;
  }
}

/** The receiver's end, over memory that the sender may write at any time. */
export class MessageRingReader {
  private readonly words: Uint32Array;
  private stream_ = 0;
  private consumed_ = 0;
  private number = 1;
  /** The record that is looked at. */
  private readonly record = new Uint32Array(HEADER_WORDS + MESSAGE_FRAGMENT_BYTES_MAX / 4);
  private readonly recordPayload = new Uint8Array(this.record.buffer, MESSAGE_RECORD_HEADER_BYTES);
  /** Parts of the message that is not complete yet. */
  private parts: Uint8Array[] = [];
  private partsBytes = 0;
  private fault_: string | null = null;

  constructor(region: Uint8Array, offsetBytes: number) {
    this.words = new Uint32Array(region.buffer, region.byteOffset + offsetBytes, MESSAGE_RING_BYTES / 4);
  }

  get stream(): number {
    return this.stream_;
  }

  /** Everything below was taken. */
  get consumed(): number {
    return this.consumed_;
  }

  /** What the sender did wrong, on purpose or by error; nothing is taken any more until another stream begins. */
  get fault(): string | null {
    return this.fault_;
  }

  begin(stream: number): void {
    this.stream_ = stream;
    this.consumed_ = 0;
    this.number = 1;
    this.parts = [];
    this.partsBytes = 0;
    this.fault_ = null;
  }

  /** The next message, in memory of its own; null if it has not arrived, not all of it, or is not whole yet. */
  next(): Uint8Array | null {
    for (;;) {
      if (this.stream_ === 0 || this.fault_ !== null || !this.take()) return null;
      const { record, recordPayload, parts } = this;
      const payloadBytes = record[LENGTH_WORD] as number;
      const flags = (record[KIND_WORD] as number) - MAGIC;
      if (flags === FLAG_PAD) {
        this.consumed_ += MESSAGE_RING_BYTES - offsetOf(this.consumed_);
        continue;
      }
      this.consumed_ += recordBytes(payloadBytes);
      // Each part takes memory besides its bytes, so that the limit on these bounds full ones only.
      if (flags === FLAG_MORE && payloadBytes !== MESSAGE_FRAGMENT_BYTES_MAX) {
        this.fault_ = `a part of ${payloadBytes} bytes of a message that has more of them`;
        return null;
      }
      if (this.partsBytes + payloadBytes > MESSAGE_BYTES_MAX) {
        this.fault_ = `a message of more than ${MESSAGE_BYTES_MAX} bytes`;
        return null;
      }
      parts.push(recordPayload.slice(0, payloadBytes));
      this.partsBytes += payloadBytes;
      if (flags === FLAG_MORE) continue;
      this.number++;
      const message = parts.length === 1 ? (parts[0] as Uint8Array) : this.join();
      this.parts = [];
      this.partsBytes = 0;
      return message;
    }
  }

  private join(): Uint8Array {
    const message = new Uint8Array(this.partsBytes);
    let at = 0;
    for (const part of this.parts) {
      message.set(part, at);
      at += part.length;
    }
    return message;
  }

  /** Copies what stands at the next place; true if it is the next record, whole. */
  private take(): boolean {
    const { words, record } = this;
    const start = offsetOf(this.consumed_) / 4;
    for (let index = 0; index < HEADER_WORDS; index++) record[index] = words[start + index] as number;
    if (!this.isNext(readU53(record, POSITION_WORD), readU53(record, NUMBER_WORD))) return false;
    const kind = record[KIND_WORD] as number;
    if (kind !== MAGIC && kind !== MAGIC + FLAG_MORE && kind !== MAGIC + FLAG_PAD) return false;
    const payloadBytes = record[LENGTH_WORD] as number;
    if (payloadBytes > (kind === MAGIC + FLAG_PAD ? 0 : MESSAGE_FRAGMENT_BYTES_MAX)) return false;
    if (offsetOf(this.consumed_) + recordBytes(payloadBytes) > MESSAGE_RING_BYTES) return false;
    const count = HEADER_WORDS + Math.ceil(payloadBytes / 4);
    for (let index = HEADER_WORDS; index < count; index++) record[index] = words[start + index] as number;
    return this.isWhole(count);
  }

  /** All bytes of the record have arrived. */
  private isWhole(countWords: number): boolean {
    const { record } = this;
    seal(record, 0, countWords, this.stream_);
    return record[CHECKSUM_WORD] === hashLow && record[CHECKSUM_WORD + 1] === hashHigh;
  }

  /** What stands here is of this lap, not of an earlier one. */
  private isNext(position: number, number: number): boolean {
    return position === this.consumed_ && number === this.number;
  }
}
