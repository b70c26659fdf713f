// How a transfer's staging memory is cut: how long its chunks are, and how many of them it holds; and how far announcements go.
import type { TransferGeometry } from '../../fabric/transfer-link.js';
import { CHUNK_BYTES, CHUNK_SOFTWARE_BYTES, CHUNKS_AHEAD, SLOTS, SLOTS_SOFTWARE } from './limits.js';

/** For so many bytes, undefined if nobody knows: no more memory than all of them need, which takes a while to make. */
export function transferGeometry(isSoftware: boolean, bytesTotal: number | undefined): TransferGeometry {
  const chunkBytes = isSoftware ? CHUNK_SOFTWARE_BYTES : CHUNK_BYTES;
  const slotsMax = isSoftware ? SLOTS_SOFTWARE : SLOTS;
  const chunks = bytesTotal === undefined ? slotsMax : Math.ceil(bytesTotal / chunkBytes);
  return { chunkBytes, slots: Math.max(1, Math.min(slotsMax, chunks)) };
}

/** Chunks that may be announced and not taken yet, of which as many as there are slots may stand in staging memory. */
export function chunksAhead(slots: number): number {
  return Math.max(slots, CHUNKS_AHEAD);
}
