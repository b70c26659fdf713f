// Who is a member, in which role and incarnation. A configuration is a log entry; the latest one in a replica's log is
// in force there, committed or not (as in Raft), and consecutive configurations differ by one voter, so that their
// majorities intersect. The first configuration, the genesis, is agreed on by all founding members before the log
// begins.
//
// An incarnation is the ordinal given to one life of a replica: a process that lost its memory may have forgotten
// promises and acknowledged entries, so it never counts as the voter it was; it comes back with a new incarnation.
import { CONFIGURATION_BYTES_MAX, INCARNATION_MAX, MAX_REPLICAS } from './limits.js';

export interface ConfigurationMember {
  /** Replica id, 0 .. MAX_REPLICAS - 1; its place in memory layouts. */
  readonly id: number;
  /** Ordinal of this life of the replica, unique in the cluster for ever. */
  readonly incarnation: number;
  /** Random number that the process chose when it started; tells whether a replica is still in the same life. */
  readonly bootId: number;
}

export interface Configuration {
  /** 48 random bits that name the cluster. */
  readonly clusterId: number;
  /** Counts configurations, genesis is 1. */
  readonly version: number;
  /** Ordinal that the next new incarnation gets. */
  readonly nextIncarnation: number;
  /** The voters, by ascending id. */
  readonly voters: readonly ConfigurationMember[];
}

export function genesisConfiguration(
  clusterId: number,
  members: readonly { id: number; bootId: number }[],
): Configuration {
  const sorted = [...members].sort((a, b) => a.id - b.id);
  return checkConfiguration({
    clusterId,
    version: 1,
    nextIncarnation: sorted.length + 1,
    voters: sorted.map((member, index) => ({ id: member.id, bootId: member.bootId, incarnation: index + 1 })),
  });
}

export function withoutVoter(configuration: Configuration, id: number): Configuration {
  return checkConfiguration({
    ...configuration,
    version: configuration.version + 1,
    voters: configuration.voters.filter((voter) => voter.id !== id),
  });
}

/** Adds a voter in a new life; a voter with the same id must have been removed by an earlier configuration. */
export function withVoter(configuration: Configuration, id: number, bootId: number): Configuration {
  if (configuration.voters.some((voter) => voter.id === id)) throw new Error(`replica ${id} is a voter already`);
  const voters = [...configuration.voters, { id, bootId, incarnation: configuration.nextIncarnation }];
  return checkConfiguration({
    ...configuration,
    version: configuration.version + 1,
    nextIncarnation: configuration.nextIncarnation + 1,
    voters: voters.sort((a, b) => a.id - b.id),
  });
}

export function voterWithId(configuration: Configuration, id: number): ConfigurationMember | undefined {
  return configuration.voters.find((voter) => voter.id === id);
}

export function majority(configuration: Configuration): number {
  return Math.floor(configuration.voters.length / 2) + 1;
}

function isCount(value: unknown, max: number): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= max;
}

/** Throws an Error that names the first rule a configuration breaks; bytes from a log pass through here. */
export function checkConfiguration(value: unknown): Configuration {
  const fail = (what: string): never => {
    throw new Error(`invalid configuration: ${what}`);
  };
  if (typeof value !== 'object' || value === null) return fail('not an object');
  const candidate = value as Record<string, unknown>;
  const { clusterId, version, nextIncarnation, voters } = candidate;
  if (!isCount(clusterId, 2 ** 48)) return fail('clusterId');
  if (!isCount(version, 2 ** 32) || version === 0) return fail('version');
  if (!isCount(nextIncarnation, INCARNATION_MAX - 1) || nextIncarnation === 0) return fail('nextIncarnation');
  if (!Array.isArray(voters) || voters.length === 0 || voters.length > MAX_REPLICAS) return fail('voters');
  let lastId = -1;
  const incarnations = new Set<number>();
  const checked: ConfigurationMember[] = [];
  for (const voter of voters as unknown[]) {
    if (typeof voter !== 'object' || voter === null) return fail('voter');
    const { id, incarnation, bootId } = voter as Record<string, unknown>;
    if (!isCount(id, MAX_REPLICAS - 1) || id <= lastId) return fail('voter ids must ascend');
    if (!isCount(incarnation, nextIncarnation - 1) || incarnation === 0) return fail(`incarnation of voter ${id}`);
    if (incarnations.has(incarnation)) return fail(`incarnation ${incarnation} is used twice`);
    if (!isCount(bootId, 2 ** 48)) return fail(`bootId of voter ${id}`);
    incarnations.add(incarnation);
    lastId = id;
    checked.push({ id, incarnation, bootId });
  }
  return { clusterId, version, nextIncarnation, voters: checked };
}

export function encodeConfiguration(configuration: Configuration): Uint8Array {
  const bytes = new TextEncoder().encode(JSON.stringify(configuration));
  if (bytes.length > CONFIGURATION_BYTES_MAX) {
    throw new RangeError(`configuration of ${bytes.length} bytes exceeds ${CONFIGURATION_BYTES_MAX} bytes`);
  }
  return bytes;
}

export function decodeConfiguration(bytes: Uint8Array): Configuration {
  if (bytes.length > CONFIGURATION_BYTES_MAX) {
    throw new RangeError(`configuration of ${bytes.length} bytes exceeds ${CONFIGURATION_BYTES_MAX} bytes`);
  }
  return checkConfiguration(JSON.parse(new TextDecoder().decode(bytes)));
}
