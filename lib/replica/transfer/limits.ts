// Every limit of the state transfer, named with its unit.

/**
 * Chunks of the donor's staging memory: so large that a READ costs more than what is said about it, for which a processor has to
 * fetch everything from memory again, since the bytes of a chunk have taken its caches.
 */
export const CHUNK_BYTES = 4 * 1024 * 1024;
/** Of devices whose protocol runs on the host's processors: a chunk is many READs there. */
export const CHUNK_SOFTWARE_BYTES = 64 * 1024;
/** Chunks that stand ready at the donor or are under way: what a transfer holds in memory at either end. */
export const SLOTS = 4;
/** Of devices whose protocol runs on the host's processors: their chunks are smaller. */
export const SLOTS_SOFTWARE = 32;
/**
 * Chunks that were announced and not taken yet, where no staging memory is needed for them (no fewer than there are slots):
 * so many that neither end waits for the other when one of them has to wait for a processor.
 */
export const CHUNKS_AHEAD = 16;
/** Chunks that a donor announces at a time to a receiver that has some to READ: what is said about chunks costs both event loops a turn. */
export const CHUNKS_ANNOUNCED = 4;
/** For the same reason the receiver says what it took by so many parts of the slots, or of the chunks ahead. */
export const TAKEN_PARTS = 2;
/** READs of whole chunks in flight; more would only push each other out of the processor's cache. */
export const CHUNK_READS_MAX = 4;
/** A receiver takes no more than so much memory for a transfer, whatever the donor proposes. */
export const CHUNK_BYTES_MAX = 4 * 1024 * 1024;
export const SLOTS_MAX = 64;
export const STAGING_BYTES_MAX = 64 * 1024 * 1024;
/** A state machine that gives no piece of its state for so long is not waited for. */
export const PIECE_TIMEOUT_MS = 20_000;
/** Pieces without a byte, one after the other: a state machine that gives more of them will never come to an end. */
export const EMPTY_PIECES_MAX = 65_536;
/** Session table within a snapshot. */
export const SESSIONS_BYTES_MAX = 64 * 1024 * 1024;
/** A whole snapshot, state and sessions. */
export const SNAPSHOT_BYTES_MAX = 2 ** 40;
/** For state machines without restoreChunks(), whose snapshot has to be in memory as one piece. */
export const RESTORE_WHOLE_BYTES_MAX = 2 ** 31;
/** Transfers that a replica serves as donor at a time. */
export const DONATIONS_MAX = 2;
/** To freeze the state, connect and, when a transfer is taken over from another donor, find the place where it stopped. */
export const OPEN_TIMEOUT_MS = 60_000;
/** The same where the log is wanted, for which nothing is frozen: a replica that comes back asks another one then. */
export const LOG_OPEN_TIMEOUT_MS = 5_000;
/** Neither chunk nor news of one for so long: the receiver tries another donor. */
export const STALL_TIMEOUT_MS = 20_000;
/** A receiver that takes nothing for so long is given up by the donor. */
export const IDLE_TIMEOUT_MS = 60_000;
/** All of a transfer, over all donors, as the leader waits for it. */
export const ORDER_TIMEOUT_MS = 60 * 60_000;
/** Progress is told at each change of state, and in between at most so often. */
export const PROGRESS_INTERVAL_MS = 100;
