// What the simulator's programs say of options that cannot be, as their users meet it.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

function run(program: string, ...args: string[]) {
  const path = fileURLToPath(new URL(`../../dist/cli/${program}`, import.meta.url));
  return spawnSync(process.execPath, [path, ...args], { encoding: 'utf8', timeout: 60_000 });
}

test.each([
  ['sim.js', ['--virtual-seconds', '86401'], 'must be from 2 to 86400 seconds.'],
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
