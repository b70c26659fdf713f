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
import { QuorateError } from '../errors.js';
import type { ControlConnection } from './control-channel.js';

const POLL_INTERVAL_MS = 50;
const REQUEST_TIMEOUT_MS = 2_000;

interface FormationReply {
  readonly bootId: number;
  readonly genesis: Configuration | null;
}

function checkReply(value: unknown): FormationReply {
  const { bootId, genesis } = (value ?? {}) as Record<string, unknown>;
  if (typeof bootId !== 'number' || !Number.isSafeInteger(bootId) || bootId <= 0) {
    throw new QuorateError('QUORATE_PROTOCOL', 'formation reply without a bootId');
  }
  return { bootId, genesis: genesis === null || genesis === undefined ? null : checkConfiguration(genesis) };
}

export interface FormationOptions {
  readonly id: number;
  readonly bootId: number;
  readonly memberIds: readonly number[];
  /** The current outgoing connection to a member, if there is one. */
  readonly connectionTo: (id: number) => ControlConnection | undefined;
  /** Called once, when the first configuration of the cluster is known. */
  readonly onFormed: (genesis: Configuration) => void;
  /** This process must not take part at all (another one with its id is alive). */
  readonly onRefused: (error: QuorateError) => void;
}

export class Formation {
  private genesis_: Configuration | null = null;
  private readonly freshBootIds = new Map<number, number>();
  private timer: NodeJS.Timeout | undefined;
  private polling = false;
  private closed = false;

  constructor(private readonly options: FormationOptions) {}

  get genesis(): Configuration | null {
    return this.genesis_;
  }

  /** Members that have not been reached yet, for the error of an open() that timed out. */
  missing(): number[] {
    return this.options.memberIds.filter((id) => id !== this.options.id && this.options.connectionTo(id) === undefined);
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
    return { bootId: this.options.bootId, genesis: this.genesis_ };
  }

  /** The founder tells this member of the cluster it founded. */
  accept(value: unknown): FormationReply {
    const genesis = checkConfiguration(value);
    if (this.genesis_ === null) {
      if (voterWithId(genesis, this.options.id)?.bootId !== this.options.bootId) {
        throw new QuorateError('QUORATE_NOT_FOUNDER', 'the first configuration names another life of this replica');
      }
      this.adopt(genesis);
    }
    return this.reply();
  }

  private adopt(genesis: Configuration): void {
    if (this.genesis_ !== null || this.closed) return;
    this.genesis_ = genesis;
    this.close();
    this.options.onFormed(genesis);
  }

  private async poll(): Promise<void> {
    if (this.polling) return;
    this.polling = true;
    try {
      await Promise.all(this.options.memberIds.map((id) => this.ask(id)));
      if (this.genesis_ === null && !this.closed) this.found();
    } finally {
      this.polling = false;
    }
  }

  private async ask(id: number): Promise<void> {
    if (id === this.options.id) return;
    this.freshBootIds.delete(id);
    const connection = this.options.connectionTo(id);
    if (connection === undefined) return;
    try {
      const reply = checkReply(await connection.request('formation', null, REQUEST_TIMEOUT_MS));
      if (reply.genesis !== null) this.adopt(reply.genesis);
      else this.freshBootIds.set(id, reply.bootId);
    } catch (error) {
      // A member that vanished is asked again at the next round; one that refuses us says so.
      if (error instanceof QuorateError && error.code === 'QUORATE_DUPLICATE_ID') this.options.onRefused(error);
    }
  }

  private found(): void {
    const { id, bootId, memberIds } = this.options;
    if (id !== Math.min(...memberIds) || this.freshBootIds.size !== memberIds.length - 1) return;
    const members = [{ id, bootId }, ...[...this.freshBootIds].map(([peer, boot]) => ({ id: peer, bootId: boot }))];
    const genesis = genesisConfiguration(randomInt(1, 2 ** 48 - 1), members);
    this.adopt(genesis);
    for (const peer of this.freshBootIds.keys()) {
      // A member that misses this asks by itself within the next interval.
      this.options
        .connectionTo(peer)
        ?.request('found', genesis, REQUEST_TIMEOUT_MS)
        .catch(() => {});
    }
  }
}
