// A queue pair: the two ends of a connection post work requests to it.
import { randomInt } from 'node:crypto';
import { invalidArgument } from '../errors.js';
import { AddressHandle } from './address-handle.js';
import type { Context } from './context.js';
import { normalizeGid } from './gid.js';
import { MemoryRegion } from './memory-region.js';
import { MemoryWindow } from './memory-window.js';
import {
  type NativeQueuePair,
  type SendWorkRequest as NativeSendWorkRequest,
  type PostResult,
  type QpAttributes,
  type QpCapabilities,
  QpState,
  QpType,
  type ReceiveWorkRequest,
} from './native.js';
import { checkObject, checkOptions, type Members } from './options.js';
import type { ProtectionDomain } from './protection-domain.js';
import { existingFace, nativeOrNull, VerbsObject } from './verbs-object.js';

export type {
  AddressVector,
  PostResult,
  QpAttributes,
  ReceiveWorkRequest,
  ScatterGatherElement,
} from './native.js';
export { QpState, QpType, SendFlags, WrOpcode } from './native.js';

/** What a memory window is bound to, see ibv_bind_mw(3). */
export interface WindowBinding {
  /** Of the window's domain, registered with MW_BIND (and LOCAL_WRITE, if the window shall be written to). */
  region?: MemoryRegion;
  /** First byte of the window, as the region counts. */
  address?: number;
  /** Bytes. 0 binds a window of type 1 to nothing. */
  length?: number;
  /** What peers may do, bits of Access: REMOTE_READ, REMOTE_WRITE, REMOTE_ATOMIC; ZERO_BASED for type 2. */
  access?: number;
}

/** One request of QueuePair.postSend(), see ibv_post_send(3). The hot path is PostList. */
export interface SendWorkRequest extends Omit<NativeSendWorkRequest, 'addressHandle' | 'bind'> {
  /** UD: where the message goes; it must stay open until the request has completed. */
  addressHandle?: AddressHandle;
  /**
   * BIND_MW: a window of type 2 that is bound to nothing, its new key (see nextRkey()), and what to bind it to. The
   * window is bound when the request has completed, and can be used through this queue pair only.
   */
  bind?: WindowBinding & {
    /** Of type 2, of the queue pair's domain. */
    memoryWindow: MemoryWindow;
    /** Its key from now on. */
    rkey: number;
  };
}

const PSN_VALUES = 2 ** 24;
/** READs and atomics in flight per connection that the convenience methods ask for, if the device allows as many. */
const DEFAULT_READS_IN_FLIGHT = 16;

/** A random packet sequence number: 24 bits from the system's random source, so that no peer can guess it. */
export function randomPsn(): number {
  return randomInt(PSN_VALUES);
}

/** What one end of a connection must know of the other; plain data that can be sent as JSON. */
export interface QueuePairEndpoint {
  /** Number of the queue pair. */
  qpNum: number;
  /** Packet sequence number that this end sends first. */
  psn: number;
  /** Eight groups of four hexadecimal digits. */
  gid: string;
  /** 0 on Ethernet and shm. */
  lid: number;
  /** Largest path MTU that this end's port takes, bytes. */
  pathMtuBytes: number;
}

/** Which port and GID an endpoint has. */
export interface EndpointOptions {
  /** Default 1. */
  portNum?: number;
  /** Index in the port's GID table; default: what Context.chooseGid() chooses (RoCE v2). */
  sgidIndex?: number;
}

/** Options of {@link QueuePair.toInit}. */
export interface ToInitOptions {
  /** Default 1. */
  portNum?: number;
  /** Default 0. */
  pkeyIndex?: number;
  /** What the peer may do through this queue pair, bits of Access. Default 0: nothing but SEND. */
  accessFlags?: number;
  /** UD: 32 bits that each message must carry to be taken. Default 0. */
  qkey?: number;
}

/** Options of {@link QueuePair.toReadyToReceive}. */
export interface ToReadyToReceiveOptions extends EndpointOptions {
  /** Default: the smaller of the two ports' active MTUs. */
  pathMtuBytes?: number;
  /** READs and atomics of the peer in flight at once. Default 16, or what the device can take. */
  maxDestRdAtomic?: number;
  /** Code of the time a peer waits when no receive is posted, see ibv_modify_qp(3). Default 12 (0.64 ms). */
  minRnrTimer?: number;
  /** Default 64. */
  hopLimit?: number;
  /** DSCP and ECN bits on RoCE v2. Default 0. */
  trafficClass?: number;
  /** Service level (InfiniBand), priority (RoCE). Default 0. */
  serviceLevel?: number;
}

/** Options of {@link QueuePair.toReadyToSend}. */
export interface ToReadyToSendOptions {
  /** Packet sequence number of the first request; default {@link QueuePair.psn}. */
  psn?: number;
  /** Time to wait for an acknowledgement: 4.096 us * 2^timeout; 0 = for ever. Default 14 (67 ms). */
  timeout?: number;
  /** Repetitions after that time, 0 .. 7. Default 7. */
  retryCnt?: number;
  /** Repetitions when the peer has no receive posted, 0 .. 6; 7 = for ever. Default 7. */
  rnrRetry?: number;
  /** Own READs and atomics in flight at once. Default 16, or what the device can take. */
  maxRdAtomic?: number;
}

const ENDPOINT_OPTIONS: Members<EndpointOptions> = { portNum: true, sgidIndex: true };

const TO_INIT_OPTIONS: Members<ToInitOptions> = { portNum: true, pkeyIndex: true, accessFlags: true, qkey: true };

const TO_READY_TO_RECEIVE_OPTIONS: Members<ToReadyToReceiveOptions> = {
  ...ENDPOINT_OPTIONS,
  pathMtuBytes: true,
  maxDestRdAtomic: true,
  minRnrTimer: true,
  hopLimit: true,
  trafficClass: true,
  serviceLevel: true,
};

const TO_READY_TO_SEND_OPTIONS: Members<ToReadyToSendOptions> = {
  psn: true,
  timeout: true,
  retryCnt: true,
  rnrRetry: true,
  maxRdAtomic: true,
};

const TO_DATAGRAMS_OPTIONS: Members<Parameters<QueuePair['toDatagrams']>[0]> = {
  qkey: true,
  portNum: true,
  pkeyIndex: true,
  psn: true,
};

function nativeBinding<Binding extends WindowBinding>(binding: Binding) {
  const { region, ...rest } = binding;
  const native = nativeOrNull(region, MemoryRegion, 'region');
  return native === null ? rest : { ...rest, region: native };
}

/** The request with native objects in the place of ours. */
function toNative(request: SendWorkRequest, index: number): NativeSendWorkRequest {
  checkObject(`requests[${index}]`, request);
  const { addressHandle, bind, ...rest } = request;
  const native: NativeSendWorkRequest = rest;
  if (addressHandle !== undefined) {
    if (!(addressHandle instanceof AddressHandle)) throw invalidArgument('addressHandle must be an AddressHandle');
    native.addressHandle = addressHandle.native;
  }
  if (bind !== undefined) {
    checkObject('bind', bind);
    const { memoryWindow, ...binding } = bind;
    if (!(memoryWindow instanceof MemoryWindow)) throw invalidArgument('memoryWindow must be a MemoryWindow');
    native.bind = { ...nativeBinding(binding), memoryWindow: memoryWindow.native, rkey: binding.rkey };
  }
  return native;
}

/** A queue pair, see ibv_create_qp(3). A pair that failed is closed and replaced, never reset and used again. */
export class QueuePair extends VerbsObject<NativeQueuePair> {
  /** The domain it was made from; undefined in a thread that adopted it. */
  readonly protectionDomain: ProtectionDomain | undefined;
  /** Packet sequence number that this end sends first unless told otherwise: random, fixed for the object's life. */
  readonly psn: number = randomPsn();

  private constructor(native: NativeQueuePair, protectionDomain?: ProtectionDomain) {
    super(native, protectionDomain);
    this.protectionDomain = protectionDomain;
  }

  /** @internal */
  static of(native: NativeQueuePair, protectionDomain?: ProtectionDomain): QueuePair {
    return (existingFace(native) as QueuePair | undefined) ?? new QueuePair(native, protectionDomain);
  }

  /** The number by which the peer addresses it. */
  get number(): number {
    return this.native.number;
  }

  /** Its transport, a {@link QpType}. */
  get type(): QpType {
    return this.native.type;
  }

  /** Sizes as granted by the device, at least those asked for. */
  get capabilities(): QpCapabilities {
    return this.native.capabilities;
  }

  /** The current state, from the device. */
  get state(): QpState {
    return this.native.query().state;
  }

  /**
   * Changes state and attributes, see ibv_modify_qp(3); the attribute mask is made of the members that are present.
   * The transition to RTR may block for about a second while the network resolves the peer's address: use modifyAsync()
   * on a thread that must not wait.
   *
   * @throws QuorateError QUORATE_QP_STATE: the message names the state the pair is in, the transition, and the
   * attributes that are missing, surplus or beyond what the device takes; RangeError QUORATE_OUT_OF_RANGE, TypeError
   * QUORATE_INVALID_ARGUMENT for what no device takes
   */
  modify(attributes: QpAttributes): void {
    this.native.modify(attributes);
  }

  /** The same without blocking this thread; what is wrong is said by the promise. */
  async modifyAsync(attributes: QpAttributes): Promise<void> {
    await this.native.modifyAsync(attributes);
  }

  /**
   * Changes what the peer may do through this queue pair, which is connected: the same as `modify({ state: QpState.RTS,
   * accessFlags })`, in a fraction of the time, for those who switch permissions. Whether what the peer has begun has ended
   * when it returns is the device's to say: {@link Context.accessFlagsRevocationIsSynchronous}.
   *
   * @param accessFlags bits of Access
   * @throws QuorateError QUORATE_QP_STATE if the pair is in no state that leads to RTS with these attributes (RTS itself, and
   * SQD and SQE, which it leaves by this call); RangeError QUORATE_OUT_OF_RANGE
   */
  setAccessFlags(accessFlags: number): void {
    this.native.setAccessFlags(accessFlags);
  }

  /** State and attributes, see ibv_query_qp(3); `mask` says which are known. */
  query(): QpAttributes & {
    /** Bits of ibv_qp_attr_mask: the attributes that the device reported. */
    mask: number;
    /** The current state. */
    state: QpState;
  } {
    return this.native.query();
  }

  /**
   * Posts send requests in order, see ibv_post_send(3). Does not throw when the device refuses one: the result says how
   * many were accepted and why the next was not. For the hot path use PostList.
   *
   * @throws TypeError or RangeError for requests that are malformed; nothing was posted then
   */
  postSend(requests: readonly SendWorkRequest[]): PostResult {
    if (!Array.isArray(requests)) throw invalidArgument('requests must be an array');
    const refers = requests.some((request) => request?.addressHandle !== undefined || request?.bind !== undefined);
    return this.native.postSend(refers ? requests.map(toNative) : (requests as readonly NativeSendWorkRequest[]));
  }

  /** Posts receive requests in order, see ibv_post_recv(3). */
  postReceive(requests: readonly ReceiveWorkRequest[]): PostResult {
    return this.native.postReceive(requests);
  }

  /**
   * Posts the binding of a memory window of type 1, see ibv_bind_mw(3), and gives it a new key at once; what it was
   * bound to before, if anything, ends. The binding is in force when the request has completed: MW_BIND_ERR if the
   * region does not allow it. With `length` 0 (or absent) the window is unbound.
   *
   * @returns the new key, that of this binding also if another thread binds the window again at the same time; or the
   * errno that refused the request (EINVAL: wrong state or type, or, on devices, to be unbound and never bound; ENOMEM:
   * queue full)
   * @throws TypeError QUORATE_INVALID_ARGUMENT, RangeError QUORATE_OUT_OF_RANGE
   */
  bindMemoryWindow(
    memoryWindow: MemoryWindow,
    binding: WindowBinding & { wrId?: number; sendFlags?: number } = {},
  ): PostResult & {
    /** The window's key from now on. */
    rkey: number;
  } {
    if (!(memoryWindow instanceof MemoryWindow)) throw invalidArgument('memoryWindow must be a MemoryWindow');
    checkObject('binding', binding);
    return this.native.bindMemoryWindow(memoryWindow.native, nativeBinding(binding));
  }

  /**
   * Attaches a UD queue pair to a multicast group, see ibv_attach_mcast(3): it gets the datagrams sent to the group
   * that carry its qkey. A sender names the group by an address handle with the group as `dgid`, and 0xffffff as
   * `remoteQpNum`. On RoCE v2 over IPv4 groups are IPv4 multicast addresses, and the interface must have joined the
   * address (IP_ADD_MEMBERSHIP, dgram's addMembership()).
   *
   * @param group GID in any notation of an IPv6 or IPv4 address
   * @param lid LID of the group, 0 but on InfiniBand
   * @throws TypeError QUORATE_INVALID_ARGUMENT if it is no group, the queue pair is not UD, or attached already;
   * QuorateError QUORATE_SYSTEM if the device refuses, QUORATE_LIMIT
   */
  attachMulticast(group: string, lid = 0): void {
    this.native.attachMulticast(normalizeGid(group), lid);
  }

  /**
   * Undoes attachMulticast(), see ibv_detach_mcast(3). @throws TypeError QUORATE_INVALID_ARGUMENT if it is not attached
   */
  detachMulticast(group: string, lid = 0): void {
    this.native.detachMulticast(normalizeGid(group), lid);
  }

  #context(why: string): Context {
    const context = this.protectionDomain?.context;
    if (context === undefined) {
      throw invalidArgument(`this thread adopted the queue pair and does not know its device: ${why} must be given`);
    }
    return context;
  }

  /**
   * What the peer needs to connect to this queue pair.
   *
   * @throws QuorateError QUORATE_NO_GID; TypeError QUORATE_INVALID_ARGUMENT in a thread that adopted the pair, or if
   * there is no GID with the index
   */
  endpoint(options: EndpointOptions = {}): QueuePairEndpoint {
    checkOptions('options', options, ENDPOINT_OPTIONS);
    const { portNum = 1, sgidIndex } = options;
    const context = this.#context('its endpoint');
    const port = context.queryPort(portNum);
    let entry = sgidIndex === undefined ? context.chooseGid(portNum) : undefined;
    if (sgidIndex !== undefined) {
      entry = context.queryGids(portNum).find((candidate) => candidate.index === sgidIndex);
      if (entry === undefined) throw invalidArgument(`port ${portNum} of ${context.name} has no GID ${sgidIndex}`);
    }
    return {
      qpNum: this.number,
      psn: this.psn,
      gid: entry?.gid ?? '',
      lid: port.lid,
      pathMtuBytes: port.activeMtuBytes,
    };
  }

  /** Attributes of the transition RESET to INIT. */
  initAttributes(options: ToInitOptions = {}): QpAttributes {
    checkOptions('options', options, TO_INIT_OPTIONS);
    const { portNum = 1, pkeyIndex = 0, accessFlags = 0, qkey = 0 } = options;
    return { state: QpState.INIT, portNum, pkeyIndex, ...(this.type === QpType.UD ? { qkey } : { accessFlags }) };
  }

  /**
   * RESET to INIT, see ibv_modify_qp(3).
   *
   * @throws QuorateError QUORATE_QP_STATE
   */
  toInit(options: ToInitOptions = {}): void {
    this.modify(this.initAttributes(options));
  }

  /**
   * Attributes of the transition INIT to RTR, connecting to `remote`. For RC and UC; see {@link toDatagrams} for UD.
   */
  readyToReceiveAttributes(remote: QueuePairEndpoint, options: ToReadyToReceiveOptions = {}): QpAttributes {
    checkObject('remote', remote);
    checkOptions('options', options, TO_READY_TO_RECEIVE_OPTIONS);
    const { portNum = 1 } = options;
    const port = options.pathMtuBytes === undefined ? this.#context('pathMtuBytes').queryPort(portNum) : undefined;
    const context = this.protectionDomain?.context;
    const linkLayer = port?.linkLayer ?? context?.queryPort(portNum).linkLayer;
    const isGlobal = linkLayer !== 'InfiniBand';
    return {
      state: QpState.RTR,
      pathMtuBytes: options.pathMtuBytes ?? Math.min(port?.activeMtuBytes ?? remote.pathMtuBytes, remote.pathMtuBytes),
      destQpNum: remote.qpNum,
      rqPsn: remote.psn,
      ...(this.type === QpType.RC
        ? {
            maxDestRdAtomic:
              options.maxDestRdAtomic ??
              Math.min(DEFAULT_READS_IN_FLIGHT, this.#context('maxDestRdAtomic').limits.maxQpRdAtom),
            minRnrTimer: options.minRnrTimer ?? 12,
          }
        : {}),
      av: {
        isGlobal,
        ...(isGlobal ? { dgid: normalizeGid(remote.gid) } : {}),
        sgidIndex: options.sgidIndex ?? this.#context('sgidIndex').chooseGid(portNum).index,
        hopLimit: options.hopLimit ?? 64,
        trafficClass: options.trafficClass ?? 0,
        sl: options.serviceLevel ?? 0,
        dlid: remote.lid,
        portNum,
      },
    };
  }

  /**
   * INIT to RTR, see ibv_modify_qp(3): from here on requests of the peer are served. May block for about a second on
   * Ethernet while the peer's address is resolved; toReadyToReceiveAsync() does not block.
   *
   * @throws QuorateError QUORATE_QP_STATE, QUORATE_NO_GID, QUORATE_SYSTEM (peer's address cannot be resolved)
   */
  toReadyToReceive(remote: QueuePairEndpoint, options: ToReadyToReceiveOptions = {}): void {
    this.modify(this.readyToReceiveAttributes(remote, options));
  }

  /** The same without blocking this thread. */
  async toReadyToReceiveAsync(remote: QueuePairEndpoint, options: ToReadyToReceiveOptions = {}): Promise<void> {
    await this.modifyAsync(this.readyToReceiveAttributes(remote, options));
  }

  /** Attributes of the transition RTR to RTS. */
  readyToSendAttributes(options: ToReadyToSendOptions = {}): QpAttributes {
    checkOptions('options', options, TO_READY_TO_SEND_OPTIONS);
    const { psn = this.psn, timeout = 14, retryCnt = 7, rnrRetry = 7 } = options;
    if (this.type !== QpType.RC) return { state: QpState.RTS, sqPsn: psn };
    return {
      state: QpState.RTS,
      sqPsn: psn,
      timeout,
      retryCnt,
      rnrRetry,
      maxRdAtomic:
        options.maxRdAtomic ?? Math.min(DEFAULT_READS_IN_FLIGHT, this.#context('maxRdAtomic').limits.maxQpInitRdAtom),
    };
  }

  /**
   * RTR to RTS, see ibv_modify_qp(3): from here on requests can be posted.
   *
   * @throws QuorateError QUORATE_QP_STATE
   */
  toReadyToSend(options: ToReadyToSendOptions = {}): void {
    this.modify(this.readyToSendAttributes(options));
  }

  /**
   * The whole way of a UD queue pair, see ibv_modify_qp(3), from RESET to RTS: from here on it takes datagrams that
   * carry `qkey`, and sends to whoever an address handle names.
   *
   * @throws QuorateError QUORATE_QP_STATE if it is not a UD queue pair in RESET
   */
  toDatagrams(options: { qkey: number; portNum?: number; pkeyIndex?: number; psn?: number }): void {
    checkOptions('options', options, TO_DATAGRAMS_OPTIONS);
    const { psn = this.psn, ...init } = options;
    this.modify({ ...this.initAttributes(init), qkey: options.qkey });
    this.modify({ state: QpState.RTR });
    this.modify({ state: QpState.RTS, sqPsn: psn });
  }

  /**
   * To the error state, see ibv_modify_qp(3): everything outstanding is flushed. The pair is of no more use after it.
   */
  toError(): void {
    this.modify({ state: QpState.ERR });
  }
}
