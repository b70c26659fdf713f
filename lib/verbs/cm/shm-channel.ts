// The connection manager of the shm device: the same calls and events as librdmacm's, between processes of one host
// that use the same folder. Addresses must be this host's; ports are the device's own (shm-port.ts). The messages are in
// shm-frames.ts.
import { connect as openSocket, type Socket } from 'node:net';
import { resolve } from 'node:path';
import { QuorateError } from '../../errors.js';
import { type QpAttributes, QpState } from '../native.js';
import type { QueuePairEndpoint } from '../queue-pair.js';
import {
  type CmAddress,
  type CmConnectionParameters,
  CmEventType,
  type NativeCmEvent,
  type NativeCmEventChannel,
  type NativeCmId,
} from './native.js';
import { encodeFrame, type Frame, FrameReader, FrameType } from './shm-frames.js';
import { checkDirectory, isOwnAddress, portPath, ShmPort, shmDirectory } from './shm-port.js';

const DEVICE = 'shm';
/** Who connects to a port must say what it wants within this time, milliseconds. */
const INTRODUCTION_MS = 5000;
/** Connections to a port that have not said what they want. */
const MAX_STRANGERS = 64;
const EHOSTUNREACH = 113;
const ECONNRESET = 104;
const REASON_NOBODY_LISTENS = 8;
const REASON_REFUSED = 28;
const UNSPECIFIED = ['0.0.0.0', '::'];
const LOOPBACK = '127.0.0.1';
const FIRST_SOURCE_PORT = 32_768;
const SOURCE_PORTS = 16_384;
let sourcePorts = 0;

function refuse(what: string, syscall: string, advice: string): never {
  throw new QuorateError('QUORATE_SYSTEM', `${what} failed: EINVAL. ${advice}`, { errno: 22, syscall });
}

function closedError(kind: string): QuorateError {
  return new QuorateError('QUORATE_CLOSED', `this ${kind} is closed; make a new one`);
}

/** What the peer said, seen from this side: what the peer wants to do, this side must serve. */
function seenFromHere(parameters: CmConnectionParameters): CmConnectionParameters {
  const { responderResources, initiatorDepth } = parameters;
  return { ...parameters, responderResources: initiatorDepth, initiatorDepth: responderResources };
}

class ShmCmEventChannel implements NativeCmEventChannel {
  readonly kind = 'CmEventChannel';
  readonly directory: string;
  closed = false;
  readonly #ids = new Set<ShmCmId>();
  #callback: ((event: NativeCmEvent) => void) | null = null;
  #holder: NodeJS.Timeout | undefined;

  constructor(directory: string) {
    this.directory = directory;
  }

  share(): number {
    throw new QuorateError('QUORATE_UNSUPPORTED', 'a CmEventChannel belongs to the thread that made it');
  }

  createId(): ShmCmId {
    if (this.closed) throw closedError(this.kind);
    const id = new ShmCmId(this);
    this.#ids.add(id);
    return id;
  }

  onEvent(callback: ((event: NativeCmEvent) => void) | null): void {
    this.#callback = callback;
  }

  ref(): void {
    // All sockets are unreferenced: this alone holds the event loop.
    this.#holder ??= setInterval(() => {}, 0x7fffffff);
  }

  unref(): void {
    clearInterval(this.#holder);
    this.#holder = undefined;
  }

  close(): void {
    if (this.closed) return;
    for (const id of [...this.#ids]) id.close();
    this.closed = true;
    this.unref();
    this.#callback = null;
  }

  forget(id: ShmCmId): void {
    this.#ids.delete(id);
  }

  /** Never within the call that causes it, as with the kernel. */
  emit(event: NativeCmEvent): void {
    setImmediate(() => {
      if (event.id?.closed === true) return;
      this.#callback?.(event);
    });
  }
}

type State =
  | 'idle'
  | 'bound'
  | 'resolved'
  | 'routed'
  | 'listening'
  | 'connecting'
  | 'answered'
  | 'requested'
  | 'accepting'
  | 'connected'
  | 'ended';

class ShmCmId implements NativeCmId {
  readonly kind = 'CmId';
  closed = false;
  localAddress: CmAddress | null = null;
  peerAddress: CmAddress | null = null;
  readonly #channel: ShmCmEventChannel;
  #state: State = 'idle';
  #port: ShmPort | undefined;
  #socket: Socket | undefined;
  #strangers = 0;
  #ownEndpoint: QueuePairEndpoint | undefined;
  #peerEndpoint: QueuePairEndpoint | undefined;
  /** Of this side: what it said, and what the queue pair gets. */
  #parameters: CmConnectionParameters | undefined;
  #peerParameters: CmConnectionParameters | undefined;

  constructor(channel: ShmCmEventChannel) {
    this.#channel = channel;
  }

  get deviceName(): string {
    return this.localAddress === null ? '' : DEVICE;
  }

  get portNum(): number {
    return this.localAddress === null ? 0 : 1;
  }

  share(): number {
    throw new QuorateError('QUORATE_UNSUPPORTED', 'a CmId belongs to the thread that made its channel');
  }

  setEndpoint(endpoint: QueuePairEndpoint): void {
    this.#ownEndpoint = endpoint;
  }

  async bindAddress({ host, port }: CmAddress): Promise<void> {
    this.#check();
    if (this.#state !== 'idle') refuse('Binding', 'rdma_bind_addr', 'The id is in use already.');
    if (!isOwnAddress(host)) {
      throw new QuorateError(
        'QUORATE_SYSTEM',
        `Binding to ${host} failed: EADDRNOTAVAIL. This host has no such address.`,
        {
          errno: 99,
          syscall: 'rdma_bind_addr',
        },
      );
    }
    this.#state = 'bound';
    try {
      const taken = await ShmPort.take(this.#channel.directory, port);
      if (this.closed) {
        taken.close();
        throw closedError(this.kind);
      }
      this.#port = taken;
      this.localAddress = { host, port: taken.port };
    } catch (error) {
      this.#state = 'idle';
      throw error;
    }
  }

  listen(): void {
    this.#check();
    if (this.#state !== 'bound' || this.#port === undefined) {
      refuse('Listening', 'rdma_listen', 'Bind the id to an address first.');
    }
    this.#state = 'listening';
    this.#port.listen((socket) => this.#welcome(socket));
  }

  async resolveAddress(source: CmAddress | null, destination: CmAddress): Promise<void> {
    this.#check();
    // One that is bound already stays so, as with the kernel.
    if (source !== null && this.#state === 'idle') await this.bindAddress(source);
    if (this.#state !== 'idle' && (this.#state !== 'bound' || this.localAddress === null)) {
      refuse('Resolving an address', 'rdma_resolve_addr', 'The id is in use already.');
    }
    if (!isOwnAddress(destination.host)) {
      this.#emit(CmEventType.ADDR_ERROR, -EHOSTUNREACH);
      return;
    }
    checkDirectory(this.#channel.directory);
    this.localAddress ??= { host: destination.host, port: FIRST_SOURCE_PORT + (sourcePorts++ % SOURCE_PORTS) };
    this.peerAddress = destination;
    this.#state = 'resolved';
    this.#emit(CmEventType.ADDR_RESOLVED, 0);
  }

  resolveRoute(): void {
    this.#check();
    if (this.#state !== 'resolved') refuse('Resolving the route', 'rdma_resolve_route', 'Resolve the address first.');
    this.#state = 'routed';
    this.#emit(CmEventType.ROUTE_RESOLVED, 0);
  }

  connect(parameters: CmConnectionParameters): void {
    this.#check();
    const endpoint = this.#ownEndpoint;
    const { peerAddress, localAddress } = this;
    if (this.#state !== 'routed' || endpoint === undefined || peerAddress === null || localAddress === null) {
      refuse('Connecting', 'rdma_connect', 'Resolve address and route first.');
    }
    this.#state = 'connecting';
    this.#parameters = parameters;
    const socket = openSocket(portPath(this.#channel.directory, peerAddress.port));
    this.#attach(socket, new FrameReader());
    // An id that is bound to all addresses calls from the one that it calls.
    const host = [localAddress.host, peerAddress.host].find((own) => !UNSPECIFIED.includes(own)) ?? LOOPBACK;
    const source = { host, port: localAddress.port };
    socket.once('connect', () =>
      this.#send({ type: FrameType.REQ, reason: 0, connection: { endpoint, source, parameters } }),
    );
  }

  establish(): void {
    this.#check();
    if (this.#state !== 'answered') refuse('Completing a connection', 'rdma_establish', 'There is no answer.');
    this.#state = 'connected';
    this.#send({ type: FrameType.RTU, reason: 0 });
  }

  accept(parameters: CmConnectionParameters): void {
    this.#check();
    const endpoint = this.#ownEndpoint;
    if (this.#state !== 'requested' || endpoint === undefined) {
      refuse('Accepting a connection', 'rdma_accept', 'The id is no request, or the peer has given up.');
    }
    this.#state = 'accepting';
    this.#parameters = parameters;
    this.#send({
      type: FrameType.REP,
      reason: 0,
      connection: { endpoint, source: { host: '::', port: 0 }, parameters },
    });
  }

  reject(privateData: Uint8Array): void {
    this.#check();
    if (!['requested', 'accepting', 'answered'].includes(this.#state)) {
      refuse('Rejecting a connection', 'rdma_reject', 'The id is no request, or the peer has given up.');
    }
    this.#state = 'ended';
    this.#send({ type: FrameType.REJ, reason: REASON_REFUSED, privateData });
    this.#socket?.end();
  }

  disconnect(): void {
    this.#check();
    if (this.#state === 'connected' || this.#state === 'accepting') this.#send({ type: FrameType.DREQ, reason: 0 });
    else if (this.#state !== 'ended') refuse('Disconnecting', 'rdma_disconnect', 'There is no connection.');
  }

  queuePairAttributes(state: QpState): QpAttributes {
    this.#check();
    if (this.localAddress === null) refuse('Asking for attributes', 'rdma_init_qp_attr', 'Resolve the address first.');
    if (state === QpState.INIT) return { state, portNum: 1, pkeyIndex: 0, accessFlags: 0 };
    const own = this.#ownEndpoint;
    const peer = this.#peerEndpoint;
    if (own === undefined || peer === undefined) {
      refuse('Asking for attributes', 'rdma_init_qp_attr', 'The connection is not far enough for this state.');
    }
    if (state === QpState.RTR) {
      return {
        state,
        pathMtuBytes: Math.min(own.pathMtuBytes, peer.pathMtuBytes),
        destQpNum: peer.qpNum,
        rqPsn: peer.psn,
        maxDestRdAtomic: 0,
        minRnrTimer: 12,
        av: { isGlobal: true, dgid: peer.gid, sgidIndex: 0, portNum: 1 },
      };
    }
    const retryCnt = (this.#parameters ?? this.#peerParameters)?.retryCount ?? 7;
    // Each side says how long it wants to be waited for.
    const rnrRetry = this.#peerParameters?.rnrRetryCount ?? 7;
    return { state, sqPsn: own.psn, timeout: 14, retryCnt, rnrRetry, maxRdAtomic: 0 };
  }

  close(): void {
    if (this.closed) return;
    if (this.#state === 'requested') {
      this.#send({ type: FrameType.REJ, reason: REASON_REFUSED, privateData: new Uint8Array(0) });
    }
    this.closed = true;
    this.#port?.close();
    this.#socket?.destroySoon(); // when all is said, whether or not the peer, which may be stopped, hangs up, too
    this.#channel.forget(this);
  }

  #check(): void {
    if (this.closed) throw closedError(this.kind);
  }

  #emit(type: number, status: number, parameters: CmConnectionParameters | null = null): void {
    this.#channel.emit({ type, status, id: this, listener: null, parameters });
  }

  #send(frame: Frame): void {
    if (this.#socket?.writable === true) this.#socket.write(encodeFrame(frame));
  }

  /** Somebody connected to the port: it becomes a request when it says what it wants. */
  #welcome(socket: Socket): void {
    if (this.#strangers >= MAX_STRANGERS || this.closed) {
      socket.destroy();
      return;
    }
    this.#strangers++;
    socket.unref();
    const reader = new FrameReader();
    let introduced = false;
    const leave = () => {
      if (introduced) return;
      introduced = true;
      clearTimeout(timer);
      this.#strangers--;
    };
    const timer = setTimeout(() => socket.destroy(), INTRODUCTION_MS);
    timer.unref();
    socket.on('error', () => {});
    socket.once('close', leave);
    socket.on('data', (chunk: Buffer) => {
      if (introduced) return; // the request's own listener, below, has it
      let frames: Frame[];
      try {
        frames = reader.push(chunk);
      } catch {
        socket.destroy();
        return;
      }
      const [first, second] = frames;
      if (first === undefined) return;
      if (first.type !== FrameType.REQ || first.connection === undefined || second !== undefined || this.closed) {
        socket.destroy();
        return;
      }
      leave();
      const { endpoint, source, parameters } = first.connection;
      const request = this.#channel.createId();
      request.#state = 'requested';
      request.localAddress = this.localAddress;
      request.peerAddress = source;
      request.#peerEndpoint = endpoint;
      request.#peerParameters = parameters;
      request.#attach(socket, reader);
      this.#channel.emit({
        type: CmEventType.CONNECT_REQUEST,
        status: 0,
        id: request,
        listener: this,
        parameters: seenFromHere(parameters),
      });
    });
  }

  #attach(socket: Socket, reader: FrameReader): void {
    this.#socket = socket;
    socket.unref();
    let failure: { code?: string } | undefined;
    socket.on('error', (error) => (failure = error as { code?: string }));
    socket.on('data', (chunk: Buffer) => {
      try {
        for (const frame of reader.push(chunk)) this.#receive(frame);
      } catch {
        socket.destroy(); // the peer speaks something else: as if it were dead
      }
    });
    socket.once('close', () => {
      const state = this.#state;
      if (state === 'ended' || this.closed) return;
      this.#state = 'ended';
      if (state === 'connected' || state === 'accepting' || state === 'answered') {
        this.#emit(CmEventType.DISCONNECTED, 0);
      } else if (failure?.code === 'ENOENT' || failure?.code === 'ECONNREFUSED') {
        this.#emit(CmEventType.REJECTED, REASON_NOBODY_LISTENS);
      } else {
        this.#emit(CmEventType.UNREACHABLE, -ECONNRESET);
      }
    });
  }

  #receive(frame: Frame): void {
    const state = this.#state;
    if (this.closed) return;
    switch (frame.type) {
      case FrameType.REP:
        if (state !== 'connecting' || frame.connection === undefined) throw new Error('REP out of turn');
        this.#state = 'answered';
        this.#peerEndpoint = frame.connection.endpoint;
        this.#peerParameters = frame.connection.parameters;
        this.#emit(CmEventType.CONNECT_RESPONSE, 0, seenFromHere(frame.connection.parameters));
        break;
      case FrameType.RTU:
        if (state !== 'accepting') throw new Error('RTU out of turn');
        this.#state = 'connected';
        this.#emit(CmEventType.ESTABLISHED, 0);
        break;
      case FrameType.REJ:
        if (state !== 'connecting' && state !== 'accepting') throw new Error('REJ out of turn');
        this.#state = 'ended';
        this.#emit(CmEventType.REJECTED, frame.reason, {
          privateData: frame.privateData ?? new Uint8Array(0),
          responderResources: 0,
          initiatorDepth: 0,
          flowControl: false,
          retryCount: 0,
          rnrRetryCount: 0,
          srq: false,
          qpNum: 0,
        });
        this.#socket?.end();
        break;
      case FrameType.DREQ:
        if (state !== 'connected' && state !== 'accepting' && state !== 'answered') throw new Error('DREQ out of turn');
        this.#state = 'ended';
        this.#send({ type: FrameType.DREP, reason: 0 });
        this.#socket?.end();
        this.#emit(CmEventType.DISCONNECTED, 0);
        break;
      case FrameType.DREP:
        if (state === 'ended') break; // both sides began
        if (state !== 'connected') throw new Error('DREP out of turn');
        this.#state = 'ended';
        this.#socket?.end();
        this.#emit(CmEventType.DISCONNECTED, 0);
        break;
      default:
        throw new Error('a request on a connection');
    }
  }
}

/** The shm device's event channel; `directory` as in DeviceOptions.shmDirectory. */
export function openShmCmEventChannel(directory: string | undefined): NativeCmEventChannel {
  // Whole: the process may go to another working directory while the channel is open.
  return new ShmCmEventChannel(resolve(shmDirectory(directory)));
}
