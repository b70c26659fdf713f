// What leader, receiver and donor of a state transfer tell each other over the control channel, and the checks of what
// came from there: sizes, counts and positions are bounded before anything is done with them.
import { type Configuration, checkConfiguration } from '../../consensus/configuration.js';
import type { ChainPosition } from '../../consensus/entry.js';
import { MAX_REPLICAS } from '../../consensus/limits.js';
import { QuorateError } from '../../errors.js';
import {
  checkQueuePairAddress,
  checkRemoteRange,
  type QueuePairAddress,
  type RemoteRange,
} from '../../fabric/link-parameters.js';
import { STATE_AREAS_MAX } from '../../fabric/state-memory.js';
import { CHUNK_PARTS_MAX, type ChunkParts, PART_NUMBERS, type ReadableArea } from '../../fabric/transfer-link.js';
import { CHUNK_BYTES_MAX, SESSIONS_BYTES_MAX, SLOTS_MAX, SNAPSHOT_BYTES_MAX, STAGING_BYTES_MAX } from './limits.js';

/** Leader to receiver, a request: get the state from one of these replicas. Answered when that is done. */
export interface TransferOrder {
  /** By preference. */
  readonly donors: readonly number[];
  /** The leader keeps its log from here on, so an older snapshot is of no use. */
  readonly minLsn: number;
}

/** How far a receiver has come with a snapshot. */
export interface ResumePoint {
  readonly position: ChainPosition;
  readonly bytes: number;
  /** Of its chunks, all of which but the last have the same size. */
  readonly checksum: number;
}

/** Receiver to donor, a request: freeze the state, and let this queue pair READ it. */
export interface TransferOpen {
  /** Number of the transfer, the receiver's. */
  readonly transfer: number;
  readonly minLsn: number;
  readonly queuePair: QueuePairAddress;
  /** Go on from here, if the donor's snapshot is the same. */
  readonly resume: ResumePoint | null;
  /** Not the state: the log from this position on, up to what the donor has applied. */
  readonly logAfter: ChainPosition | null;
}

export interface TransferOpened {
  readonly queuePair: QueuePairAddress;
  /** The staging memory. */
  readonly readable: RemoteRange;
  /** What the state machine keeps state in: chunks may lie there. */
  readonly areas: readonly ReadableArea[];
  readonly chunkBytes: number;
  readonly slots: number;
  readonly position: ChainPosition;
  readonly configuration: Configuration;
  readonly sessionsBytes: number;
  readonly bytesTotal: number | null;
  /** The first chunk is the one behind the point that the receiver named. */
  readonly isResumed: boolean;
  /** What comes is log, not state. */
  readonly isLog: boolean;
}

/** Donor to receiver: chunks that stand ready, one after the other behind those announced before. */
export interface TransferReady {
  readonly transfer: number;
  /** Number of the first of them; what is staged of chunk n stands in slot n modulo the number of slots. */
  readonly first: number;
  /** Where each of them lies. */
  readonly parts: readonly ChunkParts[];
  /** Of all chunks up to each: see lib/verbs/checksum.ts. */
  readonly checksums: readonly number[];
  readonly isEnd: boolean;
}

/** Receiver to donor: so many chunks were taken, and the places where they stood are free. */
export interface TransferTaken {
  readonly transfer: number;
  readonly count: number;
}

/** Donor to receiver, or receiver to donor: it ends here. */
export interface TransferClosed {
  readonly transfer: number;
  readonly code: string;
  readonly message: string;
}

/** Receiver to leader. */
export interface TransferNews {
  readonly donor: number | null;
  readonly state: 'opening' | 'reading' | 'installing';
  readonly lsn: number;
  readonly bytesDone: number;
  readonly bytesTotal: number | null;
  readonly donorsLost: number;
}

function refuse(what: string): never {
  throw new QuorateError('QUORATE_PROTOCOL', `state transfer: ${what}`);
}

function integer(value: unknown, min: number, max: number, what: string): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < min || value > max) {
    return refuse(`${what} is not an integer in ${min}..${max}`);
  }
  return value;
}

function record<Type>(value: unknown, what: string): { readonly [Key in keyof Type]?: unknown } {
  if (typeof value !== 'object' || value === null) return refuse(`${what} is not an object`);
  return value as { readonly [Key in keyof Type]?: unknown };
}

const lsn = (value: unknown, what: string): number => integer(value, 0, Number.MAX_SAFE_INTEGER, what);
const word = (value: unknown, what: string): number => integer(value, 0, 2 ** 32 - 1, what);
const transferNumber = (value: unknown): number => integer(value, 1, Number.MAX_SAFE_INTEGER, 'transfer');
const replicaId = (value: unknown, what: string): number => integer(value, 0, MAX_REPLICAS - 1, what);

function text(value: unknown, what: string): string {
  if (typeof value !== 'string' || value.length > 2000) return refuse(`${what} is not a short text`);
  return value;
}

function position(value: unknown): ChainPosition {
  const from = record<ChainPosition>(value, 'position');
  return {
    lsn: lsn(from.lsn, 'position.lsn'),
    hashLow: word(from.hashLow, 'position.hashLow'),
    hashHigh: word(from.hashHigh, 'position.hashHigh'),
    epoch: lsn(from.epoch, 'position.epoch'),
  };
}

export function checkOrder(value: unknown): TransferOrder {
  const from = record<TransferOrder>(value, 'order');
  if (!Array.isArray(from.donors) || from.donors.length === 0 || from.donors.length > MAX_REPLICAS) {
    return refuse('donors is not a list of replicas');
  }
  return { donors: from.donors.map((id) => replicaId(id, 'a donor')), minLsn: lsn(from.minLsn, 'minLsn') };
}

export function checkOpen(value: unknown): TransferOpen {
  const from = record<TransferOpen>(value, 'request');
  let resume: ResumePoint | null = null;
  if (from.resume !== null && from.resume !== undefined) {
    const point = record<ResumePoint>(from.resume, 'resume');
    resume = {
      position: position(point.position),
      bytes: integer(point.bytes, 0, SNAPSHOT_BYTES_MAX, 'resume.bytes'),
      checksum: lsn(point.checksum, 'resume.checksum'),
    };
  }
  return {
    transfer: transferNumber(from.transfer),
    minLsn: lsn(from.minLsn, 'minLsn'),
    queuePair: checkQueuePairAddress(from.queuePair),
    resume,
    logAfter: from.logAfter === null || from.logAfter === undefined ? null : position(from.logAfter),
  };
}

export function checkOpened(value: unknown): TransferOpened {
  const from = record<TransferOpened>(value, 'reply');
  const chunkBytes = integer(from.chunkBytes, 1, CHUNK_BYTES_MAX, 'chunkBytes');
  const slots = integer(from.slots, 1, SLOTS_MAX, 'slots');
  if (chunkBytes * slots > STAGING_BYTES_MAX)
    return refuse(`${slots} chunks of ${chunkBytes} bytes are too much memory`);
  if (typeof from.isResumed !== 'boolean') return refuse('isResumed is not a boolean');
  if (typeof from.isLog !== 'boolean') return refuse('isLog is not a boolean');
  if (!Array.isArray(from.areas) || from.areas.length > STATE_AREAS_MAX) return refuse('areas is not a list of memory');
  return {
    queuePair: checkQueuePairAddress(from.queuePair),
    readable: checkRemoteRange(from.readable, 'readable'),
    areas: from.areas.map((area) => ({
      ...checkRemoteRange(area, 'an area'),
      lengthBytes: integer(record<ReadableArea>(area, 'an area').lengthBytes, 1, SNAPSHOT_BYTES_MAX, 'lengthBytes'),
    })),
    chunkBytes,
    slots,
    position: position(from.position),
    configuration: checkConfiguration(from.configuration),
    sessionsBytes: integer(from.sessionsBytes, 0, SESSIONS_BYTES_MAX, 'sessionsBytes'),
    bytesTotal: from.bytesTotal === null ? null : integer(from.bytesTotal, 0, SNAPSHOT_BYTES_MAX, 'bytesTotal'),
    isResumed: from.isResumed,
    isLog: from.isLog,
  };
}

function chunkParts(value: unknown): ChunkParts {
  if (!Array.isArray(value) || value.length === 0 || value.length % PART_NUMBERS !== 0) {
    return refuse('parts is not a list of places');
  }
  if (value.length > CHUNK_PARTS_MAX * PART_NUMBERS) return refuse(`a chunk of ${value.length / PART_NUMBERS} parts`);
  return value.map((number, index) => {
    switch (index % PART_NUMBERS) {
      case 0:
        return integer(number, 0, STATE_AREAS_MAX, 'area of a part');
      case 1:
        return integer(number, 0, SNAPSHOT_BYTES_MAX, 'offset of a part');
      default:
        return integer(number, 1, CHUNK_BYTES_MAX, 'length of a part');
    }
  });
}

/** Whether the parts lie in the memory that the donor named is for their receiver to find out. */
export function checkReady(value: unknown): TransferReady {
  const from = record<TransferReady>(value, 'announcement');
  const { parts, checksums } = from;
  if (!Array.isArray(parts) || !Array.isArray(checksums) || parts.length !== checksums.length) {
    return refuse('parts and checksums are not lists of the same length');
  }
  if (parts.length > SLOTS_MAX) return refuse(`${parts.length} chunks at once`);
  if (typeof from.isEnd !== 'boolean') return refuse('isEnd is not a boolean');
  return {
    transfer: transferNumber(from.transfer),
    first: lsn(from.first, 'first'),
    parts: parts.map(chunkParts),
    checksums: checksums.map((one) => lsn(one, 'checksum of a chunk')),
    isEnd: from.isEnd,
  };
}

export function checkTaken(value: unknown): TransferTaken {
  const from = record<TransferTaken>(value, 'acknowledgement');
  return { transfer: transferNumber(from.transfer), count: lsn(from.count, 'count') };
}

export function checkClosed(value: unknown): TransferClosed {
  const from = record<TransferClosed>(value, 'end');
  return {
    transfer: transferNumber(from.transfer),
    code: text(from.code, 'code'),
    message: text(from.message, 'message'),
  };
}

export function checkNews(value: unknown): TransferNews {
  const from = record<TransferNews>(value, 'progress');
  const { state } = from;
  if (state !== 'opening' && state !== 'reading' && state !== 'installing') return refuse('state is unknown');
  return {
    donor: from.donor === null ? null : replicaId(from.donor, 'donor'),
    state,
    lsn: lsn(from.lsn, 'lsn'),
    bytesDone: integer(from.bytesDone, 0, SNAPSHOT_BYTES_MAX, 'bytesDone'),
    bytesTotal: from.bytesTotal === null ? null : integer(from.bytesTotal, 0, SNAPSHOT_BYTES_MAX, 'bytesTotal'),
    donorsLost: integer(from.donorsLost, 0, 1000, 'donorsLost'),
  };
}
