// Which change of the membership is made and which is refused, from what a leader knows; and how a life learns that it
// was removed.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  type Configuration,
  checkSuccessor,
  genesisConfiguration,
  memberWithId,
  withMember,
  withoutMember,
} from '#lib/consensus/configuration.js';
import { LEARNER_LAG_BYTES_MAX, MAX_REPLICAS } from '#lib/consensus/limits.js';
import {
  chooseSuccessor,
  isRefusal,
  type LeaderView,
  type MembershipChange,
  MembershipWatch,
  planChange,
  planMaintenance,
  standsBefore,
} from '#lib/consensus/membership.js';

const founders = (count: number) => Array.from({ length: count }, (_, id) => ({ id, bootId: 100 + id }));
const genesis = genesisConfiguration(77, founders(3));

/** Replica 0 leads; all members are linked, in the lives that the configuration names, unless it is said otherwise. */
function view(configuration: Configuration, more: Partial<LeaderView> = {}): LeaderView {
  return {
    id: 0,
    linkedLife: (id) => memberWithId(configuration, id)?.bootId ?? 0,
    isActive: () => true,
    lagBytes: () => 0,
    lagBytesMax: LEARNER_LAG_BYTES_MAX,
    trusts: () => true,
    ...more,
  };
}

function plan(configuration: Configuration, change: MembershipChange, more: Partial<LeaderView> = {}): Configuration {
  const next = planChange(configuration, change, view(configuration, more));
  if (isRefusal(next)) throw new Error(next.code);
  checkSuccessor(configuration, next);
  return next;
}

const code = (configuration: Configuration, change: MembershipChange, more: Partial<LeaderView> = {}): string => {
  const next = planChange(configuration, change, view(configuration, more));
  return isRefusal(next) ? next.code : 'made';
};

const address = (id: number) => ({ host: 'h', port: 1 + id });
const added = (id: number): MembershipChange => ({ kind: 'addLearner', id, ...address(id), priority: 0 });
const withLearner = withMember(plan(genesis, added(3)), {
  ...(memberWithId(plan(genesis, added(3)), 3) as Configuration['members'][0]),
  bootId: 103,
});

describe('a change', () => {
  test('adds a learner without a life, which is named when it is seen, and promoted when it has caught up', () => {
    const learner = plan(genesis, added(3));
    expect(memberWithId(learner, 3)).toMatchObject({ role: 'learner', bootId: 0, incarnation: 4 });
    expect(learner.voters).toEqual(genesis.voters);
    const seen = planMaintenance(learner, view(learner, { linkedLife: (id) => 100 + id })) as Configuration;
    expect(memberWithId(seen, 3)).toMatchObject({ role: 'learner', bootId: 103, incarnation: 4 });
    expect(memberWithId(plan(seen, { kind: 'promote', id: 3 }), 3)).toMatchObject({ role: 'voter', incarnation: 4 });
  });

  test.each<[string, MembershipChange, Partial<LeaderView>, string]>([
    ['a learner that lags', { kind: 'promote', id: 3 }, { lagBytes: () => LEARNER_LAG_BYTES_MAX + 1 }, 'NOT_CAUGHT_UP'],
    ['a learner that lags little', { kind: 'promote', id: 3 }, { lagBytes: () => LEARNER_LAG_BYTES_MAX }, ''],
    ['a learner that is repaired', { kind: 'promote', id: 3 }, { isActive: (id) => id !== 3 }, 'NOT_CAUGHT_UP'],
    ['a learner that seems dead', { kind: 'promote', id: 3 }, { trusts: (id) => id !== 3 }, 'NOT_CAUGHT_UP'],
    ['a learner that is not there', { kind: 'promote', id: 3 }, { linkedLife: () => 0 }, 'NOT_CAUGHT_UP'],
    ['a learner in another life', { kind: 'promote', id: 3 }, { linkedLife: () => 999 }, 'NOT_CAUGHT_UP'],
    [
      'a learner when too few are there',
      { kind: 'promote', id: 3 },
      { isActive: (id) => id === 0 || id === 3 },
      'QUORUM_AT_RISK',
    ],
    ['a voter', { kind: 'promote', id: 1 }, {}, 'MEMBER_EXISTS'],
    ['nobody', { kind: 'promote', id: 9 }, {}, 'UNKNOWN_MEMBER'],
    [
      'the removal of a live voter when another is dead',
      { kind: 'remove', id: 1 },
      { isActive: (id) => id !== 2 },
      'QUORUM_AT_RISK',
    ],
    [
      'the removal of a live voter when another is not trusted',
      { kind: 'remove', id: 1 },
      { trusts: (id) => id !== 2 },
      'QUORUM_AT_RISK',
    ],
    ['the removal of a dead voter', { kind: 'remove', id: 2 }, { isActive: (id) => id !== 2 }, ''],
    ['the removal of a learner', { kind: 'remove', id: 3 }, { isActive: () => false }, ''],
    ['the removal of nobody', { kind: 'remove', id: 9 }, {}, 'UNKNOWN_MEMBER'],
    ['a member that exists', added(1), {}, 'MEMBER_EXISTS'],
    ['an address that is taken', { ...added(4), ...address(3) } as MembershipChange, {}, 'MEMBER_EXISTS'],
    ['a move to an address that is taken', { kind: 'changeAddress', id: 1, ...address(3) }, {}, 'MEMBER_EXISTS'],
    ['a move', { kind: 'changeAddress', id: 1, ...address(8) }, {}, ''],
    ['a move of nobody', { kind: 'changeAddress', id: 9, ...address(8) }, {}, 'UNKNOWN_MEMBER'],
    ['a priority', { kind: 'setPriority', id: 1, priority: 5 }, {}, ''],
    ['a priority of nobody', { kind: 'setPriority', id: 9, priority: 5 }, {}, 'UNKNOWN_MEMBER'],
  ])('is judged: %s', (_what, change, more, refusal) => {
    expect(code(withLearner, change, more)).toBe(refusal === '' ? 'made' : `QUORATE_${refusal}`);
  });

  test('does not remove the last voter, nor promote a spare, nor add a member beyond the limit', () => {
    const alone = withoutMember(withoutMember(genesis, 1), 2);
    expect(code(alone, { kind: 'remove', id: 0 })).toBe('QUORATE_LAST_VOTER');
    const spare = plan(genesis, { kind: 'addSpare', id: 5, ...address(5), priority: 1 });
    expect(code(spare, { kind: 'promote', id: 5 })).toBe('QUORATE_NOT_CAUGHT_UP');
    expect(memberWithId(plan(spare, added(5)), 5)).toMatchObject({ role: 'learner', incarnation: 4 });
    const full = genesisConfiguration(1, founders(MAX_REPLICAS));
    expect(code(full, { ...added(16) })).toBe('QUORATE_LIMIT');
  });

  test('of any kind, in any order, differs by one voter from the configuration before and reuses no incarnation', () => {
    const id = fc.nat({ max: 6 });
    const change = fc.oneof(
      id.map((one) => added(one)),
      id.map((one) => ({ kind: 'addSpare', id: one, ...address(one), priority: 0 }) as MembershipChange),
      id.map((one) => ({ kind: 'promote', id: one }) as MembershipChange),
      id.map((one) => ({ kind: 'remove', id: one }) as MembershipChange),
    );
    const step = fc.oneof(
      change.map((one) => ({ change: one, restarted: -1 })),
      id.map((one) => ({ change: null, restarted: one })),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        let configuration = genesis;
        const lives = [100, 101, 102, 203, 204, 205, 206];
        const given = new Map([1, 2, 3].map((incarnation) => [incarnation, `${incarnation - 1}/${99 + incarnation}`]));
        const take = (next: Configuration): void => {
          checkSuccessor(configuration, next);
          for (const { id: one, incarnation, bootId } of next.members) {
            if (bootId === 0) continue;
            expect(given.get(incarnation) ?? `${one}/${bootId}`).toBe(`${one}/${bootId}`);
            given.set(incarnation, `${one}/${bootId}`);
          }
          configuration = next;
        };
        const more = { linkedLife: (one: number) => lives[one] as number };
        for (const { change: one, restarted } of steps) {
          if (restarted > 0) lives[restarted] = (lives[restarted] as number) + 1000;
          if (one !== null) {
            const next = planChange(configuration, one, view(configuration, more));
            if (!isRefusal(next)) take(next);
          }
          for (let count = 0; count < 20; count++) {
            const next = planMaintenance(configuration, view(configuration, more));
            if (next === null) break;
            take(next);
          }
          expect(planMaintenance(configuration, view(configuration, more))).toBeNull();
        }
      }),
    );
  });
});

describe('a voter that comes back without its memory', () => {
  test('is a learner first, and a voter again in its new life when it has caught up', () => {
    const linkedLife = (id: number) => (id === 2 ? 999 : 100 + id);
    const first = planMaintenance(genesis, view(genesis, { linkedLife })) as Configuration;
    expect(first.voters.map(({ id }) => id)).toEqual([0, 1]);
    expect(memberWithId(first, 2)).toMatchObject({ role: 'learner', bootId: 999, incarnation: 4, returning: true });
    expect(planMaintenance(first, view(first, { lagBytes: () => LEARNER_LAG_BYTES_MAX + 1 }))).toBeNull();
    const second = planMaintenance(first, view(first)) as Configuration;
    expect(memberWithId(second, 2)).toMatchObject({ role: 'voter', bootId: 999, incarnation: 4, returning: false });
    expect(planMaintenance(second, view(second))).toBeNull();
  });

  test('waits until its log is there, and while its old life is needed to commit anything', () => {
    const linkedLife = (id: number) => (id === 2 ? 999 : 100 + id);
    expect(planMaintenance(genesis, view(genesis, { linkedLife, isActive: (id) => id !== 2 }))).toBeNull();
    expect(planMaintenance(genesis, view(genesis, { linkedLife, isActive: (id) => id !== 1 }))).toBeNull();
  });
});

describe('a successor', () => {
  test('is the voter with the highest priority that could lead at once, then the lowest id', () => {
    const preferred = plan(genesis, { kind: 'setPriority', id: 2, priority: 1 });
    expect(chooseSuccessor(genesis, view(genesis))).toBe(1);
    expect(chooseSuccessor(preferred, view(preferred))).toBe(2);
    expect(chooseSuccessor(preferred, view(preferred, { trusts: (id) => id !== 2 }))).toBe(1);
    expect(chooseSuccessor(preferred, view(preferred, { isActive: (id) => id === 0 }))).toBeNull();
    expect(chooseSuccessor(withLearner, view(withLearner, { linkedLife: (id) => (id === 3 ? 103 : 0) }))).toBeNull();
  });

  test('is agreed on by all: the order is total', () => {
    const place = fc.tuple(fc.nat({ max: 3 }), fc.nat({ max: 15 }));
    fc.assert(
      fc.property(place, place, ([priority, id], [otherPriority, otherId]) => {
        const before = standsBefore(priority, id, otherPriority, otherId);
        const after = standsBefore(otherPriority, otherId, priority, id);
        expect(before !== after || (id === otherId && priority === otherPriority)).toBe(true);
      }),
    );
  });
});

describe('a life that watches the membership', () => {
  const removed = withoutMember(genesis, 2);
  const again = plan(removed, added(2));

  test('learns of its removal once, from any later committed configuration', () => {
    expect(new MembershipWatch(2, 102, genesis).observe(removed)).toContain('does not list replica 2');
    expect(new MembershipWatch(2, 102, genesis).observe(again)).toContain('another life');
    expect(new MembershipWatch(1, 101, genesis).observe(removed)).toBeNull();
  });

  test('takes no old configuration for news', () => {
    const watch = new MembershipWatch(2, 999, again);
    for (const old of [genesis, removed, again]) expect(watch.observe(old)).toBeNull();
  });

  test('that was not added yet is not removed, and is later', () => {
    const watch = new MembershipWatch(3, 103, genesis);
    expect(watch.observe(removed)).toBeNull();
    const seen = { ...withLearner, version: 9 };
    expect(watch.observe(seen)).toBeNull();
    expect(watch.observe({ ...withoutMember(withLearner, 3), version: 10 })).toContain('does not list replica 3');
  });

  test('that comes back in the place of its old self is no stranger', () => {
    const watch = new MembershipWatch(2, 999, genesis);
    const linkedLife = (id: number) => (id === 2 ? 999 : 100 + id);
    const first = planMaintenance(genesis, view(genesis, { linkedLife })) as Configuration;
    expect(watch.observe(first)).toBeNull();
  });
});
