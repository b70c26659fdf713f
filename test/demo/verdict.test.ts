// The demo's judge can convict: every way in which a run can go wrong is found and named.
import { expect, test } from 'vitest';
import { AuditedStore, encodeAudited } from '#lib/cli/demo/audited-store.js';
import type { ReportMessage } from '#lib/cli/demo/messages.js';
import { judge, type VerdictInput } from '#lib/cli/demo/verdict.js';
import { encodeSet, KeyValueStore } from '#lib/rsm/key-value-store.js';

const ORIGIN = 77;
const TOTAL = 20;

/** What a replica reports that applied these commands, in this order. */
function reportOf(id: number, sequences: readonly number[], appliedLsn = 4096): ReportMessage {
  const state = new AuditedStore();
  sequences.forEach((sequence, index) => {
    state.apply(encodeAudited(ORIGIN, sequence, encodeSet(`key ${sequence % 7}`, `value ${sequence}`)), index * 128);
  });
  return {
    type: 'report',
    id,
    appliedLsn,
    digest: state.store.digest(),
    keys: state.store.size,
    auditDigest: state.auditDigest(),
    applications: state.applications(ORIGIN),
    outOfOrder: state.outOfOrder(ORIGIN),
  };
}

const all = Array.from({ length: TOTAL }, (_, index) => index + 1);

function inputOf(reports: readonly ReportMessage[], changes: Partial<VerdictInput> = {}): VerdictInput {
  const model = new KeyValueStore();
  for (const sequence of all) model.apply(encodeSet(`key ${sequence % 7}`, `value ${sequence}`));
  return {
    replicas: [0, 1, 2],
    reports,
    acknowledged: new Uint8Array(TOTAL).fill(1),
    modelDigest: model.digest(),
    roundsWanted: 1,
    roundsDone: 1,
    ...changes,
  };
}

const good = [0, 1, 2].map((id) => reportOf(id, all));

test('a run in which everything was applied once everywhere is good', () => {
  expect(judge(inputOf(good))).toEqual({ lost: 0, duplicated: 0, digestsAgree: true, problems: [] });
});

test('an acknowledged command that one replica dropped is lost', () => {
  const dropped = all.filter((sequence) => sequence !== 9);
  const verdict = judge(inputOf([good[0]!, reportOf(1, dropped), good[2]!]));
  expect(verdict).toMatchObject({ lost: 1, duplicated: 0, digestsAgree: false });
  expect(verdict.problems.join('\n')).toContain('replica 1 lost command 9, which had been acknowledged');
});

test('an acknowledged command that all replicas dropped is lost, though their states agree', () => {
  const dropped = all.slice(0, -1);
  const verdict = judge(inputOf([0, 1, 2].map((id) => reportOf(id, dropped))));
  expect(verdict).toMatchObject({ lost: 1, duplicated: 0, digestsAgree: false });
  expect(verdict.problems.join('\n')).toContain('not the one that the acknowledged commands lead to');
});

test('the same command lost by several replicas counts once, different ones each', () => {
  const without = (...gone: number[]) => all.filter((sequence) => !gone.includes(sequence));
  const reports = [reportOf(0, without(3, 4)), reportOf(1, without(4, 5)), good[2]!];
  expect(judge(inputOf(reports))).toMatchObject({ lost: 3, duplicated: 0 });
});

test('a command that was applied twice is duplicated, also where that leaves the same state', () => {
  const twice = [...all.slice(0, 5), 5, ...all.slice(5)];
  const verdict = judge(inputOf([0, 1, 2].map((id) => reportOf(id, twice))));
  expect(verdict).toMatchObject({ lost: 0, duplicated: 1, digestsAgree: true });
  expect(verdict.problems.join('\n')).toContain('applied command 5 more than once');
});

test('commands applied in another order are found, also where that leaves the same state', () => {
  const swapped = [2, 1, ...all.slice(2)]; // different keys
  const verdict = judge(inputOf([0, 1, 2].map((id) => reportOf(id, swapped))));
  expect(verdict).toMatchObject({ lost: 0, duplicated: 0, digestsAgree: true });
  expect(verdict.problems.join('\n')).toContain("out of their session's order");
});

test('a state that differs is found though the records of what was applied are equal', () => {
  const differs = { ...good[1]!, digest: new KeyValueStore().digest() };
  const verdict = judge(inputOf([good[0]!, differs, good[2]!]));
  expect(verdict).toMatchObject({ lost: 0, duplicated: 0, digestsAgree: false });
  expect(verdict.problems.join('\n')).toContain('the states of the replicas differ');
});

test('records of what was applied that differ are found', () => {
  const differs = { ...good[1]!, auditDigest: 'other' };
  const verdict = judge(inputOf([good[0]!, differs, good[2]!]));
  expect(verdict.digestsAgree).toBe(false);
  expect(verdict.problems).toHaveLength(1);
});

test('replicas compared at different LSNs, or not at all, do not agree', () => {
  expect(judge(inputOf([good[0]!, good[1]!, reportOf(2, all, 8192)])).digestsAgree).toBe(false);
  const missing = judge(inputOf([good[0]!, good[1]!]));
  expect(missing.digestsAgree).toBe(false);
  expect(missing.problems.join('\n')).toContain('0 reports from replica 2');
  expect(judge(inputOf([])).digestsAgree).toBe(false);
  expect(judge(inputOf([good[0]!, good[1]!, good[1]!])).problems).not.toEqual([]);
});

test('a command that was never acknowledged is a failure, but not a loss', () => {
  const acknowledged = new Uint8Array(TOTAL).fill(1);
  acknowledged[TOTAL - 1] = 0;
  const withIt = judge(inputOf(good, { acknowledged }));
  expect(withIt).toMatchObject({ lost: 0, duplicated: 0 });
  expect(withIt.problems.join('\n')).toContain('never acknowledged: command 20');
  const without = judge(
    inputOf(
      [0, 1, 2].map((id) => reportOf(id, all.slice(0, -1))),
      { acknowledged },
    ),
  );
  expect(without.lost).toBe(0);
});

test('a command that nobody sent is found', () => {
  const verdict = judge(inputOf([0, 1, 2].map((id) => reportOf(id, [...all, TOTAL + 1]))));
  expect(verdict.problems.join('\n')).toContain('only 20 were ever sent');
});

test('a failover that did not happen is a failure', () => {
  expect(judge(inputOf(good, { roundsWanted: 3, roundsDone: 2 })).problems).toEqual(['2 of 3 rounds took place']);
});

test('the record of what was applied survives a snapshot, and garbage is refused', () => {
  const state = new AuditedStore();
  for (const sequence of [1, 2, 2, 4])
    state.apply(
      encodeAudited(5, sequence, encodeSet('k', `${sequence}`)),
      sequence + 10 * state.applications(5).reduce((sum, count) => sum + count, 0),
    );
  state.apply(encodeAudited(6, 1, undefined), 1000);
  expect([...state.applications(5)]).toEqual([1, 2, 0, 1]);
  expect(state.outOfOrder(5)).toBe(2);
  const snapshot = state.snapshot();
  const copy = new AuditedStore();
  copy.restore(snapshot);
  expect(copy.auditDigest()).toBe(state.auditDigest());
  expect(copy.store.digest()).toBe(state.store.digest());
  copy.apply(encodeAudited(5, 2000, undefined), 1001);
  state.apply(encodeAudited(5, 2000, undefined), 1001);
  expect(copy.auditDigest()).toBe(state.auditDigest());
  expect(() => copy.apply(encodeAudited(5, 3, undefined), 1001)).toThrow(/LSN 1001/);
  for (let length = 0; length < snapshot.length; length++) {
    expect(() => new AuditedStore().restore(snapshot.subarray(0, length))).toThrow(/snapshot/);
  }
});
