// A short form of `npm run sim:mutations`: ways to break the protocol that must be noticed soon. The long form has more of
// them and gives the rare ones the seeds they need.
import { describe, expect, test } from 'vitest';
import { minimize } from '#lib/testing/minimize.js';
import { tryMutation } from '#lib/testing/mutation-run.js';
import { MUTATIONS } from '#lib/testing/mutations.js';
import { runSimulation } from '#lib/testing/simulation.js';

/** Mutations that nearly every seed shows, or one in a few. */
const QUICK: readonly string[] = [
  'grant-without-drain',
  'writer-not-revoked',
  'skip-tail-repair',
  'ignore-chain-hash',
  'apply-before-own-epoch-entry',
  'no-grant-guard',
  'recycle-too-early',
  'promise-not-recorded',
  'commit-on-minority',
  'torn-status-accepted',
  'tail-not-published',
  'best-log-not-adopted',
  'broken-link-not-reported',
  'sessions-not-checked',
  'sessions-not-in-snapshot',
  'stale-reads',
  'barrier-without-round',
  'answer-before-commit',
  'two-concurrent-changes',
  'removed-leader-goes-on',
  'configuration-not-forgotten',
  'returns-in-one-step',
  'lease-not-waited-out',
  'own-log-granted-in-lease',
  'lease-ignores-drift',
  'lease-checked-before-read',
  'lease-not-checked',
  'leased-read-before-applied',
  'lease-counted-from-receipt',
  'clocks-worse-than-bound',
  'follower-reads-before-applied',
  'replace-below-quorum',
  'replace-before-catch-up',
  'counts-before-synced',
  'commit-on-memory',
  'promise-not-on-disk',
  'torn-tail-taken',
  'disk-error-ignored',
  'promise-error-ignored',
  'lost-disk-votes',
  'fork-of-worse-log',
  'fork-drops-tail',
  'fork-forgets-sessions',
  'fork-keeps-epochs',
  'fork-in-force-before-whole',
  'fork-leaves-old-log',
  'fork-keeps-promise',
  'snapshot-before-log',
  'earlier-snapshot-releases',
];

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

  test.each(QUICK)('%s is noticed', { timeout: 180_000 }, (name) => {
    const mutation = MUTATIONS.find((candidate) => candidate.name === name);
    if (mutation === undefined) throw new Error(`there is no mutation ${name}`);
    const verdict = tryMutation(mutation, { firstSeed: 1, virtualSeconds: 7 });
    expect(verdict.caught, `${name} was not noticed by seeds 1 to ${verdict.seed}`).toBe(true);
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
});
