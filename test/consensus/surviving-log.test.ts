// What the log that an earlier life left behind is worth: how far it chains, how far it says to be committed, and that it is
// used only up to where another replica's log goes on.
import { expect, it } from 'vitest';
import {
  type Configuration,
  type ConfigurationMember,
  encodeConfiguration,
  genesisConfiguration,
  withMember,
} from '#lib/consensus/configuration.js';
import {
  type ChainPosition,
  chainBeginning,
  EntryType,
  entryBytes,
  sealEntry,
  writeEntryHeader,
} from '#lib/consensus/entry.js';
import { makeEpoch } from '#lib/consensus/epoch.js';
import { LogReplay, LogStretch, SurvivingLog, tailBytes } from '#lib/consensus/surviving-log.js';

const RING_BYTES = 4096;
const ENTRIES_MAX = 1000;
const EPOCH = makeEpoch(3, 1);
const genesis = genesisConfiguration(
  2 ** 40 + 5,
  [0, 1, 2].map((id) => ({ id, bootId: id + 1 })),
);

/** A log in a ring that is written entry by entry, as a leader does it. */
class Writer {
  readonly words = new Uint32Array(RING_BYTES / 4);
  readonly position: ChainPosition = { ...chainBeginning(genesis.clusterId) };
  private sequence = 0;

  copy(): Writer {
    const other = new Writer();
    other.words.set(this.words);
    Object.assign(other.position, this.position);
    other.sequence = this.sequence;
    return other;
  }

  /** An entry with so many bytes of payload, and a pad before it where it does not fit. Returns where it ends. */
  add(payload: Uint8Array, commitLsn = 0, epoch = EPOCH, type: number = EntryType.command): ChainPosition {
    const { words, position } = this;
    const left = RING_BYTES - (position.lsn % RING_BYTES);
    if (entryBytes(payload.length) > left) {
      const at = (position.lsn % RING_BYTES) / 4;
      writeEntryHeader(words, at, position.lsn, epoch, EntryType.pad, left - 56, commitLsn, 0, 0);
      sealEntry(words, at, position);
    }
    const at = (position.lsn % RING_BYTES) / 4;
    writeEntryHeader(words, at, position.lsn, epoch, type, payload.length, commitLsn, 7, ++this.sequence);
    new Uint8Array(words.buffer).fill(0, at * 4 + 56, at * 4 + entryBytes(payload.length));
    new Uint8Array(words.buffer).set(payload, at * 4 + 56);
    sealEntry(words, at, position);
    return { ...position };
  }

  commands(count: number, commitLsn = 0): ChainPosition {
    for (let index = 0; index < count; index++) this.add(new Uint8Array(40).fill(index + 1), commitLsn);
    return { ...this.position };
  }

  /** The bytes from one LSN to the end. */
  tail(from: ChainPosition): { words: Uint32Array; end: ChainPosition } {
    const bytes = new Uint8Array(this.position.lsn - from.lsn);
    const ring = new Uint8Array(this.words.buffer);
    for (let at = 0; at < bytes.length; at++) bytes[at] = ring[(from.lsn + at) % RING_BYTES] as number;
    return { words: new Uint32Array(bytes.buffer), end: { ...this.position } };
  }
}

function survivingLog(writer: Writer, anchor: ChainPosition = chainBeginning(genesis.clusterId)): SurvivingLog {
  const log = new SurvivingLog(writer.words.slice(), anchor);
  while (log.scan(3)) {
    // A few entries at a time.
  }
  return log;
}

it('finds the end of what chains, and what a leader has said in it to be committed', () => {
  const writer = new Writer();
  const third = writer.commands(3);
  writer.commands(2, third.lsn);
  const end = writer.commands(1, third.lsn + 64); // inside of an entry: whole entries only are taken for committed
  const log = survivingLog(writer);
  expect(log.end).toEqual(end);
  expect(log.committed).toEqual(third);
  expect(log.candidates).toEqual([end, third, chainBeginning(genesis.clusterId)]);
});

it('a commit LSN beyond the log, or one that is no number, is not believed', () => {
  const writer = new Writer();
  writer.commands(2, Number.MAX_SAFE_INTEGER);
  writer.commands(1, 2 ** 60);
  expect(survivingLog(writer).committed.lsn).toBe(0);
});

it('begins at a place where the ring has gone on from, across its end', () => {
  const writer = new Writer();
  writer.commands(20);
  const anchor = writer.commands(10);
  const end = writer.commands(15, anchor.lsn);
  expect(end.lsn).toBeGreaterThan(RING_BYTES);
  const log = survivingLog(writer, anchor);
  expect(log.end).toEqual(end);
  // From the beginning there is nothing: the ring holds another lap.
  expect(survivingLog(writer).end.lsn).toBe(0);
});

it.each([0, 5, 20, 41, 60])('an entry of which byte %i is damaged ends it', (at) => {
  const writer = new Writer();
  const third = writer.commands(3);
  writer.commands(3, third.lsn);
  const bytes = new Uint8Array(writer.words.buffer);
  bytes[third.lsn + at] = (bytes[third.lsn + at] as number) ^ 0x40;
  expect(survivingLog(writer).end).toEqual(third);
});

it('a log that another one goes on from is continued; one that differs in its last entry is not', () => {
  const shared = new Writer();
  shared.commands(4);
  const mine = shared.copy();
  const theirs = shared.copy();
  const common = { ...shared.position };
  mine.add(new Uint8Array(40).fill(0xee));
  theirs.add(new Uint8Array(40).fill(0xdd));
  theirs.commands(3, common.lsn);
  const log = survivingLog(mine);
  expect(log.end.lsn).toBe(common.lsn + 128);
  expect(log.continuation(log.end, theirs.tail(log.end))).toBeNull();
  const tail = theirs.tail(common);
  expect(log.continuation(common, tail)).toBe(tail);
});

it('where nothing is missing the positions themselves are compared', () => {
  const writer = new Writer();
  const end = writer.commands(4);
  const log = survivingLog(writer);
  const nothing = new Uint32Array(0);
  expect(log.continuation(end, { words: nothing, end })).not.toBeNull();
  for (const other of [{ hashLow: end.hashLow ^ 1 }, { hashHigh: end.hashHigh ^ 1 }, { epoch: end.epoch + 1 }]) {
    expect(log.continuation(end, { words: nothing, end: { ...end, ...other } })).toBeNull();
  }
});

it('a tail that ends elsewhere than it says, or is shorter, is not used', () => {
  const writer = new Writer();
  const from = writer.commands(2);
  writer.commands(3);
  const log = survivingLog(writer);
  const tail = writer.tail(from);
  expect(log.continuation(from, tail)).not.toBeNull();
  expect(log.continuation(from, { ...tail, words: tail.words.slice(0, -32) })).toBeNull();
  expect(log.continuation(from, { ...tail, end: { ...tail.end, hashLow: 1 } })).toBeNull();
  expect(log.continuation(from, { ...tail, end: { ...tail.end, lsn: tail.end.lsn + 64 } })).toBeNull();
});

it('replays commands and configurations from both, in order, and each once', () => {
  const writer = new Writer();
  writer.commands(3);
  const next: Configuration = withMember(genesis, { ...(genesis.members[1] as ConfigurationMember), priority: 9 });
  writer.add(encodeConfiguration(next), 0, EPOCH, EntryType.configuration);
  const from = writer.commands(2);
  const mine = survivingLog(writer);
  writer.commands(4);
  const tail = writer.tail(from);
  const applied: [number, number, number][] = [];
  const replay = new LogReplay(mine.anchor, genesis, {
    applyCommand: (_lsn, origin, sequence, bytes, offset, lengthBytes) => {
      applied.push([origin, sequence, lengthBytes]);
      expect(bytes[offset]).toBeGreaterThan(0);
    },
  });
  let turns = 0;
  while (replay.advance(mine.ring, from, 2)) turns++;
  while (replay.advance(LogStretch.ofPiece(tail.words, from.lsn), tail.end, 2)) turns++;
  expect(turns).toBe(3);
  expect(applied.map(([, sequence]) => sequence)).toEqual([1, 2, 3, 5, 6, 7, 8, 9, 10]);
  expect(replay.configuration.version).toBe(2);
  expect(replay.position).toEqual(tail.end);
});

it('a replay stops where the log does not lead to the place that was named', () => {
  const writer = new Writer();
  writer.commands(2);
  const end = writer.commands(2);
  const log = survivingLog(writer);
  const replay = () => new LogReplay(log.anchor, genesis, { applyCommand: () => {} });
  expect(() => replay().advance(log.ring, { ...end, hashHigh: 0 }, ENTRIES_MAX)).toThrow(/another one/);
  expect(() => replay().advance(log.ring, { ...end, lsn: end.lsn + 64 }, ENTRIES_MAX)).toThrow(/no valid entry/);
  expect(() => replay().advance(log.ring, { ...end, lsn: end.lsn - 64 }, ENTRIES_MAX)).toThrow(/another one/);
});

it('bounds how much log there may be between two places', () => {
  expect(tailBytes(64, 640, RING_BYTES)).toBe(576);
  expect(tailBytes(640, 640, RING_BYTES)).toBe(0);
  expect(tailBytes(704, 640, RING_BYTES)).toBe(-1);
  expect(tailBytes(64, 64 + RING_BYTES + 64, RING_BYTES)).toBe(-1);
  expect(tailBytes(64, 641, RING_BYTES)).toBe(-1);
  expect(tailBytes(0, Number.NaN, RING_BYTES)).toBe(-1);
});
