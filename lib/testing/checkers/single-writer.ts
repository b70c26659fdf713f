// Invariant 1: at most one replica can write a voter's log at any time, and none between the end of a revocation and
// the next grant. Keeps its own book of who was let in, from the calls of the permission manager, and holds every byte
// that reaches a log against it, and whom the device would let in when a grant is published.
import { GRANT_BLOCK_OFFSET_WORDS, GRANT_BLOCK_WORDS } from '../../consensus/limits.js';
import { SealedBlockReader } from '../../consensus/sealed-block.js';
import { GrantField } from '../../consensus/status-layout.js';
import type { SimNode } from '../../fabric/sim/sim-node.js';
import type { SimLife } from '../sim-life.js';
import type { CheckContext, Checker } from './checker.js';

interface Book {
  writer: number;
  fence: number;
  readonly grant: SealedBlockReader;
  grantSequence: number;
}

export class SingleWriterChecker implements Checker {
  readonly invariant = 'single writer';
  private readonly books = new Map<SimNode, Book>();

  constructor(private readonly context: CheckContext) {}

  private book(node: SimNode): Book {
    let book = this.books.get(node);
    if (book === undefined) {
      book = { writer: -1, fence: 0, grant: new SealedBlockReader(GRANT_BLOCK_WORDS), grantSequence: 0 };
      this.books.set(node, book);
    }
    return book;
  }

  private fail(text: string): void {
    this.context.world.fail(this.invariant, text);
  }

  onEnabled(node: SimNode, peer: number): void {
    const book = this.book(node);
    if (book.writer >= 0) this.fail(`replica ${peer} may write the log of ${node.id} while ${book.writer} may, too`);
    book.writer = peer;
  }

  onRevoked(node: SimNode, peer: number): void {
    const book = this.book(node);
    if (book.writer !== peer) this.fail(`replica ${peer} revoked at ${node.id}, where ${book.writer} may write`);
    book.writer = -1;
  }

  afterBackground({ node, backgroundFabric }: SimLife): void {
    const book = this.book(node);
    const { grant } = book;
    if (!grant.read(backgroundFabric.statusWords, GRANT_BLOCK_OFFSET_WORDS)) return; // none so far
    if (grant.sequence === book.grantSequence) return;
    book.grantSequence = grant.sequence;
    const candidate = grant.body[GrantField.candidate] as number;
    for (const writer of node.writers()) {
      if (writer === candidate) continue;
      this.fail(`replica ${node.id} granted its log to replica ${candidate}, which replica ${writer} can still write`);
    }
  }

  onPlaced(node: SimNode, initiator: SimNode, logOffset: number, lengthBytes: number): void {
    const { writer } = this.book(node);
    if (writer === initiator.id) return;
    const who = writer < 0 ? 'nobody' : `replica ${writer}`;
    const what = `${lengthBytes} bytes of replica ${initiator.id} landed at offset ${logOffset} of the log of ${node.id}`;
    this.fail(`${what}, which ${who} may write`);
  }

  onFenceRaised(node: SimNode, epoch: number): void {
    const book = this.book(node);
    book.fence = Math.max(book.fence, epoch);
  }

  onAppended(node: SimNode, epoch: number): void {
    const book = this.book(node);
    if (epoch !== book.fence) {
      this.fail(`replica ${node.id} appended to its log in epoch ${epoch}, its fence stands at ${book.fence}`);
    }
    if (book.writer >= 0) {
      this.fail(`replica ${node.id} appended to its log, which replica ${book.writer} may write`);
    }
  }
}
