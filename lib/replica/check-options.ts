// Checks of what users pass in: each failure is an error with code QUORATE_INVALID_ARGUMENT that names the option.
import { inspect, types } from 'node:util';
import { hostBytes } from '../consensus/configuration.js';
import { HOST_BYTES_MAX, LOG_BYTES_MAX, LOG_BYTES_MIN, MAX_REPLICAS, PRIORITY_MAX } from '../consensus/limits.js';
import { type Members, QuorateError, unknownMember } from '../errors.js';
import { checkClusterKey } from './control-channel.js';
import { absolutePath } from './directories.js';
import { SNAPSHOT_AFTER_BYTES_DEFAULT, SNAPSHOT_AFTER_BYTES_MAX, SNAPSHOT_AFTER_BYTES_MIN } from './durable/limits.js';
import type {
  BackgroundScheduling,
  DurableOptions,
  MemberAddress,
  ProposeOptions,
  ReplicaOptions,
} from './replica-options.js';

const LOG_BYTES_DEFAULT = 16 * 1024 * 1024;
const OPEN_TIMEOUT_DEFAULT_MS = 30_000;

export function invalid(message: string): never {
  throw new QuorateError('QUORATE_INVALID_ARGUMENT', message);
}

/** Every option of a replica. */
const REPLICA_OPTIONS: Members<ReplicaOptions> = {
  id: true,
  members: true,
  join: true,
  address: true,
  clusterKey: true,
  stateMachine: true,
  device: true,
  devicePort: true,
  gidIndex: true,
  shmDirectory: true,
  logBytes: true,
  profile: true,
  lease: true,
  backgroundThread: true,
  permissionStrategy: true,
  pendingProposalsMax: true,
  pendingReadBarriersMax: true,
  replaceAfterMs: true,
  durable: true,
  openTimeoutMs: true,
  signal: true,
  waitForLeader: true,
  surviveCrash: true,
  holdAtExitMs: true,
  keepCompiledCode: true,
  rehearseTakeovers: true,
};

/** A misspelt option would be one that is left out: `durable`, say. */
export function checkNames<Options extends object>(options: Options, known: Members<Options>, what: string): void {
  const problem = unknownMember(what, options, known);
  if (problem !== undefined) invalid(problem);
}

/** The options of a call, which may be left out: an object, with members that mean something. */
export function checkCallOptions<Options extends object>(
  options: Options,
  known: Members<Options>,
  call: string,
): void {
  if (typeof options !== 'object' || options === null) invalid(`the options of ${call} are no object`);
  checkNames(options, known, `${call}: options`);
}

const PROPOSE_OPTIONS: Members<ProposeOptions> = { session: true, forward: true, timeoutMs: true };

const TIMEOUT_ONLY = { timeoutMs: true } as const;

/** The time limit of a call that has no other option. */
export function checkTimeout(
  options: { readonly timeoutMs?: number },
  call: string,
  defaultMs: number,
  minMs = 1,
  maxMs = 2 ** 31 - 1,
): number {
  checkCallOptions(options, TIMEOUT_ONLY, call);
  const { timeoutMs = defaultMs } = options;
  return checkInteger(timeoutMs, minMs, maxMs, 'timeoutMs');
}

export function checkProposeOptions(options: ProposeOptions): void {
  checkCallOptions(options, PROPOSE_OPTIONS, 'propose()');
  const { forward } = options;
  if (forward !== undefined && typeof forward !== 'boolean') invalid('forward is not a boolean');
}

/** A string, as of an environment variable, would look like the number that it is not. */
function shown(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value);
  return typeof value === 'object' ? inspect(value, { depth: 0 }) : String(value);
}

export function checkInteger(value: number, min: number, max: number, name: string): number {
  if (!Number.isInteger(value) || value < min || value > max)
    invalid(`${name} ${shown(value)} is not an integer in ${min}..${max}`);
  return value;
}

export function checkAddress(address: { readonly host: string; readonly port: number }, what: string): void {
  if (typeof address !== 'object' || address === null) invalid(`${what} must be an object with host and port`);
  const { host, port } = address;
  if (typeof host !== 'string' || host === '') invalid(`${what}: host is missing`);
  if (hostBytes(host) > HOST_BYTES_MAX) invalid(`${what}: host has more than ${HOST_BYTES_MAX} bytes`);
  checkInteger(port, 1, 65535, `${what}: port`);
}

const MEMBER_ADDRESS: Members<MemberAddress> = {
  id: true,
  host: true,
  port: true,
  priority: true,
};

/** One that is founded with or added. */
export function checkMember(member: MemberAddress, what: string): void {
  checkContact(member, what);
  checkNames(member, MEMBER_ADDRESS, what);
}

/** One to ask, which may be as status() has it. */
function checkContact(member: MemberAddress, what: string): void {
  if (typeof member !== 'object' || member === null) invalid(`${what} must be an object with id, host and port`);
  checkInteger(member.id, 0, MAX_REPLICAS - 1, `${what}: id`);
  checkAddress(member, `${what} (replica ${member.id})`);
  if (member.priority !== undefined) checkInteger(member.priority, 0, PRIORITY_MAX, `${what}: priority`);
}

function checkList(members: readonly MemberAddress[], what: string, checkOne = checkMember): Set<number> {
  if (!Array.isArray(members) || members.length === 0) invalid(`${what} must list the replicas of the cluster`);
  if (members.length > MAX_REPLICAS) invalid(`${what} lists ${members.length} replicas, more than ${MAX_REPLICAS}`);
  const ids = new Set<number>();
  for (const member of members) {
    checkOne(member, what);
    if (ids.has(member.id)) invalid(`${what} lists id ${member.id} twice`);
    ids.add(member.id);
  }
  return ids;
}

/** Where this replica listens. */
function checkPlace({ id, members, join, address }: ReplicaOptions<never>): MemberAddress {
  if (join !== undefined) {
    if (members !== undefined)
      return invalid('members founds a cluster and join joins one that exists: pass one of them');
    const ids = checkList(join, 'join', checkContact);
    if (ids.size === 1 && ids.has(id)) return invalid('join must list a replica other than this one');
    if (address === undefined) return invalid('join needs an address: host and port of this replica');
    checkAddress(address, 'address');
    return { id, host: address.host, port: address.port };
  }
  if (address !== undefined) return invalid('address goes with join; members says where this replica listens');
  return checkFounders(id, members ?? []);
}

function checkFounders(id: number, members: readonly MemberAddress[]): MemberAddress {
  const ids = checkList(members, 'members');
  const byAddress = new Map<string, number>();
  for (const { id: member, host, port } of members) {
    const address = `${host}:${port}`;
    const other = byAddress.get(address);
    if (other !== undefined) invalid(`members lists ${address} twice, for replicas ${other} and ${member}`);
    byAddress.set(address, member);
  }
  const self = members.find((member) => member.id === id);
  if (self === undefined) {
    const known = [...ids].sort((a, b) => a - b).join(', ');
    return invalid(`id ${id} is not in members (${known}); every replica, this one included, must be listed`);
  }
  return self;
}

const REPLACE_AFTER_MIN_MS = 1_000;
/** The leader must have looked often enough to know that somebody was not there. */
const LOOKS_MIN = 10;

export function checkReplaceAfter(replaceAfterMs: number | undefined, lookIntervalMs: number): number {
  if (replaceAfterMs === undefined || replaceAfterMs === 0) return 0;
  const minMs = Math.ceil(Math.max(REPLACE_AFTER_MIN_MS, LOOKS_MIN * lookIntervalMs));
  return checkInteger(replaceAfterMs, minMs, 2 ** 31 - 1, 'replaceAfterMs');
}

/** Null for a replica that is not durable. */
function checkDurable(
  durable: boolean | DurableOptions | undefined,
  id: number,
  surviveCrash: unknown,
): { directory: string; snapshotAfterBytes: number } | null {
  if (durable === undefined || durable === false) return null;
  if (surviveCrash !== undefined && surviveCrash !== false) {
    return invalid('durable and surviveCrash exclude each other: a durable replica comes back from its disk');
  }
  const options = durable === true ? { directory: `quorate-${id}` } : durable;
  if (typeof options !== 'object' || options === null) invalid('durable is neither true, false nor an object');
  checkNames<DurableOptions>(options as DurableOptions, { directory: true, snapshotAfterBytes: true }, 'durable');
  const { directory, snapshotAfterBytes = SNAPSHOT_AFTER_BYTES_DEFAULT } = options as DurableOptions;
  if (typeof directory !== 'string' || directory === '') invalid('durable.directory is not the path of a directory');
  checkInteger(snapshotAfterBytes, SNAPSHOT_AFTER_BYTES_MIN, SNAPSHOT_AFTER_BYTES_MAX, 'durable.snapshotAfterBytes');
  return { directory: absolutePath(directory, 'durable.directory'), snapshotAfterBytes };
}

/** Of CPU_SET(3). */
const CPU_MAX = 1023;

export function checkScheduling(scheduling: BackgroundScheduling | undefined): BackgroundScheduling | undefined {
  if (scheduling === undefined) return undefined;
  if (typeof scheduling !== 'object' || scheduling === null) invalid('backgroundThread is not an object');
  checkNames(scheduling, { realtimePriority: true, cpus: true }, 'backgroundThread');
  const { realtimePriority, cpus } = scheduling;
  if (realtimePriority !== undefined) checkInteger(realtimePriority, 1, 99, 'backgroundThread.realtimePriority');
  if (cpus !== undefined) {
    if (!Array.isArray(cpus) || cpus.length === 0) invalid('backgroundThread.cpus must list processors');
    for (const cpu of cpus) checkInteger(cpu, 0, CPU_MAX, 'backgroundThread.cpus');
  }
  return scheduling;
}

/** What is no path is refused where it is used. */
function absoluteShmDirectory(path: string | undefined): string | undefined {
  return typeof path === 'string' && path !== '' ? absolutePath(path, 'shmDirectory') : path;
}

/** Port numbers of the verbs are bytes. */
const DEVICE_PORT_MAX = 255;
const GID_INDEX_MAX = 2 ** 31 - 1;

/** What the device has of them it says itself. */
function checkDevice({ device, devicePort, gidIndex }: ReplicaOptions<never>): void {
  if (device !== undefined && typeof device !== 'string')
    invalid(`device ${shown(device)} is not the name of a device`);
  if (devicePort !== undefined) checkInteger(devicePort, 1, DEVICE_PORT_MAX, 'devicePort');
  if (gidIndex !== undefined) checkInteger(gidIndex, 0, GID_INDEX_MAX, 'gidIndex');
}

/** Of the options of a replica, those that are known before it has a device; with the defaults in place. */
export interface CheckedReplicaOptions {
  /** Where it listens. */
  readonly self: MemberAddress;
  readonly logBytes: number;
  readonly openTimeoutMs: number;
  /** With the directory's absolute path. */
  readonly durable: ReturnType<typeof checkDurable>;
  /** Absolute. */
  readonly shmDirectory: string | undefined;
}

/** All options that are given, each read once: they may be inherited, or computed by a class of settings. */
export function takeReplicaOptions<Result>(given: ReplicaOptions<Result>): ReplicaOptions<Result> {
  if (typeof given !== 'object' || given === null) return invalid('Replica.open() takes an options object');
  checkNames(given, REPLICA_OPTIONS as Members<ReplicaOptions<Result>>, 'options');
  const taken: Record<string, unknown> = {};
  for (const name of Object.keys(REPLICA_OPTIONS) as (keyof ReplicaOptions)[]) {
    const value: unknown = given[name];
    if (value !== undefined) taken[name] = value;
  }
  return taken as unknown as ReplicaOptions<Result>;
}

/** A copy of a list that has been checked: whoever gave it may go on using it. */
export function copyMembers(members: readonly MemberAddress[]): MemberAddress[] {
  return members.map(({ id, host, port, priority = 0 }) => ({ id, host, port, priority }));
}

/** Throws besides QUORATE_CLUSTER_KEY. */
export function checkReplicaOptions(options: ReplicaOptions<never>): CheckedReplicaOptions {
  checkInteger(options.id, 0, MAX_REPLICAS - 1, 'id');
  const self = checkPlace(options);
  const { logBytes = LOG_BYTES_DEFAULT, openTimeoutMs = OPEN_TIMEOUT_DEFAULT_MS } = options;
  checkInteger(logBytes, LOG_BYTES_MIN, LOG_BYTES_MAX, 'logBytes');
  if ((logBytes & (logBytes - 1)) !== 0) return invalid(`logBytes ${logBytes} is not a power of two`);
  for (const method of ['apply', 'snapshot', 'restore'] as const) {
    if (typeof options.stateMachine?.[method] !== 'function')
      return invalid(`stateMachine.${method} is not a function`);
    // What it does later would be done to a state that is another one by then, or taken for done.
    if (types.isAsyncFunction(options.stateMachine[method])) {
      return invalid(
        `stateMachine.${method} is an async function: it must have done all when it returns, and return no promise`,
      );
    }
  }
  for (const method of ['snapshotChunks', 'restoreChunks', 'attachMemory', 'restoreInPlace'] as const) {
    if (!['undefined', 'function'].includes(typeof options.stateMachine[method]))
      return invalid(`stateMachine.${method} is there, but is not a function`);
  }
  if (options.clusterKey === undefined) {
    throw new QuorateError(
      'QUORATE_CLUSTER_KEY',
      'clusterKey is missing: every replica of a cluster takes the same secret key of at least 16 bytes',
    );
  }
  checkClusterKey(options.clusterKey); // before anything is made that depends on it
  checkDevice(options);
  checkInteger(openTimeoutMs, 1, 2 ** 31 - 1, 'openTimeoutMs');
  if (options.signal !== undefined && !(options.signal instanceof AbortSignal)) {
    return invalid('signal is no AbortSignal');
  }
  for (const name of ['waitForLeader', 'keepCompiledCode', 'rehearseTakeovers'] as const) {
    if (!['undefined', 'boolean'].includes(typeof options[name])) return invalid(`${name} is not a boolean`);
  }
  const durable = checkDurable(options.durable, options.id, options.surviveCrash);
  return { self, logBytes, openTimeoutMs, durable, shmDirectory: absoluteShmDirectory(options.shmDirectory) };
}
