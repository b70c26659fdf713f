// The command lines of the benchmarks, as their users meet them: what there is, and what is wrong with what was given.
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..');
const TIMEOUT_MS = 20_000;
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
