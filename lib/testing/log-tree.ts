// Every entry that any leader ever appended, as a tree: an entry's parent is the entry before it in the log of the
// leader that wrote it. The checkers compare what replicas hold, apply and commit with this record, which is made from
// the bytes at the instant of the append and shares no state with the code under test.

import { type ChainPosition, EntryType, entryBytes } from '../consensus/entry.js';
import { hashHigh, hashLow, hashWords } from '../consensus/hash.js';
import { ENTRY_HEADER_BYTES } from '../consensus/limits.js';

export interface LogNode {
  readonly startLsn: number;
  readonly endLsn: number;
  readonly epoch: number;
  readonly type: number;
  readonly origin: number;
  readonly sequence: number;
  readonly hashLow: number;
  readonly hashHigh: number;
  /** Digest of the payload, by another seed than the chain. */
  readonly payloadDigest: number;
  /** The entry before; null for the first of the log. */
  readonly parent: LogNode | null;
  /** Number of entries from the beginning of the log up to this one. */
  readonly depth: number;
  /**
   * An ancestor further away, so that any ancestor is found in a number of steps that grows with the logarithm of the
   * depth (Myers, "An applicative random-access stack", 1983); null for the first entries.
   */
  readonly jump: LogNode | null;
  /**
   * The entry as it was appended, all the words that the chain hash covers, for as long as a ring may hold it; null
   * later. The same words behind the same parent are this entry, and need not be hashed to know that.
   */
  words: Uint32Array | null;
  /** Entries that follow this one in some log. */
  readonly children: LogNode[];
}

const TWO_32 = 4294967296;
const DIGEST_SEED = 0x1b873593;

/** Length of the longest run of entries whose bytes are kept, in bytes of the log. */
const KEPT_BYTES = 2 ** 20;

function u53(words: Uint32Array, at: number): number {
  return (words[at + 1] as number) * TWO_32 + (words[at] as number);
}

/** A header's fields, read without any of the production code's helpers but its hash. */
interface ParsedEntry {
  lsn: number;
  epoch: number;
  type: number;
  payloadBytes: number;
  sizeBytes: number;
  origin: number;
  sequence: number;
}

function parse(words: Uint32Array, at: number): ParsedEntry {
  const payloadBytes = words[at + 4] as number;
  return {
    lsn: u53(words, at),
    epoch: u53(words, at + 2),
    type: (words[at + 5] as number) & 0xffff,
    payloadBytes,
    sizeBytes: entryBytes(payloadBytes),
    origin: u53(words, at + 10),
    sequence: u53(words, at + 12),
  };
}

export function payloadDigest(words: Uint32Array, at: number, payloadBytes: number): number {
  hashWords(words, at + ENTRY_HEADER_BYTES / 4, ((payloadBytes + 7) & ~7) >>> 2, -2, DIGEST_SEED, payloadBytes);
  return hashLow;
}

export class LogTree {
  private readonly byEnd = new Map<number, LogNode[]>();
  /** First entries of the log. */
  private readonly roots: LogNode[] = [];
  /** Entries whose bytes are kept, in the order of their appending; those before `keptFrom` were let go. */
  private kept: LogNode[] = [];
  private keptFrom = 0;
  private keptBytes = 0;
  /** Entries appended by the leader of their own epoch. */
  size = 0;

  /** `clusterId` seeds the chain. */
  constructor(private readonly clusterId: number) {}

  /** The log begins here and not at LSN 0: in front of it is a state. */
  plant({ lsn, hashLow: low, hashHigh: high, epoch }: Readonly<ChainPosition>): void {
    const root: LogNode = {
      ...{ startLsn: lsn, endLsn: lsn, epoch, type: EntryType.noop, origin: 0, sequence: 0 },
      ...{
        hashLow: low,
        hashHigh: high,
        payloadDigest: 0,
        parent: null,
        depth: 1,
        jump: null,
        words: null,
        children: [],
      },
    };
    this.byEnd.set(lsn, [root]);
  }

  /** The node that ends at `lsn` with this chain hash. */
  find(endLsn: number, low: number, high: number): LogNode | undefined {
    const nodes = this.byEnd.get(endLsn);
    if (nodes === undefined) return undefined;
    for (let index = 0; index < nodes.length; index++) {
      const node = nodes[index] as LogNode;
      if (node.hashLow === low && node.hashHigh === high) return node;
    }
    return undefined;
  }

  /** Whether some entry ends at this LSN. */
  hasBoundary(lsn: number): boolean {
    return lsn === 0 || this.byEnd.has(lsn);
  }

  /** Whether an entry of this epoch ends at this LSN. */
  hasBoundaryOf(lsn: number, epoch: number): boolean {
    return this.byEnd.get(lsn)?.some((node) => node.epoch === epoch) ?? false;
  }

  /**
   * Notes the entries that a leader appended in one go. Those of its own epoch are new; others it adopted from another
   * log, so they must be known. Returns the last node, or what is wrong.
   */
  appended(words: Uint32Array, offsetBytes: number, lengthBytes: number, epoch: number): LogNode | string {
    let at = offsetBytes >>> 2;
    const end = (offsetBytes + lengthBytes) >>> 2;
    let last: LogNode | null = null;
    while (at < end) {
      if (last !== null) {
        const same = this.follower(words, at, last);
        if (same !== null) {
          last = same;
          at += (same.endLsn - same.startLsn) >>> 2;
          continue;
        }
      }
      const entry = parse(words, at);
      const parents = last !== null ? [last] : this.nodesEndingAt(entry.lsn);
      const node = this.chained(words, at, entry, parents);
      if (node === null) return `the entry appended at LSN ${entry.lsn} does not continue any known log`;
      const known = this.find(node.endLsn, node.hashLow, node.hashHigh);
      if (known === undefined) {
        if (entry.epoch !== epoch) return `the entry adopted at LSN ${entry.lsn} was never appended by a leader`;
        const siblings = this.byEnd.get(node.endLsn) ?? [];
        for (const other of siblings) {
          if (other.epoch === node.epoch && other.startLsn === node.startLsn) {
            return `two different entries of one epoch at LSN ${node.startLsn}`;
          }
        }
        siblings.push(node);
        this.byEnd.set(node.endLsn, siblings);
        (node.parent?.children ?? this.roots).push(node);
        this.keep(node, words, at, entry);
        this.size++;
      } else if (known.payloadDigest !== node.payloadDigest) {
        return `entries with the same chain hash and other payloads at LSN ${entry.lsn}`;
      }
      last = known ?? node;
      at += entry.sizeBytes >>> 2;
    }
    return last ?? 'an append of no entry';
  }

  /**
   * Walks the log in `words` from a position (null: the beginning) as far as its entries are known and chained.
   * Returns the nodes on the way.
   */
  walk(words: Uint32Array, capacityBytes: number, from: LogNode | null): LogNode[] {
    const nodes: LogNode[] = [];
    let position = from;
    let lsn = from?.endLsn ?? 0;
    const limitLsn = lsn + capacityBytes;
    while (lsn < limitLsn) {
      const offset = lsn % capacityBytes;
      const at = offset >>> 2;
      const same = this.follower(words, at, position);
      if (same !== null && offset + same.endLsn - same.startLsn <= capacityBytes) {
        nodes.push(same);
        position = same;
        lsn = same.endLsn;
        continue;
      }
      const entry = parse(words, at);
      if (entry.lsn !== lsn || entry.type < EntryType.noop || entry.type > EntryType.pad) break;
      if (offset + entry.sizeBytes > capacityBytes) break;
      const node = this.chained(words, at, entry, [position]);
      if (node === null) break;
      const known = this.find(node.endLsn, node.hashLow, node.hashHigh);
      if (known === undefined || known.payloadDigest !== node.payloadDigest) break;
      nodes.push(known);
      position = known;
      lsn = known.endLsn;
    }
    return nodes;
  }

  private keep(node: LogNode, words: Uint32Array, at: number, entry: ParsedEntry): void {
    node.words = words.slice(at, at + hashedBytes(entry) / 4);
    this.kept.push(node);
    this.keptBytes += node.words.byteLength;
    while (this.keptBytes > KEPT_BYTES) {
      const old = this.kept[this.keptFrom++] as LogNode;
      this.keptBytes -= (old.words as Uint32Array).byteLength;
      old.words = null;
    }
    if (this.keptFrom > this.kept.length / 2) {
      this.kept = this.kept.slice(this.keptFrom);
      this.keptFrom = 0;
    }
  }

  /**
   * The known entry behind `parent` (null: the beginning) whose bytes, chain hash and all, stand at word `at`; null if
   * there is none, or if its bytes are not kept any more.
   */
  follower(words: Uint32Array, at: number, parent: LogNode | null): LogNode | null {
    const candidates = parent === null ? this.roots : parent.children;
    for (let index = 0; index < candidates.length; index++) {
      const candidate = candidates[index] as LogNode;
      if (candidate.words !== null && standsAt(candidate.words, words, at)) return candidate;
    }
    return null;
  }

  private nodesEndingAt(lsn: number): (LogNode | null)[] {
    if (lsn === 0) return [null];
    return this.byEnd.get(lsn) ?? [];
  }

  /** The entry as a node behind that of `parents` whose hash seeds it; null if none does. */
  private chained(
    words: Uint32Array,
    at: number,
    entry: ParsedEntry,
    parents: readonly (LogNode | null)[],
  ): LogNode | null {
    const isPad = entry.type === EntryType.pad;
    const coveredBytes = hashedBytes(entry);
    for (const parent of parents) {
      if (at + coveredBytes / 4 > words.length) continue;
      const seedLow = parent?.hashLow ?? this.clusterId >>> 0;
      const seedHigh = parent?.hashHigh ?? Math.floor(this.clusterId / TWO_32) >>> 0;
      hashWords(words, at, coveredBytes / 4, at + 8, seedLow, seedHigh);
      if (words[at + 8] !== hashLow || words[at + 9] !== hashHigh) continue;
      return {
        startLsn: entry.lsn,
        endLsn: entry.lsn + entry.sizeBytes,
        epoch: entry.epoch,
        type: entry.type,
        origin: entry.origin,
        sequence: entry.sequence,
        hashLow: words[at + 8] as number,
        hashHigh: words[at + 9] as number,
        payloadDigest: isPad ? 0 : payloadDigest(words, at, entry.payloadBytes),
        parent,
        depth: (parent?.depth ?? 0) + 1,
        jump: jumpFrom(parent),
        words: null,
        children: [],
      };
    }
    return null;
  }
}

/** How many bytes from the beginning of the entry the chain hash covers: a pad's payload is whatever the ring holds. */
function hashedBytes({ type, payloadBytes }: ParsedEntry): number {
  return type === EntryType.pad ? ENTRY_HEADER_BYTES : ENTRY_HEADER_BYTES + ((payloadBytes + 7) & ~7);
}

function standsAt(expected: Uint32Array, words: Uint32Array, at: number): boolean {
  const count = expected.length;
  if (at + count > words.length) return false;
  for (let index = 0; index < count; index++) if (expected[index] !== words[at + index]) return false;
  return true;
}

function jumpFrom(parent: LogNode | null): LogNode | null {
  if (parent === null) return null;
  const { jump } = parent;
  const far = jump?.jump ?? null;
  const isEqual = parent.depth - (jump?.depth ?? 0) === (jump?.depth ?? 0) - (far?.depth ?? 0);
  return isEqual ? far : parent;
}

/** The ancestor of `node` (or itself) that ends at or before `lsn`. */
export function ancestorAt(node: LogNode | null, lsn: number): LogNode | null {
  let current = node;
  while (current !== null && current.endLsn > lsn) {
    const { jump }: LogNode = current;
    current = jump !== null && jump.endLsn > lsn ? jump : current.parent;
  }
  return current;
}
