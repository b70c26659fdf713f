// The rules of membership change, looked at where configurations come from: at the append of their entries by a leader,
// against the record of all entries that were ever appended. A leader changes the membership only when an entry of its own
// epoch is committed, one change at a time, by one voter at most; who becomes a voter holds nearly all that is committed;
// and a leader that is no voter of a committed configuration leads no longer.
import {
  type Configuration,
  checkSuccessor,
  decodeConfiguration,
  memberWithId,
  votersChanged,
} from '../../consensus/configuration.js';
import { EntryType } from '../../consensus/entry.js';
import { formatEpoch } from '../../consensus/epoch.js';
import { ENTRY_HEADER_BYTES, LEARNER_LAG_BYTES_MAX } from '../../consensus/limits.js';
import type { SimNode } from '../../fabric/sim/sim-node.js';
import { ancestorAt, type LogNode } from '../log-tree.js';
import type { SimLife } from '../sim-life.js';
import type { CheckContext, Checker } from './checker.js';

export class ConfigurationChecker implements Checker {
  readonly invariant = 'membership change';
  private readonly configurations = new Map<LogNode, Configuration>();
  /** Whom a replica could write at the end of its last turn: see checkWritable(). */
  private readonly writableBefore = new Map<SimLife, number>();
  /** Leaders that a committed configuration was without when they were looked at last. */
  private readonly leaving = new Set<SimLife>();

  constructor(private readonly context: CheckContext) {}

  private fail(text: string): void {
    this.context.world.fail(this.invariant, text);
  }

  onAppended(node: SimNode, epoch: number, logOffset: number, lengthBytes: number): void {
    const { tree } = this.context;
    const words = new Uint32Array(node.log.buffer);
    for (let offset = logOffset; offset < logOffset + lengthBytes; ) {
      const at = offset >>> 2;
      const payloadBytes = words[at + 4] as number;
      const sizeBytes = Math.ceil((ENTRY_HEADER_BYTES + payloadBytes) / 64) * 64;
      const type = (words[at + 5] as number) & 0xffff;
      const lsn = (words[at + 1] as number) * 4294967296 + (words[at] as number);
      const entryEpoch = (words[at + 3] as number) * 4294967296 + (words[at + 2] as number);
      if (type === EntryType.configuration && entryEpoch === epoch) {
        // The record of this append was made by the log matching checker, which is told first.
        const entry = tree.find(lsn + sizeBytes, words[at + 8] as number, words[at + 9] as number);
        const start = offset + ENTRY_HEADER_BYTES;
        const configuration = decodeConfiguration(node.log.slice(start, start + payloadBytes));
        if (entry !== undefined) this.appended(node, epoch, entry, configuration);
      }
      offset += sizeBytes;
    }
  }

  private appended(node: SimNode, epoch: number, entry: LogNode, configuration: Configuration): void {
    const { tree } = this.context;
    this.configurations.set(entry, configuration);
    const cluster = this.context.cluster();
    const life = cluster.lives[node.id];
    if (life?.node !== node) return;
    const what = `configuration ${configuration.version} of ${life.name} in epoch ${formatEpoch(epoch)}`;
    const { commitLsn } = life.replication;
    if (!tree.hasBoundaryOf(commitLsn, epoch)) {
      this.fail(`${what} was appended when no entry of that epoch was committed, but LSN ${commitLsn}`);
    }
    let before = entry.parent;
    while (before !== null && before.type !== EntryType.configuration) before = before.parent;
    if (before !== null && before.endLsn > commitLsn) {
      this.fail(`${what} was appended while the one at LSN ${before.startLsn} was not committed`);
    }
    const previous = before === null ? cluster.genesis : this.configurations.get(before);
    if (previous === undefined) return;
    try {
      checkSuccessor(previous, configuration);
    } catch (error) {
      this.fail(`${what}: ${(error as Error).message}`);
    }
    if (votersChanged(previous, configuration) > 0) this.checkWritable(what, life, configuration);
    this.checkReplaced(what, previous, configuration, entry, node);
    for (const voter of configuration.voters) {
      if (voter.id === node.id || previous.voters.some(({ bootId }) => bootId === voter.bootId)) continue;
      const promoted = cluster.lives[voter.id];
      // It may have died a moment ago, with what it held.
      if (promoted?.bootId === voter.bootId && this.isLinked(life, promoted)) this.checkCaughtUp(what, promoted, entry);
    }
  }

  /**
   * By the leader's own books, of this moment or of the end of its last turn: between the decision and the append it may
   * have learned that somebody is gone.
   */
  private checkWritable(what: string, life: SimLife, { voters }: Configuration): void {
    const now = this.writableBy(life);
    const before = this.writableBefore.get(life) ?? 0;
    const ids = voters.map(({ id }) => id).filter((id) => id === life.id || ((now | before) & (1 << id)) !== 0);
    if (ids.length > voters.length >> 1) return;
    this.fail(`${what} has ${voters.length} voters, of which its leader can write and trusts only ${ids}: no majority`);
  }

  /** Bit per replica that this one can write and trusts. */
  private writableBy({ replication }: SimLife): number {
    let mask = 0;
    for (const { id } of replication.configuration.members) {
      if (replication.peerPhase(id) === 'active') mask |= 1 << id;
    }
    return mask & replication.trustedMask;
  }

  /** Who makes way for a spare that was called up does so when that has caught up, not before. */
  private checkReplaced(
    what: string,
    previous: Configuration,
    configuration: Configuration,
    entry: LogNode,
    node: SimNode,
  ): void {
    for (const { id, bootId, replaces } of previous.members) {
      const isReplaced =
        replaces !== undefined &&
        configuration.members.some((member) => member.id === id && member.replaces === replaces);
      if (
        !isReplaced ||
        memberWithId(previous, replaces) === undefined ||
        memberWithId(configuration, replaces) !== undefined
      ) {
        continue;
      }
      const life = this.context.cluster().lives[id];
      const leader = this.context.cluster().lives[node.id];
      const isLinked = life != null && leader != null && this.isLinked(leader, life);
      // An operator may remove a voter, whoever is to take its place.
      if (leader?.removals.has(replaces)) continue;
      if (life?.bootId === bootId && isLinked) this.checkCaughtUp(`${what} removes r${replaces}:`, life, entry);
    }
  }

  /** A durable life may have come back in another process since, with less than it held in memory. */
  private isLinked(leader: SimLife, life: SimLife): boolean {
    return life.disk === null || leader.replicationFabric.linkTo(life.id)?.responder === life.node;
  }

  private checkCaughtUp(what: string, life: SimLife, entry: LogNode): void {
    const { tree } = this.context;
    const { logBytes } = this.context.cluster().options;
    const position = life.replication.appliedPosition;
    const applied = position.lsn === 0 ? null : tree.find(position.lsn, position.hashLow, position.hashHigh);
    if (applied === undefined) return; // reported by the state machine safety checker
    const tip = tree.walk(life.replicationFabric.logWords, logBytes, applied).at(-1) ?? applied;
    // What it shares with the leader's log, which may go on in another way behind that.
    let shared = tip;
    while (shared !== null && ancestorAt(entry, shared.endLsn) !== shared) shared = shared.parent;
    const begin = entry.parent?.type === EntryType.pad ? entry.parent.startLsn : entry.startLsn;
    // It may have all but the end of the entry behind that: WRITEs carry bytes, not entries.
    let next = entry;
    while (next.parent !== null && next.parent !== shared) next = next.parent;
    const lagBytes = begin - Math.min(begin, next.endLsn);
    if (lagBytes <= Math.min(LEARNER_LAG_BYTES_MAX, logBytes / 16)) return;
    this.fail(`${what} counts on ${life.name}, which lacks ${lagBytes} bytes of the log`);
  }

  onCrashed(life: SimLife): void {
    this.writableBefore.delete(life);
    this.leaving.delete(life);
  }

  afterMain(life: SimLife): void {
    const { replication } = life;
    if (replication.role === 'leader') this.writableBefore.set(life, this.writableBy(life));
    const { appliedConfiguration, configuration } = replication;
    const isCommitted = appliedConfiguration.version === configuration.version;
    const isOut =
      replication.role === 'leader' &&
      isCommitted &&
      !configuration.voters.some(({ bootId }) => bootId === life.bootId);
    if (!isOut) {
      this.leaving.delete(life);
      return;
    }
    // The commit may have come with the last thing that this run of the main plane did.
    if (this.leaving.has(life)) {
      this.fail(`${life.name} goes on leading after configuration ${appliedConfiguration.version}, which removed it`);
    }
    this.leaving.add(life);
  }
}
