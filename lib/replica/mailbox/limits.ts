// Limits of what replicas ask each other by messages, named with their units.

/** Largest result of a command, encoded, that is sent back to the replica that forwarded the command. */
export const FORWARDED_RESULT_BYTES_MAX = 256 * 1024;
/** How long propose() waits for a leader and its answer, by default. */
export const FORWARD_TIMEOUT_DEFAULT_MS = 5_000;
/** A leader that refused because it does not lead is asked again after this time, if nobody else leads by then. */
export const FORWARD_RETRY_MS = 5;
/** A leader that does not answer a follower's question within this time may lead no more. */
export const READ_INDEX_TIMEOUT_MS = 2_000;
/** While more than this waits for room in a peer's ring, no more of its proposals are taken: their answers would not fit. */
export const ANSWERS_QUEUED_BYTES_MAX = 4 * 1024 * 1024;
