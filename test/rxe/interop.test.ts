// The examples against the programs of rdma-core that others wrote: those whose protocols they speak, in both directions,
// and those whose output they give. Then the connection manager, whose peers are the same here.
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { promisify } from 'node:util';
import { afterEach, expect, test } from 'vitest';
import { CmEventChannel, errorCode, openDevice } from '#lib/verbs/index.js';
import { describeConnections } from '../verbs/conformance-connections.js';
import { rdmaDevices } from './devices.js';

const execute = promisify(execFile);

const [first = '', second = first] = rdmaDevices();
const ITERATIONS = 100;
const GID_INDEX = 1; // the RoCE v2 address of the interface, see devices.test.ts
const running: ChildProcess[] = [];

afterEach(() => {
  for (const child of running.splice(0)) child.kill('SIGKILL');
});

function listens(port: number): boolean {
  const listening = new RegExp(`:${port.toString(16).toUpperCase()} 0+:0000 0A `);
  return ['/proc/net/tcp', '/proc/net/tcp6']
    .filter((path) => existsSync(path))
    .some((path) => listening.test(readFileSync(path, 'utf8')));
}

function start(
  command: string,
  args: string[],
): { child: ChildProcess; ended: Promise<{ code: number; output: string }> } {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  running.push(child);
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += chunk));
  return { child, ended: once(child, 'close').then(([code]) => ({ code: code as number, output })) };
}

type Side = (device: string, port: number, size: number, host: string[]) => [string, string[]];
const theirs =
  (program: string): Side =>
  (device, port, size, host) => [
    program,
    [
      `--ib-dev=${device}`,
      `--gid-idx=${GID_INDEX}`,
      `--port=${port}`,
      `--size=${size}`,
      `--iters=${ITERATIONS}`,
      ...host,
    ],
  ];
const ours =
  (program: string): Side =>
  (device, port, size, host) => [
    process.execPath,
    [
      program,
      `--device=${device}`,
      `--gid-index=${GID_INDEX}`,
      `--port=${port}`,
      `--size=${size}`,
      `--iterations=${ITERATIONS}`,
      ...host,
    ],
  ];

test.each([
  ['ibv_rc_pingpong', 'rc-pingpong', theirs('ibv_rc_pingpong'), ours('examples/rc-pingpong.mjs'), 4096, 18_601],
  ['rc-pingpong', 'ibv_rc_pingpong', ours('examples/rc-pingpong.mjs'), theirs('ibv_rc_pingpong'), 4096, 18_602],
  ['ibv_ud_pingpong', 'ud-pingpong', theirs('ibv_ud_pingpong'), ours('examples/ud-pingpong.mjs'), 1000, 18_603],
  ['ud-pingpong', 'ibv_ud_pingpong', ours('examples/ud-pingpong.mjs'), theirs('ibv_ud_pingpong'), 1000, 18_604],
])('%s serves %s', async (_serverName, _clientName, server, client, size, port) => {
  const serving = start(...server(first, port, size, []));
  await expect.poll(() => serving.child.exitCode !== null || listens(port), { timeout: 60_000 }).toBe(true);
  const [clientCommand, clientArguments] = client(second, port, size, ['127.0.0.1']);
  const playing = start(clientCommand, clientArguments);
  const results = await Promise.all([serving.ended, playing.ended]);
  for (const { code, output } of results) {
    expect(output).toContain(`${ITERATIONS} iters in`);
    expect(output).toContain(`${size * ITERATIONS * 2} bytes in`);
    expect(code, output).toBe(0);
  }
});

/** The addresses of the devices, see scripts/rxe/devices.sh. */
const HOST = '10.78.0.1';
const OTHER_HOST = '10.78.0.2';
const PINGS = 20;
const PING_BYTES = 100;

/** Whether somebody listens on the port of the connection manager: the kernel lists its ids. */
async function listensForConnections(port: number): Promise<boolean> {
  const { stdout } = await execute('rdma', ['resource', 'show', 'cm_id']);
  return new RegExp(`state LISTEN .*src-addr ${HOST}:${port} `).test(stdout);
}
/** The text of the last ping: its number, then characters that begin where its number says. */
const LAST_PING = `rdma-ping-${PINGS - 1}: TUVWXYZ[\\]^_\`abc`;
type PingSide = (port: number) => [string, string[]];
const rping =
  (...own: string[]): PingSide =>
  (port) => ['rping', [...own, '-v', '-a', HOST, '-p', `${port}`, '-S', `${PING_BYTES}`, '-C', `${PINGS}`]];
const ourPing =
  (...own: string[]): PingSide =>
  (port) => [
    process.execPath,
    ['examples/rping.mjs', '--provider=ibverbs', `--port=${port}`, `--size=${PING_BYTES}`, '--verbose', ...own],
  ];

test.each([
  ['rping', 'examples/rping.mjs', rping('-s'), ourPing(`--count=${PINGS}`, HOST), 18_605],
  ['examples/rping.mjs', 'rping', ourPing(`--address=${HOST}`), rping('-c', '-V', '-I', OTHER_HOST), 18_606],
])('%s serves pings of %s', async (_serverName, _clientName, server, client, port) => {
  const serving = start(...server(port));
  await expect
    .poll(async () => serving.child.exitCode !== null || (await listensForConnections(port)), { timeout: 60_000 })
    .toBe(true);
  const pinging = start(...client(port));
  const [served, pinged] = await Promise.all([serving.ended, pinging.ended]);
  expect(served.output).toContain(`server ping data: ${LAST_PING}`);
  expect(pinged.output).toContain(`ping data: ${LAST_PING}`);
  expect([served.code, pinged.code], served.output + pinged.output).toEqual([0, 0]);
});

/** Lines as names and values; lines that belong to another (lists of flags) are values too. */
function fields(output: string): string[] {
  return output
    .split('\n')
    .map((line) => line.trim().replace(/:\s+/, ': ').replace(/\s+/g, ' '))
    .filter((line) => line !== '');
}

test('devinfo agrees with ibv_devinfo -v in every field', async () => {
  const { stdout: theirOutput } = await execute('ibv_devinfo', ['-v', '-d', first]);
  const { stdout: ourOutput } = await execute(process.execPath, ['examples/devinfo.mjs', '-v', '-d', first]);
  const expected = fields(theirOutput);
  expect(expected.length).toBeGreaterThan(80);
  expect(fields(ourOutput)).toEqual(expected);
});

test('show-gids shows what the kernel lists, and which would be used', async () => {
  const { stdout } = await execute(process.execPath, ['examples/show-gids.mjs', first]);
  const rows = stdout.split('\n').filter((line) => line.startsWith(`${first} `));
  const port = `/sys/class/infiniband/${first}/ports/1`;
  expect(rows.length).toBeGreaterThanOrEqual(2);
  for (const row of rows) {
    const [, , index, gid] = row.split(/\s+/);
    expect(readFileSync(`${port}/gids/${index}`, 'utf8').trim()).toBe(gid);
  }
  const context = openDevice(first);
  const chosen = context.chooseGid().index;
  context.close();
  expect(chosen).toBe(GID_INDEX);
  expect(rows.filter((row) => row.endsWith('*')).map((row) => Number(row.split(/\s+/)[2]))).toEqual([chosen]);
  expect(stdout).toContain(`n_gids_found=${rows.length}`);
});

describeConnections({ options: {}, device: first, host: HOST });

test('no argument of a native call of the connection manager does harm', () => {
  const channel = CmEventChannel.open();
  const values = [undefined, null, 0, -1, 0.5, NaN, 2 ** 53, 1n, 'text', '', {}, [], new Uint8Array(300), () => 0];
  const names = (object: object) =>
    Object.getOwnPropertyNames(Object.getPrototypeOf(object)).filter(
      (name) => !['constructor', 'close'].includes(name),
    );
  let calls = 0;
  for (const target of [channel.native, channel.createId().native]) {
    for (const name of names(target)) {
      for (const first of values) {
        for (const second of values) {
          calls++;
          try {
            const member = Reflect.get(target, name, target);
            const result = typeof member === 'function' ? Reflect.apply(member, target, [first, second, 1]) : undefined;
            if (result instanceof Promise) result.catch(() => {});
          } catch (error) {
            expect(errorCode(error), `${name}: ${error}`).toMatch(/^QUORATE_/);
          }
        }
      }
    }
  }
  expect(calls).toBeGreaterThan(2000);
  channel.close();
  for (const name of ['createId', 'onEvent']) {
    expect(() => Reflect.apply(Reflect.get(channel.native, name), channel.native, [null])).toThrow('closed');
  }
});
