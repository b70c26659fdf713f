// An id of the connection manager: one connection, or one listener.
import { lookup } from 'node:dns/promises';
import { isIP } from 'node:net';
import { invalidArgument, outOfRange, QuorateError } from '../../errors.js';
import { QpState } from '../native.js';
import { checkAbortable, checkInteger, checkObject, checkOptions, type Members } from '../options.js';
import { ProtectionDomain, type QueuePairOptions } from '../protection-domain.js';
import { QueuePair } from '../queue-pair.js';
import { existingFace, VerbsObject } from '../verbs-object.js';
import { type CmEvent, CmEventType, cmEventName, failureOf } from './event.js';
import type { CmEventChannel } from './event-channel.js';
import {
  ACCEPT_PRIVATE_DATA_BYTES,
  type CmAddress,
  type CmConnectionParameters,
  CONNECT_PRIVATE_DATA_BYTES,
  type NativeCmEvent,
  type NativeCmId,
  REJECT_PRIVATE_DATA_BYTES,
} from './native.js';

export type { CmAddress, CmConnectionParameters } from './native.js';
export { ACCEPT_PRIVATE_DATA_BYTES, CONNECT_PRIVATE_DATA_BYTES, REJECT_PRIVATE_DATA_BYTES } from './native.js';

/** For operations that wait. */
export interface CmWaitOptions {
  /** Gives up after this time, in milliseconds, 1 .. 600,000. The id is closed then: what is under way cannot be undone. */
  timeoutMs?: number;
  /** Gives up when it aborts, with its reason. The id is closed then, unless it had aborted before the call. */
  signal?: AbortSignal;
}

export interface ResolveAddressOptions extends CmWaitOptions {
  /** Own address to use; default: what the kernel's routing chooses. */
  source?: {
    /** Numeric address of an own interface. */
    host: string;
    /** 0 .. 65,535; default: one that is free. */
    port?: number;
  };
}

/** Where to listen, see rdma_listen(3). */
export interface ListenOptions {
  /** Address or name to listen on; default all of the devices' IPv4 addresses ("0.0.0.0"). */
  host?: string;
  /** 0 .. 65,535; 0 (default): one that is free, see `localAddress`. */
  port?: number;
  /** Requests that wait to be accepted; beyond that they are rejected. 1 .. 65,535, default 16. */
  backlog?: number;
}

export interface CmConnectOptions extends CmWaitOptions {
  /** Sent along, at most CONNECT_PRIVATE_DATA_BYTES. */
  privateData?: Uint8Array;
  /** READs and atomics of the peer that this side serves at once, 0 .. 255, as the device allows. Default 1. */
  responderResources?: number;
  /** Own READs and atomics in flight at once, 0 .. 255, as the device allows. Default 1. */
  initiatorDepth?: number;
  /** Hardware flow control (InfiniBand). Default false. */
  flowControl?: boolean;
  /** Repetitions of unanswered requests, 0 .. 7. Default 7. */
  retryCount?: number;
  /** Repetitions while the peer has no receive posted, 0 .. 6; 7 (default) = for ever. */
  rnrRetryCount?: number;
}

export interface CmAcceptOptions extends CmWaitOptions {
  /** Sent along, at most ACCEPT_PRIVATE_DATA_BYTES. */
  privateData?: Uint8Array;
  /** Default: what the peer asked for, or what the device can do. */
  responderResources?: number;
  /** Default: what the peer asked for, or what the device can do. */
  initiatorDepth?: number;
  /** Hardware flow control (InfiniBand). Default false. */
  flowControl?: boolean;
  /** Repetitions while the peer has no receive posted, 0 .. 6; 7 (default) = for ever. */
  rnrRetryCount?: number;
}

/** Of the queue pair of a connection. */
export interface CmQueuePairOptions {
  /** What the peer may do through this queue pair, bits of Access. Default 0: nothing but SEND. */
  accessFlags?: number;
}

/** Options of an iteration over requests or events. */
export interface CmIterationOptions {
  /** Ends the iteration when it aborts. */
  signal?: AbortSignal;
}

const ADDRESS: Members<CmAddress> = { host: true, port: true };
const WAIT_OPTIONS: Members<CmWaitOptions> = { timeoutMs: true, signal: true };
const RESOLVE_ADDRESS_OPTIONS: Members<ResolveAddressOptions> = { ...WAIT_OPTIONS, source: true };
const LISTEN_OPTIONS: Members<ListenOptions> = { ...ADDRESS, backlog: true };
const ACCEPT_OPTIONS: Members<CmAcceptOptions> = {
  ...WAIT_OPTIONS,
  privateData: true,
  responderResources: true,
  initiatorDepth: true,
  flowControl: true,
  rnrRetryCount: true,
};
const CONNECT_OPTIONS: Members<CmConnectOptions> = { ...ACCEPT_OPTIONS, retryCount: true };
const QUEUE_PAIR_OPTIONS: Members<CmQueuePairOptions> = { accessFlags: true };
const ITERATION_OPTIONS: Members<CmIterationOptions> = { signal: true };

const DEFAULT_RESOLVE_TIMEOUT_MS = 2000;
const DEFAULT_CONNECT_TIMEOUT_MS = 10_000;
const MAX_TIMEOUT_MS = 600_000;
/** The kernel tells of its own timeouts; this much later it is no longer waited for. */
const GRACE_MS = 1000;
const DEFAULT_BACKLOG = 16;
/** Events that wait for an iteration to take them. */
const MAX_WAITING_EVENTS = 256;

interface Operation {
  what: string;
  /** Events that end it well. */
  wanted: readonly number[];
  settle(event: CmEvent | Error): void;
}

/** Events that end any operation badly. */
const FAILURES: readonly number[] = [
  CmEventType.ADDR_ERROR,
  CmEventType.ROUTE_ERROR,
  CmEventType.CONNECT_ERROR,
  CmEventType.UNREACHABLE,
  CmEventType.REJECTED,
  CmEventType.DISCONNECTED,
  CmEventType.DEVICE_REMOVAL,
];

function show({ host, port }: CmAddress): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

function checkPrivateData(bytes: Uint8Array | undefined, most: number): Uint8Array {
  if (bytes === undefined) return new Uint8Array(0);
  if (!(bytes instanceof Uint8Array)) throw invalidArgument('privateData must be a Uint8Array');
  if (bytes.length > most) {
    throw outOfRange(`privateData must have at most ${most} bytes here, got ${bytes.length}`);
  }
  // Exactly these bytes, whatever subclass (Buffer) and pool they are of.
  return Uint8Array.from(bytes);
}

function checkAddress({ host, port }: CmAddress): void {
  if (typeof host !== 'string' || host === '') throw invalidArgument('host must be an address or a name');
  checkInteger('port', port, 0, 65_535);
}

/** A name becomes an address without blocking the thread; addresses stay what they are. */
async function numeric(host: string, port: number): Promise<CmAddress> {
  checkAddress({ host, port });
  if (isIP(host) !== 0) return { host, port };
  try {
    return { host: (await lookup(host)).address, port };
  } catch (cause) {
    const message = `the name ${host} has no address; check it, or give an address`;
    throw new QuorateError('QUORATE_CM_UNREACHABLE', message, { syscall: 'getaddrinfo', cause });
  }
}

/** See rdma_create_id(3). Made by CmEventChannel.createId() and, for requests of peers, by a listener. */
export class CmId extends VerbsObject<NativeCmId> {
  /** The channel it was made from. */
  readonly channel: CmEventChannel;
  /** Of an id that a listener delivered: what the peer asks for, and its private data (check before use). Else null. */
  readonly request: CmConnectionParameters | null;
  #queuePair: QueuePair | undefined;
  #srq = false;
  #accessFlags = 0;
  #operation: Operation | undefined;
  #connected = false;
  #ended = false;
  #listening: { backlog: number } | undefined;
  readonly #requests: CmId[] = [];
  readonly #onRequest = new Set<() => void>();
  readonly #onEvent = new Set<(event: CmEvent | null) => void>();

  private constructor(native: NativeCmId, channel: CmEventChannel, request: CmConnectionParameters | null) {
    super(native, channel);
    this.channel = channel;
    this.request = request;
  }

  /** @internal */
  static of(native: NativeCmId, channel: CmEventChannel, request: CmConnectionParameters | null = null): CmId {
    return CmId.existing(native) ?? new CmId(native, channel, request);
  }

  /** @internal */
  static existing(native: NativeCmId): CmId | undefined {
    return existingFace(native) as CmId | undefined;
  }

  /** Name of the device that the connection is to use, for openDevice(); "" until the address is resolved or bound. */
  get deviceName(): string {
    return this.native.deviceName;
  }

  /** Port of that device; 0 until the address is resolved or bound. */
  get portNum(): number {
    return this.native.portNum;
  }

  /** rdma_get_local_addr(3); null until it is known. */
  get localAddress(): CmAddress | null {
    return this.native.localAddress;
  }

  /** rdma_get_peer_addr(3); null until it is known. */
  get peerAddress(): CmAddress | null {
    return this.native.peerAddress;
  }

  /** True between connect() or accept() and the end of the connection. */
  get connected(): boolean {
    return this.#connected && !this.#ended && !this.closed;
  }

  /** The queue pair of the connection, see createQueuePair(). */
  get queuePair(): QueuePair | undefined {
    return this.#queuePair;
  }

  /**
   * Finds the RDMA address behind an IP address or name and binds the id to the device that leads there, see
   * rdma_resolve_addr(3).
   *
   * @param options `timeoutMs` default 2000
   * @throws CmError QUORATE_CM_UNREACHABLE; QuorateError QUORATE_SYSTEM (no RDMA device leads there), QUORATE_TIMEOUT,
   * QUORATE_CM_UNREACHABLE for a name without address
   */
  async resolveAddress(
    destination: { host: string; port: number },
    options: ResolveAddressOptions = {},
  ): Promise<void> {
    checkOptions('destination', destination, ADDRESS);
    checkAbortable(options, RESOLVE_ADDRESS_OPTIONS);
    const { source } = options;
    if (source !== undefined) checkOptions<Partial<CmAddress>>('source', source, ADDRESS);
    const timeoutMs = checkInteger('timeoutMs', options.timeoutMs ?? DEFAULT_RESOLVE_TIMEOUT_MS, 1, MAX_TIMEOUT_MS);
    checkAddress(destination);
    await this.#perform(
      `resolving ${show(destination)}`,
      [CmEventType.ADDR_RESOLVED],
      timeoutMs + GRACE_MS,
      options.signal,
      async () => {
        const to = await numeric(destination.host, destination.port);
        const from = source === undefined ? null : await numeric(source.host, source.port ?? 0);
        await this.native.resolveAddress(from, to, timeoutMs); // refused if the id was closed meanwhile
      },
    );
  }

  /**
   * Finds the path to the peer, see rdma_resolve_route(3); after resolveAddress().
   *
   * @param options `timeoutMs` default 2000
   * @throws CmError QUORATE_CM_UNREACHABLE; QuorateError QUORATE_SYSTEM, QUORATE_TIMEOUT
   */
  async resolveRoute(options: CmWaitOptions = {}): Promise<void> {
    checkAbortable(options, WAIT_OPTIONS);
    const timeoutMs = checkInteger('timeoutMs', options.timeoutMs ?? DEFAULT_RESOLVE_TIMEOUT_MS, 1, MAX_TIMEOUT_MS);
    await this.#perform('resolving the route', [CmEventType.ROUTE_RESOLVED], timeoutMs + GRACE_MS, options.signal, () =>
      this.native.resolveRoute(timeoutMs),
    );
  }

  /**
   * A queue pair for this connection, in state INIT: receives can be posted at once. It is the domain's like any other,
   * and is not closed with the id. To be called after resolveAddress(), or on an id that a listener delivered; the domain
   * is of the device `deviceName`.
   *
   * @throws as ProtectionDomain.createQueuePair(); TypeError QUORATE_INVALID_ARGUMENT for a domain of another device
   */
  createQueuePair(domain: ProtectionDomain, options: QueuePairOptions & CmQueuePairOptions): QueuePair {
    if (!(domain instanceof ProtectionDomain)) throw invalidArgument('domain must be a ProtectionDomain');
    checkObject('options', options);
    const { accessFlags = 0, ...rest } = options;
    this.#checkDevice(domain);
    const queuePair = domain.createQueuePair(rest);
    try {
      this.useQueuePair(queuePair, { accessFlags }, options.srq !== undefined);
    } catch (error) {
      queuePair.close();
      throw error;
    }
    return queuePair;
  }

  /**
   * The same with a queue pair that exists: RC, in state RESET; it goes to INIT.
   *
   * @param srq whether it has a shared receive queue
   * @throws QuorateError QUORATE_QP_STATE; TypeError QUORATE_INVALID_ARGUMENT; RangeError QUORATE_OUT_OF_RANGE
   */
  useQueuePair(queuePair: QueuePair, options: CmQueuePairOptions = {}, srq = false): void {
    checkOptions('options', options, QUEUE_PAIR_OPTIONS);
    if (!(queuePair instanceof QueuePair)) throw invalidArgument('queuePair must be a QueuePair');
    if (this.#queuePair !== undefined) throw invalidArgument('this CmId has a queue pair already');
    if (queuePair.protectionDomain === undefined) {
      throw invalidArgument('this thread adopted the queue pair and does not know its device');
    }
    this.#checkDevice(queuePair.protectionDomain);
    const accessFlags = checkInteger('accessFlags', options.accessFlags ?? 0, 0, 31);
    queuePair.modify({ ...this.native.queuePairAttributes(QpState.INIT), accessFlags });
    this.native.setEndpoint?.(queuePair.endpoint());
    this.#queuePair = queuePair;
    this.#accessFlags = accessFlags;
    this.#srq = srq;
  }

  #checkDevice(domain: ProtectionDomain): void {
    const name = domain.context?.name;
    if (this.deviceName === '') throw invalidArgument('the id is bound to no device yet: call resolveAddress() first');
    if (name !== undefined && name !== this.deviceName) {
      throw invalidArgument(`the id needs a queue pair of device ${this.deviceName}, this one is of ${name}`);
    }
  }

  #needQueuePair(): QueuePair {
    if (this.#queuePair === undefined) throw invalidArgument('the id has no queue pair: call createQueuePair() first');
    return this.#queuePair;
  }

  /**
   * Connects to the peer, see rdma_connect(3) and rdma_establish(3); after resolveRoute() and createQueuePair(). When it
   * resolves the queue pair is in RTS.
   *
   * @param options `timeoutMs` default 10,000
   * @returns what the peer answered
   * @throws CmError QUORATE_CM_REJECTED (with the peer's private data), QUORATE_CM_UNREACHABLE, QUORATE_CM_FAILED;
   * QuorateError QUORATE_TIMEOUT, QUORATE_SYSTEM, QUORATE_QP_STATE; RangeError QUORATE_OUT_OF_RANGE
   */
  async connect(options: CmConnectOptions = {}): Promise<CmConnectionParameters> {
    checkAbortable(options, CONNECT_OPTIONS);
    const queuePair = this.#needQueuePair();
    const timeoutMs = checkInteger('timeoutMs', options.timeoutMs ?? DEFAULT_CONNECT_TIMEOUT_MS, 1, MAX_TIMEOUT_MS);
    const parameters = this.#parameters(queuePair, CONNECT_PRIVATE_DATA_BYTES, options, {
      responderResources: 1,
      initiatorDepth: 1,
    });
    const what = `connecting to ${this.peerAddress === null ? 'the peer' : show(this.peerAddress)}`;
    const release = this.channel.hold();
    try {
      const answer = await this.#perform(what, [CmEventType.CONNECT_RESPONSE], timeoutMs, options.signal, () =>
        this.native.connect(parameters),
      );
      if (answer.parameters === null) throw new QuorateError('QUORATE_CM_FAILED', `${what}: the answer says nothing`);
      try {
        await this.#toReadyToSend(queuePair, parameters);
        options.signal?.throwIfAborted(); // while that went on
        this.native.establish();
      } catch (error) {
        this.#giveUp();
        throw error;
      }
      this.#connected = true;
      return answer.parameters;
    } finally {
      release();
    }
  }

  /**
   * Accepts the connection that a peer asks for, see rdma_accept(3); after createQueuePair(). When it resolves the peer
   * has confirmed and the queue pair is in RTS.
   *
   * @param options `timeoutMs` default 10,000
   * @throws CmError QUORATE_CM_UNREACHABLE, QUORATE_CM_REJECTED (the peer gave up), QUORATE_CM_FAILED; QuorateError
   * QUORATE_TIMEOUT, QUORATE_SYSTEM, QUORATE_QP_STATE; RangeError QUORATE_OUT_OF_RANGE
   */
  async accept(options: CmAcceptOptions = {}): Promise<void> {
    checkAbortable(options, ACCEPT_OPTIONS);
    const { request } = this;
    if (request === null) throw invalidArgument('accept() is for ids that a listener delivered');
    const queuePair = this.#needQueuePair();
    const timeoutMs = checkInteger('timeoutMs', options.timeoutMs ?? DEFAULT_CONNECT_TIMEOUT_MS, 1, MAX_TIMEOUT_MS);
    // The peer's wishes, as far as the device can meet them.
    const limits = queuePair.protectionDomain?.context?.limits;
    const parameters = this.#parameters(queuePair, ACCEPT_PRIVATE_DATA_BYTES, options, {
      responderResources: Math.min(request.responderResources, limits?.maxQpRdAtom ?? 0),
      initiatorDepth: Math.min(request.initiatorDepth, limits?.maxQpInitRdAtom ?? 0),
    });
    options.signal?.throwIfAborted();
    const release = this.channel.hold();
    try {
      try {
        await this.#toReadyToSend(queuePair, parameters);
        options.signal?.throwIfAborted(); // while that went on
      } catch (error) {
        this.#giveUp();
        throw error;
      }
      await this.#perform('accepting', [CmEventType.ESTABLISHED], timeoutMs, options.signal, () =>
        this.native.accept(parameters),
      );
      this.#connected = true;
    } finally {
      release();
    }
  }

  #parameters(
    queuePair: QueuePair,
    mostPrivateDataBytes: number,
    options: CmConnectOptions & CmAcceptOptions,
    defaults: { responderResources: number; initiatorDepth: number },
  ): CmConnectionParameters {
    const { flowControl = false } = options;
    if (typeof flowControl !== 'boolean') throw invalidArgument('flowControl must be a boolean');
    const responderResources = options.responderResources ?? defaults.responderResources;
    const initiatorDepth = options.initiatorDepth ?? defaults.initiatorDepth;
    return {
      privateData: checkPrivateData(options.privateData, mostPrivateDataBytes),
      responderResources: checkInteger('responderResources', responderResources, 0, 255),
      initiatorDepth: checkInteger('initiatorDepth', initiatorDepth, 0, 255),
      flowControl,
      retryCount: checkInteger('retryCount', options.retryCount ?? 7, 0, 7),
      rnrRetryCount: checkInteger('rnrRetryCount', options.rnrRetryCount ?? 7, 0, 7),
      srq: this.#srq,
      qpNum: queuePair.number,
    };
  }

  /** What librdmacm does with a queue pair of its own (ucma_modify_qp_rtr, ucma_modify_qp_rts). */
  async #toReadyToSend(queuePair: QueuePair, parameters: CmConnectionParameters): Promise<void> {
    const { native } = this;
    // The path may differ from what the first transition to INIT assumed.
    const accessFlags = this.#accessFlags;
    queuePair.modify({ ...native.queuePairAttributes(QpState.INIT), accessFlags });
    const maxDestRdAtomic = parameters.responderResources;
    // Off this thread: the transition to RTR may wait for the network to resolve the peer's address.
    await queuePair.modifyAsync({ ...native.queuePairAttributes(QpState.RTR), maxDestRdAtomic });
    const maxRdAtomic = parameters.initiatorDepth;
    queuePair.modify({ ...native.queuePairAttributes(QpState.RTS), maxRdAtomic });
  }

  /** After a failure between the messages of the connection: the peer need not wait until it has given up itself. */
  #giveUp(): void {
    if (this.closed) return;
    try {
      this.native.reject(new Uint8Array(0));
    } catch {
      // The peer has gone; closing says the rest.
    }
    this.close();
  }

  /**
   * Refuses the connection that a peer asks for, see rdma_reject(3), and closes the id.
   *
   * @param privateData sent along, at most REJECT_PRIVATE_DATA_BYTES
   * @throws QuorateError QUORATE_SYSTEM if there is nothing to refuse any more; RangeError QUORATE_OUT_OF_RANGE
   */
  reject(privateData?: Uint8Array): void {
    if (this.request === null) throw invalidArgument('reject() is for ids that a listener delivered');
    this.native.reject(checkPrivateData(privateData, REJECT_PRIVATE_DATA_BYTES));
    this.close();
  }

  /**
   * Binds the id to an own address, see rdma_bind_addr(3). resolveAddress() and listen() do it themselves.
   *
   * @throws QuorateError QUORATE_SYSTEM (EADDRINUSE, ENODEV, ...), QUORATE_CM_UNREACHABLE for a name without address
   */
  async bindAddress(address: { host: string; port?: number }): Promise<void> {
    checkOptions<Partial<CmAddress>>('address', address, ADDRESS);
    await this.native.bindAddress(await numeric(address.host, address.port ?? 0));
  }

  /**
   * Listens for connections, see rdma_listen(3). Take them with requests().
   *
   * @throws QuorateError QUORATE_SYSTEM (EADDRINUSE, ENODEV, ...), QUORATE_CM_UNREACHABLE for a name without address
   */
  async listen(options: ListenOptions = {}): Promise<void> {
    checkOptions('options', options, LISTEN_OPTIONS);
    const { host = '0.0.0.0', port = 0 } = options;
    const backlog = checkInteger('backlog', options.backlog ?? DEFAULT_BACKLOG, 1, 65_535);
    if (this.closed) throw this.#closedError();
    if (this.#listening !== undefined) throw invalidArgument('this CmId listens already');
    const address = await numeric(host, port);
    if (this.localAddress === null) await this.native.bindAddress(address);
    if (this.closed) throw this.#closedError(); // while it waited
    await this.native.listen(backlog);
    this.#listening = { backlog };
  }

  /**
   * The connections that peers ask for, one after the other, until the loop is left, the signal aborts or the id is
   * closed. Each is an id with `request`; accept() or reject() it. Requests that are not taken wait, at most `backlog`.
   *
   * @example
   * for await (const id of listener.requests({ signal })) serve(id).catch(report);
   */
  async *requests(options: CmIterationOptions = {}): AsyncGenerator<CmId, void, void> {
    checkAbortable(options, ITERATION_OPTIONS);
    const { signal } = options;
    let wake: (() => void) | undefined;
    const notify = () => wake?.();
    this.#onRequest.add(notify);
    signal?.addEventListener('abort', notify);
    const release = this.channel.hold();
    try {
      for (;;) {
        if (signal?.aborted) return;
        const next = this.#requests.shift();
        if (next !== undefined) {
          if (!next.closed) yield next;
          continue;
        }
        if (this.closed) return;
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
        wake = undefined;
      }
    } finally {
      release();
      signal?.removeEventListener('abort', notify);
      this.#onRequest.delete(notify);
    }
  }

  /**
   * All events of this id from the call on, those included that end an operation, until the loop is left, the signal
   * aborts or the id is closed. Requests of peers are not among them, see requests().
   *
   * @throws QuorateError QUORATE_LIMIT, out of the loop, when 256 events wait to be taken
   */
  events(options: CmIterationOptions = {}): AsyncGenerator<CmEvent, void, void> {
    checkAbortable(options, ITERATION_OPTIONS);
    const events = this.#events(options.signal);
    // Runs it as far as its first `yield`, so that it listens from now on, and lets go whenever it is ended.
    void events.next();
    return events;
  }

  async *#events(signal: AbortSignal | undefined): AsyncGenerator<CmEvent, void, void> {
    const waiting: CmEvent[] = [];
    let wake: (() => void) | undefined;
    let overflowed = false;
    const onAbort = () => wake?.();
    const take = (event: CmEvent | null) => {
      if (event === null)
        signal?.removeEventListener('abort', onAbort); // the id was closed
      else if (waiting.length >= MAX_WAITING_EVENTS) overflowed = true;
      else waiting.push(event);
      wake?.();
    };
    if (!this.closed) {
      // Else nothing would let go of these if the iteration never begins.
      this.#onEvent.add(take);
      signal?.addEventListener('abort', onAbort);
    }
    let release: (() => void) | undefined;
    try {
      yield undefined as never; // to events()
      release = this.channel.hold();
      for (;;) {
        if (signal?.aborted) return;
        const event = waiting.shift();
        if (event !== undefined) {
          yield event;
          continue;
        }
        if (overflowed) {
          throw new QuorateError('QUORATE_LIMIT', `more than ${MAX_WAITING_EVENTS} events waited to be taken`);
        }
        if (this.closed) return;
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
        wake = undefined;
      }
    } finally {
      release?.();
      signal?.removeEventListener('abort', onAbort);
      this.#onEvent.delete(take);
    }
  }

  /**
   * Resolves when the connection has ended: by either side's disconnect(), the peer's death or the loss of the device.
   * At once if it has ended already.
   *
   * @param options no `timeoutMs`: waits for ever; giving up leaves the id as it is
   * @throws QuorateError QUORATE_TIMEOUT, QUORATE_CLOSED (the id was closed before that); the signal's reason
   */
  async disconnected(options: CmWaitOptions = {}): Promise<void> {
    checkAbortable(options, WAIT_OPTIONS);
    const { timeoutMs, signal } = options;
    if (timeoutMs !== undefined) checkInteger('timeoutMs', timeoutMs, 1, MAX_TIMEOUT_MS);
    signal?.throwIfAborted();
    if (this.#ended) return;
    if (this.closed) throw this.#closedError();
    const release = this.channel.hold();
    try {
      await new Promise<void>((resolve, reject) => {
        const done = (error?: unknown) => {
          clearTimeout(timer);
          signal?.removeEventListener('abort', onAbort);
          this.#onEvent.delete(look);
          if (error === undefined) resolve();
          else reject(error);
        };
        const look = () => {
          if (this.#ended) done();
          else if (this.closed) done(this.#closedError());
        };
        const onAbort = () => done(signal?.reason);
        const timer =
          timeoutMs === undefined
            ? undefined
            : setTimeout(
                () => done(new QuorateError('QUORATE_TIMEOUT', `the connection lasts longer than ${timeoutMs} ms`)),
                timeoutMs,
              ).unref();
        this.#onEvent.add(look);
        signal?.addEventListener('abort', onAbort);
      });
    } finally {
      release();
    }
  }

  /**
   * Ends the connection, see rdma_disconnect(3): the queue pair goes to ERR, its outstanding requests are flushed, and
   * the peer gets DISCONNECTED. Resolves when the peer has answered (or is known to be gone). When the peer disconnects,
   * all this is done for you.
   *
   * @param options `timeoutMs` default 10,000
   * @throws QuorateError QUORATE_TIMEOUT (the id is closed then), QUORATE_SYSTEM if there is no connection
   */
  async disconnect(options: CmWaitOptions = {}): Promise<void> {
    checkAbortable(options, WAIT_OPTIONS);
    const timeoutMs = checkInteger('timeoutMs', options.timeoutMs ?? DEFAULT_CONNECT_TIMEOUT_MS, 1, MAX_TIMEOUT_MS);
    options.signal?.throwIfAborted();
    if (this.#ended) return;
    this.#flush();
    const wanted = [CmEventType.DISCONNECTED];
    await this.#perform('disconnecting', wanted, timeoutMs, options.signal, () => this.native.disconnect());
  }

  #flush(): void {
    const queuePair = this.#queuePair;
    if (queuePair === undefined || queuePair.closed) return;
    try {
      queuePair.toError();
    } catch {
      // It is gone with its device.
    }
  }

  /** The operation that is under way, and iterations over events and requests, end: QUORATE_CLOSED. */
  override close(): void {
    if (this.closed) {
      super.close();
      return;
    }
    super.close();
    this.#operation?.settle(this.#closedError());
    for (const request of this.#requests.splice(0)) request.close();
    for (const notify of [...this.#onRequest]) notify();
    for (const take of [...this.#onEvent]) take(null);
  }

  /** Ids belong to the thread that made their channel. @throws TypeError QUORATE_INVALID_ARGUMENT always */
  override share(): number {
    throw invalidArgument('a CmId belongs to the thread that made its channel');
  }

  /** @internal */
  deliver(native: Omit<NativeCmEvent, 'id' | 'listener'>): void {
    if (this.closed) return;
    const event: CmEvent = { ...native, name: cmEventName(native.type) };
    if (event.type === CmEventType.DISCONNECTED || event.type === CmEventType.DEVICE_REMOVAL) {
      if (!this.#ended) {
        this.#ended = true;
        this.#flush();
        try {
          this.native.disconnect(); // the answer, for which the peer waits
        } catch {
          // It was this side that began, or the peer waits no more.
        }
      }
    }
    const operation = this.#operation;
    if (operation !== undefined) {
      if (operation.wanted.includes(event.type)) operation.settle(event);
      else if (FAILURES.includes(event.type)) operation.settle(failureOf(operation.what, event));
    }
    for (const take of [...this.#onEvent]) take(event);
  }

  /** @internal */
  deliverRequest(request: CmId): void {
    if (this.closed || this.#requests.length >= (this.#listening?.backlog ?? 0)) {
      request.close(); // which rejects it
      return;
    }
    this.#requests.push(request);
    for (const notify of [...this.#onRequest]) notify();
  }

  #closedError(): QuorateError {
    return new QuorateError('QUORATE_CLOSED', 'this CmId is closed; make a new one');
  }

  /** Begins an operation and waits for the event that ends it. */
  async #perform(
    what: string,
    wanted: readonly number[],
    timeoutMs: number,
    signal: AbortSignal | undefined,
    begin: () => void | Promise<void>,
  ): Promise<CmEvent> {
    signal?.throwIfAborted();
    if (this.closed) throw this.#closedError();
    if (this.#operation !== undefined) {
      throw invalidArgument(`this CmId is busy ${this.#operation.what}; wait until that has ended`);
    }
    const release = this.channel.hold();
    try {
      return await new Promise<CmEvent>((resolve, reject) => {
        let timer: NodeJS.Timeout | undefined;
        const giveUp = (reason: unknown) => {
          finish();
          try {
            this.close();
            reject(reason);
          } catch (error) {
            reject(error);
          }
        };
        const onAbort = () => giveUp(signal?.reason);
        const finish = () => {
          clearTimeout(timer);
          signal?.removeEventListener('abort', onAbort);
          if (this.#operation === operation) this.#operation = undefined;
        };
        const operation: Operation = {
          what,
          wanted,
          settle(event) {
            finish();
            if (event instanceof Error) reject(event);
            else resolve(event);
          },
        };
        this.#operation = operation;
        const refused = (error: unknown) => {
          finish();
          reject(error);
        };
        try {
          begin()?.catch(refused);
        } catch (error) {
          refused(error);
          return;
        }
        signal?.addEventListener('abort', onAbort);
        timer = setTimeout(() => {
          giveUp(new QuorateError('QUORATE_TIMEOUT', `${what} took longer than ${timeoutMs} ms; the id was closed`));
        }, timeoutMs);
        timer.unref(); // whether the event loop is held is the channel's decision
      });
    } finally {
      release();
    }
  }
}
