// The nemesis on durable replicas: all of them lose power at once, again and again, between the other faults, and come back
// from their directories; and whether it notices disks that lost what they had synced.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, test } from 'vitest';
import { canMountPrivately } from '#lib/cli/nemesis/private-memory.js';
import { whyNoThinDisks } from '#lib/cli/nemesis/thin-disk.js';
import { runDemo, startDemo } from '../demo/support/demo-process.ts';

const folder = mkdtempSync(join(tmpdir(), 'quorate-nemesis-test-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const TIMEOUT_MS = 150_000;
const SEED = 32;

/** Runs make their folders here, where no other run does. */
const IN_OWN_FOLDER = { program: 'nemesis.js', timeoutMs: TIMEOUT_MS, env: { TMPDIR: folder } } as const;

const canMount = canMountPrivately();
/** They lose what had not reached them when the power goes. */
const canHaveThinDisks = canMount && whyNoThinDisks() === undefined;

test(
  'durable replicas that lose power, disks and members come back with all that was acknowledged',
  async () => {
    const disks = canHaveThinDisks ? ['--disks', 'thin'] : [];
    const args = ['--durable', '--minutes', '0.25', '--seed', `${SEED}`, ...disks, '--out', folder, '--verbose'];
    const { code, summary, errors } = await runDemo(args, IN_OWN_FOLDER);
    const number = expect.any(Number);
    expect(summary, errors).toMatchObject({
      violations: 0,
      powerLosses: { count: number, returnMs: { p50: number, max: number }, limitMs: 45_000 },
    });
    expect(code, errors).toBe(0);
    const { count } = (summary as { powerLosses: { count: number } }).powerLosses;
    expect(count, errors).toBeGreaterThanOrEqual(1);
    expect(summary?.['operations'], errors).toBeGreaterThan(200);
    expect(errors).toContain(`seed ${SEED}`);
    expect(errors).toMatch(new RegExp(`power losses +${count}; first commit after the start: .*, limit 45 s`));
    if (canHaveThinDisks) expect(errors).toContain('(disks: thin)');
    // The last fault of every run: what all of it acknowledged must be on the disks.
    expect(errors).toMatch(/power loss \d+: replica \d serves in epoch [\d.]+, and all are open\n.* all is healed/);
    expect(errors).toMatch(/states +agree/);
    expect(readdirSync(folder)).toEqual([]);
  },
  TIMEOUT_MS,
);

/** A run in which nothing but this happens to disks: each replica says what became of its own, and another one leads. */
async function stopDisks(kind: 'diskFull' | 'diskFailure', noticed: RegExp): Promise<void> {
  const args = ['--durable', '--minutes', '0.1', '--seed', `${SEED}`, '--faults', kind, '--out', folder, '--verbose'];
  const { code, summary, errors } = await runDemo(args, IN_OWN_FOLDER);
  expect(summary, errors).toMatchObject({ violations: 0 });
  expect(code, errors).toBe(0);
  const count = errors.match(noticed)?.length ?? 0;
  expect(count, errors).toBeGreaterThanOrEqual(1);
  expect(errors).toMatch(new RegExp(`faults +${kind} ${count}\n`));
  expect(summary?.['leaderChanges'], errors).toBeGreaterThanOrEqual(1);
  expect(errors).toMatch(/states +agree/);
  expect(readdirSync(folder)).toEqual([]);
}

test.skipIf(!canMount)(
  'a replica whose disk is full says so, does not lead, and is a voter again when there is room',
  () => stopDisks('diskFull', /the disk of replica \d is full, and it says so/g),
  TIMEOUT_MS,
);

test.skipIf(!canHaveThinDisks)(
  'a replica whose disk fails says so, does not lead, and is a voter again when the disk is sound',
  () => stopDisks('diskFailure', /the disk of replica \d failed: QUORATE_DISK_(FAILED|FULL)/g),
  TIMEOUT_MS,
);

describe('disks that lost what they had synced', () => {
  /** A run in which power is lost and nothing else happens, on such disks. */
  async function run(lost: 'end' | 'all' | 'patience', ...more: string[]) {
    const lying = fileURLToPath(new URL('support/disks-that-lie.mjs', import.meta.url));
    const args = ['--durable', '--disks', 'machine', '--minutes', '0.05', '--seed', '7', '--faults', 'powerLoss'];
    args.push('--out', folder, ...more);
    return await startDemo(args, {
      ...IN_OWN_FOLDER,
      env: { ...IN_OWN_FOLDER.env, NODE_OPTIONS: `--import=${lying}`, DISKS_LOSE: lost },
    }).ended;
  }

  /** They are kept for whoever looks into it. */
  function removeKept(output: string): void {
    const kept = /the directories of the replicas are kept: (\S+)/.exec(output)?.[1];
    expect(readdirSync(kept as string).sort()).toEqual(['replica-0', 'replica-1', 'replica-2']);
    rmSync(kept as string, { recursive: true });
  }

  test(
    'are convicted by what clients were answered before',
    async () => {
      const { code, output, errors } = await run('end');
      expect(errors, output).toMatch(
        /VIOLATION: (the history of key \d+ has no linearization|a session lost a command)/,
      );
      expect(code).toBe(1);
      removeKept(output);
    },
    TIMEOUT_MS,
  );

  test(
    'are convicted by an epoch that comes twice, if all is gone',
    async () => {
      // This seed draws nothing but pauses, so the first power loss is that of the end, before which clients have done much.
      const { code, output, errors } = await run('all', '--faults', 'pause,powerLoss', '--seed', '2');
      expect(errors).toMatch(
        /FAILED: after power loss 1 replica \d leads in epoch [\d.]+, and epoch [\d.]+ was before it/,
      );
      expect(code).toBe(1);
      removeKept(output);
    },
    TIMEOUT_MS,
  );

  test(
    'or that never answer again fail the run when the limit is reached',
    async () => {
      const { code, output, errors } = await run('patience', '--recovery-seconds', '5'); // nothing comes, however long it waits
      expect(errors).toMatch(
        /FAILED: the cluster does not converge: no sign of a commit after power loss \d+ after 5000 ms/,
      );
      expect(code).toBe(1);
      removeKept(output);
    },
    TIMEOUT_MS,
  );
});

test('a power loss is refused where replicas have no disks', async () => {
  const args = ['--faults', 'powerLoss,kill'];
  const { code, errors } = await startDemo(args, IN_OWN_FOLDER).ended;
  expect(errors).toMatch(/--faults powerLoss needs replicas with a disk to come back from: add --durable/);
  expect(code).not.toBe(0);
});
