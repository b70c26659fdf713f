/**
 * The whole contract between JavaScript and the native addon, in one file: what `native/addon` exports, with the
 * types, units and error codes of every call. `load-addon.ts` returns an object of type {@link NativeAddon}; only the
 * files of `lib/verbs` use it, and they give it the public face of `quorate/verbs`. The numbers of enumerations are
 * those of `<infiniband/verbs.h>`.
 *
 * Conventions of every call:
 * - A wrong type or a nonsensical value throws a `TypeError` with code `QUORATE_INVALID_ARGUMENT`; a number that is
 *   negative, NaN, fractional or too large throws a `RangeError` with code `QUORATE_OUT_OF_RANGE`; an object that was
 *   closed throws code `QUORATE_CLOSED`. Nothing that JavaScript passes can crash the process.
 * - Everything else that fails throws an error of the class given to {@link NativeAddon.setErrorClass}, with `code`,
 *   and `errno` (positive, as in errno(3)) and `syscall` where a system call or verb was involved.
 * - Addresses and lengths are JavaScript numbers: user-space addresses are below 2^53. 64-bit values that may exceed
 *   2^53 are `bigint`, GUIDs and GIDs are strings.
 * - Objects may be used from one thread only, the one that made or adopted them; {@link NativeObject.share} and
 *   {@link NativeAddon.adopt} give another thread of the process its own JavaScript object on the same native object.
 */
import type { NativeCmEventChannel } from './cm/native.js';

// ---------------------------------------------------------------------------------------------------------------
// Layout of the hot path: numbers in Float64Arrays, one stride per request or completion.

/** Doubles per work request in PostList.workRequests. */
export const WR_STRIDE = 16;
/** Doubles per completion in PostList.completions. */
export const WC_STRIDE = 12;

/** Index of each field of a work request, counted from the start of the request. */
export const WR = {
  /** A {@link WrOpcode} or {@link OP_FENCED_COPY}. */
  op: 0,
  /** Slot of the queue pair (`bindQueuePair`); for a fenced copy the slot of the fence (`bindFence`). */
  slot: 1,
  /** Comes back in the completion; an integer below 2^53. */
  wrId: 2,
  /** Local address: source of WRITE and SEND, target of READ and of the old value of an atomic. */
  localAddress: 3,
  /** Bytes, below 2^32. */
  length: 4,
  /** Key of the memory region at localAddress. */
  lkey: 5,
  /** Remote address; for a fenced copy the target address in this process. */
  remoteAddress: 6,
  /** Key of the peer's memory region. */
  rkey: 7,
  /** Compare value (CAS) or addend (FAA), low and high 32 bits. */
  compareAddLow: 8,
  /** See compareAddLow. */
  compareAddHigh: 9,
  /** New value (CAS), low and high 32 bits. */
  swapLow: 10,
  /** See swapLow. */
  swapHigh: 11,
  /** 32 bits for the completion at the peer. */
  immData: 12,
  /** {@link SendFlags} without SIGNALED, which is set unless {@link POST_UNSIGNALED} is. */
  sendFlags: 13,
  /** Fenced copy: goes ahead only if the fence holds exactly this epoch. */
  epoch: 14,
  /** Not used; 0. */
  reserved: 15,
  /** UD: number of the queue pair that the message is for. Shares its place with an operand of atomics, as the next two. */
  remoteQpNum: 8,
  /** UD: the qkey that the message carries; with the highest bit set the sending queue pair's own goes out instead. */
  remoteQkey: 9,
  /** UD: slot of the address handle (`bindAddressHandle`). */
  addressHandle: 10,
  /** LOCAL_INV and SEND_WITH_INV: key of the memory window. Shares its place with immData. */
  invalidateRkey: 12,
} as const;

/** Index of each field of a completion. */
export const WC = {
  /** That of the request. */
  wrId: 0,
  /** A WcStatus, or {@link POST_REFUSED}, or {@link FENCED}. */
  status: 1,
  /** A {@link WcOpcode}, or {@link OP_FENCED_COPY}; undefined unless status is 0. */
  opcode: 2,
  /** Bytes received or read. */
  byteLen: 3,
  /** Number of the own queue pair. */
  qpNum: 4,
  /** Valid if wcFlags has {@link WC_WITH_IMM}; with {@link WC_WITH_INV} the key that the sender invalidated. */
  immData: 5,
  /** The device's own code; the errno of a request that was refused. */
  vendorErr: 6,
  /** Bits: {@link WC_GRH}, {@link WC_WITH_IMM}. */
  wcFlags: 7,
  /** Receives of UD: number of the queue pair that sent the message; else 0. */
  srcQpNum: 8,
} as const;

/** Index of each field of {@link NativePostList.call}. */
export const CALL = { count: 0, spinNs: 1, wanted: 2, filled: 3 } as const;

/**
 * Bit of the sendFlags of a request in a PostList: it yields a completion only if it fails. Requests before a signaled
 * one of the same queue pair have ended when that one completes; their places in the queues are free then, so one in
 * every few must be signaled.
 */
export const POST_UNSIGNALED = 65_536;
/** Opcode of a copy inside this process that goes ahead only while a fence holds the epoch of the request. */
export const OP_FENCED_COPY = 100;
/** Status: the request never reached the device; `vendorErr` holds the errno. */
export const POST_REFUSED = 1000;
/** Status: the fence held another epoch, so this request and all behind it in the same submit were not executed. */
export const FENCED = 1001;
/** Bit of wcFlags: the first GRH_BYTES of the receive buffer hold the global routing header (UD). */
export const WC_GRH = 1;
/**
 * Room for the routing header that every receive of UD begins with: the message is behind it, and `byteLen` counts both.
 */
export const GRH_BYTES = 40;
/** Bit of wcFlags: immData is valid. */
export const WC_WITH_IMM = 2;

/** Bit of wcFlags: the sender invalidated a memory window of this side, whose key comes with the completion. */
export const WC_WITH_INV = 8;

/** Slots of each kind (queue pairs, fences, memories) of one PostList. */
export const POST_LIST_SLOTS = 64;
/** Upper limit of `maxWorkRequests` and `maxCompletions` of a PostList. */
export const POST_LIST_MAX_ENTRIES = 65_536;
/** Upper limit of `spinNs` of one submit: a thread that spins does not see `worker.terminate()`. */
export const MAX_SPIN_NS = 10_000_000_000;
/** Upper limit of `timeoutNs` of one waitWord, for the same reason. */
export const MAX_WAIT_NS = 60_000_000_000;

/** Operations of work requests, see ibv_post_send(3). */
export const WrOpcode = {
  /** Local memory to remote memory; the far end notices nothing. */
  RDMA_WRITE: 0,
  /** The same, and it uses up a receive of the far end, whose completion carries immData. */
  RDMA_WRITE_WITH_IMM: 1,
  /** Local memory to the buffer of a receive that the far end has posted. */
  SEND: 2,
  /** The same with 32 bits of immData in the completion of the receive. */
  SEND_WITH_IMM: 3,
  /** Remote memory to local memory. RC only. */
  RDMA_READ: 4,
  /** Puts `swap` into 8 bytes of remote memory if they hold `compareAdd`; the old value goes to local memory. RC only. */
  COMPARE_SWAP: 5,
  /** Adds `compareAdd` to 8 bytes of remote memory; the old value goes to local memory. RC only. */
  FETCH_ADD: 6,
  /** Takes back a memory window of type 2. */
  LOCAL_INV: 7,
  /** Binds a memory window of type 2; not in a PostList. */
  BIND_MW: 8,
  /** A SEND that invalidates an rkey of the far end when it is received. */
  SEND_WITH_INV: 9,
} as const;
/** One of the values of the constant {@link WrOpcode}. */
export type WrOpcode = (typeof WrOpcode)[keyof typeof WrOpcode];

/** What a completion is about, see ibv_poll_cq(3). */
export const WcOpcode = {
  /** A SEND of any kind has been taken by the far end (RC) or has left (UC, UD). */
  SEND: 0,
  /** A WRITE is in the far end's memory (RC) or has left (UC). */
  RDMA_WRITE: 1,
  /** The data are in local memory. */
  RDMA_READ: 2,
  /** The old value is in local memory. */
  COMPARE_SWAP: 3,
  /** The old value is in local memory. */
  FETCH_ADD: 4,
  /** A memory window is bound. */
  BIND_MW: 5,
  /** A memory window is invalid. */
  LOCAL_INV: 6,
  /** A message is in the buffer of a receive. */
  RECV: 128,
  /** A WRITE with immediate data came; it used up a receive. */
  RECV_RDMA_WITH_IMM: 129,
} as const;
/** One of the values of the constant {@link WcOpcode}. */
export type WcOpcode = (typeof WcOpcode)[keyof typeof WcOpcode];

/** Flags of send requests, see ibv_post_send(3). Bits. */
export const SendFlags = {
  /** Begins only when the READs and atomics before it have completed. RC. */
  FENCE: 1,
  /** Yields a completion when it succeeds; one that fails yields one in any case. */
  SIGNALED: 2,
  /** The completion of the receive at the far end raises an event there also if only solicited ones do. */
  SOLICITED: 4,
  /** The data are taken before the call returns, up to `maxInlineData` bytes: no lkey is needed, and the memory is free. */
  INLINE: 8,
  /**
   * RDMA_READ on a device with {@link Context.checksummedReads}: the completion brings the {@link checksum} of what was
   * READ, which costs nothing beside the copy. Not of verbs, and not in a PostList.
   */
  CHECKSUM: 131_072,
  /** Beside CHECKSUM: of what the READs before brought, too, from the last one on that had CHECKSUM without this. */
  CHECKSUM_CONTINUED: 262_144,
} as const;

/** Rights to registered memory or through a queue pair, see ibv_reg_mr(3) and ibv_modify_qp(3). Bits. */
export const Access = {
  /** The device may write: receives, READs, old values of atomics. REMOTE_WRITE and REMOTE_ATOMIC need it. */
  LOCAL_WRITE: 1,
  /** Peers may WRITE. */
  REMOTE_WRITE: 2,
  /** Peers may READ. */
  REMOTE_READ: 4,
  /** Peers may COMPARE_SWAP and FETCH_ADD. */
  REMOTE_ATOMIC: 8,
  /** Memory windows may be bound to the region. */
  MW_BIND: 16,
  /** Addresses count from 0, the first byte of the region or of the window of type 2. */
  ZERO_BASED: 32,
  /** Pages may be missing until they are used, see ibv_reg_mr(3). */
  ON_DEMAND: 64,
  /** The memory is known to be of huge pages. */
  HUGETLB: 128,
  /** Peers may ask that what they wrote is visible to all; see ibv_reg_mr(3). */
  FLUSH_GLOBAL: 256,
  /** Peers may ask that what they wrote is persistent; see ibv_reg_mr(3). */
  FLUSH_PERSISTENT: 512,
  /** The device may place the bytes of a request in any order. One that cannot ignores it. */
  RELAXED_ORDERING: 1_048_576,
} as const;

/** States of a queue pair, see ibv_modify_qp(3). */
export const QpState = {
  /** Just made; takes nothing. */
  RESET: 0,
  /** Receives can be posted. */
  INIT: 1,
  /** Ready to receive: requests of the peer are served. */
  RTR: 2,
  /** Ready to send: requests can be posted. */
  RTS: 3,
  /** Send queue drained: requests that have begun are finished, none is begun. */
  SQD: 4,
  /** UC and UD: the send queue stopped at a local error; receives go on. */
  SQE: 5,
  /** Failed, or moved here: everything outstanding is flushed. */
  ERR: 6,
  /** The device did not say. */
  UNKNOWN: 7,
} as const;
/** One of the values of the constant {@link QpState}. */
export type QpState = (typeof QpState)[keyof typeof QpState];

/** Transports of queue pairs, see ibv_create_qp(3). */
export const QpType = {
  /** Reliable connection: everything arrives once and in order, or the queue pair fails. */
  RC: 2,
  /** Unreliable connection: WRITE and SEND; a message that is lost is lost, and nobody is told. */
  UC: 3,
  /** Unreliable datagrams: SENDs of one packet to any queue pair. */
  UD: 4,
} as const;
/** One of the values of the constant {@link QpType}. */
export type QpType = (typeof QpType)[keyof typeof QpType];

/** States of a port, see ibv_query_port(3). */
export const PortState = {
  /** Nothing is known. */
  NOP: 0,
  /** The link is down. */
  DOWN: 1,
  /** The link is up and not configured. */
  INIT: 2,
  /** Configured, not yet in use. */
  ARMED: 3,
  /** Usable. */
  ACTIVE: 4,
  /** Was active; the link is being brought back. */
  ACTIVE_DEFER: 5,
} as const;
/** One of the values of the constant {@link PortState}. */
export type PortState = (typeof PortState)[keyof typeof PortState];

/** Kinds of asynchronous events, ibv_event_type. */
export const AsyncEventType = {
  /** A completion queue overflowed or failed; its queue pairs must be replaced. */
  CQ_ERR: 0,
  /** A queue pair failed, with no completion that says why. */
  QP_FATAL: 1,
  /** A queue pair got a request that is no valid one. */
  QP_REQ_ERR: 2,
  /** A queue pair got a request without the right to it. */
  QP_ACCESS_ERR: 3,
  /** The first message came to a queue pair in RTR. */
  COMM_EST: 4,
  /** The send queue of a queue pair in SQD has drained. */
  SQ_DRAINED: 5,
  /** A connection moved to its alternate path. */
  PATH_MIG: 6,
  /** A connection could not move to its alternate path. */
  PATH_MIG_ERR: 7,
  /** The device failed: close everything. */
  DEVICE_FATAL: 8,
  /** A port became active. */
  PORT_ACTIVE: 9,
  /** A port is no longer active. */
  PORT_ERR: 10,
  /** The LID of a port changed (InfiniBand). */
  LID_CHANGE: 11,
  /** The partition table of a port changed. */
  PKEY_CHANGE: 12,
  /** Another subnet manager (InfiniBand). */
  SM_CHANGE: 13,
  /** A shared receive queue failed. */
  SRQ_ERR: 14,
  /** Fewer receives are left in a shared receive queue than its limit. */
  SRQ_LIMIT_REACHED: 15,
  /** A queue pair in ERR takes no more from its shared receive queue. */
  QP_LAST_WQE_REACHED: 16,
  /** The subnet manager wants subscriptions made anew (InfiniBand). */
  CLIENT_REREGISTER: 17,
  /** The GID table of a port changed. */
  GID_CHANGE: 18,
  /** A work queue failed. */
  WQ_FATAL: 19,
} as const;
/** One of the values of the constant {@link AsyncEventType}. */
export type AsyncEventType = (typeof AsyncEventType)[keyof typeof AsyncEventType];

/** Kinds of GIDs, see ibv_query_gid_ex(3). */
export const GidType = {
  /** InfiniBand. */
  IB: 0,
  /** RoCE over Ethernet frames. */
  ROCE_V1: 1,
  /** RoCE over UDP; the one to use. */
  ROCE_V2: 2,
  /** Of the shm device. */
  SHM: 100,
} as const;
/** One of the values of the constant {@link GidType}. */
export type GidType = (typeof GidType)[keyof typeof GidType];

// ---------------------------------------------------------------------------------------------------------------
// Plain values

/** A device as listed, see ibv_get_device_list(3). */
export interface DeviceInfo {
  /** "rxe0", "mlx5_0", "shm". */
  name: string;
  /** "ibverbs": a device of the kernel through libibverbs; "shm": shared memory of this host. */
  provider: 'ibverbs' | 'shm';
  /** Kernel driver ("rxe", "mlx5"); "shm" for shm. */
  driver: string;
  /** "CA", "SWITCH", ... */
  nodeType: string;
  /** "InfiniBand", "iWARP", ... */
  transport: string;
  /** "0254:00ff:fe12:3456". */
  nodeGuid: string;
}

/** Whether the kernel's devices can be used at all. */
export interface IbverbsStatus {
  /** libibverbs is installed and answers. */
  available: boolean;
  /** Absent if available, else the code (QUORATE_NO_LIBRARY, ...) and an explanation with what to do. */
  code?: string;
  /** Absent if available: what is wrong and what to do. */
  message?: string;
}

/** See ibv_query_device(3). */
export interface DeviceAttributes {
  /** As the vendor writes it; may be empty. */
  firmwareVersion: string;
  /** Of the device: "0254:00ff:fe12:3456". */
  nodeGuid: string;
  /** Of what the device is a part of. */
  sysImageGuid: string;
  /** Bytes of the largest memory region. */
  maxMrSize: bigint;
  /** Page sizes that the device takes, one bit each. */
  pageSizeCap: bigint;
  /** IEEE number of the vendor. */
  vendorId: number;
  /** The vendor's number of the part. */
  vendorPartId: number;
  /** The vendor's number of the revision. */
  hwVersion: number;
  /** Queue pairs. */
  maxQp: number;
  /** Outstanding requests of a queue pair, each of send and receive. */
  maxQpWr: number;
  /** Scatter/gather elements of a request. */
  maxSge: number;
  /** Of READs. */
  maxSgeRd: number;
  /** Completion queues. */
  maxCq: number;
  /** Entries of a completion queue. */
  maxCqe: number;
  /** Memory regions. */
  maxMr: number;
  /** Protection domains. */
  maxPd: number;
  /** READs and atomics of peers in flight, for each queue pair. */
  maxQpRdAtom: number;
  /** Own READs and atomics in flight, for each queue pair. */
  maxQpInitRdAtom: number;
  /** READs and atomics of peers in flight, of the whole device. */
  maxResRdAtom: number;
  /** 0 none, 1 atomic among the requests of this HCA, 2 atomic with the CPU too. */
  atomicCap: number;
  /** Shared receive queues; 0 if the device has none. */
  maxSrq: number;
  /** Receives in a shared receive queue. */
  maxSrqWr: number;
  /** Scatter/gather elements of a receive in a shared receive queue. */
  maxSrqSge: number;
  /** Memory windows; 0 if the device has none. */
  maxMw: number;
  /** Address handles; 0 if the device has none. */
  maxAh: number;
  /** Multicast groups; 0 if the device has none. */
  maxMcastGrp: number;
  /** Entries of the partition table. */
  maxPkeys: number;
  /** ibv_device_cap_flags. */
  deviceCapFlags: number;
  /** Ports, counted from 1. */
  physPortCnt: number;
  /** Bits of raw time stamps of completions that count; 0: the device has none. */
  completionTimestampMask: bigint;
  /** Ticks of the clock of raw time stamps per millisecond; 0 if not known. */
  hcaCoreClockKhz: number;
}

/**
 * See ibv_query_device_ex(3): what DeviceAttributes does not say. Bits and numbers are those of `<infiniband/verbs.h>`; 0
 * where the device or provider has no such thing.
 */
export interface ExtendedDeviceAttributes {
  /** Scatter/gather elements of a READ. */
  maxSgeRd: number;
  /** Not used: RD transport. */
  maxEeRdAtom: number;
  /** Not used: RD transport. */
  maxEeInitRdAtom: number;
  /** Not used: RD transport. */
  maxEe: number;
  /** Not used: RD transport. */
  maxRdd: number;
  /** Queue pairs for raw IPv6 datagrams. */
  maxRawIpv6Qp: number;
  /** Queue pairs for raw Ethertype datagrams. */
  maxRawEthyQp: number;
  /** Queue pairs that can be attached to one multicast group. */
  maxMcastQpAttach: number;
  /** Queue pairs that can be attached to multicast groups, of the whole device. */
  maxTotalMcastQpAttach: number;
  /** Not used: fast memory regions. */
  maxFmr: number;
  /** Not used: fast memory regions. */
  maxMapPerFmr: number;
  /** Scatter/gather elements of a receive in a shared receive queue. */
  maxSrqSge: number;
  /** Exponent: 4.096 us * 2^localCaAckDelay. */
  localCaAckDelay: number;
  /** On-demand paging. */
  odpGeneralCaps: bigint;
  /** What RC can do with pages on demand, bits of ibv_odp_transport_cap_bits. */
  rcOdpCaps: number;
  /** The same for UC. */
  ucOdpCaps: number;
  /** The same for UD. */
  udOdpCaps: number;
  /** The same for XRC. */
  xrcOdpCaps: number;
  /** Bits of completion timestamps that count. */
  completionTimestampMask: bigint;
  /** Rate of the clock of completion timestamps, kHz; 0 if there is none. */
  hcaCoreClockKhz: bigint;
  /** Bits of ibv_device_cap_flags and those that came later. */
  deviceCapFlagsEx: bigint;
  /** Segmentation offload. */
  tsoMaxBytes: number;
  /** Bit n: queue pairs of type n can segment. */
  tsoSupportedQpts: number;
  /** Receive side scaling. */
  rssSupportedQpts: number;
  /** Indirection tables. */
  rssMaxIndirectionTables: number;
  /** Entries of an indirection table. */
  rssMaxIndirectionTableSize: number;
  /** Bits of ibv_rx_hash_function_flags. */
  rssHashFunction: number;
  /** Bits of ibv_rx_hash_fields. */
  rssHashFieldsMask: bigint;
  /** Receive work queues. */
  maxWqTypeRq: number;
  /** Bits of ibv_raw_packet_caps. */
  rawPacketCaps: number;
  /** Packet pacing, thousands of bits per second. */
  pacingMinKbps: number;
  /** Highest rate, thousands of bits per second. */
  pacingMaxKbps: number;
  /** Bit n: queue pairs of type n can be paced. */
  pacingSupportedQpts: number;
  /** Tag matching. */
  tmMaxRendezvousHeaderBytes: number;
  /** Tags in a list. */
  tmMaxTags: number;
  /** Bits of ibv_tm_cap_flags. */
  tmFlags: number;
  /** Tag operations outstanding. */
  tmMaxOps: number;
  /** Scatter/gather elements of a tagged buffer. */
  tmMaxSge: number;
  /** Completions that can be awaited before an event. */
  cqModerationMaxCount: number;
  /** Microseconds. */
  cqModerationMaxPeriodUs: number;
  /** Memory on the device itself, bytes. */
  maxDeviceMemoryBytes: bigint;
  /** Interrupts among which completion events can be spread. */
  numCompVectors: number;
}

/** See ibv_query_port(3). */
export interface PortAttributes {
  /** A {@link PortState}. */
  state: PortState;
  /** Largest path MTU that the port can have, bytes. */
  maxMtuBytes: number;
  /** Path MTU at present, bytes. */
  activeMtuBytes: number;
  /** Places in the GID table, most of them empty. */
  gidTblLen: number;
  /** Entries of the partition table. */
  pkeyTblLen: number;
  /** Bits of ibv_port_cap_flags. */
  portCapFlags: number;
  /** Largest message, bytes. */
  maxMsgSz: number;
  /** Local identifier (InfiniBand), else 0. */
  lid: number;
  /** LID of the subnet manager (InfiniBand), else 0. */
  smLid: number;
  /** How many low bits of the LID name the path (InfiniBand). */
  lmc: number;
  /** Lanes in use, as the verbs API codes it: 1 = 1x, 2 = 4x, 4 = 8x, 8 = 12x. */
  activeWidth: number;
  /** Speed of a lane as the verbs API codes it. */
  activeSpeed: number;
  /** State of the link as the verbs API codes it; 5 = up. */
  physState: number;
  /** Bits of ibv_port_cap_flags2. */
  portCapFlags2: number;
  /** Packets with a wrong partition key so far. */
  badPkeyCntr: number;
  /** Datagrams with a wrong qkey so far. */
  qkeyViolCntr: number;
  /** Code of the number of virtual lanes: 1, 2, 3, 4, 5 for 1, 2, 4, 8, 15. */
  maxVlNum: number;
  /** Service level to the subnet manager (InfiniBand). */
  smSl: number;
  /** Exponent of the longest time through the subnet: 4.096 us * 2^subnetTimeout (InfiniBand). */
  subnetTimeout: number;
  /** What kind of initialization the subnet manager made (InfiniBand). */
  initTypeReply: number;
  /** "Ethernet", "InfiniBand", "Unspecified"; "SharedMemory" for shm. */
  linkLayer: string;
}

/** An entry of a port's GID table, see ibv_query_gid_table(3). */
export interface GidEntry {
  /** Place in the table, what `sgidIndex` means. */
  index: number;
  /** Eight groups of four hexadecimal digits, as `ibv_devinfo -v` prints it. */
  gid: string;
  /** A {@link GidType}; RoCE v2 is the one to use on Ethernet. */
  type: GidType;
  /** Network interface; empty where there is none. */
  netdev: string;
}

/** What memory to allocate. */
export interface MemoryOptions {
  /** 1 .. 2^46; rounded up to whole pages by the provider, `length` says what was asked for. */
  lengthBytes: number;
  /** Back it by the named file `sharedPath`, so that it outlives the process. Default false. */
  shared?: boolean;
  /** With `shared`: the file, created with mode 0600. Does not apply to shm, whose memory is always shared. */
  sharedPath?: string;
  /** Ask for huge pages; QUORATE_SYSTEM if none are to be had, QUORATE_UNSUPPORTED on shm. Default false. */
  hugePages?: boolean;
}

/** Sizes of a queue pair, see ibv_create_qp(3); asked for, or granted. */
export interface QpCapabilities {
  /** Send requests outstanding. */
  maxSendWr: number;
  /** Receives posted. */
  maxRecvWr: number;
  /** Scatter/gather elements of a send request. */
  maxSendSge: number;
  /** Scatter/gather elements of a receive. */
  maxRecvSge: number;
  /** Bytes that a request with SendFlags.INLINE may carry. */
  maxInlineData: number;
}

export interface NativeQpInit {
  /** Default RC. */
  type?: QpType;
  sendCq: NativeCompletionQueue;
  recvCq: NativeCompletionQueue;
  /** Defaults: 128 send, 16 receive requests, one SGE each, no inline data. */
  cap?: Partial<QpCapabilities>;
  /** Every send request yields a completion, signaled or not. Default false. */
  signalAll?: boolean;
  /** Where receives come from, instead of a queue of its own. */
  srq?: NativeSharedReceiveQueue;
}

/** The way to a port, see ibv_create_ah(3); in ibv_modify_qp(3) that to the peer. */
export interface AddressVector {
  /** Default: true if dgid is given. */
  isGlobal?: boolean;
  /** Eight groups of four hexadecimal digits. */
  dgid?: string;
  /** Index in the own port's GID table. Default 0. */
  sgidIndex?: number;
  /** Default 64. */
  hopLimit?: number;
  /** DSCP and ECN bits on RoCE v2. Default 0. */
  trafficClass?: number;
  /** Flow label of the routing header, 20 bits. Default 0. */
  flowLabel?: number;
  /** LID of the destination (InfiniBand). Default 0. */
  dlid?: number;
  /** Service level (InfiniBand), priority (RoCE). Default 0. */
  sl?: number;
  /** Default 1. */
  portNum?: number;
}

/** Attributes of ibv_modify_qp(3); the mask is made of the members that are present. Unknown members are refused. */
export interface QpAttributes {
  /** The state to go to, a {@link QpState}. */
  state?: QpState;
  /** What the state is taken for; only where the device must be told. */
  curState?: QpState;
  /** What the peer may do through this queue pair, bits of {@link Access}. */
  accessFlags?: number;
  /** Index in the partition table. */
  pkeyIndex?: number;
  /** Own port, counted from 1. */
  portNum?: number;
  /** The way to the peer. */
  av?: AddressVector;
  /** 256, 512, 1024, 2048 or 4096. */
  pathMtuBytes?: number;
  /** Local ack timeout: 4.096 us * 2^timeout, 0 = infinite; 0 .. 31. */
  timeout?: number;
  /** Repetitions when no acknowledgement comes, 0 .. 7. */
  retryCnt?: number;
  /** Repetitions when the peer has no receive posted, 0 .. 6; 7 = for ever. */
  rnrRetry?: number;
  /** 24 bits. */
  rqPsn?: number;
  /** 24 bits. */
  sqPsn?: number;
  /** Own READs and atomics in flight. */
  maxRdAtomic?: number;
  /** READs and atomics of the peer in flight. */
  maxDestRdAtomic?: number;
  /** Code, 0 .. 31, of the time that a peer waits when no receive is posted. */
  minRnrTimer?: number;
  /** Number of the peer's queue pair, 24 bits. */
  destQpNum?: number;
  /** UD: 32 bits that each message must carry to be taken. */
  qkey?: number;
}

/** A scatter/gather element: a buffer of a request. */
export interface ScatterGatherElement {
  /** First byte. */
  address: number;
  /** Bytes. */
  length: number;
  /** Not needed by INLINE requests. */
  lkey?: number;
}

/** What a memory window is bound to. */
export interface NativeWindowBinding {
  region?: NativeMemoryRegion | null;
  address?: number;
  length?: number;
  access?: number;
}

/** One request of {@link NativeQueuePair.postSend}. The hot path is {@link NativePostList}. */
export interface SendWorkRequest {
  /** Integer below 2^53. Default 0. */
  wrId?: number;
  /** A {@link WrOpcode}. */
  opcode: WrOpcode;
  /** Default: SIGNALED. */
  sendFlags?: number;
  /** Source of WRITE and SEND, target of READ and of an atomic's old value. Default 0. */
  localAddress?: number;
  /** Bytes; 0 means no scatter/gather element. Default 0. */
  length?: number;
  /** Key of the memory region at localAddress. Default 0. */
  lkey?: number;
  /**
   * Several buffers in the place of localAddress, length and lkey: gathered by WRITE and SEND, scattered to by READ. At
   * most `cap.maxSendSge` of the queue pair.
   */
  sges?: readonly ScatterGatherElement[];
  /** Address in the peer's process. Default 0. */
  remoteAddress?: number;
  /** Key of the peer's memory region. Default 0. */
  rkey?: number;
  /** 32 bits for the peer's completion. Default 0. */
  immData?: number;
  /** LOCAL_INV: key of an own memory window of type 2; SEND_WITH_INV: of one of the peer's. */
  invalidateRkey?: number;
  /** BIND_MW: what to bind, under which new key (see ibv_inc_rkey(3)), to what. */
  bind?: NativeWindowBinding & { memoryWindow: NativeMemoryWindow; rkey: number };
  /** Compare value (CAS) or addend (FAA), 64 bits. */
  compareAdd?: bigint | number;
  /** COMPARE_SWAP: the new value, 64 bits. Default 0. */
  swap?: bigint | number;
  /** UD: where the message goes; it must stay open until the request has completed. */
  addressHandle?: NativeAddressHandle;
  /** UD: number of the queue pair that the message is for. */
  remoteQpNum?: number;
  /** UD: see {@link WR.remoteQkey}. */
  remoteQkey?: number;
  /** With SendFlags.CHECKSUM: the checksum of what came before these bytes. Default 0. */
  checksumBefore?: number;
}

/** A receive, see ibv_post_recv(3). */
export interface ReceiveWorkRequest {
  /** Comes back in the completion; integer below 2^53. Default 0. */
  wrId?: number;
  /** Where the message goes. Default 0. */
  localAddress?: number;
  /** Bytes; 0 for a receive that takes no data. Default 0. */
  length?: number;
  /** Key of the memory region. Default 0. */
  lkey?: number;
  /** Several buffers, filled one after the other; at most `cap.maxRecvSge` of the queue pair. */
  sges?: readonly ScatterGatherElement[];
}

/** How a request ended, see ibv_poll_cq(3). */
export interface WorkCompletion {
  /** That of the request. */
  wrId: number;
  /** A WcStatus; 0 is success. */
  status: number;
  /** Undefined content unless status is 0, see ibv_poll_cq(3). */
  opcode: number;
  /** Bytes received or read; of UD with the {@link GRH_BYTES} in front. */
  byteLen: number;
  /** Number of the own queue pair. */
  qpNum: number;
  /** Valid if wcFlags has {@link WC_WITH_IMM}. */
  immData: number;
  /** Valid if wcFlags has {@link WC_WITH_INV}, else 0: the own memory window that the sender invalidated. */
  invalidatedRkey: number;
  /** The device's own code when it failed. */
  vendorErr: number;
  /** Bits: {@link WC_GRH}, {@link WC_WITH_IMM}, {@link WC_WITH_INV}; 65,536 where there is a `checksum`. */
  wcFlags: number;
  /** Of READs with SendFlags.CHECKSUM that succeeded. */
  checksum?: number;
  /** Of queues with time stamps: when the device completed it; see {@link CompletionQueueOptions.timestamps}. */
  timestamp?: bigint;
  /** Receives of UD: number of the queue pair that sent the message; else 0. */
  srcQpNum: number;
  /** The path of a UD message on InfiniBand, see ibv_poll_cq(3). */
  pkeyIndex: number;
  /** UD on InfiniBand: LID of the sender. */
  slid: number;
  /** UD on InfiniBand: service level. */
  sl: number;
  /** UD on InfiniBand: low bits of the own LID. */
  dlidPathBits: number;
}

/** What post calls return: how many requests were accepted, and why the next one was not. */
export interface PostResult {
  /** Requests that the device has taken, counted from the first. */
  accepted: number;
  /** 0 if all were accepted; EINVAL: wrong state or request, ENOMEM: queue full, ... */
  errno: number;
}

// ---------------------------------------------------------------------------------------------------------------
// Objects

export type NativeKind =
  | 'Context'
  | 'Memory'
  | 'MemoryRegion'
  | 'ProtectionDomain'
  | 'CompletionChannel'
  | 'CompletionQueue'
  | 'QueuePair'
  | 'Fence'
  | 'Notifier'
  | 'PostList'
  | 'Waiter'
  | 'PeerProcess'
  | 'AddressHandle'
  | 'SharedReceiveQueue'
  | 'MemoryWindow'
  | 'CmEventChannel'
  | 'CmId'
  | 'ExitHold';

export interface NativeObject {
  readonly kind: NativeKind;
  readonly closed: boolean;
  /** Idempotent. Closes the children first and waits until no other thread is inside a call on the object. */
  close(): void;
}

export interface NativeSharedObject extends NativeObject {
  /**
   * Puts the object into a table of this process and gives its token. The table holds a reference: the object lives
   * until it is closed or the token is withdrawn with `unshare`. Sharing an object again gives the same token.
   * With `untilThreadEnds` it is withdrawn at the end of the calling thread, too. QUORATE_LIMIT above 65,536 tokens.
   */
  share(untilThreadEnds?: boolean): number;
}

export interface NativeContext extends NativeSharedObject {
  readonly kind: 'Context';
  readonly device: DeviceInfo;
  readonly accessFlagsRevocationIsSynchronous: boolean;
  readonly checksummedReads: boolean;
  queryDevice(): DeviceAttributes;
  queryDeviceExtended(): ExtendedDeviceAttributes;
  queryPort(portNum: number): PortAttributes;
  queryGids(portNum: number): GidEntry[];
  queryPkey(portNum: number, index: number): number;
  /** The RoCE v2 GID to use on a port; QUORATE_NO_GID with the table in the message. */
  chooseGid(portNum: number): GidEntry;
  /** The way back to the sender of a UD receive, whose routing header is at `offset` of `memory`. */
  addressVectorFromCompletion(
    portNum: number,
    completion: WorkCompletion,
    memory: NativeMemory,
    offset: number,
  ): AddressVector;
  allocateMemory(options: MemoryOptions): NativeMemory;
  allocateProtectionDomain(): NativeProtectionDomain;
  createCompletionChannel(): NativeCompletionChannel;
  /** `timestamps`: 0 none, 1 raw, 2 wall clock. */
  createCompletionQueue(
    depth: number,
    channel?: NativeCompletionChannel | null,
    options?: { extended?: boolean; timestamps?: number },
  ): NativeCompletionQueue;
  /** Null where the provider cannot tell whether the peer's process lives. */
  openPeerProcess(gid: string): NativePeerProcess | null;
  /** Takes and acknowledges one asynchronous event; null if none is pending. Never blocks. */
  getAsyncEvent(): NativeAsyncEvent | null;
  /** As {@link NativeCompletionChannel.onEvent}, for asynchronous events. */
  onAsyncEvent(callback: ((event: NativeAsyncEvent) => void) | null): void;
  /** Of the watch that onAsyncEvent() began. */
  ref(): void;
  unref(): void;
}

export interface NativeAsyncEvent {
  /** An {@link AsyncEventType}, or another number that the device reports. */
  type: number;
  /** What it is about: a queue pair, completion queue or shared receive queue; null for the others. */
  object: NativeSharedObject | null;
  /** Of port events; else 0. */
  portNum: number;
}

export interface NativeMemory extends NativeSharedObject {
  readonly kind: 'Memory';
  /** Address of the first byte in this process. */
  readonly address: number;
  readonly length: number;
  /**
   * An ArrayBuffer over the memory itself; each thread gets one of its own, always the same one. It keeps the mapping
   * alive. `close()` detaches it in the thread that calls it (its length becomes 0).
   */
  readonly buffer: ArrayBuffer;
}

export interface NativeMemoryRegion extends NativeSharedObject {
  readonly kind: 'MemoryRegion';
  readonly lkey: number;
  readonly rkey: number;
  readonly address: number;
  readonly length: number;
  readonly access: number;
  reregister(changes: {
    protectionDomain?: NativeProtectionDomain;
    memory?: NativeMemory;
    offset?: number;
    length?: number;
    access?: number;
  }): void;
}

export interface NativeMemoryWindow extends NativeSharedObject {
  readonly kind: 'MemoryWindow';
  /** 1 or 2. */
  readonly type: number;
  /** As of the last binding that was posted. */
  readonly rkey: number;
}

export interface NativeProtectionDomain extends NativeSharedObject {
  readonly kind: 'ProtectionDomain';
  registerMemory(memory: NativeMemory, offset: number, length: number, access: number): NativeMemoryRegion;
  createQueuePair(init: NativeQpInit): NativeQueuePair;
  createAddressHandle(av: AddressVector): NativeAddressHandle;
  createSharedReceiveQueue(maxWr: number, maxSge?: number): NativeSharedReceiveQueue;
  allocateMemoryWindow(type: number): NativeMemoryWindow;
}

export interface NativeSharedReceiveQueue extends NativeSharedObject {
  readonly kind: 'SharedReceiveQueue';
  readonly maxWr: number;
  setLimit(limit: number): void;
  query(): { maxWr: number; limit: number };
  postReceive(requests: readonly ReceiveWorkRequest[]): PostResult;
}

export interface NativeAddressHandle extends NativeSharedObject {
  readonly kind: 'AddressHandle';
  readonly attributes: Required<AddressVector>;
}

export interface NativeCompletionChannel extends NativeSharedObject {
  readonly kind: 'CompletionChannel';
  readonly fd: number;
  /** Takes and acknowledges one event; null if none is pending. Never blocks. */
  getEvent(): NativeCompletionQueue | null;
  /**
   * Watches the channel in this thread's event loop: each event is taken, acknowledged and handed to the callback.
   * One callback per channel and thread; a second call replaces it, null stops watching. Does not hold the event loop
   * open unless `ref()` is called. Re-arming and draining are the callback's duty (see completion-events.ts).
   */
  onEvent(callback: ((completionQueue: NativeCompletionQueue) => void) | null): void;
  ref(): void;
  unref(): void;
}

export interface NativeCompletionQueue extends NativeSharedObject {
  readonly kind: 'CompletionQueue';
  readonly depth: number;
  /** At most `max` (1 .. 65,536) completions. Throws on a CQ that overflowed. */
  poll(max: number): WorkCompletion[];
  resize(depth: number): void;
  requestNotify(solicitedOnly: boolean): void;
}

export interface NativeQueuePair extends NativeSharedObject {
  readonly kind: 'QueuePair';
  readonly number: number;
  readonly type: QpType;
  readonly capabilities: QpCapabilities;
  /** QUORATE_QP_STATE names the state, the transition and what is missing or surplus. May block (ARP, about 1 s). */
  modify(attributes: QpAttributes): void;
  /** The same on a thread of the pool: for the transition to RTR, which may block. */
  modifyAsync(attributes: QpAttributes): Promise<void>;
  setAccessFlags(accessFlags: number): void;
  query(): QpAttributes & { mask: number; state: QpState };
  /** At most 65,536 requests per call. */
  postSend(requests: readonly SendWorkRequest[]): PostResult;
  postReceive(requests: readonly ReceiveWorkRequest[]): PostResult;
  /** Type 1 only: posts the binding and gives the window its next key, `rkey`. */
  bindMemoryWindow(
    memoryWindow: NativeMemoryWindow,
    binding: NativeWindowBinding & { wrId?: number; sendFlags?: number },
  ): PostResult & { rkey: number };
  attachMulticast(group: string, lid: number): void;
  detachMulticast(group: string, lid: number): void;
}

/**
 * An epoch behind a lock. A fenced copy runs inside the lock and only if its epoch is the fence's; `raise` takes the
 * same lock, so when it has returned no copy of a lower epoch is running or will ever run.
 */
export interface NativeFence extends NativeSharedObject {
  readonly kind: 'Fence';
  /** Integer below 2^53; a new fence has 0. */
  readonly epoch: number;
  /** Sets the epoch, returns the previous one. QUORATE_INVALID_ARGUMENT if `epoch` is below the current one. */
  raise(epoch: number): number;
}

/** Holds memory and descriptors of this process for a moment after its end; see exit-hold.ts. */
export interface NativeExitHold extends NativeSharedObject {
  readonly kind: 'ExitHold';
  readonly keeperId: number;
}

/** Wakes the event loop of the thread that made it, from any thread. */
export interface NativeNotifier extends NativeSharedObject {
  readonly kind: 'Notifier';
  /**
   * Has the callback run once in the owner's event loop; calls that come before it ran are coalesced into it. Returns
   * false if the notifier is closed. Allocates nothing, never blocks.
   */
  notify(): boolean;
  /** Owner thread only: hold the event loop open / do not. A new notifier does not. */
  ref(): void;
  unref(): void;
}

/** Reasons for which Waiter.wait() returns; bits. */
export const WaitReason = {
  /** Somebody called wake(). */
  WOKEN: 1,
  /** The watched completion queue has news: poll it until it is empty. */
  COMPLETION: 2,
  /** The process of a watched peer has died or closed its device; told once per peer. */
  PEER_DIED: 4,
} as const;
/** Slots of Waiter.watchPeer(). */
export const WAITER_PEERS_MAX = 64;

/** How a thread without an event loop sleeps until there is something to do. */
export interface NativeWaiter extends NativeSharedObject {
  readonly kind: 'Waiter';
  /** Any thread: ends the wait that is on, or else the next one. */
  wake(): void;
  /** `channel` is needed (and its events are taken) where the queue is a kernel device's. */
  watchQueue(completionQueue: NativeCompletionQueue | null, channel?: NativeCompletionChannel | null): void;
  watchPeer(slot: number, peer: NativePeerProcess | null): void;
  /** Blocks this thread for at most `timeoutNs` (0 .. MAX_WAIT_NS); returns the reasons, 0 if the time was up. */
  wait(timeoutNs: number): number;
}

/** What the host sees of a process. */
export const ProcessState = {
  /** It cannot be seen from here (another PID namespace, no /proc), or is on its way out. */
  UNKNOWN: 0,
  /** Not stopped, whether or not it has a processor, or waits for something. */
  RUNNING: 1,
  /** Stopped by a signal (SIGSTOP) or a debugger. */
  STOPPED: 2,
} as const;
export type ProcessState = (typeof ProcessState)[keyof typeof ProcessState];

/** The process behind a peer's device instance. */
export interface NativePeerProcess extends NativeSharedObject {
  readonly kind: 'PeerProcess';
  readonly alive: boolean;
  readonly state: ProcessState;
}

/** Sizes of a PostList. */
export interface PostListOptions {
  /** 1 .. POST_LIST_MAX_ENTRIES. */
  maxWorkRequests: number;
  /** maxWorkRequests .. POST_LIST_MAX_ENTRIES. */
  maxCompletions: number;
}

/**
 * The hot path: work requests written as numbers into a preallocated array, posted and polled by one native call that
 * allocates nothing. It belongs to the thread that made it (it cannot be shared); its CQ, queue pairs, fences and
 * memories may belong to any.
 */
export interface NativePostList extends NativeObject {
  readonly kind: 'PostList';
  /** maxWorkRequests * WR_STRIDE doubles. */
  readonly workRequests: Float64Array;
  /** maxCompletions * WC_STRIDE doubles. */
  readonly completions: Float64Array;
  /** Slots are 0 .. POST_LIST_SLOTS-1; the list holds a reference until the slot is bound to something else or null. */
  bindQueuePair(slot: number, queuePair: NativeQueuePair | null): void;
  bindAddressHandle(slot: number, addressHandle: NativeAddressHandle | null): void;
  bindFence(slot: number, fence: NativeFence | null): void;
  bindMemory(slot: number, memory: NativeMemory | null): void;
  /** Arguments and result of {@link run}, see {@link CALL}; four doubles. */
  readonly call: Float64Array;
  /**
   * Does what PostList.submit() says, with `count`, `spinNs` and `wanted` from {@link call}, and leaves the number of
   * completions there. Throws only for arguments out of range, a closed list, or a CQ that is closed or overflowed (then
   * after the completions of this call, if any, have been delivered by returning normally once).
   */
  run(): void;
}

/** Counts for tests and leak checks; whole process. */
export interface AddonDiagnostics {
  /** JavaScript objects of this addon that were not yet collected, all threads. */
  wrappers: number;
  /** External array buffers (Memory.buffer, PostList arrays) and submit functions not yet released, all threads. */
  buffers: number;
  /** Tokens in the share table. */
  sharedTokens: number;
  /** Threads that have the addon loaded. */
  environments: number;
}

/** The constructor that the addon uses for errors that are neither TypeError nor RangeError. */
export type NativeErrorClass = new (
  code: string,
  message: string,
  details: { errno?: number; syscall?: string },
) => Error;

export interface NativeAddon {
  setErrorClass(errorClass: NativeErrorClass): void;
  /** Both providers. Never fails for want of libibverbs. */
  listDevices(options?: { shmDirectory?: string }): DeviceInfo[];
  ibverbsStatus(): IbverbsStatus;
  /**
   * QUORATE_NO_DEVICE names the devices there are. `shmDirectory`: where the shm device keeps its segments; default
   * the environment variable QUORATE_SHM_DIR, else /dev/shm/quorate-<uid>.
   */
  openDevice(name: string, options?: { shmDirectory?: string }): NativeContext;

  /** The connection manager, over librdmacm. QUORATE_NO_LIBRARY, QUORATE_NO_DEVICE. See cm/native.ts. */
  openCmEventChannel(): NativeCmEventChannel;

  /**
   * The object behind a token, for this thread. QUORATE_INVALID_ARGUMENT for an unknown token, QUORATE_CLOSED if the
   * object has been closed. Adopting twice in one thread gives the same JavaScript object.
   */
  adopt(token: number): NativeSharedObject;
  /** Withdraws a token; false if there was none. What was adopted stays usable. */
  unshare(token: number): boolean;

  Fence: new () => NativeFence;
  /** `holdNs` 1 .. 1e9. QUORATE_SYSTEM. */
  ExitHold: new (
    holdNs: number,
  ) => NativeExitHold;
  /** The notifier lives until close() or the end of its thread. */
  Notifier: new (
    callback: () => void,
  ) => NativeNotifier;
  PostList: new (completionQueue: NativeCompletionQueue, options: PostListOptions) => NativePostList;
  Waiter: new () => NativeWaiter;

  /**
   * Blocks this thread until the 32-bit word at `byteOffset` (multiple of 4) differs from `expected`, is woken with
   * wakeWord or addWord (from any process that maps the same memory), or `timeoutNs` (0 .. MAX_WAIT_NS) has passed.
   * Returns 0 if woken or changed, 1 on timeout. The word is looked at again every 50 ms at the latest, so a store
   * that nobody announced (a remote WRITE) is seen after that time too.
   */
  waitWord(memory: NativeMemory, byteOffset: number, expected: number, timeoutNs: number): 0 | 1;
  /** Wakes all waiters on the word; returns how many there were. */
  wakeWord(memory: NativeMemory, byteOffset: number): number;
  /** Adds `delta` (-2^31 .. 2^32-1) to the word atomically, modulo 2^32, wakes all waiters, returns the new value. */
  addWord(memory: NativeMemory, byteOffset: number, delta: number): number;

  /** Timer slack of the calling thread, PR_SET_TIMERSLACK of prctl(2); 1 .. 1e9 ns, 0 = the thread's default. */
  setTimerSlack(ns: number): void;
  /** Asks for time slices of `ns` (1e5 .. 1e8) for the calling thread; false if the kernel has no such thing. */
  setSchedulingSlice(ns: number): boolean;
  /** SCHED_FIFO with this priority (1 .. 99) for the calling thread; QUORATE_SYSTEM without the right. */
  setRealtimePriority(priority: number): void;
  /** Processors that the calling thread may run on. */
  setCpuAffinity(cpus: readonly number[]): void;
  /** Locks the open file for itself, flock(2); false if somebody else has it. */
  lockFile(descriptor: number): boolean;
  /** 53 bits that stand for the bytes, and for `before` (0 .. 2^53 - 1). */
  checksum(bytes: Uint8Array | readonly Uint8Array[], before: number): number;
  /** See first-calls.ts. At the end of a thread it counts as ended, and V8 is told if it was the last. */
  beginFirstCalls(): boolean;
  endFirstCalls(): boolean;
  /** CLOCK_MONOTONIC in nanoseconds (exact to the nanosecond for the first 104 days of uptime). */
  monotonicNs(): number;

  wcStatusName(status: number): string;
  wcStatusExplanation(status: number): string;
  /** Not for production use. */
  diagnostics(): AddonDiagnostics;
}
