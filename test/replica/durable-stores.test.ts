// What a durable replica keeps beside its log: its promise, and who it is with its last snapshot.
import fs, {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ClassicLevel } from 'classic-level';
import { afterAll, afterEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { genesisConfiguration } from '#lib/consensus/configuration.js';
import { makeEpoch } from '#lib/consensus/epoch.js';
import { diskError } from '#lib/replica/durable/disk-error.js';
import { Durability } from '#lib/replica/durable/durability.js';
import { STORE_FORMAT } from '#lib/replica/durable/limits.js';
import { NO_PROMISE, PromiseStore, type StoredPromise } from '#lib/replica/durable/promise-store.js';
import { StateStore, type StoredSnapshot } from '#lib/replica/durable/state-store.js';
import { waitFor } from './fixture.ts';

const root = mkdtempSync(join(tmpdir(), 'quorate-stores-'));
afterEach(() => vi.restoreAllMocks());
afterAll(() => rmSync(root, { recursive: true, force: true }));
let folders = 0;
function folder(): string {
  const path = join(root, `${folders++}`);
  mkdirSync(path);
  return path;
}

const MEBIBYTE = 2 ** 20;
const INVALID = { code: 'QUORATE_STORE_INVALID' };
const FIRST: StoredPromise = { epoch: makeEpoch(3, 1), to: 1, leaseWait_ns: 7_000_000 };
const SECOND: StoredPromise = { epoch: makeEpoch(4, 2), to: 2, leaseWait_ns: 0 };

function promised(directory: string): StoredPromise {
  const store = new PromiseStore(directory);
  try {
    return store.read();
  } finally {
    store.close();
  }
}

function promise(directory: string, value: StoredPromise): void {
  const store = new PromiseStore(directory);
  try {
    store.write(value);
  } finally {
    store.close();
  }
}

describe('the store of a promise', () => {
  test('has the last one that was written, and none at first', () => {
    const directory = folder();
    expect(promised(directory)).toBe(NO_PROMISE);
    promise(directory, FIRST);
    expect(promised(directory)).toEqual(FIRST);
    promise(directory, SECOND);
    expect(promised(directory)).toEqual(SECOND);
  });

  test('is refused if any byte of it is another one, or missing', () => {
    const directory = folder();
    promise(directory, FIRST);
    const path = join(directory, 'promise');
    const sound = readFileSync(path);
    const lineEnd = sound.length - 1;
    for (let at = 0; at < lineEnd; at++) {
      const damaged = Buffer.from(sound);
      damaged[at] = (damaged[at] as number) ^ 1;
      writeFileSync(path, damaged);
      expect(() => promised(directory), `byte ${at}`).toThrow(expect.objectContaining(INVALID));
      writeFileSync(path, sound.subarray(0, at));
      expect(() => promised(directory), `${at} bytes`).toThrow(expect.objectContaining(INVALID));
    }
    writeFileSync(path, sound);
    expect(promised(directory)).toEqual(FIRST);
  });

  test('keeps the promise of before when the next one cannot be written, or is left half-written', () => {
    const directory = folder();
    promise(directory, FIRST);
    const next = join(directory, 'promise.next');
    mkdirSync(next);
    expect(() => promise(directory, SECOND)).toThrow(/EISDIR/);
    expect(promised(directory)).toEqual(FIRST);
    rmSync(next, { recursive: true });
    writeFileSync(next, 'half a');
    expect(promised(directory)).toEqual(FIRST);
    promise(directory, SECOND);
    expect(promised(directory)).toEqual(SECOND);
  });
});

const GENESIS = genesisConfiguration(5, [{ id: 0, bootId: 9, host: '127.0.0.1', port: 7000 }]);
const IDENTITY = { format: STORE_FORMAT, id: 0, bootId: 9, logBytes: 65_536, genesis: GENESIS, epochFloor: 0 };
const POSITION = { lsn: 640, hashLow: 1, hashHigh: 2, epoch: makeEpoch(3, 1) };

function* pieces(count: number, fill: number): Generator<Uint8Array> {
  // One piece is valid until the next one is asked for.
  const piece = new Uint8Array(MEBIBYTE);
  for (let index = 0; index < count; index++) {
    yield piece.fill(fill + index);
    piece.fill(0xff);
  }
}

async function storeSnapshot(store: StateStore, name: number, count: number): Promise<StoredSnapshot> {
  const source = pieces(count, name);
  const written = await store.write(name, () => source.next().value ?? null);
  const snapshot = {
    position: POSITION,
    configuration: GENESIS,
    sessionsBytes: 0,
    isDetached: false,
    name,
    ...written,
  };
  await store.commit(snapshot);
  return snapshot;
}

async function contents(store: StateStore): Promise<number[]> {
  const first = [];
  for await (const piece of store.pieces(store.snapshot() as StoredSnapshot)) {
    first.push(piece.every((byte) => byte === piece[0]) ? (piece[0] as number) : Number.NaN);
  }
  return first;
}

/** Does something to a store behind its back. */
async function tamper(
  path: string,
  change: (database: ClassicLevel<string, Uint8Array>) => Promise<void>,
): Promise<void> {
  const database = new ClassicLevel<string, Uint8Array>(path, { valueEncoding: 'view' });
  await change(database);
  await database.close();
}

async function flip(database: ClassicLevel<string, Uint8Array>, key: string): Promise<void> {
  const value = Uint8Array.from((await database.get(key)) as Uint8Array);
  value[value.length >> 1] = (value[value.length >> 1] as number) ^ 1;
  await database.put(key, value);
}

describe('the store of the state', () => {
  test('has the identity and the last snapshot, piece by piece, when it is opened again', async () => {
    const path = join(folder(), 'state');
    const store = await StateStore.open(path);
    expect([store.identity(), store.snapshot()]).toEqual([null, null]);
    await store.setIdentity(IDENTITY);
    await storeSnapshot(store, 1, 3);
    const snapshot = await storeSnapshot(store, 2, 5);
    await store.close();
    const again = await StateStore.open(path);
    expect(again.identity()).toEqual(IDENTITY);
    expect(again.snapshot()).toEqual(snapshot);
    expect(await contents(again)).toEqual([2, 3, 4, 5, 6]);
    await again.close();
  });

  test('gives back the room of snapshots that another one took the place of, or that came to nothing', async () => {
    const path = join(folder(), 'state');
    const store = await StateStore.open(path);
    const mebibytes = () =>
      readdirSync(path).reduce((sum, name) => sum + statSync(join(path, name)).size, 0) / MEBIBYTE;
    for (let name = 1; name <= 4; name++) await storeSnapshot(store, name, 24);
    expect(mebibytes()).toBeGreaterThan(24);
    // The newest one, and what the store has in its own log.
    expect(mebibytes()).toBeLessThan(2 * 24);
    const source = pieces(24, 0);
    await store.write(5, () => source.next().value ?? null);
    expect(mebibytes()).toBeGreaterThan(2 * 24);
    await store.sweep(4);
    expect(mebibytes()).toBeLessThan(2 * 24);
    expect(await contents(store)).toEqual(Array.from({ length: 24 }, (_, index) => 4 + index));
    await store.close();
  });

  test.each([
    ['a piece that is another one', (database) => flip(database, 'piece/0000000000000001/0000000000000001'), 'differs'],
    ['a missing piece', (database) => database.del('piece/0000000000000001/0000000000000002'), 'piece 2 of 3'],
    ['a record that is another one', (database) => flip(database, 'snapshot'), "record 'snapshot' is damaged"],
  ] as [string, (database: ClassicLevel<string, Uint8Array>) => Promise<void>, string][])(
    'is refused with %s',
    async (_what, change, says) => {
      const path = join(folder(), 'state');
      const store = await StateStore.open(path);
      await storeSnapshot(store, 1, 3);
      await store.close();
      await tamper(path, change);
      const again = await StateStore.open(path);
      await expect((async () => await contents(again))()).rejects.toMatchObject({
        ...INVALID,
        message: expect.stringContaining(says),
      });
      await again.close();
    },
  );

  test('is refused when the store itself finds damage in its files', async () => {
    const path = join(folder(), 'state');
    const store = await StateStore.open(path);
    await storeSnapshot(store, 1, 24);
    await store.close();
    const tables = readdirSync(path).filter((name) => name.endsWith('.ldb'));
    expect(tables.length).toBeGreaterThan(2);
    for (const name of tables) {
      const table = readFileSync(join(path, name));
      writeFileSync(join(path, name), table.fill(0, table.length - 48));
    }
    await expect(
      (async () => {
        const again = await StateStore.open(path);
        await contents(again).finally(() => again.close());
      })(),
    ).rejects.toMatchObject({ ...INVALID, message: expect.stringContaining('not an sstable') });
  });

  test('is refused, or has all that it had, whichever byte of a table is another one', {
    timeout: 120_000,
  }, async () => {
    const path = join(folder(), 'state');
    const store = await StateStore.open(path);
    await store.setIdentity({ ...IDENTITY, genesis: null });
    await store.setIdentity(IDENTITY);
    let snapshot: StoredSnapshot | undefined;
    // The second one has the store put all of it into a table.
    for (const name of [1, 2]) {
      const source = [new Uint8Array(200).fill(name)].values();
      const written = await store.write(name, () => source.next().value ?? null);
      const position = { ...POSITION, lsn: 64 * name };
      snapshot = { position, configuration: GENESIS, sessionsBytes: 0, isDetached: false, name, ...written };
      await store.commit(snapshot);
    }
    await store.close();
    const [table] = readdirSync(path).filter((name) => name.endsWith('.ldb')) as [string];
    const sound = readFileSync(join(path, table));
    let refusals = 0;
    for (let at = 0; at < sound.length; at += 13) {
      const damaged = Buffer.from(sound);
      damaged[at] = (damaged[at] as number) ^ (1 << (at & 7));
      const copy = folder();
      cpSync(path, copy, { recursive: true });
      writeFileSync(join(copy, table), damaged);
      try {
        const again = await StateStore.open(copy);
        try {
          expect([again.identity(), again.snapshot()], `byte ${at}`).toEqual([IDENTITY, snapshot]);
        } finally {
          await again.close();
        }
      } catch (error) {
        expect(error, `byte ${at}`).toMatchObject(INVALID);
        refusals++;
      }
      rmSync(copy, { recursive: true });
    }
    expect(refusals).toBeGreaterThan(0);
  });

  test('is refused when a table ends before its end, wherever that is', async () => {
    const path = join(folder(), 'state');
    const store = await StateStore.open(path);
    await store.setIdentity(IDENTITY);
    await storeSnapshot(store, 1, 1);
    await store.close();
    const tables = readdirSync(path).filter((name) => name.endsWith('.ldb'));
    expect(tables.length).toBeGreaterThan(0);
    for (const name of tables) {
      const sound = readFileSync(join(path, name));
      for (const bytes of [0, 47, 48, 4096, sound.length >> 1, sound.length - 49, sound.length - 1]) {
        const copy = folder();
        cpSync(path, copy, { recursive: true });
        writeFileSync(join(copy, name), sound.subarray(0, bytes));
        const found = (async () => {
          const again = await StateStore.open(copy);
          await (async () => [again.identity(), await contents(again)])().finally(() => again.close());
        })();
        await expect(found, `${name} of ${bytes} bytes`).rejects.toMatchObject(INVALID);
        rmSync(copy, { recursive: true });
      }
    }
  });

  test('is refused for a damaged table also where it would make another one of it as soon as it is open', async () => {
    const path = join(folder(), 'state');
    const tables = () => readdirSync(path).filter((name) => name.endsWith('.ldb'));
    // A table of each, and when there are four the store makes one of them.
    for (const identity of [{ ...IDENTITY, genesis: null }, IDENTITY, null, null]) {
      const store = await StateStore.open(path);
      if (identity !== null) await store.setIdentity(identity);
      const source = [new Uint8Array(200)].values();
      await store.write(1, () => source.next().value ?? null);
      await store.close();
    }
    const second = join(path, tables()[1] as string);
    const sound = readFileSync(second);
    const damaged = Buffer.from(sound);
    damaged[sound.indexOf('identity')] = 'j'.charCodeAt(0);
    writeFileSync(second, damaged);
    const open = ClassicLevel.prototype.open;
    vi.spyOn(ClassicLevel.prototype, 'open').mockImplementation(async function (this: ClassicLevel, options) {
      await open.call(this, options);
      await waitFor(() => tables().length === 1, 'one table');
    });
    for (let attempt = 0; attempt < 2; attempt++) {
      await expect(StateStore.open(path).then((store) => store.identity())).rejects.toMatchObject({
        ...INVALID,
        message: expect.stringContaining(`${tables()[1]} is damaged`),
      });
      expect(readFileSync(second)).toEqual(damaged);
    }
    writeFileSync(second, sound);
    const store = await StateStore.open(path);
    expect(store.identity()).toEqual(IDENTITY);
    await store.close();
  });

  test('is not refused for a table that it does not need, which a loss of power left unfinished', async () => {
    const path = join(folder(), 'state');
    const store = await StateStore.open(path);
    await store.setIdentity(IDENTITY);
    await store.close();
    await (await StateStore.open(path)).close();
    const [table] = readdirSync(path).filter((name) => name.endsWith('.ldb')) as [string];
    const unfinished = readFileSync(join(path, table)).fill(0, 0, 100);
    writeFileSync(join(path, '000099.ldb'), unfinished);
    const again = await StateStore.open(path);
    expect(again.identity()).toEqual(IDENTITY);
    await again.close();
    expect(readdirSync(path).filter((name) => name.startsWith('000099'))).toEqual([]);
  });

  test('has no snapshot in force that it could not put into a table', async () => {
    const path = join(folder(), 'state');
    const store = await StateStore.open(path);
    await store.setIdentity(IDENTITY);
    const inTheWay = Array.from({ length: 100 }, (_, number) => join(path, `${String(number).padStart(6, '0')}.ldb`));
    const { compactRange } = ClassicLevel.prototype;
    vi.spyOn(ClassicLevel.prototype, 'compactRange').mockImplementation(async function (this: ClassicLevel, ...range) {
      for (const name of inTheWay) mkdirSync(name, { recursive: true });
      await compactRange.apply(this, range);
    });
    await expect(storeSnapshot(store, 1, 1)).rejects.toMatchObject({ message: expect.stringContaining('directory') });
    await store.close();
    for (const name of inTheWay) rmSync(name, { recursive: true });
  });

  test.each([
    ['its first snapshot', IDENTITY, (store: StateStore, snapshot: StoredSnapshot) => store.commit(snapshot)],
    [
      'another cluster',
      { ...IDENTITY, bootId: 10, epochFloor: POSITION.epoch },
      (store: StateStore, snapshot: StoredSnapshot) =>
        store.become({ ...IDENTITY, bootId: 10, epochFloor: POSITION.epoch }, snapshot),
    ],
  ])(
    'never is what it was before %s, whatever is damaged in the files that it wrote',
    {
      timeout: 120_000,
    },
    async (_what, identity, putInForce) => {
      const path = join(folder(), 'state');
      const first = await StateStore.open(path);
      await first.setIdentity(IDENTITY);
      await first.close();
      const store = await StateStore.open(path);
      const source = [new Uint8Array(200)].values();
      const written = await store.write(1, () => source.next().value ?? null);
      const common = { position: POSITION, configuration: GENESIS, sessionsBytes: 0, isDetached: false, name: 1 };
      const snapshot = { ...common, ...written };
      await putInForce(store, snapshot);
      await store.close();
      const damages = readdirSync(path)
        .filter((name) => name.endsWith('.log') || name.startsWith('MANIFEST'))
        .flatMap((name) => {
          const sound = readFileSync(join(path, name));
          return Array.from({ length: Math.ceil(sound.length / 7) }, (_, index) => {
            const at = index * 7;
            const flipped = Buffer.from(sound);
            flipped[at] = (flipped[at] as number) ^ 1;
            const cut = sound.subarray(0, at);
            return [
              { name, what: `byte ${at} is another one`, bytes: flipped },
              { name, what: `it ends at byte ${at}`, bytes: cut },
            ];
          }).flat();
        });
      for (const { name, what, bytes } of damages) {
        const copy = folder();
        cpSync(path, copy, { recursive: true });
        writeFileSync(join(copy, name), bytes);
        try {
          const again = await StateStore.open(copy);
          try {
            // One that knows nobody is refused by whoever finds a promise or a log beside it.
            const known = again.identity();
            if (known !== null) expect([known, again.snapshot()], `${name}: ${what}`).toEqual([identity, snapshot]);
          } finally {
            await again.close();
          }
        } catch (error) {
          expect(error, `${name}: ${what}`).toMatchObject(INVALID);
        }
        rmSync(copy, { recursive: true });
      }
    },
  );
});

describe('the directory of a durable replica', () => {
  const options = (directory: string) => ({ directory, id: 0, logBytes: 65_536, snapshotAfterBytes: MEBIBYTE });

  async function filled(): Promise<string> {
    const directory = folder();
    const durability = await Durability.open(options(directory));
    await durability.join(GENESIS);
    await durability.close();
    promise(Durability.promisePath(directory), FIRST);
    return directory;
  }

  test.each([
    [
      'that has lost whose it is',
      (state: string) => rmSync(state, { recursive: true }),
      'lost whose directory this is',
    ],
    [
      'whose store is damaged',
      (state: string) => {
        for (const name of readdirSync(state)) {
          if (name.startsWith('MANIFEST')) writeFileSync(join(state, name), 'no manifest');
        }
      },
      'cannot be used',
    ],
    [
      'of an earlier version',
      (state: string) => {
        rmSync(state, { recursive: true });
        mkdirSync(state);
        writeFileSync(join(state, 'data.mdb'), '');
      },
      `it has format 1, this version reads ${STORE_FORMAT}`,
    ],
  ])('is refused, and left alone, if it is one %s', async (_what, change, says) => {
    const directory = await filled();
    change(join(directory, 'state'));
    await expect(Durability.open(options(directory))).rejects.toMatchObject({
      ...INVALID,
      message: expect.stringContaining(says),
    });
    expect(promised(Durability.promisePath(directory))).toEqual(FIRST);
    expect(existsSync(join(directory, 'log'))).toBe(true);
  });

  test.each([
    ['a promise', (directory: string) => promise(Durability.promisePath(directory), FIRST)],
    ['a log', (directory: string) => writeFileSync(join(directory, 'log', '0000000001.log'), '')],
  ])('is refused where it has lost which cluster it is of, and has %s', async (_what, leave) => {
    const directory = folder();
    const durability = await Durability.open(options(directory));
    // What the background thread writes before there is anything to promise.
    promise(Durability.promisePath(directory), NO_PROMISE);
    await durability.join(GENESIS);
    await durability.close();
    // The store takes what it wrote last for torn, and has what it wrote before that: a replica of no cluster yet.
    for (const name of readdirSync(join(directory, 'state')).filter((one) => one.endsWith('.log'))) {
      const path = join(directory, 'state', name);
      const written = readFileSync(path);
      written[written.length - 1] = (written.at(-1) as number) ^ 1;
      writeFileSync(path, written);
    }
    const again = await Durability.open(options(directory));
    expect(again.genesis).toBe(null);
    await again.close();
    leave(directory);
    await expect(Durability.open(options(directory)).then(({ genesis }) => genesis)).rejects.toMatchObject({
      ...INVALID,
      message: expect.stringContaining('lost which cluster'),
    });
  });

  test.each([
    ['that it makes', () => {}],
    ['that an earlier process made, which ended then', (above: string) => mkdirSync(above, { recursive: true })],
  ])('is on disk when it is open, with all directories above it %s', async (_which, prepare) => {
    const root = folder();
    const above = join(root, 'a', 'b');
    prepare(above);
    const { openSync, fsyncSync } = fs;
    const [paths, synced] = [new Map<number, unknown>(), new Set<unknown>()];
    onTestFinished(() => {
      Object.assign(fs, { openSync, fsyncSync });
      syncBuiltinESMExports();
    });
    fs.openSync = (path, ...rest) => {
      const descriptor = openSync(path, ...rest);
      paths.set(descriptor, path);
      return descriptor;
    };
    fs.fsyncSync = (descriptor) => {
      synced.add(paths.get(descriptor));
      fsyncSync(descriptor);
    };
    syncBuiltinESMExports();
    const durability = await Durability.open(options(join(above, 'c')));
    await durability.close();
    for (const path of [root, join(root, 'a'), above, join(above, 'c')]) expect([...synced]).toContain(path);
  });

  test('is the same life after each start', async () => {
    const directory = await filled();
    const first = await Durability.open(options(directory));
    const { bootId, promise: kept, genesis } = first;
    await first.close();
    const second = await Durability.open(options(directory));
    expect([second.bootId, second.promise, second.genesis]).toEqual([bootId, kept, genesis]);
    expect([kept, genesis]).toEqual([FIRST, GENESIS]);
    await second.close();
  });
});

describe('a disk that takes no more', () => {
  const refused = (syscall: string, code: string) =>
    diskError(
      0,
      '/d',
      'write its log',
      Object.assign(new Error(`${code}: no space left on device, ${syscall}`), { code, syscall }),
    );

  test.each([
    ['write', 'ENOSPC', 'QUORATE_DISK_FULL', /: make room on that file system, then start/],
    // What could be allocated and not be written is the device's affair, which may have lost more than that.
    ['fdatasync', 'ENOSPC', 'QUORATE_DISK_FULL', /: make room on its device and clear the directory, then start/],
    ['fdatasync', 'EIO', 'QUORATE_DISK_FAILED', /replace the disk or clear the directory, then start/],
    ['write', 'EDQUOT', 'QUORATE_DISK_FULL', /: make room on that file system, then start/],
  ])('is told by what %s says (%s)', (syscall, code, expected, remedy) => {
    expect(refused(syscall, code)).toMatchObject({ code: expected, message: expect.stringMatching(remedy) });
  });
});

describe('a directory that cannot be used', () => {
  const remedy =
    /: see to the path, and to who may read and write there, then start the replica again; what is there is unharmed$/;

  test('since another user owns it is not to be cleared', () => {
    const denied = Object.assign(new Error("EACCES: permission denied, open '/d/lock'"), {
      code: 'EACCES',
      syscall: 'open',
    });
    const error = diskError(0, '/d', 'open its store', denied);
    expect(error).toMatchObject({ code: 'QUORATE_DISK_FAILED', message: expect.stringMatching(remedy) });
  });

  test.each([
    ['EMFILE', { code: 'EMFILE', message: "EMFILE: too many open files, open '/d/log/0000000002.log'" }],
    ['ENFILE', { code: 'ENFILE', message: "ENFILE: file table overflow, open '/d/promise/promise.next'" }],
    ['the store', { code: 'LEVEL_IO_ERROR', message: 'IO error: /d/state/000009.log: Too many open files' }],
  ])('since too many files are open is not to be cleared (%s)', (_who, { code, message }) => {
    const error = diskError(0, '/d', 'write its log', Object.assign(new Error(message), { code, syscall: 'open' }));
    expect(error).toMatchObject({
      code: 'QUORATE_DISK_FAILED',
      message: expect.stringMatching(/: .*ulimit -n.*, then start the replica again; what is there is unharmed$/),
    });
  });

  test('since a file is in its place is not taken for a disk that failed', async () => {
    const file = join(folder(), 'file');
    writeFileSync(file, '');
    const opened = Durability.open({
      directory: join(file, '0'),
      id: 0,
      logBytes: MEBIBYTE,
      snapshotAfterBytes: MEBIBYTE,
    });
    await expect(opened).rejects.toMatchObject({
      code: 'QUORATE_DISK_FAILED',
      message: expect.stringMatching(remedy),
    });
  });
});
