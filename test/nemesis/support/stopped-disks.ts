// Runs of the nemesis in which nothing but one fault happens to disks.
import { readdirSync } from 'node:fs';
import { expect } from 'vitest';
import { runDemo } from '../../demo/support/demo-process.ts';
import { TIMEOUT_MS } from './lying-disks.ts';

const SEED = 32;

/** Each replica says what became of its own disk, and another one leads. The run makes its folders in `folder`. */
export async function stopDisks(folder: string, kind: 'diskFull' | 'diskFailure', noticed: RegExp): Promise<void> {
  const args = ['--durable', '--minutes', '0.1', '--seed', `${SEED}`, '--faults', kind, '--out', folder, '--verbose'];
  const env = { TMPDIR: folder };
  const { code, summary, errors } = await runDemo(args, { program: 'nemesis.js', timeoutMs: TIMEOUT_MS, env });
  expect(summary, errors).toMatchObject({ violations: 0 });
  expect(code, errors).toBe(0);
  const count = errors.match(noticed)?.length ?? 0;
  expect(count, errors).toBeGreaterThanOrEqual(1);
  expect(errors).toMatch(new RegExp(`faults +${kind} ${count}\n`));
  expect(summary?.['leaderChanges'], errors).toBeGreaterThanOrEqual(1);
  expect(errors).toMatch(/states +agree/);
  expect(readdirSync(folder)).toEqual([]);
}
