// A survivor of three replicas on RDMA devices, one device each, is made the only voter of a new cluster, and a new member joins it.
import { afterEach, expect, test } from 'vitest';
import type { MemberAddress } from '#lib/index.js';
import { members } from '../../replica/fixture.js';
import { Processes } from '../../replica/processes.js';
import { deviceOf } from '../devices.js';

const TIMEOUT_MS = 240_000;
const KEYS = 64;

let processes: Processes;
afterEach(() => processes.close());

test('the one survivor of three goes on alone, and a new member joins it', { timeout: TIMEOUT_MS }, async () => {
  processes = new Processes({ logBytes: 1024 * 1024, openTimeoutMs: 120_000 });
  const places = await members(4);
  const joining = places[3] as MemberAddress;
  const founders = places.slice(0, 3);
  await Promise.all(founders.map(({ id }) => processes.start(id, { members: founders, device: deviceOf(id) })));
  await processes.leader(3);
  await processes.fill({ from: 0, count: KEYS, round: 1 });
  const leader = await processes.leader(3);
  await processes.alike();
  const [survivor, other] = leader.voters.filter((id) => id !== leader.id) as [number, number];
  await processes.kill(other);
  await processes.kill(leader.id);
  await processes.force(survivor);
  const alone = await processes.leader(1);
  expect(alone).toMatchObject({ id: survivor, voters: [survivor], size: KEYS });
  expect(alone.clusterId).not.toBe(leader.clusterId);
  await processes.grow(survivor, [joining], { device: deviceOf(leader.id) }, 60_000);
  expect((await processes.leader(2)).voters).toEqual([survivor, joining.id].sort());
  expect((await processes.alike()).map(({ size }) => size)).toEqual([KEYS, KEYS]);
});
