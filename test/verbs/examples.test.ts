// The ping-pong examples with themselves, on shared memory. Against rdma-core's programs: test/rxe/interop.test.ts.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { afterEach, expect, it } from 'vitest';
import { useShmDirectory } from './support/shm-directory.js';

useShmDirectory();
const ITERATIONS = 500;
const running: ChildProcess[] = [];
afterEach(() => {
  for (const child of running.splice(0)) child.kill('SIGKILL');
});

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return port;
}

function start(program: string, args: string[]) {
  const child = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  running.push(child);
  let output = '';
  const waiting = new Promise<void>((resolve, reject) => {
    child.stderr.on('data', (chunk) => {
      output += chunk;
      if (output.includes('waiting on TCP port')) resolve();
    });
    child.once('close', () => reject(new Error(`it ended: ${output}`)));
  });
  waiting.catch(() => {});
  child.stdout.on('data', (chunk) => (output += chunk));
  return { waiting, ended: once(child, 'close').then(([code]) => ({ code, output })) };
}

it.each([
  ['examples/rc-pingpong.mjs', 10_000],
  ['examples/ud-pingpong.mjs', 2048],
])('%s plays with another of its kind', async (program, size) => {
  const args = [`--port=${await freePort()}`, `--size=${size}`, `--iterations=${ITERATIONS}`];
  const server = start(program, args);
  await server.waiting;
  const client = start(program, [...args, '127.0.0.1']);
  for (const { code, output } of await Promise.all([server.ended, client.ended])) {
    expect(output).toContain(`${size * ITERATIONS * 2} bytes in`);
    expect(output).toContain(`${ITERATIONS} iters in`);
    expect(code, output).toBe(0);
  }
});
