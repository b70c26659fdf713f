// What a replica knows of the membership beyond its own log. A configuration is known to be committed from the log or from
// what another member tells: a spare has no log, and who was away when it was removed, or when others moved, gets none that
// says so. Whoever may lack such news is told it here, best effort, since it is told again with the next connection.
import { type Configuration, checkConfiguration, memberWithId } from '../consensus/configuration.js';
import { MembershipWatch } from '../consensus/membership.js';
import { type ReplacementNews, replacementNews } from '../consensus/replacement.js';
import type { ControlConnection } from './control-channel.js';
import { checkReply } from './formation.js';

/** Asking a member for the current configuration. */
const CURRENT_TIMEOUT_MS = 2_000;

export interface KnownMembershipHost {
  readonly id: number;
  readonly bootId: number;
  /** The configuration in force in the own log; undefined while there is none. */
  inForce(): Configuration | undefined;
  /** The same, of all that has arrived in the own log. */
  latestInLog(): Configuration | undefined;
  /** Looks what the own log says by now, before somebody else's word is taken; not inside the plane's own call. */
  lookAtLog(): void;
  /** Tells the peer, if it can be reached now. */
  tell(peer: number, configuration: Configuration): void;
  isClosed(): boolean;
  /** Links and addresses are to follow these configurations, the later one first. */
  follow(genesis: Configuration, later: Configuration, earlier: Configuration): void;
  onReplacement(news: ReplacementNews): void;
  /** This replica is to be reached here from now on. */
  onMoved(host: string, port: number): void;
  /** This replica is a spare, which has no log from which it could learn who leads. */
  onSpare(): void;
  /** This replica is no member any more. */
  onRemoved(reason: string): void;
  onWarning(error: Error): void;
}

export class KnownMembership {
  private genesis: Configuration | null = null;
  private latest: Configuration | null = null;
  private watch: MembershipWatch | undefined;

  constructor(private readonly host: KnownMembershipHost) {}

  /** The latest configuration that is known to be committed; null before the cluster is known. */
  get known(): Configuration | null {
    return this.latest;
  }

  /** The cluster is known. */
  begin(genesis: Configuration, current: Configuration): void {
    const { id, bootId } = this.host;
    this.genesis = genesis;
    this.latest = current;
    this.watch = new MembershipWatch(id, bootId, current);
  }

  /** A configuration that is committed, from the own log or from another member. */
  observe(configuration: Configuration): void {
    const { host, latest, watch } = this;
    if (latest === null || watch === undefined || host.isClosed()) return;
    if (configuration.clusterId !== latest.clusterId || configuration.version <= latest.version) return;
    this.latest = configuration;
    for (const news of replacementNews(latest, configuration)) host.onReplacement(news);
    const before = memberWithId(latest, host.id);
    const now = memberWithId(configuration, host.id);
    if (before !== undefined && now !== undefined && (before.host !== now.host || before.port !== now.port)) {
      host.onMoved(now.host, now.port);
    }
    const reason = watch.observe(configuration, () => host.latestInLog() ?? configuration);
    this.follow();
    if (reason !== null) host.onRemoved(reason);
    else this.noticeSpare();
  }

  /** A spare gets no log: where its own ends, with the founders it may be, says nothing beside what it was told since. */
  private inForce(): Configuration | undefined {
    const { latest, host } = this;
    const inForce = host.inForce();
    if (latest === null || inForce === undefined || inForce.version >= latest.version) return inForce;
    return memberWithId(latest, host.id)?.role === 'spare' ? undefined : inForce;
  }

  /** Links and addresses follow the configuration in force and the one that is known to be committed. */
  follow(): void {
    const { genesis, latest, host } = this;
    if (genesis === null || latest === null) return;
    const inForce = this.inForce() ?? latest;
    const [later, earlier] = inForce.version > latest.version ? [inForce, latest] : [latest, inForce];
    host.follow(genesis, later, earlier);
  }

  /** A spare has no log from which it could learn who leads: being listed is all that it waits for. */
  noticeSpare(): void {
    if (this.latest !== null && memberWithId(this.latest, this.host.id)?.role === 'spare') this.host.onSpare();
  }

  /** Members deal with members; who is none yet, or does not know it, deals with whoever does. */
  isMember(id: number): boolean {
    const { latest, host } = this;
    const inForce = this.inForce();
    const lists = (one: number): boolean =>
      (latest !== null && memberWithId(latest, one) !== undefined) ||
      (inForce !== undefined && memberWithId(inForce, one) !== undefined);
    return lists(id) || !lists(host.id);
  }

  // -- news between members ----------------------------------------------------------------------------------------

  /** There is a connection to a member: either may have missed what the other knows. */
  connected(peer: number, connection: ControlConnection): void {
    if (this.latest === null) return;
    void this.ask(connection);
    this.tellIfApart(peer, this.latest);
  }

  /** Who was away may have missed what its log will not tell it: that it was removed, or where others are now. */
  private async ask(connection: ControlConnection): Promise<void> {
    try {
      const { current } = checkReply(await connection.request('formation', null, CURRENT_TIMEOUT_MS));
      if (current !== null) this.hear(current);
    } catch (error) {
      // One that has gone again is asked when it is back.
      if (!connection.isClosed) this.host.onWarning(error as Error);
    }
  }

  /** Has what members tell over this connection, which the peer made, heard. */
  serve(connection: ControlConnection): void {
    connection.onMessage('configuration', (body) => this.hear(checkConfiguration(body)));
  }

  private hear(configuration: Configuration): void {
    this.host.lookAtLog();
    this.observe(configuration);
  }

  /** A spare has no log to learn from, and who was removed may get nothing any more: they are told. */
  tellIfApart(peer: number, configuration: Configuration): void {
    const member = memberWithId(configuration, peer);
    if (member === undefined || member.role === 'spare') this.host.tell(peer, configuration);
  }

  /**
   * The peer does not know that this replica is a member. If it missed that because the leader of that time did not reach
   * it, no log will ever tell it once this replica leads: only over links that it refuses.
   */
  tellOfMembership(peer: number): void {
    const { latest, host } = this;
    if (latest !== null && memberWithId(latest, host.id) !== undefined) host.tell(peer, latest);
  }
}
