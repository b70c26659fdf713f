import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  type ChainPosition,
  EntryType,
  entryBytes,
  entryCommitLsn,
  entryEpoch,
  entryOrigin,
  entryPayloadBytes,
  entrySequence,
  entryType,
  sealEntry,
  validateEntry,
  writeEntryHeader,
} from '#lib/consensus/entry.js';
import { EpochHistory } from '#lib/consensus/epoch-history.js';
import { ENTRY_ALIGNMENT_BYTES, ENTRY_HEADER_BYTES } from '#lib/consensus/limits.js';
import { LogScanner } from '#lib/consensus/log-scan.js';

function start(): ChainPosition {
  return { lsn: 0, hashLow: 11, hashHigh: 22, epoch: 0 };
}

/** Puts an entry behind `position`, which moves on. Returns its offset. */
function put(
  words: Uint32Array,
  position: ChainPosition,
  epoch: number,
  payload: Uint8Array,
  type: number = EntryType.command,
) {
  const offset = position.lsn % (words.length * 4);
  writeEntryHeader(words, offset >>> 2, position.lsn, epoch, type, payload.length, 3, 4, 5);
  new Uint8Array(words.buffer).set(payload, offset + ENTRY_HEADER_BYTES);
  sealEntry(words, offset >>> 2, position);
  return offset;
}

describe('entry', () => {
  test('is validated with all its fields, and its size is a multiple of the alignment', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 500 }), fc.integer({ min: 1, max: 2 ** 50 }), (payload, epoch) => {
        const words = new Uint32Array(256);
        const position = start();
        put(words, position, epoch, payload);
        const size = validateEntry(words, 0, 1024, start());
        expect(size).toBe(entryBytes(payload.length));
        expect(size % ENTRY_ALIGNMENT_BYTES).toBe(0);
        expect(size).toBe(position.lsn);
        expect(entryEpoch(words, 0)).toBe(epoch);
        expect(entryType(words, 0)).toBe(EntryType.command);
        expect(entryPayloadBytes(words, 0)).toBe(payload.length);
        expect([entryCommitLsn(words, 0), entryOrigin(words, 0), entrySequence(words, 0)]).toEqual([3, 4, 5]);
      }),
    );
  });

  test('is refused when any single byte of its header or padded payload is changed', () => {
    const payload = Uint8Array.from({ length: 61 }, (_, index) => index * 7);
    const words = new Uint32Array(64);
    put(words, start(), 9, payload);
    const bytes = new Uint8Array(words.buffer);
    const covered = ENTRY_HEADER_BYTES + 64; // padded to eight bytes
    for (let at = 0; at < covered; at++) {
      for (let change = 1; change < 256; change++) {
        bytes[at] = (bytes[at] as number) ^ change;
        expect(validateEntry(words, 0, 256, start()), `byte ${at} changed by ${change}`).toBe(0);
        bytes[at] = (bytes[at] as number) ^ change;
      }
    }
    expect(validateEntry(words, 0, 256, start())).toBe(entryBytes(61));
  });

  test('is refused when a prefix, a suffix or a middle part of it has not arrived over an older entry', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 40, maxLength: 200 }),
        fc.uint8Array({ minLength: 40, maxLength: 200 }),
        fc.array(fc.boolean(), { minLength: 256, maxLength: 256 }),
        (older, newer, arrived) => {
          const words = new Uint32Array(64);
          put(words, start(), 5, older);
          const torn = new Uint8Array(words.slice().buffer);
          put(words, start(), 6, newer);
          const whole = new Uint8Array(words.buffer);
          arrived.forEach((isThere, index) => {
            if (isThere) torn[index] = whole[index] as number;
          });
          const memory = new Uint32Array(torn.buffer);
          if (validateEntry(memory, 0, 256, start()) === 0) return;
          // Then all that counts is of one of the two.
          const epoch = entryEpoch(memory, 0);
          const payload = epoch === 5 ? older : newer;
          expect([5, 6]).toContain(epoch);
          expect(torn.slice(ENTRY_HEADER_BYTES, ENTRY_HEADER_BYTES + payload.length)).toEqual(payload);
        },
      ),
      { numRuns: 500 },
    );
  });

  test('is refused behind another predecessor, at another LSN, and in an epoch below its predecessor', () => {
    const words = new Uint32Array(64);
    put(words, start(), 9, new Uint8Array(8));
    expect(validateEntry(words, 0, 256, { ...start(), hashLow: 12 })).toBe(0);
    expect(validateEntry(words, 0, 256, { ...start(), hashHigh: 23 })).toBe(0);
    expect(validateEntry(words, 0, 256, { ...start(), lsn: 64 })).toBe(0);
    expect(validateEntry(words, 0, 256, { ...start(), epoch: 10 })).toBe(0);
    expect(validateEntry(words, 0, 256, { ...start(), epoch: 9 })).toBe(64);
  });

  test('is bounded by the bytes that are available, whatever length it claims', () => {
    const words = new Uint32Array(16);
    put(words, start(), 9, new Uint8Array(8));
    for (const available of [0, 8, 55, 63]) expect(validateEntry(words, 0, available, start())).toBe(0);
    for (const length of [9, 100, 2 ** 31, 2 ** 32 - 1]) {
      words[4] = length;
      expect(validateEntry(words, 0, 64, start())).toBe(0);
    }
  });
});

describe('log scanner', () => {
  const CAPACITY = 1024;

  test('walks to the end of the valid log and notes the epochs', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat({ max: 2 }), fc.nat({ max: 60 })), { maxLength: 8 }), (entries) => {
        const words = new Uint32Array(CAPACITY / 4);
        const position = start();
        let epoch = 1;
        const runs: [number, number][] = [];
        for (const [step, length] of entries) {
          epoch += step;
          if (runs.at(-1)?.[0] !== epoch) runs.push([epoch, position.lsn]);
          put(words, position, epoch, new Uint8Array(length));
        }
        const scanner = new LogScanner(words, CAPACITY);
        const history = new EpochHistory(16);
        const found = start();
        scanner.scan(found, 100, history);
        expect(found).toEqual(position);
        expect(runs).toEqual(
          Array.from({ length: history.count }, (_, run) => [history.epochs[run], history.startLsns[run]]),
        );
      }),
    );
  });

  test('stops before an entry of an epoch above the limit', () => {
    const words = new Uint32Array(CAPACITY / 4);
    const position = start();
    put(words, position, 3, new Uint8Array(8));
    const end = position.lsn;
    put(words, position, 7, new Uint8Array(8));
    const found = start();
    new LogScanner(words, CAPACITY).scan(found, 6, new EpochHistory(4));
    expect(found.lsn).toBe(end);
  });

  test('takes a pad only where it fills the ring to its end', () => {
    for (const isAtEnd of [true, false]) {
      const words = new Uint32Array(CAPACITY / 4);
      const position = start();
      while (position.lsn < CAPACITY - 128) put(words, position, 1, new Uint8Array(8));
      const padPayload = isAtEnd ? 128 - ENTRY_HEADER_BYTES : 64 - ENTRY_HEADER_BYTES;
      put(words, position, 1, new Uint8Array(padPayload), EntryType.pad);
      const found = start();
      new LogScanner(words, CAPACITY).scan(found, 1, new EpochHistory(4));
      expect(found.lsn).toBe(isAtEnd ? CAPACITY : CAPACITY - 128);
    }
  });

  test('never walks further than one lap, in a ring that is full of valid entries', () => {
    const words = new Uint32Array(CAPACITY / 4);
    const position = start();
    while (position.lsn < CAPACITY) put(words, position, 1, new Uint8Array(8));
    const found = start();
    new LogScanner(words, CAPACITY).scan(found, 1, new EpochHistory(4));
    expect(found.lsn).toBe(CAPACITY);
  });

  test('refuses a capacity that is no power of two or exceeds its region', () => {
    expect(() => new LogScanner(new Uint32Array(300), 1000)).toThrow(RangeError);
    expect(() => new LogScanner(new Uint32Array(100), 1024)).toThrow(RangeError);
  });
});
