// The command block that the two planes of one replica share, in memory of this process only: what each tells the
// other, and validated copies of what the background plane read from the peers. Everything is sealed, so that neither
// plane takes a half-written record of the other and neither ever waits for the other.
import { MAX_REPLICAS, STATUS_WORDS } from './limits.js';
import { TO_BACKGROUND_WORDS, TO_MAIN_WORDS } from './status-layout.js';

const TO_MAIN_OFFSET = 0;
const TO_BACKGROUND_OFFSET = TO_MAIN_OFFSET + TO_MAIN_WORDS;
/** A cache line of its own for the word that the replication plane writes in every turn. */
const PROGRESS_OFFSET = TO_BACKGROUND_OFFSET + TO_BACKGROUND_WORDS;
const PROGRESS_WORDS = 32;
const PEER_VIEWS_OFFSET = PROGRESS_OFFSET + PROGRESS_WORDS;

/** Bytes of shared memory that an exchange needs. */
export const EXCHANGE_BYTES = (PEER_VIEWS_OFFSET + MAX_REPLICAS * STATUS_WORDS) * 4;

export class Exchange {
  /** Both planes construct their Exchange over the same memory (a SharedArrayBuffer, or one buffer in a simulation). */
  readonly words: Uint32Array;
  readonly toMainOffset = TO_MAIN_OFFSET;
  readonly toBackgroundOffset = TO_BACKGROUND_OFFSET;
  /** A word that changes with every turn of the replication plane: the sign that its event loop is not blocked. */
  readonly progressOffset = PROGRESS_OFFSET + PROGRESS_WORDS / 2;

  constructor(buffer: SharedArrayBuffer | ArrayBuffer) {
    if (buffer.byteLength < EXCHANGE_BYTES) {
      throw new RangeError(`exchange needs ${EXCHANGE_BYTES} bytes, got ${buffer.byteLength}`);
    }
    this.words = new Uint32Array(buffer);
  }

  /** Where the copy of a peer's status region begins (same block offsets inside it as in the region). */
  peerViewOffset(peer: number): number {
    return PEER_VIEWS_OFFSET + peer * STATUS_WORDS;
  }
}
