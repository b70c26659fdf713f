// Where the members are reached, and a control connection to each of them: follows the configurations as members are
// added, move and are removed. A member that was removed is let go after a grace, in which it can learn of its removal.
import { type Configuration, memberWithId } from '../consensus/configuration.js';
import type { QuorateError } from '../errors.js';
import { type ControlConnection, type ControlIdentity, Dialer } from './control-channel.js';
import type { MemberAddress } from './replica-options.js';

/** How long connection and links to a removed member are kept. */
export const REMOVED_GRACE_MS = 1_000;

export interface MemberDirectoryOptions {
  readonly id: number;
  readonly identity: ControlIdentity & { readonly clusterKey: Uint8Array | string };
  /** Where members are looked for until a configuration says where they are. */
  readonly contacts: readonly MemberAddress[];
  readonly onConnected: (id: number, connection: ControlConnection) => void;
  readonly onDisconnected: (id: number) => void;
  /** The member was removed, and its grace is over. */
  readonly onDropped: (id: number) => void;
  readonly onWarning: (error: QuorateError) => void;
}

interface Place {
  readonly dialer: Dialer;
  readonly host: string;
  readonly port: number;
  farewell: NodeJS.Timeout | undefined;
}

export class MemberDirectory {
  private readonly places = new Map<number, Place>();
  private readonly closings = new Set<Promise<void>>();
  private readonly contacts: Map<number, MemberAddress>;
  private isStarted = false;
  private isClosed = false;

  /** Throws QUORATE_CLUSTER_KEY if the key cannot be used. */
  constructor(private readonly options: MemberDirectoryOptions) {
    const others = options.contacts.filter(({ id }) => id !== options.id);
    this.contacts = new Map(others.map((member) => [member.id, member]));
    for (const { id, host, port } of others) this.place(id, host, port);
  }

  /** Ids that are dialed now. */
  get ids(): readonly number[] {
    return [...this.places.keys()].sort((a, b) => a - b);
  }

  /** Why members are not connected, each reason once. */
  get reasons(): readonly string[] {
    const reasons = [...this.places.values()].map(({ dialer }) => dialer.reason?.message);
    return [...new Set(reasons.filter((reason): reason is string => reason !== undefined))];
  }

  start(): void {
    this.isStarted = true;
    for (const { dialer } of this.places.values()) dialer.start();
  }

  /** The member has been heard of just now: it is dialed at once, if it is not connected. */
  hurry(id: number): void {
    this.places.get(id)?.dialer.hurry();
  }

  private place(id: number, host: string, port: number): void {
    const { identity, onConnected, onDisconnected, onWarning } = this.options;
    const dialer = new Dialer({ ...identity, peerId: id, host, port });
    const isCurrent = (): boolean => this.places.get(id)?.dialer === dialer;
    dialer.on('connected', (connection) => {
      if (isCurrent()) onConnected(id, connection);
    });
    dialer.on('disconnected', () => {
      if (isCurrent()) onDisconnected(id);
    });
    dialer.on('warning', (error) => {
      if (isCurrent()) onWarning(error);
    });
    this.places.set(id, { dialer, host, port, farewell: undefined });
    if (this.isStarted) dialer.start();
  }

  /** Takes the place out; what its dialer still does is nobody's business. */
  private leave(id: number): void {
    const place = this.places.get(id);
    if (place === undefined) return;
    clearTimeout(place.farewell);
    this.places.delete(id);
    const closing = place.dialer.close().finally(() => this.closings.delete(closing));
    this.closings.add(closing);
    this.options.onDisconnected(id);
  }

  /**
   * The founders' own lists of addresses stay in use until a configuration names another place than the first one did:
   * replicas may know each other by different names.
   */
  private addressOf(
    id: number,
    genesis: Configuration,
    configurations: readonly Configuration[],
  ): { host: string; port: number } | undefined {
    const member = configurations
      .map((configuration) => memberWithId(configuration, id))
      .find((one) => one !== undefined);
    if (member === undefined) return undefined;
    const first = memberWithId(genesis, id);
    const contact = this.contacts.get(id);
    const isUnchanged = first?.host === member.host && first.port === member.port;
    if (!isUnchanged) this.contacts.delete(id); // also when it moves back: the list may say where it was in between
    return contact !== undefined && isUnchanged ? contact : member;
  }

  /** Follows the configurations in force and committed, the later one first. */
  follow(genesis: Configuration, ...configurations: readonly Configuration[]): void {
    if (this.isClosed) return;
    const ids = new Set([
      ...this.places.keys(),
      ...configurations.flatMap(({ members }) => members.map(({ id }) => id)),
    ]);
    ids.delete(this.options.id);
    for (const id of ids) {
      const address = this.addressOf(id, genesis, configurations);
      const place = this.places.get(id);
      if (address === undefined) {
        if (place !== undefined) place.farewell ??= setTimeout(() => this.drop(id), REMOVED_GRACE_MS);
        continue;
      }
      clearTimeout(place?.farewell);
      if (place !== undefined) place.farewell = undefined;
      if (place?.host === address.host && place.port === address.port) continue;
      this.leave(id);
      this.place(id, address.host, address.port);
    }
  }

  private drop(id: number): void {
    this.leave(id);
    this.options.onDropped(id);
  }

  /** Stops dialing. Resolves when no connection is left. */
  async close(): Promise<void> {
    this.isClosed = true;
    for (const { farewell } of this.places.values()) clearTimeout(farewell);
    await Promise.all([...[...this.places.values()].map(({ dialer }) => dialer.close()), ...this.closings]);
  }
}
