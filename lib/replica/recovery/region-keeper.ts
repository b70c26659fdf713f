// Keeps the region of a replica worth coming back to: writes a snapshot of the state beside the log before the ring has
// recycled what follows the last one. It is written piece by piece, as for a state transfer, while commands go on; and no
// more often than takes a bounded share of the time, so that a small ring with a large state may have no snapshot that its
// log reaches back to. status() shows that.
import { errorCode, QuorateError } from '../../errors.js';
import { checksum } from '../../verbs/checksum.js';
import type { DonorState } from '../transfer/donor.js';
import { PieceReader, type PieceSource } from '../transfer/snapshot-stream.js';
import {
  PIECE_BYTES,
  SNAPSHOT_DUE_FRACTION,
  SNAPSHOT_PAUSE_FACTOR,
  SNAPSHOT_PAUSE_MIN_MS,
  SNAPSHOT_RETRY_MAX_MS,
  SNAPSHOT_RETRY_MS,
} from './limits.js';
import type { Anchor, KeptSnapshot, Region } from './region.js';

export interface RegionKeeperHost {
  readonly region: Region;
  readonly logBytes: number;
  readonly snapshotBytesMax: number;
  readonly appliedLsn: () => number;
  /** Below this LSN the own ring does not hold the log. */
  readonly ringBeginLsn: () => number;
  /** The state of this moment. */
  freeze(): DonorState;
  /** The state is being given to another replica: two streams of it at a time may cost a copy of all of it. */
  isGiving(): boolean;
  readonly onWarning: (error: Error) => void;
  /** How long the state machine may take for a piece of its state. Default: that of PieceReader. */
  readonly pieceTimeoutMs?: number;
}

/** What a replica that died now would leave behind. */
export interface RegionStatus {
  /** Directory of the region. */
  readonly path: string;
  /** Place in the log that the snapshot in it stands for; 0 while there is none yet. */
  readonly snapshotLsn: number;
  /** Size of that snapshot. */
  readonly snapshotBytes: number;
  /** The log in the region reaches back to there: if not, the region is of no use until the next snapshot. */
  readonly isUsable: boolean;
}

export class RegionKeeper {
  private isWriting = false;
  private isClosed = false;
  private notBefore_ms = 0;
  /** After the next failure. */
  private retryMs = SNAPSHOT_RETRY_MS;
  /** A limit that does not go away by itself was met: one warning is enough. */
  private isWarned = false;
  private writing: Promise<void> = Promise.resolve();
  /** What is being written. */
  private source: PieceSource | null = null;
  private pieces: PieceReader | null = null;
  private isInterrupted = false;

  constructor(private readonly host: RegionKeeperHost) {}

  get status(): RegionStatus {
    const { region } = this.host;
    const { anchor, path } = region;
    const snapshotLsn = anchor?.position.lsn ?? 0;
    return { path, snapshotLsn, snapshotBytes: anchor?.snapshot?.bytes ?? 0, isUsable: this.reachesBack(anchor) };
  }

  private reachesBack(anchor: Anchor | null): boolean {
    const { host } = this;
    if (anchor === null || this.isClosed) return false;
    return anchor.position.lsn >= host.ringBeginLsn() && anchor.position.lsn <= host.appliedLsn();
  }

  private isDue(): boolean {
    const { host } = this;
    const { anchor } = host.region;
    const appliedLsn = host.appliedLsn();
    if (appliedLsn === 0) return false;
    if (!this.reachesBack(anchor)) return true;
    return appliedLsn - (anchor as Anchor).position.lsn >= host.logBytes * SNAPSHOT_DUE_FRACTION;
  }

  /** Called now and then. Begins a snapshot if one is due. */
  look(): void {
    if (this.isWriting || this.isClosed || performance.now() < this.notBefore_ms) return;
    if (!this.isDue() || this.host.isGiving()) return;
    this.isWriting = true;
    this.isInterrupted = false;
    const begun_ms = performance.now();
    this.writing = this.write()
      .then(() => {
        const took_ms = performance.now() - begun_ms;
        this.notBefore_ms = performance.now() + Math.max(SNAPSHOT_PAUSE_MIN_MS, took_ms * SNAPSHOT_PAUSE_FACTOR);
        this.isWarned = false;
        this.retryMs = SNAPSHOT_RETRY_MS;
      })
      .catch((error: Error) => {
        const isPassing = this.isInterrupted;
        this.notBefore_ms = performance.now() + (isPassing ? SNAPSHOT_PAUSE_MIN_MS : this.retryMs);
        if (isPassing) return;
        // A state that is too large will hardly be smaller soon, and to find that out may take all of it.
        if (errorCode(error) === 'QUORATE_LIMIT') this.retryMs = Math.min(this.retryMs * 2, SNAPSHOT_RETRY_MAX_MS);
        this.warn(error);
      })
      .finally(() => {
        this.isWriting = false;
      });
  }

  /** The state is about to be frozen for another replica, which goes first. */
  makeWay(): void {
    if (this.source === null) return;
    this.isInterrupted = true;
    this.source.close();
    // A stream that is being waited for may never give its piece, and hears of its end only then.
    this.pieces?.interrupt(this.cancelled());
  }

  private checkGoesOn(): void {
    if (this.isClosed) throw new QuorateError('QUORATE_CLOSED', 'the replica was closed');
    if (this.isInterrupted) throw this.cancelled();
  }

  private cancelled(): QuorateError {
    return new QuorateError('QUORATE_CANCELLED', 'the state goes to another replica first');
  }

  private warn(error: Error): void {
    if (this.isClosed || this.isWarned) return;
    this.isWarned = true;
    const text = `no snapshot could be kept in the region ${this.host.region.path}: ${error.message}`;
    this.host.onWarning(new QuorateError(errorCode(error) ?? 'QUORATE_SYSTEM', text, { cause: error }));
  }

  private async write(): Promise<void> {
    const { region, snapshotBytesMax, pieceTimeoutMs } = this.host;
    const { position, configuration, sessionsBytes, source } = this.host.freeze();
    this.source = source;
    const pieces = new PieceReader(source, pieceTimeoutMs);
    this.pieces = pieces;
    let file: string | undefined;
    try {
      if (source.bytesTotal !== undefined && source.bytesTotal > snapshotBytesMax) throw tooLarge(snapshotBytesMax);
      const created = await region.createSnapshot();
      file = created.file;
      let kept: Omit<KeptSnapshot, 'file'>;
      try {
        const writer = new PieceWriter(snapshotBytesMax, (piece, at) =>
          created.handle.write(piece, 0, piece.length, at),
        );
        for (;;) {
          const piece = await pieces.pull();
          this.checkGoesOn(); // a stream that was closed ends as one that is complete
          if (piece === null) break;
          await writer.write(piece);
        }
        await writer.end();
        kept = { bytes: writer.bytes, checksum: writer.sum, sessionsBytes };
      } finally {
        await created.handle.close();
      }
      this.checkGoesOn();
      region.putAnchor({
        clusterId: configuration.clusterId,
        position,
        configuration,
        snapshot: { file, ...kept },
      });
    } catch (error) {
      if (file !== undefined) region.dropSnapshot(file);
      throw error;
    } finally {
      this.source = null;
      this.pieces = null;
      source.close();
    }
  }

  /** Nothing more is written. Resolves when the file is let go of. */
  async close(): Promise<void> {
    this.isClosed = true;
    this.pieces?.interrupt(new QuorateError('QUORATE_CLOSED', 'the replica was closed'));
    await this.writing;
  }
}

function tooLarge(bytesMax: number): QuorateError {
  return new QuorateError(
    'QUORATE_LIMIT',
    `the state has more than ${bytesMax} bytes: raise snapshotBytesMax, and see that /dev/shm has room for twice that`,
  );
}

/** Bytes of any length into pieces of one size. */
class PieceWriter {
  bytes = 0;
  /** Of the pieces so far. */
  sum = 0;
  private readonly piece = new Uint8Array(PIECE_BYTES);
  private filled = 0;

  constructor(
    private readonly bytesMax: number,
    private readonly put: (piece: Uint8Array, at: number) => Promise<{ bytesWritten: number }>,
  ) {}

  async write(bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      const part = Math.min(bytes.length - done, PIECE_BYTES - this.filled);
      this.piece.set(bytes.subarray(done, done + part), this.filled);
      this.filled += part;
      done += part;
      if (this.filled === PIECE_BYTES) await this.end();
    }
  }

  /** Writes what is not a whole piece, too: the last one. */
  async end(): Promise<void> {
    if (this.filled === 0) return;
    const { piece, filled, bytes } = this;
    if (bytes + filled > this.bytesMax) throw tooLarge(this.bytesMax);
    const whole = piece.subarray(0, filled);
    this.sum = checksum(whole, this.sum);
    const { bytesWritten } = await this.put(whole, bytes);
    if (bytesWritten !== filled)
      throw new QuorateError('QUORATE_SYSTEM', `${bytesWritten} of ${filled} bytes were written`);
    this.bytes += filled;
    this.filled = 0;
  }
}
