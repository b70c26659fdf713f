// Durable replicas on RDMA devices, one device each: all of them are killed at once, and what was acknowledged is there when they
// are started again. And a survivor of three that is made the only voter of a new cluster.
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import type { MemberAddress } from '#lib/index.js';
import { members } from '../replica/fixture.js';
import { Processes } from '../replica/processes.js';
import { rdmaDevices } from './devices.js';

const TIMEOUT_MS = 240_000;
const KEYS = 64;

let processes: Processes;
afterEach(() => processes.close());

const deviceOf = (id: number): string => rdmaDevices()[id] as string;

test('what was acknowledged outlives all processes at once', { timeout: TIMEOUT_MS }, async () => {
  processes = new Processes({ logBytes: 1024 * 1024, openTimeoutMs: 120_000 });
  const places = await members(3);
  const startAll = () =>
    Promise.all(
      places.map(({ id }) =>
        processes.start(id, {
          members: places,
          device: deviceOf(id),
          durable: { directory: join(processes.directory, `durable-${id}`) },
        }),
      ),
    );
  await startAll();
  const before = await processes.leader(3);
  expect(before.fabric).toBe('verbs');
  await processes.fill({ from: 0, count: KEYS, round: 1 });
  await Promise.all(places.map(({ id }) => processes.kill(id)));
  await startAll();
  const after = await processes.leader(3);
  expect(after.clusterId).toBe(before.clusterId);
  expect((await processes.alike()).map(({ size }) => size)).toEqual([KEYS, KEYS, KEYS]);
  await processes.fill({ from: KEYS, count: 1, round: 2 });
  expect((await processes.alike()).map(({ size }) => size)).toEqual([KEYS + 1, KEYS + 1, KEYS + 1]);
});

test('the one survivor of three goes on alone, and a new member joins it', { timeout: TIMEOUT_MS }, async () => {
  processes = new Processes({ logBytes: 1024 * 1024, openTimeoutMs: 120_000 });
  const places = await members(4);
  const founders = places.slice(0, 3);
  await Promise.all(founders.map(({ id }) => processes.start(id, { members: founders, device: deviceOf(id) })));
  await processes.leader(3);
  await processes.fill({ from: 0, count: KEYS, round: 1 });
  const leader = await processes.leader(3);
  await processes.alike();
  const [survivor, other] = leader.voters.filter((id) => id !== leader.id) as [number, number];
  await processes.kill(other);
  await processes.kill(leader.id);
  await processes.until(async () => {
    try {
      await processes.ask(survivor, 'forceNewCluster', { iUnderstandThatAcknowledgedCommandsMayBeLost: true });
      return true;
    } catch (error) {
      // The failure detector has not noticed yet.
      const { code } = error as { code: string };
      if (code === 'QUORATE_LEADER_EXISTS' || code === 'QUORATE_QUORUM_REACHABLE') return false;
      throw error;
    }
  }, 'the survivor to be alone');
  const alone = await processes.leader(1);
  expect(alone).toMatchObject({ id: survivor, voters: [survivor], size: KEYS });
  expect(alone.clusterId).not.toBe(leader.clusterId);
  const joining = places[3] as MemberAddress;
  const place = places[survivor] as MemberAddress;
  await processes.call(survivor, 'addLearner', joining);
  await processes.start(joining.id, {
    join: [place],
    address: { host: joining.host, port: joining.port },
    device: deviceOf(leader.id),
  });
  await processes.call(survivor, 'promote', joining.id, { timeoutMs: 60_000 });
  expect((await processes.leader(2)).voters).toEqual([survivor, joining.id].sort());
  expect((await processes.alike()).map(({ size }) => size)).toEqual([KEYS, KEYS]);
});
