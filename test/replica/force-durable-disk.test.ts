import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { canMountPrivately } from '#lib/cli/nemesis/private-memory.js';
import { makeEpoch } from '#lib/consensus/epoch.js';
import { ReplicationPlane } from '#lib/consensus/replication-plane.js';
import { bestSurvivor, Replica } from '#lib/index.js';
import { Durability } from '#lib/replica/durable/durability.js';
import { PromiseStore } from '#lib/replica/durable/promise-store.js';
import { SegmentFiles } from '#lib/replica/durable/segment-files.js';
import { StateStore } from '#lib/replica/durable/state-store.js';
import { CommandLog, members, optionsFor, SilentLog, waitFor, waitForPiecesBriefly } from './fixture.ts';
import { runOnSmallDisk } from './small-disk.ts';

const ACCEPTED = { iUnderstandThatAcknowledgedCommandsMayBeLost: true } as const;
const LOG_BYTES = 64 * 1024;

vi.setConfig({ testTimeout: 120_000 });

const folders: string[] = [];
const replicas: Replica<number>[] = [];

function folder(): string {
  const path = mkdtempSync(join(tmpdir(), 'quorate-durable-fork-'));
  folders.push(path);
  return path;
}

afterEach(async () => {
  vi.restoreAllMocks();
  await Promise.all(replicas.splice(0).map((replica) => replica.close()));
  for (const path of folders.splice(0)) rmSync(path, { recursive: true, force: true });
});

interface Cluster {
  readonly list: Awaited<ReturnType<typeof members>>;
  readonly directory: string;
  readonly machines: readonly CommandLog[];
  readonly replicas: readonly Replica<number>[];
  readonly leader: Replica<number>;
  /** A follower. */
  readonly survivor: Replica<number>;
  readonly machine: CommandLog;
}

const durable = (directory: string, id: number) => ({ durable: { directory: join(directory, `${id}`) } });

async function open(count = 3): Promise<Cluster> {
  const [list, directory] = [await members(count), folder()];
  const machines = list.map(() => new CommandLog());
  const opened = await Promise.all(
    list.map(({ id }) =>
      Replica.open(
        optionsFor(id, list, {
          profile: 'relaxed',
          logBytes: LOG_BYTES,
          stateMachine: machines[id] as CommandLog,
          ...durable(directory, id),
        }),
      ),
    ),
  );
  replicas.push(...opened);
  const leader = await waitFor(() => opened.find((replica) => replica.status().role === 'leader'), 'a leader');
  const survivor = opened.find((replica) => replica !== leader) as Replica<number>;
  return {
    list,
    directory,
    machines,
    replicas: opened,
    leader,
    survivor,
    machine: machines[survivor.id] as CommandLog,
  };
}

/** Only the survivor is left, and knows it. */
async function leaveAlone({ replicas: all, survivor }: Cluster): Promise<void> {
  await Promise.all(all.map((replica) => replica === survivor || replica.close()));
  const isAlone = () =>
    survivor.status().role === 'follower' && survivor.status().peers.every(({ trusted }) => !trusted);
  await waitFor(isAlone, 'the survivor to be alone');
}

/** A cluster that has executed five commands, and lost all but one. */
async function alone(): Promise<Cluster> {
  const cluster = await open();
  for (let count = 0; count < 5; count++) await cluster.leader.propose(Buffer.from(`command ${count}`));
  await waitFor(() => cluster.machine.commands.length === 5, 'the survivor to hold all');
  await leaveAlone(cluster);
  return cluster;
}

async function force(survivor: Replica<number>): Promise<Replica<number>> {
  const forced = await Replica.forceNewCluster(survivor, ACCEPTED);
  replicas.push(forced);
  return forced;
}

/** Asks again for as long as a write is under way. */
async function forceWhenQuiet(survivor: Replica<number>): Promise<Replica<number>> {
  for (;;) {
    try {
      return await force(survivor);
    } catch (error) {
      if (!/under way/.test((error as Error).message)) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Which cluster the directory of the survivor is of, and what it holds; all of that where it can lead. */
async function lookAt(
  { list, directory, survivor }: Cluster,
  waitForLeader = false,
): Promise<{ clusterId: string; commands: string[] }> {
  const stateMachine = new CommandLog();
  const options = { profile: 'relaxed', logBytes: LOG_BYTES, stateMachine, waitForLeader } as const;
  const replica = await Replica.open(optionsFor(survivor.id, list, { ...options, ...durable(directory, survivor.id) }));
  const { clusterId } = replica.status();
  await replica.close();
  return { clusterId: clusterId as string, commands: stateMachine.commands };
}

const failure = () => Object.assign(new Error('Input/output error'), { code: 5 });
const FIVE = [0, 1, 2, 3, 4].map((count) => `command ${count}`);

describe('forcing a new cluster from a durable replica', () => {
  test.each([
    ['a piece of the state cannot be written', 'write', 'QUORATE_DISK_FAILED', () => Promise.reject(failure())],
    ['the new cluster cannot be put in force', 'become', 'QUORATE_DISK_FAILED', () => Promise.reject(failure())],
  ] as const)('leaves the directory as it was where %s, and is tried again', async (_what, method, code, fail) => {
    const cluster = await alone();
    const { clusterId } = cluster.survivor.status();
    vi.spyOn(StateStore.prototype, method as 'become').mockImplementationOnce(fail);
    await expect(force(cluster.survivor)).rejects.toMatchObject({
      code,
      message: expect.stringMatching(/wholly of the old cluster.*call forceNewCluster\(\) again/s),
    });
    expect(cluster.machine.commands).toEqual(FIVE);
    // What was applied before the last entry said that it was committed.
    const held = await lookAt(cluster);
    expect(held.clusterId).toBe(clusterId);
    expect(FIVE.slice(0, held.commands.length)).toEqual(held.commands);
    const forced = await force(cluster.survivor);
    await forced.propose(Buffer.from('last'));
    await forced.close();
    expect(await lookAt(cluster, true)).toEqual({ clusterId: forced.status().clusterId, commands: [...FIVE, 'last'] });
  });

  test('leaves the directory as it was where the state machine gives no snapshot, and is tried again', async () => {
    const cluster = await alone();
    const { clusterId } = cluster.survivor.status();
    vi.spyOn(cluster.machine, 'snapshot').mockImplementationOnce(() => {
      throw new Error('not now');
    });
    await expect(force(cluster.survivor)).rejects.toMatchObject({
      code: 'QUORATE_SNAPSHOT_FAILED',
      message: expect.stringContaining('not now'),
    });
    expect((await lookAt(cluster)).clusterId).toBe(clusterId);
    const forced = await force(cluster.survivor);
    expect(forced.status().clusterId).not.toBe(clusterId);
  });

  test('leaves the directory as it was where the state machine gives no more of its state, and is tried again', async () => {
    const cluster = await alone();
    const { clusterId } = cluster.survivor.status();
    const silent = new SilentLog();
    silent.commands = cluster.machine.commands;
    Object.assign(cluster.machine, { snapshotChunks: () => silent.snapshotChunks() });
    waitForPiecesBriefly();
    await expect(force(cluster.survivor)).rejects.toMatchObject({
      code: 'QUORATE_SNAPSHOT_FAILED',
      message: expect.stringContaining('gave neither a piece nor its end'),
    });
    expect((await lookAt(cluster)).clusterId).toBe(clusterId);
    silent.isSilent = false;
    const forced = await force(cluster.survivor);
    expect(forced.status().clusterId).not.toBe(clusterId);
  });

  test('goes on with the cluster that was put in force, if what comes behind that fails', async () => {
    const cluster = await alone();
    const become = StateStore.prototype.become;
    const put = vi.spyOn(StateStore.prototype, 'become').mockImplementationOnce(async function (
      this: StateStore,
      ...all
    ) {
      await become.apply(this, all);
      throw failure();
    });
    await expect(force(cluster.survivor)).rejects.toMatchObject({ code: 'QUORATE_DISK_FAILED' });
    const { clusterId, commands } = await lookAt(cluster);
    expect(clusterId).not.toBe(cluster.survivor.status().clusterId);
    expect(commands).toEqual(FIVE);
    // Then somebody else has its port for a while.
    const { port } = cluster.list[cluster.survivor.id] as { port: number };
    const server = createServer().listen(port, '127.0.0.1');
    await once(server, 'listening');
    await expect(force(cluster.survivor)).rejects.toMatchObject({ code: 'QUORATE_ADDRESS_IN_USE' });
    await new Promise((done) => server.close(done));
    expect(cluster.machine.commands).toEqual(FIVE);
    const forced = await force(cluster.survivor);
    expect(put).toHaveBeenCalledTimes(1);
    expect(forced.status().clusterId).toBe(clusterId);
    const session = { origin: 9, sequence: 1 };
    expect(await forced.propose(Buffer.from('last'), { session })).toMatchObject({ result: 6 });
    expect(cluster.machine.commands).toEqual([...FIVE, 'last']);
  });

  test('does not read the snapshot back into a state machine that holds the state', async () => {
    const cluster = await alone();
    const restore = vi.spyOn(cluster.machine, 'restore');
    const forced = await force(cluster.survivor);
    expect(restore).not.toHaveBeenCalled();
    expect(await forced.propose(Buffer.from('last'))).toMatchObject({ result: 6 });
  });

  test('is refused once it has succeeded, whatever became of the new replica', async () => {
    const cluster = await alone();
    const forced = await force(cluster.survivor);
    const refused = { code: 'QUORATE_CLOSED', message: expect.stringMatching(/already/) };
    await forced.propose(Buffer.from('last'));
    await forced.close();
    const again = force(cluster.survivor);
    await expect(again.then(() => cluster.machine.commands)).rejects.toMatchObject(refused);
    expect(cluster.machine.commands).toEqual([...FIVE, 'last']);
    expect((await lookAt(cluster, true)).commands).toEqual([...FIVE, 'last']);
  });

  test('is refused where another life has the directory by now', async () => {
    const cluster = await alone();
    vi.spyOn(StateStore.prototype, 'become').mockImplementationOnce(() => Promise.reject(failure()));
    await expect(force(cluster.survivor)).rejects.toMatchObject({ code: 'QUORATE_DISK_FAILED' });
    // Somebody starts it on its directory, and forces that one.
    const { list, directory, survivor } = cluster;
    const other = await Replica.open(
      optionsFor(survivor.id, list, {
        profile: 'relaxed',
        logBytes: LOG_BYTES,
        waitForLeader: false,
        ...durable(directory, survivor.id),
      }),
    );
    const forced = await force(other);
    await forced.close();
    await expect(force(cluster.survivor)).rejects.toMatchObject({ code: 'QUORATE_STORE_MISMATCH' });
    expect((await lookAt(cluster)).clusterId).toBe(forced.status().clusterId);
  });

  test('stores no snapshot for the old cluster of what only the new one takes for committed', async () => {
    const cluster = await alone();
    const commit = vi.spyOn(StateStore.prototype, 'commit');
    const { commitWholeLog } = ReplicationPlane.prototype;
    vi.spyOn(ReplicationPlane.prototype, 'commitWholeLog').mockImplementationOnce(function (this: ReplicationPlane) {
      // One has become due in this very turn.
      const { durability } = cluster.survivor as unknown as { durability: Durability };
      Object.assign(durability, { bytesAtSnapshot: Number.NEGATIVE_INFINITY });
      durability.look();
      commitWholeLog.call(this);
    });
    const forced = await force(cluster.survivor);
    expect(commit).not.toHaveBeenCalled();
    expect(forced.status().role).toBe('leader');
  });

  test('takes an empty directory in the place of one that failed', async () => {
    const cluster = await alone();
    const { directory, survivor } = cluster;
    vi.spyOn(StateStore.prototype, 'write').mockImplementationOnce(() => Promise.reject(failure()));
    await expect(force(survivor)).rejects.toMatchObject({ code: 'QUORATE_DISK_FAILED' });
    rmSync(join(directory, `${survivor.id}`), { recursive: true });
    const forced = await force(survivor);
    const { clusterId } = forced.status();
    await forced.close();
    expect(await lookAt(cluster, true)).toEqual({ clusterId, commands: FIVE });
  });

  test('keeps what a disk that stands still has not taken, and waits until no write to the old log can land', async () => {
    const cluster = await open();
    const { leader, survivor, machine, directory } = cluster;
    const append = SegmentFiles.prototype.append;
    let resume: (() => void) | undefined;
    vi.spyOn(SegmentFiles.prototype, 'append').mockImplementation(function (this: SegmentFiles, ...all) {
      const isSurvivor = (this as unknown as { directory: string }).directory.startsWith(
        join(directory, `${survivor.id}`),
      );
      if (!isSurvivor || resume !== undefined) {
        append.apply(this, all);
        return;
      }
      (this as unknown as { isWriting_: boolean }).isWriting_ = true;
      resume = () => append.apply(this, all);
    });
    // More than a ring behind the write that stands still, so that what is applied cannot be all that is there.
    for (let count = 0; survivor.status().tailLsn - survivor.status().appliedLsn < LOG_BYTES / 4; count++) {
      await leader.propose(Buffer.from(`command ${count}`.padEnd(1000, '.')));
    }
    await leaveAlone(cluster);
    const { tailLsn, appliedLsn } = survivor.status();
    expect(tailLsn).toBeGreaterThan(appliedLsn);
    await expect(force(survivor)).rejects.toMatchObject({
      code: 'QUORATE_DISK_FAILED',
      message: expect.stringContaining('under way'),
    });
    resume?.();
    const forced = await forceWhenQuiet(survivor);
    expect(forced.status().durable?.snapshotLsn).toBeGreaterThanOrEqual(tailLsn);
    const numbers = machine.commands.map((text) => Number.parseInt(text.slice(8), 10));
    expect(numbers).toEqual(numbers.map((_, index) => index));
    await forced.close();
    expect((await lookAt(cluster, true)).commands).toEqual(machine.commands);
  });
});

test('a promise of the old cluster is no vote in the new one, and promises of the new one are kept', async () => {
  const cluster = await alone();
  const { directory, survivor } = cluster;
  const own = join(directory, `${survivor.id}`);
  const forced = await force(survivor);
  await forced.close();
  const storeOptions = { directory: own, id: survivor.id, logBytes: LOG_BYTES, snapshotAfterBytes: 1024 * 1024 };
  const promised = async (): Promise<{ epoch: number; to: number }> => {
    const store = await Durability.open(storeOptions);
    const { promise } = store;
    await store.close();
    return promise;
  };
  const inForce = await promised();
  expect(inForce.epoch).toBeGreaterThan(makeEpoch(2 ** 16, 1));
  expect(inForce.to).toBe(survivor.id);
  // As if the process had ended before the new life wrote a promise.
  const promises = new PromiseStore(join(own, 'promise'));
  promises.write({ epoch: makeEpoch(40, 2), to: 2, leaseWait_ns: 7 });
  promises.close();
  expect(await promised()).toEqual({ epoch: 0, to: -1, leaseWait_ns: 0 });
});

test('survivors that are opened without a leader can be compared', async () => {
  const cluster = await open();
  for (let count = 0; count < 20; count++) await cluster.leader.propose(Buffer.from(`command ${count}`));
  await Promise.all(cluster.replicas.map((replica) => replica.close()));
  const { list, directory } = cluster;
  const look = async (id: number) => {
    const options = { profile: 'relaxed', logBytes: LOG_BYTES, waitForLeader: false } as const;
    const replica = await Replica.open(optionsFor(id, list, { ...options, ...durable(directory, id) }));
    const status = replica.status();
    await replica.close();
    return status;
  };
  const before = cluster.leader.status();
  const leader = await look(cluster.leader.id);
  expect(leader).toMatchObject({ role: 'follower', tailLsn: before.tailLsn, tailEpoch: before.tailEpoch });
  const followers = cluster.replicas.filter((one) => one !== cluster.leader);
  const others = [];
  for (const { id } of followers) others.push(await look(id));
  expect(bestSurvivor([...others, leader]).tailLsn).toBe(before.tailLsn);
  await expect(
    Replica.open(optionsFor(0, list, { waitForLeader: 'no' as never, ...durable(directory, 0) })),
  ).rejects.toMatchObject({ code: 'QUORATE_INVALID_ARGUMENT' });
});

const canMount = await canMountPrivately();

test.skipIf(!canMount)(
  'a store that finds only a part of its room says that the disk is full, and ends nothing',
  async () => {
    expect(await runOnSmallDisk('store-full.mjs', folder())).toEqual({
      code: 'QUORATE_DISK_FULL',
      refused: true,
      before: 'kept',
      after: 'written',
    });
  },
);

test.skipIf(!canMount)(
  'a survivor on a full disk is forced when there is room, with what only its memory has',
  async () => {
    expect(await runOnSmallDisk('disk-full-fork.mjs', folder())).toEqual({
      failure: 'QUORATE_DISK_FULL',
      refused: 'QUORATE_DISK_FULL',
      says: true,
      directoryIsTheOldOne: true,
      isAnotherCluster: true,
      failureAfterwards: null,
      kept: true,
      sameCluster: true,
    });
  },
);
