// Every limit of the consensus layer, named with its unit. Sizes here are part of the memory layout that replicas
// read and write in each other's memory, so all members of a cluster must run the same values (LAYOUT_VERSION). What follows
// from the size of the log ring stands beside the limits that it follows from.

/** Version of the shared memory layout; replicas with different versions refuse to connect. */
export const LAYOUT_VERSION = 6;
/** Replica ids are 0 .. MAX_REPLICAS - 1, so that sets of replicas fit one 32-bit mask. */
export const MAX_REPLICAS = 16;
/** Life numbers of processes are 1 .. this; they are drawn at random. */
export const BOOT_ID_MAX = 2 ** 48 - 1;
/** Election priorities are 0 .. this. */
export const PRIORITY_MAX = 1000;
/** Most bytes of a member's host name, as it stands in a configuration entry; DNS names have at most 253. */
export const HOST_BYTES_MAX = 255;
/** A learner is promoted only while it lacks at most this of the leader's log, and never more than a sixteenth of it. */
export const LEARNER_LAG_BYTES_MAX = 64 * 1024;
/** Entries start at multiples of this; a pad entry therefore always fits before the end of the ring. */
export const ENTRY_ALIGNMENT_BYTES = 64;
/** lsn, epoch, length, type, commit LSN, chain hash, origin, sequence. */
export const ENTRY_HEADER_BYTES = 56;
/** Smallest log ring: must hold several of the smallest useful entries and the reserve. */
export const LOG_BYTES_MIN = 64 * 1024;
/** Largest log ring: offsets into it must fit an unsigned 31-bit integer. */
export const LOG_BYTES_MAX = 2 ** 30;
/** An entry begins with its LSN. */
export const LSN_BYTES = 8;
/** Largest payload of one entry, whatever the ring's size. */
export const PAYLOAD_BYTES_MAX = 1024 * 1024;
/** An entry may take at most this fraction of the ring, so that several are always in flight. */
export const ENTRY_RING_FRACTION_MAX = 1 / 8;
/** Largest payload that a ring of this size takes. */
export function payloadBytesMax(logBytes: number): number {
  return Math.min(PAYLOAD_BYTES_MAX, logBytes * ENTRY_RING_FRACTION_MAX - ENTRY_ALIGNMENT_BYTES - ENTRY_HEADER_BYTES);
}
/** Part of the ring that commands may not use, so that a new leader can always append its noop and a configuration. */
export const LOG_RESERVE_FRACTION = 1 / 16;
/** Most bytes that one WRITE to a follower carries; larger suffixes go out in several. */
export const REPLICATION_BATCH_BYTES_MAX = 64 * 1024;
/** Most WRITEs in flight to one follower. */
export const REPLICATION_WINDOW_WRITES = 8;
/** Most bytes that one READ of another replica's log brings; more than the largest entry. */
export const TAKEOVER_READ_BYTES_MAX = 1280 * 1024;
/** Half of the workspace holds entries under construction, the other half what is read from other logs. */
export const WORKSPACE_BYTES_MIN = 2 * 2 * 1024 * 1024;
/** What a ring of this size needs: neither half ever holds more than the ring. */
export function workspaceBytesMin(logBytes: number): number {
  return Math.min(WORKSPACE_BYTES_MIN, 2 * logBytes);
}
/** Epoch runs that a grant publishes; a log with more of them is repaired from the last one published. */
export const EPOCH_RUNS_MAX = 40;
/** Most bytes of a configuration entry: MAX_REPLICAS members with the longest host names take 6 KiB. */
export const CONFIGURATION_BYTES_MAX = 8 * 1024;
/** Incarnation ordinals are below this, so that (counter, incarnation) fits a double's 53 bits. */
export const INCARNATION_MAX = 2 ** 20;

/** Layout of a replica's status region, all of it remotely readable. */
export const BACKGROUND_BLOCK_WORDS = 18;
export const MAIN_BLOCK_WORDS = 28;
export const GRANT_BLOCK_WORDS = 192;
export const BACKGROUND_BLOCK_OFFSET_WORDS = 0;
export const MAIN_BLOCK_OFFSET_WORDS = BACKGROUND_BLOCK_OFFSET_WORDS + BACKGROUND_BLOCK_WORDS;
export const GRANT_BLOCK_OFFSET_WORDS = MAIN_BLOCK_OFFSET_WORDS + MAIN_BLOCK_WORDS;
export const STATUS_WORDS = GRANT_BLOCK_OFFSET_WORDS + GRANT_BLOCK_WORDS;
export const STATUS_BYTES = STATUS_WORDS * 4;
/** What a probe reads while no grant is awaited: the background and the main block. */
export const STATUS_PROBE_BYTES = GRANT_BLOCK_OFFSET_WORDS * 4;
/** One mailbox slot per peer, writable by that peer alone: a message (a sealed block), and what recalls a lease. */
export const MAILBOX_MESSAGE_WORDS = 30;
export const MAILBOX_MESSAGE_BYTES = MAILBOX_MESSAGE_WORDS * 4;
export const MAILBOX_RECALL_WORDS = 2;
export const MAILBOX_RECALL_BYTES = MAILBOX_RECALL_WORDS * 4;
export const MAILBOX_SLOT_WORDS = MAILBOX_MESSAGE_WORDS + MAILBOX_RECALL_WORDS;
export const MAILBOX_SLOT_BYTES = MAILBOX_SLOT_WORDS * 4;
export const MAILBOX_BYTES = MAX_REPLICAS * MAILBOX_SLOT_BYTES;

/**
 * Messages between two replicas: what one of them writes in the other's memory, a report (a sealed block) and a ring.
 * Both ends have the same layout, so that an offset says where something stands at either.
 */
export const MESSAGE_REPORT_WORDS = 16;
export const MESSAGE_REPORT_BYTES = MESSAGE_REPORT_WORDS * 4;
/** A power of two. */
export const MESSAGE_RING_BYTES = 128 * 1024;
export const MESSAGE_REGION_BYTES = MESSAGE_REPORT_BYTES + MESSAGE_RING_BYTES;
/** Records begin at multiples of this, so the header of one that fills the end of the ring always fits. */
export const MESSAGE_RECORD_ALIGNMENT_BYTES = 32;
export const MESSAGE_RECORD_HEADER_BYTES = 32;
/** A record takes at most a quarter of the ring; longer messages are cut. */
export const MESSAGE_FRAGMENT_BYTES_MAX = MESSAGE_RING_BYTES / 4 - MESSAGE_RECORD_HEADER_BYTES;
/** Longest message: the largest command, and what is said about it. */
export const MESSAGE_BYTES_MAX = PAYLOAD_BYTES_MAX + 4096;
/** Messages that wait for room in the ring to one peer may take this much together; more are refused. */
export const MESSAGE_QUEUE_BYTES_MAX = 8 * 1024 * 1024;
/** The same for answers that are a word and no result, of which there may be one for each command that the peer has under way. */
export const MESSAGE_QUEUE_WITH_NOTES_BYTES_MAX = 32 * 1024 * 1024;
/** How often a replica may wake a peer that has not come to look yet. */
export const MESSAGE_WAKES_MAX = 16;
/** Operations outstanding on a message link, and what one of them writes at most. */
export const MESSAGE_WRITES_MAX = 8;
export const MESSAGE_WRITE_BYTES_MAX = 32 * 1024;
