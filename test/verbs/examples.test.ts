// The examples as whole programs, on shared memory. The ping-pongs play with themselves here; against rdma-core's programs
// in test/rxe/interop.test.ts.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { afterEach, expect, it } from 'vitest';
import { openDevice } from '#lib/verbs/index.js';
import { freePorts } from '../replica/fixture.js';
import { expectMovedBytes, expectSequence, runExample } from './support/examples.js';
import { useShmDirectory } from './support/shm-directory.js';

useShmDirectory();
const ITERATIONS = 500;
const running: ChildProcess[] = [];
afterEach(() => {
  for (const child of running.splice(0)) child.kill('SIGKILL');
});

function start(program: string, args: string[]) {
  const child = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  running.push(child);
  let output = '';
  const waiting = new Promise<void>((resolve, reject) => {
    child.stderr.on('data', (chunk) => {
      output += chunk;
      if (/waiting on (TCP )?port/.test(output)) resolve();
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
  const args = [`--port=${(await freePorts(1))[0]}`, `--size=${size}`, `--iterations=${ITERATIONS}`];
  const server = start(program, args);
  await server.waiting;
  const client = start(program, [...args, '127.0.0.1']);
  for (const { code, output } of await Promise.all([server.ended, client.ended])) {
    expect(output).toContain(`${size * ITERATIONS * 2} bytes in`);
    expect(output).toContain(`${ITERATIONS} iters in`);
    expect(code, output).toBe(0);
  }
});

it('examples/rping.mjs pings another of its kind', async () => {
  const args = [`--port=${(await freePorts(1))[0]}`, '--size=1000', '--verbose'];
  const server = start('examples/rping.mjs', args);
  await server.waiting;
  const client = start('examples/rping.mjs', [...args, '--count=50', '127.0.0.1']);
  const [served, pinged] = await Promise.all([server.ended, client.ended]);
  expect(served.output).toContain('server ping data: rdma-ping-49: rstuvwxyzABC');
  expect(served.output).toContain('50 pings served');
  expect(pinged.output).toContain('50 pings of 1000 bytes');
  expect([served.code, pinged.code], served.output + pinged.output).toEqual([0, 0]);
});

it('examples/devinfo.mjs and examples/show-gids.mjs know the shm device', async () => {
  const { output: info } = await start('examples/devinfo.mjs', ['-v', '-d', 'shm']).ended;
  const context = openDevice('shm');
  const { maxQp } = context.queryDevice();
  context.close();
  expect(info).toMatch(/^hca_id:\tshm$/m);
  expect(info).toMatch(new RegExp(`^\\tmax_qp:\\t+${maxQp}$`, 'm'));
  expect(info).toMatch(/^\t\t\tstate:\t+PORT_ACTIVE \(4\)$/m);
  const gid = /^\t\t\tGID\[ {2}0\]:\t+([0-9a-f:]{39})$/m.exec(info)?.[1];
  expect(gid).toMatch(/^fd71:7368/);
  const { output: gids, code } = await start('examples/show-gids.mjs', ['shm']).ended;
  expect(gids).toMatch(/^shm {2}1 {5}0 {6}fd71:7368:\S+ +shm +\*$/m);
  expect(gids).toContain('n_gids_found=1');
  expect(code).toBe(0);
  const missing = await start('examples/devinfo.mjs', ['-d', 'nowhere0']).ended;
  expect(missing.output).toContain('there is no device nowhere0');
  expect(missing.code).toBe(1);
});

it('examples/move-bytes.mjs moves bytes into another process, without any argument', async () => {
  expectMovedBytes(await runExample('move-bytes.mjs', []));
});

it('examples/move-bytes.mjs is the program that docs/VERBS.md opens with', () => {
  const [, shown] = /```js\n(.*?)```/s.exec(readFileSync('docs/VERBS.md', 'utf8')) ?? [];
  expect(shown).toBe(readFileSync('examples/move-bytes.mjs', 'utf8'));
});

it('examples/sequencer.mjs gives each number once to many clients', async () => {
  const args = ['--clients', '3', '--window', '8', '--requests', '2000'];
  expectSequence(await runExample('sequencer.mjs', args), 3, 2000);
});

it.each([
  ['no client', ['--clients', '0'], /--clients is "0"; it must be a whole number from 1 to 32/],
  ['a device that does not exist', ['--device', 'nowhere0'], /nowhere0/],
])('examples/sequencer.mjs with %s says what is wrong', async (_what, args, message) => {
  const { code, output } = await runExample('sequencer.mjs', args);
  expect(output).toMatch(message);
  expect(code).toBe(1);
});

const WITH_OPTIONS = ['devinfo', 'rc-pingpong', 'rping', 'sequencer', 'show-gids', 'ud-pingpong'] as const;

it.each(WITH_OPTIONS)(
  'examples/%s.mjs tells what it takes, and names an option that it does not know',
  async (name) => {
    const { code, output } = await runExample(`${name}.mjs`, ['--help']);
    expect(output).toContain(`node examples/${name}.mjs [`);
    expect(output).not.toMatch(/^import /m);
    expect(code).toBe(0);
    const unknown = await runExample(`${name}.mjs`, ['--no-such-option']);
    expect(unknown.output).toMatch(/^Unknown option '--no-such-option'.*\nThe option --help says what there is.\n$/);
    expect(unknown.code).toBe(1);
  },
);

it.each([
  ['devinfo', ['-d', 'nowhere0'], 'there is no device nowhere0; -l lists them'],
  ['devinfo', ['-i', 'x'], '--ib-port is "x"; it must be a whole number from 1 to 255'],
  ['rc-pingpong', ['--size', '0'], '--size is "0"; it must be a whole number from 1 to 16777216'],
  ['rc-pingpong', ['--gid-index', '9'], 'shm has no GID 9'],
  ['rping', ['--count', ''], '--count is ""; it must be a whole number from 1 to 1000000000'],
  ['rping', ['--provider', 'tcp'], '--provider is "tcp"; it must be shm or ibverbs'],
  ['show-gids', ['nowhere0'], 'there is no device nowhere0; "node examples/devinfo.mjs --list" names them'],
])('examples/%s.mjs %j says in one line what is wrong', async (name, args, problem) => {
  const { code, output } = await runExample(`${name}.mjs`, args);
  expect(output).toBe(`${problem}\nThe option --help says what there is.\n`);
  expect(code).toBe(1);
});

it('examples/counters-in-place.mjs transfers a state of 8 MiB without a copy', async () => {
  const ports = await freePorts(3);
  const { code, output } = await start('examples/counters-in-place.mjs', ports.map(String)).ended;
  expect(code, output).toBe(0);
  expect(output).toMatch(/replica \d READ 83886\d\d bytes where they lie, \d+ MB\/s/);
  expect(output).toMatch(/counter 1046651 is 2999 at replica \d/);
});

it('the counters of examples/counters-in-place.mjs give each of two replicas at a time the state of its moment', () => {
  const source = readFileSync('examples/counters-in-place.mjs', 'utf8');
  const machine = source.slice(source.indexOf('const COUNTERS'), source.indexOf('const add ='));
  const counters = new Function(`${machine}; return new Counters();`)();
  counters.attachMemory({ allocate: (lengthBytes: number) => new Uint8Array(lengthBytes) });
  const count = (index: number) => counters.apply(new Uint8Array(Uint32Array.of(index, 1).buffer));
  /** A stream of the state, begun, and what that was. */
  const freeze = () => {
    const stream = counters.snapshotChunks();
    const pieces = stream[Symbol.iterator]();
    const first = pieces.next().value;
    const end = () => {
      const all = [first];
      for (let step = pieces.next(); !step.done; step = pieces.next()) all.push(step.value);
      const whole = Buffer.concat(all);
      stream.taken?.(whole.length);
      return whole;
    };
    return { expected: counters.snapshot(), end };
  };
  count(100_000);
  const one = freeze();
  count(100_000);
  const other = freeze();
  count(500_000);
  expect(other.end().equals(other.expected)).toBe(true);
  count(900_000);
  expect(one.end().equals(one.expected)).toBe(true);
  expect([100_000, 500_000, 900_000].map(count)).toEqual([3, 2, 2]);
});

it.each([
  ['rc-pingpong.mjs', ['--device', 'nosuch'], "QUORATE_NO_DEVICE: there is no device named 'nosuch'; there are: "],
  ['rc-pingpong.mjs', ['127.0.0.1', '--port', '1'], 'connect ECONNREFUSED 127.0.0.1:1'],
  ['rping.mjs', ['127.0.0.1', '--port', '1'], 'QUORATE_CM_REJECTED: connecting to 127.0.0.1:1 failed: '],
])('examples/%s %j says in one line what it meets', async (program, args, said) => {
  const child = spawn(process.execPath, [`examples/${program}`, ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
  running.push(child);
  let told = '';
  child.stderr.on('data', (part) => {
    told += part;
  });
  const [status] = await once(child, 'close');
  expect(told).toMatch(/^.+\n$/);
  expect(told.slice(0, said.length)).toBe(said);
  expect(status).toBe(1);
});
