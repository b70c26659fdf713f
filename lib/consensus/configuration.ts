// Who is a member, in which role and incarnation, and where it is reached. A configuration is a log entry; the latest one
// in a replica's log is in force there, committed or not (as in Raft), and the voters of consecutive configurations differ
// by one, so that their majorities intersect. The first configuration, the genesis, is agreed on by all founding members
// before the log begins. Which change may follow which is decided in membership.ts.
//
// An incarnation is the ordinal given to one life of a replica: a process that lost its memory may have forgotten
// promises and acknowledged entries, so it never counts as the voter it was; it comes back with a new incarnation.
import {
  BOOT_ID_MAX,
  CONFIGURATION_BYTES_MAX,
  HOST_BYTES_MAX,
  INCARNATION_MAX,
  MAX_REPLICAS,
  PRIORITY_MAX,
} from './limits.js';

/**
 * `voter`: its permission and its acknowledgement count, and it may lead. `learner`: it gets the log and counts for
 * nothing. `spare`: it is known and linked, and gets no log until it becomes a learner.
 */
export type MemberRole = 'voter' | 'learner' | 'spare';
const ROLES: readonly MemberRole[] = ['voter', 'learner', 'spare'];

export interface ConfigurationMember {
  /** Replica id, 0 .. MAX_REPLICAS - 1; its place in memory layouts. */
  readonly id: number;
  /** Ordinal of this life of the replica, unique in the cluster for ever. */
  readonly incarnation: number;
  /** Random number that the process chose when it started; 0 while no process has been seen. Voters have one. */
  readonly bootId: number;
  readonly role: MemberRole;
  /** Among trusted, eligible voters the highest priority stands for election, and the lowest id at equal priority. */
  readonly priority: number;
  /** Host of the control channel; empty where addresses do not matter, as in a simulation. */
  readonly host: string;
  /** TCP port of the control channel, 0 together with an empty host. */
  readonly port: number;
  /** A learner that was a voter in an earlier life: it is promoted by itself as soon as it has caught up. */
  readonly returning: boolean;
  /** A learner that was called up to take the place of this voter, which is gone: see replacement.ts. */
  readonly replaces?: number;
}

export interface Configuration {
  /** 48 random bits that name the cluster. */
  readonly clusterId: number;
  /** Counts configurations, genesis is 1. */
  readonly version: number;
  /** Ordinal that the next new incarnation gets. */
  readonly nextIncarnation: number;
  /** All members, by ascending id. */
  readonly members: readonly ConfigurationMember[];
  /** Those of the members that are voters, by ascending id. */
  readonly voters: readonly ConfigurationMember[];
}

export interface Founder {
  readonly id: number;
  readonly bootId: number;
  /** Default 0. */
  readonly priority?: number;
  readonly host?: string;
  readonly port?: number;
}

export function genesisConfiguration(clusterId: number, founders: readonly Founder[]): Configuration {
  const sorted = [...founders].sort((a, b) => a.id - b.id);
  return checkConfiguration({
    clusterId,
    version: 1,
    nextIncarnation: sorted.length + 1,
    members: sorted.map(({ id, bootId, priority = 0, host = '', port = 0 }, index) => ({
      id,
      incarnation: index + 1,
      bootId,
      role: 'voter',
      priority,
      host,
      port,
      returning: false,
    })),
  });
}

/** The configuration behind this one: `member` takes the place of the one with its id, or is added. */
export function withMember(configuration: Configuration, member: ConfigurationMember): Configuration {
  const members = [...configuration.members.filter(({ id }) => id !== member.id), member];
  return checkConfiguration({
    ...configuration,
    version: configuration.version + 1,
    nextIncarnation: Math.max(configuration.nextIncarnation, member.incarnation + 1),
    members: members.sort((a, b) => a.id - b.id),
  });
}

/** The configuration behind this one, without the member. */
export function withoutMember(configuration: Configuration, id: number): Configuration {
  return checkConfiguration({
    ...configuration,
    version: configuration.version + 1,
    members: configuration.members.filter((member) => member.id !== id),
  });
}

export function memberWithId(configuration: Configuration, id: number): ConfigurationMember | undefined {
  return configuration.members.find((member) => member.id === id);
}

export function voterWithId(configuration: Configuration, id: number): ConfigurationMember | undefined {
  return configuration.voters.find((voter) => voter.id === id);
}

export function majority(configuration: Configuration): number {
  return Math.floor(configuration.voters.length / 2) + 1;
}

/** How many voters, by life, are in one of the configurations only. At most one between neighbours in a log. */
export function votersChanged(before: Configuration, after: Configuration): number {
  const only = (one: Configuration, other: Configuration): number =>
    one.voters.filter(({ id, bootId }) => voterWithId(other, id)?.bootId !== bootId).length;
  return only(before, after) + only(after, before);
}

/**
 * Throws an Error unless `after` may stand right behind `before` in a log: versions without a gap, incarnations that
 * are never given twice, and at most one voter of difference, so that every majority of the one meets every majority of
 * the other.
 */
export function checkSuccessor(before: Configuration, after: Configuration): void {
  const fail = (what: string): never => {
    throw refused(new Error(`configuration ${after.version} cannot follow configuration ${before.version}: ${what}`));
  };
  if (after.clusterId !== before.clusterId) fail('it is of another cluster');
  if (after.version !== before.version + 1) fail('versions must be consecutive');
  if (after.nextIncarnation < before.nextIncarnation) fail('the next incarnation would decrease');
  const changed = votersChanged(before, after);
  if (changed > 1) fail(`${changed} voters differ, so that majorities need not meet`);
  for (const member of after.members) {
    const known = before.members.find(({ incarnation }) => incarnation === member.incarnation);
    if (known === undefined && member.incarnation < before.nextIncarnation) {
      fail(`replica ${member.id} gets incarnation ${member.incarnation}, which was given before`);
    }
    if (known !== undefined && (known.id !== member.id || (known.bootId !== 0 && known.bootId !== member.bootId))) {
      fail(`incarnation ${member.incarnation} would be of another life`);
    }
  }
}

function isCount(value: unknown, max: number): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= max;
}

/** What cannot be used came from another replica, by its log or by the control channel. */
function refused<Refusal extends Error>(error: Refusal): Refusal {
  return Object.assign(error, { code: 'QUORATE_PROTOCOL' });
}

function fail(what: string): never {
  throw refused(new Error(`invalid configuration: ${what}`));
}

/** What a host name takes of a configuration entry: in UTF-8, with what JSON escapes. */
export function hostBytes(host: string): number {
  return new TextEncoder().encode(JSON.stringify(host)).length - 2;
}

function checkMember(value: unknown, nextIncarnation: number): ConfigurationMember {
  if (typeof value !== 'object' || value === null) return fail('member');
  const { id, incarnation, bootId, role, priority, host, port, returning, replaces } = value as Record<string, unknown>;
  if (!isCount(id, MAX_REPLICAS - 1)) return fail('id of a member');
  if (!isCount(incarnation, nextIncarnation - 1) || incarnation === 0) return fail(`incarnation of member ${id}`);
  if (!ROLES.includes(role as MemberRole)) return fail(`role of member ${id}`);
  if (!isCount(bootId, BOOT_ID_MAX) || (role === 'voter' && bootId === 0)) return fail(`bootId of member ${id}`);
  if (!isCount(priority, PRIORITY_MAX)) return fail(`priority of member ${id}`);
  if (typeof host !== 'string' || hostBytes(host) > HOST_BYTES_MAX) return fail(`host of member ${id}`);
  if (!isCount(port, 65_535) || (port === 0) !== (host === '')) return fail(`port of member ${id}`);
  if (typeof returning !== 'boolean' || (returning && role !== 'learner')) return fail(`returning of member ${id}`);
  const member = { id, incarnation, bootId, role: role as MemberRole, priority, host, port, returning };
  if (replaces === undefined) return member;
  const isMark = isCount(replaces, MAX_REPLICAS - 1) && replaces !== id && role === 'learner';
  return isMark ? { ...member, replaces } : fail(`replaces of member ${id}`);
}

/** Throws an Error that names the first rule a configuration breaks; bytes from a log pass through here. */
export function checkConfiguration(value: unknown): Configuration {
  if (typeof value !== 'object' || value === null) return fail('not an object');
  const { clusterId, version, nextIncarnation, members } = value as Record<string, unknown>;
  if (!isCount(clusterId, 2 ** 48)) return fail('clusterId');
  if (!isCount(version, 2 ** 32) || version === 0) return fail('version');
  if (!isCount(nextIncarnation, INCARNATION_MAX - 1) || nextIncarnation === 0) return fail('nextIncarnation');
  if (!Array.isArray(members) || members.length === 0 || members.length > MAX_REPLICAS) return fail('members');
  let lastId = -1;
  const incarnations = new Set<number>();
  const checked: ConfigurationMember[] = [];
  for (const entry of members as unknown[]) {
    const member = checkMember(entry, nextIncarnation);
    if (member.id <= lastId) return fail('member ids must ascend');
    if (incarnations.has(member.incarnation)) return fail(`incarnation ${member.incarnation} is used twice`);
    incarnations.add(member.incarnation);
    lastId = member.id;
    checked.push(member);
  }
  const voters = checked.filter(({ role }) => role === 'voter');
  if (voters.length === 0) return fail('no voters');
  return { clusterId, version, nextIncarnation, members: checked, voters };
}

/** As JSON: an array of what there is once, and one array per member, so that the entry stays small. */
export function encodeConfiguration(configuration: Configuration): Uint8Array {
  const { clusterId, version, nextIncarnation, members } = configuration;
  const rows = members.map(({ id, incarnation, bootId, role, priority, host, port, returning, replaces }) => [
    id,
    incarnation,
    bootId,
    ROLES.indexOf(role),
    priority,
    host,
    port,
    returning ? 1 : 0,
    ...(replaces === undefined ? [] : [replaces]),
  ]);
  const bytes = new TextEncoder().encode(JSON.stringify([clusterId, version, nextIncarnation, rows]));
  if (bytes.length > CONFIGURATION_BYTES_MAX) {
    throw new RangeError(`configuration of ${bytes.length} bytes exceeds ${CONFIGURATION_BYTES_MAX} bytes`);
  }
  return bytes;
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return fail('no JSON');
  }
}

export function decodeConfiguration(bytes: Uint8Array): Configuration {
  if (bytes.length > CONFIGURATION_BYTES_MAX) {
    throw refused(new RangeError(`configuration of ${bytes.length} bytes exceeds ${CONFIGURATION_BYTES_MAX} bytes`));
  }
  const value = parse(new TextDecoder().decode(bytes));
  if (!Array.isArray(value)) return fail('not an array');
  const [clusterId, version, nextIncarnation, rows] = value as unknown[];
  const members = !Array.isArray(rows)
    ? rows
    : rows.map((row: unknown) => {
        if (!Array.isArray(row)) return row;
        const [id, incarnation, bootId, role, priority, host, port, returning, ...more] = row as unknown[];
        return {
          id,
          incarnation,
          bootId,
          role: typeof role === 'number' ? ROLES[role] : undefined,
          priority,
          host,
          port,
          returning: returning === 1,
          ...(more.length === 0 ? {} : { replaces: more[0] }),
        };
      });
  return checkConfiguration({ clusterId, version, nextIncarnation, members });
}
