// The command lines of the benchmarks, as their users meet them: what there is, and what is wrong with what was given.
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..');
const TIMEOUT_MS = 20_000;
const INTERRUPTED = 128 + constants.signals.SIGINT;
const NOT_READ = 128 + constants.signals.SIGPIPE;
const STACK = /^ {4}at /m;

function run(program: string, ...args: string[]) {
  const options = { cwd: root, encoding: 'utf8', timeout: TIMEOUT_MS } as const;
  const { status, stdout, stderr } = spawnSync(process.execPath, [`bench/${program}`, ...args], options);
  return { status, stdout, stderr };
}

describe.each(readdirSync(resolve(root, 'bench')).filter((name) => name.endsWith('.mjs')))('bench/%s', (program) => {
  it('tells what it takes', { timeout: TIMEOUT_MS }, () => {
    const { status, stdout, stderr } = run(program, '--help');
    const text = stdout + stderr;
    expect(text).toContain(`node bench/${program} [`);
    expect(text).toContain('--json');
    expect(text).not.toMatch(/^import /m);
    expect(text).not.toMatch(STACK);
    expect(status).toBe(0);
  });

  it('names an option that it does not know', { timeout: TIMEOUT_MS }, () => {
    const { status, stdout, stderr } = run(program, '--no-such-option');
    expect(stderr).toContain("Unknown option '--no-such-option'");
    expect(stderr).not.toMatch(STACK);
    expect(stdout).toBe('');
    // 1 stands for late bytes there.
    expect(status).toBe(program === 'revocation-race.mjs' ? 2 : 1);
  });
});

it.each([
  ['failover.mjs', ['--rounds', ''], '--rounds is ""; it must be a whole number from 1 to 10000'],
  ['failover.mjs', ['--signal', 'SIGHUP'], '--signal is "SIGHUP"; it must be one of SIGKILL, SIGSTOP'],
  ['smoke.mjs', ['--payload', '1e3'], '--payload is "1e3"; it must be a whole number from 32 to 65536'],
  ['rereplication.mjs', ['--sizes', '1,4096'], '--sizes is "4096"; it must be a whole number from 1 to 2048'],
  ['durable.mjs', ['--ops', 'many'], '--ops is "many"; it must be a whole number from 1 to 1000000'],
])('bench/%s %j', { timeout: TIMEOUT_MS }, (program, args, problem) => {
  const { status, stderr } = run(program, ...args);
  expect(stderr).toBe(`${problem}\nThe option --help says what there is.\n`);
  expect(status).toBe(1);
});

it.each([
  ['failover.mjs', ['--rounds', '10000', '--quiet-seconds', '0']],
  ['smoke.mjs', ['--rounds', '1']],
  ['rereplication.mjs', ['--sizes', '1']],
])('bench/%s ends as interrupted when it is', { timeout: TIMEOUT_MS }, async (program, args) => {
  const child = spawn(process.execPath, [`bench/${program}`, ...args], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const ended = once(child, 'close'); // its replicas have the same output, and so have ended as well then
  await once(child.stdout, 'data');
  child.kill('SIGINT');
  expect(await ended).toEqual([INTERRUPTED, null]);
});

it('bench/smoke.mjs ends without a word when its output is not read any more', { timeout: TIMEOUT_MS }, async () => {
  const args = ['bench/smoke.mjs', '--rounds', '0'];
  const child = spawn(process.execPath, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] });
  const ended = once(child, 'exit');
  const told: Buffer[] = [];
  child.stderr.on('data', (part: Buffer) => told.push(part));
  await once(child.stdout, 'data');
  child.stdout.destroy();
  expect(await ended).toEqual([NOT_READ, null]);
  expect(Buffer.concat(told).toString()).toBe('');
});

describe('bench/durable.mjs', () => {
  const folder = mkdtempSync(join(tmpdir(), 'quorate-bench-test-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it('names a directory that it cannot use', { timeout: TIMEOUT_MS }, () => {
    const missing = join(folder, 'missing');
    const { status, stderr } = run('durable.mjs', '--directory', missing);
    expect(stderr).toContain(`--directory ${missing}: ENOENT`);
    expect(stderr).not.toMatch(STACK);
    expect(status).toBe(1);
  });

  it('leaves nothing in its directory when it is interrupted', { timeout: TIMEOUT_MS }, async () => {
    const args = ['bench/durable.mjs', '--ops', '10', '--directory', folder];
    const child = spawn(process.execPath, args, { cwd: root, stdio: ['ignore', 'ignore', 'pipe'] });
    const ended = once(child, 'close');
    await once(child.stderr, 'data'); // the time of a sync
    expect(readdirSync(folder)).toHaveLength(1);
    child.kill('SIGINT');
    const [status] = await ended;
    expect(status).toBe(INTERRUPTED);
    expect(readdirSync(folder)).toEqual([]);
  });
});
