// The replication plane of one replica: the log and everything that happens to it. As follower it validates what the
// leader writes into this replica's log and applies what is committed. As candidate with a majority's permission it
// takes over: adopts the best log, repairs the others, commits a noop of its own epoch. As leader it appends,
// replicates with one WRITE per follower, commits at the majority's acknowledgement, recycles the ring, and keeps the
// voters' configuration up to date with replicas that came back in a new life.
//
// It does no I/O and has no clock: the host calls poll() when something may have happened (the background plane woke
// it, completions are pending) and propose()/flush() for commands.

import { FabricStatus, type ReplicationFabric } from '../fabric/fabric.js';
import {
  type Configuration,
  checkSuccessor,
  decodeConfiguration,
  encodeConfiguration,
  majority,
  voterWithId,
} from './configuration.js';
import type { DurableLog } from './durable-log.js';
import {
  type ChainPosition,
  chainBeginning,
  copyPosition,
  EntryType,
  entryBytes,
  entryCommitLsn,
  entryEpoch,
  entryOrigin,
  entryPayloadBytes,
  entrySequence,
  entryType,
  isSamePosition,
  sealEntry,
  writeEntryHeader,
} from './entry.js';
import { EPOCH_NONE, formatEpoch } from './epoch.js';
import { EpochHistory, findDivergence } from './epoch-history.js';
import type { Exchange } from './exchange.js';
import {
  Follower,
  GRANT_LATER,
  GRANT_TAKEN,
  type PeerPhase,
  PHASE_ACTIVE,
  PHASE_BROKEN,
  PHASE_INSTALLING,
  PHASE_LAGGING,
  PHASE_NAMES,
  PHASE_REPAIRING,
  REACHABLE_PHASES,
} from './follower.js';
import { IntactRing } from './intact-ring.js';
import { LeadershipTransfer } from './leadership-transfer.js';
import { LeaseRecalls } from './lease-recall.js';
import {
  ENTRY_ALIGNMENT_BYTES,
  ENTRY_HEADER_BYTES,
  EPOCH_RUNS_MAX,
  LEARNER_LAG_BYTES_MAX,
  LOG_BYTES_MAX,
  LOG_BYTES_MIN,
  LOG_RESERVE_FRACTION,
  MAIN_BLOCK_OFFSET_WORDS,
  MAIN_BLOCK_WORDS,
  MAX_REPLICAS,
  REPLICATION_BATCH_BYTES_MAX,
  REPLICATION_WINDOW_WRITES,
  TAKEOVER_READ_BYTES_MAX,
  workspaceBytesMin,
} from './limits.js';
import { LogPiece, LogScanner } from './log-scan.js';
import { chooseDonors, type LeaderView, type MembershipChange, type MembershipRefusal } from './membership.js';
import { type ConfigurationLog, MembershipChanges } from './membership-changes.js';
import { isLsn } from './possible-status.js';
import { ReadRounds } from './read-rounds.js';
import { Replacement } from './replacement.js';
import type { CandidacyStages, ReplicationHost, ReplicationOptions, Role } from './replication-host.js';
import { readU53, SealedBlockReader, SealedBlockWriter, writeU53 } from './sealed-block.js';
import {
  GrantField,
  MainField,
  NOBODY,
  TO_BACKGROUND_WORDS,
  TO_MAIN_WORDS,
  ToBackgroundField,
  ToMainField,
} from './status-layout.js';

/** Results of propose() that are not an LSN; the first one is also one of readBarrier(). */
export const PROPOSE_NOT_LEADER = -1;
export const PROPOSE_LOG_FULL = -2;
/** The leader is about to hand over or to leave; it may also go on. */
export const PROPOSE_LEAVING = -3;

/** Entries that one poll validates, and those that it applies unless the options say otherwise. */
const ENTRIES_PER_POLL_MAX = 4096;
/** A flush spins for completions at most so often; what is late then is left to poll(). */
const SPIN_ROUNDS_MAX = 4;
/** One flush in so many, at most, waits in vain for a follower that always answers late. */
const FLUSHES_PASSED_OVER = 32;
const TOKEN_APPEND = 0;
const TOKEN_READ = 1;
const HISTORY_RUNS = 1024;

export class ReplicationPlane implements ConfigurationLog {
  private readonly scanner: LogScanner;
  private readonly mainWriter: SealedBlockWriter;
  private readonly toBackgroundWriter: SealedBlockWriter;
  private readonly toMain = new SealedBlockReader(TO_MAIN_WORDS);
  /** As toMain, for what concerns the lease alone: read in the middle of a turn. */
  private readonly lease = new SealedBlockReader(TO_MAIN_WORDS);
  private readonly leaseRecalls: LeaseRecalls;
  private readonly followers: Follower[] = [];
  /** Replicas that are linked, or to which something is under way; the hot path looks at no more than these. */
  private peerIds: readonly number[] = [];
  private readonly stagingBytesMax: number;
  private readonly ackScratch = new Float64Array(MAX_REPLICAS);
  private readonly grantHistory = new EpochHistory(EPOCH_RUNS_MAX);
  private readonly reads = new ReadRounds();
  private readonly applyEntriesMax: number;
  private readonly replacement: Replacement;
  private readonly processId: number;
  private readonly durableLog: DurableLog | null;
  private readonly majorityFirst_ns: number;
  /** Changes whenever what lies between the applied LSN and the tail may have become another log. */
  private tailVersion = 0;
  private diskFailure: string | null = null;

  private role_: Role = 'follower';
  /** Epoch of the own takeover or leadership, or of the last one. */
  private epoch = EPOCH_NONE;
  private readonly applied: ChainPosition = { lsn: 0, hashLow: 0, hashHigh: 0, epoch: 0 };
  private readonly tail: ChainPosition = { lsn: 0, hashLow: 0, hashHigh: 0, epoch: 0 };
  /** How far the part of the log from the applied LSN to the tail was validated again: see recheckTail(). */
  private readonly recheckedTail: ChainPosition = { lsn: 0, hashLow: 0, hashHigh: 0, epoch: 0 };
  private readonly history = new EpochHistory(HISTORY_RUNS);
  /** What the own ring holds for the repair of others. */
  private readonly ring: IntactRing;
  /** What the main block says is applied: from there on a grant reads the own log. */
  private publishedAppliedLsn = 0;
  private commitLsn_ = 0;
  /** Configurations by the LSN at which they stand; the first is in force at the applied LSN, the last at the tail. */
  private configurations: { endLsn: number; configuration: Configuration }[];
  private seenGrants = 0;
  private seenGrantsReceived = -1;

  // Takeover.
  private readingFrom = -1;
  private readOutstanding = false;
  private readTargetLsn = 0;
  /** Epoch in which the outstanding READ was posted; one of an earlier takeover brings nothing. */
  private readEpoch = EPOCH_NONE;
  private noopStartLsn = 0;
  private noopEndLsn = Number.POSITIVE_INFINITY;
  private noopStartHashLow = 0;
  private noopStartHashHigh = 0;
  /** Where the last entry of the own log begins, if this replica built it. */
  private lastEntryLsn = 0;

  // Entries built but not yet appended: one contiguous run of the ring.
  private stagedBytes = 0;
  private runStagingOffset = 0;
  private runLogOffset = 0;
  private runBytes = 0;
  private appendsOutstanding = 0;
  private appendedLsn = 0;
  private blockedSince_ns = -1;
  /** Largest command for which the ring had no room, 0 if it has by now: smaller ones may find some meanwhile. */
  private roomWantedBytes = 0;
  private aloneSince_ns = -1;
  private dirty = false;
  /** This log goes on no more: a new cluster begins in the state that it leads to, and no disk has to hold it for that. */
  private isEnded = false;

  // Handing over.
  private readonly transfer: LeadershipTransfer;
  /** Takes no commands: leadership is being transferred, or the configuration in force is without this leader. */
  private isLeaving = false;
  private readonly view: LeaderView;
  private readonly changes: MembershipChanges;

  constructor(
    private readonly options: ReplicationOptions,
    private readonly fabric: ReplicationFabric,
    private readonly exchange: Exchange,
    statusWords: Uint32Array,
    mailboxWords: Uint32Array,
    private readonly host: ReplicationHost,
  ) {
    const { logBytes, genesis } = options;
    if (logBytes < LOG_BYTES_MIN || logBytes > LOG_BYTES_MAX) {
      throw new RangeError(`logBytes ${logBytes} is not in ${LOG_BYTES_MIN}..${LOG_BYTES_MAX}`);
    }
    const workspaceBytes = fabric.workspaceBytes.length;
    if (workspaceBytes < workspaceBytesMin(logBytes)) {
      throw new RangeError(`workspace of ${workspaceBytes} bytes is below ${workspaceBytesMin(logBytes)} bytes`);
    }
    this.scanner = new LogScanner(fabric.logWords, logBytes);
    this.ring = new IntactRing(this.scanner);
    this.stagingBytesMax = fabric.workspaceBytes.length / 2;
    this.replacement = new Replacement(options.replaceAfter_ns ?? 0);
    this.applyEntriesMax = options.applyEntriesMax ?? ENTRIES_PER_POLL_MAX;
    this.processId = options.processId ?? options.bootId;
    this.durableLog = options.durableLog ?? null;
    this.majorityFirst_ns = this.durableLog === null ? (options.majorityFirst_ns ?? 0) : 0;
    this.leaseRecalls = new LeaseRecalls(mailboxWords);
    this.mainWriter = new SealedBlockWriter(statusWords, MAIN_BLOCK_OFFSET_WORDS, MAIN_BLOCK_WORDS);
    this.toBackgroundWriter = new SealedBlockWriter(exchange.words, exchange.toBackgroundOffset, TO_BACKGROUND_WORDS);
    for (let peer = 0; peer < MAX_REPLICAS; peer++) this.followers.push(new Follower());
    this.view = {
      id: options.id,
      linkedLife: (id) => (id === options.id ? options.bootId : (this.followers[id] as Follower).linkBootId),
      isActive: (id) => id === options.id || this.isAcknowledging(id),
      lagBytes: (id) => (id === options.id ? 0 : this.tail.lsn - (this.followers[id] as Follower).ackedLsn),
      lagBytesMax: Math.min(LEARNER_LAG_BYTES_MAX, options.logBytes / 16),
      trusts: (id) => id === options.id || (this.trustedMask & (1 << id)) !== 0,
    };
    this.transfer = new LeadershipTransfer(this.view, exchange);
    this.changes = new MembershipChanges(this, this.view, this.replacement);
    const recovered = options.recovered ?? null;
    if (recovered === null) {
      this.configurations = [{ endLsn: 0, configuration: genesis }];
      copyPosition(chainBeginning(genesis.clusterId), this.applied);
    } else {
      const { applied, configuration, foreignBelowLsn } = recovered;
      this.configurations = [{ endLsn: applied.lsn, configuration }];
      copyPosition(applied, this.applied);
      this.commitLsn_ = applied.lsn;
      this.ring.noteForeign(foreignBelowLsn);
    }
    copyPosition(this.applied, this.tail);
    copyPosition(this.applied, this.recheckedTail);
    this.configurationChanged();
    this.publishMain();
  }

  // -- what the host may ask ---------------------------------------------------------------------------------------

  get role(): Role {
    return this.role_;
  }
  get commitLsn(): number {
    return this.commitLsn_;
  }
  get appliedLsn(): number {
    return this.applied.lsn;
  }
  get tailLsn(): number {
    return this.tail.lsn;
  }
  /** Epoch of the last entry of the log. */
  get tailEpoch(): number {
    return this.tail.epoch;
  }
  /** Where the applied part of the log ends. */
  get appliedPosition(): Readonly<ChainPosition> {
    return this.applied;
  }
  /** When the candidacy of the takeover that is on, or of the last one, went through its stages. */
  get candidacyStages(): CandidacyStages {
    const { body } = this.toMain;
    return {
      leaderLostAt_ns: readU53(body, ToMainField.leaderLostAt_ns),
      candidateAt_ns: readU53(body, ToMainField.candidateAt_ns),
      majorityAt_ns: readU53(body, ToMainField.majorityAt_ns),
    };
  }
  /** Epoch that the own background plane promised last. */
  get promisedEpoch(): number {
    return readU53(this.toMain.body, ToMainField.promisedEpoch);
  }
  /** Replica promised last, -1 if none. */
  get promisedTo(): number {
    return (this.toMain.body[ToMainField.promisedTo] as number) | 0;
  }
  get trustedMask(): number {
    return this.toMain.body[ToMainField.trustedMask] as number;
  }
  /** Epoch in which this replica leads, or 0. */
  get leaderEpoch(): number {
    return this.role_ === 'leader' ? this.epoch : EPOCH_NONE;
  }
  /** Id of the leader as far as this replica knows, -1 if it knows none. */
  get leader(): number {
    if (this.role_ === 'leader') return this.options.id;
    const promisedTo = this.promisedTo;
    // Epoch 0 is no epoch: it stands in all memory that nobody has written yet.
    if (promisedTo < 0 || promisedTo === this.options.id || this.promisedEpoch === EPOCH_NONE) return -1;
    return this.peerLeaderEpoch(promisedTo) === this.promisedEpoch ? promisedTo : -1;
  }
  /** Configuration in force: the latest in the log. */
  get configuration(): Configuration {
    return (this.configurations[this.configurations.length - 1] as { configuration: Configuration }).configuration;
  }
  /** The configuration in force is applied, and so committed. */
  get isConfigurationApplied(): boolean {
    return this.configurations.length === 1;
  }
  /** The latest configuration that is applied, and so committed. */
  get appliedConfiguration(): Configuration {
    return (this.configurations[0] as { configuration: Configuration }).configuration;
  }
  /** As configuration, of all that stands in the own log: a follower looks first at what it has not come to yet. */
  latestConfiguration(): Configuration {
    while (this.role_ === 'follower' && this.extendTail(this.promisedEpoch, ENTRIES_PER_POLL_MAX)) {
      // To the end of what is valid.
    }
    return this.configuration;
  }
  /** Operations on their way; while there are some the host must call poll() when completions may be pending. */
  get operationsInFlight(): number {
    let count = this.appendsOutstanding + (this.readOutstanding ? 1 : 0);
    for (let index = 0; index < this.peerIds.length; index++) {
      count += (this.followers[this.peerIds[index] as number] as Follower).writesInFlight;
    }
    return count;
  }
  peerPhase(peer: number): PeerPhase {
    return PHASE_NAMES[(this.followers[peer] as Follower).phase] as PeerPhase;
  }
  peerAckedLsn(peer: number): number {
    return (this.followers[peer] as Follower).ackedLsn;
  }

  // -- links and snapshots -----------------------------------------------------------------------------------------

  /** The host established fresh links to the peer, which is in the life `bootId`, in its process `processId`. */
  peerLinked(peer: number, bootId: number, processId = bootId): void {
    const follower = this.followers[peer] as Follower;
    follower.linked(bootId, processId);
    this.peersChanged();
    this.reads.forget(peer);
    this.seenGrantsReceived = -1;
    this.afterFollowerLost();
  }

  /** The links to the peer are gone. */
  peerUnlinked(peer: number): void {
    (this.followers[peer] as Follower).unlinked();
    this.peersChanged();
    this.afterFollowerLost();
  }

  private peersChanged(): void {
    const ids: number[] = [];
    for (const [id, { linkBootId, writesInFlight }] of this.followers.entries()) {
      if (linkBootId !== 0 || writesInFlight > 0) ids.push(id);
    }
    this.peerIds = ids;
  }

  /** The peer installed a snapshot: its permission is asked for again, and it is repaired from there. */
  peerInstalledSnapshot(peer: number): void {
    const { body } = this.toBackgroundWriter;
    const at = ToBackgroundField.regrants + peer;
    body[at] = ((body[at] as number) + 1) >>> 0;
    this.toBackgroundWriter.publish();
  }

  /**
   * A snapshot for the peer is about to be taken, here or at one of the donors (see chooseDonors()). From here on the log
   * is kept for that peer, from what all of them have applied, until it is repaired or blocks recycling for too long.
   * Returns that LSN: an older snapshot is of no use.
   */
  beginSnapshot(peer: number): number {
    const follower = this.followers[peer] as Follower;
    const lowest = this.lowestNeededLsn();
    // Also during a takeover: the peer may be one without which no majority can be had.
    if (this.role_ !== 'follower' && follower.phase === PHASE_LAGGING) {
      follower.phase = PHASE_INSTALLING;
      follower.appliedLsn = lowest;
      this.recycleLsn = 0;
    }
    return lowest;
  }

  /** The peer's snapshot stands for this LSN: what is below need not be kept for it. */
  snapshotKnown(peer: number, lsn: number): void {
    const follower = this.followers[peer] as Follower;
    if (follower.phase === PHASE_INSTALLING && lsn > follower.appliedLsn && lsn <= this.commitLsn_) {
      follower.appliedLsn = lsn;
    }
  }

  /** Who could give the peer a snapshot, by preference; this leader is the last one. */
  snapshotDonors(peer: number): number[] {
    return chooseDonors(this.configuration, this.view, peer);
  }

  /** What a snapshot that is taken now (between two calls of applyCommand) stands for. It is committed. */
  get snapshotPlace(): { position: ChainPosition; configuration: Configuration } {
    return { position: { ...this.applied }, configuration: this.appliedConfiguration };
  }

  /** Below this LSN the ring certainly does not hold the log any more. What it holds above has to be validated. */
  get ringBeginLsn(): number {
    return Math.max(0, this.tail.lsn - this.options.logBytes, this.ring.foreignBelowLsn);
  }

  /** Whether a snapshot brings this replica forward: it may have applied more while the snapshot was on its way. */
  isSnapshotNews(position: ChainPosition): boolean {
    return this.role_ === 'follower' && position.lsn > this.applied.lsn;
  }

  /** Continues from a snapshot that the host has installed in the state machine. Followers only. */
  installSnapshot(position: ChainPosition, configuration: Configuration): void {
    if (this.role_ !== 'follower') throw new Error('a leader does not install snapshots');
    if (position.lsn < this.applied.lsn) {
      throw new RangeError(`snapshot at LSN ${position.lsn} is behind the applied LSN ${this.applied.lsn}`);
    }
    if (configuration.clusterId !== this.options.genesis.clusterId) throw new Error('snapshot of another cluster');
    this.ring.noteEnd(this.tail.lsn);
    this.ring.noteForeign(position.lsn);
    this.tailVersion++;
    this.durableLog?.restart(position);
    copyPosition(position, this.applied);
    copyPosition(position, this.tail);
    copyPosition(position, this.recheckedTail);
    this.commitLsn_ = Math.max(this.commitLsn_, position.lsn);
    this.history.clear();
    this.configurations = [{ endLsn: position.lsn, configuration }];
    const { body } = this.mainWriter;
    body[MainField.installs] = ((body[MainField.installs] as number) + 1) >>> 0;
    this.configurationChanged();
    this.publishMain();
  }

  /**
   * Takes all that this log holds for committed, and applies it. Only for a replica that will never vote again, in whose
   * state a new cluster begins (Replica.forceNewCluster()): elsewhere it would break every promise. Followers only.
   */
  commitWholeLog(): void {
    if (this.role_ !== 'follower') throw new Error('a leader commits what a majority acknowledges');
    this.forgetTail(); // what stands in the ring now counts, not what stood there before
    while (this.extendTail(this.promisedEpoch, ENTRIES_PER_POLL_MAX)) {
      // To the end of what is valid.
    }
    this.raiseCommit(this.tail.lsn);
    this.isEnded = true;
    while (this.applyCommitted()) {
      // To the same end.
    }
    if (this.applied.lsn !== this.tail.lsn) {
      throw new Error(`a new cluster would begin at LSN ${this.applied.lsn}, and the log reaches to ${this.tail.lsn}`);
    }
  }

  // -- the loop ----------------------------------------------------------------------------------------------------

  /** Does whatever can be done now. Returns true if it should be called again soon (there is more to apply). */
  poll(now_ns: number): boolean {
    this.stampProgress();
    this.toMain.read(this.exchange.words, this.exchange.toMainOffset);
    const grants = this.toMain.body[ToMainField.grants] as number;
    const takeoverEpoch = readU53(this.toMain.body, ToMainField.takeoverEpoch);
    this.drain();
    if (this.role_ !== 'follower' && takeoverEpoch !== this.epoch) {
      this.depose(`permission was granted in epoch ${formatEpoch(this.promisedEpoch)}`);
    }
    if (grants !== this.seenGrants) {
      // Somebody else may write the log now, from the applied LSN on: nothing beyond it is known any more.
      this.seenGrants = grants;
      if (this.role_ === 'follower') this.forgetTail();
    }
    if (this.role_ === 'follower' && takeoverEpoch > this.epoch) this.beginTakeover(takeoverEpoch);
    let more = false;
    if (this.role_ === 'follower') {
      more = this.follow();
    } else {
      this.takeGrants();
      if (this.role_ === 'takingOver') this.advanceTakeover();
      // What the others' disks hold they tell in their status; no completion announces it.
      if (this.durableLog !== null && this.noopAppended()) this.advanceCommit();
      this.relieve(now_ns);
      this.changes.maintain();
      if (this.replacement.isWanted) this.changes.replaceTheGone(now_ns);
      this.stampProgress();
      this.flushRounds(false);
      this.advanceTransfer(now_ns);
      this.leaveIfRemoved();
      if (this.role_ === 'leader') this.leaveIfAlone(now_ns);
      // Not before the takeover is complete: until then what follows the applied LSN may have to be repaired here, too.
      more = this.role_ === 'leader' && this.applied.lsn < this.commitLsn_ && this.applyCommitted();
      this.advanceReadRound();
      if (this.reads.isDue) this.flushRounds(false); // what was applied ended a round, and the next one is waited for already
    }
    this.publish();
    return more;
  }

  private forgetTail(): void {
    this.tailVersion++;
    this.ring.noteEnd(this.tail.lsn);
    copyPosition(this.applied, this.tail);
    copyPosition(this.applied, this.recheckedTail);
    this.history.truncateTo(this.applied.lsn);
    if (this.configurations.length > 1) {
      this.configurations.length = 1;
      this.configurationChanged();
    }
    this.dirty = true;
  }

  // -- follower ----------------------------------------------------------------------------------------------------

  private peerLeaderEpoch(peer: number): number {
    const { words } = this.exchange;
    return (this.followers[peer] as Follower).leaderEpoch(words, this.exchange.peerViewOffset(peer));
  }

  private follow(): boolean {
    const promisedEpoch = this.promisedEpoch;
    const before = this.tail.lsn;
    let more = this.extendTail(promisedEpoch, ENTRIES_PER_POLL_MAX);
    // Until an entry of the promised epoch stands in the log, its leader may still repair what follows the applied LSN,
    // under a tail that was validated before. What it puts there does not chain to that tail: then the walk begins anew.
    if (this.tail.epoch !== promisedEpoch && this.tail.lsn === before && this.tail.lsn !== this.applied.lsn) {
      if (this.recheckTail(promisedEpoch)) {
        this.forgetTail();
        more = this.extendTail(promisedEpoch, ENTRIES_PER_POLL_MAX);
      } else {
        more = this.recheckedTail.lsn !== this.applied.lsn;
      }
    }
    const promisedTo = this.promisedTo;
    if (promisedTo >= 0 && promisedTo !== this.options.id && this.peerLeaderEpoch(promisedTo) === promisedEpoch) {
      const leader = this.followers[promisedTo] as Follower;
      this.raiseCommit(readU53(leader.main.body, MainField.commitLsn));
    }
    this.takeLog();
    // Only an entry of the epoch in which the commit LSN was learned proves that what precedes it is the leader's log.
    if (this.tail.epoch !== promisedEpoch || promisedEpoch === EPOCH_NONE) return more;
    return this.applyCommitted() || more;
  }

  /**
   * Validates again what lies between the applied LSN and the tail, some entries at a time, and returns whether it has
   * changed. Nothing is forgotten as long as it has not: configurations in that part stay in force meanwhile, and the
   * host is not told of the same ones again and again.
   */
  private recheckTail(epochMax: number): boolean {
    const { applied, tail, recheckedTail, scanner } = this;
    if (recheckedTail.lsn < applied.lsn) copyPosition(applied, recheckedTail); // it was applied since
    for (let count = 0; recheckedTail.lsn < tail.lsn; count++) {
      if (count === ENTRIES_PER_POLL_MAX) return false;
      if (scanner.step(recheckedTail, epochMax) < 0) return true;
    }
    if (!isSamePosition(recheckedTail, tail)) return true;
    copyPosition(applied, recheckedTail);
    return false;
  }

  private raiseCommit(lsn: number): void {
    if (lsn > this.commitLsn_ && isLsn(lsn)) this.commitLsn_ = lsn;
  }

  /** Validates what arrived behind the tail, up to `entriesMax` entries. Returns whether it stopped for their number. */
  private extendTail(epochMax: number, entriesMax: number): boolean {
    const { tail, scanner } = this;
    const words = this.fabric.logWords;
    const limitLsn = this.applied.lsn + this.options.logBytes;
    for (let count = 0; count < entriesMax && tail.lsn < limitLsn; count++) {
      const lsn = tail.lsn;
      const offset = scanner.step(tail, epochMax);
      if (offset < 0) return false;
      this.history.note(tail.epoch, lsn);
      this.dirty = true;
      const at = offset >>> 2;
      // The leader wrote the entry behind all that it had committed.
      if (tail.epoch === epochMax && entryCommitLsn(words, at) <= lsn) this.raiseCommit(entryCommitLsn(words, at));
      if (entryType(words, at) === EntryType.configuration) this.noteConfiguration(at, tail.lsn);
    }
    return tail.lsn < limitLsn;
  }

  private noteConfiguration(at: number, endLsn: number): void {
    const start = at * 4 + ENTRY_HEADER_BYTES;
    const payloadBytes = entryPayloadBytes(this.fabric.logWords, at);
    const configuration = decodeConfiguration(this.fabric.logBytes.slice(start, start + payloadBytes));
    checkSuccessor(this.configuration, configuration);
    this.configurations.push({ endLsn, configuration });
    this.configurationChanged();
  }

  /** The last applyCommitted() stopped before the end. */
  private hasMoreToApply = false;

  /** Applies what is committed and validated. Returns true if it stopped before the end. */
  private applyCommitted(): boolean {
    const { applied, host, scanner, durableLog } = this;
    this.hasMoreToApply = false;
    const words = this.fabric.logWords;
    let limitLsn = Math.min(this.commitLsn_, this.tail.lsn);
    if (durableLog !== null && !this.isEnded) {
      // What is applied may be recycled, and it must not be before it was taken to the disk.
      this.takeLog();
      limitLsn = Math.min(limitLsn, durableLog.takenLsn);
    }
    for (let count = 0; applied.lsn < limitLsn; count++) {
      if (count === this.applyEntriesMax) {
        this.hasMoreToApply = true;
        return true;
      }
      const offset = scanner.physical(applied.lsn);
      const at = offset >>> 2;
      const payloadBytes = entryPayloadBytes(words, at);
      const size = entryBytes(payloadBytes);
      if (applied.lsn + size > limitLsn) break;
      // The entry was validated when the tail passed it, and a committed entry is never overwritten before it is
      // applied. If it changed all the same, an invariant of the protocol is broken: stop rather than diverge.
      if (readU53(words, at) !== applied.lsn || offset + size > this.options.logBytes) {
        throw new Error(
          `state machine safety: the committed entry at LSN ${applied.lsn} changed before it was applied`,
        );
      }
      const lsn = applied.lsn;
      applied.lsn = lsn + size;
      applied.epoch = entryEpoch(words, at);
      applied.hashLow = words[at + 8] as number;
      applied.hashHigh = words[at + 9] as number;
      this.dirty = true;
      const type = entryType(words, at);
      if (type === EntryType.command) {
        host.applyCommand(
          lsn,
          entryOrigin(words, at),
          entrySequence(words, at),
          this.fabric.logBytes,
          offset + ENTRY_HEADER_BYTES,
          payloadBytes,
        );
      } else if (type === EntryType.configuration) {
        while (this.configurations.length > 1 && (this.configurations[1] as { endLsn: number }).endLsn <= applied.lsn) {
          this.configurations.shift();
        }
        host.onConfigurationApplied(this.appliedConfiguration, applied.lsn);
      }
    }
    return false;
  }

  // -- takeover ----------------------------------------------------------------------------------------------------

  private beginTakeover(epoch: number): void {
    this.role_ = 'takingOver';
    this.epoch = epoch;
    if (this.diskFailure !== null) {
      this.cede(-1, this.diskFailure); // the background plane had asked for permission when that was not known yet
      return;
    }
    this.readingFrom = -1;
    this.noopEndLsn = Number.POSITIVE_INFINITY;
    this.seenGrantsReceived = -1;
    this.blockedSince_ns = -1;
    this.roomWantedBytes = 0;
    this.aloneSince_ns = -1;
    this.readTargetLsn = 0;
    for (const follower of this.followers) follower.beginTakeover();
    this.forgetTail();
    // From here on this plane alone writes the log, and validates all that it takes; as leader, too, until it is deposed.
    this.ring.beginTakeover(this.tail);
    this.extendTail(epoch, Number.POSITIVE_INFINITY);
    this.publish(); // what is adopted may recycle all that is applied
  }

  /** Takes new grants out of the exchange; a peer with a fresh grant is repaired from its own log's state. */
  private takeGrants(): void {
    const { exchange, options } = this;
    const received = this.toMain.body[ToMainField.grantsReceived] as number;
    if (received === this.seenGrantsReceived) return;
    let complete = true;
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      if (peer === options.id) continue;
      const follower = this.followers[peer] as Follower;
      const view = exchange.peerViewOffset(peer);
      const outcome = follower.takeGrant(exchange.words, view, this.epoch, options.id, options.logBytes);
      if (outcome === GRANT_LATER) complete = false;
      if (outcome !== GRANT_TAKEN) continue;
      if (this.noopAppended()) this.beginRepair(peer);
      if (this.role_ === 'follower') return;
    }
    if (complete) this.seenGrantsReceived = received;
    if (this.noopAppended()) this.advanceCommit();
  }

  private isTakingOver(): boolean {
    return this.role_ === 'takingOver';
  }

  private noopAppended(): boolean {
    return this.noopEndLsn !== Number.POSITIVE_INFINITY;
  }

  /** Counts the voters of the configuration in force for which `predicate` holds; the own vote counts if it is one. */
  private countVoters(predicate: (follower: Follower, id: number) => boolean): number {
    let count = 0;
    for (const voter of this.configuration.voters) {
      if (voter.id === this.options.id) {
        if (voter.bootId === this.options.bootId) count++;
        continue;
      }
      const follower = this.followers[voter.id] as Follower;
      if (follower.linkBootId === voter.bootId && predicate(follower, voter.id)) count++;
    }
    return count;
  }

  /**
   * Adopts the best log among a majority's, entry by entry and validated, until the own log is at least as good as
   * every granted one; the configuration that counts is the one in the adopted log. Then appends the noop.
   */
  private advanceTakeover(): void {
    if (this.noopAppended() || this.readOutstanding) return;
    // While a better log is being read, configurations come and go with its pieces: only where it ends they count.
    const isReading = this.readingFrom >= 0 && this.tail.lsn < this.readTargetLsn;
    const isMajority = this.countVoters((follower) => follower.hasGrant) >= majority(this.configuration);
    if (!isReading && !isMajority) return;
    let best = -1;
    let bestEpoch = this.tail.epoch;
    let bestLsn = this.tail.lsn;
    // Of all that granted, voters or not: who is a voter changes on the way through the log, but a log that ends later
    // in a later epoch holds whatever the others' do, so that the choice must not depend on it.
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      const follower = this.followers[peer] as Follower;
      if (!follower.hasGrant) continue;
      const isBetter =
        follower.grantTailEpoch > bestEpoch ||
        (follower.grantTailEpoch === bestEpoch && follower.grantTailLsn > bestLsn);
      if (isBetter) {
        best = peer;
        bestEpoch = follower.grantTailEpoch;
        bestLsn = follower.grantTailLsn;
      }
    }
    if (best < 0) {
      if (!isMajority) return;
      if (!this.isVoter) {
        this.depose(`configuration ${this.configuration.version} does not list this replica as a voter`);
        return;
      }
      this.appendNoop();
      return;
    }
    if (best !== this.readingFrom) {
      this.readingFrom = best;
      this.forgetTail(); // everything beyond what both logs are known to have comes from the better one
      this.keepCommonLog(this.followers[best] as Follower);
    }
    this.readTargetLsn = bestLsn;
    this.readNext();
  }

  /**
   * If the own log leads to what the other replica has applied, both are the same up to there. What is before need not be
   * read, and that replica's ring need not hold it: it may have its state by a snapshot.
   */
  private keepCommonLog({ grant, grantAppliedLsn }: Follower): void {
    const walk: ChainPosition = { ...this.tail };
    let entries = 0;
    while (walk.lsn < grantAppliedLsn && this.scanner.step(walk, this.epoch) >= 0) entries++;
    const isSame =
      walk.lsn === grantAppliedLsn &&
      walk.hashLow === grant.body[GrantField.appliedHashLow] &&
      walk.hashHigh === grant.body[GrantField.appliedHashHigh];
    if (isSame) this.extendTail(this.epoch, entries);
  }

  private readNext(): void {
    const { options, fabric, tail, scanner } = this;
    if (!fabric.logConnected(this.readingFrom)) {
      this.depose(`the log of replica ${this.readingFrom} is needed and cannot be read`);
      return;
    }
    if (this.readTargetLsn - options.logBytes > this.applied.lsn) {
      this.depose(`the log is ${this.readTargetLsn - this.applied.lsn} bytes behind, more than the ring holds`);
      return;
    }
    const offset = scanner.physical(tail.lsn);
    const lengthBytes = Math.min(this.readTargetLsn - tail.lsn, options.logBytes - offset, TAKEOVER_READ_BYTES_MAX);
    if (lengthBytes <= 0) {
      this.depose(
        `replica ${this.readingFrom} published a log that ends at LSN ${this.readTargetLsn} but does not validate`,
      );
      return;
    }
    this.readOutstanding = true;
    this.readEpoch = this.epoch;
    fabric.queueRead(this.readingFrom, offset, lengthBytes, this.stagingBytesMax, TOKEN_READ);
    this.submit(1);
  }

  /** A piece of the better log is in the workspace: takes the entries that validate, and only those. */
  private adopt(): void {
    const { fabric, tail, scanner, options } = this;
    const lengthBytes = Math.min(
      this.readTargetLsn - tail.lsn,
      options.logBytes - scanner.physical(tail.lsn),
      TAKEOVER_READ_BYTES_MAX,
    );
    const start = tail.lsn;
    const position: ChainPosition = { lsn: start, hashLow: tail.hashLow, hashHigh: tail.hashHigh, epoch: tail.epoch };
    const piece = new LogPiece(fabric.workspaceWords, this.stagingBytesMax, lengthBytes);
    while (piece.step(position, this.epoch)) {
      // Walks to the end of the valid entries in this piece.
    }
    const validBytes = position.lsn - start;
    if (validBytes === 0) {
      this.depose(`the log of replica ${this.readingFrom} does not continue this one at LSN ${start}`);
      return;
    }
    this.assertRecyclable(position.lsn);
    fabric.queueAppend(this.epoch, this.stagingBytesMax, scanner.physical(start), validBytes, TOKEN_APPEND);
    this.appendsOutstanding++;
    this.submit(1);
    if (this.role_ !== 'takingOver') return;
    this.extendTail(this.epoch, Number.POSITIVE_INFINITY);
    if (tail.lsn < position.lsn) {
      throw new Error(`log matching: adopted entries up to LSN ${position.lsn}, the own log ends at ${tail.lsn}`);
    }
    this.advanceTakeover();
  }

  private appendNoop(): void {
    if (this.commitLsn_ > this.tail.lsn) {
      throw new Error(
        `leader completeness: LSN ${this.commitLsn_} is committed, the log adopted for epoch ` +
          `${formatEpoch(this.epoch)} ends at ${this.tail.lsn}`,
      );
    }
    this.noopStartLsn = this.tail.lsn;
    this.noopStartHashLow = this.tail.hashLow;
    this.noopStartHashHigh = this.tail.hashHigh;
    this.appendedLsn = this.tail.lsn;
    if (!this.hasRoom(ENTRY_ALIGNMENT_BYTES, 0)) {
      this.depose('the log is full of entries that are not applied yet');
      return;
    }
    this.stage(EntryType.noop, 0, 0, null, 0);
    this.noopEndLsn = this.tail.lsn;
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      const { hasGrant, linkBootId } = this.followers[peer] as Follower;
      // A repair over a link that was lost since would have no end, and the ring be kept for it all that time.
      if (hasGrant && linkBootId !== 0) this.beginRepair(peer);
      if (this.role_ === 'follower') return;
    }
  }

  private beginRepair(peer: number): void {
    const follower = this.followers[peer] as Follower;
    const grant = follower.grant.body;
    const isAhead = follower.grantAppliedLsn > this.tail.lsn;
    // Who promised nothing to the next leader may have its state, by a snapshot: so there is one.
    if (isAhead && voterWithId(this.configuration, peer)?.bootId !== follower.linkBootId) {
      this.depose(`replica ${peer}, which is no voter, has applied what only a later leader can have committed`);
      return;
    }
    // So may a voter that the next leader did without, and what it is sent would not follow what it has.
    if (follower.grantTailEpoch > this.epoch) {
      this.depose(
        `replica ${peer} has applied what a leader of epoch ${formatEpoch(follower.grantTailEpoch)} committed`,
      );
      return;
    }
    // Or its snapshot ends between entries of an earlier epoch, which that leader adopted and this one was not shown.
    const isSnapshot = grant[GrantField.isSnapshot] === 1;
    if (isAhead && isSnapshot) {
      this.deposeForSnapshot(peer);
      return;
    }
    if (isAhead) {
      throw new Error(
        `leader completeness: replica ${peer} applied LSN ${follower.grantAppliedLsn}, the log of the leader of ` +
          `epoch ${formatEpoch(this.epoch)} ends at ${this.tail.lsn}`,
      );
    }
    follower.copyGrantHistory(this.grantHistory);
    const divergenceLsn = findDivergence(
      this.history,
      this.tail.lsn,
      this.grantHistory,
      follower.grantTailLsn,
      follower.grantAppliedLsn,
    );
    if (
      divergenceLsn === this.noopStartLsn &&
      divergenceLsn === follower.grantTailLsn &&
      (grant[GrantField.tailHashLow] !== this.noopStartHashLow ||
        grant[GrantField.tailHashHigh] !== this.noopStartHashHigh)
    ) {
      if (isSnapshot && divergenceLsn === follower.grantAppliedLsn) {
        this.deposeForSnapshot(peer);
        return;
      }
      throw new Error(`log matching: replica ${peer} has other entries below LSN ${divergenceLsn} than the leader`);
    }
    if (this.tail.lsn - this.options.logBytes > follower.grantAppliedLsn || divergenceLsn < this.ring.foreignBelowLsn) {
      this.leaveBehind(peer);
      return;
    }
    // The hash is known where its applied log ends and where its whole log ends, not where a part of that diverges.
    if (divergenceLsn === follower.grantTailLsn) {
      const low = grant[GrantField.tailHashLow] as number;
      this.ring.beginRepair(peer, divergenceLsn, low, grant[GrantField.tailHashHigh] as number);
    } else {
      const low = grant[GrantField.appliedHashLow] as number;
      this.ring.beginRepair(peer, follower.grantAppliedLsn, low, grant[GrantField.appliedHashHigh] as number);
    }
    this.fabric.setLogWriteKey(peer, grant[GrantField.writeKey] as number);
    follower.phase = PHASE_REPAIRING;
    follower.sentLsn = divergenceLsn;
    // What it has in common with this log it has: it granted that log in this epoch, so nobody else changed it since.
    follower.ackedLsn = divergenceLsn;
    if (divergenceLsn >= this.noopEndLsn) follower.phase = PHASE_ACTIVE;
    this.recycleLsn = 0; // this follower may need more of the ring than those known so far
  }

  /** The replica's state is not of this log, so that another leader has committed it since. */
  private deposeForSnapshot(peer: number): void {
    const { grantAppliedLsn } = this.followers[peer] as Follower;
    this.depose(`replica ${peer} has a snapshot up to LSN ${grantAppliedLsn}, where this log does not lead`);
  }

  /** The follower cannot be repaired from this ring. */
  private leaveBehind(peer: number): void {
    (this.followers[peer] as Follower).phase = PHASE_LAGGING;
    this.host.onSnapshotNeeded(peer);
  }

  // -- leader ------------------------------------------------------------------------------------------------------

  /**
   * Builds a command entry behind the tail; flush() sends it. Returns its LSN, PROPOSE_NOT_LEADER, PROPOSE_LOG_FULL
   * when followers have yet to apply what the ring holds (or the staging area needs a flush), or PROPOSE_LEAVING.
   */
  propose(origin: number, sequence: number, payload: Uint8Array): number {
    if (this.role_ !== 'leader') return PROPOSE_NOT_LEADER;
    if (this.isLeaving) return PROPOSE_LEAVING;
    const reserve = this.options.logBytes * LOG_RESERVE_FRACTION;
    const size = entryBytes(payload.length);
    if (!this.hasRoom(size, reserve)) {
      this.roomWantedBytes = Math.max(this.roomWantedBytes, size);
      return PROPOSE_LOG_FULL;
    }
    return this.stage(EntryType.command, origin, sequence, payload, payload.length);
  }

  /** Whether an entry of `size` bytes (and the pad it may need) fits the ring above `reserve`, and the staging area. */
  private hasRoom(size: number, reserve: number): boolean {
    if (this.stagedBytes + size + ENTRY_ALIGNMENT_BYTES > this.stagingBytesMax) return false;
    return this.ringHasRoom(size, reserve);
  }

  private ringHasRoom(size: number, reserve: number): boolean {
    const { options } = this;
    const remaining = options.logBytes - this.scanner.physical(this.tail.lsn);
    const endLsn = this.tail.lsn + size + (size > remaining ? remaining : 0);
    const oldestLsn = endLsn + reserve - options.logBytes;
    if (oldestLsn <= this.recycleLsn) return true;
    this.recycleLsn = this.lowestNeededLsn();
    return oldestLsn <= this.recycleLsn;
  }

  /** Cached result of lowestNeededLsn(); it only grows while the set of followers stays the same. */
  private recycleLsn = 0;

  /** What is below may be overwritten: applied here and by every follower that is being written. */
  private lowestNeededLsn(): number {
    // A grant reads the own log from the LSN that is published as applied, so what is above must still be there.
    this.publish();
    let lowest = this.applied.lsn;
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      const follower = this.followers[peer] as Follower;
      if (
        follower.phase !== PHASE_ACTIVE &&
        follower.phase !== PHASE_REPAIRING &&
        follower.phase !== PHASE_INSTALLING
      ) {
        continue;
      }
      if (follower.phase !== PHASE_INSTALLING) {
        follower.refreshApplied(this.exchange.words, this.exchange.peerViewOffset(peer), this.tail.lsn);
      }
      if (follower.appliedLsn < lowest) lowest = follower.appliedLsn;
    }
    return lowest;
  }

  private stage(
    type: number,
    origin: number,
    sequence: number,
    payload: Uint8Array | null,
    payloadBytes: number,
  ): number {
    const { fabric, options, tail, scanner } = this;
    const words = fabric.workspaceWords;
    const size = entryBytes(payloadBytes);
    let logOffset = scanner.physical(tail.lsn);
    const remaining = options.logBytes - logOffset;
    if (size > remaining) {
      const padAt = this.beginStaging(logOffset, ENTRY_ALIGNMENT_BYTES);
      const padPayloadBytes = remaining - ENTRY_HEADER_BYTES;
      writeEntryHeader(words, padAt, tail.lsn, this.epoch, EntryType.pad, padPayloadBytes, this.commitLsn_, 0, 0);
      this.history.note(this.epoch, tail.lsn);
      sealEntry(words, padAt, tail);
      this.endRun();
      logOffset = 0;
    }
    const at = this.beginStaging(logOffset, size);
    const lsn = tail.lsn;
    writeEntryHeader(words, at, lsn, this.epoch, type, payloadBytes, this.commitLsn_, origin, sequence);
    const start = at * 4 + ENTRY_HEADER_BYTES;
    if (payload !== null) fabric.workspaceBytes.set(payload, start);
    for (let index = start + payloadBytes; (index & 7) !== 0; index++) fabric.workspaceBytes[index] = 0;
    this.history.note(this.epoch, lsn);
    sealEntry(words, at, tail);
    this.lastEntryLsn = lsn;
    this.dirty = true;
    return lsn;
  }

  /** Reserves staging bytes for an entry at `logOffset`, joining the current run if it is contiguous with it. */
  private beginStaging(logOffset: number, size: number): number {
    if (this.runBytes > 0 && this.runLogOffset + this.runBytes !== logOffset) this.endRun();
    if (this.runBytes === 0) {
      this.runStagingOffset = this.stagedBytes;
      this.runLogOffset = logOffset;
    }
    const at = this.stagedBytes >>> 2;
    this.stagedBytes += size;
    this.runBytes += size;
    return at;
  }

  private assertRecyclable(endLsn: number): void {
    if (endLsn - this.options.logBytes <= this.publishedAppliedLsn) return;
    throw new Error(
      `ring recycling: an append up to LSN ${endLsn} would overwrite what is not known as applied here ` +
        `(published is LSN ${this.publishedAppliedLsn})`,
    );
  }

  /** Queues the append of the current run, which ends where the log does. */
  private endRun(): void {
    if (this.runBytes === 0) return;
    this.assertRecyclable(this.tail.lsn);
    this.fabric.queueAppend(this.epoch, this.runStagingOffset, this.runLogOffset, this.runBytes, TOKEN_APPEND);
    this.appendsOutstanding++;
    this.runBytes = 0;
  }

  /**
   * Appends what was staged, writes it to the followers, spins briefly for the majority, applies what committed. Opens
   * the read round that was asked for, if none is open. Returns true if poll() should be called soon: there is more to
   * apply, or followers were left out, and nothing else may announce it.
   */
  flush(): boolean {
    this.stampProgress();
    this.flushRounds(this.majorityFirst_ns > 0);
    return this.role_ === 'leader' && (this.hasMoreToApply || this.areWritesDeferred);
  }

  private flushRounds(mayDefer: boolean): void {
    this.flushOnce(mayDefer);
    // A round that has just ended made way for the next one, which others wait for already.
    if (this.reads.isDue) this.flushOnce(mayDefer);
  }

  private flushOnce(mayDefer: boolean): void {
    if (this.role_ === 'follower') return;
    if (this.reads.isDue) this.openReadRound();
    this.endRun();
    // In front of all WRITEs of this submit, which are not posted then if the fence refuses.
    if (this.reads.isOpen) this.proveOwnFence();
    // A read round asks for proofs of all followers, and what they are sent is one.
    if (mayDefer && this.role_ === 'leader' && !this.reads.isOpen) this.pumpMajority();
    else this.pumpAll();
    if (this.reads.isOpen) this.provePermissions();
    // One call posts and waits, where there is something to wait for.
    let isPosted = this.appendsOutstanding === 0 && !this.hasQueuedWrites;
    for (let round = 0; round < SPIN_ROUNDS_MAX; round++) {
      const isWorthWaiting = (this.commitLsn_ < this.tail.lsn || this.reads.isOpen) && this.anyWriteInFlight();
      if (isPosted && !isWorthWaiting) break;
      const spin_ns = this.areWritesDeferred ? this.majorityFirst_ns : this.options.spin_ns;
      this.submit(isWorthWaiting ? 1 : 0, spin_ns);
      const hasNews = this.hasNewsOfPeers;
      if (isWorthWaiting && !hasNews && this.areWritesDeferred && this.role_ === 'leader') {
        this.tryOthers();
        isPosted = !this.hasQueuedWrites;
        continue;
      }
      if (isPosted && !hasNews) break;
      isPosted = true;
    }
    if (!isPosted) this.submit(0); // what the last round queued for the others
  }

  /** Shows the background plane that this plane's event loop turns. */
  private stampProgress(): void {
    const { words, progressOffset } = this.exchange;
    words[progressOffset] = ((words[progressOffset] as number) + 1) >>> 0;
  }

  /**
   * Whether the published state is behind. flush() leaves it so: followers learn of a commit at their next look, which
   * is rarely as soon as the next flush. The host calls publish() when it has nothing more urgent to do, soon.
   */
  get isPublicationDue(): boolean {
    return this.dirty;
  }

  publish(): void {
    if (this.dirty) this.publishMain();
  }

  private hasQueuedWrites = false;

  private anyWriteInFlight(): boolean {
    for (let index = 0; index < this.peerIds.length; index++) {
      if ((this.followers[this.peerIds[index] as number] as Follower).writesInFlight > 0) return true;
    }
    return false;
  }

  private pumpAll(): void {
    this.areWritesDeferred = false;
    for (let index = 0; index < this.peerIds.length; index++) this.pump(this.peerIds[index] as number);
  }

  /** Followers that were left out of a flush lack entries that others have; the next flush or poll sends them. */
  private areWritesDeferred = false;

  /**
   * To as many voters as a commit takes, those that lack most, so that it is another one's turn each time; and to who lacks
   * much. To all where fewer voters are idle, and answer in time, than it takes.
   */
  private pumpMajority(): void {
    const { configuration, followers, options, peerIds, tail } = this;
    const { voters } = configuration;
    for (let index = 0; index < peerIds.length; index++) {
      const follower = followers[peerIds[index] as number] as Follower;
      if (follower.flushesPassedOver > 0) follower.flushesPassedOver--;
    }
    let wanted = majority(configuration);
    for (let index = 0; index < voters.length; index++) {
      const { id, bootId } = voters[index] as { id: number; bootId: number };
      if (id === options.id && bootId === options.bootId) wanted--;
    }
    let chosen = 0;
    for (; wanted > 0; wanted--) {
      let next = -1;
      let leastLsn = Number.POSITIVE_INFINITY;
      for (let index = 0; index < voters.length; index++) {
        const { id, bootId } = voters[index] as { id: number; bootId: number };
        const { phase, linkBootId, writesInFlight, flushesPassedOver, sentLsn } = followers[id] as Follower;
        const isIdle = phase === PHASE_ACTIVE && linkBootId === bootId && writesInFlight === 0;
        if (!isIdle || flushesPassedOver > 0 || (chosen & (1 << id)) !== 0 || sentLsn >= leastLsn) continue;
        next = id;
        leastLsn = sentLsn;
      }
      if (next < 0) {
        this.pumpAll();
        return;
      }
      chosen |= 1 << next;
    }
    this.areWritesDeferred = false;
    for (let index = 0; index < peerIds.length; index++) {
      const peer = peerIds[index] as number;
      const follower = followers[peer] as Follower;
      if ((chosen & (1 << peer)) !== 0 || !this.mayBeLeftOut(follower)) this.pump(peer);
      else if (follower.sentLsn < tail.lsn) this.areWritesDeferred = true;
    }
  }

  /** A learner that is left out has caught up all the same; and much of the ring would wait for a follower that lacks it. */
  private mayBeLeftOut({ phase, sentLsn }: Follower): boolean {
    return phase === PHASE_ACTIVE && this.tail.lsn - sentLsn <= this.view.lagBytesMax;
  }

  /** Those that were to be enough for a commit have not answered in time: others may, now and in the next flushes. */
  private tryOthers(): void {
    for (let index = 0; index < this.peerIds.length; index++) {
      const follower = this.followers[this.peerIds[index] as number] as Follower;
      if (follower.writesInFlight > 0) follower.flushesPassedOver = FLUSHES_PASSED_OVER;
    }
    this.pumpAll();
  }

  /** Queues WRITEs of what the follower was not sent yet. */
  private pump(peer: number): void {
    const follower = this.followers[peer] as Follower;
    if (follower.phase !== PHASE_ACTIVE && follower.phase !== PHASE_REPAIRING) return;
    const endLsn = this.tail.lsn;
    while (follower.sentLsn < endLsn && follower.writesInFlight < REPLICATION_WINDOW_WRITES) {
      const sendableLsn = Math.min(endLsn, this.ring.sendableLsn(peer, follower.sentLsn, this.epoch));
      if (sendableLsn === follower.sentLsn) {
        this.leaveBehind(peer);
        break;
      }
      const offset = this.scanner.physical(follower.sentLsn);
      const lengthBytes = Math.min(
        sendableLsn - follower.sentLsn,
        REPLICATION_BATCH_BYTES_MAX,
        this.options.logBytes - offset,
      );
      follower.sentLsn += lengthBytes;
      if (follower.sentLsn - this.options.logBytes > follower.appliedLsn) {
        throw new Error(
          `ring recycling: a WRITE up to LSN ${follower.sentLsn} would overwrite what replica ${peer} has not applied`,
        );
      }
      follower.writesInFlight++;
      this.hasQueuedWrites = true;
      this.fabric.queueWrite(peer, offset, lengthBytes, follower.sentLsn);
    }
  }

  // -- read barriers -----------------------------------------------------------------------------------------------

  /**
   * Asks for a read barrier: onReadBarrier() tells when it is passed. Returns the number of the round that it is part
   * of, or PROPOSE_NOT_LEADER. The caller calls flush() soon; whoever asks before that shares the round. If leadership
   * ends first, onDeposed() is all that is heard of it.
   */
  readBarrier(): number {
    // Not while taking over: what the leaders before acknowledged is known to be committed only with the own noop.
    if (this.role_ !== 'leader') return PROPOSE_NOT_LEADER;
    return this.reads.request();
  }

  /**
   * The commit LSN of this moment covers all that was acknowledged before, unless a later leader is active; that is what
   * the round must rule out, by operations posted from here on.
   */
  private openReadRound(): void {
    const { reads } = this;
    reads.open(this.commitLsn_);
    reads.noteEarlier(this.options.id, this.appendsOutstanding);
    for (let index = 0; index < this.peerIds.length; index++) {
      const peer = this.peerIds[index] as number;
      reads.noteEarlier(peer, (this.followers[peer] as Follower).writesInFlight);
    }
  }

  /** An append proves that the own log was not granted away; where there is none, an append of nothing does. */
  private proveOwnFence(): void {
    if (!this.reads.needsProof(this.options.id, this.appendsOutstanding)) return;
    this.fabric.queueAppend(this.epoch, 0, 0, 0, TOKEN_APPEND);
    this.appendsOutstanding++;
  }

  /**
   * Any WRITE to a follower proves that the permission of this epoch stood when it landed. Where replication has none
   * to send, one is made that changes nothing: the LSN of the last entry, to where it stands (docs/PROTOCOL.md).
   */
  private provePermissions(): void {
    const { reads, lastEntryLsn } = this;
    for (let index = 0; index < this.peerIds.length; index++) {
      const peer = this.peerIds[index] as number;
      const follower = this.followers[peer] as Follower;
      if (follower.phase !== PHASE_ACTIVE || follower.writesInFlight >= REPLICATION_WINDOW_WRITES) continue;
      if (!reads.needsProof(peer, follower.writesInFlight)) continue;
      // With room in the window all has been sent, so the last entry is there or arrives before this, on the same link.
      if (follower.sentLsn !== this.tail.lsn || lastEntryLsn < this.noopStartLsn || lastEntryLsn >= this.tail.lsn) {
        throw new Error(
          `read round: the entry at LSN ${lastEntryLsn} is not the last one that replica ${peer} was sent ` +
            `(sent up to ${follower.sentLsn}, the log ends at ${this.tail.lsn})`,
        );
      }
      follower.writesInFlight++;
      this.hasQueuedWrites = true;
      this.fabric.queueLsnWrite(peer, this.scanner.physical(lastEntryLsn), lastEntryLsn, follower.sentLsn);
    }
  }

  /** Ends the open round once a majority has proven this epoch and what it waits for is applied. */
  private advanceReadRound(): void {
    if (!this.reads.isOpen || !this.isEpochProven() || !this.isReadLsnApplied()) return;
    this.host.onReadBarrier(this.reads.close());
  }

  private isEpochProven(): boolean {
    const { configuration, options, reads } = this;
    let proofs = 0;
    for (const voter of configuration.voters) {
      const { linkBootId } = this.followers[voter.id] as Follower;
      const bootId = voter.id === options.id ? options.bootId : linkBootId;
      if (bootId === voter.bootId && reads.hasProof(voter.id)) proofs++;
    }
    return proofs >= majority(configuration);
  }

  private isReadLsnApplied(): boolean {
    return this.applied.lsn >= this.reads.readLsn;
  }

  // -- leases ------------------------------------------------------------------------------------------------------

  /**
   * Runs `read` if this replica leads, and returns what it read if that was current: a lease held when it had been read,
   * by a look at the clock from then. Otherwise undefined, and what was read may be stale. `read` must not wait. `check` gets
   * all that it gives, and may throw.
   */
  leasedRead<Value>(
    read: () => Value,
    clock_ns: () => number,
    check: (value: Value) => void = () => {},
  ): Value | undefined {
    if (!this.mayHoldLease()) return undefined;
    const value = read();
    check(value);
    // In this order: whatever `read` saw besides, of this process or of others, happened before the look at the clock.
    return this.holdsLease(clock_ns()) ? value : undefined;
  }

  /**
   * Whether the state machine reflects every command that was acknowledged before the clock showed `now_ns`, by whichever
   * leader. The caller has read the clock in this turn, after whatever the answer is needed for.
   */
  holdsLease(now_ns: number): boolean {
    return this.leaseRemaining_ns(now_ns) > 0 && this.mayHoldLease();
  }

  /** How long the lease that is known holds from now on, 0 if there is none. */
  leaseRemaining_ns(now_ns: number): number {
    if (this.role_ !== 'leader' || this.leaseRecalls.isRecalled) return 0;
    const remaining_ns = this.leaseEnd_ns() - now_ns;
    if (remaining_ns > 0) return remaining_ns;
    // The copy is as old as the last look; what stands in the exchange reaches further, if the voters' promises do.
    this.lease.read(this.exchange.words, this.exchange.toMainOffset);
    return Math.max(0, this.leaseEnd_ns() - now_ns);
  }

  /** Everything that is committed is applied: what a leader has acknowledged, or others may have applied. */
  private mayHoldLease(): boolean {
    return this.role_ === 'leader' && this.applied.lsn >= this.commitLsn_;
  }

  /** Up to when the copied lease holds: one of this epoch, by the voters of the configuration in force. */
  private leaseEnd_ns(): number {
    const { body } = this.lease;
    if (readU53(body, ToMainField.leaseEpoch) !== this.epoch) return 0;
    if (body[ToMainField.leaseConfigurationVersion] !== this.configuration.version) return 0;
    return readU53(body, ToMainField.leaseEnd_ns);
  }

  /** A commit LSN of this epoch's leader, learned otherwise than from its log or its status. */
  noteCommit(epoch: number, lsn: number): void {
    if (this.role_ === 'follower' && epoch === this.promisedEpoch && epoch !== EPOCH_NONE) this.raiseCommit(lsn);
  }

  // -- completions -------------------------------------------------------------------------------------------------

  /** The last submit() brought completions of others than the own appends, which complete whoever answers. */
  private hasNewsOfPeers = false;

  /** Posts what is queued and handles completions. Returns whether there were any. */
  private submit(wanted: number, spin_ns = 0): boolean {
    this.hasQueuedWrites = false;
    this.hasNewsOfPeers = false;
    const count = this.fabric.submit(wanted > 0 ? spin_ns : 0, wanted);
    this.handleCompletions(count);
    return count > 0;
  }

  private drain(): void {
    while (this.submit(0)) {
      // Until none are left.
    }
  }

  private handleCompletions(count: number): void {
    const { fabric } = this;
    let acknowledged = false;
    let readArrived = false;
    let lost = false;
    for (let index = 0; index < count; index++) {
      const peer = fabric.completionPeer[index] as number;
      const status = fabric.completionStatus[index] as number;
      const token = fabric.completionToken[index] as number;
      if (peer === this.options.id) {
        this.appendsOutstanding--;
        if (this.reads.isOpen) this.reads.completed(peer, status === FabricStatus.success);
        if (status === FabricStatus.fenced) {
          this.depose('the own log was granted to another replica');
        } else if (status !== FabricStatus.success) {
          throw new Error(`append to the own log failed with fabric status ${status}`);
        }
        continue;
      }
      this.hasNewsOfPeers = true;
      const follower = this.followers[peer] as Follower;
      if (token === TOKEN_READ) {
        this.readOutstanding = false;
        this.noticeBroken(peer, status);
        if (this.role_ !== 'takingOver' || this.readEpoch !== this.epoch) continue;
        if (status === FabricStatus.success) readArrived = true;
        else this.depose(`reading the log of replica ${peer} failed`);
        continue;
      }
      follower.writesInFlight--;
      if (this.reads.isOpen) {
        const isGranted = follower.phase === PHASE_REPAIRING || follower.phase === PHASE_ACTIVE;
        this.reads.completed(peer, isGranted && status === FabricStatus.success);
      }
      if (status === FabricStatus.success) {
        if (follower.phase === PHASE_REPAIRING || follower.phase === PHASE_ACTIVE) {
          if (token > follower.ackedLsn) follower.ackedLsn = token;
          if (follower.ackedLsn >= this.noopEndLsn) follower.phase = PHASE_ACTIVE;
          acknowledged = true;
        }
      } else if (follower.phase === PHASE_REPAIRING || follower.phase === PHASE_ACTIVE) {
        // Also a WRITE that was fenced locally ends here, but then the plane has been deposed already.
        follower.phase = PHASE_BROKEN;
        lost = true;
      }
      this.noticeBroken(peer, status);
    }
    if (this.appendsOutstanding === 0 && this.runBytes === 0) this.stagedBytes = 0;
    if (this.role_ === 'follower') return;
    if (this.appendsOutstanding === 0) {
      this.appendedLsn = this.tail.lsn - (this.runBytes > 0 ? this.runBytes : 0);
      this.takeLog();
    }
    if (acknowledged || count > 0) this.advanceCommit();
    this.advanceReadRound();
    if (lost) this.afterFollowerLost();
    if (readArrived && this.isTakingOver()) this.adopt();
  }

  /** Whatever the operation was for, a link that failed must be replaced; unless it has been already. */
  private noticeBroken(peer: number, status: number): void {
    if (status === FabricStatus.success || status === FabricStatus.fenced) return;
    if (!this.fabric.logConnected(peer)) this.host.onPeerBroken(peer);
  }

  /** Commits at the LSN that a majority of the voters holds, once that includes the noop of the own epoch. */
  private advanceCommit(): void {
    const { configuration, ackScratch } = this;
    const voters = configuration.voters;
    for (let index = 0; index < voters.length; index++) {
      const voter = voters[index] as { id: number; bootId: number };
      let lsn = 0;
      if (this.durableLog !== null) {
        lsn = this.syncedLsn(voter.id, voter.bootId, this.durableLog);
      } else if (voter.id === this.options.id) {
        if (voter.bootId === this.options.bootId) lsn = this.appendedLsn;
      } else {
        const follower = this.followers[voter.id] as Follower;
        const counts = follower.phase === PHASE_ACTIVE && follower.linkBootId === voter.bootId;
        if (counts) lsn = follower.ackedLsn;
      }
      // Insertion into descending order; there are at most MAX_REPLICAS.
      let place = index;
      while (place > 0 && (ackScratch[place - 1] as number) < lsn) {
        ackScratch[place] = ackScratch[place - 1] as number;
        place--;
      }
      ackScratch[place] = lsn;
    }
    const heldLsn = ackScratch[majority(configuration) - 1] as number;
    if (heldLsn < this.noopEndLsn || heldLsn <= this.commitLsn_) return;
    const lsn = this.entryBoundary(heldLsn);
    if (lsn <= this.commitLsn_) return;
    this.commitLsn_ = lsn;
    this.dirty = true;
    if (this.role_ === 'takingOver') {
      this.role_ = 'leader';
      this.leaseRecalls.note();
      this.applyCommitted();
      this.publishMain();
      this.host.onLeader(this.epoch);
    } else {
      this.applyCommitted();
    }
  }

  /** Durable mode: how much of this leader's log the voter has on disk, 0 if that is not known. */
  private syncedLsn(id: number, bootId: number, { synced }: DurableLog): number {
    if (id === this.options.id) return bootId === this.options.bootId && synced.epoch === this.epoch ? synced.lsn : 0;
    const follower = this.followers[id] as Follower;
    if (follower.linkBootId !== bootId) return 0;
    const lsn = follower.syncedLsn(this.exchange.words, this.exchange.peerViewOffset(id), this.epoch);
    return lsn <= this.appendedLsn ? lsn : 0;
  }

  /** It holds the log of this epoch, in durable mode on disk, and tells of what it is sent. */
  private isAcknowledging(id: number): boolean {
    const follower = this.followers[id] as Follower;
    if (follower.phase !== PHASE_ACTIVE) return false;
    if (this.durableLog === null) return true;
    return follower.syncedLsn(this.exchange.words, this.exchange.peerViewOffset(id), this.epoch) > 0;
  }

  /** More of the own log is on disk, or there is room to take more. The caller polls afterwards. */
  durableProgress(): void {
    this.dirty = true;
    if (this.role_ !== 'follower' && this.noopAppended()) this.advanceCommit();
    this.publish(); // the caller polls, and what can be applied is
  }

  /** Durable mode: hands what the ring holds of the log to the disk. */
  private takeLog(): void {
    const { durableLog, tail } = this;
    if (durableLog === null) return;
    // What is staged is not in the ring yet; in front of the own noop the tail is only what was found there.
    const isStaging = this.role_ !== 'follower' && this.noopAppended();
    const limitLsn = isStaging ? Math.min(tail.lsn, this.appendedLsn) : tail.lsn;
    durableLog.take(limitLsn, this.applied.lsn, this.tailVersion);
  }

  /** The disk failed: this replica acknowledges nothing any more, and does not lead. */
  stopForDisk(reason: string): void {
    if (this.diskFailure !== null) return;
    this.diskFailure = reason;
    this.dirty = true; // and says so
    this.toBackgroundWriter.body[ToBackgroundField.ready] = 0;
    this.toBackgroundWriter.publish();
    if (this.role_ !== 'follower') this.cede(-1, reason);
  }

  /**
   * End of the last entry that ends at or below `lsn`, which may lie within an entry since WRITEs carry bytes, not
   * entries. Half an entry is not committed: another leader may put other entries in its place.
   */
  private entryBoundary(lsn: number): number {
    const words = this.fabric.logWords;
    let boundary = this.commitLsn_;
    while (boundary < lsn) {
      const at = this.scanner.physical(boundary) >>> 2;
      if (readU53(words, at) !== boundary) throw new Error(`the commit LSN ${boundary} is not where an entry begins`);
      const endLsn = boundary + entryBytes(entryPayloadBytes(words, at));
      if (endLsn > lsn) break;
      boundary = endLsn;
    }
    return boundary;
  }

  /** A leader that cannot write to a majority cedes at once, so that nobody waits for it. */
  private afterFollowerLost(): void {
    if (this.role_ === 'follower') return;
    const reachable = this.countVoters((follower) => follower.hasGrant && REACHABLE_PHASES.includes(follower.phase));
    if (reachable < majority(this.configuration)) {
      this.depose(`${reachable} of ${this.configuration.voters.length} voters can be written, fewer than a majority`);
    }
  }

  private isRoomWanted(reserve: number): boolean {
    if (this.roomWantedBytes > 0 && this.ringHasRoom(this.roomWantedBytes, reserve)) this.roomWantedBytes = 0;
    return this.roomWantedBytes > 0;
  }

  /** Drops followers that have blocked the recycling of the ring for too long. */
  private relieve(now_ns: number): void {
    const { options } = this;
    const reserve = options.logBytes * LOG_RESERVE_FRACTION;
    const isBlocked =
      this.role_ === 'leader' && (this.isRoomWanted(reserve) || !this.hasRoom(ENTRY_ALIGNMENT_BYTES, reserve * 2));
    if (!isBlocked) {
      this.blockedSince_ns = -1;
      return;
    }
    if (this.blockedSince_ns < 0) {
      this.blockedSince_ns = now_ns;
      return;
    }
    if (now_ns - this.blockedSince_ns < options.lagTimeout_ns) return;
    this.blockedSince_ns = -1;
    const lowest = this.lowestNeededLsn();
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      const follower = this.followers[peer] as Follower;
      if (follower.appliedLsn !== lowest || lowest === this.applied.lsn) continue;
      if (follower.phase === PHASE_INSTALLING) {
        follower.phase = PHASE_LAGGING; // its next grant shows whether the snapshot came in time
        continue;
      }
      if (follower.phase !== PHASE_ACTIVE) continue;
      const others = this.countVoters((other, id) => other !== follower && this.isAcknowledging(id));
      if (others < majority(this.configuration)) continue; // without it nothing commits: backpressure is the answer
      this.leaveBehind(peer);
    }
  }

  /**
   * Whoever writes learns by that when it cannot reach a majority. A leader that has nothing to write would say for ever that
   * it leads, though nobody follows.
   */
  private leaveIfAlone(now_ns: number): void {
    if (this.seesMajority()) {
      this.aloneSince_ns = -1;
    } else if (this.aloneSince_ns < 0) {
      this.aloneSince_ns = now_ns;
    } else if (now_ns - this.aloneSince_ns >= this.options.lagTimeout_ns) {
      this.depose(`a majority of the voters was not seen for ${this.options.lagTimeout_ns / 1e6} ms`);
    }
  }

  private seesMajority(): boolean {
    const { options, configuration, view } = this;
    let count = 0;
    for (const { id, bootId } of configuration.voters) {
      const isOtherLife = id === options.id && bootId !== options.bootId;
      if (!isOtherLife && view.trusts(id)) count++;
    }
    return count >= majority(configuration);
  }

  // -- membership --------------------------------------------------------------------------------------------------

  /**
   * Appends the configuration that the change leads to. Returns the LSN at which its entry ends, or why it was not
   * made; onConfigurationApplied() or onDeposed() tells the outcome. The caller calls flush() soon.
   */
  changeMembership(change: MembershipChange): number | MembershipRefusal {
    return this.changes.change(change);
  }

  /** The learner could be promoted now, as far as its log goes. */
  isCaughtUp(id: number): boolean {
    return this.changes.isCaughtUp(id);
  }

  /** For the membership's changes, which know when; returns false, and appends nothing, if there is no room. */
  appendConfiguration(configuration: Configuration): boolean {
    const payload = encodeConfiguration(configuration);
    if (!this.hasRoom(entryBytes(payload.length), 0)) return false;
    checkSuccessor(this.configuration, configuration);
    this.stage(EntryType.configuration, 0, 0, payload, payload.length);
    this.configurations.push({ endLsn: this.tail.lsn, configuration });
    this.configurationChanged();
    return true;
  }

  // -- handing over ------------------------------------------------------------------------------------------------

  /** Replica that leadership is being transferred to, -1 if none. */
  get transferringTo(): number {
    return this.transfer.to;
  }

  /**
   * Hands leadership over to the voter, or to the best successor if none is named: takes no commands from now on,
   * waits until the log is committed, applied and held by the successor, then cedes to it. If that does not come within
   * `timeout_ns` this replica goes on leading. Returns the successor, or why nothing was begun; onDeposed() or
   * onTransferEnded() tells the outcome.
   */
  transferLeadership(to: number | undefined, now_ns: number, timeout_ns: number): number | MembershipRefusal {
    const refusal = this.changes.whyNoChange();
    if (refusal !== null) return refusal;
    const successor = this.transfer.begin(to, this.configuration, now_ns + timeout_ns);
    this.leavingChanged();
    return successor;
  }

  private leavingChanged(): void {
    this.isLeaving = this.transfer.to >= 0 || (this.role_ === 'leader' && !this.isVoter);
  }

  /** By the configuration in force, and in this life. */
  get isVoter(): boolean {
    return voterWithId(this.configuration, this.options.id)?.bootId === this.options.bootId;
  }

  private advanceTransfer(now_ns: number): void {
    const { transfer, tail } = this;
    const { to } = transfer;
    if (to < 0 || this.role_ !== 'leader') return;
    // Nothing is left to do here: all is committed and applied, and the successor holds it.
    const isSettled = this.commitLsn_ === tail.lsn && this.applied.lsn === tail.lsn;
    if (isSettled && transfer.isSuccessorReady(this.configuration)) {
      this.cede(to, `leadership was transferred to replica ${to}`);
    } else if (transfer.isOverdue(now_ns)) {
      transfer.end();
      this.leavingChanged();
      this.host.onTransferEnded(
        `replica ${to} (${this.peerPhase(to)}) holds the log up to LSN ${this.peerAckedLsn(to)} of ${tail.lsn}, of ` +
          `which ${this.commitLsn_} is committed`,
      );
    }
  }

  /** A leader that the committed configuration is without has done its last duty. */
  private leaveIfRemoved(): void {
    if (this.role_ !== 'leader' || !this.isConfigurationApplied) return;
    if (this.isVoter) return;
    const { version } = this.configuration;
    this.cede(-1, `configuration ${version}, which is committed, does not list this replica as a voter`);
  }

  /** Gives leadership up and says so: nobody waits for a sign of life, and the successor, if any, goes first. */
  private cede(to: number, reason: string): void {
    const { body } = this.mainWriter;
    writeU53(body, MainField.cededEpoch, this.epoch);
    body[MainField.cededTo] = to < 0 ? NOBODY : to;
    this.depose(reason);
  }

  private depose(reason: string): void {
    if (this.role_ === 'follower') return;
    const epoch = this.epoch;
    this.role_ = 'follower';
    this.stagedBytes = 0;
    this.runBytes = 0;
    this.readingFrom = -1;
    this.noopEndLsn = Number.POSITIVE_INFINITY;
    this.recycleLsn = 0;
    this.transfer.end();
    this.isLeaving = false;
    this.reads.abandon();
    this.replacement.forget();
    for (const follower of this.followers) follower.abandon();
    this.forgetTail();
    this.publishMain();
    writeU53(this.toBackgroundWriter.body, ToBackgroundField.endedEpoch, epoch);
    this.toBackgroundWriter.publish();
    this.host.onDeposed(epoch, reason);
  }

  // -- publishing --------------------------------------------------------------------------------------------------

  private configurationChanged(): void {
    const { configuration, options } = this;
    const { body } = this.toBackgroundWriter;
    let incarnation = 0;
    let spareMask = 0;
    body.fill(0, ToBackgroundField.voterBootIds, ToBackgroundField.spareMask);
    for (const { id, role, bootId, priority, incarnation: given } of configuration.members) {
      if (role === 'spare') spareMask |= 1 << id;
      if (role !== 'voter') continue;
      writeU53(body, ToBackgroundField.voterBootIds + id * 2, bootId);
      body[ToBackgroundField.priorities + id] = priority;
      if (id === options.id && bootId === options.bootId) incarnation = given;
    }
    this.leaseRecalls.watch(configuration.voters.map(({ id }) => id));
    body[ToBackgroundField.spareMask] = spareMask;
    body[ToBackgroundField.configurationVersion] = configuration.version;
    writeU53(body, ToBackgroundField.incarnation, incarnation);
    body[ToBackgroundField.ready] = this.diskFailure === null ? 1 : 0;
    this.toBackgroundWriter.publish();
    this.dirty = true;
    this.leavingChanged();
    this.host.onConfiguration(configuration);
  }

  private publishMain(): void {
    const { body } = this.mainWriter;
    writeU53(body, MainField.leaderEpoch, this.leaderEpoch);
    writeU53(body, MainField.commitLsn, this.commitLsn_);
    writeU53(body, MainField.appliedLsn, this.applied.lsn);
    body[MainField.appliedHashLow] = this.applied.hashLow;
    body[MainField.appliedHashHigh] = this.applied.hashHigh;
    writeU53(body, MainField.appliedEpoch, this.applied.epoch);
    writeU53(body, MainField.tailLsn, this.tail.lsn);
    body[MainField.configurationVersion] = this.configuration.version;
    writeU53(body, MainField.processId, this.processId);
    writeU53(body, MainField.foreignBelowLsn, this.ring.foreignBelowLsn);
    if (this.durableLog !== null) {
      // What was told of a disk that has failed is true still, but nobody may count on more of it.
      const { synced, failure } = this.durableLog;
      writeU53(body, MainField.syncedLsn, failure === null ? synced.lsn : 0);
      writeU53(body, MainField.syncedEpoch, failure === null ? synced.epoch : EPOCH_NONE);
    }
    this.mainWriter.publish();
    this.publishedAppliedLsn = this.applied.lsn;
    this.dirty = false;
  }
}
