// A replica whose process is killed and started again gets most of its state back from what outlived the process, and only
// the rest from others; whatever is wrong with what outlived it, it comes back all the same. Real processes, on shm.
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, it, onTestFinished, vi } from 'vitest';
import { genesisConfiguration } from '#lib/consensus/configuration.js';
import { chainBeginning } from '#lib/consensus/entry.js';
import { QuorateError, Replica } from '#lib/index.js';
import { CrashSurvival, type CrashSurvivalHost } from '#lib/replica/recovery/crash-survival.js';
import { Recovery, type RecoveryHost } from '#lib/replica/recovery/recovery.js';
import { Donor } from '#lib/replica/transfer/donor.js';
import { SnapshotSink } from '#lib/replica/transfer/snapshot-stream.js';
import { checksum } from '#lib/verbs/checksum.js';
import { CommandLog, members, optionsFor } from './fixture.js';
import { Processes, type Report } from './processes.js';

const never = new Promise<never>(() => {});
const LOG_BYTES = 2 * 1024 * 1024;
/** Keys of 4 KiB: a state of 6 MiB, three times the ring. */
const KEYS = 1536;
const STATE_BYTES = KEYS * 4096;

// Processes start slowly where others keep the processors busy; what is waited for has limits of its own.
vi.setConfig({ testTimeout: 120_000 });

let processes: Processes;
afterEach(() => processes?.close());

const ofRegions = (warnings: Report['warnings']) =>
  warnings.map(({ code }) => code).filter((code) => /REGION/.test(code));

async function found(): Promise<{ leader: Report; victim: number; start: (id: number) => Promise<void> }> {
  processes = new Processes({ logBytes: LOG_BYTES, profile: 'relaxed' });
  const { directory } = processes;
  const places = await members(3);
  const more = { surviveCrash: { directory } };
  await processes.found(places, more);
  await processes.leader(3);
  await processes.fill({ from: 0, count: KEYS, round: 1 });
  await processes.until(async () => {
    return (await processes.reports()).every(({ region }) => region?.isUsable);
  }, 'snapshots to come back to');
  const leader = await processes.leader(3);
  const victim = leader.voters.find((id) => id !== leader.id) as number;
  return { leader, victim, start: (id) => processes.start(id, { members: places, ...more }) };
}

/** The region of a replica that was killed. */
function regionOf(id: number): string {
  const name = readdirSync(processes.directory).find((one) => one.endsWith(`-${id}`));
  return join(processes.directory, name as string);
}

it('a killed replica comes back by its own region, and only what it missed is read from others', async () => {
  const { leader, victim, start } = await found();
  for (const id of processes.ids) await processes.ask(id, 'load'); // whoever leads
  await processes.until(async () => (await processes.report(victim)).region?.isUsable, 'the snapshot under load');
  await processes.kill(victim);
  const region = regionOf(victim);
  expect(statSync(region).mode & 0o777).toBe(0o700);
  for (const name of readdirSync(region)) expect(statSync(join(region, name)).mode & 0o777).toBe(0o600);
  await start(victim);
  const { recovery, warnings, transfers, bootIdBefore } = await processes.until(async () => {
    const report = await processes.report(victim);
    return report.isVoter && { ...report, bootIdBefore: leader.members.find(({ id }) => id === victim)?.bootId };
  }, 'the replica to be a voter again');
  expect(ofRegions(warnings)).toEqual([]);
  expect(recovery).toMatchObject({ stage: 'done' });
  expect(recovery?.reason).toBeUndefined();
  expect(recovery?.donor).not.toBe(victim);
  expect(recovery?.localBytes).toBeGreaterThan(STATE_BYTES);
  expect(recovery?.remoteBytes).toBeGreaterThan(0);
  expect(recovery?.remoteBytes).toBeLessThan((recovery?.localBytes as number) / 4);
  expect(recovery?.lsn).toBeGreaterThanOrEqual(recovery?.localLsn as number);
  // No state was transferred, and it is another life all the same.
  expect(transfers.filter(({ role }) => role === 'receiver')).toEqual([]);
  const now = await processes.report(leader.id);
  expect(now.members.find(({ id }) => id === victim)?.bootId).not.toBe(bootIdBefore);
});

it('the state is the same as that of the others, also after the leader was killed', async () => {
  const { leader, start } = await found();
  await processes.kill(leader.id);
  await processes.leader(2);
  await processes.fill({ from: 0, count: 20, round: 2 });
  await start(leader.id);
  await processes.leader(3);
  const reports = await processes.alike();
  expect(reports.map(({ size }) => size)).toEqual([KEYS, KEYS, KEYS]);
  const back = reports.find(({ id }) => id === leader.id) as Report;
  expect(back.recovery).toMatchObject({ stage: 'done' });
  expect(ofRegions(back.warnings)).toEqual([]);
  // And from there it survives the next one.
  await processes.until(async () => (await processes.report(leader.id)).region?.isUsable, 'the next snapshot');
  await processes.kill(leader.id);
  await start(leader.id);
  expect((await processes.report(leader.id)).recovery).toMatchObject({ stage: 'done' });
});

const damages = {
  'its record is damaged': (region: string) => damage(join(region, 'anchor'), (bytes) => Math.floor(bytes.length / 2)),
  'its snapshot is damaged': (region: string) => damage(snapshotIn(region), (bytes) => bytes.length - 100),
  'its snapshot is shorter than it was': (region: string) => truncateSync(snapshotIn(region), 1000),
};

function snapshotIn(region: string): string {
  return join(region, readdirSync(region).find((name) => name.startsWith('snapshot-')) as string);
}

function damage(path: string, where: (bytes: Buffer) => number): void {
  const bytes = readFileSync(path);
  const at = where(bytes);
  bytes[at] = (bytes[at] as number) ^ 0x10;
  writeFileSync(path, bytes);
}

it('if record or snapshot are damaged the whole state comes from others', async () => {
  const { victim, start } = await found();
  for (const [what, act] of Object.entries(damages)) {
    await processes.until(async () => (await processes.report(victim)).region?.isUsable, 'a snapshot to come back to');
    await processes.kill(victim);
    act(regionOf(victim));
    await start(victim);
    await processes.leader(3);
    const back = (await processes.alike()).find(({ id }) => id === victim) as Report;
    expect(back.size, what).toBe(KEYS);
    expect(ofRegions(back.warnings)).toEqual(['QUORATE_REGION_UNUSABLE']);
    expect(back.recovery, what).toMatchObject({ stage: 'full', localBytes: 0 });
    expect(back.recovery?.remoteBytes).toBeGreaterThan(STATE_BYTES);
  }
});

it('if its log is damaged the snapshot is used, and the log behind it comes from others', async () => {
  const { victim, start } = await found();
  const snapshotLsn = await processes.until(async () => {
    const { region, appliedLsn } = await processes.report(victim);
    return region?.isUsable && appliedLsn - region.snapshotLsn < LOG_BYTES / 4 && region.snapshotLsn;
  }, 'a snapshot that is followed by none');
  await processes.kill(victim);
  const path = join(regionOf(victim), 'log');
  const bytes = readFileSync(path);
  bytes.fill(0x5a);
  writeFileSync(path, bytes);
  await start(victim);
  await processes.leader(3);
  const back = (await processes.alike()).find(({ id }) => id === victim) as Report;
  expect(back.size).toBe(KEYS);
  expect(back.recovery).toMatchObject({ stage: 'done', localLsn: snapshotLsn });
  expect(ofRegions(back.warnings)).toEqual([]);
});

it('a region that was left by another cluster is not used', async () => {
  processes = new Processes();
  const { directory } = processes;
  const open = async () => {
    const places = await members(1);
    return Replica.open(optionsFor(0, places, { surviveCrash: { directory }, stateMachine: new CommandLog() }));
  };
  const first = await open();
  await first.propose(Buffer.from('of the first cluster'));
  await first.close();
  const second = await open();
  expect(second.status().recovery).toMatchObject({ stage: 'full', reason: expect.stringContaining('cluster') });
  await second.close();
});

it('a region whose owner lives is refused', async () => {
  processes = new Processes();
  const { directory } = processes;
  const places = await members(1);
  const first = await Replica.open(optionsFor(0, places, { surviveCrash: { directory } }));
  await expect(Replica.open(optionsFor(0, await members(1), { surviveCrash: { directory } }))).rejects.toMatchObject({
    code: 'QUORATE_REGION_IN_USE',
  });
  await first.close();
});

it('a region whose owner lives is refused, and left alone, also by who wants a log of another size', async () => {
  processes = new Processes();
  const { directory } = processes;
  const first = await Replica.open(optionsFor(0, await members(1), { surviveCrash: { directory } }));
  try {
    const log = join(regionOf(0), 'log');
    const { size, ino } = statSync(log);
    const other = optionsFor(0, await members(1), { surviveCrash: { directory }, logBytes: size / 2 });
    const open = async () => await (await Replica.open(other)).close();
    await expect(open()).rejects.toMatchObject({ code: 'QUORATE_REGION_IN_USE' });
    expect(statSync(log)).toMatchObject({ size, ino });
    await first.close();
    await open();
    expect(statSync(log).size).toBe(size / 2);
  } finally {
    await first.close();
  }
});

it('a replica that is removed leaves nothing behind', async () => {
  const { leader, victim } = await found();
  await processes.call(leader.id, 'remove', victim);
  await processes.until(
    async () => !readdirSync(processes.directory).some((name) => name.endsWith(`-${victim}`)),
    'it to be gone',
  );
});

it('a replica comes back by its own region though the one that it asks first stands still', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'quorate-recovery-'));
  const list = await members(3);
  const replicas: Replica[] = [];
  const open = async (id: number): Promise<Replica> => {
    const replica = await Replica.open(optionsFor(id, list, { profile: 'relaxed', surviveCrash: { directory } }));
    replicas.push(replica);
    return replica;
  };
  onTestFinished(async () => {
    vi.restoreAllMocks();
    await Promise.all(replicas.map((replica) => replica.close()));
    rmSync(directory, { recursive: true });
  });
  const [first] = (await Promise.all(list.map(({ id }) => open(id)))) as [Replica];
  for (let count = 0; count < 10; count++) await first.propose(Buffer.from(`${count}`));
  await first.close();
  // One that is stopped holds its connections.
  const { open: answer } = Donor.prototype;
  vi.spyOn(Donor.prototype, 'open').mockImplementation(function (this: Donor, connection, body) {
    const { host } = this as unknown as { host: { id: number } };
    return host.id === 2 ? never : answer.call(this, connection, body);
  });
  expect((await open(0)).status().recovery).toMatchObject({ stage: 'done', donor: 1 });
});

it('who did not answer is not asked again by a replica that comes back', async () => {
  const asked: number[] = [];
  const host: Partial<RecoveryHost> = {
    region: { path: 'a region' } as never,
    donors: () => [2, 1],
    readLog: (donor) => {
      asked.push(donor);
      const code = donor === 2 ? 'QUORATE_TIMEOUT' : 'QUORATE_LOG_RECYCLED';
      return Promise.reject(new QuorateError(code, 'it gives no log'));
    },
    onStatus: () => {},
    onWarning: () => {},
    isClosed: () => false,
  };
  const position = chainBeginning(5);
  const predecessor = { anchor: { clusterId: 5, position, snapshot: null }, ring: new Uint32Array(LOG_BYTES / 4) };
  const recovery = new Recovery(host as RecoveryHost);
  expect(await recovery.run({ clusterId: 5 } as never, predecessor as never)).toBeNull();
  expect(asked.filter((donor) => donor === 2)).toEqual([2]);
  expect(recovery.status).toMatchObject({
    stage: 'full',
    reason: expect.stringContaining('replica 2: it gives no log'),
  });
});

it('a replica that is closed while nobody could be asked asks no more', async () => {
  let rounds = 0;
  const host: Partial<RecoveryHost> = {
    donors: () => {
      rounds++;
      return [];
    },
    onStatus: () => {},
    isClosed: () => rounds > 0,
  };
  const position = chainBeginning(5);
  const predecessor = { anchor: { clusterId: 5, position, snapshot: null }, ring: new Uint32Array(LOG_BYTES / 4) };
  const recovery = new Recovery(host as RecoveryHost);
  await expect(recovery.run({ clusterId: 5 } as never, predecessor as never)).rejects.toMatchObject({
    code: 'QUORATE_CLOSED',
  });
  expect(rounds).toBe(1);
});

it('a state that cannot be compared is not put in place, and its places are given back, which changes nothing of why', async () => {
  const ends: string[] = [];
  const warnings: string[] = [];
  const host: Partial<RecoveryHost> = {
    id: 0,
    logBytes: LOG_BYTES,
    region: {
      path: 'a region',
      readSnapshot: async function* () {
        yield new Uint8Array(8);
      },
    } as never,
    stateMachine: Object.assign(new CommandLog(), {
      restoreInPlace: () => ({
        next: () => new Uint8Array(8),
        finish: () => () => ends.push('put'),
        abort: ({ message }: Error) => {
          ends.push(message);
          throw new Error('it throws in abort(), too');
        },
      }),
    }) as never,
    donors: () => [1],
    readLog: () => Promise.reject(new Error('its log begins later')),
    onStatus: () => {},
    onWarning: ({ message }) => warnings.push(message),
    isClosed: () => false,
  };
  const snapshot = { file: 'a snapshot', bytes: 8, checksum: 0, sessionsBytes: 0 };
  const predecessor = {
    anchor: { clusterId: 5, position: chainBeginning(5), snapshot },
    ring: new Uint32Array(LOG_BYTES / 4),
  };
  const recovery = new Recovery(host as RecoveryHost);
  expect(await recovery.run({ clusterId: 5 } as never, predecessor as never)).toBeNull();
  expect(ends).toEqual([expect.stringContaining('its log begins later')]);
  expect(warnings).toEqual(['it throws in abort(), too', expect.stringContaining('its log begins later')]);
});

it.each([
  [
    'finish() of what restoreInPlace() returned',
    1,
    (told: Error[]) => ({
      restoreInPlace: () => ({
        next: () => new Uint8Array(8),
        finish: () => never,
        abort: (error: Error) => void told.push(error),
      }),
    }),
  ],
  [
    'restoreChunks()',
    0,
    () => ({
      restoreChunks: async (chunks: AsyncIterable<Uint8Array>) => {
        for await (const _ of chunks) await never;
      },
    }),
  ],
])('a return from a crash ends when the replica is closed, though %s has not settled', async (_, aborts, make) => {
  const directory = mkdtempSync(join(tmpdir(), 'quorate-recovery-'));
  onTestFinished(() => rmSync(directory, { recursive: true }));
  const [id, clusterKey, logBytes] = [0, 'a cluster key', LOG_BYTES];
  const asked = { id, clusterKey, logBytes, shmDirectory: undefined, surviveCrash: { directory } };
  const survival = CrashSurvival.prepare(asked) as CrashSurvival;
  const genesis = genesisConfiguration(5, [{ id, bootId: 9 }]);
  const state = new Uint8Array(8);
  const { file, handle } = await survival.region.createSnapshot();
  await handle.write(state);
  await handle.close();
  const snapshot = { file, bytes: state.length, checksum: checksum(state, 0), sessionsBytes: 0 };
  survival.region.putAnchor({ clusterId: 5, position: chainBeginning(5), configuration: genesis, snapshot });
  survival.take(new ArrayBuffer(LOG_BYTES));
  const told: Error[] = [];
  let isClosed = false;
  const given = vi.spyOn(SnapshotSink.prototype, 'write');
  onTestFinished(() => void vi.restoreAllMocks());
  survival.attach({
    id,
    stateMachine: Object.assign(new CommandLog(), make(told)),
    onStatus: () => {},
    onWarning: () => {},
    isClosed: () => isClosed,
  } as unknown as CrashSurvivalHost);
  const fate = survival.recover(genesis).catch((error: Error) => error);
  await vi.waitFor(() => expect(given).toHaveBeenCalled(), { timeout: 20_000 });
  isClosed = true;
  await survival.close();
  expect(await fate).toMatchObject({ code: 'QUORATE_CLOSED' });
  expect(told).toEqual(new Array(aborts).fill(await fate));
  const held = readdirSync('/proc/self/fd').filter((fd) => {
    const path = join('/proc/self/fd', fd);
    return existsSync(path) && readlinkSync(path).startsWith(directory);
  });
  expect(held).toEqual([]);
});

it('a region in a relative directory is kept when its process changes to another one', async () => {
  const places = await members(1);
  const folder = mkdtempSync(join(tmpdir(), 'quorate-recovery-'));
  const program = `
    import { Replica } from '#lib/index.js';
    process.chdir('${folder}');
    const stateMachine = { apply() {}, snapshot: () => new Uint8Array(5), restore() {} };
    const members = ${JSON.stringify(places)};
    const replica = await Replica.open({
      id: 0, members, clusterKey: 'a cluster key for tests', stateMachine, device: 'shm', logBytes: 65536,
      shmDirectory: 'here', surviveCrash: true,
    });
    process.chdir('/');
    let warning;
    replica.on('warning', ({ message }) => { warning = message; });
    while (warning === undefined && replica.status().region.snapshotLsn === 0) await replica.propose(new Uint8Array(1000));
    console.log(warning ?? replica.status().region.path);
    await replica.close();
  `;
  try {
    const { stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', program], { timeout: 60_000 });
    expect(stdout.toString()).toMatch(new RegExp(`^${folder}/here/region-`));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
