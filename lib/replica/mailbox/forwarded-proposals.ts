// Proposals that are made where nobody leads: they go to the leader, and come back with what its state machine returned.
//
// What the outcome is, is told only when it is known. A command that its leader refused, or that never left this replica,
// was certainly not proposed, so it goes to the next leader. One that left without an answer may have been: with a session
// it is proposed again, under its number, which is applied once; without, its outcome is unknown, and it is never sent a
// second time.
//
// The order is kept, since a session's commands must come in order: whenever some have to go to another leader, they go in
// the order of their making, before those that come later.
import { QuorateError } from '../../errors.js';
import { OutcomeUnknownError } from '../pending-proposals.js';
import { whyGone } from '../proposals.js';
import type { ProposeResult, SessionCommand } from '../replica-options.js';
import { FORWARD_RETRY_MS } from './limits.js';
import type { Answer, Question } from './mailbox.js';
import { MessageKind } from './messages.js';

export interface ForwardedProposalsHost {
  readonly id: number;
  /** Who leads and is alive, as far as this replica knows. */
  leaderId(): number | undefined;
  /** The failure detector trusts the peer. */
  trusts(peer: number): boolean;
  proposeHere(command: Uint8Array, session: SessionCommand | undefined): Promise<ProposeResult<unknown>>;
  send(
    leader: number,
    command: Uint8Array,
    session: SessionCommand | undefined,
    settle: (answer: Answer | null) => void,
  ): Question | null;
  /** Takes the question back; false if it left this replica. */
  withdraw(question: Question): boolean;
  /** Its answer is not wanted any more. */
  forget(question: Question): void;
  notLeader(leader: number | undefined): QuorateError;
}

export interface ForwardedProposal {
  readonly command: Uint8Array;
  readonly session: SessionCommand | undefined;
  readonly timeoutMs: number;
  readonly resolve: (result: ProposeResult<unknown>) => void;
  readonly reject: (error: Error) => void;
}

/** The replica that was asked cannot propose anything: another one may. */
const NOT_HERE = new Set(['QUORATE_NOT_LEADER', 'QUORATE_CLOSED', 'QUORATE_REMOVED', 'QUORATE_NOT_A_MEMBER']);
/** Nor will it ever: only a later process under its id may. */
const NEVER_HERE = new Set(['QUORATE_CLOSED', 'QUORATE_REMOVED']);
/** The command was applied, whatever else happened. */
const APPLIED = new Set(['QUORATE_RESULT_TOO_LARGE', 'QUORATE_RESULT_NOT_SENDABLE']);

export function unknownWithin(timeoutMs: number): string {
  return `the outcome was not known within ${timeoutMs} ms: the command may or may not take effect`;
}

class Forwarded {
  timer: NodeJS.Timeout | undefined;
  /** Where it is under way, -1 while it waits for a leader. */
  peer = -1;
  question: Question | null = null;
  /** Distinguishes attempts at this replica, which cannot be given up. */
  attempt = 0;
  isSettled = false;
  /** Of the command, when it was proposed. */
  readonly lengthBytes: number;

  constructor(
    readonly proposal: ForwardedProposal,
    /** It left this replica, or was proposed here, and was not certainly refused. */
    public mayHaveHappened: boolean,
  ) {
    this.lengthBytes = proposal.command.length;
  }
}

export class ForwardedProposals {
  /** All that are not settled, in order. */
  private readonly all = new Set<Forwarded>();
  /** How many of them wait for a leader. */
  private parked = 0;
  private retry: NodeJS.Timeout | undefined;
  /** Leader that has just said that it does not lead; not asked again before the timer. */
  private refusedBy = -1;
  /** It has ended, and is not asked again at all: a command that it took with it would be one of unknown outcome. */
  private hasRefuserEnded = false;
  private lastLeader: number | undefined;

  constructor(private readonly host: ForwardedProposalsHost) {}

  get size(): number {
    return this.all.size;
  }

  /** Takes a proposal on; `mayHaveHappened` if an attempt of unknown outcome came before. */
  add(proposal: ForwardedProposal, mayHaveHappened = false): void {
    if (this.all.size === 0) this.hasLeaderChanged(); // meanwhile nobody has looked
    const forwarded = new Forwarded(proposal, mayHaveHappened);
    forwarded.timer = setTimeout(() => this.timedOut(forwarded), proposal.timeoutMs);
    this.all.add(forwarded);
    const mustWait = this.parked > 0; // behind those that wait
    this.parked++;
    if (!mustWait) this.send(forwarded);
  }

  /** Sends what waits, in order. */
  private sendParked(): void {
    const leader = this.host.leaderId();
    if (this.parked === 0 || leader === undefined || leader === this.refusedBy) return;
    for (const forwarded of this.all) {
      if (!forwarded.isSettled && forwarded.peer === -1 && !this.send(forwarded)) return;
    }
  }

  /** False if nobody is known to lead. */
  private send(forwarded: Forwarded): boolean {
    const leader = this.host.leaderId();
    if (leader === undefined || leader === this.refusedBy) return false;
    const { command, session } = forwarded.proposal;
    const gone = whyGone(command, forwarded.lengthBytes);
    if (gone !== null) {
      this.rejectKnown(forwarded, gone);
      return true;
    }
    const attempt = ++forwarded.attempt;
    if (leader === this.host.id) {
      this.underWay(forwarded, leader);
      this.host.proposeHere(command, session).then(
        (result) => {
          if (forwarded.attempt === attempt) this.settle(forwarded, () => forwarded.proposal.resolve(result));
        },
        (error: Error) => {
          if (forwarded.attempt !== attempt || forwarded.isSettled) return; // its time was over before
          this.refused(forwarded, (error as QuorateError).code, error);
        },
      );
      return true;
    }
    const question = this.host.send(leader, command, session, (answer) => {
      if (forwarded.attempt === attempt && !forwarded.isSettled) this.answered(forwarded, answer);
    });
    if (question === null) {
      this.rejectKnown(
        forwarded,
        new QuorateError(
          'QUORATE_BACKPRESSURE',
          `too much waits to be sent to replica ${leader} already; the command was not proposed: slow down and try again`,
        ),
      );
      return true;
    }
    forwarded.question = question;
    this.underWay(forwarded, leader);
    return true;
  }

  private underWay(forwarded: Forwarded, peer: number): void {
    forwarded.peer = peer;
    this.parked--;
  }

  private answered(forwarded: Forwarded, answer: Answer | null): void {
    forwarded.question = null;
    if (answer === null) {
      this.unknown(forwarded, `replica ${forwarded.peer} ended or lost its memory before it answered`);
      return;
    }
    if (answer.kind === MessageKind.proposed) {
      const { lsn, result, duplicate } = answer;
      this.settle(forwarded, () => forwarded.proposal.resolve({ lsn, result, duplicate }));
    } else if (answer.kind === MessageKind.failed) {
      const error =
        answer.code === 'QUORATE_OUTCOME_UNKNOWN'
          ? new OutcomeUnknownError(answer.text)
          : new QuorateError(answer.code, answer.text);
      this.refused(forwarded, answer.code, error);
    } else {
      this.unknown(forwarded, `replica ${forwarded.peer} answered something else`);
    }
  }

  /** The attempt ended without effect, as far as that can be known. */
  private refused(forwarded: Forwarded, code: string, error: Error): void {
    const peer = forwarded.peer;
    if (NOT_HERE.has(code)) {
      this.hasRefuserEnded = NEVER_HERE.has(code) || (this.hasRefuserEnded && this.refusedBy === peer);
      this.refusedBy = peer;
      this.park(forwarded);
      this.retrySoon();
    } else if (code === 'QUORATE_SESSION_GAP' && this.hasPredecessor(forwarded)) {
      // That one was refused for a moment in which this one was not. A gap is not applied anywhere: it goes once more.
      this.park(forwarded);
      this.retrySoon();
    } else if (code === 'QUORATE_OUTCOME_UNKNOWN') {
      this.unknown(forwarded, error.message);
    } else {
      this.rejectKnown(forwarded, error);
    }
  }

  /** An earlier command of its session is not settled. */
  private hasPredecessor({ proposal }: Forwarded): boolean {
    const { session } = proposal;
    if (session === undefined) return false;
    for (const { proposal: other } of this.all) {
      if (other === proposal) return false;
      if (other.session?.origin === session.origin && other.session.sequence < session.sequence) return true;
    }
    return false;
  }

  private retrySoon(): void {
    this.retry ??= setTimeout(() => {
      this.retry = undefined;
      if (!this.hasRefuserEnded) this.refusedBy = -1;
      this.sendParked();
    }, FORWARD_RETRY_MS);
  }

  private park(forwarded: Forwarded): void {
    if (forwarded.peer === -1) return;
    forwarded.peer = -1;
    forwarded.question = null;
    forwarded.attempt++;
    this.parked++;
  }

  /** Nobody will know what became of this attempt. */
  private unknown(forwarded: Forwarded, why: string): void {
    if (forwarded.proposal.session === undefined) {
      const { reject } = forwarded.proposal;
      this.settle(forwarded, () => reject(new OutcomeUnknownError(`${why}; the command may or may not take effect`)));
      return;
    }
    forwarded.mayHaveHappened = true;
    this.park(forwarded);
    this.retrySoon();
  }

  /** Who leads may have changed: called whenever that can be, which is often. */
  noticeLeader(): void {
    if (this.all.size === 0) return;
    if (this.hasLeaderChanged()) this.look();
    this.sendParked();
  }

  private hasLeaderChanged(): boolean {
    const leader = this.host.leaderId();
    if (leader === this.lastLeader) return false;
    this.lastLeader = leader;
    this.askAnybody();
    return true;
  }

  private askAnybody(): void {
    this.refusedBy = -1;
    this.hasRefuserEnded = false;
  }

  /** The messages to this peer begin anew: it is another process now. */
  streamEnded(peer: number): void {
    if (peer !== this.refusedBy) return;
    this.askAnybody();
    this.sendParked();
  }

  /** Looks after those that are under way at one that leads no more. */
  look(): void {
    const leader = this.host.leaderId();
    if (leader === undefined) return; // the one that led may go on, or have answered
    for (const forwarded of [...this.all]) {
      const { peer, question, proposal } = forwarded;
      if (forwarded.isSettled || question === null || peer === leader) continue;
      if (this.host.withdraw(question)) {
        this.park(forwarded);
      } else if (proposal.session !== undefined) {
        forwarded.mayHaveHappened = true;
        this.host.forget(question);
        this.park(forwarded);
      } else if (!this.host.trusts(peer)) {
        this.host.forget(question);
        this.unknown(forwarded, `replica ${peer}, to which it was forwarded, is gone`);
      }
      // One that lives answers by itself, and may know.
    }
    this.sendParked();
  }

  /** It has left this replica; it is given up, or taken back if that can be. */
  private isUnderWay(forwarded: Forwarded): boolean {
    const { peer, question } = forwarded;
    if (peer === -1) return false;
    if (question === null) return true;
    if (this.host.withdraw(question)) return false;
    this.host.forget(question);
    return true;
  }

  private timedOut(forwarded: Forwarded): void {
    const { proposal } = forwarded;
    const { timeoutMs } = proposal;
    if (this.isUnderWay(forwarded) || forwarded.mayHaveHappened) {
      this.settle(forwarded, () => proposal.reject(new OutcomeUnknownError(unknownWithin(timeoutMs))));
      return;
    }
    const leader = this.host.leaderId();
    const error =
      leader === undefined
        ? this.host.notLeader(undefined)
        : new QuorateError(
            'QUORATE_TIMEOUT',
            `the command could not be sent to replica ${leader}, the leader, within ${timeoutMs} ms; it was not proposed`,
          );
    this.settle(forwarded, () => proposal.reject(error));
  }

  /** It was not applied by this attempt; whether an earlier one did something is another question. */
  private rejectKnown(forwarded: Forwarded, error: Error): void {
    const isKnown = !forwarded.mayHaveHappened || APPLIED.has((error as QuorateError).code);
    const fate = isKnown
      ? error
      : new OutcomeUnknownError(`${error.message}; an earlier attempt may have been applied`);
    this.settle(forwarded, () => forwarded.proposal.reject(fate));
  }

  private settle(forwarded: Forwarded, tell: () => void): void {
    if (forwarded.isSettled) return;
    forwarded.isSettled = true;
    clearTimeout(forwarded.timer);
    this.all.delete(forwarded);
    if (forwarded.peer === -1) this.parked--;
    tell();
  }

  /** Rejects all: those that may have taken effect with outcome unknown, the others with `error`. */
  close(error: () => Error): void {
    clearTimeout(this.retry);
    for (const forwarded of [...this.all]) {
      const { proposal } = forwarded;
      const text = 'this replica was closed before the outcome of the command was known';
      const mayHappen = this.isUnderWay(forwarded) || forwarded.mayHaveHappened;
      const fate = mayHappen ? new OutcomeUnknownError(text) : error();
      this.settle(forwarded, () => proposal.reject(fate));
    }
  }
}
