// Which configuration a change of the membership leads to, and whether it may be made at all: pure decisions, from the
// configuration in force and what the leader knows of its followers. When a change may be appended (as leader, behind the
// noop of its own epoch, with no other change uncommitted) is decided in membership-changes.ts.
//
// A change concerns one member, and at most one voter comes or goes, so that every majority of the configuration before
// meets every majority of the one after (Ongaro, Consensus: Bridging Theory and Practice, chapter 4).
import {
  type Configuration,
  type ConfigurationMember,
  checkConfiguration,
  majority,
  memberWithId,
  withMember,
  withoutMember,
} from './configuration.js';
import { INCARNATION_MAX, MAX_REPLICAS, PRIORITY_MAX } from './limits.js';

export type MembershipChange =
  | {
      readonly kind: 'addLearner' | 'addSpare';
      readonly id: number;
      readonly host: string;
      readonly port: number;
      /** Undefined: that of the spare that becomes a learner, else 0. */
      readonly priority?: number | undefined;
    }
  | { readonly kind: 'promote'; readonly id: number }
  | { readonly kind: 'remove'; readonly id: number }
  | { readonly kind: 'changeAddress'; readonly id: number; readonly host: string; readonly port: number }
  | { readonly kind: 'setPriority'; readonly id: number; readonly priority: number };

/** Why a change is not made. The codes are those of the errors that callers get. */
export interface MembershipRefusal {
  readonly code:
    | 'QUORATE_NOT_LEADER'
    | 'QUORATE_CHANGE_IN_PROGRESS'
    | 'QUORATE_TRANSFER_IN_PROGRESS'
    | 'QUORATE_BACKPRESSURE'
    | 'QUORATE_MEMBER_EXISTS'
    | 'QUORATE_UNKNOWN_MEMBER'
    | 'QUORATE_NOT_CAUGHT_UP'
    | 'QUORATE_LAST_VOTER'
    | 'QUORATE_QUORUM_AT_RISK'
    | 'QUORATE_NO_SUCCESSOR'
    | 'QUORATE_LIMIT';
  readonly message: string;
}

/** What a leader knows of the others. */
export interface LeaderView {
  /** The leader itself. */
  readonly id: number;
  /** Life of the replica that the links lead to; 0 while there are none. */
  linkedLife(id: number): number;
  /** The replica is granted, repaired and acknowledges what it is sent, in durable mode by its disk; the leader itself counts as such. */
  isActive(id: number): boolean;
  /** How much of the leader's log the replica has not acknowledged, in bytes. */
  lagBytes(id: number): number;
  /** A member may lack so much of the log when it becomes a voter. */
  readonly lagBytesMax: number;
  /** The failure detector trusts the replica; the leader trusts itself. */
  trusts(id: number): boolean;
}

export function isRefusal(value: object): value is MembershipRefusal {
  return 'code' in value;
}

function refuse(code: MembershipRefusal['code'], message: string): MembershipRefusal {
  return { code, message };
}

function unknown(configuration: Configuration, id: number): MembershipRefusal {
  const ids = configuration.members.map((member) => member.id).join(', ');
  return refuse('QUORATE_UNKNOWN_MEMBER', `replica ${id} is no member; the members are ${ids}`);
}

/** Who stands for election before whom: the higher priority, and the lower id at equal priority. */
export function standsBefore(priority: number, id: number, otherPriority: number, otherId: number): boolean {
  return priority !== otherPriority ? priority > otherPriority : id < otherId;
}

/**
 * The voters of the next configuration that can be written now must be a majority of it: otherwise it could not be
 * committed, nor could anything behind it, until somebody came back who may have gone for good.
 */
function guarded(next: Configuration, view: LeaderView): Configuration | MembershipRefusal {
  const active = next.voters.filter(({ id, bootId }) => {
    return view.isActive(id) && view.trusts(id) && (id === view.id || view.linkedLife(id) === bootId);
  }).length;
  if (active >= majority(next)) return next;
  return refuse(
    'QUORATE_QUORUM_AT_RISK',
    `${active} of the ${next.voters.length} voters that there would be are up to date and can be written, fewer than a ` +
      'majority: nothing could be committed; bring more of them back first',
  );
}

function whyNotCaughtUp(member: ConfigurationMember, view: LeaderView): string | null {
  const life = view.linkedLife(member.id);
  if (life === 0) return `no process of replica ${member.id} is connected`;
  if (life !== member.bootId)
    return `replica ${member.id} came back in a new life, which the configuration does not name yet`;
  if (!view.trusts(member.id)) return `replica ${member.id} is not trusted by the failure detector`;
  if (!view.isActive(member.id)) {
    return `the log of replica ${member.id} is still being repaired, or not on its disk if it is durable`;
  }
  const lagBytes = view.lagBytes(member.id);
  if (lagBytes > view.lagBytesMax) {
    return `replica ${member.id} lacks ${lagBytes} bytes of the log, more than ${view.lagBytesMax}`;
  }
  return null;
}

export function isCaughtUp(member: ConfigurationMember, view: LeaderView): boolean {
  return whyNotCaughtUp(member, view) === null;
}

/** The learner as the voter that it becomes, whatever it was a learner for. */
export function asVoter(learner: ConfigurationMember): ConfigurationMember {
  const { replaces: _, ...member } = learner;
  return { ...member, role: 'voter', returning: false };
}

/** The learner as the spare that it was before it was called up. */
export function asSpare(learner: ConfigurationMember): ConfigurationMember {
  const { replaces: _, ...member } = learner;
  return { ...member, role: 'spare' };
}

/**
 * A voter, or one that lost its memory and is to be a voter again. Its new life may end like the one before, and then there
 * is no voter of this id that could be missed.
 */
export function holdsPlace({ role, returning }: ConfigurationMember): boolean {
  return role === 'voter' || returning;
}

/** A process of the replica is linked, of whatever life, and taken for alive. */
export function isThere(id: number, view: LeaderView): boolean {
  return id === view.id || (view.trusts(id) && view.linkedLife(id) !== 0);
}

/** The configuration that the change leads to, or why it is refused. */
export function planChange(
  configuration: Configuration,
  change: MembershipChange,
  view: LeaderView,
): Configuration | MembershipRefusal {
  const member = memberWithId(configuration, change.id);
  switch (change.kind) {
    case 'addLearner':
    case 'addSpare':
      return add(configuration, member, change);
    case 'promote': {
      if (member === undefined) return unknown(configuration, change.id);
      if (member.role === 'voter') return refuse('QUORATE_MEMBER_EXISTS', `replica ${member.id} is a voter already`);
      const reason =
        member.role === 'spare'
          ? `replica ${member.id} is a spare, which gets no log: make it a learner first`
          : whyNotCaughtUp(member, view);
      if (reason !== null) {
        return refuse(
          'QUORATE_NOT_CAUGHT_UP',
          `${reason}: it would hold up commits as a voter; wait, and promote it then`,
        );
      }
      return guarded(withMember(configuration, asVoter(member)), view);
    }
    case 'remove': {
      if (member === undefined) return unknown(configuration, change.id);
      if (member.role !== 'voter') return removed(configuration, member, view);
      if (configuration.voters.length === 1) {
        return refuse('QUORATE_LAST_VOTER', `replica ${member.id} is the only voter and cannot be removed`);
      }
      return guarded(removed(configuration, member, view), view);
    }
    case 'changeAddress': {
      if (member === undefined) return unknown(configuration, change.id);
      const holder = holderOf(configuration, change);
      return holder ?? withMember(configuration, { ...member, host: change.host, port: change.port });
    }
    case 'setPriority':
      if (member === undefined) return unknown(configuration, change.id);
      return withMember(configuration, { ...member, priority: Math.min(PRIORITY_MAX, change.priority) });
  }
}

/**
 * Without the member. If it is there, its place is given up and not free: whoever was called up for it while it was gone
 * becomes a spare again, and no voter by itself.
 */
function removed(configuration: Configuration, member: ConfigurationMember, view: LeaderView): Configuration {
  const next = withoutMember(configuration, member.id);
  if (!holdsPlace(member) || !isThere(member.id, view)) return next;
  const members = next.members.map((one) => (one.replaces === member.id ? asSpare(one) : one));
  return checkConfiguration({ ...next, members });
}

/** A refusal if the address is another member's. */
function holderOf(
  configuration: Configuration,
  { id, host, port }: { id: number; host: string; port: number },
): MembershipRefusal | undefined {
  const holder = configuration.members.find((other) => other.id !== id && other.host === host && other.port === port);
  if (holder === undefined || host === '') return undefined;
  return refuse('QUORATE_MEMBER_EXISTS', `${host}:${port} is the address of replica ${holder.id}`);
}

function add(
  configuration: Configuration,
  member: ConfigurationMember | undefined,
  change: MembershipChange & { kind: 'addLearner' | 'addSpare' },
): Configuration | MembershipRefusal {
  const { id, host, port, priority = member?.priority ?? 0 } = change;
  const isSpareToLearner = member?.role === 'spare' && change.kind === 'addLearner';
  if (member !== undefined && !isSpareToLearner) {
    return refuse('QUORATE_MEMBER_EXISTS', `replica ${id} is a ${member.role} already`);
  }
  const holder = holderOf(configuration, change);
  if (holder !== undefined) return holder;
  if (member !== undefined) return withMember(configuration, { ...member, role: 'learner', host, port, priority });
  if (configuration.members.length >= MAX_REPLICAS) {
    return refuse('QUORATE_LIMIT', `the cluster has ${MAX_REPLICAS} members, which is the most`);
  }
  if (configuration.nextIncarnation >= INCARNATION_MAX - 1) {
    return refuse('QUORATE_LIMIT', `all ${INCARNATION_MAX} incarnations of this cluster have been given`);
  }
  return withMember(configuration, {
    id,
    incarnation: configuration.nextIncarnation,
    bootId: 0,
    role: change.kind === 'addLearner' ? 'learner' : 'spare',
    priority,
    host,
    port,
    returning: false,
  });
}

/**
 * The next change that keeps the configuration true to the lives that there are, null if there is none to make. A voter
 * that came back without its memory is not the voter that it was: it becomes a learner in its new life, and a voter again
 * once it has caught up.
 */
export function planMaintenance(configuration: Configuration, view: LeaderView): Configuration | null {
  if (configuration.nextIncarnation >= INCARNATION_MAX - 1) return null;
  for (const member of configuration.members) {
    if (member.id === view.id) continue;
    const life = view.linkedLife(member.id);
    if (life === 0 || (member.role !== 'spare' && !view.isActive(member.id))) continue;
    let next: Configuration | MembershipRefusal | null = null;
    if (life !== member.bootId) {
      const isFirst = member.bootId === 0;
      const incarnation = isFirst ? member.incarnation : configuration.nextIncarnation;
      if (member.role !== 'voter') {
        next = withMember(configuration, { ...member, bootId: life, incarnation });
      } else if (configuration.voters.length > 1) {
        const learner = { ...member, bootId: life, incarnation, role: 'learner', returning: true } as const;
        next = guarded(withMember(configuration, learner), view);
      }
    } else if (member.returning && isCaughtUp(member, view)) {
      next = guarded(withMember(configuration, asVoter(member)), view);
    }
    if (next !== null && !isRefusal(next)) return next;
  }
  return null;
}

/** Whom a leader hands over to if it is not told: as in an election, among those that could lead at once. */
export function chooseSuccessor(configuration: Configuration, view: LeaderView): number | null {
  let best: ConfigurationMember | null = null;
  for (const voter of configuration.voters) {
    if (voter.id === view.id || view.linkedLife(voter.id) !== voter.bootId) continue;
    if (!view.isActive(voter.id) || !view.trusts(voter.id)) continue;
    if (best === null || standsBefore(voter.priority, voter.id, best.priority, best.id)) best = voter;
  }
  return best?.id ?? null;
}

/**
 * Who could give its state to the replica `peer`, by preference: followers that are written now, those first that lack
 * least of the log, so that the leader need not do it; and the leader itself, if there is nobody else.
 */
export function chooseDonors(configuration: Configuration, view: LeaderView, peer: number): number[] {
  const followers = configuration.members.filter(({ id, role, bootId }) => {
    if (id === peer || id === view.id || role === 'spare') return false;
    return view.linkedLife(id) === bootId && view.isActive(id) && view.trusts(id);
  });
  followers.sort((a, b) => view.lagBytes(a.id) - view.lagBytes(b.id) || a.id - b.id);
  return [...followers.map(({ id }) => id), view.id];
}

/**
 * Tells a life of a replica when it has been removed. It sees committed configurations only, from its own log and from
 * other members, and takes them in any order: an older one than it has seen is no news. What precedes the configuration
 * that was current when it started is history, in which its id may have come and gone before.
 */
export class MembershipWatch {
  private seenVersion: number;
  private isListed = false;
  private isNamed = false;

  constructor(
    private readonly id: number,
    private readonly bootId: number,
    /** Committed configuration that was current when this life began. */
    initial: Configuration,
  ) {
    this.seenVersion = initial.version;
    this.note(initial);
  }

  /**
   * Takes a committed configuration. Returns why this life is no member any more, null while it is or was none yet, or is one
   * again: `latest` finds the latest configuration in the own log, to the end of that, committed or not.
   */
  observe(configuration: Configuration, latest: () => Configuration = () => configuration): string | null {
    if (configuration.version <= this.seenVersion) return null;
    this.seenVersion = configuration.version;
    const reason = this.whyOut(configuration);
    if (reason === null) {
      this.note(configuration);
      return null;
    }
    // It was removed and added again before it knew. Should that not be committed, a later configuration will say so.
    const last = latest();
    const isBack = last.version > configuration.version && memberWithId(last, this.id)?.bootId === this.bootId;
    return isBack ? null : reason;
  }

  private whyOut(configuration: Configuration): string | null {
    const member = memberWithId(configuration, this.id);
    if (member === undefined && this.isListed) {
      return `configuration ${configuration.version} does not list replica ${this.id} any more`;
    }
    if (member !== undefined && this.isNamed && member.bootId !== this.bootId) {
      return `configuration ${configuration.version} names another life of replica ${this.id}`;
    }
    return null;
  }

  private note(configuration: Configuration): void {
    const member = memberWithId(configuration, this.id);
    this.isListed = member !== undefined;
    this.isNamed = this.isNamed || member?.bootId === this.bootId;
  }
}
