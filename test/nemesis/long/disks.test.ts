// More of the nemesis on disks: whether it notices those that lost the end of what they had synced, by what clients were answered
// before, and those that never answer again; and disks that fail. test/nemesis/durable.test.ts has those that lost all, or are full.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { canMountPrivately } from '#lib/cli/nemesis/private-memory.js';
import { whyNoThinDisks } from '#lib/cli/nemesis/thin-disk.js';
import { removeKept, runOnLyingDisks, TIMEOUT_MS } from '../support/lying-disks.ts';
import { stopDisks } from '../support/stopped-disks.ts';

const folder = mkdtempSync(join(tmpdir(), 'quorate-nemesis-test-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const canHaveThinDisks = canMountPrivately() && whyNoThinDisks() === undefined;

test.skipIf(!canHaveThinDisks)(
  'a replica whose disk fails says so, does not lead, and is a voter again when the disk is sound',
  () => stopDisks(folder, 'diskFailure', /the disk of replica \d failed: QUORATE_DISK_(FAILED|FULL)/g),
  TIMEOUT_MS,
);

test(
  'disks that lost what they had synced are convicted by what clients were answered before',
  async () => {
    const { code, output, errors } = await runOnLyingDisks(folder, 'end');
    expect(errors, output).toMatch(/VIOLATION: (the history of key \d+ has no linearization|a session lost a command)/);
    expect(code).toBe(1);
    removeKept(output);
  },
  TIMEOUT_MS,
);

test(
  'disks that never answer again fail the run when the limit is reached',
  async () => {
    const { code, output, errors } = await runOnLyingDisks(folder, 'patience', '--recovery-seconds', '15'); // nothing comes, however long it waits
    expect(errors).toMatch(
      /FAILED: the cluster does not converge: no sign of a commit after power loss \d+ after 15000 ms/,
    );
    expect(code).toBe(1);
    removeKept(output);
  },
  TIMEOUT_MS,
);
