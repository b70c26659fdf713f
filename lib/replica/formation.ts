// How a set of processes becomes a cluster, and how a process finds out whether it is a founder or comes back. A
// process that starts knows nothing: its memory is new. If any member belongs to a formed cluster, the process joins
// that one, as a new life of its replica. Only when *every* member is reachable and fresh may a cluster be founded: the
// member with the lowest id then writes down the first configuration, in which all of them are voters, and tells the
// others. Unanimity keeps two sets of survivors from founding two clusters.
import { randomInt } from 'node:crypto';
import {
  type Configuration,
  checkConfiguration,
  genesisConfiguration,
  voterWithId,
} from '../consensus/configuration.js';
import { BOOT_ID_MAX } from '../consensus/limits.js';
import { QuorateError } from '../errors.js';
import type { ControlConnection } from './control-channel.js';
import type { MemberAddress } from './replica-options.js';

const POLL_INTERVAL_MS = 50;
const REQUEST_TIMEOUT_MS = 2_000;

interface FormationReply {
  readonly bootId: number;
  readonly genesis: Configuration | null;
  /** The latest configuration that the replica knows to be committed. */
  readonly current: Configuration | null;
}

export function checkReply(value: unknown): FormationReply {
  const { bootId, genesis, current } = (value ?? {}) as Record<string, unknown>;
  if (typeof bootId !== 'number' || !Number.isInteger(bootId) || bootId <= 0 || bootId > BOOT_ID_MAX) {
    throw new QuorateError('QUORATE_PROTOCOL', 'formation reply without a bootId');
  }
  const checked = (one: unknown): Configuration | null =>
    one === null || one === undefined ? null : checkConfiguration(one);
  const reply = { bootId, genesis: checked(genesis), current: checked(current) };
  if (reply.genesis !== null && reply.current !== null && reply.current.clusterId !== reply.genesis.clusterId) {
    throw new QuorateError('QUORATE_PROTOCOL', 'formation reply with configurations of two clusters');
  }
  return reply;
}

export interface FormationOptions {
  readonly id: number;
  readonly bootId: number;
  /** Founding members, or those that are asked about the cluster that exists. */
  readonly members: readonly MemberAddress[];
  /** False: joins a cluster and never founds one. */
  readonly mayFound: boolean;
  /** Id of the cluster that is founded; default: drawn at random. */
  readonly clusterId?: number | undefined;
  /** The latest configuration that this replica knows to be committed. */
  readonly current: () => Configuration | null;
  /** The current outgoing connection to a member, if there is one. */
  readonly connectionTo: (id: number) => ControlConnection | undefined;
  /** Called once, when the first configuration of the cluster is known, with one that is current. */
  readonly onFormed: (genesis: Configuration, current: Configuration) => void;
  /** This process must not take part at all (another one with its id is alive). */
  readonly onRefused: (error: QuorateError) => void;
}

export class Formation {
  private genesis_: Configuration | null = null;
  private readonly freshBootIds = new Map<number, number>();
  /** Why members that are connected have given no answer that can be used. */
  private readonly failures = new Map<number, Error>();
  private timer: NodeJS.Timeout | undefined;
  private polling = false;
  private closed = false;

  constructor(private readonly options: FormationOptions) {}

  get genesis(): Configuration | null {
    return this.genesis_;
  }

  /** Members that have not been reached yet, for the error of an open() that timed out. */
  missing(): number[] {
    const ids = this.options.members.map(({ id }) => id);
    return ids.filter((id) => id !== this.options.id && this.options.connectionTo(id) === undefined);
  }

  /** What is wrong with the answers of members that have been reached, for the same error. */
  get reasons(): string[] {
    if (this.genesis_ !== null) return []; // nobody is asked any more
    return [...this.failures].map(
      ([id, { message }]) => `replica ${id} did not say what it knows of the cluster: ${message}`,
    );
  }

  start(): void {
    this.timer = setInterval(() => void this.poll(), POLL_INTERVAL_MS);
    void this.poll();
  }

  close(): void {
    this.closed = true;
    clearInterval(this.timer);
  }

  /** Answer to a member's question. */
  reply(): FormationReply {
    return { bootId: this.options.bootId, genesis: this.genesis_, current: this.options.current() };
  }

  /** The founder tells this member of the cluster it founded. */
  accept(value: unknown): FormationReply {
    const genesis = checkConfiguration(value);
    if (this.genesis_ === null) {
      if (!this.options.mayFound) {
        throw new QuorateError('QUORATE_NOT_FOUNDER', `replica ${this.options.id} joins a cluster and founds none`);
      }
      if (voterWithId(genesis, this.options.id)?.bootId !== this.options.bootId) {
        throw new QuorateError('QUORATE_NOT_FOUNDER', 'the first configuration names another life of this replica');
      }
      this.adopt(genesis, genesis);
    }
    return this.reply();
  }

  /** This replica comes back, and knows its cluster. */
  resume(genesis: Configuration, current: Configuration): void {
    this.adopt(genesis, current);
  }

  private adopt(genesis: Configuration, current: Configuration): void {
    if (this.genesis_ !== null || this.closed) return;
    this.genesis_ = genesis;
    this.close();
    this.options.onFormed(genesis, current);
  }

  private async poll(): Promise<void> {
    if (this.polling) return;
    this.polling = true;
    try {
      await Promise.all(this.options.members.map(({ id }) => this.ask(id)));
      if (this.genesis_ === null && !this.closed && this.options.mayFound) this.found();
    } finally {
      this.polling = false;
    }
  }

  private async ask(id: number): Promise<void> {
    if (id === this.options.id) return;
    this.freshBootIds.delete(id);
    const connection = this.options.connectionTo(id);
    if (connection === undefined) {
      this.failures.delete(id); // why there is none, others know
      return;
    }
    try {
      const reply = checkReply(await connection.request('formation', null, REQUEST_TIMEOUT_MS));
      this.failures.delete(id);
      if (reply.genesis !== null) this.adopt(reply.genesis, reply.current ?? reply.genesis);
      else this.freshBootIds.set(id, reply.bootId);
    } catch (error) {
      this.failures.set(id, error as Error);
      // A member that vanished is asked again at the next round; one that refuses us says so.
      if (error instanceof QuorateError && error.code === 'QUORATE_DUPLICATE_ID') this.options.onRefused(error);
    }
  }

  private found(): void {
    const { id, bootId, members } = this.options;
    if (id !== Math.min(...members.map((member) => member.id)) || this.freshBootIds.size !== members.length - 1) return;
    const founders = members.map((member) => ({
      ...member,
      bootId: member.id === id ? bootId : (this.freshBootIds.get(member.id) as number),
    }));
    const genesis = genesisConfiguration(this.options.clusterId ?? randomInt(1, 2 ** 48 - 1), founders);
    this.adopt(genesis, genesis);
    for (const peer of this.freshBootIds.keys()) {
      // A member that misses this asks by itself within the next interval.
      this.options
        .connectionTo(peer)
        ?.request('found', genesis, REQUEST_TIMEOUT_MS)
        .catch(() => {});
    }
  }
}
