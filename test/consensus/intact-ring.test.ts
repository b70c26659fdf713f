// What may be sent from a ring, by the bytes that stand in it: a log is put there, entry by entry, and some of it is
// overwritten as a later lap does.
import { describe, expect, test } from 'vitest';
import { type ChainPosition, copyPosition, EntryType, sealEntry, writeEntryHeader } from '#lib/consensus/entry.js';
import { IntactRing } from '#lib/consensus/intact-ring.js';
import { REPLICATION_BATCH_BYTES_MAX } from '#lib/consensus/limits.js';
import { LogScanner } from '#lib/consensus/log-scan.js';

const RING_BYTES = 512 * 1024;
const PAYLOAD_BYTES = 4000;
const ENTRY_BYTES = 4096;
const EPOCH = 7;
const PEER = 3;

function start(): ChainPosition {
  return { lsn: 0, hashLow: 11, hashHigh: 22, epoch: 0 };
}

/** A ring with a log of so many entries, and the positions between them. */
function ringWithLog(entries: number) {
  const words = new Uint32Array(RING_BYTES / 4);
  const position = start();
  const positions = [start()];
  for (let index = 0; index < entries; index++) {
    append(words, position, EPOCH);
    const reached = start();
    copyPosition(position, reached);
    positions.push(reached);
  }
  return { words, positions, ring: new IntactRing(new LogScanner(words, RING_BYTES)) };
}

function append(words: Uint32Array, position: ChainPosition, epoch: number): void {
  const at = (position.lsn % RING_BYTES) >>> 2;
  words.fill(position.lsn, at + 14, at + 14 + PAYLOAD_BYTES / 4);
  writeEntryHeader(words, at, position.lsn, epoch, EntryType.command, PAYLOAD_BYTES, 0, 1, 1);
  sealEntry(words, at, position);
}

function beginRepair(ring: IntactRing, from: ChainPosition): void {
  ring.beginRepair(PEER, from.lsn, from.hashLow, from.hashHigh);
}

/** Where a repair from `lsn` on ends, WRITE by WRITE, and whether it got to where the ring was validated. */
function repair(ring: IntactRing, lsn: number, validatedLsn: number): { sentLsn: number; isComplete: boolean } {
  let sentLsn = lsn;
  while (sentLsn < validatedLsn) {
    const sendableLsn = ring.sendableLsn(PEER, sentLsn, EPOCH);
    if (sendableLsn === sentLsn) return { sentLsn, isComplete: false };
    expect(sendableLsn).toBeGreaterThan(sentLsn);
    sentLsn = Math.min(sendableLsn, sentLsn + REPLICATION_BATCH_BYTES_MAX);
  }
  return { sentLsn, isComplete: true };
}

describe('what a ring may send', () => {
  test('is everything where the log stands as it was applied', () => {
    const { ring, positions } = ringWithLog(100);
    ring.beginTakeover(positions[90] as ChainPosition);
    for (const from of [0, 1, 37, 89, 90]) {
      beginRepair(ring, positions[from] as ChainPosition);
      expect(repair(ring, from * ENTRY_BYTES, 90 * ENTRY_BYTES).isComplete).toBe(true);
    }
  });

  test('is everything above where it was validated, whatever stands below', () => {
    const { ring, positions, words } = ringWithLog(100);
    ring.beginTakeover(positions[90] as ChainPosition);
    words.fill(0xdeadbeef, 0, (90 * ENTRY_BYTES) / 4);
    expect(ring.sendableLsn(PEER, 90 * ENTRY_BYTES, EPOCH)).toBe(Number.POSITIVE_INFINITY);
  });

  // Half a word, a header alone, an entry that is valid in its own lap: none of it may go out, and all before it may.
  test.each([
    [
      'a torn byte',
      40,
      (words: Uint32Array) => new Uint8Array(words.buffer).fill(1, 40 * ENTRY_BYTES + 60, 40 * ENTRY_BYTES + 61),
    ],
    [
      'an entry of the next lap',
      61,
      (words: Uint32Array) => append(words, { ...start(), lsn: RING_BYTES + 61 * ENTRY_BYTES }, EPOCH),
    ],
    ['the entry where the repair begins', 0, (words: Uint32Array) => words.fill(0, 0, 16)],
    [
      'the last entry before the validated part',
      89,
      (words: Uint32Array) => words.fill(0, (89 * ENTRY_BYTES) / 4, (89 * ENTRY_BYTES) / 4 + 16),
    ],
  ])('ends at the latest where another lap begins: %s', (_name, entry, overwrite) => {
    const { ring, positions, words } = ringWithLog(100);
    ring.beginTakeover(positions[90] as ChainPosition);
    overwrite(words);
    beginRepair(ring, start());
    const { sentLsn, isComplete } = repair(ring, 0, 90 * ENTRY_BYTES);
    expect(isComplete).toBe(false);
    expect(sentLsn).toBeLessThanOrEqual(entry * ENTRY_BYTES);
    // All but what the failed look ahead would have carried.
    expect(sentLsn).toBeGreaterThan(entry * ENTRY_BYTES - REPLICATION_BATCH_BYTES_MAX - 1);
    // What lies behind the overwritten entry can still be sent to a replica that has that entry.
    beginRepair(ring, positions[entry + 1] as ChainPosition);
    expect(repair(ring, (entry + 1) * ENTRY_BYTES, 90 * ENTRY_BYTES).isComplete).toBe(true);
  });

  test('is nothing to a replica that holds another log up to there', () => {
    const { ring, positions } = ringWithLog(100);
    ring.beginTakeover(positions[90] as ChainPosition);
    beginRepair(ring, { ...(positions[50] as ChainPosition), hashLow: 1 });
    expect(repair(ring, 50 * ENTRY_BYTES, 90 * ENTRY_BYTES)).toEqual({ sentLsn: 50 * ENTRY_BYTES, isComplete: false });
  });

  test('does not reach the end by a suffix that chains, but not to what was validated', () => {
    const { ring, positions } = ringWithLog(12);
    ring.beginTakeover({ ...(positions[11] as ChainPosition), hashHigh: 5 });
    beginRepair(ring, start());
    expect(repair(ring, 0, 11 * ENTRY_BYTES)).toEqual({ sentLsn: 0, isComplete: false });
  });

  test('is not even tried below where a truncated log went around, or a snapshot began', () => {
    const { ring, positions } = ringWithLog(100);
    ring.noteEnd(RING_BYTES - ENTRY_BYTES);
    expect(ring.foreignBelowLsn).toBe(0);
    ring.noteEnd(RING_BYTES + 20 * ENTRY_BYTES);
    ring.noteEnd(RING_BYTES + 10 * ENTRY_BYTES);
    expect(ring.foreignBelowLsn).toBe(20 * ENTRY_BYTES);
    ring.noteForeign(30 * ENTRY_BYTES);
    expect(ring.foreignBelowLsn).toBe(30 * ENTRY_BYTES);
    ring.beginTakeover(positions[30] as ChainPosition);
    // What is applied is never recycled by a log that has not been applied, or nothing could be validated from there.
    expect(() => ring.beginTakeover(positions[29] as ChainPosition)).toThrow(/ring recycling/);
  });
});
