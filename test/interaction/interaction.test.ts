// Runs every script of this folder and compares what its commands say with what is written in it; the language is
// explained in lib/testing/interaction.ts. After a change on purpose `npx vitest run test/interaction -u` writes the scripts
// anew: read the difference before you keep it. A script that breaks an invariant fails, whatever is written in it.
//
// Each script also has a way to break the protocol that it must notice, or it would guard nothing.
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { runInteraction } from '#lib/testing/interaction.js';
import {
  candidatesTooFarBehind,
  commitByEntriesOnly,
  commonLogForgotten,
  leftOutHoweverMuchItLacks,
  lonelyLeaderGoesOn,
  type Mutant,
  mutation,
  neverDropped,
  newerStateUnbelievable,
  nobodyIsWoken,
  otherNotTried,
  placeOfReturningForgotten,
  removalBelieved,
  removalBelievedHalfWay,
  removedLeaderBeginsAChange,
  repairNeverComplete,
  repairsWithoutALink,
  requestsWakeNobody,
  ringNotProven,
  snapshotIsNotNoted,
  stallAtOnce,
  stallUnnoticed,
  successorNotWaitedFor,
  waitsForEver,
  walkBegunAnew,
} from '../support/mutants.js';

const folder = dirname(fileURLToPath(import.meta.url));
const scripts = readdirSync(folder).filter((name) => name.endsWith('.txt'));

/** What each script must notice: by a violation, by waiting in vain, or by another trace. */
const NOTICED: Readonly<Record<string, readonly Mutant[]>> = {
  'first-election.txt': [mutation('elect-on-minority')],
  'lease.txt': [mutation('recall-not-looked-at'), mutation('lease-not-checked')],
  'lease-waited-out.txt': [mutation('lease-not-waited-out')],
  'last-entry.txt': [commitByEntriesOnly],
  'crash-adopt-tail.txt': [mutation('best-log-not-adopted'), mutation('tail-not-published')],
  'crash-uncommitted-tail.txt': [mutation('tail-not-published')],
  'paused-leader-continues.txt': [mutation('tail-not-revalidated'), mutation('skip-tail-repair')],
  'stopped-leader-device-goes-on.txt': [mutation('tail-not-published')],
  'stale-write-refused.txt': [mutation('writer-not-revoked')],
  'two-candidates.txt': [mutation('promise-not-recorded')],
  'late-follower.txt': [mutation('broken-link-not-reported')],
  'one-way-partition.txt': [mutation('no-grant-guard')],
  'promised-later-epoch.txt': [mutation('outpromised-voter-left-out')],
  'ring-backpressure.txt': [mutation('recycle-too-early'), mutation('recycle-unchecked')],
  'dropped-follower.txt': [neverDropped],
  'lost-memory.txt': [mutation('old-life-counts')],
  'lost-memory-does-not-vote.txt': [mutation('old-life-counts')],
  'majority-lost.txt': [mutation('commit-on-minority')],
  'half-an-entry.txt': [mutation('commit-within-an-entry')],
  'majority-first-learner.txt': [leftOutHoweverMuchItLacks],
  'majority-first.txt': [mutation('left-out-follower-forgotten'), otherNotTried],
  'repair-nothing-to-send.txt': [repairNeverComplete],
  'overwritten-ring.txt': [mutation('repair-from-overwritten-ring')],
  'overwritten-ring-unseen.txt': [ringNotProven, mutation('repair-from-overwritten-ring')],
  'too-far-behind.txt': [candidatesTooFarBehind],
  'below-a-snapshot.txt': [snapshotIsNotNoted, candidatesTooFarBehind],
  'snapshot-in-takeover.txt': [mutation('no-snapshot-in-takeover')],
  'link-lost-in-takeover.txt': [repairsWithoutALink],
  'long-tail-follower.txt': [walkBegunAnew],
  'stalled-leader.txt': [stallUnnoticed, stallAtOnce],
  'woken-for-election.txt': [nobodyIsWoken, requestsWakeNobody],
  'grow-and-shrink.txt': [mutation('removed-leader-goes-on')],
  'lonely-leader.txt': [lonelyLeaderGoesOn],
  'removed-leader.txt': [removedLeaderBeginsAChange],
  'returned-and-gone-again.txt': [placeOfReturningForgotten],
  'removed-and-added-again.txt': [removalBelieved],
  'removed-and-added-again-far-behind.txt': [removalBelieved, removalBelievedHalfWay],
  'stale-leader-met-a-newer-state.txt': [newerStateUnbelievable],
  'stale-leader-met-a-newer-voter.txt': [newerStateUnbelievable],
  'learner-does-not-count.txt': [mutation('learner-counts'), mutation('promotion-before-catch-up')],
  'learner-with-a-snapshot.txt': [commonLogForgotten],
  'configuration-overwritten.txt': [mutation('configuration-not-forgotten')],
  'one-change-at-a-time.txt': [mutation('two-concurrent-changes')],
  'change-after-own-noop.txt': [mutation('change-before-own-noop')],
  'priorities-disagree.txt': [waitsForEver],
  'transfer.txt': [successorNotWaitedFor],
  'read-at-new-leader.txt': [mutation('barrier-before-own-noop'), mutation('barrier-before-applied')],
  'read-at-deposed-leader.txt': [mutation('barrier-without-round'), mutation('barrier-counts-earlier-writes')],
};

const textOf = (name: string): string => readFileSync(join(folder, name), 'utf8');

describe('scripts', () => {
  test.each(scripts)('%s', async (name) => {
    const { text, violation } = runInteraction(textOf(name));
    expect(violation).toBeNull();
    await expect(text).toMatchFileSnapshot(join(folder, name));
  });

  test('all have something that they must notice', () => {
    expect(scripts.filter((name) => NOTICED[name] === undefined)).toEqual([]);
  });

  const pairs = Object.entries(NOTICED).flatMap(([script, mutants]) =>
    mutants.map((mutant) => ({ script, mutant, name: mutant.name })),
  );
  test.each(pairs)('$script notices: $name', ({ script, mutant }) => {
    const good = textOf(script);
    const mend = mutant.install();
    let bad: string;
    try {
      bad = runInteraction(good).text;
    } catch (error) {
      bad = String(error);
    } finally {
      mend();
    }
    expect(bad).not.toBe(good);
  });
});

describe('a script', () => {
  test('says the same every time', () => {
    const script = textOf('two-candidates.txt');
    expect(runInteraction(script).text).toBe(runInteraction(script).text);
  });

  test('keeps its comments, and takes what was written behind its commands for nothing', () => {
    const { text } = runInteraction('# why\n\ncluster 3\ntrace none\n----\nsomething else\n\ntime\n');
    expect(text).toBe(
      '# why\n\ncluster 3\ntrace none\n----\nr0 starts\nr1 starts\nr2 starts\n\ntime\n----\n0.000 ms\n',
    );
  });

  test('may have the line ends of Windows, and has them still when it has been run', () => {
    const good = textOf('majority-lost.txt');
    const { text } = runInteraction(good.replaceAll('\n', '\r\n'));
    expect(text).toBe(good.replaceAll('\n', '\r\n'));
  });

  test('that breaks an invariant says so and goes no further', () => {
    const mend = mutation('commit-on-minority').install();
    try {
      const { text, violation } = runInteraction('cluster 3\ntrace none\nrun 1s\n\nstatus\n');
      expect(violation?.invariant).toBe('durability');
      expect(text).toContain('VIOLATION of durability');
      expect(text.endsWith('status\n----\nok\n')).toBe(true);
    } finally {
      mend();
    }
  });

  test.each([
    ['crash 0', "line 1, 'crash 0': there is no cluster yet"],
    ['cluster 3\n\nfly 0', "line 3, 'fly 0': this command is unknown"],
    ['cluster 99', '99 replicas are not in 1..7'],
    ['cluster 3 log=16', 'a log of 16 KiB is not possible: log must be a power of two in 64..1048576'],
    ['cluster 3 log=96', 'a log of 96 KiB is not possible'],
    ['cluster 3\nrun 5 ms', "'5' is no duration"],
    ['cluster 3\ncrash 3', 'there is no replica 3'],
    ['cluster 3\nresume 0', 'replica 0 is not stopped'],
    ['cluster 3\ncrash 0\ncrash 0', 'replica 0 is down'],
    ['cluster 3\npropose 0 what', "'what' is no command"],
    ['cluster 3\npartition 0 1 2\nrun until leader 2 within 1ms', 'waited 1 ms of virtual time for: replica 2 to lead'],
    ['cluster 3 joiners=14', '14 joiners are not in 0..13'],
    ['cluster 3 jioners=2', "'jioners=2' means nothing here"],
    ['cluster 3 seed=', "'' is no count"],
    ['cluster 3\nrun 5ms 6ms', "'6ms' means nothing here"],
    ['cluster 3\nrun until converged 1', "'1' means nothing here"],
    ['cluster 3\nrun until leader 0 within 1ms 2', "'2' means nothing here"],
    ['cluster 3\nheal 0 1', "'0' means nothing here"],
    ['cluster 3\ncrash 0 1', "'1' means nothing here"],
    ['cluster 3\ntrace none\nrun until leader\nremove 1 2', "'2' means nothing here"],
    ['cluster 3\npartition 1 |', "'' is no count"],
    ['cluster 3\nrun until leader\npriority 1', "line 3, 'priority 1': 'undefined' is no count"],
    ['cluster 3\nrestart 0', 'replica 0 is up already'],
    ['# nothing', 'the script has no command'],
    [undefined as never, 'a script is a text'],
  ])('with a mistake is an error that names it: %j', (script, message) => {
    const run = () => runInteraction(script);
    expect(run).toThrow(message);
    const code = message.startsWith('waited') ? 'QUORATE_TIMEOUT' : 'QUORATE_INVALID_ARGUMENT';
    expect(run).toThrow(expect.objectContaining({ code }));
  });
});
