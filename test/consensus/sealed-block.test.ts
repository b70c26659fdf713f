import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { readU53, SealedBlockReader, SealedBlockWriter, writeU53 } from '#lib/consensus/sealed-block.js';

const WORDS = 24;

function published(fields: readonly number[]): { memory: Uint32Array; writer: SealedBlockWriter } {
  const memory = new Uint32Array(WORDS + 8);
  const writer = new SealedBlockWriter(memory, 4, WORDS);
  fields.forEach((value, index) => {
    writer.body[1 + index] = value;
  });
  writer.publish();
  return { memory, writer };
}

const fields = fc.array(fc.nat({ max: 2 ** 32 - 1 }), { minLength: WORDS - 3, maxLength: WORDS - 3 });

describe('53-bit integers', () => {
  test('come back as they were written', () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), (value) => {
        const memory = new Uint32Array(4);
        writeU53(memory, 1, value);
        expect(readU53(memory, 1)).toBe(value);
        expect(memory[0]).toBe(0);
        expect(memory[3]).toBe(0);
      }),
    );
  });
});

describe('sealed block', () => {
  test('is read as it was published, and nothing outside it is written', () => {
    fc.assert(
      fc.property(fields, (values) => {
        const { memory } = published(values);
        const reader = new SealedBlockReader(WORDS);
        expect(reader.read(memory, 4)).toBe(true);
        expect([...reader.body.slice(1, WORDS - 2)]).toEqual(values);
        expect(reader.sequence).toBe(1);
        expect([...memory.slice(0, 4), ...memory.slice(4 + WORDS)]).toEqual(new Array(8).fill(0));
      }),
    );
  });

  test('is no news before the first publication', () => {
    expect(new SealedBlockReader(WORDS).read(new Uint32Array(WORDS), 0)).toBe(false);
  });

  test('is not taken when any byte of it is wrong, and the last good copy stays', () => {
    const { memory } = published(Array.from({ length: WORDS - 3 }, (_, index) => index * 77));
    const bytes = new Uint8Array(memory.buffer);
    for (let at = 16; at < 16 + WORDS * 4; at++) {
      for (const change of [1, 0x80, 0xff]) {
        const reader = new SealedBlockReader(WORDS);
        bytes[at] = (bytes[at] as number) ^ change;
        expect(reader.read(memory, 4), `byte ${at - 16} of the block`).toBe(false);
        expect(reader.sequence).toBe(0);
        bytes[at] = (bytes[at] as number) ^ change;
      }
    }
  });

  test('is taken whole or not at all, however two publications are mixed byte by byte', () => {
    fc.assert(
      fc.property(
        fields,
        fields,
        fc.array(fc.boolean(), { minLength: WORDS * 4, maxLength: WORDS * 4 }),
        (first, second, fromSecond) => {
          const { memory, writer } = published(first);
          const reader = new SealedBlockReader(WORDS);
          expect(reader.read(memory, 4)).toBe(true);
          const before = new Uint8Array(memory.slice().buffer);
          second.forEach((value, index) => {
            writer.body[1 + index] = value;
          });
          writer.publish();
          const after = new Uint8Array(memory.buffer);
          const torn = before.slice();
          fromSecond.forEach((isSecond, index) => {
            if (isSecond) torn[16 + index] = after[16 + index] as number;
          });
          reader.read(new Uint32Array(torn.buffer), 4);
          const taken = [...reader.body.slice(1, WORDS - 2)];
          expect(reader.sequence === 1 ? first : second).toEqual(taken);
        },
      ),
      { numRuns: 500 },
    );
  });

  test('forgets its copy on reset, so that the fresh memory of another life is read anew', () => {
    const { memory } = published(new Array(WORDS - 3).fill(5));
    const reader = new SealedBlockReader(WORDS);
    reader.read(memory, 4);
    reader.reset();
    expect(reader.sequence).toBe(0);
    expect(reader.read(memory, 4)).toBe(true);
    expect(reader.body[1]).toBe(5);
  });

  test('does not fit a region that is too small', () => {
    expect(() => new SealedBlockWriter(new Uint32Array(WORDS), 1, WORDS)).toThrow(RangeError);
  });
});
