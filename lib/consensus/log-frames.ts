// What stands on disk between the entries of a log: frames of 64 bytes. A segment (one file) begins with one, and so does
// every group of entries that was made durable in one go. A frame says where it stands and where in the chain its group
// goes, under a checksum of its own, so that a reader finds out three things that entries alone cannot tell: that a group
// takes the place of a suffix that was truncated, that a group is there in full, and, because a group is written only when
// the one before is known to be on disk, that everything in front of a valid frame once was.
import { type ChainPosition, copyPosition } from './entry.js';
import { hashHigh, hashLow, hashWords } from './hash.js';
import { readU53, writeU53 } from './sealed-block.js';

export const FRAME_BYTES = 64;
export const FRAME_WORDS = FRAME_BYTES / 4;
const FRAME_MAGIC = 0x51e7d15c;
const CHECKSUM_WORD = FRAME_WORDS - 2;

export const FrameKind = {
  /** The segment's first frame; its first group goes where the frame says. */
  segment: 1,
  /** The same, and what precedes that place is not on disk: a snapshot that was received stands for it. */
  segmentBehindSnapshot: 2,
  /** Entries follow. */
  group: 3,
} as const;

export interface Frame {
  kind: number;
  segment: number;
  /** Bytes of entries behind the frame; 0 for the first frame of a segment. */
  entriesBytes: number;
  /** Where in the chain the first entry goes. */
  readonly position: ChainPosition;
}

export function emptyFrame(): Frame {
  return { kind: 0, segment: 0, entriesBytes: 0, position: { lsn: 0, hashLow: 0, hashHigh: 0, epoch: 0 } };
}

function sealOf(words: Uint32Array, at: number, clusterId: number): void {
  hashWords(words, at, CHECKSUM_WORD, -2, clusterId >>> 0, Math.floor(clusterId / 4294967296));
}

/** Writes the frame at word `at`; `offset` is where it will stand in its segment. */
export function writeFrame(
  words: Uint32Array,
  at: number,
  { kind, segment, entriesBytes, position }: Frame,
  offset: number,
  clusterId: number,
): void {
  words[at] = FRAME_MAGIC;
  words[at + 1] = kind;
  words[at + 2] = offset;
  words[at + 3] = segment;
  words[at + 4] = entriesBytes;
  words[at + 5] = 0;
  writeU53(words, at + 6, position.lsn);
  words[at + 8] = position.hashLow;
  words[at + 9] = position.hashHigh;
  writeU53(words, at + 10, position.epoch);
  words[at + 12] = 0;
  words[at + 13] = 0;
  sealOf(words, at, clusterId);
  words[at + CHECKSUM_WORD] = hashLow;
  words[at + CHECKSUM_WORD + 1] = hashHigh;
}

/** Takes the frame that must stand at byte `offset` of the segment; false if there is none. */
export function readFrame(
  words: Uint32Array,
  offset: number,
  segment: number,
  clusterId: number,
  frame: Frame,
): boolean {
  const at = offset >>> 2;
  if (at + FRAME_WORDS > words.length || words[at] !== FRAME_MAGIC) return false;
  if (words[at + 2] !== offset || words[at + 3] !== segment) return false;
  sealOf(words, at, clusterId);
  if (words[at + CHECKSUM_WORD] !== hashLow || words[at + CHECKSUM_WORD + 1] !== hashHigh) return false;
  frame.kind = words[at + 1] as number;
  frame.segment = segment;
  frame.entriesBytes = words[at + 4] as number;
  const lsn = readU53(words, at + 6);
  const epoch = readU53(words, at + 10);
  copyPosition({ lsn, hashLow: words[at + 8] as number, hashHigh: words[at + 9] as number, epoch }, frame.position);
  return true;
}
