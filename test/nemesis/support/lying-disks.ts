// Runs of the nemesis in which power is lost, and disks lose what they had synced.
import { readdirSync, rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect } from 'vitest';
import { type DemoProcess, startDemo } from '../../demo/support/demo-process.ts';

export const TIMEOUT_MS = 150_000;

/** The run makes its folders in `folder`. They lose the end of the log, or all of it, or do not answer any more. */
export async function runOnLyingDisks(
  folder: string,
  lost: 'end' | 'all' | 'patience',
  ...more: string[]
): Promise<Awaited<DemoProcess['ended']>> {
  const lying = fileURLToPath(new URL('disks-that-lie.mjs', import.meta.url));
  const args = ['--durable', '--disks', 'machine', '--minutes', '0.05', '--seed', '7', '--faults', 'powerLoss'];
  args.push('--out', folder, ...more);
  return await startDemo(args, {
    program: 'nemesis.js',
    timeoutMs: TIMEOUT_MS,
    env: { TMPDIR: folder, NODE_OPTIONS: `--import=${lying}`, DISKS_LOSE: lost },
  }).ended;
}

/** The directories of the replicas, which are kept for whoever looks into it. */
export function removeKept(output: string): void {
  const kept = /the directories of the replicas are kept: (\S+)/.exec(output)?.[1];
  expect(readdirSync(kept as string).sort()).toEqual(['replica-0', 'replica-1', 'replica-2']);
  rmSync(kept as string, { recursive: true });
}
