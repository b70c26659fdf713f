// The donor's part in the second stage of a restart: its own log, from a position that the receiver has, up to what is
// applied here. The bytes come from the ring as they stand there. While they are read a leader may recycle them: the
// receiver validates them by their chain, and takes nothing of what does not.
import type { Configuration } from '../../consensus/configuration.js';
import type { ChainPosition } from '../../consensus/entry.js';
import { tailBytes } from '../../consensus/surviving-log.js';
import { QuorateError } from '../../errors.js';
import type { DonorState } from '../transfer/donor.js';
import type { PieceSource } from '../transfer/snapshot-stream.js';

/** Bytes that are copied out of the ring in one go. */
const PIECE_BYTES = 256 * 1024;

class LogSource implements PieceSource {
  readonly bytesTotal: number;
  /** A leader may recycle them at any time. */
  readonly staysUntilTaken = false;
  private lsn: number;

  constructor(
    private readonly ring: Uint8Array,
    fromLsn: number,
    private endLsn: number,
  ) {
    this.lsn = fromLsn;
    this.bytesTotal = endLsn - fromLsn;
  }

  pull(): Uint8Array | null {
    const { ring, lsn, endLsn } = this;
    if (lsn >= endLsn) return null;
    const offset = lsn % ring.length;
    const lengthBytes = Math.min(endLsn - lsn, ring.length - offset, PIECE_BYTES);
    this.lsn += lengthBytes;
    return ring.subarray(offset, offset + lengthBytes);
  }

  taken(): void {}

  close(): void {
    this.endLsn = 0;
  }
}

/** What the donor has: its ring, where its applied log ends, and below which LSN the ring holds another log for certain. */
export interface LogHolder {
  readonly id: number;
  readonly ring: Uint8Array;
  readonly ringBeginLsn: number;
  readonly place: { readonly position: ChainPosition; readonly configuration: Configuration };
}

/** Throws QUORATE_BEHIND or QUORATE_LOG_RECYCLED. */
export function logAfter(holder: LogHolder, after: ChainPosition): DonorState {
  const { ring, ringBeginLsn, place, id } = holder;
  const { position, configuration } = place;
  if (position.lsn < after.lsn) {
    throw new QuorateError(
      'QUORATE_BEHIND',
      `replica ${id} has applied LSN ${position.lsn}, and its log is wanted from LSN ${after.lsn} on`,
    );
  }
  // Where nothing is missing the positions alone are compared, whatever the ring holds.
  const isHeld = after.lsn >= ringBeginLsn || after.lsn === position.lsn;
  if (!isHeld || tailBytes(after.lsn, position.lsn, ring.length) < 0) {
    throw new QuorateError(
      'QUORATE_LOG_RECYCLED',
      `the log of replica ${id} begins at LSN ${ringBeginLsn}, and is wanted from LSN ${after.lsn} on`,
    );
  }
  return { position, configuration, sessionsBytes: 0, source: new LogSource(ring, after.lsn, position.lsn) };
}
