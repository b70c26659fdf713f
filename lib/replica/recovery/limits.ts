// Every limit of what outlives a process, and of coming back from it, named with its unit.

/** A snapshot file is written and read in pieces of this size, which its checksum depends on. */
export const PIECE_BYTES = 1024 * 1024;
/** The record of what the region holds: two configurations and a few numbers. */
export const ANCHOR_BYTES_MAX = 64 * 1024;
/** Largest snapshot that is kept beside the log unless the options say otherwise. */
export const SNAPSHOT_BYTES_DEFAULT = 1024 ** 3;
/** A snapshot is due when the log behind the last one takes this part of the ring. */
export const SNAPSHOT_DUE_FRACTION = 1 / 4;
/** Between two snapshots there are so many times the time that the last one took, so that they cost a bounded share. */
export const SNAPSHOT_PAUSE_FACTOR = 7;
export const SNAPSHOT_PAUSE_MIN_MS = 100;
/** After a failure, as when the file system is full. */
export const SNAPSHOT_RETRY_MS = 10_000;
/** Doubled each time that the state is too large to be kept, up to this. */
export const SNAPSHOT_RETRY_MAX_MS = 10 * 60_000;
/** A process that was killed may still be on its way out, and hold its region. */
export const REGION_BUSY_WAIT_MS = 3_000;
export const REGION_BUSY_POLL_MS = 20;
/** Entries that are validated or applied before the event loop gets its turn. */
export const ENTRIES_PER_TURN_MAX = 4096;
/** Rounds in which no donor was ready, and the time between them. */
export const DONOR_ROUNDS_MAX = 40;
export const DONOR_PAUSE_MS = 50;
