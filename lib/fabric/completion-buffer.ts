// The completions that a fabric hands to the consensus core, and the book of operations outstanding on each peer's
// link: it guarantees one completion per operation even when a link dies and its queue pair is destroyed with
// operations on it. Preallocated; a full book is an error of the caller, who bounds what it posts.
import { MAX_REPLICAS } from '../consensus/limits.js';
import { FabricStatus } from './fabric.js';

export class CompletionBuffer {
  readonly completionPeer: Int32Array;
  readonly completionToken: Float64Array;
  readonly completionStatus: Int32Array;
  count = 0;
  private readonly tokens: Float64Array;
  private readonly heads = new Int32Array(MAX_REPLICAS);
  private readonly counts = new Int32Array(MAX_REPLICAS);

  private readonly mask: number;

  /**
   * `outstandingMax` operations per peer, a power of two, and `completionsMax` completions between two calls of take().
   */
  constructor(
    private readonly outstandingMax: number,
    private readonly completionsMax: number,
  ) {
    this.mask = outstandingMax - 1;
    if (outstandingMax < 1 || (outstandingMax & this.mask) !== 0) {
      throw new RangeError(`outstandingMax ${outstandingMax} is not a power of two`);
    }
    this.completionPeer = new Int32Array(completionsMax);
    this.completionToken = new Float64Array(completionsMax);
    this.completionStatus = new Int32Array(completionsMax);
    this.tokens = new Float64Array(MAX_REPLICAS * outstandingMax);
  }

  outstanding(peer: number): number {
    return this.counts[peer] as number;
  }

  /** Notes an operation that was queued to the peer. */
  posted(peer: number, token: number): void {
    const count = this.counts[peer] as number;
    if (count === this.outstandingMax) {
      throw new RangeError(`more than ${this.outstandingMax} operations outstanding to replica ${peer}`);
    }
    const place = ((this.heads[peer] as number) + count) & this.mask;
    this.tokens[peer * this.outstandingMax + place] = token;
    this.counts[peer] = count + 1;
  }

  /** The oldest outstanding operation of the peer completed (links complete in order). */
  completed(peer: number, status: number): void {
    const head = this.heads[peer] as number;
    if (this.counts[peer] === 0) throw new Error(`a completion from replica ${peer} to which nothing is outstanding`);
    this.counts[peer] = (this.counts[peer] as number) - 1;
    this.heads[peer] = (head + 1) & this.mask;
    this.add(peer, this.tokens[peer * this.outstandingMax + head] as number, status);
  }

  add(peer: number, token: number, status: number): void {
    if (this.count === this.completionsMax)
      throw new RangeError(`more than ${this.completionsMax} completions at once`);
    this.completionPeer[this.count] = peer;
    this.completionToken[this.count] = token;
    this.completionStatus[this.count] = status;
    this.count++;
  }

  /** The link is gone: everything outstanding on it failed. */
  failAll(peer: number): void {
    while ((this.counts[peer] as number) > 0) this.completed(peer, FabricStatus.failed);
  }
}
