// What the protocol does, as a person would tell it: who stands for election, who lets whom write in which epoch, what a
// new leader adopts and repairs, what reaches which log, what is committed and applied. Made from what replicas publish
// and from what happens to their memory, event by event; it only looks.
import { EntryType, entryBytes, entryEpoch, entryPayloadBytes, entryType } from '../consensus/entry.js';
import { formatEpoch } from '../consensus/epoch.js';
import type { PeerPhase } from '../consensus/follower.js';
import {
  BACKGROUND_BLOCK_WORDS,
  ENTRY_HEADER_BYTES,
  GRANT_BLOCK_OFFSET_WORDS,
  GRANT_BLOCK_WORDS,
  LSN_BYTES,
  MAX_REPLICAS,
} from '../consensus/limits.js';
import type { Role } from '../consensus/replication-host.js';
import { readU53, SealedBlockReader } from '../consensus/sealed-block.js';
import { BackgroundField, GrantField } from '../consensus/status-layout.js';
import type { SimNode } from '../fabric/sim/sim-node.js';
import { formatCommand } from './scripted-cluster.js';
import type { SimClusterObserver } from './sim-cluster.js';
import type { SimLife } from './sim-life.js';
import { COMMAND_BYTES, decodeCommand } from './sim-state-machine.js';

/** `elections` leaves out entries on their way: appends, WRITEs, commits and what is applied. */
export type TraceLevel = 'none' | 'elections' | 'all';

/** Entries of one WRITE or of one batch that are named one by one. */
const NAMED_MAX = 4;
const BOOT_IDS_PER_REPLICA = 1000;

/** The entry at a byte offset of a log, as text: "x=1", "noop", "configuration". */
export function describeEntry(log: Uint8Array, words: Uint32Array, offset: number): string {
  const at = offset >>> 2;
  switch (entryType(words, at)) {
    case EntryType.noop:
      return 'noop';
    case EntryType.command: {
      const payloadBytes = entryPayloadBytes(words, at);
      if (payloadBytes < COMMAND_BYTES) return 'half a command';
      return formatCommand(decodeCommand(log, offset + ENTRY_HEADER_BYTES, payloadBytes));
    }
    case EntryType.configuration:
      return 'configuration';
    case EntryType.pad:
      return 'pad';
    default:
      return 'no entry';
  }
}

/** "x=1, x=2, ... 12 entries" */
export function shorten(names: readonly string[]): string {
  if (names.length <= NAMED_MAX) return names.join(', ');
  return `${names[0]}, ${names[1]} ... ${names[names.length - 1]}: ${names.length} entries`;
}

/** "r2", and "r2/2" in its second life. */
export function nameOf(id: number, bootId: number): string {
  const life = Math.floor(bootId / BOOT_IDS_PER_REPLICA);
  return life > 1 ? `r${id}/${life}` : `r${id}`;
}

function isEntryAt(node: SimNode, words: Uint32Array, offset: number): boolean {
  return readU53(words, offset >>> 2) % node.log.length === offset && entryType(words, offset >>> 2) !== 0;
}

class Known {
  readonly background = new SealedBlockReader(BACKGROUND_BLOCK_WORDS);
  readonly grant = new SealedBlockReader(GRANT_BLOCK_WORDS);
  grantSequence = 0;
  grantedEpoch = 0;
  isEligible = false;
  trusted = 0;
  role: Role = 'follower';
  commitLsn = 0;
  configuration = 1;
  readonly phases = new Array<PeerPhase>(MAX_REPLICAS).fill('none');
}

export class ProtocolTrace implements Partial<SimClusterObserver> {
  level: TraceLevel = 'all';
  private lines: string[] = [];
  private readonly known = new Map<SimNode, Known>();
  private readonly lives = new Map<SimNode, SimLife>();
  /** Commands that one replica applied one after the other, not yet told. */
  private applied: { name: string; commands: string[] } | null = null;

  /** What has been told since the last call. */
  take(): string[] {
    this.tellApplied();
    const { lines } = this;
    this.lines = [];
    return lines;
  }

  /** Something that the protocol itself does not show. */
  note(text: string): void {
    if (this.level === 'none') return;
    this.tellApplied();
    this.lines.push(text);
  }

  private tellOfEntries(text: string): void {
    if (this.level === 'all') this.note(text);
  }

  private tellApplied(): void {
    const { applied } = this;
    this.applied = null;
    if (applied !== null) this.lines.push(`${applied.name} applies ${shorten(applied.commands)}`);
  }

  private knownOf(node: SimNode): Known {
    let known = this.known.get(node);
    if (known === undefined) {
      known = new Known();
      this.known.set(node, known);
    }
    return known;
  }

  private name(node: SimNode): string {
    return nameOf(node.id, this.lives.get(node)?.bootId ?? 0);
  }

  private names(mask: number): string {
    const ids = Array.from({ length: MAX_REPLICAS }, (_, id) => id).filter((id) => (mask & (1 << id)) !== 0);
    return ids.map((id) => `r${id}`).join(' ');
  }

  /** What a piece of a log holds, as text, and the epoch of its last entry. */
  private entries(node: SimNode, offset: number, lengthBytes: number): { text: string; epoch: number } {
    const words = new Uint32Array(node.log.buffer);
    const names: string[] = [];
    const end = offset + lengthBytes;
    let epoch = 0;
    // Where nothing is to be replicated a leader proves its permission with this (see provePermissions()).
    if (lengthBytes === LSN_BYTES && isEntryAt(node, words, offset)) {
      return { text: `proof at LSN ${readU53(words, offset >>> 2)}`, epoch };
    }
    for (let at = offset; at < end; ) {
      // A WRITE may end, and the next begin, inside an entry; and a device may place it in pieces.
      const isEntry = isEntryAt(node, words, at);
      const size = isEntry ? entryBytes(entryPayloadBytes(words, at >>> 2)) : 0;
      if (size === 0 || at + size > end) return { text: `${lengthBytes} bytes at offset ${offset}`, epoch };
      names.push(describeEntry(node.log, words, at));
      epoch = entryEpoch(words, at >>> 2);
      at += size;
    }
    return { text: `${shorten(names)} at LSN ${readU53(words, offset >>> 2)}`, epoch };
  }

  // -- lives -------------------------------------------------------------------------------------------------------

  onStarted(life: SimLife): void {
    this.lives.set(life.node, life);
    this.note(`${this.name(life.node)} starts`);
  }

  onCrashed(life: SimLife): void {
    this.note(`${this.name(life.node)} crashes`);
  }

  onRemoved(life: SimLife): void {
    this.note(`${this.name(life.node)} learns that it was removed`);
  }

  onTransferEnded(life: SimLife, reason: string): void {
    this.note(`${this.name(life.node)} keeps the leadership: ${reason}`);
  }

  // -- who may write -----------------------------------------------------------------------------------------------

  onRevoked(node: SimNode, peer: number): void {
    const life = this.lives.get(node);
    if (life !== undefined) this.noteTrust(life);
    this.note(`${this.name(node)} takes the permission to write its log from r${peer}`);
  }

  afterBackground(life: SimLife): void {
    const known = this.knownOf(life.node);
    const { statusWords } = life.backgroundFabric;
    this.noteTrust(life);
    if (known.grant.read(statusWords, GRANT_BLOCK_OFFSET_WORDS) && known.grant.sequence !== known.grantSequence) {
      known.grantSequence = known.grant.sequence;
      this.tellGrant(life, known);
    }
    const { body } = known.background;
    const isEligible = body[BackgroundField.eligible] === 1;
    if (isEligible !== known.isEligible) {
      known.isEligible = isEligible;
      const isVoter = readU53(body, BackgroundField.incarnation) !== 0;
      if (isVoter && !isEligible) this.note(`${this.name(life.node)} stands back from elections`);
    }
  }

  private noteTrust(life: SimLife): void {
    const known = this.knownOf(life.node);
    if (!known.background.read(life.backgroundFabric.statusWords, 0)) return;
    const trusted = known.background.body[BackgroundField.trustedMask] as number;
    const gained = trusted & ~known.trusted;
    const lost = known.trusted & ~trusted;
    known.trusted = trusted;
    if (lost !== 0) this.note(`${this.name(life.node)} suspects ${this.names(lost)}`);
    if (gained !== 0) this.note(`${this.name(life.node)} trusts ${this.names(gained)}`);
  }

  private tellGrant(life: SimLife, known: Known): void {
    const { body } = known.grant;
    const epoch = readU53(body, GrantField.epoch);
    const candidate = body[GrantField.candidate] as number;
    const tailLsn = readU53(body, GrantField.tailLsn);
    const tailEpoch = readU53(body, GrantField.tailEpoch);
    const isAgain = epoch === known.grantedEpoch;
    known.grantedEpoch = epoch;
    const log = tailLsn === 0 ? 'empty' : `up to LSN ${tailLsn} of epoch ${formatEpoch(tailEpoch)}`;
    const name = this.name(life.node);
    if (candidate === life.id)
      this.note(`${name} stands for election in epoch ${formatEpoch(epoch)} (own log: ${log})`);
    else {
      const again = isAgain ? ' again' : '';
      this.note(`${name} lets r${candidate} write its log in epoch ${formatEpoch(epoch)}${again} (log: ${log})`);
    }
  }

  // -- what is written ---------------------------------------------------------------------------------------------

  onAppended(node: SimNode, epoch: number, logOffset: number, lengthBytes: number): void {
    const life = this.lives.get(node);
    if (life !== undefined) {
      this.noteRole(life);
      this.noteCommit(life);
    }
    const entries = this.entries(node, logOffset, lengthBytes);
    const verb = entries.epoch < epoch ? 'adopts' : 'appends';
    this.tellOfEntries(`${this.name(node)} ${verb} ${entries.text}`);
  }

  onPlaced(node: SimNode, initiator: SimNode, logOffset: number, lengthBytes: number): void {
    const { text } = this.entries(node, logOffset, lengthBytes);
    this.tellOfEntries(`${this.name(initiator)} -> ${this.name(node)}: ${text}`);
  }

  onRefused(node: SimNode, initiator: SimNode, logOffset: number, lengthBytes: number): void {
    const { text } = this.entries(initiator, logOffset, lengthBytes);
    this.note(`${this.name(initiator)} -> ${this.name(node)}: REFUSED ${text}`);
  }

  onApplied(life: SimLife, lsn: number): void {
    this.noteCommit(life);
    if (this.level !== 'all') return;
    const name = this.name(life.node);
    if (this.applied !== null && this.applied.name !== name) this.tellApplied();
    this.applied ??= { name, commands: [] };
    const words = life.replicationFabric.logWords;
    this.applied.commands.push(describeEntry(life.node.log, words, lsn % life.node.log.length));
  }

  onSnapshotInstalled(life: SimLife): void {
    this.note(`${this.name(life.node)} installs a snapshot up to LSN ${life.replication.appliedLsn}`);
  }

  onLeader(life: SimLife, epoch: number): void {
    this.noteCommit(life);
    this.noteRole(life);
    this.notePhases(life, this.knownOf(life.node));
    this.note(`${this.name(life.node)} leads in epoch ${formatEpoch(epoch)}`);
  }

  onDeposed(life: SimLife, epoch: number, reason: string): void {
    const known = this.knownOf(life.node);
    const what = known.role === 'leader' ? 'is deposed from' : 'gives up';
    known.role = 'follower';
    known.phases.fill('none');
    this.note(`${this.name(life.node)} ${what} epoch ${formatEpoch(epoch)}: ${reason}`);
  }

  afterMain(life: SimLife): void {
    const known = this.knownOf(life.node);
    const { replication } = life;
    this.noteRole(life);
    const { configuration } = replication;
    if (configuration.version !== known.configuration) {
      known.configuration = configuration.version;
      const voters = configuration.voters.map(({ id, bootId }) => nameOf(id, bootId));
      const others = configuration.members.filter(({ role }) => role !== 'voter');
      const rest = others.map(({ id, bootId, role }) => `, ${role} ${nameOf(id, bootId)}`);
      this.note(
        `${this.name(life.node)} holds configuration ${configuration.version}: ${voters.join(' ')}${rest.join('')}`,
      );
    }
    if (replication.role !== 'follower') this.notePhases(life, known);
    this.noteCommit(life);
  }

  private noteRole(life: SimLife): void {
    const known = this.knownOf(life.node);
    const { role } = life.replication;
    if (role === known.role) return;
    const isNew = role === 'takingOver' || (role === 'leader' && known.role === 'follower');
    known.role = role;
    if (isNew) this.note(`${this.name(life.node)} takes over with the permission of a majority`);
  }

  private notePhases(life: SimLife, known: Known): void {
    const { replication } = life;
    const name = this.name(life.node);
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      const phase = replication.peerPhase(peer);
      if (phase === known.phases[peer]) continue;
      known.phases[peer] = phase;
      if (phase === 'repairing')
        this.note(`${name} repairs the log of r${peer} from LSN ${replication.peerAckedLsn(peer)} on`);
      else if (phase === 'active')
        this.note(`${name} counts on r${peer}, which holds its log up to LSN ${replication.peerAckedLsn(peer)}`);
      else if (phase === 'broken') this.note(`${name} lost the link to r${peer}`);
      else if (phase === 'lagging') this.note(`${name} leaves r${peer} behind: it needs a snapshot`);
      else if (phase === 'installing') this.note(`${name} sends a snapshot to r${peer}`);
    }
  }

  private noteCommit(life: SimLife): void {
    const known = this.knownOf(life.node);
    const { commitLsn, role } = life.replication;
    if (commitLsn === known.commitLsn) return;
    known.commitLsn = commitLsn;
    const name = this.name(life.node);
    if (role === 'leader') this.tellOfEntries(`${name} commits up to LSN ${commitLsn}`);
    else this.tellOfEntries(`${name} learns that all up to LSN ${commitLsn} is committed`);
  }
}
