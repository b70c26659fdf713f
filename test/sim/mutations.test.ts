// A short form of `npm run sim:mutations`: ways to break the protocol that must be noticed soon. The long form has more of
// them and gives the rare ones the seeds they need.
import { describe, expect, test } from 'vitest';
import { minimize } from '#lib/testing/minimize.js';
import { tryMutation } from '#lib/testing/mutation-run.js';
import { MUTATIONS } from '#lib/testing/mutations.js';
import { runSimulation } from '#lib/testing/simulation.js';

/**
 * Mutations that nearly every seed shows, or one in a few, and the seed to begin with: the first that showed it. Where a
 * change to what seeds draw makes it miss, those behind it are tried.
 */
const QUICK: Readonly<Record<string, number>> = {
  'grant-without-drain': 4,
  'writer-not-revoked': 1,
  'failed-revocation-counts': 1,
  'failed-grant-left-open': 1,
  'failed-grant-forgotten': 1,
  'skip-tail-repair': 3,
  'ignore-chain-hash': 6,
  'apply-before-own-epoch-entry': 8,
  'no-grant-guard': 1,
  'recycle-too-early': 3,
  'promise-not-recorded': 1,
  'commit-on-minority': 1,
  'torn-status-accepted': 6,
  'tail-not-published': 8,
  'best-log-not-adopted': 6,
  'broken-link-not-reported': 2,
  'sessions-not-checked': 1,
  'sessions-not-in-snapshot': 5,
  'stale-reads': 2,
  'barrier-without-round': 34,
  'answer-before-commit': 1,
  'two-concurrent-changes': 5,
  'removed-leader-goes-on': 5,
  'configuration-not-forgotten': 3,
  'returns-in-one-step': 8,
  'lease-not-waited-out': 2,
  'own-log-granted-in-lease': 1,
  'lease-ignores-drift': 5,
  'lease-checked-before-read': 4,
  'lease-not-checked': 1,
  'leased-read-before-applied': 1,
  'lease-counted-from-receipt': 5,
  'clocks-worse-than-bound': 5,
  'follower-reads-before-applied': 1,
  'replace-below-quorum': 53,
  'replace-before-catch-up': 2,
  'counts-before-synced': 1,
  'commit-on-memory': 1,
  'promise-not-on-disk': 1,
  'torn-tail-taken': 5,
  'disk-error-ignored': 1,
  'promise-error-ignored': 1,
  'lost-disk-votes': 1,
  'fork-of-worse-log': 8,
  'fork-drops-tail': 1,
  'fork-forgets-sessions': 1,
  'fork-keeps-epochs': 6,
  'fork-in-force-before-whole': 1,
  'fork-leaves-old-log': 1,
  'fork-keeps-promise': 1,
  'snapshot-before-log': 1,
  'earlier-snapshot-releases': 86,
};

describe('mutations', () => {
  test('are at least fifteen, with names of their own', () => {
    expect(MUTATIONS.length).toBeGreaterThanOrEqual(15);
    expect(new Set(MUTATIONS.map(({ name }) => name)).size).toBe(MUTATIONS.length);
  });

  test('are undone completely', () => {
    const request = { seed: 4712, replicas: 3, virtualSeconds: 5 };
    const before = runSimulation(request);
    for (const { install } of MUTATIONS) install()();
    expect(runSimulation(request)).toEqual(before);
  });

  test.each(Object.entries(QUICK))('%s is noticed', { timeout: 180_000 }, (name, firstSeed) => {
    const mutation = MUTATIONS.find((candidate) => candidate.name === name);
    if (mutation === undefined) throw new Error(`there is no mutation ${name}`);
    const verdict = tryMutation(mutation, { firstSeed, virtualSeconds: 7 });
    expect(verdict.caught, `${name} was not noticed by seeds ${firstSeed} to ${verdict.seed}`).toBe(true);
  });

  test('leave a failing run that can be made simpler', { timeout: 120_000 }, () => {
    const mutation = MUTATIONS.find(({ name }) => name === 'writer-not-revoked');
    const mend = mutation?.install() as () => void;
    try {
      const { request, result } = minimize({ seed: 1, replicas: 3, virtualSeconds: 5 });
      expect(result.violation?.invariant).toBe('single writer');
      expect(request.without?.length).toBeGreaterThan(0);
      expect(runSimulation(request).violation).toEqual(result.violation);
    } finally {
      mend();
    }
  });

  test('leave the request of a slow run that fails, if nothing simpler does', { timeout: 120_000 }, () => {
    const mutation = MUTATIONS.find(({ name }) => name === 'skip-tail-repair');
    const mend = mutation?.install() as () => void;
    try {
      const { request, result } = minimize({ seed: 2, replicas: 3, virtualSeconds: 45 });
      expect(result.options.pace).toBeGreaterThan(1);
      expect(runSimulation(request).violation).toEqual(result.violation);
    } finally {
      mend();
    }
  });
});
