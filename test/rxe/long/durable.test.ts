// Durable replicas on RDMA devices, one device each: all of them are killed at once, and what was acknowledged is there when they
// are started again.
import { join } from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { members } from '../../replica/fixture.js';
import { Processes } from '../../replica/processes.js';
import { deviceOf } from '../devices.js';

const TIMEOUT_MS = 240_000;
const KEYS = 64;

let processes: Processes;
afterEach(() => processes.close());

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
