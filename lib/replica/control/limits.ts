// Every limit of the control channel, named with its unit. Both ends of a connection rely on those marked "wire".
import { LAYOUT_VERSION } from '../../consensus/limits.js';

/** Version of the control protocol (wire); replicas with different versions refuse each other. */
export const PROTOCOL_VERSION = 4;
export { LAYOUT_VERSION };

export const CLUSTER_KEY_BYTES_MIN = 16;
export const CLUSTER_KEY_BYTES_MAX = 1024;

/** Largest payload of one frame (wire). Anything larger travels as a blob. */
export const FRAME_BYTES_MAX = 4 * 1024 * 1024;
/** Largest frame before both ends have accepted each other (wire). */
export const HELLO_FRAME_BYTES_MAX = 16 * 1024;
/** Nesting of arrays and maps in one frame (wire). */
export const VALUE_DEPTH_MAX = 16;
/** Values, keys included, in one frame (wire). */
export const VALUES_PER_FRAME_MAX = 65_536;
/** Bytes of a key of a map (wire). */
export const KEY_BYTES_MAX = 128;
/** Characters of the name of a request, message or blob type (wire). */
export const TYPE_CHARACTERS_MAX = 64;
/** Characters of an error's message that travel to the peer. */
export const ERROR_MESSAGE_CHARACTERS_MAX = 2000;

/** Bytes that wait for the kernel to take them; beyond it send() and request() fail with QUORATE_BACKPRESSURE. */
export const QUEUE_BYTES_MAX = 16 * 1024 * 1024;
/** On top of that, for the small answers that the protocol itself owes; a peer that exhausts it is disconnected. */
export const QUEUE_RESERVE_BYTES = 1024 * 1024;
/** Largest answer that may use the reserve; enough for any error. */
export const REPLY_BYTES_SMALL = 16 * 1024;
/** A blob adds chunks only while less than this is queued, so that requests do not wait behind it. */
export const BLOB_QUEUE_BYTES = 1024 * 1024;
/** Requests without an answer, per connection and direction (wire). */
export const REQUESTS_MAX = 1024;
/** Types of messages without a handler that a connection warns of, once each. */
export const UNHANDLED_TYPES_MAX = 16;
/** Longest timeout that a call takes. */
export const TIMEOUT_MS_MAX = 60 * 60 * 1000;

export const BLOB_BYTES_MAX = 2 ** 30;
export const BLOB_CHUNK_BYTES = 256 * 1024;
/** Bytes of one blob that the receiver has not consumed: what a slow reader can make the receiver hold (wire). */
export const BLOB_WINDOW_BYTES = 4 * 1024 * 1024;
/** A chunk takes at least this much of the window, so that many tiny chunks cannot hold much more memory (wire). */
export const BLOB_CHUNK_COST_BYTES_MIN = 4096;
/** Blobs under way at a time, per connection and direction (wire). */
export const BLOBS_MAX = 4;
/** How long the reader of a blob waits for the next chunk. */
export const BLOB_STALL_TIMEOUT_MS = 60_000;

/** From accepting or starting a connection to both ends having accepted each other. */
export const HANDSHAKE_TIMEOUT_MS = 5_000;
/** Sockets of a server, strangers included. */
export const CONNECTIONS_MAX = 64;
/** Connections of one peer. With at most 15 peers, no peer can take the places of the others. */
export const CONNECTIONS_PER_PEER_MAX = 4;
/** How long close() waits for what is queued and for the peer's end before it cuts the connection. */
export const CLOSE_GRACE_MS = 1_000;
/** Silence after which the kernel begins to probe the peer's host (once a second, ten times). */
export const KEEP_ALIVE_IDLE_MS = 5_000;
/** A warning that others can provoke is repeated at most this often, with the count of those in between. */
export const WARNING_INTERVAL_MS = 10_000;
/** Codes of such warnings that are counted one by one; peers can name codes of their own. */
export const WARNING_CODES_MAX = 32;
/** Connections that wait in the kernel to be accepted. */
export const LISTEN_BACKLOG = 128;

/** A dialer waits between attempts: doubled each time, with jitter, within these limits. */
export const DIAL_DELAY_MIN_MS = 20;
export const DIAL_DELAY_MAX_MS = 500;
/** A connection that lived this long makes the dialer start over with the smallest delay. */
export const DIAL_STABLE_MS = 1_000;
