// Every limit of the durable mode that is not part of a layout, named with its unit.

/** Version of what is in the directory; another one is refused. */
export const STORE_FORMAT = 2;
/** A segment of the log is about so long. */
export const SEGMENT_BYTES = 16 * 1024 * 1024;
/** A snapshot is taken when so much log has been written since the last one, unless the option says otherwise. */
export const SNAPSHOT_AFTER_BYTES_DEFAULT = 64 * 1024 * 1024;
export const SNAPSHOT_AFTER_BYTES_MIN = 64 * 1024;
export const SNAPSHOT_AFTER_BYTES_MAX = 2 ** 40;
/** Pieces of a snapshot are stored in values of at most so many bytes. */
export const SNAPSHOT_PIECE_BYTES = 1024 * 1024;
/** Pieces that are handed to the store and not written yet, at most. */
export const SNAPSHOT_PIECES_IN_FLIGHT_MAX = 8;
/** A snapshot that could not be taken is tried again after so long. */
export const SNAPSHOT_RETRY_MS = 1_000;
/** What was read is kept in memory up to so many bytes: next to nothing, for it is read once. */
export const STORE_CACHE_BYTES = 64 * 1024;
/** A takeover commits its first entry on the disks of a majority, and may take so much longer than in memory. */
export const TAKEOVER_EXTRA_NS = 500_000_000;
/** close() waits for what is being written for at most so long. */
export const CLOSE_TIMEOUT_MS = 5_000;
