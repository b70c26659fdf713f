// The leader's book on one other replica: the links to it, the grant that it gave, what it was sent, acknowledged and
// applied. It is a record that the replication plane fills in; what it does by itself is to tell what of the peer's memory
// counts: a grant of this candidacy by the process that the links lead to, and what that process, no other, says of itself.
import type { EpochHistory } from './epoch-history.js';
import {
  EPOCH_RUNS_MAX,
  GRANT_BLOCK_OFFSET_WORDS,
  GRANT_BLOCK_WORDS,
  MAIN_BLOCK_OFFSET_WORDS,
  MAIN_BLOCK_WORDS,
} from './limits.js';
import { readU53, SealedBlockReader } from './sealed-block.js';
import { GrantField, MainField } from './status-layout.js';

export const PHASE_NONE = 0;
export const PHASE_REPAIRING = 1;
export const PHASE_ACTIVE = 2;
export const PHASE_BROKEN = 3;
export const PHASE_LAGGING = 4;
/** A snapshot is on its way to the follower; the log from its LSN on is kept for it. */
export const PHASE_INSTALLING = 5;
export const PHASE_NAMES = ['none', 'repairing', 'active', 'broken', 'lagging', 'installing'] as const;
/** Phases in which a voter that granted can be expected to acknowledge. */
export const REACHABLE_PHASES = [PHASE_NONE, PHASE_REPAIRING, PHASE_ACTIVE];
/** What the leader does for a peer's log at present. */
export type PeerPhase = (typeof PHASE_NAMES)[number];

/** Results of Follower.takeGrant(). */
export const GRANT_NONE = 0;
/** There may be one, which cannot be taken at this instant: look again. */
export const GRANT_LATER = 1;
export const GRANT_TAKEN = 2;

export class Follower {
  phase = PHASE_NONE;
  /** Life of the replica that the current links lead to; 0 while not linked. */
  linkBootId = 0;
  /** Process of that life. */
  linkProcessId = 0;
  sentLsn = 0;
  ackedLsn = 0;
  appliedLsn = 0;
  writesInFlight = 0;
  /** For so many flushes it is not one of those that a commit waits for, since one has waited for it in vain. */
  flushesPassedOver = 0;
  /** Request sequence of the grant that was used last. */
  usedGrant = 0;
  hasGrant = false;
  readonly grant = new SealedBlockReader(GRANT_BLOCK_WORDS);
  readonly main = new SealedBlockReader(MAIN_BLOCK_WORDS);
  grantAppliedLsn = 0;
  grantTailLsn = 0;
  grantTailEpoch = 0;

  /** Fresh links lead to the replica: what was known of its log, and its permission, was that of the links before. */
  linked(bootId: number, processId: number): void {
    this.linkBootId = bootId;
    this.linkProcessId = processId;
    this.phase = PHASE_NONE;
    this.hasGrant = false;
    this.ackedLsn = 0;
    this.flushesPassedOver = 0;
    this.main.reset();
  }

  unlinked(): void {
    this.linkBootId = 0;
    this.linkProcessId = 0;
    if (this.phase !== PHASE_NONE) this.phase = PHASE_BROKEN;
  }

  /** A takeover begins: no grant counts that was given before. */
  beginTakeover(): void {
    this.hasGrant = false;
    this.usedGrant = 0;
    this.ackedLsn = 0;
    this.phase = PHASE_NONE;
  }

  /** Leadership, or the takeover, has ended. */
  abandon(): void {
    this.phase = PHASE_NONE;
    this.hasGrant = false;
  }

  /** Takes the grant out of the exchange if it is a fresh one to `candidate` in `epoch`. The view is that of this peer. */
  takeGrant(words: Uint32Array, viewOffset: number, epoch: number, candidate: number, logBytes: number): number {
    const at = viewOffset + GRANT_BLOCK_OFFSET_WORDS;
    // What stands there and does not validate is being written this instant.
    if (!this.grant.read(words, at)) return words[at] !== 0 ? GRANT_LATER : GRANT_NONE;
    const grant = this.grant.body;
    if (readU53(grant, GrantField.epoch) !== epoch || grant[GrantField.candidate] !== candidate) return GRANT_NONE;
    const requestSequence = grant[GrantField.requestSequence] as number;
    if (requestSequence === this.usedGrant) return GRANT_NONE;
    // The grant is of the process that the links lead to, or it is of no use.
    if (this.linkBootId === 0 || readU53(grant, GrantField.bootId) !== this.linkBootId) return GRANT_NONE;
    if (readU53(grant, GrantField.processId) !== this.linkProcessId) return GRANT_NONE;
    if (this.writesInFlight > 0) return GRANT_LATER; // completions of the broken link first
    const appliedLsn = readU53(grant, GrantField.appliedLsn);
    const tailLsn = readU53(grant, GrantField.tailLsn);
    if (tailLsn < appliedLsn || tailLsn - appliedLsn > logBytes || !Number.isSafeInteger(tailLsn)) return GRANT_NONE;
    this.usedGrant = requestSequence;
    this.hasGrant = true;
    this.phase = PHASE_NONE;
    this.ackedLsn = 0;
    this.grantAppliedLsn = appliedLsn;
    this.appliedLsn = appliedLsn;
    this.grantTailLsn = tailLsn;
    this.grantTailEpoch = readU53(grant, GrantField.tailEpoch);
    return GRANT_TAKEN;
  }

  /** Which epochs the log had, where, that was granted. */
  copyGrantHistory(history: EpochHistory): void {
    const grant = this.grant.body;
    const runs = Math.min(grant[GrantField.runCount] as number, EPOCH_RUNS_MAX);
    history.clear();
    for (let run = 0; run < runs; run++) {
      const at = GrantField.runs + run * 4;
      history.note(readU53(grant, at), readU53(grant, at + 2));
    }
  }

  /** Looks how much of the log, which ends at `tailLsn` here, the replica has applied. */
  refreshApplied(words: Uint32Array, viewOffset: number, tailLsn: number): void {
    if (!this.main.read(words, viewOffset + MAIN_BLOCK_OFFSET_WORDS)) return;
    const { body } = this.main;
    if (readU53(body, MainField.processId) !== this.linkProcessId) return;
    const appliedLsn = readU53(body, MainField.appliedLsn);
    if (appliedLsn > this.appliedLsn && appliedLsn <= tailLsn) this.appliedLsn = appliedLsn;
  }

  /** Durable mode: how much of the log of `epoch`'s leader the replica has on disk, 0 if that is not known. */
  syncedLsn(words: Uint32Array, viewOffset: number, epoch: number): number {
    this.main.read(words, viewOffset + MAIN_BLOCK_OFFSET_WORDS);
    const { body } = this.main;
    // An entry of this epoch on its disk: so it has this leader's log, up to there, and had it before it let in another.
    if (readU53(body, MainField.processId) !== this.linkProcessId) return 0;
    if (readU53(body, MainField.syncedEpoch) !== epoch) return 0;
    return readU53(body, MainField.syncedLsn);
  }

  /** Epoch that the replica says it leads in, 0 if it does not lead. */
  leaderEpoch(words: Uint32Array, viewOffset: number): number {
    this.main.read(words, viewOffset + MAIN_BLOCK_OFFSET_WORDS);
    return readU53(this.main.body, MainField.leaderEpoch);
  }
}
