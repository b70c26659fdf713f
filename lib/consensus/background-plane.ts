// The background plane of one replica: heartbeat, failure detector, election, and the permission manager that grants
// and revokes the right to write this replica's log. It runs in a thread of its own, tick by tick, and is free of
// allocation in steady state, so that neither the application nor its garbage collector can stop it.
//
// It decides *who may write*; what is written is the replication plane's business. The two talk through the exchange.

import { type BackgroundFabric, FabricStatus, PeerProcessState } from '../fabric/fabric.js';
import { type ChainPosition, entryEpoch } from './entry.js';
import { EPOCH_COUNTER_MAX, EPOCH_NONE, epochCounter, epochIncarnation, makeEpoch } from './epoch.js';
import { EpochHistory } from './epoch-history.js';
import type { Exchange } from './exchange.js';
import { type DetectorThresholds, FailureDetector, MISSED_BEATS_ASKED } from './failure-detector.js';
import { BeatTimes, LeasePromise, type LeaseSettings, LeaseTally, leaseLengthMax_ns } from './lease.js';
import { drawRecall } from './lease-recall.js';
import {
  BACKGROUND_BLOCK_OFFSET_WORDS,
  BACKGROUND_BLOCK_WORDS,
  EPOCH_RUNS_MAX,
  GRANT_BLOCK_OFFSET_WORDS,
  GRANT_BLOCK_WORDS,
  MAILBOX_MESSAGE_WORDS,
  MAILBOX_SLOT_WORDS,
  MAIN_BLOCK_OFFSET_WORDS,
  MAIN_BLOCK_WORDS,
  MAX_REPLICAS,
  STATUS_BYTES,
  STATUS_PROBE_BYTES,
  STATUS_WORDS,
} from './limits.js';
import { LogScanner } from './log-scan.js';
import { standsBefore } from './membership.js';
import { isPossibleGrant, isPossibleMain } from './possible-status.js';
import { readU53, SealedBlockReader, SealedBlockWriter, writeU53 } from './sealed-block.js';
import {
  BackgroundField,
  GrantField,
  MainField,
  NOBODY,
  REQUEST_KIND_NONE,
  REQUEST_KIND_PERMISSION,
  RequestField,
  TO_BACKGROUND_WORDS,
  TO_MAIN_WORDS,
  ToBackgroundField,
  ToMainField,
} from './status-layout.js';

/** How a replica watches its peers: pace of the ticks, and when silence is a failure. See {@link PROFILES}. */
export interface BackgroundProfile extends DetectorThresholds {
  /** Interval between ticks: heartbeat, READ of every peer's status, mailbox check. 5,000 (5 us) .. 1,000,000,000 (1 s). */
  readonly tick_ns: number;
  /** Interval while an election is on, so that grants are not waited for a whole tick. At least 5,000, at most tick_ns. */
  readonly electionTick_ns: number;
  /** How long a candidacy, and then the takeover, may take before the candidate stands back. At least four ticks. */
  readonly takeoverTimeout_ns: number;
  /**
   * A leader whose replication plane makes no progress for so long, and for STALL_GAPS_MAX times the average of its gaps,
   * loses its protection: a blocked event loop serves nobody. At least 50,000,000 (50 ms).
   */
  readonly stallTimeout_ns: number;
}

/** See BackgroundPlane.mainNotice. */
const MAIN_NOTICE_NONE = 0;
const MAIN_NOTICE_NEXT_TICK = 1;
const MAIN_NOTICE_NOW = 2;
/** How long news wait that the replication plane has no use for during an election, in ticks at the pace of one. */
const MAIN_NOTICE_ELECTION_TICKS = 20;
/** See stallTimeout_ns. */
const STALL_GAPS_MAX = 8;
/** Weight of the newest gap in their moving average. */
const STALL_GAP_WEIGHT = 1 / 8;

export interface BackgroundOptions {
  readonly id: number;
  readonly bootId: number;
  readonly logBytes: number;
  readonly profile: BackgroundProfile;
  /** What this replica promises to leaders, and relies on as one; null for no leases. */
  readonly lease: LeaseSettings | null;
  /** Names this process; a durable life has one after the other. Default: the life's only one. */
  readonly processId?: number;
  /** Durable mode; null or missing: what is promised is promised for as long as memory lasts. */
  readonly durable?: DurablePromise | null;
  /** Uniform in [0, 1). */
  readonly random: () => number;
  /** Wakes the replication plane. */
  readonly notifyMain: () => void;
  /** Told when a revocation could not be proven or a link not be opened; the grant is then withheld and tried again. */
  readonly onGrantFailure?: (peer: number, error: unknown) => void;
}

/** A voter that keeps its promises on disk. */
export interface DurablePromise {
  /** What this life promised last, in an earlier process; epoch 0 for nothing. */
  readonly epoch: number;
  readonly to: number;
  /**
   * How long that process may have undertaken to let nobody else lead, by the own clock from now on: how long ago it
   * last did is not known.
   */
  readonly leaseWait_ns: number;
  /** Puts the promise on disk before it returns; throws if that cannot be proven, and then nothing is granted. */
  readonly record: (epoch: number, to: number) => void;
}

/** Nobody uses so many: a replica has promised what another one's memory or mailbox said that was wrong. */
const EPOCHS_EXHAUSTED = Object.assign(
  new Error(
    `no epoch can be formed above the one promised, whose counter is ${EPOCH_COUNTER_MAX}: nobody can lead any more`,
  ),
  { code: 'QUORATE_EPOCHS_EXHAUSTED' },
);

/** Ticks at the pace of an election after the last sign that entries come, so that the next one finds this plane awake. */
const WAKEFUL_TICKS = 4;

const KIND_STATUS_READ = 1;
const KIND_MAILBOX_WRITE = 2;
const KIND_WITHDRAWAL = 3;
const KIND_RECALL_WRITE = 4;
const KIND_RECALL_READ = 5;

/** An epoch that a peer publishes; what can be none counts as none. */
function readEpoch(words: Uint32Array, index: number): number {
  const epoch = readU53(words, index);
  return Number.isSafeInteger(epoch) ? epoch : EPOCH_NONE;
}

/** What the background plane knows of one peer. */
class PeerWatch {
  readonly background = new SealedBlockReader(BACKGROUND_BLOCK_WORDS);
  readonly main = new SealedBlockReader(MAIN_BLOCK_WORDS, isPossibleMain);
  readonly grant: SealedBlockReader;
  readonly mailbox = new SealedBlockReader(MAILBOX_MESSAGE_WORDS);
  isConnected = false;
  readOutstanding = false;
  mailboxWriteOutstanding = false;
  /** Epoch of the lease that is being recalled; EPOCH_NONE if none is, or the WRITE failed. */
  recallEpoch = EPOCH_NONE;
  recallWriteOutstanding = false;
  /** The peer's mailbox may hold a request of this replica. */
  mayHoldRequest = false;
  /** The peer is to be woken. */
  noticeDue = false;
  /** Request made to this peer for the current epoch; 0 if none. */
  requestSequence = 0;
  requestLinkGeneration = 0;
  requestRegrants = 0;
  requestSentAt_ns = 0;
  granted = false;
  /** How much of the log it had on disk when it was looked at last. */
  syncedLsn = 0;
  /** Newest request of this peer that was answered. */
  answeredEpoch = EPOCH_NONE;
  answeredRequestSequence = 0;

  constructor(logBytes: number) {
    this.grant = new SealedBlockReader(GRANT_BLOCK_WORDS, (words) => isPossibleGrant(words, logBytes));
  }

  /** Whether the block names the process that beats there: one that does not counts nowhere, and would not be asked for again. */
  isOf(block: Uint32Array, bootIdIndex: number, processIdIndex: number): boolean {
    const { body } = this.background;
    return (
      readU53(block, bootIdIndex) === readU53(body, BackgroundField.bootId) &&
      readU53(block, processIdIndex) === readU53(body, BackgroundField.processId)
    );
  }
  promisedEpoch(): number {
    return readEpoch(this.background.body, BackgroundField.promisedEpoch);
  }
  /** Epoch that the peer leads, 0 if it leads none, or does not get anywhere with it. */
  leaderEpoch(): number {
    const epoch = readEpoch(this.main.body, MainField.leaderEpoch);
    return epoch === readU53(this.background.body, BackgroundField.stalledEpoch) ? EPOCH_NONE : epoch;
  }
}

export class BackgroundPlane {
  private readonly detector: FailureDetector;
  private readonly peers: PeerWatch[] = [];
  private readonly scanner: LogScanner;
  private readonly blockWriter: SealedBlockWriter;
  private readonly grantWriter: SealedBlockWriter;
  private readonly toMainWriter: SealedBlockWriter;
  private readonly outboxWriters: SealedBlockWriter[] = [];
  private readonly fromMain = new SealedBlockReader(TO_BACKGROUND_WORDS);
  private readonly ownMain = new SealedBlockReader(MAIN_BLOCK_WORDS);
  private readonly scanPosition: ChainPosition = { lsn: 0, hashLow: 0, hashHigh: 0, epoch: 0 };
  private readonly scanHistory = new EpochHistory(EPOCH_RUNS_MAX);

  private promisedEpoch = EPOCH_NONE;
  private promisedTo = -1;
  private promisedAt_ns = 0;
  /** The one that was promised has not been trusted since. */
  private isPromisedUnseen = false;
  /** Peer that can write the own log now, or is not proven unable to; -1 if none can. */
  private logWriter = -1;
  private candidateEpoch = EPOCH_NONE;
  private candidateSince_ns = 0;
  private takeoverAnnounced = false;
  private standBackUntil_ns = 0;
  private outpromisedSince_ns = Number.POSITIVE_INFINITY;
  /** Latest epoch that was seen to be ceded, and since when. */
  private cededEpoch = EPOCH_NONE;
  private cededSeen_ns = 0;
  /** This replica ceded the leadership that it had last, rather than losing it. */
  private hasCededItself = false;
  private nextRequestSequence = 1;
  private lastScore_ns = Number.NEGATIVE_INFINITY;
  private lastTrustedMask = 0;
  private lastNotifiedCommitLsn = -1;
  /** When there was first no live leader to be seen; not a number while there is one. */
  private leaderLostAt_ns = Number.NaN;
  private lastProgress = 0;
  private progressAt_ns = Number.NaN;
  private progressGap_ns = 0;
  private isStalled = false;
  /**
   * Whether the replication plane is to be woken. At the end of a tick, and not before: on a busy host the woken thread
   * may take the processor over at once, for longer than an election takes, while a request or a grant is half told. What
   * it can do nothing about for the moment waits for the next tick: the processors are the election's until then.
   */
  private mainNotice = MAIN_NOTICE_NONE;
  /** When it is to be woken at the latest, for news that are no hurry. */
  private mainNoticeDue_ns = Number.POSITIVE_INFINITY;
  private readonly promise: LeasePromise;
  private readonly beats = new BeatTimes();
  private readonly tally = new LeaseTally(MAX_REPLICAS);
  /** How long the promise to a former leader holds up what this plane would do, as of this tick; 0 if it does not. */
  private heldUp_ns = 0;
  /** Leases of other members may be longer than the own: their profiles can be other ones. */
  private readonly reliedLengthMax_ns: number;
  private readonly processId: number;
  /** Durable mode: entries come, or wait for a disk, so there is no long pause between ticks. */
  private wakefulUntil_ns = Number.NEGATIVE_INFINITY;

  constructor(
    private readonly options: BackgroundOptions,
    private readonly fabric: BackgroundFabric,
    private readonly exchange: Exchange,
  ) {
    this.detector = new FailureDetector(options.profile, MAX_REPLICAS);
    this.promise = new LeasePromise(options.lease);
    this.reliedLengthMax_ns = Math.max(
      options.lease?.length_ns ?? 0,
      leaseLengthMax_ns(options.profile.takeoverTimeout_ns),
    );
    this.processId = options.processId ?? options.bootId;
    this.scanner = new LogScanner(fabric.logWords, options.logBytes);
    this.blockWriter = new SealedBlockWriter(fabric.statusWords, BACKGROUND_BLOCK_OFFSET_WORDS, BACKGROUND_BLOCK_WORDS);
    this.grantWriter = new SealedBlockWriter(fabric.statusWords, GRANT_BLOCK_OFFSET_WORDS, GRANT_BLOCK_WORDS);
    this.toMainWriter = new SealedBlockWriter(exchange.words, exchange.toMainOffset, TO_MAIN_WORDS);
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      this.peers.push(new PeerWatch(options.logBytes));
      this.outboxWriters.push(
        new SealedBlockWriter(fabric.outboxWords, peer * MAILBOX_SLOT_WORDS, MAILBOX_MESSAGE_WORDS),
      );
    }
    writeU53(this.blockWriter.body, BackgroundField.bootId, options.bootId);
    writeU53(this.blockWriter.body, BackgroundField.processId, this.processId);
    if (options.durable != null && options.durable.epoch !== EPOCH_NONE) {
      this.promisedEpoch = options.durable.epoch;
      this.promisedTo = options.durable.to;
      this.promisedAt_ns = Number.NEGATIVE_INFINITY;
    }
    this.publishToMain();
  }

  /** As of the last tick: there is no live leader, or this replica waits for a majority's permission. */
  isElectionOn = false;

  /**
   * As of the last tick: a peer asks for permission over a log link that has ended, and cannot be granted before it has made a
   * fresh one. It must learn that the old one has ended.
   */
  isLinkAwaited = false;

  /** Highest epoch that this replica has promised. */
  get promised(): number {
    return this.promisedEpoch;
  }

  /** Replica that can write this replica's log now, or is not proven unable to; -1 if none can. */
  get writer(): number {
    return this.logWriter;
  }

  /** One round of everything. Returns after how many nanoseconds the next one is due. */
  tick(now_ns: number): number {
    const { fabric, options } = this;
    if (this.mainNotice === MAIN_NOTICE_NEXT_TICK || now_ns >= this.mainNoticeDue_ns) this.mainNotice = MAIN_NOTICE_NOW;
    this.fromMain.read(this.exchange.words, this.exchange.toBackgroundOffset);
    this.ownMain.read(fabric.statusWords, MAIN_BLOCK_OFFSET_WORDS);
    this.resume(now_ns);
    this.promise.begin(now_ns, this.promisedEpoch);
    this.promise.observe(options.id, this.processId, readU53(this.ownMain.body, MainField.leaderEpoch));
    this.heldUp_ns = 0;
    this.drain();
    if (now_ns - this.lastScore_ns >= options.profile.tick_ns) {
      this.lastScore_ns = now_ns;
      this.score();
    }
    this.noticeExits();
    this.watchProgress(now_ns);
    this.answerRequests(now_ns);
    this.campaign(now_ns);
    if (this.candidateEpoch === EPOCH_NONE) this.writeNotices();
    this.extendLease(now_ns);
    this.publishHeartbeat(now_ns);
    this.probe();
    if (this.candidateEpoch !== EPOCH_NONE && !this.takeoverAnnounced) this.announceMajority(now_ns);
    this.watchLog();
    if (options.durable != null) this.watchDisks(now_ns);
    if (this.detector.trustedMask !== this.lastTrustedMask) {
      this.lastTrustedMask = this.detector.trustedMask;
      if (this.detector.trusts(this.promisedTo)) this.isPromisedUnseen = false; // from now on the detector tells
      this.publishToMain();
      this.noticeLater(now_ns);
    }
    if (this.mainNotice === MAIN_NOTICE_NOW) {
      this.mainNotice = MAIN_NOTICE_NONE;
      this.mainNoticeDue_ns = Number.POSITIVE_INFINITY;
      options.notifyMain();
    }
    this.isElectionOn = this.electionIsOn(now_ns);
    if (this.heldUp_ns > 0) return Math.min(this.heldUp_ns, options.profile.electionTick_ns);
    if (this.isElectionOn || now_ns < this.wakefulUntil_ns) return options.profile.electionTick_ns;
    // A tick that somebody's wake brought forward does not put off the next beat.
    return Math.max(options.profile.tick_ns - (now_ns - this.lastScore_ns), options.profile.tick_ns / 4);
  }

  private noticeLater(now_ns: number): void {
    const due_ns = now_ns + MAIN_NOTICE_ELECTION_TICKS * this.options.profile.electionTick_ns;
    this.mainNoticeDue_ns = Math.min(this.mainNoticeDue_ns, due_ns);
  }

  private isResumed = false;

  /**
   * This process goes on as the voter that an earlier one was. What that undertook for a lease it may have undertaken an
   * instant before it ended. If the leader was that process itself, nobody reads by it any more.
   */
  private resume(now_ns: number): void {
    if (this.isResumed) return;
    this.isResumed = true;
    const { durable, id } = this.options;
    if (durable == null || durable.epoch === EPOCH_NONE) return;
    this.fabric.raiseFence(durable.epoch);
    if (durable.to !== id) this.promise.resume(durable.to, durable.epoch, now_ns + durable.leaseWait_ns);
  }

  /**
   * Durable mode: a leader waits for what the others' disks hold, which it can only read, and a follower for entries, which
   * nobody announces. While there are some, both look as often as in an election.
   */
  private watchDisks(now_ns: number): void {
    const { profile } = this.options;
    const main = this.ownMain.body;
    const tailLsn = readU53(main, MainField.tailLsn);
    const isAwaited = this.candidateEpoch !== EPOCH_NONE && readU53(main, MainField.commitLsn) < tailLsn;
    const isWritten = readU53(main, MainField.syncedLsn) < tailLsn && this.isReady();
    if (isAwaited || isWritten || this.hasGrown(tailLsn)) {
      this.wakefulUntil_ns = now_ns + WAKEFUL_TICKS * profile.tick_ns;
    }
    if (this.candidateEpoch === EPOCH_NONE) return;
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      const watch = this.peers[peer] as PeerWatch;
      const syncedLsn = readU53(watch.main.body, MainField.syncedLsn);
      if (syncedLsn === watch.syncedLsn) continue;
      watch.syncedLsn = syncedLsn;
      this.mainNotice = MAIN_NOTICE_NOW;
    }
  }

  /** The host saw the connection to a peer end: a sign, not a proof, that its process has. */
  peerDisconnected(peer: number): void {
    this.detector.observeDisconnected(peer);
  }

  private noticeExits(): void {
    const exited = this.fabric.exitedMask();
    if (exited === 0) return;
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      if ((exited & (1 << peer)) === 0) continue;
      this.detector.observeUnreachable(peer);
      this.promise.ended(peer, this.fabric.exitedProcess(peer));
    }
  }

  /**
   * Fate sharing: this plane beats for a replica whose event loop may be blocked. Then it says so, and its leadership is
   * open to others until the replication plane goes on. A busy event loop, whose turns always take long, is not blocked.
   */
  private watchProgress(now_ns: number): void {
    const progress = this.exchange.words[this.exchange.progressOffset] as number;
    if (progress !== this.lastProgress || Number.isNaN(this.progressAt_ns) || !this.leads()) {
      if (progress !== this.lastProgress && !this.isStalled) {
        this.progressGap_ns += STALL_GAP_WEIGHT * (now_ns - this.progressAt_ns - this.progressGap_ns);
        if (Number.isNaN(this.progressGap_ns)) this.progressGap_ns = 0;
      }
      this.lastProgress = progress;
      this.progressAt_ns = now_ns;
      this.isStalled = false;
      return;
    }
    const allowed_ns = Math.max(this.options.profile.stallTimeout_ns, STALL_GAPS_MAX * this.progressGap_ns);
    if (now_ns - this.progressAt_ns > allowed_ns) this.isStalled = true;
  }

  // -- probing -----------------------------------------------------------------------------------------------------

  private drain(): void {
    const { fabric } = this;
    for (let count = fabric.submit(0, 0); count > 0; count = fabric.submit(0, 0)) {
      for (let index = 0; index < count; index++) {
        const peer = fabric.completionPeer[index] as number;
        const status = fabric.completionStatus[index] as number;
        const watch = this.peers[peer] as PeerWatch;
        if (fabric.completionToken[index] === KIND_WITHDRAWAL) {
          watch.mailboxWriteOutstanding = false;
          if (status !== FabricStatus.success) watch.mayHoldRequest = true;
        } else if (fabric.completionToken[index] === KIND_MAILBOX_WRITE) {
          watch.mailboxWriteOutstanding = false;
          if (status !== FabricStatus.success) watch.requestSequence = 0; // ask again on the next link
        } else if (fabric.completionToken[index] === KIND_RECALL_WRITE) {
          watch.recallWriteOutstanding = false;
          if (status !== FabricStatus.success) watch.recallEpoch = EPOCH_NONE;
        } else {
          watch.readOutstanding = false;
          if (status === FabricStatus.success) this.takeStatus(peer, watch);
          if (fabric.completionToken[index] === KIND_RECALL_READ) this.finishRecall(peer, watch, status);
        }
        if (status === FabricStatus.unreachable) this.detector.observeUnreachable(peer);
      }
    }
  }

  /** Takes what a READ brought, block by block; what does not validate is no news. */
  private takeStatus(peer: number, watch: PeerWatch): void {
    const { words } = this.exchange;
    const from = peer * STATUS_WORDS;
    const view = this.exchange.peerViewOffset(peer);
    const probe = this.fabric.probeWords;
    if (watch.background.read(probe, from + BACKGROUND_BLOCK_OFFSET_WORDS)) {
      words.set(watch.background.body, view + BACKGROUND_BLOCK_OFFSET_WORDS);
    }
    if (watch.main.read(probe, from + MAIN_BLOCK_OFFSET_WORDS)) {
      words.set(watch.main.body, view + MAIN_BLOCK_OFFSET_WORDS);
    }
    this.renewPromise(peer, watch);
    if (this.candidateEpoch !== EPOCH_NONE && watch.requestSequence !== 0 && !watch.granted) {
      if (watch.grant.read(probe, from + GRANT_BLOCK_OFFSET_WORDS)) {
        const grant = watch.grant.body;
        if (
          readU53(grant, GrantField.epoch) === this.candidateEpoch &&
          grant[GrantField.candidate] === this.options.id &&
          grant[GrantField.requestSequence] === watch.requestSequence &&
          watch.isOf(grant, GrantField.bootId, GrantField.processId)
        ) {
          watch.granted = true;
          words.set(grant, view + GRANT_BLOCK_OFFSET_WORDS);
          const body = this.toMainWriter.body;
          body[ToMainField.grantsReceived] = ((body[ToMainField.grantsReceived] as number) + 1) >>> 0;
          this.publishToMain();
          if (this.takeoverAnnounced) this.mainNotice = MAIN_NOTICE_NOW;
        }
      }
    }
  }

  /** The leader that was promised last gets its promise anew with every beat, and loses it when it leads no more. */
  private renewPromise(peer: number, watch: PeerWatch): void {
    const processId = readU53(watch.main.body, MainField.processId);
    this.promise.observe(peer, processId, readU53(watch.main.body, MainField.leaderEpoch));
    if (peer !== this.promisedTo || watch.leaderEpoch() !== this.promisedEpoch) return;
    if (this.promisedEpoch === EPOCH_NONE || (this.fabric.exitedMask() & (1 << peer)) !== 0) return;
    if (readU53(watch.background.body, BackgroundField.processId) !== processId) return;
    this.promise.saw(peer, processId, this.promisedEpoch, watch.background.sequence);
  }

  private probe(): void {
    const { fabric } = this;
    let queued = false;
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      const watch = this.peers[peer] as PeerWatch;
      const isConnected = peer !== this.options.id && fabric.probeConnected(peer);
      // A fresh link's first WRITE, which is slow, is a withdrawal now rather than a request when it matters.
      if (isConnected && !watch.isConnected) watch.mayHoldRequest = true;
      watch.isConnected = isConnected;
      if (!isConnected || watch.readOutstanding) continue;
      const awaitsGrant = this.candidateEpoch !== EPOCH_NONE && watch.requestSequence !== 0 && !watch.granted;
      watch.readOutstanding = true;
      queued = true;
      fabric.queueStatusRead(peer, awaitsGrant ? STATUS_BYTES : STATUS_PROBE_BYTES, KIND_STATUS_READ);
    }
    if (queued) this.drain();
  }

  private score(): void {
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      if (peer === this.options.id) continue;
      const watch = this.peers[peer] as PeerWatch;
      const { sequence } = watch.background;
      if (sequence === 0) continue; // never read
      // A READ that brings nothing says that the way to the peer is blocked, whatever its process does.
      const isAsked = this.detector.missedBeats(peer, sequence) >= MISSED_BEATS_ASKED && !watch.readOutstanding;
      this.detector.observe(peer, sequence, isAsked ? this.fabric.processState(peer) : PeerProcessState.unknown);
    }
  }

  private publishHeartbeat(now_ns: number): void {
    const { body } = this.blockWriter;
    writeU53(body, BackgroundField.promisedEpoch, this.promisedEpoch);
    body[BackgroundField.promisedTo] = this.promisedTo;
    writeU53(body, BackgroundField.incarnation, this.ownIncarnation());
    body[BackgroundField.eligible] = this.eligible(now_ns) ? 1 : 0;
    body[BackgroundField.trustedMask] = this.detector.trustedMask;
    writeU53(body, BackgroundField.stalledEpoch, this.isStalled ? this.candidateEpoch : EPOCH_NONE);
    body[BackgroundField.leaseCounter] = this.promise.publishedCounter(this.promisedEpoch);
    body[BackgroundField.leaseLength_us] = this.promise.publishedLength_us;
    this.beats.note(this.blockWriter.nextSequence, now_ns);
    this.blockWriter.publish();
  }

  /** Tells the main plane until when enough voters let nobody else lead, and promises the same for the own log. */
  private extendLease(now_ns: number): void {
    const { options, tally, promise } = this;
    if (options.lease === null || !this.leads() || this.isStalled) return;
    // Once more, behind the word that this replica leads. This thread may have stood still between its looks at the two, for
    // a whole takeover: then the voters known here are those of the log before that, whose last configuration may have
    // the version of the one in force, and other voters.
    if (!this.fromMain.read(this.exchange.words, this.exchange.toBackgroundOffset)) return;
    const { driftBound, length_ns } = options.lease;
    tally.clear();
    let voters = 0;
    let isVoter = false;
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      const bootId = this.voterBootId(peer);
      if (bootId === 0) continue;
      voters++;
      if (peer === options.id) isVoter = bootId === options.bootId;
      else this.countPromise(peer, bootId, driftBound);
    }
    // The own promise is good for as long as the others' are, and alone for the usual length.
    const others = (voters >> 1) + (isVoter ? 0 : 1);
    const end_ns = others === 0 ? now_ns + tally.relied_ns(length_ns, driftBound) : tally.endOf(others);
    const { body } = this.toMainWriter;
    const version = this.fromMain.body[ToBackgroundField.configurationVersion] as number;
    if (readU53(body, ToMainField.leaseEnd_ns) === end_ns && body[ToMainField.leaseConfigurationVersion] === version) {
      return;
    }
    promise.holdOwn(options.id, this.processId, this.candidateEpoch, end_ns);
    writeU53(body, ToMainField.leaseEnd_ns, end_ns);
    writeU53(body, ToMainField.leaseEpoch, this.candidateEpoch);
    body[ToMainField.leaseConfigurationVersion] = version;
    this.publishToMain();
  }

  /** What this voter says of the promise that it gave to this leader. */
  private countPromise(peer: number, bootId: number, driftBound: number): void {
    const { body } = (this.peers[peer] as PeerWatch).background;
    if (readU53(body, BackgroundField.bootId) !== bootId) return;
    if (readU53(body, BackgroundField.promisedEpoch) !== this.candidateEpoch) return;
    // To rely on less than was promised is safe. What is relied on holds up grants of the own log, and must have an end.
    const length_ns = Math.min((body[BackgroundField.leaseLength_us] as number) * 1000, this.reliedLengthMax_ns);
    this.tally.add(this.beats.timeOf(body[BackgroundField.leaseCounter] as number), length_ns, driftBound);
  }

  /** Wakes the replication plane when there is something for it to validate or apply. */
  private watchLog(): void {
    const main = this.ownMain.body;
    const tailLsn = readU53(main, MainField.tailLsn);
    const commitLsn = this.leaderCommitLsn();
    if (
      this.hasGrown(tailLsn) ||
      (commitLsn > readU53(main, MainField.appliedLsn) && commitLsn !== this.lastNotifiedCommitLsn)
    ) {
      this.lastNotifiedCommitLsn = commitLsn;
      this.mainNotice = MAIN_NOTICE_NOW;
    }
  }

  /**
   * Behind the end of the log that the replication plane knows stands something that may be an entry. Epochs do not decrease
   * in a log: one of an earlier epoch is left of a log that was cut, and may stand there until the next one is written.
   */
  private hasGrown(tailLsn: number): boolean {
    const { logWords } = this.fabric;
    const at = this.scanner.physical(tailLsn) >>> 2;
    const isEntry = readU53(logWords, at) === tailLsn && logWords[at + 5] !== 0;
    return isEntry && entryEpoch(logWords, at) >= readU53(this.ownMain.body, MainField.appliedEpoch);
  }

  private leaderCommitLsn(): number {
    const leader = this.followedLeader();
    return leader === null ? 0 : readU53(leader.main.body, MainField.commitLsn);
  }

  // -- voter: grants -----------------------------------------------------------------------------------------------

  private answerRequests(now_ns: number): void {
    const { fabric, options } = this;
    this.isLinkAwaited = false;
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      if (peer === options.id) continue;
      const watch = this.peers[peer] as PeerWatch;
      if (!watch.mailbox.read(fabric.mailboxWords, peer * MAILBOX_SLOT_WORDS)) continue;
      const request = watch.mailbox.body;
      if (request[RequestField.kind] !== REQUEST_KIND_PERMISSION) continue;
      const epoch = readU53(request, RequestField.epoch);
      const requestSequence = request[RequestField.requestSequence] as number;
      if (epoch === watch.answeredEpoch && requestSequence === watch.answeredRequestSequence) continue;
      if (epoch < this.promisedEpoch || !Number.isSafeInteger(epoch)) continue;
      // The same epoch may be asked for again by the same candidate only: after its link broke and was replaced.
      if (epoch === this.promisedEpoch && peer !== this.promisedTo) continue;
      const linkGeneration = fabric.incomingLogGeneration(peer);
      if (linkGeneration === 0) this.isLinkAwaited = true;
      if (request[RequestField.linkGeneration] !== linkGeneration) continue;
      if (epoch > this.promisedEpoch && this.liveLeader(now_ns, peer)) continue; // the guard: asked again every tick
      if (this.isHeldUp(epochIncarnation(epoch), now_ns)) continue;
      if (this.grant(peer, epoch, requestSequence, now_ns)) {
        watch.answeredEpoch = epoch;
        watch.answeredRequestSequence = requestSequence;
      }
    }
  }

  /** A promise to the leader before, which may still answer reads by it, is kept first, or taken back. */
  private isHeldUp(incarnation: number, now_ns: number): boolean {
    const remaining_ns = this.promise.remaining_ns(incarnation, now_ns);
    if (remaining_ns === 0 || this.recallLease()) return false;
    this.heldUp_ns = this.heldUp_ns === 0 ? remaining_ns : Math.min(this.heldUp_ns, remaining_ns);
    return true;
  }

  /**
   * Takes the promise back in the holder's memory, if that can be written; true when it has been. A READ behind the WRITE,
   * posted with it and so on the same link, shows when that is visible to the holder's processor, and in which process.
   */
  private recallLease(): boolean {
    const { fabric, promise, options } = this;
    const peer = promise.holder;
    const epoch = promise.recallableEpoch;
    if (epoch === EPOCH_NONE || peer === options.id || !fabric.probeConnected(peer)) return false;
    const watch = this.peers[peer] as PeerWatch;
    if (watch.recallWriteOutstanding || watch.readOutstanding) return false;
    watch.recallEpoch = epoch;
    watch.recallWriteOutstanding = true;
    watch.readOutstanding = true;
    drawRecall(fabric.outboxWords, peer, options.random);
    fabric.queueRecallWrite(peer, KIND_RECALL_WRITE);
    fabric.queueStatusRead(peer, STATUS_PROBE_BYTES, KIND_RECALL_READ);
    this.drain();
    return promise.holder !== peer;
  }

  private finishRecall(peer: number, watch: PeerWatch, status: number): void {
    const epoch = watch.recallEpoch;
    watch.recallEpoch = EPOCH_NONE;
    if (status !== FabricStatus.success || epoch === EPOCH_NONE || watch.recallWriteOutstanding) return;
    if (peer !== this.promise.holder) return;
    // What was read must be whole: a block of before tells nothing of where the WRITE went.
    const from = peer * STATUS_WORDS + BACKGROUND_BLOCK_OFFSET_WORDS;
    if (!watch.background.read(this.fabric.probeWords, from)) return;
    this.promise.recalled(epoch, readU53(watch.background.body, BackgroundField.processId));
  }

  /**
   * Whether somebody other than `candidate` leads and is alive, as far as this replica can tell; then it does not help
   * to depose that leader. A leader that ceded publishes leader epoch 0 and is not protected.
   */
  private liveLeader(now_ns: number, candidate: number): boolean {
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      if (peer === candidate) continue;
      if (peer === this.options.id) {
        if (this.leads() && !this.isStalled) return true;
        continue;
      }
      const watch = this.peers[peer] as PeerWatch;
      if (!this.detector.trusts(peer)) continue;
      const leaderEpoch = watch.leaderEpoch();
      if (leaderEpoch !== EPOCH_NONE && leaderEpoch >= this.promisedEpoch) return true;
      // A candidate that was granted gets time to complete its takeover.
      const isProspective =
        peer === this.promisedTo && watch.promisedEpoch() <= this.promisedEpoch && !this.hasCeded(watch);
      if (isProspective && now_ns - this.promisedAt_ns < this.options.profile.takeoverTimeout_ns) return true;
    }
    return false;
  }

  /**
   * A peer says that it leads, and is too new to this replica (which may be new itself) to be trusted or suspected.
   * Deposing it would only disturb; it gets the time to prove itself.
   */
  private newLeader(): boolean {
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      if (peer === this.options.id || !this.detector.isUnderReview(peer)) continue;
      const leaderEpoch = (this.peers[peer] as PeerWatch).leaderEpoch();
      if (leaderEpoch !== EPOCH_NONE && leaderEpoch >= this.promisedEpoch) return true;
    }
    return false;
  }

  /**
   * The candidate that was granted last has not been trusted here since: links to it are still to be made, say, after it was
   * started. That is no sign of its end, and it gets the time to complete its takeover, too.
   */
  private isUnseenCandidateInTime(now_ns: number): boolean {
    return this.isPromisedUnseen && now_ns - this.promisedAt_ns < this.options.profile.takeoverTimeout_ns;
  }

  /** The peer gave up the leadership that this replica promised last. */
  private hasCeded(watch: PeerWatch): boolean {
    return this.promisedEpoch !== EPOCH_NONE && readU53(watch.main.body, MainField.cededEpoch) === this.promisedEpoch;
  }

  /** To whom the leader that this replica followed ceded, if that one can lead; -1 if nobody need be waited for. */
  private successor(now_ns: number): number {
    const { promisedTo, options } = this;
    if (promisedTo < 0 || promisedTo === options.id) return -1;
    const former = this.peers[promisedTo] as PeerWatch;
    if (!this.hasCeded(former)) return -1;
    if (this.cededEpoch !== this.promisedEpoch) {
      this.cededEpoch = this.promisedEpoch;
      this.cededSeen_ns = now_ns;
    }
    const to = former.main.body[MainField.cededTo] as number;
    if (to === NOBODY || to >= MAX_REPLICAS || this.voterBootId(to) === 0) return -1;
    if (now_ns - this.cededSeen_ns >= options.profile.takeoverTimeout_ns) return -1;
    if (to === options.id) return to;
    const isEligible = (this.peers[to] as PeerWatch).background.body[BackgroundField.eligible] === 1;
    return isEligible && this.detector.trusts(to) ? to : -1;
  }

  /** The election that this replica stood back in is over: another one leads, by this replica's promise too. */
  private followsLeader(): boolean {
    return this.followedLeader() !== null && this.detector.trusts(this.promisedTo);
  }

  /** The one that was promised last, once it says that it leads in that epoch; null while nobody does, or this replica. */
  private followedLeader(): PeerWatch | null {
    const { promisedTo, options } = this;
    if (promisedTo < 0 || promisedTo === options.id) return null;
    const leader = this.peers[promisedTo] as PeerWatch;
    return leader.leaderEpoch() === this.promisedEpoch ? leader : null;
  }

  /** The own replication plane is the active leader of the epoch promised last. */
  private leads(): boolean {
    return (
      this.candidateEpoch !== EPOCH_NONE && readU53(this.ownMain.body, MainField.leaderEpoch) === this.candidateEpoch
    );
  }

  /** The peers show that the own candidacy or leadership is over: one leads a later epoch, or a majority left it. */
  private deposedByPeers(): boolean {
    let voters = 0;
    let lost = 0;
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      const watch = this.peers[peer] as PeerWatch;
      const isVoter = this.voterBootId(peer) !== 0;
      if (isVoter) voters++;
      if (peer === this.options.id) continue;
      if (watch.leaderEpoch() > this.candidateEpoch) return true;
      if (isVoter && watch.promisedEpoch() > this.candidateEpoch) lost++;
    }
    return lost > 0 && voters - lost <= voters >> 1;
  }

  /**
   * Grants the right to write the own log: fence the own appends, record the promise, revoke the current writer and
   * wait until that is drained, then read the log that nobody can write now, and only then let the candidate in.
   */
  private grant(candidate: number, epoch: number, requestSequence: number, now_ns: number): boolean {
    const wasCandidate = this.candidateEpoch !== EPOCH_NONE;
    if (!this.promiseTo(candidate, epoch, now_ns) || !this.handOverLog(candidate, epoch, requestSequence)) return false;
    // A leader learns at once that it is deposed. For others the next leader's first entry is what they need to know of.
    if (wasCandidate) this.mainNotice ||= MAIN_NOTICE_NEXT_TICK;
    else this.noticeLater(now_ns);
    return true;
  }

  private promiseTo(candidate: number, epoch: number, now_ns: number): boolean {
    const { fabric, options } = this;
    if (epoch < this.promisedEpoch) throw new Error(`promise would decrease: ${epoch} < ${this.promisedEpoch}`);
    if (!this.recordPromise(epoch, candidate)) return false;
    fabric.raiseFence(epoch);
    this.promisedEpoch = epoch;
    this.promisedTo = candidate;
    this.promisedAt_ns = now_ns;
    this.isPromisedUnseen = candidate !== options.id && !this.detector.trusts(candidate);
    if (candidate !== options.id) {
      this.endCandidacy();
      // It stood back for a successor, and there is one.
      if (this.hasCededItself) this.standBackUntil_ns = now_ns;
      this.hasCededItself = false;
    }
    this.publishHeartbeat(now_ns);
    return true;
  }

  private handOverLog(candidate: number, epoch: number, requestSequence: number): boolean {
    const { fabric, options } = this;
    if (this.logWriter >= 0) {
      try {
        fabric.revokeLogWriter(this.logWriter);
      } catch (error) {
        options.onGrantFailure?.(this.logWriter, error);
        this.publishToMain();
        return false;
      }
      this.logWriter = -1;
    }
    this.validateTail(epoch);
    let writeKey = 0;
    if (candidate !== options.id) {
      try {
        writeKey = fabric.enableLogWriter(candidate);
      } catch (error) {
        // It may have been let in all the same. Then that is taken back before anybody's grant, this replica's own included.
        this.logWriter = fabric.logWriter();
        options.onGrantFailure?.(candidate, error);
        this.publishToMain();
        return false;
      }
      this.logWriter = candidate;
      // Says to the candidate that there is something to read, so that it need not wait for its next look.
      (this.peers[candidate] as PeerWatch).noticeDue = true;
    }
    this.publishGrant(candidate, epoch, requestSequence, writeKey);
    const toMain = this.toMainWriter.body;
    toMain[ToMainField.grants] = ((toMain[ToMainField.grants] as number) + 1) >>> 0;
    this.publishToMain();
    return true;
  }

  /** Before anything of the grant can be seen, in memory or by its effects: a promise that is forgotten was never one. */
  private recordPromise(epoch: number, candidate: number): boolean {
    const { durable, onGrantFailure } = this.options;
    if (durable == null || (epoch === this.promisedEpoch && candidate === this.promisedTo)) return true;
    try {
      durable.record(epoch, candidate);
      return true;
    } catch (error) {
      onGrantFailure?.(candidate, error);
      return false;
    }
  }

  /** Leaves the end of the valid own log in scanPosition and its epochs from the applied LSN on in scanHistory. */
  private validateTail(epoch: number): void {
    const main = this.ownMain.body;
    // The replication plane publishes its applied position without waiting for anybody; the newest one that validates
    // will do, because positions only move forward and everything applied stays where it is.
    while (!this.ownMain.read(this.fabric.statusWords, MAIN_BLOCK_OFFSET_WORDS)) {
      // Being written this instant by the other plane of this process.
    }
    const position = this.scanPosition;
    position.lsn = readU53(main, MainField.appliedLsn);
    position.hashLow = main[MainField.appliedHashLow] as number;
    position.hashHigh = main[MainField.appliedHashHigh] as number;
    position.epoch = readU53(main, MainField.appliedEpoch);
    this.scanHistory.clear();
    this.scanner.scan(position, epoch, this.scanHistory);
  }

  private publishGrant(candidate: number, epoch: number, requestSequence: number, writeKey: number): void {
    const { body } = this.grantWriter;
    const position = this.scanPosition;
    const main = this.ownMain.body;
    const appliedLsn = readU53(main, MainField.appliedLsn);
    writeU53(body, GrantField.epoch, epoch);
    body[GrantField.candidate] = candidate;
    body[GrantField.requestSequence] = requestSequence;
    writeU53(body, GrantField.bootId, this.options.bootId);
    writeU53(body, GrantField.processId, this.processId);
    writeU53(body, GrantField.appliedLsn, appliedLsn);
    writeU53(body, GrantField.tailLsn, position.lsn);
    writeU53(body, GrantField.tailEpoch, position.epoch);
    body[GrantField.tailHashLow] = position.hashLow;
    body[GrantField.tailHashHigh] = position.hashHigh;
    body[GrantField.writeKey] = writeKey;
    body[GrantField.appliedHashLow] = main[MainField.appliedHashLow] as number;
    body[GrantField.appliedHashHigh] = main[MainField.appliedHashHigh] as number;
    const isSnapshot = appliedLsn > 0 && readU53(main, MainField.foreignBelowLsn) >= appliedLsn;
    body[GrantField.isSnapshot] = isSnapshot ? 1 : 0;
    body[GrantField.runCount] = this.scanHistory.count;
    for (let run = 0; run < this.scanHistory.count; run++) {
      writeU53(body, GrantField.runs + run * 4, this.scanHistory.epochs[run] as number);
      writeU53(body, GrantField.runs + run * 4 + 2, this.scanHistory.startLsns[run] as number);
    }
    this.grantWriter.publish();
  }

  // -- candidate and leader ----------------------------------------------------------------------------------------

  private ownIncarnation(): number {
    return readU53(this.fromMain.body, ToBackgroundField.incarnation);
  }

  private voterBootId(peer: number): number {
    return readU53(this.fromMain.body, ToBackgroundField.voterBootIds + peer * 2);
  }

  private isReady(): boolean {
    return this.fromMain.body[ToBackgroundField.ready] === 1;
  }

  private eligible(now_ns: number): boolean {
    return (
      this.ownIncarnation() !== 0 &&
      this.isReady() &&
      now_ns >= this.standBackUntil_ns &&
      !this.isStalled &&
      !this.isTooFarBehind()
    );
  }

  /**
   * A trusted voter holds a longer log, from which this one could not be completed: its ring begins after what is applied
   * here, and this log ends before what is applied there. Then that voter must lead, or another one that holds as much. Who
   * holds all that is committed is never too far behind, so somebody can always, whoever does not.
   */
  private isTooFarBehind(): boolean {
    const ownAppliedLsn = readU53(this.ownMain.body, MainField.appliedLsn);
    const ownTailLsn = readU53(this.ownMain.body, MainField.tailLsn);
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      if (this.voterBootId(peer) === 0 || !this.detector.trusts(peer)) continue;
      const main = (this.peers[peer] as PeerWatch).main.body;
      const tailLsn = readU53(main, MainField.tailLsn);
      const beginLsn = Math.max(tailLsn - this.options.logBytes, readU53(main, MainField.foreignBelowLsn));
      if (readU53(main, MainField.appliedLsn) > ownTailLsn && beginLsn > ownAppliedLsn) return true;
    }
    return false;
  }

  private electionIsOn(now_ns: number): boolean {
    // With a majority's grants the rest is the replication plane's, which needs the processor more than this plane does.
    if (this.candidateEpoch !== EPOCH_NONE) return !this.takeoverAnnounced;
    return this.ownIncarnation() !== 0 && !this.liveLeader(now_ns, -1);
  }

  private campaign(now_ns: number): void {
    const { options, fromMain } = this;
    if (this.liveLeader(now_ns, -1)) this.leaderLostAt_ns = Number.NaN;
    else if (Number.isNaN(this.leaderLostAt_ns)) this.leaderLostAt_ns = now_ns;
    if (this.standBackUntil_ns > now_ns && this.followsLeader()) this.standBackUntil_ns = now_ns;
    if (this.candidateEpoch !== EPOCH_NONE) {
      if (readU53(fromMain.body, ToBackgroundField.endedEpoch) >= this.candidateEpoch) {
        // The replication plane gave this leadership or takeover up.
        this.hasCededItself = readU53(this.ownMain.body, MainField.cededEpoch) === this.candidateEpoch;
        this.standBack(now_ns);
        return;
      }
      if (this.deposedByPeers()) {
        this.standBack(now_ns);
        return;
      }
      if (!this.leads() && now_ns - this.candidateSince_ns > options.profile.takeoverTimeout_ns) {
        this.standBack(now_ns);
        return;
      }
      if (this.outpromised(now_ns)) {
        if (this.ownIncarnation() === 0) {
          // On its way out of the configuration, it has no epochs to form any more: others take over.
          this.standBack(now_ns);
          return;
        }
        this.endCandidacy();
        this.becomeCandidate(now_ns);
        return;
      }
      this.request(now_ns);
      return;
    }
    if (!this.eligible(now_ns) || this.liveLeader(now_ns, options.id) || this.newLeader()) return;
    if (this.isUnseenCandidateInTime(now_ns)) return;
    const successor = this.successor(now_ns);
    if (successor >= 0 ? successor !== options.id : this.mustWaitForAnother(now_ns)) return;
    if (!this.majorityTrusted() || this.isHeldUp(this.ownIncarnation(), now_ns)) return;
    this.becomeCandidate(now_ns);
  }

  /**
   * Another one shall stand, and has not had the time for it yet. Replicas whose logs end in different configurations may
   * each take the other for the one to stand, so nobody is waited for without end.
   */
  private mustWaitForAnother(now_ns: number): boolean {
    return now_ns - this.leaderLostAt_ns < this.options.profile.takeoverTimeout_ns && this.isAnotherPreferred();
  }

  /** The candidate is the trusted, eligible voter with the highest priority, at equal priority the lowest id. */
  private isAnotherPreferred(): boolean {
    const { id } = this.options;
    const ownPriority = this.priority(id);
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      if (this.voterBootId(peer) === 0 || !standsBefore(this.priority(peer), peer, ownPriority, id)) continue;
      const mayLead = this.detector.trusts(peer) || this.detector.isUnderReview(peer);
      const isEligible = (this.peers[peer] as PeerWatch).background.body[BackgroundField.eligible] === 1;
      if (mayLead && isEligible) return true;
    }
    return false;
  }

  private priority(peer: number): number {
    return this.fromMain.body[ToBackgroundField.priorities + peer] as number;
  }

  private isSpare(peer: number): boolean {
    return ((this.fromMain.body[ToBackgroundField.spareMask] as number) & (1 << peer)) !== 0;
  }

  /**
   * A live replica promised an epoch above this leader's, to a candidate that came to nothing, and so can take no write
   * from this leader. It stays out until there is a later epoch; the leader itself is the one to begin that.
   */
  private outpromised(now_ns: number): boolean {
    let isOutpromised = false;
    if (this.leads() && this.majorityTrusted()) {
      for (let peer = 0; peer < MAX_REPLICAS; peer++) {
        if (peer === this.options.id || !this.detector.trusts(peer)) continue;
        if ((this.peers[peer] as PeerWatch).promisedEpoch() > this.candidateEpoch) isOutpromised = true;
      }
    }
    if (!isOutpromised) this.outpromisedSince_ns = Number.POSITIVE_INFINITY;
    else if (this.outpromisedSince_ns > now_ns) this.outpromisedSince_ns = now_ns;
    return now_ns - this.outpromisedSince_ns > this.options.profile.takeoverTimeout_ns;
  }

  /** A candidacy that cannot win only disturbs; self counts as trusted. */
  private majorityTrusted(): boolean {
    let voters = 0;
    let trusted = 0;
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      if (this.voterBootId(peer) === 0) continue;
      voters++;
      if (peer === this.options.id || this.detector.trusts(peer)) trusted++;
    }
    return trusted > voters >> 1;
  }

  private becomeCandidate(now_ns: number): void {
    const { options } = this;
    if (this.ownIncarnation() === 0) throw new Error(`replica ${options.id} is no voter and stands for election`);
    let counter = epochCounter(this.promisedEpoch);
    for (const watch of this.peers) counter = Math.max(counter, epochCounter(watch.promisedEpoch()));
    // In a new cluster that goes on with the state of another one the log says where epochs begin.
    counter = Math.max(counter, epochCounter(readU53(this.ownMain.body, MainField.appliedEpoch)));
    if (counter >= EPOCH_COUNTER_MAX) {
      options.onGrantFailure?.(options.id, EPOCHS_EXHAUSTED);
      this.standBack(now_ns);
      return;
    }
    const epoch = makeEpoch(counter + 1, this.ownIncarnation());
    if (!this.promiseTo(options.id, epoch, now_ns)) return;
    this.candidateEpoch = epoch;
    this.candidateSince_ns = now_ns;
    const { body } = this.toMainWriter;
    writeU53(body, ToMainField.leaderLostAt_ns, Number.isNaN(this.leaderLostAt_ns) ? now_ns : this.leaderLostAt_ns);
    writeU53(body, ToMainField.candidateAt_ns, now_ns);
    this.outpromisedSince_ns = Number.POSITIVE_INFINITY;
    this.takeoverAnnounced = false;
    for (const watch of this.peers) {
      watch.requestSequence = 0;
      watch.granted = false;
    }
    // The others are asked first, and shut the former leader out while this one does.
    this.request(now_ns);
    if (this.handOverLog(options.id, epoch, 0)) this.noticeLater(now_ns);
    else this.standBack(now_ns);
  }

  /** Asks every connected replica that has not granted yet, voter or not, but for spares. */
  private request(now_ns: number): void {
    const { fabric, options } = this;
    let queued = false;
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      const watch = this.peers[peer] as PeerWatch;
      if (peer === options.id || this.isSpare(peer)) continue;
      if (fabric.probeConnected(peer)) {
        const generation = fabric.outgoingLogGeneration(peer);
        const regrants = this.fromMain.body[ToBackgroundField.regrants + peer] as number;
        const isFirst =
          watch.requestSequence === 0 ||
          watch.requestLinkGeneration !== generation ||
          watch.requestRegrants !== regrants;
        const isStale = !watch.granted && now_ns - watch.requestSentAt_ns > options.profile.takeoverTimeout_ns / 4;
        if (generation !== 0 && !watch.mailboxWriteOutstanding && (isFirst || isStale)) {
          if (isFirst) {
            watch.requestSequence = this.nextRequestSequence++;
            watch.granted = false;
          }
          watch.requestLinkGeneration = generation;
          watch.requestRegrants = regrants;
          watch.requestSentAt_ns = now_ns;
          watch.mayHoldRequest = true;
          watch.mailboxWriteOutstanding = true;
          const writer = this.outboxWriters[peer] as SealedBlockWriter;
          writer.body[RequestField.kind] = REQUEST_KIND_PERMISSION;
          writeU53(writer.body, RequestField.epoch, this.candidateEpoch);
          writer.body[RequestField.requestSequence] = watch.requestSequence;
          writer.body[RequestField.linkGeneration] = generation;
          writer.publish();
          fabric.queueMailboxWrite(peer, KIND_MAILBOX_WRITE, isFirst); // what is only repeated wakes nobody
          queued = true;
        }
      }
    }
    if (queued) this.drain();
  }

  /** Tells the main plane of a majority's grants. */
  private announceMajority(now_ns: number): void {
    const { options } = this;
    let voters = 0;
    let grants = 0;
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      const voter = this.voterBootId(peer);
      if (voter === 0) continue;
      voters++;
      const watch = this.peers[peer] as PeerWatch;
      const isGranted = watch.granted && readU53(watch.grant.body, GrantField.bootId) === voter;
      if (peer === options.id || isGranted) grants++;
    }
    if (grants <= voters >> 1) return;
    this.takeoverAnnounced = true;
    const { body } = this.toMainWriter;
    writeU53(body, ToMainField.takeoverEpoch, this.candidateEpoch);
    writeU53(body, ToMainField.majorityAt_ns, now_ns);
    this.publishToMain();
    this.mainNotice = MAIN_NOTICE_NOW;
  }

  /**
   * Takes back what was asked for in a candidacy that is over. A request that a voter's guard refused would otherwise be
   * granted when the leader that it guarded dies, to a candidate that does not want it any more, and hold up the others.
   * The same empty message tells a candidate that it was granted.
   */
  private writeNotices(): void {
    const { fabric } = this;
    let queued = false;
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      const watch = this.peers[peer] as PeerWatch;
      if (!watch.mayHoldRequest && !watch.noticeDue) continue;
      if (watch.mailboxWriteOutstanding || !fabric.probeConnected(peer)) continue;
      const writer = this.outboxWriters[peer] as SealedBlockWriter;
      writer.body[RequestField.kind] = REQUEST_KIND_NONE;
      writer.publish();
      fabric.queueMailboxWrite(peer, KIND_WITHDRAWAL, watch.noticeDue);
      watch.mayHoldRequest = false;
      watch.noticeDue = false;
      watch.mailboxWriteOutstanding = true;
      queued = true;
    }
    if (queued) this.drain();
  }

  private endCandidacy(): void {
    this.candidateEpoch = EPOCH_NONE;
    this.takeoverAnnounced = false;
    writeU53(this.toMainWriter.body, ToMainField.takeoverEpoch, EPOCH_NONE);
  }

  /** Lets others try; the pause is random so that two candidates do not keep in step. */
  private standBack(now_ns: number): void {
    this.endCandidacy();
    this.standBackUntil_ns = now_ns + this.options.profile.takeoverTimeout_ns * (0.25 + this.options.random());
    this.publishToMain();
    this.mainNotice = MAIN_NOTICE_NOW;
  }

  private publishToMain(): void {
    const { body } = this.toMainWriter;
    writeU53(body, ToMainField.promisedEpoch, this.promisedEpoch);
    body[ToMainField.promisedTo] = this.promisedTo;
    body[ToMainField.trustedMask] = this.detector.trustedMask;
    this.toMainWriter.publish();
  }
}
