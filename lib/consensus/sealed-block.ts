// A sealed block is a small record in memory that somebody else reads while it is being written: another replica by
// RDMA READ (where even eight aligned bytes tear, byte by byte), or the other plane of this process. It carries a
// sequence number and a 64-bit checksum over everything, so that a reader takes it whole or not at all; a read that
// does not validate is no news.
//
// Layout in 32-bit words: [0] sequence, [1 .. n-3] body, [n-2], [n-1] checksum. Body fields are addressed by their
// word index in the block (1-based); 53-bit integers take two words, low first.
import { hashHigh, hashLow, hashWords } from './hash.js';

const TWO_32 = 4294967296;

/** Reads an unsigned integer of up to 53 bits stored as two words; larger values (garbage) lose precision safely. */
export function readU53(words: Uint32Array, index: number): number {
  return (words[index + 1] as number) * TWO_32 + (words[index] as number);
}

export function writeU53(words: Uint32Array, index: number, value: number): void {
  words[index] = value >>> 0;
  words[index + 1] = Math.floor(value / TWO_32) >>> 0;
}

/** Fills a private copy of the block and publishes it in one pass. */
export class SealedBlockWriter {
  /** The body is edited here and becomes visible with publish(). */
  readonly body: Uint32Array;
  private sequence = 0;

  constructor(
    private readonly target: Uint32Array,
    private readonly offsetWords: number,
    private readonly sizeWords: number,
  ) {
    if (offsetWords + sizeWords > target.length) {
      throw new RangeError(
        `sealed block of ${sizeWords} words at ${offsetWords} exceeds its region (${target.length})`,
      );
    }
    this.body = new Uint32Array(sizeWords);
  }

  /** Sequence number of the last publication. */
  get publishedSequence(): number {
    return this.sequence;
  }

  /** Sequence number of the next publication. */
  get nextSequence(): number {
    return (this.sequence + 1) >>> 0 || 1; // 0 is what memory holds that nobody published to
  }

  publish(): void {
    const { body, target, offsetWords, sizeWords } = this;
    this.sequence = this.nextSequence;
    body[0] = this.sequence;
    hashWords(body, 0, sizeWords - 2, -2, 0, 0);
    body[sizeWords - 2] = hashLow;
    body[sizeWords - 1] = hashHigh;
    for (let index = 0; index < sizeWords; index++) target[offsetWords + index] = body[index] as number;
  }
}

/** Takes validated private copies of a block. */
export class SealedBlockReader {
  /** The last copy that validated; all zero before the first. */
  readonly body: Uint32Array;
  private readonly scratch: Uint32Array;

  /** `isPossible` is asked of a whole block, with its words, whether it can be true. */
  constructor(
    private readonly sizeWords: number,
    private readonly isPossible: ((words: Uint32Array) => boolean) | null = null,
  ) {
    this.body = new Uint32Array(sizeWords);
    this.scratch = new Uint32Array(sizeWords);
  }

  get sequence(): number {
    return this.body[0] as number;
  }

  /** Copies and validates; true if `body` now holds what stands in memory, false if it did not validate (no news). */
  read(source: Uint32Array, offsetWords: number): boolean {
    const { scratch, body, sizeWords } = this;
    if (source[offsetWords] === 0) return false; // most mailboxes, nearly always
    const isSame =
      body[0] !== 0 &&
      source[offsetWords] === body[0] &&
      source[offsetWords + sizeWords - 2] === body[sizeWords - 2] &&
      source[offsetWords + sizeWords - 1] === body[sizeWords - 1];
    if (isSame) return true; // the copy that was taken before still stands; saves most of the work of an idle tick
    for (let index = 0; index < sizeWords; index++) scratch[index] = source[offsetWords + index] as number;
    hashWords(scratch, 0, sizeWords - 2, -2, 0, 0);
    if (scratch[sizeWords - 2] !== hashLow || scratch[sizeWords - 1] !== hashHigh) return false;
    if (this.isPossible !== null && !this.isPossible(scratch)) return false;
    body.set(scratch);
    return true;
  }

  /** Forgets the last copy, for a source that was replaced (a peer that came back with fresh memory). */
  reset(): void {
    this.body.fill(0);
  }
}
