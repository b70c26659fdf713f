// A voter whose disk has failed acknowledges nothing, though its memory is written as before. The membership must not be
// changed as if it did: what then could not be committed could not be taken back either.
import { expect, test } from 'vitest';
import type { ScriptedCluster } from '#lib/testing/scripted-cluster.js';
import type { SimDisk } from '#lib/testing/sim-disk.js';
import { durableCluster } from './durable-cluster.ts';

function failDisks(script: ScriptedCluster, ids: readonly number[]): void {
  for (const id of ids) (script.life(id).disk as SimDisk).failsOnce = true;
  const { settled } = apply(script, 'x=1');
  expect(settled).toBe(true);
  script.runUntil('the disks to fail', () => script.cluster.diskFailures === ids.length);
  script.run(50e6);
}

function apply(script: ScriptedCluster, command: string): { settled: boolean } {
  const proposal = script.propose(0, command);
  script.run(200e6);
  return { settled: proposal.outcome?.kind === 'applied' };
}

test('no voter is removed whose disk the majority needs', () => {
  const script = durableCluster(5);
  failDisks(script, [3, 4]);
  const leader = script.life(0);
  expect(leader.changeMembership({ kind: 'remove', id: 2 })).toBe('QUORATE_QUORUM_AT_RISK');
  expect(apply(script, 'x=2').settled).toBe(true);
  // Those without a disk can go.
  expect(leader.changeMembership({ kind: 'remove', id: 3 })).toBe('');
  script.run(50e6);
  expect(leader.changeMembership({ kind: 'remove', id: 4 })).toBe('');
  script.run(50e6);
  expect(leader.changeMembership({ kind: 'remove', id: 2 })).toBe('');
  expect(apply(script, 'x=3').settled).toBe(true);
  expect(leader.replication.appliedConfiguration.voters.map(({ id }) => id)).toEqual([0, 1]);
});

test('no learner becomes a voter whose disk has failed', () => {
  const script = durableCluster(1, 1);
  const leader = script.life(0);
  const member = { id: 1, host: 'sim', port: 2, priority: 0 };
  expect(leader.changeMembership({ kind: 'addLearner', ...member })).toBe('');
  script.run(300e6);
  failDisks(script, [1]);
  expect(leader.changeMembership({ kind: 'promote', id: 1 })).toBe('QUORATE_NOT_CAUGHT_UP');
  expect(apply(script, 'x=2').settled).toBe(true);
});
