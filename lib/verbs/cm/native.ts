/**
 * The connection manager's part of the contract with the native addon (see ../native.ts for the conventions). Two things
 * implement it: the addon, over librdmacm, and shm-channel.ts, for the processes of one host. The numbers of event types
 * are those of `<rdma/rdma_cma.h>`.
 */
import type { NativeObject, QpAttributes, QpState } from '../native.js';
import type { QueuePairEndpoint } from '../queue-pair.js';

/** Kinds of events, rdma_cm_event_type; see rdma_get_cm_event(3). */
export const CmEventType = {
  /** The address belongs to a device: rdma_resolve_addr(3). */
  ADDR_RESOLVED: 0,
  /** The address was not found. */
  ADDR_ERROR: 1,
  /** There is a path: rdma_resolve_route(3). */
  ROUTE_RESOLVED: 2,
  /** No path was found. */
  ROUTE_ERROR: 3,
  /** To a listener: a peer wants to connect. */
  CONNECT_REQUEST: 4,
  /** The peer accepted, and the queue pair is not the library's: rdma_establish(3) is to follow. */
  CONNECT_RESPONSE: 5,
  /** The connection could not be made. */
  CONNECT_ERROR: 6,
  /** The peer did not answer. */
  UNREACHABLE: 7,
  /** The peer refused. */
  REJECTED: 8,
  /** The connection is there. */
  ESTABLISHED: 9,
  /** It has ended: rdma_disconnect(3) by either side. */
  DISCONNECTED: 10,
  /** The device goes away: destroy what is on it. */
  DEVICE_REMOVAL: 11,
  /** The group was joined: rdma_join_multicast(3). */
  MULTICAST_JOIN: 12,
  /** The group could not be joined, or was lost. */
  MULTICAST_ERROR: 13,
  /** The address moved to another interface. */
  ADDR_CHANGE: 14,
  /** Late packets can come no more: the queue pair number is free. */
  TIMEWAIT_EXIT: 15,
} as const;
export type CmEventType = (typeof CmEventType)[keyof typeof CmEventType];

/** Most private data that connect() can send, bytes: rdma_connect(3). */
export const CONNECT_PRIVATE_DATA_BYTES = 56;
/** Most private data that accept() can send, bytes: rdma_accept(3). */
export const ACCEPT_PRIVATE_DATA_BYTES = 196;
/** Most private data that reject() can send, bytes: rdma_reject(3). */
export const REJECT_PRIVATE_DATA_BYTES = 148;

/** An address and a port of the connection manager's own port space (not that of TCP, though its rules are the same). */
export interface CmAddress {
  /** Numeric IPv4 or IPv6 address; a link-local one with "%interface". */
  host: string;
  /** 0 .. 65,535. */
  port: number;
}

/** What the two sides tell each other when they connect, see rdma_connect(3). */
export interface CmConnectionParameters {
  /**
   * Bytes of the peer's choice. On RDMA devices a received one is padded with zeros to the room that the message has.
   */
  privateData: Uint8Array;
  /** READs and atomics of the peer that this side serves at once. */
  responderResources: number;
  /** READs and atomics of this side in flight at once. */
  initiatorDepth: number;
  /** Hardware flow control (InfiniBand). */
  flowControl: boolean;
  /** Repetitions of unanswered requests, 0 .. 7. */
  retryCount: number;
  /** Repetitions while the peer has no receive posted, 0 .. 6; 7 = for ever. */
  rnrRetryCount: number;
  /** The queue pair has a shared receive queue. */
  srq: boolean;
  /** Of the queue pair. */
  qpNum: number;
}

export interface NativeCmEvent {
  /** A {@link CmEventType}, or another number that the library reports. */
  type: number;
  /** 0, a negative error number, or (REJECTED) the peer's reason. */
  status: number;
  /** Null if the id was let go of meanwhile. */
  id: NativeCmId | null;
  /** Of CONNECT_REQUEST: the id that listens; `id` is a new one then. Else null. */
  listener: NativeCmId | null;
  /** Of events that carry something of the peer's, else null. */
  parameters: CmConnectionParameters | null;
}

export interface NativeCmEventChannel extends NativeObject {
  readonly kind: 'CmEventChannel';
  /** Event channels belong to the thread that made them. */
  share(): number;
  createId(): NativeCmId;
  /** As NativeCompletionChannel.onEvent(). */
  onEvent(callback: ((event: NativeCmEvent) => void) | null): void;
  ref(): void;
  unref(): void;
}

export interface NativeCmId extends NativeObject {
  readonly kind: 'CmId';
  share(): number;
  /** Empty until the id is bound to a device. */
  readonly deviceName: string;
  readonly portNum: number;
  readonly localAddress: CmAddress | null;
  readonly peerAddress: CmAddress | null;
  bindAddress(address: CmAddress): void | Promise<void>;
  /** Ends with ADDR_RESOLVED or ADDR_ERROR, unless the promise rejects. */
  resolveAddress(source: CmAddress | null, destination: CmAddress, timeoutMs: number): void | Promise<void>;
  /** Ends with ROUTE_RESOLVED or ROUTE_ERROR, unless the promise rejects. */
  resolveRoute(timeoutMs: number): void | Promise<void>;
  listen(backlog: number): void | Promise<void>;
  connect(parameters: CmConnectionParameters): void;
  establish(): void;
  accept(parameters: CmConnectionParameters): void;
  reject(privateData: Uint8Array): void;
  disconnect(): void;
  /** Attributes that the queue pair needs to go to INIT, RTR or RTS. */
  queuePairAttributes(state: QpState): QpAttributes;
  /** Where the connection manager must be told what its own queue pair is (shm). */
  setEndpoint?(endpoint: QueuePairEndpoint): void;
}
