// When a majority of the directories of a durable cluster is lost, one that is left becomes the directory of a new cluster,
// with all that its log held: at once, whenever the process ends; and for good, so that it never is of the old cluster again.
import { cpSync, existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import type { MemberAddress } from '#lib/index.js';
import { members } from './fixture.js';
import { Processes, type Report } from './processes.js';

const KEYS = 150;
/** Whose directory is left. */
const SURVIVOR = 1;

// Processes start slowly where others keep the processors busy; what is waited for has limits of its own.
vi.setConfig({ testTimeout: 180_000 });

let processes: Processes;
afterEach(() => processes?.close());

const directoryOf = (id: number): string => join(processes.directory, `store-${id}`);
const durable = (id: number) => ({ durable: { directory: directoryOf(id) } });

/** The voters of a durable cluster start, for the first time or again. */
async function start(places: readonly MemberAddress[]): Promise<void> {
  await Promise.all(places.map(({ id }) => processes.start(id, { members: places, ...durable(id) })));
}

async function killAll(): Promise<void> {
  await Promise.all(processes.ids.map((id) => processes.kill(id)));
}

interface Lost {
  readonly places: MemberAddress[];
  /** What the survivor said at last. */
  readonly before: Report;
  /** A copy of its directory. */
  readonly copy: string;
}

let lost: Lost | undefined;
afterAll(() => {
  if (lost !== undefined) rmSync(lost.copy, { recursive: true });
});

/**
 * Three voters whose directories hold the same, in more than one file of log; they are killed, and two directories are lost.
 * The same directory for each test, as it was then.
 */
async function loseMajority(): Promise<Lost> {
  processes = new Processes({ logBytes: 1024 * 1024, profile: 'relaxed' });
  if (lost !== undefined) {
    cpSync(lost.copy, directoryOf(SURVIVOR), { recursive: true });
    return lost;
  }
  const places = await members(5);
  const founders = places.slice(0, 3);
  await start(founders);
  await processes.fill({ from: 0, count: KEYS / 2, round: 1 });
  await killAll();
  await start(founders); // each process begins another file
  await processes.fill({ from: KEYS / 2, count: KEYS / 2, round: 1 });
  const before = await processes.until(async () => {
    const report = await processes.report(SURVIVOR);
    return report.size === KEYS && report;
  }, 'the survivor to hold all');
  await killAll();
  for (const { id } of founders) if (id !== SURVIVOR) rmSync(directoryOf(id), { recursive: true });
  const copy = mkdtempSync(join(tmpdir(), 'quorate-survivor-'));
  cpSync(directoryOf(SURVIVOR), copy, { recursive: true });
  lost = { places, before, copy };
  return lost;
}

/** The survivor's process starts on its directory, and waits for nobody. */
async function open(survivor: number, places: readonly MemberAddress[]): Promise<Report> {
  await processes.start(survivor, { members: places.slice(0, 3), waitForLeader: false, ...durable(survivor) });
  return await processes.report(survivor);
}

it('the one directory that is left becomes a durable cluster, which loses nothing when its processes end', async () => {
  const survivor = SURVIVOR;
  const { places, before } = await loseMajority();
  const opened = await open(survivor, places);
  expect(opened).toMatchObject({ role: 'follower', isVoter: true, clusterId: before.clusterId });
  expect(opened.leader).toBeUndefined();
  // All that its disk holds is there to be compared, whether it is known to be committed or not.
  expect(opened.tailLsn).toBeGreaterThanOrEqual(before.appliedLsn);

  await processes.force(survivor);
  const alone = await processes.report(survivor);
  expect(alone).toMatchObject({ role: 'leader', voters: [survivor], size: KEYS, digest: before.digest });
  expect(alone.durable).toMatchObject({ directory: directoryOf(survivor) });
  expect(alone.durable?.snapshotLsn).toBeGreaterThanOrEqual(opened.tailLsn);
  expect(alone.clusterId).not.toBe(before.clusterId);
  expect(Number.parseInt(alone.epoch, 10)).toBeGreaterThan(Number.parseInt(before.epoch, 10) + 1000);

  for (const place of places.slice(3)) await processes.grow(survivor, [place], durable(place.id));
  await processes.fill({ from: KEYS, count: 10, round: 2 });
  const [all] = await processes.alike();
  await killAll();

  // Each with the options that it had: the survivor still lists the old members.
  await Promise.all([
    processes.start(survivor, { members: places.slice(0, 3), ...durable(survivor) }),
    ...places.slice(3).map(({ id, host, port }) => {
      const join = places.filter((place) => place.id === survivor);
      return processes.start(id, { join, address: { host, port }, ...durable(id) });
    }),
  ]);
  await processes.leader(3);
  const back = await processes.alike();
  for (const report of back) {
    expect(report).toMatchObject({ clusterId: alone.clusterId, size: KEYS + 10, digest: all?.digest });
    expect(report.voters).toEqual([survivor, 3, 4]);
    expect(report.warnings.filter(({ code }) => /CLUSTER|DISK|DURAB/.test(code))).toEqual([]);
  }
  await processes.fill({ from: 0, count: 1, round: 3 });
  await processes.alike();
});

describe('a process that ends', () => {
  it.each([
    ['while the state is written', 'old'],
    ['when the state is written', 'old'],
    ['when the new cluster is in force', 'new'],
    ['while the old log is removed', 'new'],
    ['when the old log is removed', 'new'],
  ])('%s leaves the directory of the %s cluster, whole', async (step, which) => {
    const survivor = SURVIVOR;
    const { places, before } = await loseMajority();
    await open(survivor, places);
    expect(readdirSync(join(directoryOf(survivor), 'log')).length).toBeGreaterThan(1);
    await processes.ask(survivor, 'dieAtStep', step);
    await expect(processes.force(survivor)).rejects.toThrow(/ended/);
    await processes.kill(survivor);

    const back = await open(survivor, places);
    expect(back.clusterId === before.clusterId).toBe(which === 'old');
    if (which === 'old') {
      expect(back.tailLsn).toBeGreaterThanOrEqual(before.appliedLsn);
      await processes.force(survivor);
    }
    const alone = await processes.leader(1);
    expect(alone).toMatchObject({ voters: [survivor], size: KEYS, digest: before.digest });
    expect(alone.clusterId).not.toBe(before.clusterId);
    expect(Number.parseInt(alone.epoch, 10)).toBeGreaterThan(Number.parseInt(before.epoch, 10) + 1000);

    // Nothing of the old log is found behind what the new one writes.
    await processes.fill({ from: 0, count: 5, round: 2 });
    const { digest } = await processes.report(survivor);
    await processes.kill(survivor);
    const again = await open(survivor, places);
    expect((await processes.leader(1)).digest).toBe(digest);
    expect(again.clusterId).toBe(alone.clusterId);
  });
});

it('a member of the old cluster that turns up with its directory, and the directory of the survivor, keep apart', async () => {
  const [survivor, late] = [0, 2];
  processes = new Processes({ logBytes: 1024 * 1024, profile: 'relaxed' });
  const places = await members(3);
  await start(places);
  await processes.fill({ from: 0, count: 20, round: 1 });
  await processes.until(async () => (await processes.report(survivor)).size === 20, 'the survivor to hold all');
  await killAll();
  await open(survivor, places);
  await processes.force(survivor);
  const alone = await processes.leader(1);
  await processes.fill({ from: 0, count: 1, round: 2 });

  // It, and the third one, are a majority of the old cluster: that goes on, and this one keeps out of it.
  await Promise.all([late, 1].map((id) => processes.start(id, { members: places, ...durable(id) })));
  // It says so of one of them: the same warning is not told again in the next seconds.
  await processes.until(async () => {
    const { warnings } = await processes.report(survivor);
    return warnings.some(({ code }) => code === 'QUORATE_CLUSTER_MISMATCH');
  }, 'the survivor to refuse members of the old cluster');
  const old = await processes.until(async () => {
    const reports = await Promise.all([late, 1].map((id) => processes.report(id)));
    return reports.find(({ role }) => role === 'leader');
  }, 'a leader of the old cluster');
  expect(old.clusterId).not.toBe(alone.clusterId);
  for (const id of [late, 1]) {
    const { peers } = await processes.report(id);
    expect(peers.find((peer) => peer.id === survivor)).toMatchObject({ linked: false, trusted: false });
  }
  // Nor does it when it starts again, with the options of the old one.
  await processes.kill(survivor);
  await processes.start(survivor, { members: places, ...durable(survivor) });
  const after = await processes.until(async () => {
    const report = await processes.report(survivor);
    return report.role === 'leader' && report.peers.length === 0 && report;
  }, 'the survivor to lead, and to have given up the old members');
  expect(after).toMatchObject({ clusterId: alone.clusterId, voters: [survivor] });
  expect((await processes.report(old.id)).peers.find(({ id }) => id === survivor)).toMatchObject({ linked: false });
});

it('files of the old log that come back with the power are no harm', async () => {
  const survivor = SURVIVOR;
  const { places, before } = await loseMajority();
  await open(survivor, places);
  const [log, kept] = [join(directoryOf(survivor), 'log'), join(processes.directory, 'old-log')];
  cpSync(log, kept, { recursive: true });
  await processes.ask(survivor, 'dieAtStep', 'when the old log is removed');
  await expect(processes.force(survivor)).rejects.toThrow(/ended/);
  await processes.kill(survivor);
  // As if their removal had not been synced: one of them is there, or all but one are, or all.
  const names = readdirSync(kept).sort();
  for (const part of [names.slice(0, 1), names.slice(1), names]) {
    for (const name of part) cpSync(join(kept, name), join(log, name));
    await open(survivor, places);
    const alone = await processes.leader(1);
    expect(alone).toMatchObject({ voters: [survivor], size: KEYS, digest: before.digest });
    for (const name of part) expect(existsSync(join(log, name)), name).toBe(false);
    await processes.kill(survivor);
    for (const name of readdirSync(log)) rmSync(join(log, name));
  }
});
