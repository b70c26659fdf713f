// The transfer of leadership that a leader is asked for: to whom, until when, and whether the successor could lead at once.
// Nothing is handed over here. The leader stops taking commands while a transfer is on, and cedes when its log is settled and
// the successor holds all of it; at the end of the time given it goes on leading instead.
import { type Configuration, voterWithId } from './configuration.js';
import type { Exchange } from './exchange.js';
import { BACKGROUND_BLOCK_OFFSET_WORDS, BACKGROUND_BLOCK_WORDS } from './limits.js';
import { chooseSuccessor, type LeaderView, type MembershipRefusal } from './membership.js';
import { SealedBlockReader } from './sealed-block.js';
import { BackgroundField } from './status-layout.js';

export class LeadershipTransfer {
  private to_ = -1;
  private end_ns = Number.POSITIVE_INFINITY;
  private readonly peerBackground = new SealedBlockReader(BACKGROUND_BLOCK_WORDS);

  constructor(
    private readonly view: LeaderView,
    private readonly exchange: Exchange,
  ) {}

  /** Replica that leadership is being transferred to, -1 if none. */
  get to(): number {
    return this.to_;
  }

  /** Begins a transfer to the voter, or to the best successor if none is named. Returns the successor, or why not. */
  begin(to: number | undefined, configuration: Configuration, end_ns: number): number | MembershipRefusal {
    const successor = to ?? chooseSuccessor(configuration, this.view);
    if (successor === null) {
      return {
        code: 'QUORATE_NO_SUCCESSOR',
        message: 'no other voter is up to date and trusted; leadership stays here',
      };
    }
    const voter = voterWithId(configuration, successor);
    if (voter === undefined || successor === this.view.id) {
      const why = voter === undefined ? 'is no voter' : 'is this replica, which leads already';
      return { code: 'QUORATE_NO_SUCCESSOR', message: `replica ${successor} ${why}; leadership stays here` };
    }
    this.to_ = successor;
    this.end_ns = end_ns;
    return successor;
  }

  /** There is none any more, for whatever reason. */
  end(): void {
    this.to_ = -1;
  }

  isOverdue(now_ns: number): boolean {
    return now_ns >= this.end_ns;
  }

  /** The successor is a voter in the life that is known, holds the whole log, is trusted, and can stand for election. */
  isSuccessorReady(configuration: Configuration): boolean {
    const { view, to_: id } = this;
    const bootId = view.linkedLife(id);
    const isVoter = bootId !== 0 && voterWithId(configuration, id)?.bootId === bootId;
    const holdsAll = view.isActive(id) && view.lagBytes(id) === 0;
    return isVoter && holdsAll && view.trusts(id) && this.isEligible(id);
  }

  /** The peer says that it can stand for election now. */
  private isEligible(id: number): boolean {
    const { peerBackground, exchange } = this;
    peerBackground.reset();
    peerBackground.read(exchange.words, exchange.peerViewOffset(id) + BACKGROUND_BLOCK_OFFSET_WORDS);
    return peerBackground.body[BackgroundField.eligible] === 1;
  }
}
