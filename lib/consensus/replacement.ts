// The automatic replacement of voters that are gone by spares: a pure decision, from the configuration in force, what the
// leader knows of its followers, and time. One step at a time, each of them a configuration of its own:
//
// 1. A voter, or the new life of one, was gone for `replaceAfter_ns`: a spare becomes a learner, marked as its replacement.
// 2. The learner has caught up: the voter is removed.
// 3. The learner becomes a voter.
//
// The mark is a part of the configuration, so that the next leader goes on where this one stopped. The voter is removed
// before the learner is promoted: the other way round there would be one voter more of which one is gone, and the death of
// the newcomer could cost the majority that is there without it. Until step 2 a voter that comes back keeps its place; the
// learner stays as it is, warm, for the next time. From then on the place is the learner's.
//
// What is gone is counted from this leader's own observations, which begin with its leadership; a leader that stood still
// itself has observed nothing meanwhile. A voter that came back without its memory keeps its place while it is a learner that
// returns; if it goes again before it is a voter, it is replaced like one.
import {
  type Configuration,
  type ConfigurationMember,
  checkConfiguration,
  majority,
  memberWithId,
} from './configuration.js';
import { MAX_REPLICAS } from './limits.js';
import { asSpare, asVoter, holdsPlace, isCaughtUp, isThere, type LeaderView, standsBefore } from './membership.js';

/** Looks further apart than this part of the time that counts as gone: nobody looked in between. */
const LOOK_FRACTION_MAX = 1 / 4;

export class Replacement {
  /** Since when each replica has been gone without a break; -1 if it is there. */
  private readonly goneSince_ns = new Float64Array(MAX_REPLICAS).fill(-1);
  private lastLook_ns = -1;
  private now_ns = 0;

  /** 0: nobody is ever replaced. */
  constructor(private readonly replaceAfter_ns: number) {
    if (!(replaceAfter_ns >= 0)) throw new RangeError(`replaceAfter_ns is ${replaceAfter_ns}`);
  }

  get isWanted(): boolean {
    return this.replaceAfter_ns > 0;
  }

  /** Nothing that was observed counts: leadership has ended. */
  forget(): void {
    this.goneSince_ns.fill(-1);
    this.lastLook_ns = -1;
  }

  /** Looks who is there. To be called all the time. */
  look(now_ns: number, configuration: Configuration, view: LeaderView): void {
    const gap_ns = now_ns - this.lastLook_ns;
    if (this.lastLook_ns < 0 || gap_ns > this.replaceAfter_ns * LOOK_FRACTION_MAX) this.forget();
    this.lastLook_ns = now_ns;
    this.now_ns = now_ns;
    for (let id = 0; id < MAX_REPLICAS; id++) {
      // An id that comes back into use begins anew.
      if (isThere(id, view) || memberWithId(configuration, id) === undefined) this.goneSince_ns[id] = -1;
      else if (this.goneSince_ns[id] === -1) this.goneSince_ns[id] = now_ns;
    }
  }

  /** The member has been gone for so long that it counts as gone for good. */
  isGone(id: number): boolean {
    const since_ns = this.goneSince_ns[id] as number;
    return since_ns >= 0 && this.now_ns - since_ns >= this.replaceAfter_ns;
  }

  /** The next step, null if there is none to take now. By what was seen at the last look. */
  plan(configuration: Configuration, view: LeaderView): Configuration | null {
    if (!this.isWanted) return null;
    const next = this.proceed(configuration, view);
    if (next !== undefined) return next;
    const gone = configuration.members.find((member) => {
      return this.holdsPlace(member) && member.id !== view.id && this.isGone(member.id);
    });
    return gone === undefined ? null : this.callUp(configuration, view, gone.id);
  }

  /** The next step of a replacement that has begun; undefined if none is under way. */
  private proceed(configuration: Configuration, view: LeaderView): Configuration | null | undefined {
    for (const member of configuration.members) {
      const { replaces } = member;
      if (replaces === undefined || member.role !== 'learner') continue;
      const target = this.holderOf(configuration, replaces);
      // It came back in time, if only as a learner of a new life: no place is free.
      if (target !== undefined && !this.isGone(replaces)) continue;
      if (this.isGone(member.id)) return this.callUp(configuration, view, replaces, member);
      if (!this.hasCaughtUp(member, view)) return null; // one at a time
      const next =
        target === undefined ? successor(configuration, [asVoter(member)]) : successor(configuration, [], target.id);
      return this.isSafe(next, view) ? next : null;
    }
    return undefined;
  }

  /** Has a spare catch up for the place of `gone`; the one that was to do so before, if any, becomes a spare again. */
  private callUp(
    configuration: Configuration,
    view: LeaderView,
    gone: number,
    before?: ConfigurationMember,
  ): Configuration | null {
    if (!this.isSafe(configuration, view)) return null;
    let best: ConfigurationMember | undefined;
    for (const member of configuration.members) {
      if (member.id === gone || !this.isAvailable(member, configuration, view)) continue;
      if (best === undefined || isBetter(member, best)) best = member;
    }
    if (best === undefined) return null;
    const called = { ...best, role: 'learner', returning: false, replaces: gone } as const;
    return successor(configuration, before === undefined ? [called] : [called, asSpare(before)]);
  }

  /** A spare, or a learner that was one and is not needed where it was called up for; there, and in the life that is known. */
  private isAvailable(member: ConfigurationMember, configuration: Configuration, view: LeaderView): boolean {
    const { id, role, bootId, replaces } = member;
    if (!view.trusts(id) || bootId === 0 || view.linkedLife(id) !== bootId) return false;
    if (role === 'spare') return true;
    return role === 'learner' && replaces !== undefined && this.holderOf(configuration, replaces) !== undefined;
  }

  /** Who has the place that this voter had; nobody if it was removed, even if another member was added under its id. */
  private holderOf(configuration: Configuration, id: number): ConfigurationMember | undefined {
    const member = memberWithId(configuration, id);
    return member !== undefined && this.holdsPlace(member) ? member : undefined;
  }

  private holdsPlace(member: ConfigurationMember): boolean {
    return holdsPlace(member);
  }

  private hasCaughtUp(member: ConfigurationMember, view: LeaderView): boolean {
    return isCaughtUp(member, view);
  }

  /**
   * The voters that can be written now, and are trusted, are a majority: without one nothing may be changed that nobody
   * asked for.
   */
  private isSafe(next: Configuration, view: LeaderView): boolean {
    const active = next.voters.filter(({ id, bootId }) => {
      return view.isActive(id) && view.trusts(id) && (id === view.id || view.linkedLife(id) === bootId);
    });
    return active.length >= majority(next);
  }
}

/** A learner has the log already; among spares it is as in an election. */
function isBetter(one: ConfigurationMember, other: ConfigurationMember): boolean {
  if (one.role !== other.role) return one.role === 'learner';
  return standsBefore(one.priority, one.id, other.priority, other.id);
}

function successor(configuration: Configuration, changed: readonly ConfigurationMember[], without = -1): Configuration {
  const members = configuration.members
    .filter(({ id }) => id !== without)
    .map((member) => changed.find(({ id }) => id === member.id) ?? member);
  return checkConfiguration({ ...configuration, version: configuration.version + 1, members });
}

/** What a committed configuration says about replacements, compared with the one before it. */
export interface ReplacementNews {
  /**
   * `begun`: the spare gets the log and the state. `removed`: it has caught up, and the voter is no member any more.
   * `done`: the spare is a voter. `cancelled`: the spare was lost or is used otherwise.
   */
  readonly state: 'begun' | 'removed' | 'done' | 'cancelled';
  /** The voter that is gone. */
  readonly voter: number;
  /** The spare that takes its place. */
  readonly spare: number;
}

export function replacementNews(before: Configuration, after: Configuration): ReplacementNews[] {
  const news: ReplacementNews[] = [];
  for (const { id, replaces } of before.members) {
    if (replaces === undefined) continue;
    const now = memberWithId(after, id);
    if (now?.role === 'voter') news.push({ state: 'done', voter: replaces, spare: id });
    else if (now?.replaces !== replaces) news.push({ state: 'cancelled', voter: replaces, spare: id });
    else if (memberWithId(before, replaces) !== undefined && memberWithId(after, replaces) === undefined) {
      news.push({ state: 'removed', voter: replaces, spare: id });
    }
  }
  for (const { id, replaces } of after.members) {
    if (replaces === undefined || memberWithId(before, id)?.replaces === replaces) continue;
    news.push({ state: 'begun', voter: replaces, spare: id });
  }
  return news;
}
