// What the two ends of a link tell each other over the control channel, and the check of what came from there. A link
// has an initiator, which posts, and a responder, whose memory is reached; each end makes its own queue pair and sends
// the parameters that the other needs to connect to it.
import { QuorateError } from '../errors.js';

export type LinkKind = 'probe' | 'log' | 'message';

/** One end's queue pair. */
export interface QueuePairAddress {
  readonly qpNum: number;
  /** First packet sequence number that this end sends; random. */
  readonly psn: number;
  /** Eight groups of four hexadecimal digits; empty on InfiniBand fabrics that route by LID. */
  readonly gid: string;
  readonly lid: number;
  /** Largest path MTU that this end's port can take. */
  readonly mtuBytes: number;
}

/** Initiator to responder. */
export interface LinkRequest {
  readonly kind: LinkKind;
  /** Names this link at both ends. */
  readonly generation: number;
  readonly queuePair: QueuePairAddress;
  readonly logBytes: number;
  /** Message link: the initiator's stream, which is written on it. 0 otherwise. */
  readonly stream: number;
}

/** Where in the responder's memory the initiator may read and write. */
export interface RemoteRange {
  readonly address: number;
  readonly rkey: number;
}

/** Responder to initiator. */
export interface LinkReply {
  readonly queuePair: QueuePairAddress;
  /** Status region (probe link) or log (log link), for READs; nothing (address and rkey 0) on a message link. */
  readonly readable: RemoteRange;
  /**
   * Own mailbox slot (probe link), log (log link; rkey 0 where each grant names its own key) or message region, for WRITEs.
   */
  readonly writable: RemoteRange;
  /** Message link: up to where the responder has taken the stream; null if it hears of it for the first time. */
  readonly position: number | null;
}

function integer(value: unknown, max: number, what: string): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > max) {
    throw new QuorateError('QUORATE_PROTOCOL', `link parameters: ${what} is not an integer in 0..${max}`);
  }
  return value;
}

/** The value as an object of which nothing is known yet but what its fields are called. */
function record<Type>(value: unknown, what: string): { readonly [Key in keyof Type]?: unknown } {
  if (typeof value !== 'object' || value === null) {
    throw new QuorateError('QUORATE_PROTOCOL', `link parameters: ${what} is not an object`);
  }
  return value as { readonly [Key in keyof Type]?: unknown };
}

export function checkQueuePairAddress(value: unknown): QueuePairAddress {
  const from = record<QueuePairAddress>(value, 'queuePair');
  const gid = from.gid;
  if (typeof gid !== 'string' || !/^(|[0-9a-f]{4}(:[0-9a-f]{4}){7})$/.test(gid)) {
    throw new QuorateError('QUORATE_PROTOCOL', 'link parameters: gid is not eight groups of four hexadecimal digits');
  }
  const mtuBytes = integer(from.mtuBytes, 4096, 'mtuBytes');
  if (![256, 512, 1024, 2048, 4096].includes(mtuBytes)) {
    throw new QuorateError('QUORATE_PROTOCOL', `link parameters: ${mtuBytes} is no path MTU`);
  }
  return {
    qpNum: integer(from.qpNum, 2 ** 24 - 1, 'qpNum'),
    psn: integer(from.psn, 2 ** 24 - 1, 'psn'),
    gid,
    lid: integer(from.lid, 65535, 'lid'),
    mtuBytes,
  };
}

export function checkRemoteRange(value: unknown, what: string): RemoteRange {
  const from = record<RemoteRange>(value, what);
  return {
    address: integer(from.address, Number.MAX_SAFE_INTEGER, `${what}.address`),
    rkey: integer(from.rkey, 2 ** 32 - 1, `${what}.rkey`),
  };
}

export function checkLinkRequest(value: unknown): LinkRequest {
  const from = record<LinkRequest>(value, 'request');
  if (from.kind !== 'probe' && from.kind !== 'log' && from.kind !== 'message') {
    throw new QuorateError('QUORATE_PROTOCOL', 'link parameters: kind is neither "probe" nor "log" nor "message"');
  }
  return {
    kind: from.kind,
    generation: integer(from.generation, 2 ** 32 - 1, 'generation'),
    queuePair: checkQueuePairAddress(from.queuePair),
    logBytes: integer(from.logBytes, 2 ** 31, 'logBytes'),
    stream: integer(from.stream, Number.MAX_SAFE_INTEGER, 'stream'),
  };
}

export function checkLinkReply(value: unknown): LinkReply {
  const from = record<LinkReply>(value, 'reply');
  return {
    queuePair: checkQueuePairAddress(from.queuePair),
    readable: checkRemoteRange(from.readable, 'readable'),
    writable: checkRemoteRange(from.writable, 'writable'),
    position: from.position === null ? null : integer(from.position, Number.MAX_SAFE_INTEGER, 'position'),
  };
}
