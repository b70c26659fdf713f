// When a majority is lost a survivor can be made the only voter of a new cluster, if that is asked for in so many words and
// nobody else can lead; members of the old cluster take no part in it. Real processes, on shm.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, it, vi } from 'vitest';
import { genesisConfiguration } from '#lib/consensus/configuration.js';
import { EPOCH_COUNTER_MAX, makeEpoch } from '#lib/consensus/epoch.js';
import { forkPosition, type SurvivorView } from '#lib/consensus/fork.js';
import type { ReplicationPlane } from '#lib/consensus/replication-plane.js';
import { bestSurvivor, type MemberAddress, Replica, type StateMemory } from '#lib/index.js';
import { whyNotForced } from '#lib/replica/force-new-cluster.js';
import { CommandLog, members, openCluster, optionsFor, waitFor, warningOf } from './fixture.js';
import { Processes, type Report } from './processes.js';

const ACCEPTED = { iUnderstandThatAcknowledgedCommandsMayBeLost: true } as const;
const KEYS = 200;

// Processes start slowly where others keep the processors busy; what is waited for has limits of its own.
vi.setConfig({ testTimeout: 120_000 });

let processes: Processes;
afterEach(() => processes?.close());

async function found(count: number): Promise<{ places: MemberAddress[]; leader: Report }> {
  processes = new Processes({ logBytes: 256 * 1024, profile: 'relaxed' });
  const places = await members(count + 2);
  await processes.found(places.slice(0, count), { surviveCrash: { directory: processes.directory } });
  await processes.leader(count);
  await processes.fill({ from: 0, count: KEYS, round: 1 });
  return { places, leader: await processes.leader(count) };
}

/** The survivor knows of no leader, and has nobody left. */
function majorityLost(survivor: Replica<number>): Promise<true> {
  return waitFor(() => {
    const { leader, peers } = survivor.status();
    return leader === undefined && peers.every(({ trusted }) => !trusted);
  }, 'the loss of the majority');
}

it('one of three goes on with all that it holds, and two new ones join it', async () => {
  const { places, leader } = await found(3);
  const [survivor, other] = leader.voters.filter((id) => id !== leader.id) as [number, number];
  const before = await processes.until(async () => {
    const report = await processes.report(survivor);
    return report.size === KEYS && report;
  }, 'the survivor to hold all');

  // Not while there is a leader, and not without the words.
  await expect(processes.ask(survivor, 'forceNewCluster', ACCEPTED)).rejects.toMatchObject({
    code: 'QUORATE_LEADER_EXISTS',
  });
  await expect(processes.ask(survivor, 'forceNewCluster', {})).rejects.toMatchObject({ code: 'QUORATE_UNSAFE' });

  await processes.kill(other);
  await processes.kill(leader.id);
  await expect(processes.ask(survivor, 'forceNewCluster', undefined)).rejects.toMatchObject({ code: 'QUORATE_UNSAFE' });
  await processes.force(survivor);
  const alone = await processes.leader(1);
  expect(alone).toMatchObject({ id: survivor, role: 'leader', voters: [survivor], size: KEYS, digest: before.digest });
  expect(alone.clusterId).not.toBe(before.clusterId);
  // What would outlive it is of the new cluster.
  const { region, warnings } = await processes.until(async () => {
    const report = await processes.report(survivor);
    return report.region?.isUsable && report;
  }, 'a snapshot of the new cluster');
  expect(region?.snapshotLsn).toBeGreaterThanOrEqual(before.tailLsn);
  expect(warnings.filter(({ code }) => /REGION/.test(code))).toEqual([]);
  // Once is enough: the new cluster has a leader.
  await expect(processes.ask(survivor, 'forceNewCluster', ACCEPTED)).rejects.toMatchObject({
    code: 'QUORATE_LEADER_EXISTS',
  });
  expect(alone.commitLsn).toBeGreaterThan(before.tailLsn);
  expect(Number.parseInt(alone.epoch, 10)).toBeGreaterThan(Number.parseInt(before.epoch, 10));

  await processes.grow(survivor, places.slice(3));
  await processes.fill({ from: KEYS, count: 10, round: 2 });
  await processes.leader(3);
  const reports = await processes.alike();
  expect(reports.map(({ size }) => size)).toEqual([KEYS + 10, KEYS + 10, KEYS + 10]);
  // It is a cluster like any other: it survives the loss of one.
  await processes.kill(survivor);
  const next = await processes.leader(2);
  expect(next.clusterId).toBe(alone.clusterId);
  await processes.fill({ from: 0, count: 1, round: 3 });
  expect((await processes.alike()).map(({ size }) => size)).toEqual([KEYS + 10, KEYS + 10]);
});

it('a member of the old cluster that was only stopped takes no part in the new one', async () => {
  const { leader } = await found(3);
  const [survivor, late] = leader.voters.filter((id) => id !== leader.id) as [number, number];
  await processes.stop(late);
  await processes.kill(leader.id);
  await processes.force(survivor);
  const alone = await processes.report(survivor);
  processes.continue(late);
  const back = await processes.until(async () => {
    const report = await processes.report(late);
    const isRefused = report.warnings.some(({ code }) => code === 'QUORATE_CLUSTER_MISMATCH');
    const isCutOff = report.peers.every(({ trusted }) => !trusted);
    return isRefused && isCutOff && report;
  }, 'the late one to be refused');
  expect(back.clusterId).not.toBe(alone.clusterId);
  expect(back.role).toBe('follower');
  await expect(processes.ask(late, 'fill', { from: 0, count: 1, round: 9 })).rejects.toMatchObject({
    code: 'QUORATE_NOT_LEADER',
  });
  await processes.ask(survivor, 'fill', { from: 0, count: 1, round: 2 });
  const after = await processes.report(survivor);
  expect(after).toMatchObject({ role: 'leader', voters: [survivor] });
  expect(after.peers).toEqual([]);
});

it('is refused while a majority is alive, whoever leads or not', async () => {
  const { leader } = await found(3);
  const [survivor, other] = leader.voters.filter((id) => id !== leader.id) as [number, number];
  await processes.kill(other);
  await expect(processes.ask(survivor, 'forceNewCluster', ACCEPTED)).rejects.toMatchObject({
    code: 'QUORATE_LEADER_EXISTS',
  });
  await expect(processes.ask(leader.id, 'forceNewCluster', ACCEPTED)).rejects.toMatchObject({
    code: 'QUORATE_LEADER_EXISTS',
  });
  const still = await processes.leader(2);
  expect(still.clusterId).toBe(leader.clusterId);
});

const genesis = genesisConfiguration(
  77,
  [0, 1, 2].map((id) => ({ id, bootId: id + 1 })),
);
const view = (more: Partial<SurvivorView> = {}): SurvivorView => ({
  id: 0,
  bootId: 1,
  leader: undefined,
  isFollower: true,
  tailLsn: 640,
  configurations: [genesis],
  isReachable: () => false,
  ...more,
});

it('says why it is refused', () => {
  const code = (more: Partial<SurvivorView>, evenIfNotVoter = false) => whyNotForced(view(more), evenIfNotVoter)?.code;
  expect(code({})).toBeUndefined();
  expect(code({ leader: 2, isReachable: (id) => id === 2 })).toBe('QUORATE_LEADER_EXISTS');
  expect(code({ leader: 0 })).toBe('QUORATE_LEADER_EXISTS');
  expect(code({ leader: 2 })).toBeUndefined();
  expect(code({ isReachable: (id) => id === 2 })).toBe('QUORATE_QUORUM_REACHABLE');
  expect(code({ isFollower: false })).toBe('QUORATE_QUORUM_REACHABLE');
  expect(code({ bootId: 9 })).toBe('QUORATE_NOT_A_VOTER');
  expect(code({ bootId: 9 }, true)).toBeUndefined();
  expect(code({ tailLsn: 0 })).toBe('QUORATE_NO_LOG');
  expect(code({ tailLsn: 0, bootId: 9 }, true)).toBe('QUORATE_NO_LOG');
});

it('the best survivor is the one whose log ends in the latest epoch, and then the longest', () => {
  const at = (id: number, tailEpoch: string, tailLsn: number) => ({ id, tailEpoch, tailLsn });
  expect(bestSurvivor([at(0, '9.1', 9000), at(1, '10.1', 64), at(2, '10.1', 128)]).id).toBe(2);
  expect(bestSurvivor([at(0, '10.2', 64), at(1, '10.10', 64)]).id).toBe(1);
  expect(bestSurvivor([at(0, '1.1', 64), at(1, '1.1', 64)]).id).toBe(0);
  expect(() => bestSurvivor([])).toThrow(/one replica/);
  expect(() => bestSurvivor([at(0, 'x', 1)])).toThrow(/tailEpoch/);
});

it('of what is no status there is no best survivor: the wrong one would lose what was acknowledged', () => {
  const code = 'QUORATE_INVALID_ARGUMENT';
  const refuse = (survivors: unknown) =>
    expect(() => bestSurvivor(survivors as []), JSON.stringify(survivors)).toThrow(expect.objectContaining({ code }));
  const good = { tailEpoch: '10.1', tailLsn: 64 };
  // As they come from a log or an environment: '9000' is the larger text.
  refuse([
    { ...good, tailLsn: '9000' },
    { ...good, tailLsn: '10000' },
  ]);
  for (const tailLsn of [undefined, null, Number.NaN, -64, 0.5]) {
    refuse([{ ...good, tailLsn }, good]);
  }
  for (const tailEpoch of ['10.0', '9999999999.1', '10.9999999', 10.1, undefined]) {
    refuse([{ ...good, tailEpoch }]);
  }
  for (const survivors of [undefined, null, good, [undefined], [null]]) refuse(survivors);
});

it('no log of the old cluster chains to the new one, whose epochs come after all of the old one', () => {
  const applied = { lsn: 640, hashLow: 1, hashHigh: 2, epoch: makeEpoch(5, 2) };
  const one = forkPosition(applied, makeEpoch(7, 3), 1234);
  expect(one.lsn).toBe(640);
  expect([one.hashLow, one.hashHigh]).not.toEqual([1, 2]);
  expect(one.epoch).toBeGreaterThan(makeEpoch(7 + 1000, 3));
  const other = forkPosition(applied, makeEpoch(7, 3), 1235);
  expect([other.hashLow, other.hashHigh]).not.toEqual([one.hashLow, one.hashHigh]);
});

it('a replica that was closed cannot be forced', async () => {
  const places = await members(1);
  const replica = await Replica.open(optionsFor(0, places, { stateMachine: new CommandLog() }));
  await expect(Replica.forceNewCluster(replica, ACCEPTED)).rejects.toMatchObject({ code: 'QUORATE_LEADER_EXISTS' });
  await replica.close();
  await expect(Replica.forceNewCluster(replica, ACCEPTED)).rejects.toMatchObject({ code: 'QUORATE_CLOSED' });
  await expect(Replica.forceNewCluster({} as never, ACCEPTED)).rejects.toMatchObject({
    code: 'QUORATE_INVALID_ARGUMENT',
  });
});

it('goes on with a state that lies in memory for transfers, which is not attached a second time', async () => {
  class Counter extends CommandLog {
    attached = 0;
    area: Uint8Array = new Uint8Array(0);
    attachMemory(memory: StateMemory): void {
      this.attached++;
      this.area = memory.allocate(4096);
    }
    override apply(command: Uint8Array): number {
      this.area[0] = (this.area[0] as number) + 1;
      return super.apply(command);
    }
  }
  const places = await members(3);
  const machines = places.map(() => new Counter());
  const replicas = await Promise.all(
    places.map(({ id }) => Replica.open(optionsFor(id, places, { stateMachine: machines[id] as Counter }))),
  );
  let survivor: Replica<number> | undefined;
  try {
    const leader = await waitFor(() => replicas.find((replica) => replica.status().role === 'leader'), 'a leader');
    for (let count = 0; count < 5; count++) await leader.propose(Uint8Array.of(count));
    // A follower survives, which knows by then that nobody else is there, and that it leads nobody: the one that closed first
    // may have made way for it.
    const old = replicas.find(({ id }) => id !== leader.id) as Replica<number>;
    const machine = machines[old.id] as Counter;
    await waitFor(() => machine.area[0] === 5, 'the commands to be applied');
    await Promise.all(replicas.map((replica) => replica === old || replica.close()));
    const isAlone = () => old.status().role !== 'leader' && old.status().peers.every(({ trusted }) => !trusted);
    await waitFor(isAlone, 'the survivor to be alone');
    survivor = await Replica.forceNewCluster(old, ACCEPTED);
    await survivor.propose(Uint8Array.of(6));
    expect(machine.attached).toBe(1);
    expect(machine.area[0]).toBe(6);
  } finally {
    await Promise.all([...replicas, survivor].map((replica) => replica?.close()));
  }
});

it.each([
  ['shmDirectory', '', []],
  ['durable.directory', "durable: { directory: 'store-' + id },", ['store-0', 'store-1']],
])(
  'a relative %s is the one that it was when the survivor was opened, wherever its process goes',
  async (_, more, stores) => {
    const places = await members(2);
    const [before, after] = ['before', 'after'].map((name) => mkdtempSync(join(tmpdir(), `quorate-${name}-`))) as [
      string,
      string,
    ];
    const program = `
    import { setTimeout } from 'node:timers/promises';
    import { Replica } from '#lib/index.js';
    process.chdir('${before}');
    const members = ${JSON.stringify(places)};
    const opening = members.map(({ id }) => Replica.open({
      id, members, clusterKey: 'a cluster key for tests', device: 'shm', logBytes: 65536, shmDirectory: 'here', ${more}
      stateMachine: { apply() {}, snapshot: () => new Uint8Array(5), restore() {} },
    }));
    process.chdir('${after}');
    const [survivor, lost] = await Promise.all(opening);
    await lost.close();
    let forced;
    while (forced === undefined) {
      forced = await Replica.forceNewCluster(survivor, { iUnderstandThatAcknowledgedCommandsMayBeLost: true }).catch((error) => {
        if (!['QUORATE_LEADER_EXISTS', 'QUORATE_QUORUM_REACHABLE'].includes(error.code)) throw error;
      });
      await setTimeout(10);
    }
    console.log(forced.status().role);
    await forced.close();
  `;
    try {
      const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', program], {
        timeout: 60_000,
      });
      expect(stderr.toString()).toBe('');
      expect(stdout.toString()).toBe('leader\n');
      expect(readdirSync(before)).toEqual(['here', ...stores]);
      expect(readdirSync(after)).toEqual([]);
    } finally {
      for (const path of [before, after]) rmSync(path, { recursive: true, force: true });
    }
  },
);

it('is begun once from a survivor: its state machine has gone on with the new cluster', async () => {
  const [survivor, other] = (await openCluster(2)).replicas as [Replica<number>, Replica<number>];
  const session = { origin: 5, sequence: 1 };
  let forced: Replica<number> | undefined;
  try {
    await survivor.propose(Buffer.from('a'), { session });
    await other.close();
    await majorityLost(survivor);
    forced = await Replica.forceNewCluster(survivor, ACCEPTED);
    await forced.propose(Buffer.from('b'), { session: { ...session, sequence: 2 } });
    await forced.close();
    await expect(Replica.forceNewCluster(survivor, ACCEPTED).then((again) => again.close())).rejects.toMatchObject({
      code: 'QUORATE_CLOSED',
    });
  } finally {
    await Promise.all([survivor, other, forced].map((replica) => replica?.close()));
  }
});

it('goes on where the survivor listens, which may not be where the old cluster had it', async () => {
  const cluster = await openCluster(2);
  const [survivor, other] = cluster.replicas as [Replica<number>, Replica<number>];
  const taken = createServer();
  let forced: Replica<number> | undefined;
  try {
    const port = await new Promise<number>((resolve) => {
      taken.listen(0, '127.0.0.1', () => resolve((taken.address() as AddressInfo).port));
    });
    const warned = warningOf(survivor, 'QUORATE_ADDRESS_CHANGE');
    await (await cluster.leader()).changeAddress(survivor.id, { host: '127.0.0.1', port });
    await warned;
    await other.close();
    await majorityLost(survivor);
    forced = await Replica.forceNewCluster(survivor, ACCEPTED);
    expect(forced.status().members).toMatchObject([cluster.members[survivor.id]]);
    await forced.propose(Buffer.from('a'));
  } finally {
    await Promise.all([survivor, other, forced].map((replica) => replica?.close()));
    taken.close();
  }
});

it('goes on where the old cluster had the survivor if that listens at every address of its host, which nobody can dial', async () => {
  const list = await members(2);
  const [self, other] = list as [MemberAddress, MemberAddress];
  const mine = [{ ...self, host: '0.0.0.0' }, other];
  const replicas = await Promise.all([
    Replica.open(optionsFor(0, mine, { profile: 'relaxed' })),
    Replica.open(optionsFor(1, list, { profile: 'relaxed' })),
  ]);
  const [survivor] = replicas;
  let forced: Replica<number> | undefined;
  try {
    const leads = () => replicas.find((replica) => replica.status().role === 'leader');
    const warned = warningOf(survivor, 'QUORATE_ADDRESS_CHANGE');
    await (await waitFor(leads, 'a leader')).changeAddress(0, { host: '127.0.0.1', port: self.port });
    await warned; // it cannot listen twice on one port
    await replicas[1].close();
    await majorityLost(survivor);
    forced = await Replica.forceNewCluster(survivor, ACCEPTED);
    expect(forced.status().members).toMatchObject([{ ...self, host: '127.0.0.1' }]);
  } finally {
    await Promise.all([...replicas, forced].map((replica) => replica?.close()));
  }
});

it('is refused while nothing is changed yet if there are no epochs left for the new cluster', async () => {
  const [survivor, other] = (await openCluster(2)).replicas as [Replica<number>, Replica<number>];
  let forced: Replica<number> | undefined;
  try {
    await survivor.propose(Buffer.from('a'));
    await other.close();
    await majorityLost(survivor);
    // What another one's memory may say, and the elections of a test do not come to.
    const plane = survivor['plane'] as ReplicationPlane;
    const commitWholeLog = vi.spyOn(plane, 'commitWholeLog');
    const promised = vi.spyOn(plane, 'promisedEpoch', 'get').mockReturnValue(makeEpoch(EPOCH_COUNTER_MAX - 1000, 1));
    await expect(Replica.forceNewCluster(survivor, ACCEPTED)).rejects.toMatchObject({
      code: 'QUORATE_EPOCHS_EXHAUSTED',
    });
    promised.mockRestore();
    expect(commitWholeLog).not.toHaveBeenCalled();
    forced = await Replica.forceNewCluster(survivor, ACCEPTED);
    await forced.propose(Buffer.from('b'));
  } finally {
    await Promise.all([survivor, other, forced].map((replica) => replica?.close()));
  }
});
