// The RDMA devices that the other rxe tests stand on: they exist, they are RoCE v2, and packets travel between two of
// them. Nothing of quorate is involved, so when this fails the fault is in scripts/rxe or in the machine.
import { execFile, spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { rdmaDevices } from './devices.js';

const execute = promisify(execFile);
const devices = rdmaDevices();
const [first = '', second = ''] = devices;

const PORT = 18515;

/** Whether a process of this machine listens on the TCP port, as the kernel lists it: `:<port> <any peer>:0000 0A`. */
function listens(port: number): boolean {
  const listening = new RegExp(`:${port.toString(16).toUpperCase()} 0+:0000 0A `);
  return ['/proc/net/tcp', '/proc/net/tcp6'].some((path) => listening.test(readFileSync(path, 'utf8')));
}

test('there is one device per replica, and its port is active', async () => {
  expect(devices.length).toBeGreaterThanOrEqual(3);
  for (const device of devices) {
    expect(existsSync(`/sys/class/infiniband/${device}`)).toBe(true);
    expect(readFileSync(`/sys/class/infiniband/${device}/ports/1/state`, 'utf8').trim()).toBe('4: ACTIVE');
  }
  const { stdout } = await execute('ibv_devinfo');
  expect([...stdout.matchAll(/^hca_id:\s*(\S+)/gm)].map((match) => match[1])).toEqual(expect.arrayContaining(devices));
});

test('GID 1 is the RoCE v2 address of the interface', () => {
  for (const [replica, device] of devices.entries()) {
    const port = `/sys/class/infiniband/${device}/ports/1`;
    expect(readFileSync(`${port}/gid_attrs/types/1`, 'utf8').trim()).toBe('RoCE v2');
    const address = (replica + 1).toString(16).padStart(2, '0');
    expect(readFileSync(`${port}/gids/1`, 'utf8').trim()).toBe(`0000:0000:0000:0000:0000:ffff:0a4e:00${address}`);
  }
});

test('two devices exchange messages over reliable connections', async () => {
  const size = 4096;
  const iterations = 200;
  const options = ['--gid-idx=1', `--size=${size}`, `--iters=${iterations}`, '--chk'];
  const server = spawn('ibv_rc_pingpong', [`--ib-dev=${first}`, `--port=${PORT}`, ...options], { stdio: 'inherit' });
  try {
    await expect.poll(() => server.exitCode !== null || listens(PORT), { timeout: 60_000 }).toBe(true);
    expect(server.exitCode, 'the server ended; what it printed stands above').toBe(null);
    const { stdout } = await execute('ibv_rc_pingpong', [
      `--ib-dev=${second}`,
      `--port=${PORT}`,
      ...options,
      '127.0.0.1',
    ]);
    expect(stdout).toContain(`${iterations} iters`);
    expect(stdout).toContain(`${size * iterations * 2} bytes`);
  } finally {
    server.kill('SIGKILL');
  }
});
