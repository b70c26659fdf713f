// The ping-pong examples against the programs of rdma-core whose protocol they speak, in both directions.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { afterEach, expect, test } from 'vitest';
import { rdmaDevices } from './devices.js';

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
