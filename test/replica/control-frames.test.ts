// The untrusted bytes of the control channel: what is refused before it is decoded, and that nothing else changes on
// its way. Property tests print their seed when they fail.
import fc from 'fast-check';
import { Packr } from 'msgpackr';
import { describe, expect, it } from 'vitest';
import { FrameDecoder } from '#lib/replica/control/frame-decoder.js';
import { decodeFrame, encodeFrame, FrameKind } from '#lib/replica/control/frames.js';
import {
  FRAME_BYTES_MAX,
  HELLO_FRAME_BYTES_MAX,
  VALUE_DEPTH_MAX,
  VALUES_PER_FRAME_MAX,
} from '#lib/replica/control/limits.js';
import { decodeValue, encodeValue, findFault } from '#lib/replica/control/message-pack.js';

const protocolError = expect.objectContaining({ code: 'QUORATE_PROTOCOL' });
const invalidArgument = expect.objectContaining({ code: 'QUORATE_INVALID_ARGUMENT' });

function thrown(action: () => unknown): unknown {
  try {
    action();
  } catch (error) {
    return error;
  }
  throw new Error('nothing was thrown');
}

const plainData = fc.letrec((tie) => ({
  value: fc.oneof(
    { maxDepth: 6 },
    fc.constant(null),
    fc.boolean(),
    fc.maxSafeInteger(),
    // Zero has one sign on the wire: whole numbers travel as integers.
    fc.double({ noNaN: true }).map((number) => number + 0),
    fc.string({ unit: 'grapheme', maxLength: 300 }),
    fc.uint8Array({ maxLength: 300 }),
    fc.array(tie('value'), { maxLength: 20 }),
    fc.dictionary(
      fc.string({ maxLength: 20 }).filter((key) => key !== '__proto__'),
      tie('value'),
      { maxKeys: 20, noNullPrototype: true },
    ),
  ),
})).value;

/** Buffers as plain Uint8Arrays, for comparison. */
function normalized(value: unknown): unknown {
  if (value instanceof Uint8Array) return Uint8Array.from(value);
  if (Array.isArray(value)) return value.map(normalized);
  if (typeof value === 'object' && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, normalized(part)]));
  }
  return value;
}

/** Throws if the value holds anything but plain data. */
function expectPlain(value: unknown): void {
  if (value === null || ['boolean', 'number', 'string', 'bigint'].includes(typeof value) || value instanceof Uint8Array)
    return;
  if (Array.isArray(value)) {
    for (const part of value) expectPlain(part);
    return;
  }
  expect(typeof value).toBe('object');
  expect(Object.getPrototypeOf(value)).toBe(Object.prototype);
  for (const part of Object.values(value as object)) expectPlain(part);
}

function nested(depth: number): unknown {
  let value: unknown = 1;
  for (let level = 0; level < depth; level++) value = [value];
  return value;
}

describe('values on the wire', () => {
  it('come back as they were sent', () => {
    fc.assert(
      fc.property(plainData, (value) => {
        expect(normalized(decodeValue(encodeValue(value)))).toEqual(normalized(value));
      }),
    );
  });

  it('are refused or plain data, whatever the bytes', () => {
    let accepted = 0;
    const anyBytes = fc.uint8Array({ minLength: 1, maxLength: 64 });
    // Bytes of a valid value with some of them changed get further than random ones.
    const damaged = fc
      .tuple(plainData, fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 }))
      .map(([value, changes]) => {
        const bytes = Uint8Array.from(encodeValue(value));
        for (const [position, byte] of changes) bytes[position % bytes.length] = byte;
        return bytes;
      });
    fc.assert(
      fc.property(fc.oneof(anyBytes, damaged), (bytes) => {
        let value: unknown;
        try {
          value = decodeValue(Buffer.from(bytes));
        } catch (error) {
          expect(error).toEqual(protocolError);
          return;
        }
        accepted++;
        expectPlain(value);
      }),
      { numRuns: 1500 },
    );
    expect(accepted).toBeGreaterThan(50);
  });

  it('never reach the decoder with an extension in them, at any depth', () => {
    const tokens = [0xc1, 0xc7, 0xc8, 0xc9, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8];
    for (const token of tokens) {
      const extension = Buffer.concat([Buffer.from([token]), Buffer.alloc(20)]);
      expect(findFault(extension)).toMatch(/not plain data/);
      expect(findFault(Buffer.concat([Buffer.from([0x92, 0x01]), extension]))).toMatch(/not plain data/);
      expect(findFault(Buffer.concat([Buffer.from([0x81, 0xa1, 0x61]), extension]))).toMatch(/not plain data/);
    }
    for (const rich of [new Date(0), /x/g, new Set([1]), new Error('x')]) {
      const bytes = new Packr({ moreTypes: true, structuredClone: true }).pack(rich) as Buffer;
      expect(thrown(() => decodeValue(bytes))).toEqual(protocolError);
    }
  });

  it('cannot announce more than is there', () => {
    for (const bytes of [
      [0xdd, 0xff, 0xff, 0xff, 0xff], // array of 4 G elements
      [0xdf, 0xff, 0xff, 0xff, 0xff], // map of 4 G entries
      [0xc6, 0xff, 0xff, 0xff, 0xff], // 4 GiB of bytes
      [0xdb, 0xff, 0xff, 0xff, 0xff, 0x61], // 4 GiB of text
      [0xdc, 0x00, 0x02, 0x01], // two elements, one there
      [0xa5, 0x61], // five characters, one there
      [0xcf, 0x00], // eight bytes of integer, one there
      [0xd9], // no length
      [],
    ]) {
      expect(thrown(() => decodeValue(Buffer.from(bytes)))).toEqual(protocolError);
    }
  });

  it('end where the frame ends', () => {
    expect(thrown(() => decodeValue(Buffer.from([0x01, 0x02])))).toEqual(protocolError);
  });

  it('are bounded in depth and number', () => {
    expect(decodeValue(encodeValue(nested(VALUE_DEPTH_MAX)))).toEqual(nested(VALUE_DEPTH_MAX));
    expect(thrown(() => encodeValue(nested(VALUE_DEPTH_MAX + 1)))).toEqual(invalidArgument);
    const deep = Buffer.concat([Buffer.alloc(100_000, 0x91), Buffer.from([1])]);
    expect(thrown(() => decodeValue(deep))).toEqual(protocolError);
    const many = Array.from({ length: VALUES_PER_FRAME_MAX - 1 }, () => 0);
    expect(decodeValue(encodeValue(many))).toEqual(many);
    expect(thrown(() => encodeValue([...many, 0]))).toEqual(invalidArgument);
  });

  it('have string keys only, none of which is __proto__', () => {
    expect(thrown(() => decodeValue(Buffer.from([0x81, 0x01, 0x02])))).toEqual(protocolError);
    const proto = Buffer.concat([Buffer.from([0x81, 0xa9]), Buffer.from('__proto__'), Buffer.from([0x80])]);
    expect(thrown(() => decodeValue(proto))).toEqual(protocolError);
    expect(thrown(() => encodeValue(JSON.parse('{"__proto__": {"polluted": true}}')))).toEqual(invalidArgument);
    expect(thrown(() => encodeValue({ ['k'.repeat(129)]: 1 }))).toEqual(invalidArgument);
  });

  it('that the peer would refuse are refused here', () => {
    class Point {
      x = 1;
    }
    const cycle: unknown[] = [];
    cycle.push(cycle);
    const foreign = [
      new Date(0),
      new Set([1]),
      new Map([['a', 2]]),
      new Point(),
      () => 1,
      Symbol('x'),
      2n ** 70n,
      cycle,
    ];
    for (const value of [
      ...foreign,
      new Float64Array(2),
      new Uint32Array(2),
      new ArrayBuffer(2),
      new DataView(new ArrayBuffer(2)),
    ]) {
      expect(thrown(() => encodeValue({ value }))).toEqual(invalidArgument);
    }
    expect(thrown(() => encodeValue(Buffer.alloc(FRAME_BYTES_MAX)))).toMatchObject({ code: 'QUORATE_LIMIT' });
    expect(decodeValue(encodeValue({ absent: undefined }))).toEqual({ absent: null });
  });

  it('that would take more than a frame written out are refused at once, however little memory they take', () => {
    let shared: unknown[] = [];
    for (let level = 0; level < VALUE_DEPTH_MAX - 1; level++) shared = Array(1000).fill(shared);
    const text = 'x'.repeat(FRAME_BYTES_MAX / 4);
    for (const value of [
      shared,
      new Array(2 ** 32 - 1),
      Array(10_000).fill(text),
      Array(10_000).fill(Buffer.from(text)),
    ]) {
      expect(thrown(() => encodeValue(value))).toMatchObject({ code: 'QUORATE_LIMIT' });
    }
  });
});

describe('frames', () => {
  it('are cut out of the stream however it is divided', () => {
    fc.assert(
      fc.property(
        fc.array(fc.uint8Array({ minLength: 1, maxLength: 200 }), { minLength: 1, maxLength: 10 }),
        fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1, maxLength: 50 }),
        (payloads, cuts) => {
          const stream = Buffer.concat(
            payloads.map((payload) => {
              const header = Buffer.alloc(4);
              header.writeUInt32BE(payload.length);
              return Buffer.concat([header, payload]);
            }),
          );
          const decoder = new FrameDecoder(200);
          const frames: Uint8Array[] = [];
          for (let start = 0, index = 0; start < stream.length; index++) {
            const end = start + (cuts[index % cuts.length] as number);
            decoder.push(stream.subarray(start, end));
            for (let frame = decoder.next(); frame !== undefined; frame = decoder.next())
              frames.push(Uint8Array.from(frame));
            start = end;
          }
          expect(frames).toEqual(payloads);
          expect(decoder.atBoundary).toBe(true);
        },
      ),
    );
  });

  it('of several megabytes are put together without loss', () => {
    const payload = Buffer.alloc(3_000_001, 'quorate');
    const header = Buffer.alloc(4);
    header.writeUInt32BE(payload.length);
    const stream = Buffer.concat([header, payload]);
    const decoder = new FrameDecoder(FRAME_BYTES_MAX);
    let frame: Buffer | undefined;
    for (let start = 0; start < stream.length; start += 65_536) {
      expect(frame).toBeUndefined();
      decoder.push(stream.subarray(start, start + 65_536));
      frame = decoder.next();
    }
    expect(frame?.equals(payload)).toBe(true);
  });

  it('beyond the limit are refused by their header alone, and so are empty ones', () => {
    for (const lengthBytes of [0, HELLO_FRAME_BYTES_MAX + 1, 0x7fffffff, 0xffffffff]) {
      const decoder = new FrameDecoder(HELLO_FRAME_BYTES_MAX);
      const header = Buffer.alloc(4);
      header.writeUInt32BE(lengthBytes);
      decoder.push(header);
      expect(thrown(() => decoder.next())).toEqual(protocolError);
    }
  });

  it('take memory only for what has arrived of them', () => {
    const before = process.memoryUsage().arrayBuffers;
    const decoders = Array.from({ length: 64 }, () => {
      const decoder = new FrameDecoder(FRAME_BYTES_MAX);
      const header = Buffer.alloc(5);
      header.writeUInt32BE(FRAME_BYTES_MAX);
      decoder.push(header);
      expect(decoder.next()).toBeUndefined();
      return decoder;
    });
    expect(decoders).toHaveLength(64);
    // 64 announcements of 4 MiB: 256 MiB if they were believed.
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(64 * 1024 * 1024);
  });

  it('of a wrong shape are refused', () => {
    for (const value of [
      null,
      {},
      [],
      [99],
      ['request'],
      [FrameKind.request, 0, 'link', null],
      [FrameKind.request, 1.5, 'link', null],
      [FrameKind.request, 1, 'no spaces', null],
      [FrameKind.request, 1, 'x'.repeat(65), null],
      [FrameKind.request, 1, 7, null],
      [FrameKind.message, null, null],
      [FrameKind.failure, 1, null],
      [FrameKind.failure, 1, { code: 'EPERM', message: '' }],
      [FrameKind.failure, 1, { code: 'QUORATE_X', message: 'x'.repeat(2001) }],
      [FrameKind.failure, 1, { code: 'QUORATE_X', message: '', errno: -1 }],
      [FrameKind.blobOpen, 1, 'snapshot', 2 ** 30 + 1, null],
      [FrameKind.blobOpen, 1, 'snapshot', -1, null],
      [FrameKind.blobChunk, 1, 'text'],
      [FrameKind.blobChunk, 1, new Uint8Array(0)],
      [FrameKind.blobChunk, 1, new Uint8Array(256 * 1024 + 1)],
      [FrameKind.blobCredit, 1, 0],
      [FrameKind.blobCredit, 1, 2 ** 40],
    ]) {
      expect(thrown(() => decodeFrame(encodeValue(value)))).toEqual(protocolError);
    }
  });

  it('carry errors without control characters', () => {
    const payload = encodeFrame({
      kind: FrameKind.failure,
      id: 1,
      error: { code: 'QUORATE_X', message: 'a\u001b[2Jb\nc' },
    });
    expect(decodeFrame(payload)).toMatchObject({ error: { code: 'QUORATE_X', message: 'a [2Jb c' } });
  });
});
