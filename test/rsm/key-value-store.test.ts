// The replicated map, checked against a plain one.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ChangesAside } from '#lib/rsm/changes-aside.js';
import {
  decodeCommand,
  ENTRY_OVERHEAD_BYTES,
  encodeDelete,
  encodeSet,
  KEY_BYTES_MAX,
  KeyValueStore,
  STATE_BYTES_MAX,
  VALUE_BYTES_MAX,
} from '#lib/rsm/key-value-store.js';

function code(action: () => void): unknown {
  try {
    action();
  } catch (error) {
    return (error as { code?: unknown }).code;
  }
  return 'nothing was thrown';
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
const keyBytes = fc.uint8Array({ minLength: 1, maxLength: 3 });
const command = fc.oneof(
  { weight: 3, arbitrary: fc.record({ key: keyBytes, value: fc.uint8Array({ maxLength: 40 }) }) },
  fc.record({ key: keyBytes, value: fc.constant(undefined) }),
);

function encode({ key, value }: { key: Uint8Array; value: Uint8Array | undefined }): Uint8Array {
  return value === undefined ? encodeDelete(key) : encodeSet(key, value);
}

test('set, get and delete, as text and as bytes', () => {
  const store = new KeyValueStore();
  expect(store.apply(encodeSet('colour', 'grün'))).toBe('created');
  expect(store.apply(encodeSet('colour', 'blau ✓'))).toBe('replaced');
  expect(store.getText('colour')).toBe('blau ✓');
  expect(store.get(Buffer.from('colour'))).toEqual(Uint8Array.from(Buffer.from('blau ✓')));
  expect(store.apply(encodeSet('schlüssel', Uint8Array.of(0, 255, 128)))).toBe('created');
  expect(store.get('schlüssel')).toEqual(Uint8Array.of(0, 255, 128));
  expect(store.apply(encodeSet('empty', ''))).toBe('created');
  expect(store.getText('empty')).toBe('');
  expect(store.size).toBe(3);
  expect(store.apply(encodeDelete('colour'))).toBe('deleted');
  expect(store.apply(encodeDelete('colour'))).toBe('absent');
  expect(store.get('colour')).toBeUndefined();
  expect(store.has('empty')).toBe(true);
  expect(store.has('colour')).toBe(false);
});

test('any commands leave what they would leave in a plain map', () => {
  fc.assert(
    fc.property(fc.array(command, { maxLength: 100 }), (commands) => {
      const store = new KeyValueStore();
      const model = new Map<string, string>();
      for (const one of commands) {
        const key = hex(one.key);
        const had = model.has(key);
        const result = store.apply(encode(one));
        if (one.value === undefined) {
          model.delete(key);
          expect(result).toBe(had ? 'deleted' : 'absent');
        } else {
          model.set(key, hex(one.value));
          expect(result).toBe(had ? 'replaced' : 'created');
        }
      }
      expect(new Map([...store.entries()].map(([key, value]) => [hex(key), hex(value)]))).toEqual(model);
      let stateBytes = 0;
      for (const [key, value] of model) stateBytes += (key.length + value.length) / 2 + ENTRY_OVERHEAD_BYTES;
      expect(store.stateBytes).toBe(stateBytes);
    }),
  );
});

test('commands are read where they lie in a larger buffer, and not kept', () => {
  const ring = new Uint8Array(256).fill(0x55);
  const store = new KeyValueStore();
  const place = (bytes: Uint8Array, at: number) => {
    ring.set(bytes, at);
    return ring.subarray(at, at + bytes.length);
  };
  store.apply(place(encodeSet('key-number-one', 'value-number-one'), 40));
  ring.fill(0xaa);
  store.apply(place(encodeSet('key-number-two', 'value-number-two'), 100));
  ring.fill(0);
  expect(store.getText('key-number-one')).toBe('value-number-one');
  expect(store.getText('key-number-two')).toBe('value-number-two');
  const elsewhere = new Uint8Array(encodeSet('key-number-one', 'other'));
  expect(store.apply(elsewhere)).toBe('replaced');
  expect(store.getText('key-number-one')).toBe('other');
});

test('bytes that are no command change nothing and throw nothing', () => {
  const store = new KeyValueStore();
  store.apply(encodeSet('a', 'b'));
  const before = store.digest();
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 40 }), (bytes) => {
      if (decodeCommand(bytes) === undefined) {
        expect(store.apply(bytes)).toBe('invalid');
        expect(store.digest()).toBe(before);
      } else {
        expect(new KeyValueStore().apply(bytes)).not.toBe('invalid');
      }
    }),
  );
  const set = encodeSet('key', 'value');
  for (const [at, value] of [
    [0, 0],
    [0, 3],
    [1, 0],
    [1, 200],
    [2, 255],
  ] as const) {
    const changed = Uint8Array.from(set);
    changed[at] = value;
    expect(store.apply(changed)).toBe('invalid');
  }
  const deletion = encodeDelete('key');
  expect(store.apply(Buffer.concat([deletion, Buffer.of(0)]))).toBe('invalid'); // a value where none belongs
});

test('decoding gives back what was encoded', () => {
  fc.assert(
    fc.property(command, (one) => {
      expect(decodeCommand(encode(one))).toEqual({ operation: one.value === undefined ? 'del' : 'set', ...one });
    }),
  );
});

test('keys and values that are neither text nor bytes are refused, and named', () => {
  const store = new KeyValueStore();
  for (const none of [5, null, undefined, true, [1, 2], {}, new Uint16Array(2)] as never[]) {
    const calls: [string, () => void][] = [
      ['key', () => encodeSet(none, 'x')],
      ['value', () => encodeSet('k', none)],
      ['key', () => encodeDelete(none)],
      ['key', () => store.get(none)],
      ['key', () => store.getText(none)],
      ['key', () => store.has(none)],
    ];
    for (const [what, call] of calls) {
      expect(code(call)).toBe('QUORATE_INVALID_ARGUMENT');
      expect(call).toThrow(`the ${what} is neither a string nor a Uint8Array`);
    }
  }
});

test('options that are none, misspelt or no numbers are refused: the limit must be the same at every replica', () => {
  for (const none of [null, 5, 'x'])
    expect(code(() => new KeyValueStore(none as never))).toBe('QUORATE_INVALID_ARGUMENT');
  expect(() => new KeyValueStore({ stateBytesMaximum: 5 } as never)).toThrow(
    /no member 'stateBytesMaximum'.*stateBytesMax/,
  );
  expect(code(() => new KeyValueStore({ stateBytesMax: '5' } as never))).toBe('QUORATE_OUT_OF_RANGE');
  expect(code(() => new KeyValueStore({ stateBytesMax: null } as never))).toBe('QUORATE_OUT_OF_RANGE');
});

test('lengths over the limit are refused with the limit named', () => {
  expect(code(() => encodeSet('', 'x'))).toBe('QUORATE_OUT_OF_RANGE');
  expect(() => encodeSet('k'.repeat(KEY_BYTES_MAX + 1), 'x')).toThrow(`1 to ${KEY_BYTES_MAX} bytes`);
  expect(() => encodeDelete('ü'.repeat(KEY_BYTES_MAX / 2 + 1))).toThrow(`1 to ${KEY_BYTES_MAX} bytes`);
  expect(code(() => encodeSet('k', new Uint8Array(VALUE_BYTES_MAX + 1)))).toBe('QUORATE_PAYLOAD_TOO_LARGE');
  const largest = encodeSet('k'.repeat(KEY_BYTES_MAX), new Uint8Array(VALUE_BYTES_MAX).fill(7));
  const store = new KeyValueStore();
  expect(store.apply(largest)).toBe('created');
  expect(store.stateBytes).toBe(KEY_BYTES_MAX + VALUE_BYTES_MAX + ENTRY_OVERHEAD_BYTES);
  const copy = new KeyValueStore();
  copy.restore(store.snapshot());
  expect(copy.digest()).toBe(store.digest());
});

test('a full store refuses growth, at the same command at every replica, and takes what shrinks it', () => {
  const store = new KeyValueStore({ stateBytesMax: 2 * (ENTRY_OVERHEAD_BYTES + 10) });
  expect(store.apply(encodeSet('a', '123456789'))).toBe('created');
  expect(store.apply(encodeSet('b', '123456789'))).toBe('created');
  expect(store.apply(encodeSet('c', ''))).toBe('full');
  expect(store.apply(encodeSet('a', '1234567890'))).toBe('full');
  expect(store.getText('a')).toBe('123456789');
  expect(store.apply(encodeSet('a', '1'))).toBe('replaced');
  expect(store.apply(encodeSet('b', '1234567890abcdef'))).toBe('replaced');
  expect(store.apply(encodeDelete('a'))).toBe('deleted');
  expect(store.apply(encodeSet('c', ''))).toBe('created');
  const smaller = new KeyValueStore({ stateBytesMax: ENTRY_OVERHEAD_BYTES });
  expect(code(() => smaller.restore(store.snapshot()))).toBe('QUORATE_SNAPSHOT_INVALID');
  expect(code(() => new KeyValueStore({ stateBytesMax: STATE_BYTES_MAX + 1 }))).toBe('QUORATE_OUT_OF_RANGE');
  expect(code(() => new KeyValueStore({ stateBytesMax: Number.NaN }))).toBe('QUORATE_OUT_OF_RANGE');
});

test('the digest is that of the state, however it was reached', () => {
  fc.assert(
    fc.property(fc.array(command, { maxLength: 60 }), fc.nat(), (commands, cut) => {
      const byLog = new KeyValueStore();
      let bySnapshot = new KeyValueStore();
      commands.forEach((one, index) => {
        if (index === cut % commands.length) {
          const restored = new KeyValueStore();
          restored.restore(bySnapshot.snapshot());
          bySnapshot = restored;
        }
        expect(bySnapshot.apply(encode(one))).toBe(byLog.apply(encode(one)));
      });
      expect(bySnapshot.digest()).toBe(byLog.digest());
      expect(bySnapshot.snapshot()).toEqual(byLog.snapshot());
      // The same state in another order of keys.
      const rebuilt = new KeyValueStore();
      for (const [key, value] of [...byLog.entries()].reverse()) rebuilt.apply(encodeSet(key, value));
      expect(rebuilt.digest()).toBe(byLog.digest());
    }),
  );
});

test('different states have different digests', () => {
  const digestOf = (...pairs: [string, string][]) => {
    const store = new KeyValueStore();
    for (const [key, value] of pairs) store.apply(encodeSet(key, value));
    return store.digest();
  };
  const digests = [
    digestOf(),
    digestOf(['a', 'b']),
    digestOf(['a', 'c']),
    digestOf(['ab', '']),
    digestOf(['a', ''], ['b', '']),
    digestOf(['a', 'b'], ['c', 'd']),
    digestOf(['a', 'd'], ['c', 'b']),
  ];
  expect(new Set(digests).size).toBe(digests.length);
});

test('a snapshot that is none is refused and changes nothing', () => {
  const store = new KeyValueStore();
  store.apply(encodeSet('key', 'value'));
  store.apply(encodeSet('other', 'thing'));
  const good = store.snapshot();
  const digest = store.digest();
  for (let length = 0; length < good.length; length++) {
    expect(code(() => store.restore(good.subarray(0, length)))).toBe('QUORATE_SNAPSHOT_INVALID');
  }
  expect(code(() => store.restore(Buffer.concat([good, Buffer.of(0)])))).toBe('QUORATE_SNAPSHOT_INVALID');
  const huge = Uint8Array.from(good);
  huge.fill(255, 8, 16); // lengths of the first entry
  expect(code(() => store.restore(huge))).toBe('QUORATE_SNAPSHOT_INVALID');
  const countless = Uint8Array.from(good);
  countless.fill(255, 4, 8);
  expect(code(() => store.restore(countless))).toBe('QUORATE_SNAPSHOT_INVALID');
  const twice = new KeyValueStore();
  twice.apply(encodeSet('kez', 'value'));
  twice.apply(encodeSet('key', 'value'));
  const repeated = twice.snapshot();
  repeated[8 + 8 + 2] = 'y'.charCodeAt(0);
  expect(code(() => store.restore(repeated))).toBe('QUORATE_SNAPSHOT_INVALID');
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
      expect(code(() => store.restore(bytes))).toBe('QUORATE_SNAPSHOT_INVALID');
    }),
  );
  expect(store.digest()).toBe(digest);
});

/** The chunks of a stream, each copied, as it is valid for a moment only. */
function collect(stream: Iterable<Uint8Array>): Uint8Array[] {
  return Array.from(stream, (chunk) => Uint8Array.from(chunk));
}

async function* cut(bytes: Uint8Array, sizes: readonly number[]): AsyncGenerator<Uint8Array> {
  for (let at = 0, turn = 0; at < bytes.length; turn++) {
    const size = sizes[turn % sizes.length] as number;
    // Overwritten afterwards: whoever keeps a view of a chunk notices.
    const chunk = Uint8Array.from(bytes.subarray(at, at + size));
    yield chunk;
    chunk.fill(0xee);
    at += size;
  }
}

test('a snapshot that is read piece by piece is of the moment when it was asked for, whatever is applied meanwhile', () => {
  fc.assert(
    fc.property(
      fc.array(command, { maxLength: 40 }),
      fc.array(command, { minLength: 1, maxLength: 80 }),
      fc.array(command, { maxLength: 40 }),
      fc.boolean(),
      (before, during, after, isAbandoned) => {
        const store = new KeyValueStore();
        const plain = new KeyValueStore();
        const both = (commands: readonly { key: Uint8Array; value: Uint8Array | undefined }[]) => {
          for (const one of commands) expect(store.apply(encode(one))).toBe(plain.apply(encode(one)));
          expect(store.size).toBe(plain.size);
          expect(store.stateBytes).toBe(plain.stateBytes);
          expect([...store.entries()].map(([key, value]) => [hex(key), hex(value)])).toEqual(
            [...plain.entries()].map(([key, value]) => [hex(key), hex(value)]),
          );
        };
        both(before);
        const expected = hex(store.snapshot());
        const stream = store.snapshotChunks() as Iterable<Uint8Array> & { lengthBytes: number };
        expect(stream.lengthBytes).toBe(expected.length / 2);
        both(during);
        const iterator = stream[Symbol.iterator]();
        if (isAbandoned) iterator.return?.();
        else expect(hex(Buffer.concat(collect(stream)))).toBe(expected);
        both(after);
        // In the same order, too, or a transfer could not go on at another donor.
        expect(hex(store.snapshot())).toBe(hex(plain.snapshot()));
        both(during);
        expect(hex(Buffer.concat(collect(store.snapshotChunks() as Iterable<Uint8Array>)))).toBe(hex(plain.snapshot()));
      },
    ),
  );
});

test('while one snapshot is read another one can be had', () => {
  const store = new KeyValueStore();
  store.apply(encodeSet('a', '1'));
  const first = store.snapshotChunks() as Iterable<Uint8Array>;
  store.apply(encodeSet('a', '2'));
  store.apply(encodeSet('b', '3'));
  const second = store.snapshotChunks() as Iterable<Uint8Array>;
  store.apply(encodeDelete('a'));
  const texts = [first, second].map((stream) => {
    const copy = new KeyValueStore();
    copy.restore(Buffer.concat(collect(stream)));
    return ['a', 'b'].map((key) => copy.getText(key));
  });
  expect(texts).toEqual([
    ['1', undefined],
    ['2', '3'],
  ]);
});

test('a snapshot comes back from chunks of any sizes, and takes the place of the state when it is told to', async () => {
  const store = new KeyValueStore();
  for (let index = 0; index < 300; index++) store.apply(encodeSet(`key ${index}`, 'v'.repeat(index * 7)));
  store.apply(encodeSet('large', 'x'.repeat(700_000)));
  const bytes = store.snapshot();
  for (const sizes of [[1, 2, 3, 1000], [7], [64 * 1024], [bytes.length]]) {
    const copy = new KeyValueStore();
    copy.apply(encodeSet('own', 'state'));
    const put = await copy.restoreChunks(cut(bytes, sizes));
    copy.apply(encodeSet('own', 'state, later'));
    expect(copy.getText('own')).toBe('state, later');
    put();
    expect(copy.digest()).toBe(store.digest());
    expect(copy.has('own')).toBe(false);
  }
});

test('chunks that hold no snapshot are refused and change nothing', async () => {
  const store = new KeyValueStore();
  store.apply(encodeSet('a', '1'));
  const bytes = store.snapshot();
  const long = Buffer.concat([bytes, Uint8Array.of(0)]);
  const huge = Buffer.from(bytes);
  huge.writeUInt32LE(VALUE_BYTES_MAX + 1, 12);
  for (const wrong of [bytes.subarray(0, bytes.length - 1), bytes.subarray(0, 5), long, huge, Buffer.alloc(8)]) {
    await expect(store.restoreChunks(cut(wrong, [3]))).rejects.toMatchObject({ code: 'QUORATE_SNAPSHOT_INVALID' });
  }
  expect(store.getText('a')).toBe('1');
});

test('changes that were put aside are moved over a few at a time', () => {
  const values = new ChangesAside();
  for (let index = 0; index < 1000; index++) values.set(`${index}`, 'old');
  const frozen = values.freeze();
  for (let index = 0; index < 1000; index++) values.set(`${index}`, 'new');
  expect([...(frozen?.entries() ?? [])].every(([, value]) => value === 'old')).toBe(true);
  frozen?.release();
  let moved = 0;
  for (let count = 1; count <= 200; count++) {
    values.set('again', `${count}`);
    const base = (values as unknown as { base: Map<string, string> }).base;
    const now = [...base.values()].filter((value) => value === 'new').length;
    expect(now - moved).toBeLessThanOrEqual(16);
    moved = now;
  }
  expect(moved).toBe(1000);
});
