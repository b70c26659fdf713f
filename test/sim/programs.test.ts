// What the simulator's programs say of options that cannot be, and when they end, as their users meet it.
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { constants } from 'node:os';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

function pathOf(program: string): string {
  return fileURLToPath(new URL(`../../dist/cli/${program}`, import.meta.url));
}

function run(program: string, ...args: string[]) {
  return spawnSync(process.execPath, [pathOf(program), ...args], { encoding: 'utf8', timeout: 60_000 });
}

test.each([
  ['sim.js', ['--virtual-seconds', '86401'], 'must be from 2 to 86400 seconds.'],
  ['sim.js', ['--seed', ''], 'must be an integer from 0 to 1099511627776.'],
  ['sim-mutations.js', ['--virtual-seconds', '86401'], 'must be an integer from 1 to 86400.'],
  ['sim-mutations.js', ['--seeds', '0'], 'must be an integer from 1 to 1099511627776.'],
  ['sim-mutations.js', ['--only', 'gremlins'], "there is no mutation 'gremlins'; --list shows all."],
])('%s %j is refused in one line', { timeout: 60_000 }, (program, args, problem) => {
  const { status, stdout, stderr } = run(program, ...args);
  const [option, value] = args;
  expect(stderr).toMatch(/^error: option .*\n$/);
  expect(stderr).toContain(`${option} `);
  expect(stderr).toContain(`argument '${value}' is invalid. ${problem}\n`);
  expect(stdout).toBe('');
  expect(status).toBe(1);
});

test.each([
  ['sim.js', ['--seeds', '5', '--virtual-seconds', '2']],
  ['sim-mutations.js', ['--only', 'stale-reads,promise-not-recorded,commit-on-minority']],
])('%s ends without a word when its output is not read any more', { timeout: 60_000 }, async (program, args) => {
  const child = spawn(process.execPath, [pathOf(program), ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  const ended = once(child, 'exit');
  const told: Buffer[] = [];
  child.stderr.on('data', (part: Buffer) => told.push(part));
  await once(child.stdout, 'data');
  child.stdout.destroy();
  expect(await ended).toEqual([128 + constants.signals.SIGPIPE, null]);
  expect(Buffer.concat(told).toString()).toBe('');
});
