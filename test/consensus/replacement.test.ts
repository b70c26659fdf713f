// When a spare takes the place of a voter that is gone, step by step, and when it does not.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  type Configuration,
  type ConfigurationMember,
  checkConfiguration,
  checkSuccessor,
  decodeConfiguration,
  encodeConfiguration,
  genesisConfiguration,
  majority,
  memberWithId,
  withMember,
} from '#lib/consensus/configuration.js';
import { LEARNER_LAG_BYTES_MAX } from '#lib/consensus/limits.js';
import { chooseDonors, type LeaderView, planChange } from '#lib/consensus/membership.js';
import { Replacement, replacementNews } from '#lib/consensus/replacement.js';
import { placesOfIds, under } from '../support/mutants.js';

const SECOND = 1e9;
const AFTER = 10 * SECOND;

/** Voters 0 .. count - 1, and spares behind them, all of which have been seen. */
function cluster(voters: number, spares: number): Configuration {
  const founded = genesisConfiguration(
    5,
    Array.from({ length: voters }, (_, id) => ({ id, bootId: 100 + id, host: 'h', port: 1 + id })),
  );
  const added = Array.from({ length: spares }, (_, index): ConfigurationMember => {
    const id = voters + index;
    const rest = { role: 'spare', priority: 0, host: 'h', port: 1 + id, returning: false } as const;
    return { id, incarnation: 1 + id, bootId: 100 + id, ...rest };
  });
  return checkConfiguration({
    ...founded,
    nextIncarnation: voters + spares + 1,
    members: [...founded.members, ...added],
  });
}

/** A leader, replica 0 unless it is said otherwise, with its clock; takes each step that is planned at once. */
class Leader implements LeaderView {
  now = 0;
  readonly lagBytesMax = LEARNER_LAG_BYTES_MAX;
  readonly away = new Set<number>();
  readonly inactive = new Set<number>();
  readonly lag = new Map<number, number>();
  readonly steps: Configuration[] = [];
  replacement = new Replacement(AFTER);

  constructor(
    public configuration: Configuration,
    readonly id = 0,
  ) {}

  linkedLife(id: number): number {
    return this.away.has(id) ? 0 : (memberWithId(this.configuration, id)?.bootId ?? 0);
  }
  isActive(id: number): boolean {
    return id === this.id || !(this.away.has(id) || this.inactive.has(id));
  }
  lagBytes(id: number): number {
    return this.lag.get(id) ?? 0;
  }
  trusts(id: number): boolean {
    return id === this.id || !this.away.has(id);
  }

  /** The voter has lost its memory, and is a learner in its new life until it has caught up. */
  returns(id: number): void {
    const { configuration } = this;
    const { nextIncarnation, version } = configuration;
    const members = configuration.members.map((member) => {
      if (member.id !== id) return member;
      return { ...member, bootId: 900 + id, incarnation: nextIncarnation, role: 'learner', returning: true } as const;
    });
    const next = { ...configuration, nextIncarnation: nextIncarnation + 1, version: version + 1, members };
    this.configuration = checkConfiguration(next);
  }

  look(): Configuration | null {
    this.replacement.look(this.now, this.configuration, this);
    return this.replacement.plan(this.configuration, this);
  }

  /** Looks ten times a second for so long, and makes what is planned. */
  wait(seconds: number): string[] {
    const news: string[] = [];
    for (let tick = 0; tick < seconds * 10; tick++) {
      this.now += SECOND / 10;
      const next = this.look();
      if (next === null) continue;
      checkSuccessor(this.configuration, next);
      expect(decodeConfiguration(encodeConfiguration(next))).toEqual(next);
      for (const { state, voter, spare } of replacementNews(this.configuration, next)) {
        news.push(`${state} ${voter} by ${spare}`);
      }
      this.configuration = next;
      this.steps.push(next);
    }
    return news;
  }

  get roles(): string[] {
    return this.configuration.members.map(({ id, role, replaces }) => {
      return `${role} ${id}${replaces === undefined ? '' : ` for ${replaces}`}`;
    });
  }
}

/** Voter 1 was just removed, and replica 3, of spares 3 and more, has not taken its place yet. */
function voterRemoved(spares: number): Leader {
  const leader = new Leader(cluster(3, spares));
  leader.away.add(1);
  leader.inactive.add(3);
  leader.wait(11);
  leader.inactive.delete(3);
  leader.now += SECOND / 10;
  leader.configuration = leader.look() as Configuration;
  return leader;
}

/** Voter 2 is gone, and spare 3 was called up for it and has not caught up. */
function spareCalledUp(): Leader {
  const leader = new Leader(cluster(3, 1));
  leader.away.add(2);
  leader.lag.set(3, LEARNER_LAG_BYTES_MAX + 1);
  expect(leader.wait(11)).toEqual(['begun 2 by 3']);
  return leader;
}

describe('a voter that is gone', () => {
  test('is replaced by a spare: called up, caught up, voter removed, spare promoted', () => {
    const leader = new Leader(cluster(3, 2));
    leader.away.add(2);
    leader.lag.set(3, LEARNER_LAG_BYTES_MAX + 1);
    expect(leader.wait(9)).toEqual([]);
    expect(leader.wait(2)).toEqual(['begun 2 by 3']);
    expect(leader.roles).toEqual(['voter 0', 'voter 1', 'voter 2', 'learner 3 for 2', 'spare 4']);
    expect(leader.wait(60)).toEqual([]);
    leader.lag.set(3, 0);
    expect(leader.wait(1)).toEqual(['removed 2 by 3', 'done 2 by 3']);
    expect(leader.roles).toEqual(['voter 0', 'voter 1', 'voter 3', 'spare 4']);
    expect(leader.wait(60)).toEqual([]);
  });

  test('is not replaced if it comes back in time, however often', () => {
    const leader = new Leader(cluster(3, 1));
    for (let count = 0; count < 5; count++) {
      leader.away.add(1);
      expect(leader.wait(9)).toEqual([]);
      leader.away.delete(1);
      expect(leader.wait(1)).toEqual([]);
    }
  });

  test('keeps its place if it comes back while the spare catches up, which stays warm and is quicker the next time', () => {
    const leader = new Leader(cluster(5, 2));
    leader.away.add(2);
    leader.lag.set(5, LEARNER_LAG_BYTES_MAX + 1);
    expect(leader.wait(11)).toEqual(['begun 2 by 5']);
    leader.away.delete(2);
    leader.lag.set(5, 0);
    expect(leader.wait(60)).toEqual([]);
    leader.away.add(4);
    expect(leader.wait(11)).toEqual(['cancelled 2 by 5', 'begun 4 by 5', 'removed 4 by 5', 'done 4 by 5']);
    expect(leader.roles).toEqual(['voter 0', 'voter 1', 'voter 2', 'voter 3', 'voter 5', 'spare 6']);
  });

  test('is replaced by another spare if the first one is gone, too', () => {
    const leader = new Leader(cluster(3, 2));
    leader.away.add(1);
    leader.lag.set(3, LEARNER_LAG_BYTES_MAX + 1);
    expect(leader.wait(11)).toEqual(['begun 1 by 3']);
    leader.away.add(3);
    expect(leader.wait(9)).toEqual([]);
    expect(leader.wait(2)).toEqual(['cancelled 1 by 3', 'begun 1 by 4', 'removed 1 by 4', 'done 1 by 4']);
    expect(leader.roles).toEqual(['voter 0', 'voter 2', 'spare 3', 'voter 4']);
  });

  test('waits for a spare that is there and does not catch up, until that is removed', () => {
    const leader = new Leader(cluster(3, 2));
    leader.away.add(1);
    leader.inactive.add(3);
    expect(leader.wait(600)).toEqual(['begun 1 by 3']);
    const { configuration } = leader;
    leader.configuration = planChange(configuration, { kind: 'remove', id: 3 }, leader) as Configuration;
    expect(leader.wait(1)).toEqual(['begun 1 by 4', 'removed 1 by 4', 'done 1 by 4']);
  });

  test('is replaced by the spare that was called up for it also if it is removed on request meanwhile', () => {
    const leader = spareCalledUp();
    const { configuration } = leader;
    leader.configuration = planChange(configuration, { kind: 'remove', id: 2 }, leader) as Configuration;
    leader.lag.set(3, 0);
    expect(leader.wait(1)).toEqual(['done 2 by 3']);
  });

  test('is replaced even if the spare dies when the voter was just removed', () => {
    const leader = voterRemoved(2);
    expect(leader.roles).toEqual(['voter 0', 'voter 2', 'learner 3 for 1', 'spare 4']);
    leader.away.add(3);
    expect(leader.wait(11)).toEqual(['cancelled 1 by 3', 'begun 1 by 4', 'done 1 by 4']);
  });

  test('is replaced if it came back without its memory and went again before it was a voter', () => {
    const leader = new Leader(cluster(3, 1));
    leader.returns(2);
    expect(leader.wait(60)).toEqual([]);
    leader.away.add(2);
    expect(leader.wait(9)).toEqual([]);
    expect(leader.wait(3)).toEqual(['begun 2 by 3', 'removed 2 by 3', 'done 2 by 3']);
    expect(leader.roles).toEqual(['voter 0', 'voter 1', 'voter 3']);
  });

  test('is replaced if it came back without its memory while the spare caught up, and went again', () => {
    const leader = spareCalledUp();
    leader.away.delete(2);
    leader.returns(2);
    leader.lag.set(3, 0);
    expect(leader.wait(60)).toEqual([]);
    leader.away.add(2);
    expect(leader.wait(11)).toEqual(['removed 2 by 3', 'done 2 by 3']);
    expect(leader.roles).toEqual(['voter 0', 'voter 1', 'voter 3']);
  });

  /** Voter 1 was removed and its id is used anew, for a spare, before replica 3, of spares 3 and more, could take its place. */
  function removedAndAddedAgain(spares: number): Leader {
    const leader = voterRemoved(spares);
    leader.away.delete(1);
    const { nextIncarnation } = leader.configuration;
    const rest = { role: 'spare', priority: 0, host: 'other', port: 9, returning: false } as const;
    leader.configuration = withMember(leader.configuration, {
      id: 1,
      incarnation: nextIncarnation,
      bootId: 777,
      ...rest,
    });
    expect(leader.roles.slice(0, 4)).toEqual(['voter 0', 'spare 1', 'voter 2', 'learner 3 for 1']);
    return leader;
  }

  test('is replaced even if another member was added under its id when it was just removed', () => {
    const replaced = () => removedAndAddedAgain(1).wait(1);
    expect(replaced()).toEqual(['done 1 by 3']);
    expect(under(placesOfIds, replaced)).toEqual([]);
  });

  test('is replaced by any spare but the one that was added under its id', () => {
    const alone = removedAndAddedAgain(1);
    alone.away.add(3);
    expect(alone.wait(60)).toEqual([]);
    const leader = removedAndAddedAgain(2);
    leader.away.add(3);
    expect(leader.wait(11)).toEqual(['cancelled 1 by 3', 'begun 1 by 4', 'done 1 by 4']);
  });

  test('is replaced by the next leader from where the one before stopped', () => {
    const leader = new Leader(cluster(3, 1));
    leader.away.add(2);
    leader.lag.set(3, LEARNER_LAG_BYTES_MAX + 1);
    leader.wait(11);
    const next = new Leader(leader.configuration, 1);
    next.away.add(2);
    expect(next.wait(9)).toEqual([]); // it has its own patience
    expect(next.wait(2)).toEqual(['removed 2 by 3', 'done 2 by 3']);
  });
});

describe('nobody is replaced', () => {
  test('unless it is asked for', () => {
    const leader = new Leader(cluster(3, 1));
    leader.replacement = new Replacement(0);
    leader.away.add(1);
    expect(leader.wait(1000)).toEqual([]);
  });

  test('when no spare is there, and as soon as one is, somebody is', () => {
    const leader = new Leader(cluster(3, 1));
    leader.away.add(1);
    leader.away.add(3);
    expect(leader.wait(100)).toEqual([]);
    leader.away.delete(3);
    expect(leader.wait(1)).toEqual(['begun 1 by 3', 'removed 1 by 3', 'done 1 by 3']);
  });

  test('when a voter that had come back is removed on request: who was called up for it is a spare again', () => {
    const leader = spareCalledUp();
    leader.away.delete(2);
    leader.lag.set(3, 0);
    expect(leader.wait(60)).toEqual([]);
    const { configuration } = leader;
    leader.configuration = planChange(configuration, { kind: 'remove', id: 2 }, leader) as Configuration;
    expect(replacementNews(configuration, leader.configuration)).toEqual([{ state: 'cancelled', voter: 2, spare: 3 }]);
    expect(leader.wait(60)).toEqual([]);
    expect(leader.roles).toEqual(['voter 0', 'voter 1', 'spare 3']);
  });

  test('by a leader that no majority follows', () => {
    const leader = new Leader(cluster(3, 1));
    leader.away.add(1);
    leader.away.add(2);
    expect(leader.wait(100)).toEqual([]);
    leader.away.delete(2);
    leader.inactive.add(2);
    expect(leader.wait(100)).toEqual([]);
  });

  test('by a leader that stood still and saw nobody meanwhile', () => {
    const leader = new Leader(cluster(3, 1));
    leader.wait(1);
    leader.away.add(1);
    leader.wait(1);
    leader.now += 100 * SECOND;
    expect(leader.wait(9)).toEqual([]);
    expect(leader.wait(2)).toHaveLength(3);
  });

  test('by a spare whose present life the configuration does not name', () => {
    const leader = new Leader(cluster(3, 1));
    leader.away.add(1);
    leader.linkedLife = (id) => (id === 1 ? 0 : id === 3 ? 999 : 100 + id);
    expect(leader.wait(100)).toEqual([]);
  });
});

test('whatever comes and goes, one voter changes at a time, and those that are there are a majority of the voters', () => {
  const event = fc.record({
    id: fc.integer({ min: 1, max: 6 }),
    what: fc.constantFrom('away', 'back', 'slow', 'caught up'),
    seconds: fc.integer({ min: 1, max: 15 }),
  });
  fc.assert(
    fc.property(fc.constantFrom(3, 5), fc.array(event, { maxLength: 40 }), (voters, events) => {
      const leader = new Leader(cluster(voters, 7 - voters));
      for (const { id, what, seconds } of events) {
        if (what === 'away') leader.away.add(id);
        else if (what === 'back') leader.away.delete(id);
        else leader.lag.set(id, what === 'slow' ? LEARNER_LAG_BYTES_MAX + 1 : 0);
        const from = leader.steps.length;
        leader.wait(seconds);
        for (const step of leader.steps.slice(from)) {
          const there = step.voters.filter((voter) => leader.trusts(voter.id)).length;
          expect(there).toBeGreaterThanOrEqual(majority(step));
          expect(memberWithId(step, 0)?.role).toBe('voter');
          expect([voters, voters - 1]).toContain(step.voters.length);
          expect(step.members.filter(({ role }) => role === 'learner').length).toBeLessThanOrEqual(7 - voters);
        }
      }
    }),
  );
});

test('a state is given by the follower that lacks least, and by the leader only if there is nobody else', () => {
  const leader = new Leader(cluster(4, 1));
  leader.lag.set(1, 1000);
  leader.lag.set(2, 10);
  expect(chooseDonors(leader.configuration, leader, 4)).toEqual([3, 2, 1, 0]);
  expect(chooseDonors(leader.configuration, leader, 3)).toEqual([2, 1, 0]);
  leader.away.add(2);
  leader.inactive.add(1);
  expect(chooseDonors(leader.configuration, leader, 3)).toEqual([0]);
});
