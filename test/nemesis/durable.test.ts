// The nemesis on durable replicas: all of them lose power at once, again and again, between the other faults, and come back
// from their directories; and whether it notices disks that lost what they had synced.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { canMountPrivately } from '#lib/cli/nemesis/private-memory.js';
import { whyNoThinDisks } from '#lib/cli/nemesis/thin-disk.js';
import { runDemo, startDemo } from '../demo/support/demo-process.ts';
import { removeKept, runOnLyingDisks, TIMEOUT_MS } from './support/lying-disks.ts';
import { stopDisks } from './support/stopped-disks.ts';

const folder = mkdtempSync(join(tmpdir(), 'quorate-nemesis-test-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

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
    const args = ['--durable', '--minutes', '0.15', '--seed', `${SEED}`, ...disks, '--out', folder, '--verbose'];
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

test.skipIf(!canMount)(
  'a replica whose disk is full says so, does not lead, and is a voter again when there is room',
  () => stopDisks(folder, 'diskFull', /the disk of replica \d is full, and it says so/g),
  TIMEOUT_MS,
);

test(
  'disks that lost all that they had synced are convicted by an epoch that comes twice',
  async () => {
    // This seed draws nothing but pauses, so the first power loss is that of the end, before which clients have done much.
    const { code, output, errors } = await runOnLyingDisks(folder, 'all', '--faults', 'pause,powerLoss', '--seed', '2');
    expect(errors).toMatch(
      /FAILED: after power loss 1 replica \d leads in epoch [\d.]+, and epoch [\d.]+ was before it/,
    );
    expect(code).toBe(1);
    removeKept(output);
  },
  TIMEOUT_MS,
);

test('a power loss is refused where replicas have no disks', async () => {
  const args = ['--faults', 'powerLoss,kill'];
  const { code, errors } = await startDemo(args, IN_OWN_FOLDER).ended;
  expect(errors).toMatch(/--faults powerLoss needs replicas with a disk to come back from: add --durable/);
  expect(code).not.toBe(0);
});
