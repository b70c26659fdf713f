// The nemesis on RDMA devices: one process and one device per replica, with links that go down and partitions besides
// what it does on shared memory.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { runDemo } from '../../demo/support/demo-process.ts';
import { rdmaDevices } from '../devices.ts';

const TIMEOUT_MS = 400_000;
const folder = mkdtempSync(join(tmpdir(), 'quorate-nemesis-test-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test(
  'faults of processes and of the network leave a linearizable history and equal replicas',
  async () => {
    const devices = rdmaDevices().slice(0, 3);
    expect(devices).toHaveLength(3);
    const args = ['--device', devices.join(','), '--minutes', '0.5', '--seed', '3', '--out', folder, '--verbose'];
    const { code, summary, errors } = await runDemo(args, { program: 'nemesis.js', timeoutMs: TIMEOUT_MS });
    expect(summary, errors).toMatchObject({ violations: 0 });
    expect(code, errors).toBe(0);
    expect(summary?.['leaderChanges'], errors).toBeGreaterThanOrEqual(1);
    expect(summary?.['operations'], errors).toBeGreaterThan(100);
    expect(errors).not.toContain('left out:');
  },
  TIMEOUT_MS,
);
