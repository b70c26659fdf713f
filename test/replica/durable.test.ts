import { execFileSync, spawnSync } from 'node:child_process';
import {
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ClassicLevel } from 'classic-level';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { canMountPrivately } from '#lib/cli/nemesis/private-memory.js';
import { whyNoThinDisks } from '#lib/cli/nemesis/thin-disk.js';
import { genesisConfiguration } from '#lib/consensus/configuration.js';
import { type MemberAddress, QuorateError, Replica } from '#lib/index.js';
import { Durability } from '#lib/replica/durable/durability.js';
import { SegmentFiles } from '#lib/replica/durable/segment-files.js';
import { StateStore } from '#lib/replica/durable/state-store.js';
import { runDemo } from '../demo/support/demo-process.ts';
import {
  CommandLog,
  members,
  optionsFor,
  SilentLog,
  type TestCluster,
  waitFor,
  waitForPiecesBriefly,
} from './fixture.ts';
import { runOnSmallDisk } from './small-disk.ts';

const folders: string[] = [];
const clusters: { close(): Promise<void> }[] = [];

function folder(): string {
  const path = mkdtempSync(join(tmpdir(), 'quorate-durable-test-'));
  folders.push(path);
  return path;
}

afterEach(async () => {
  vi.restoreAllMocks();
  for (const cluster of clusters.splice(0)) await cluster.close();
  for (const path of folders.splice(0)) rmSync(path, { recursive: true, force: true });
});

/** The replicas of a durable cluster in this process; `without` stay away. */
async function open(
  list: TestCluster['members'],
  directory: string,
  more: { snapshotAfterBytes?: number; without?: number } = {},
): Promise<TestCluster> {
  const { snapshotAfterBytes = 1024 * 1024, without } = more;
  const machines = list.map(() => new CommandLog());
  const replicas = await Promise.all(
    list
      .filter(({ id }) => id !== without)
      .map(({ id }) =>
        Replica.open(
          optionsFor(id, list, {
            profile: 'relaxed',
            stateMachine: machines[id] as CommandLog,
            durable: { directory: join(directory, `${id}`), snapshotAfterBytes },
          }),
        ),
      ),
  );
  const cluster = {
    members: list,
    replicas,
    machines,
    leader: () => waitFor(() => replicas.find((replica) => replica.status().role === 'leader'), 'a leader'),
    close: async () => {
      await Promise.all(replicas.map((replica) => replica.close()));
    },
  };
  clusters.push(cluster);
  return cluster;
}

async function propose(cluster: TestCluster, from: number, count: number, bytes = 0): Promise<void> {
  const leader = await cluster.leader();
  const texts = Array.from({ length: count }, (_, index) => `command ${from + index}`.padEnd(bytes, '.'));
  await Promise.all(texts.map((text) => leader.propose(Buffer.from(text))));
}

const numbers = (machine: CommandLog): number[] => machine.commands.map((text) => Number.parseInt(text.slice(8), 10));
const upTo = (count: number): number[] => Array.from({ length: count }, (_, index) => index);

describe('a durable cluster', () => {
  test('comes back as the voters that it had, with every acknowledged command, snapshots or not', async () => {
    const [list, directory] = [await members(3), folder()];
    const first = await open(list, directory, { snapshotAfterBytes: 64 * 1024 });
    await propose(first, 0, 100);
    await propose(first, 100, 500, 400); // some snapshots' worth
    await waitFor(
      () => first.replicas.every((replica) => (replica.status().durable?.snapshotLsn ?? 0) > 0),
      'snapshots',
    );
    const { members: before, epoch } = (await first.leader()).status();
    await first.close();

    const second = await open(list, directory, { snapshotAfterBytes: 64 * 1024 });
    const leader = await second.leader();
    expect(leader.status().members.map(({ bootId }) => bootId)).toEqual(before.map(({ bootId }) => bootId));
    expect(Number(leader.status().epoch.split('.')[0])).toBeGreaterThan(Number(epoch.split('.')[0]));
    await propose(second, 600, 10);
    await waitFor(() => second.machines.every(({ commands }) => commands.length === 610), 'all commands everywhere');
    for (const machine of second.machines) expect(numbers(machine)).toEqual(upTo(610));
  });

  test('keeps a session exactly-once across the restart of all', async () => {
    const [list, directory] = [await members(3), folder()];
    const session = { origin: 7, sequence: 1 };
    const first = await open(list, directory);
    await (await first.leader()).propose(Buffer.from('once'), { session });
    await first.close();
    const second = await open(list, directory);
    const again = await (await second.leader()).propose(Buffer.from('once'), { session });
    expect(again.duplicate).toBe(true);
    expect(second.machines.map(({ commands }) => commands)[0]).toEqual(['once']);
  });

  test('goes on while one replica is away, which comes back as the same voter and catches up', async () => {
    const [list, directory] = [await members(3), folder()];
    const first = await open(list, directory);
    await propose(first, 0, 10);
    await first.close();
    const two = await open(list, directory, { without: 2 });
    await propose(two, 10, 300, 200);
    const third = new CommandLog();
    const late = await Replica.open(
      optionsFor(2, list, { profile: 'relaxed', stateMachine: third, durable: { directory: join(directory, '2') } }),
    );
    clusters.push(late);
    await waitFor(() => third.commands.length === 310, 'the late replica to catch up');
    expect(numbers(third)).toEqual(upTo(310));
    expect(late.status()).toMatchObject({ isVoter: true, configurationVersion: 1 });
  });

  test('takes a replica that lost its disk back as another life, with the state of the others', async () => {
    const [list, directory] = [await members(3), folder()];
    const first = await open(list, directory);
    await propose(first, 0, 50);
    const bootId = first.replicas[1]?.status().members[1]?.bootId;
    await first.close();
    rmSync(join(directory, '1'), { recursive: true });
    const second = await open(list, directory);
    await waitFor(() => second.replicas[1]?.status().isVoter, 'the replica to be a voter again');
    await waitFor(() => second.machines[1]?.commands.length === 50, 'its state');
    expect(second.replicas[1]?.status().members[1]?.bootId).not.toBe(bootId);
  });
});

test('a state machine that gives no more of its state is not waited for, and asked again', async () => {
  waitForPiecesBriefly();
  const [list, stateMachine] = [await members(1), new SilentLog()];
  const durable = { directory: folder(), snapshotAfterBytes: 64 * 1024 };
  const replica = await Replica.open(optionsFor(0, list, { stateMachine, durable }));
  clusters.push(replica);
  const warnings: QuorateError[] = [];
  replica.on('warning', (warning) => warnings.push(warning as QuorateError));
  const grow = () => replica.propose(new Uint8Array(10_000).fill(65));
  while (warnings.length < 2) await grow();
  for (const warning of warnings) {
    expect(warning).toMatchObject({
      code: 'QUORATE_SNAPSHOT_FAILED',
      message: expect.stringContaining('snapshotChunks() of the state machine gave neither a piece nor its end'),
    });
  }
  expect(replica.status().durable?.snapshotLsn).toBe(0);
  stateMachine.isSilent = false;
  while (replica.status().durable?.snapshotLsn === 0) await grow();
});

test('a snapshot that a disk which stands still does not take keeps no replica from its end, and its directory from others', async () => {
  const [list, durable] = [await members(1), { directory: folder(), snapshotAfterBytes: 64 * 1024 }];
  const replica = await Replica.open(optionsFor(0, list, { durable }));
  clusters.push(replica);
  const write = StateStore.prototype.write;
  let resume: (() => void) | undefined;
  vi.spyOn(StateStore.prototype, 'write').mockImplementationOnce(async function (this: StateStore, ...all) {
    await new Promise<void>((done) => {
      resume = done;
    });
    return await write.apply(this, all);
  });
  while (resume === undefined) await replica.propose(new Uint8Array(10_000));
  await replica.close();
  const again = () => Replica.open(optionsFor(0, list, { durable }));
  await expect(again()).rejects.toMatchObject({ code: 'QUORATE_STORE_IN_USE' });
  const closed = vi.spyOn(StateStore.prototype, 'close');
  resume();
  await waitFor(() => closed.mock.results.length > 0, 'the use of the directory to end');
  await closed.mock.results[0]?.value;
  const next = await again();
  clusters.push(next);
  expect(next.status().role).toBe('leader');
});

test('a promise that a disk which stands still does not take keeps no replica from its end, and its directory from others', async () => {
  const [list, directory] = [await members(2), folder()];
  const cluster = await open(list, directory);
  const leader = await cluster.leader();
  const other = cluster.replicas[1 - leader.id] as Replica;
  // Whoever opens it in order to write waits until somebody reads.
  const next = join(Durability.promisePath(join(directory, `${leader.id}`)), 'promise.next');
  execFileSync('mkfifo', [next]);
  leader.transferLeadership(other.id).catch(() => {});
  const isAtIt = (thread: string) => readFileSync(`/proc/self/task/${thread}/wchan`, 'utf8') === 'wait_for_partner';
  await waitFor(() => readdirSync('/proc/self/task').some(isAtIt), 'the voter to stand still with its promise');
  await leader.close();
  const options = optionsFor(leader.id, list, {
    profile: 'relaxed',
    durable: { directory: join(directory, `${leader.id}`) },
  });
  await expect(Replica.open(options)).rejects.toMatchObject({ code: 'QUORATE_STORE_IN_USE' });
  const closed = vi.spyOn(StateStore.prototype, 'close');
  const reader = openSync(next, constants.O_RDONLY | constants.O_NONBLOCK);
  await waitFor(() => closed.mock.results.length > 0, 'the use of the directory to end');
  await closed.mock.results[0]?.value;
  closeSync(reader);
  rmSync(next);
  const again = await Replica.open(options);
  clusters.push(again);
  expect(again.status().isVoter).toBe(true);
});

describe('the directory of a durable replica', () => {
  test('belongs to one process at a time, to one replica and to one size of log', async () => {
    const [list, directory] = [await members(3), folder()];
    const cluster = await open(list, directory);
    const durable = { directory: join(directory, '0') };
    await expect(Replica.open(optionsFor(0, list, { durable }))).rejects.toMatchObject({
      code: 'QUORATE_STORE_IN_USE',
    });
    await cluster.close();
    await expect(Replica.open(optionsFor(1, list, { durable }))).rejects.toMatchObject({
      code: 'QUORATE_STORE_MISMATCH',
      message: expect.stringContaining('is that of replica 0'),
    });
    await expect(Replica.open(optionsFor(0, list, { durable, logBytes: 2 * 1024 * 1024 }))).rejects.toMatchObject({
      code: 'QUORATE_STORE_MISMATCH',
      message: expect.stringContaining('logBytes'),
    });
    const file = join(directory, 'a file');
    writeFileSync(file, '');
    await expect(Replica.open(optionsFor(0, list, { durable: { directory: file } }))).rejects.toMatchObject({
      code: 'QUORATE_DISK_FAILED',
    });
  });

  test.each(['durable', 'surviveCrash'])('is refused where none can be made, and waits for nothing (%s)', (option) => {
    // In a process of its own, which could not even be told to end if it looked for that directory for ever.
    const program = `
      import { Replica } from '#lib/index.js';
      const stateMachine = { apply() {}, snapshot() {}, restore() {} };
      const members = [{ id: 0, host: '127.0.0.1', port: 1 }];
      const options = { id: 0, members, clusterKey: 'a cluster key for tests', stateMachine, device: 'shm' };
      await Replica.open({ ...options, ${option}: { directory: '/proc/quorate/x' } }).catch(({ code }) => console.log(code));
    `;
    const { stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', program], { timeout: 20_000 });
    expect(stdout.toString().trim()).toBe(option === 'durable' ? 'QUORATE_DISK_FAILED' : 'QUORATE_SYSTEM');
  });

  test('is no relative one where the process has lost its working directory, in which it opens no replica', () => {
    const [lost, directory] = [folder(), folder()];
    const program = `
      import { rmdirSync } from 'node:fs';
      import { Replica } from '#lib/index.js';
      process.chdir('${lost}');
      rmdirSync('${lost}');
      const stateMachine = { apply() {}, snapshot() {}, restore() {} };
      const members = [{ id: 0, host: '127.0.0.1', port: 1 }];
      const options = { id: 0, members, clusterKey: 'a cluster key for tests', stateMachine, device: 'shm' };
      for (const durable of [{ directory: 'here' }, { directory: '${directory}' }, false]) {
        await Replica.open({ ...options, durable }).catch(({ code, message }) => console.log(code, message));
      }
    `;
    const { stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', program], { timeout: 20_000 });
    const [relative, absolute, none] = stdout.toString().split('\n');
    expect(relative).toMatch(/^QUORATE_SYSTEM durable.directory here is relative.*absolute path/);
    for (const said of [absolute, none]) {
      expect(said).toMatch(/^QUORATE_BACKGROUND_THREAD .*working directory of the process was removed: start it/);
    }
  });

  test('is refused with an error as any other when the background thread cannot store its promise', async () => {
    const [list, directory] = [await members(1), folder()];
    mkdirSync(join(Durability.promisePath(directory), 'promise.next'), { recursive: true });
    const error = await Replica.open(optionsFor(0, list, { durable: { directory } })).catch(
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(QuorateError);
    expect(error).toMatchObject({ code: 'QUORATE_DISK_FAILED', message: expect.stringContaining('EISDIR') });
  });

  test('is refused when the log lost what was synced, and read up to where its end is torn', async () => {
    const [list, directory] = [await members(3), folder()];
    const first = await open(list, directory);
    for (let at = 0; at < 20; at++) await propose(first, at, 1);
    await first.close();
    const log = join(directory, '0', 'log');
    const name = join(log, readdirSync(log).sort().at(-1) as string);
    const bytes = readFileSync(name);

    // A byte in the middle, with groups behind it.
    const damaged = Buffer.from(bytes);
    damaged[256] = (damaged[256] as number) ^ 1;
    writeFileSync(name, damaged);
    const options = optionsFor(0, list, { durable: { directory: join(directory, '0') } });
    await expect(Replica.open(options)).rejects.toMatchObject({
      code: 'QUORATE_LOG_CORRUPT',
      message: expect.stringMatching(/lost entries that had been synced.*remove the directory/s),
    });

    // The end of the last group: as after a loss of power in the middle of it. The others have what it held.
    writeFileSync(name, bytes);
    truncateSync(name, bytes.length - 10);
    const second = await open(list, directory);
    await waitFor(() => second.machines[0]?.commands.length === 20, 'the commands');
    expect(numbers(second.machines[0] as CommandLog)).toEqual(upTo(20));
    expect(second.replicas[0]?.status().configurationVersion).toBe(1);
  });

  test('is refused by the name of the replica when the log in it cannot be read, or cannot be written once more', async () => {
    const [list, directory] = [await members(1), folder()];
    const first = await open(list, directory);
    await propose(first, 0, 1);
    await first.close();
    const own = join(directory, '0');
    const options = optionsFor(0, list, { durable: { directory: own }, openTimeoutMs: 2_000 });
    const full = Object.assign(new Error('ENOSPC: no space left on device, write'), {
      code: 'ENOSPC',
      syscall: 'write',
    });
    vi.spyOn(SegmentFiles.prototype, 'settle').mockImplementationOnce(() => {
      throw full;
    });
    await expect(Replica.open(options)).rejects.toMatchObject({
      code: 'QUORATE_DISK_FULL',
      message: expect.stringContaining('replica 0 cannot'),
      cause: full,
    });
    const log = join(own, 'log');
    const name = join(log, readdirSync(log)[0] as string);
    rmSync(name);
    mkdirSync(name);
    await expect(Replica.open(options)).rejects.toMatchObject({
      code: 'QUORATE_DISK_FAILED',
      message: expect.stringContaining(`replica 0 cannot read its log in ${own}`),
    });
  });

  test('is refused by the name of the replica when the snapshot in it cannot be read', async () => {
    const [list, directory] = [await members(1), folder()];
    const own = join(directory, '0');
    const options = optionsFor(0, list, { durable: { directory: own, snapshotAfterBytes: 64 * 1024 } });
    const first = await Replica.open(options);
    clusters.push(first);
    while (first.status().durable?.snapshotLsn === 0) await first.propose(new Uint8Array(10_000));
    await first.close();
    const failed = Object.assign(new Error('IO error: 000005.ldb: Input/output error'), { code: 'LEVEL_IO_ERROR' });
    vi.spyOn(ClassicLevel.prototype, 'get').mockRejectedValueOnce(failed);
    await expect(Replica.open(options)).rejects.toMatchObject({
      code: 'QUORATE_DISK_FAILED',
      message: expect.stringContaining(`replica 0 cannot read its snapshot in ${own}`),
      cause: failed,
    });
    // What the state machine says of the snapshot is no failure of the disk.
    const refused = new Error('refused by the state machine');
    const stateMachine = Object.assign(new CommandLog(), { restoreChunks: () => Promise.reject(refused) });
    await expect(Replica.open({ ...options, stateMachine })).rejects.toBe(refused);
  });

  test('is refused when the state machine does not take the snapshot, and then its places are its own again', async () => {
    const [list, directory] = [await members(1), folder()];
    const options = optionsFor(0, list, { durable: { directory, snapshotAfterBytes: 64 * 1024 } });
    const first = await Replica.open(options);
    clusters.push(first);
    while (first.status().durable?.snapshotLsn === 0) await first.propose(new Uint8Array(10_000));
    await first.close();
    const refused = new Error('refused by the state machine');
    const aborts: Error[] = [];
    const stateMachine = Object.assign(new CommandLog(), {
      restoreInPlace: () => ({
        next: () => new Uint8Array(1024),
        finish: () => Promise.reject(refused),
        abort: (error: Error) => {
          aborts.push(error);
          throw new Error('it throws in abort(), too');
        },
      }),
    });
    await expect(Replica.open({ ...options, stateMachine })).rejects.toBe(refused);
    expect(aborts).toEqual([refused]);
  });

  test('is refused without the promise that its log shows to have been made, and taken without it before there was one', async () => {
    const [list, directory] = [await members(3), folder()];
    const first = await open(list, directory);
    await propose(first, 0, 1);
    await first.close();
    const own = join(directory, '0');
    rmSync(join(own, 'promise'), { recursive: true });
    const options = optionsFor(0, list, { durable: { directory: own }, openTimeoutMs: 2_000 });
    const refusal = {
      code: 'QUORATE_STORE_INVALID',
      message: expect.stringMatching(/promise.*is gone.*remove the whole directory/s),
    };
    await expect(Replica.open(options)).rejects.toMatchObject(refusal);
    // Nor is what was refused taken the next time.
    await expect(Replica.open(options)).rejects.toMatchObject(refusal);

    rmSync(own, { recursive: true });
    const alone = await Durability.open({ directory: own, id: 0, logBytes: 1024 * 1024, snapshotAfterBytes: 2 ** 20 });
    const { bootId } = alone;
    // As if the process had ended before its background thread wrote the first one.
    await alone.join(genesisConfiguration(7, [{ ...(list[0] as MemberAddress), bootId }]));
    await alone.close();
    const founders = list.slice(0, 1);
    const replica = await Replica.open(optionsFor(0, founders, { durable: { directory: own } }));
    clusters.push(replica);
    expect(replica.status()).toMatchObject({ role: 'leader', clusterId: '7' });
  });

  test('is refused where an earlier promise took the place of the one that its log shows to have been made', async () => {
    const [list, own] = [await members(1), folder()];
    const options = optionsFor(0, list, { durable: { directory: own } });
    const path = join(own, 'promise', 'promise');
    const promises: Buffer[] = [];
    for (let life = 0; life < 2; life++) {
      const replica = await Replica.open(options);
      clusters.push(replica);
      await replica.propose(Buffer.from('command'));
      await replica.close();
      promises.push(readFileSync(path));
    }
    const [earlier, last] = promises as [Buffer, Buffer];
    writeFileSync(path, earlier);
    await expect(Replica.open(options)).rejects.toMatchObject({
      code: 'QUORATE_STORE_INVALID',
      message: expect.stringMatching(/promise.*is gone/),
    });
    writeFileSync(path, last);
    const replica = await Replica.open(options);
    clusters.push(replica);
    expect(replica.status().role).toBe('leader');
  });

  test('must be there at all replicas or at none', async () => {
    const list = await members(2);
    const opened = list.map(({ id }) =>
      Replica.open(optionsFor(id, list, { durable: id === 0 ? { directory: folder() } : false, openTimeoutMs: 2_000 })),
    );
    for (const result of await Promise.allSettled(opened)) {
      expect(result.status).toBe('rejected');
      const { message } = (result as PromiseRejectedResult).reason as Error;
      expect(message).toContain('replica 0 is durable and replica 1 is not');
    }
  });

  test.each([
    [{ directory: '' }, 'directory'],
    [{ directory: 'x', snapshotAfterBytes: 1 }, 'snapshotAfterBytes'],
    ['yes', 'durable'],
  ])('is checked: %j', async (durable, what) => {
    const list = await members(1);
    await expect(Replica.open(optionsFor(0, list, { durable: durable as never }))).rejects.toMatchObject({
      code: 'QUORATE_INVALID_ARGUMENT',
      message: expect.stringContaining(what),
    });
    expect(existsSync('x')).toBe(false);
  });
});

test('rounds of SIGKILL to all replicas under load lose and repeat nothing', { timeout: 120_000 }, async () => {
  const args = ['--rounds', '3', '--ops', '2000', '--seed', '3'];
  const { code, summary, errors } = await runDemo(args, { program: 'power-loss.js', timeoutMs: 110_000 });
  expect(summary, errors).toMatchObject({ rounds: 3, acknowledged: 6000, lost: 0, duplicated: 0, digestsAgree: true });
  expect(code, errors).toBe(0);
});

const canMount = await canMountPrivately();

test.skipIf(!canMount || whyNoThinDisks() !== undefined)(
  'what a process finds in its log outlives the power, although the one before ended before it had synced it',
  { timeout: 60_000 },
  async () => {
    expect(await runOnSmallDisk('unsynced-log.mjs', folder())).toEqual({
      written: 'written',
      found: ['synced', 'written'],
      kept: ['synced', 'written'],
    });
  },
);

test.skipIf(!canMount)(
  'a full disk ends leadership with a clear error, loses nothing, and the replica comes back when there is room',
  { timeout: 60_000 },
  async () => {
    expect(await runOnSmallDisk('disk-full.mjs', folder())).toEqual({
      warning: 'QUORATE_DISK_FULL',
      says: true,
      failure: 'QUORATE_DISK_FULL',
      roleOfTheFull: 'follower',
      anotherLeads: true,
      lost: 0,
      applied: true,
      isVoterAgain: true,
      sameLife: true,
    });
  },
);

test.skipIf(!canMount)(
  'a snapshot that finds no room while more of it is being made is an error of the disk, and none that nobody catches',
  { timeout: 60_000 },
  async () => {
    expect(await runOnSmallDisk('snapshot-without-room.mjs', folder())).toEqual({
      code: 'QUORATE_DISK_FULL',
      unhandled: 0,
      snapshot: null,
    });
  },
);
