// A limit of locked memory that is too small for a replica: opening fails with an error that names the limit and says
// what to do. Only a kernel that pins memory can show it, and only to a process that may not exceed the limit.
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { rdmaDevices } from './devices.js';

const OPEN = fileURLToPath(new URL('./fixtures/open-replica.mjs', import.meta.url));
const LIMIT_BYTES = 256 * 1024;
/** Drops the right to lock more than the limit, then sets the limit. */
const LIMITED = [
  ...['--bounding-set=-ipc_lock', '--inh-caps=-ipc_lock', '--'],
  ...['prlimit', `--memlock=${LIMIT_BYTES}:${LIMIT_BYTES}`, '--'],
];

test('a replica that may not lock the memory that it needs says so, with the limit and the remedy', {
  timeout: 120_000,
}, async () => {
  const [device = ''] = rdmaDevices();
  const stdout = await new Promise<string>((resolve) => {
    execFile('setpriv', [...LIMITED, process.execPath, OPEN, device], { timeout: 100_000 }, (_error, out, err) =>
      resolve(`${out}${err}`),
    );
  });
  expect(stdout).toContain('QUORATE_MEMLOCK');
  expect(stdout).toContain(String(LIMIT_BYTES));
  expect(stdout).toContain('LimitMEMLOCK');
});
