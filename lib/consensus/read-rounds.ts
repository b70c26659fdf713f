// The book of a leader's read rounds. A read at the leader must not return what a later leader has made stale, so before
// it the leader proves that it was still the leader when the read was asked for: a majority of the voters, itself
// included, completes an operation that only the holder of this epoch's permission can, and that was posted *after* the
// question. One that was posted before proves nothing, however late its completion comes: it may have landed before
// another replica was let in. Requests and completions of one link are in order, so counting tells which is which.
//
// One round is open at a time; whoever asks meanwhile shares the next one.
import { MAX_REPLICAS } from './limits.js';

export class ReadRounds {
  /** Looked at for every completion; all else only while it is true. */
  isOpen = false;
  /** What must be applied before the reads of the open round. */
  readLsn = 0;
  /** Number of the latest round that was opened, and of the latest that was asked for. */
  private opened = 0;
  private requested = 0;
  private provenMask = 0;
  /** Per replica: operations outstanding that were posted before the round was opened. */
  private readonly earlier = new Int32Array(MAX_REPLICAS);

  /** Asks for a round that is opened from now on; returns its number. */
  request(): number {
    this.requested = this.opened + 1;
    return this.requested;
  }

  /** Whether a round waits to be opened and nothing is in its way. */
  get isDue(): boolean {
    return !this.isOpen && this.requested > this.opened;
  }

  /** Opens the round that was asked for; noteEarlier() must follow for each replica before anything is posted. */
  open(readLsn: number): void {
    if (!this.isDue) throw new Error('a read round was opened that nobody asked for, or inside another');
    this.opened = this.requested;
    this.isOpen = true;
    this.readLsn = readLsn;
    this.provenMask = 0;
  }

  /** So many operations to the replica are outstanding already: they prove nothing. */
  noteEarlier(replica: number, outstanding: number): void {
    this.earlier[replica] = outstanding;
  }

  /** The oldest operation outstanding to the replica completed. */
  completed(replica: number, isProof: boolean): void {
    const earlier = this.earlier[replica] as number;
    if (earlier > 0) this.earlier[replica] = earlier - 1;
    else if (isProof) this.provenMask |= 1 << replica;
  }

  /** What the replica proved counts no more: another life of it may come in its place. */
  forget(replica: number): void {
    this.provenMask &= ~(1 << replica);
  }

  hasProof(replica: number): boolean {
    return (this.provenMask & (1 << replica)) !== 0;
  }

  /** Whether nothing has been posted to the replica, of `outstanding` operations, that could prove anything. */
  needsProof(replica: number, outstanding: number): boolean {
    return !this.hasProof(replica) && outstanding <= (this.earlier[replica] as number);
  }

  /** The open round is over; returns its number. */
  close(): number {
    this.isOpen = false;
    return this.opened;
  }

  /** Leadership ended: no round that was asked for will be passed any more. */
  abandon(): void {
    this.isOpen = false;
    this.opened = this.requested;
  }
}
