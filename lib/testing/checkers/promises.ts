// Invariant 2: promised epochs never decrease at a voter, and nothing is granted that was not promised. Looks at what
// the voter tells itself and at what it publishes to others, since peers act on the latter.

import { formatEpoch } from '../../consensus/epoch.js';
import { BACKGROUND_BLOCK_WORDS, GRANT_BLOCK_OFFSET_WORDS, GRANT_BLOCK_WORDS } from '../../consensus/limits.js';
import { readU53, SealedBlockReader } from '../../consensus/sealed-block.js';
import { BackgroundField, GrantField } from '../../consensus/status-layout.js';
import type { SimLife } from '../sim-life.js';
import type { CheckContext, Checker } from './checker.js';

interface Book {
  promised: number;
  published: number;
  granted: number;
  readonly background: SealedBlockReader;
  readonly grant: SealedBlockReader;
}

export class PromiseChecker implements Checker {
  readonly invariant = 'promises never decrease';
  private readonly books = new Map<SimLife, Book>();

  constructor(private readonly context: CheckContext) {}

  /** Of lives whose disk outlives a process: what they had promised by then, for all to see. */
  private readonly promisedBefore = new Map<number, number>();

  onCrashed(life: SimLife): void {
    const book = this.books.get(life);
    this.books.delete(life);
    if (life.disk === null || book === undefined) return;
    const before = this.promisedBefore.get(life.bootId) ?? 0;
    this.promisedBefore.set(life.bootId, Math.max(before, book.published, book.granted));
  }

  afterBackground(life: SimLife): void {
    let book = this.books.get(life);
    if (book === undefined) {
      book = {
        promised: this.promisedBefore.get(life.bootId) ?? 0,
        published: this.promisedBefore.get(life.bootId) ?? 0,
        granted: 0,
        background: new SealedBlockReader(BACKGROUND_BLOCK_WORDS),
        grant: new SealedBlockReader(GRANT_BLOCK_WORDS),
      };
      this.books.set(life, book);
    }
    const { statusWords } = life.backgroundFabric;
    book.promised = this.advance(life, 'the promise', book.promised, life.background.promised);
    if (!book.background.read(statusWords, 0)) {
      this.context.world.fail(this.invariant, `${life.name} left its own status torn`);
    }
    const published = readU53(book.background.body, BackgroundField.promisedEpoch);
    book.published = this.advance(life, 'the published promise', book.published, published);
    if (!book.grant.read(statusWords, GRANT_BLOCK_OFFSET_WORDS)) return; // none so far
    const granted = readU53(book.grant.body, GrantField.epoch);
    book.granted = this.advance(life, 'the granted epoch', book.granted, granted);
    if (granted > published) {
      const text = `${life.name} granted epoch ${formatEpoch(granted)}, its promise is ${formatEpoch(published)}`;
      this.context.world.fail(this.invariant, text);
    }
  }

  private advance(life: SimLife, what: string, before: number, now: number): number {
    if (now < before) {
      const text = `${what} of ${life.name} went from ${formatEpoch(before)} to ${formatEpoch(now)}`;
      this.context.world.fail(this.invariant, text);
    }
    return Math.max(before, now);
  }
}
