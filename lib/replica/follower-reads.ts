// Linearizable reads at a follower. It asks the leader up to where it must have applied the log, the *read index*, applies
// that much, and reads its own state. Reads share questions: one is under way at a time, and whoever asks meanwhile shares
// the next one, since a question that was sent before a read began says nothing about that read.
import { QuorateError } from '../errors.js';

/** What a leader answers. */
export interface ReadIndex {
  /** In which it led when it was asked. */
  readonly epoch: number;
  /** Everything that was acknowledged before it was asked is below. */
  readonly lsn: number;
}

interface WaitingRead {
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
  /** Known once the question is answered. */
  lsn: number;
}

export interface FollowerReadsOptions {
  /** Asks the leader; rejects if there is none, or it does not answer. */
  readonly ask: () => Promise<ReadIndex>;
  /** An answer came; the log is known to be committed up to there. */
  readonly onAnswer: (index: ReadIndex) => void;
  readonly appliedLsn: () => number;
}

export class FollowerReads {
  /** Those that no question was sent for yet. */
  private next = new Set<WaitingRead>();
  /** Those that a question is under way for; none of them may be left to wait for its answer. */
  private asking: Set<WaitingRead> | null = null;
  /** The question is asked within this turn. */
  private isAboutToAsk = false;
  /** Those whose LSN is known and not applied yet. */
  private readonly indexed = new Set<WaitingRead>();
  /** Number of the question under way; the answer to an earlier one comes too late. */
  private question = 0;

  constructor(private readonly options: FollowerReadsOptions) {}

  /** Reads that wait. */
  get size(): number {
    return this.next.size + (this.asking?.size ?? 0) + this.indexed.size;
  }

  /** Resolves when the state reflects all that was acknowledged before the call. */
  join(timeoutMs: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.drop(read);
        const text = `no read index was known and applied within ${timeoutMs} ms; nothing was changed: read again`;
        reject(new QuorateError('QUORATE_TIMEOUT', text));
      }, timeoutMs);
      const read: WaitingRead = {
        resolve: () => {
          clearTimeout(timer);
          resolve();
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(error);
        },
        lsn: 0,
      };
      this.next.add(read);
      if (this.asking === null) this.ask();
    });
  }

  private drop(read: WaitingRead): void {
    this.next.delete(read);
    this.asking?.delete(read);
    this.indexed.delete(read);
  }

  private ask(): void {
    this.asking = new Set();
    this.isAboutToAsk = true;
    // All reads of this turn share the question.
    queueMicrotask(() => void this.askNow());
  }

  private async askNow(): Promise<void> {
    const question = ++this.question;
    this.isAboutToAsk = false;
    this.asking = this.next;
    this.next = new Set();
    try {
      const index = await this.options.ask();
      if (question !== this.question) return;
      for (const read of this.asking) {
        read.lsn = index.lsn;
        this.indexed.add(read);
      }
      this.asking = null;
      if (this.next.size > 0) this.ask();
      this.options.onAnswer(index);
      this.look();
    } catch (error) {
      if (question !== this.question) return;
      const failed = this.asking ?? new Set();
      this.asking = null;
      for (const { reject } of failed) reject(error as Error);
      if (this.next.size > 0) this.ask();
    }
  }

  /** Somebody else leads now: whoever waits for the answer of the leader before asks that one instead. */
  leaderChanged(): void {
    const { asking } = this;
    if (asking === null || this.isAboutToAsk) return;
    this.question++;
    this.asking = null;
    this.next = new Set([...asking, ...this.next]);
    if (this.next.size > 0) this.ask();
  }

  /** Something may have been applied. */
  look(): void {
    if (this.indexed.size === 0) return;
    const appliedLsn = this.options.appliedLsn();
    for (const read of this.indexed) {
      if (read.lsn > appliedLsn) continue;
      this.indexed.delete(read);
      read.resolve();
    }
  }

  rejectAll(error: () => Error): void {
    const all = [...this.next, ...(this.asking ?? []), ...this.indexed];
    this.next = new Set();
    if (this.asking !== null) this.asking = new Set();
    this.indexed.clear();
    for (const { reject } of all) reject(error());
  }
}
