// The formal model within its smaller bounds: spin visits every state without finding an error, and finds one in each
// broken variant. `npm run model` does the same within larger bounds.
import { execFile, spawnSync } from 'node:child_process';
import { dirname, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..');
const TIMEOUT_MS = 300_000;

const missing = ['spin', 'gcc'].filter((tool) => spawnSync(tool, ['--version'], { stdio: 'ignore' }).error);

async function runModel(...args: string[]): Promise<{ code: number; output: string; errors: string }> {
  const options = { cwd: root, timeout: TIMEOUT_MS, encoding: 'utf8' as const };
  try {
    const { stdout, stderr } = await promisify(execFile)(process.execPath, ['scripts/model.mjs', ...args], options);
    return { code: 0, output: stdout, errors: stderr };
  } catch (error) {
    const { code, stdout, stderr } = error as { code: number; stdout: string; stderr: string };
    return { code, output: stdout, errors: stderr };
  }
}

const suffix = missing.length > 0 ? ` (skipped: ${missing.join(' and ')} not installed, see npm run setup)` : '';

describe.skipIf(missing.length > 0)(`the formal model${suffix}`, () => {
  test(
    'has no error in any state within the quick bounds, and every broken variant has one',
    async () => {
      const { code, output, errors } = await runModel('--quick', '--json');
      expect(code, `${output}${errors}`).toBe(0);
      const result = JSON.parse(output.trimEnd().split('\n').at(-1) as string);
      expect(result).toMatchObject({ errors: 0, mutations: 8, caught: 8, missed: [] });
      // A search that ended early would have visited fewer.
      expect(result.states).toBeGreaterThan(100_000);
      expect(output).toContain('every state within the bounds was visited');
    },
    TIMEOUT_MS,
  );

  test(
    'shows the steps of a counterexample',
    async () => {
      const { code, output, errors } = await runModel('--only', 'no-drain', '--trace');
      expect(code, `${output}${errors}`).toBe(0);
      expect(output).toMatch(/no-drain[\s\S]*no late WRITE[\s\S]*promises epoch[\s\S]*a write of replica/);
    },
    TIMEOUT_MS,
  );
});

test('a mutation that does not exist is named in the error', async () => {
  const { code, errors } = await runModel('--only', 'no-such-rule');
  expect(code).toBe(1);
  expect(errors).toMatch(/no mutation "no-such-rule"; there are: no-drain/);
});

test('--help says what there is', async () => {
  const { code, output, errors } = await runModel('--help');
  expect(output).toContain('usage: npm run model -- [--quick]');
  expect(code, errors).toBe(0);
});
