// One log entry: its header's layout, how it is sealed into the hash chain, and how bytes found in the ring (which
// other replicas write: untrusted) are validated as the entry that must stand at an LSN.
//
// Header, little-endian 32-bit words:
//   0-1 lsn   2-3 epoch   4 payload length (bytes)   5 type | ENTRY_MAGIC << 16   6-7 leader's commit LSN
//   8-9 chain hash   10-11 origin   12-13 sequence   then the payload, zero-padded to 8 bytes.
// The chain hash covers header and padded payload, seeded with the hash of the previous entry. It replaces Mu's
// canary byte: a torn entry, an entry of an earlier lap and the suffix of a deposed leader all fail to validate, in
// whatever order the device placed the bytes.
import { EPOCH_NONE } from './epoch.js';
import { hashHigh, hashLow, hashWords } from './hash.js';
import { ENTRY_ALIGNMENT_BYTES, ENTRY_HEADER_BYTES } from './limits.js';
import { readU53, writeU53 } from './sealed-block.js';

export const EntryType = { noop: 1, command: 2, configuration: 3, pad: 4 } as const;

const ENTRY_MAGIC = 0x51e7;
const HEADER_WORDS = ENTRY_HEADER_BYTES / 4;
const HASH_WORD = 8;

/** Bytes that an entry with this payload takes in the log. */
export function entryBytes(payloadBytes: number): number {
  return Math.ceil((ENTRY_HEADER_BYTES + payloadBytes) / ENTRY_ALIGNMENT_BYTES) * ENTRY_ALIGNMENT_BYTES;
}

/** A place in the chain: everything below `lsn` is known, and `hash` seeds the entry at `lsn`. */
export interface ChainPosition {
  lsn: number;
  hashLow: number;
  hashHigh: number;
  /** Epoch of the entry that ends at `lsn`. */
  epoch: number;
}

export function copyPosition(from: ChainPosition, to: ChainPosition): void {
  to.lsn = from.lsn;
  to.hashLow = from.hashLow;
  to.hashHigh = from.hashHigh;
  to.epoch = from.epoch;
}

/** Where the log of a cluster begins. */
export function chainBeginning(clusterId: number): ChainPosition {
  return { lsn: 0, hashLow: clusterId >>> 0, hashHigh: Math.floor(clusterId / 4294967296) >>> 0, epoch: EPOCH_NONE };
}

/** Whether two logs that end at these positions are the same log up to there. */
export function isSamePosition(one: ChainPosition, other: ChainPosition): boolean {
  const hasSameHash = one.hashLow === other.hashLow && one.hashHigh === other.hashHigh;
  return hasSameHash && one.lsn === other.lsn && one.epoch === other.epoch;
}

/** Writes all of the header but the hash. A pad's length is the rest of the ring after its header. */
export function writeEntryHeader(
  words: Uint32Array,
  at: number,
  lsn: number,
  epoch: number,
  type: number,
  payloadBytes: number,
  commitLsn: number,
  origin: number,
  sequence: number,
): void {
  writeU53(words, at, lsn);
  writeU53(words, at + 2, epoch);
  words[at + 4] = payloadBytes;
  words[at + 5] = (type | (ENTRY_MAGIC << 16)) >>> 0;
  writeU53(words, at + 6, commitLsn);
  writeU53(words, at + 10, origin);
  writeU53(words, at + 12, sequence);
}

/** How many words the hash covers: a pad's payload is whatever the ring holds, so only its header counts. */
function hashedWords(type: number, payloadBytes: number): number {
  return type === EntryType.pad ? HEADER_WORDS : (ENTRY_HEADER_BYTES + ((payloadBytes + 7) & ~7)) / 4;
}

/** Seals the entry at word `at`, whose payload and padding are in place, after `position`, which moves behind it. */
export function sealEntry(words: Uint32Array, at: number, position: ChainPosition): void {
  const payloadBytes = words[at + 4] as number;
  const type = (words[at + 5] as number) & 0xff;
  hashWords(words, at, hashedWords(type, payloadBytes), at + HASH_WORD, position.hashLow, position.hashHigh);
  words[at + HASH_WORD] = hashLow;
  words[at + HASH_WORD + 1] = hashHigh;
  position.hashLow = hashLow;
  position.hashHigh = hashHigh;
  position.epoch = readU53(words, at + 2);
  position.lsn += entryBytes(payloadBytes);
}

/**
 * Validates the bytes at word `at` as the entry that follows `position`. Returns its size in bytes, or 0 if no valid
 * entry stands there. `availableBytes` bounds everything that is read. On success the chain hash is in `validHashLow`
 * and `validHashHigh`; `position` is not moved.
 */
export function validateEntry(words: Uint32Array, at: number, availableBytes: number, position: ChainPosition): number {
  if (availableBytes < ENTRY_HEADER_BYTES) return 0;
  if (readU53(words, at) !== position.lsn) return 0;
  const typeWord = words[at + 5] as number;
  const type = typeWord & 0xffff;
  if (typeWord >>> 16 !== ENTRY_MAGIC || type < EntryType.noop || type > EntryType.pad) return 0;
  const payloadBytes = words[at + 4] as number;
  if (payloadBytes > availableBytes - ENTRY_HEADER_BYTES) return 0;
  const size = entryBytes(payloadBytes);
  if (size > availableBytes) return 0;
  if (readU53(words, at + 2) < position.epoch) return 0;
  hashWords(words, at, hashedWords(type, payloadBytes), at + HASH_WORD, position.hashLow, position.hashHigh);
  if (words[at + HASH_WORD] !== hashLow || words[at + HASH_WORD + 1] !== hashHigh) return 0;
  validHashLow = hashLow;
  validHashHigh = hashHigh;
  return size;
}

/** Chain hash of the entry that validateEntry() accepted last. */
export let validHashLow = 0;
export let validHashHigh = 0;

export function entryEpoch(words: Uint32Array, at: number): number {
  return readU53(words, at + 2);
}
export function entryPayloadBytes(words: Uint32Array, at: number): number {
  return words[at + 4] as number;
}
export function entryType(words: Uint32Array, at: number): number {
  return (words[at + 5] as number) & 0xffff;
}
export function entryCommitLsn(words: Uint32Array, at: number): number {
  return readU53(words, at + 6);
}
export function entryOrigin(words: Uint32Array, at: number): number {
  return readU53(words, at + 10);
}
export function entrySequence(words: Uint32Array, at: number): number {
  return readU53(words, at + 12);
}
