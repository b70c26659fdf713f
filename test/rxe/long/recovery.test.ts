// A killed replica on an RDMA device comes back by the region that outlived its process, whose log is memory that is
// registered with the device, and reads from another one only what it missed.
import { afterEach, expect, test } from 'vitest';
import { members } from '../../replica/fixture.js';
import { Processes } from '../../replica/processes.js';
import { rdmaDevices } from '../devices.js';

const TIMEOUT_MS = 240_000;
const KEYS = 512;
const STATE_BYTES = KEYS * 4096;

let processes: Processes;
afterEach(() => processes.close());

test('a killed replica reads much less from others than its state has', { timeout: TIMEOUT_MS }, async () => {
  const device = rdmaDevices()[0] as string;
  processes = new Processes({ device, logBytes: 1024 * 1024, openTimeoutMs: 120_000 });
  const { directory } = processes;
  const places = await members(3);
  const more = { surviveCrash: { directory } };
  await processes.found(places, more);
  const leader = await processes.leader(3);
  expect(leader.fabric).toBe('verbs');
  await processes.fill({ from: 0, count: KEYS, round: 1 });
  const victim = leader.voters.find((id) => id !== leader.id) as number;
  await processes.until(async () => (await processes.report(victim)).region?.isUsable, 'a snapshot to come back to');
  await processes.kill(victim);
  await processes.fill({ from: 0, count: 10, round: 2 });
  await processes.start(victim, { members: places, ...more });
  const { recovery } = await processes.report(victim);
  expect(recovery).toMatchObject({ stage: 'done' });
  expect(recovery?.localBytes).toBeGreaterThan(STATE_BYTES);
  expect(recovery?.remoteBytes).toBeGreaterThanOrEqual(10 * 4096);
  expect(recovery?.remoteBytes).toBeLessThan(STATE_BYTES / 4);
  await processes.leader(3);
  expect((await processes.alike()).map(({ size }) => size)).toEqual([KEYS, KEYS, KEYS]);
});
