// The listening end of the control channel. Whoever connects is a stranger until TLS has proven the cluster key and
// both hellos were accepted; until then it gets little time, little memory (OpenSSL ends a handshake that exceeds some
// 150 KiB, frames are limited to HELLO_FRAME_BYTES_MAX) and no more than a place that a newcomer may take over.
import { lookup } from 'node:dns/promises';
import { EventEmitter } from 'node:events';
import { type AddressInfo, createServer as createTcpServer, type Server, type Socket } from 'node:net';
import { createServer as createTlsServer } from 'node:tls';
import { invalidArgument, outOfRange, QuorateError } from '../../errors.js';
import { formatAddress, isLoopback } from './address.js';
import { assertPreSharedKey, deriveTransportKey, serverTlsOptions } from './cluster-key.js';
import { ControlConnection } from './connection.js';
import { Deadline } from './deadline.js';
import { FrameTransport } from './frame-transport.js';
import { encodeFrame, FRAME_HEADER_BYTES, FrameKind } from './frames.js';
import { type ControlIdentity, exchangeHello } from './hello.js';
import {
  CONNECTIONS_MAX,
  CONNECTIONS_PER_PEER_MAX,
  HANDSHAKE_TIMEOUT_MS,
  KEEP_ALIVE_IDLE_MS,
  LISTEN_BACKLOG,
} from './limits.js';
import { RejectionLog } from './rejections.js';
import { isWrongKey, systemDetails } from './socket-error.js';

export interface ControlServerOptions extends ControlIdentity {
  /** Without a key the server listens on loopback only, and any process of the host can speak to it. */
  readonly clusterKey?: Uint8Array | string | undefined;
  /** Time for TLS and hello together, default HANDSHAKE_TIMEOUT_MS. */
  readonly handshakeTimeoutMs?: number | undefined;
}

/**
 * "connection": a member has connected; register handlers at once, frames come from the next turn of the event loop on.
 * "warning": connections were rejected (at most one event per reason and WARNING_INTERVAL_MS), or could not be accepted.
 */
export interface ControlServerEvents {
  connection: [connection: ControlConnection];
  warning: [error: QuorateError];
}

/** First byte of a TLS record that starts a handshake, and of a frame (whose length is below 2^24). */
const TLS_HANDSHAKE_BYTE = 0x16;
const FRAME_BYTE = 0x00;
/** TLS 1.2 record with the fatal alert access_denied: tells a peer that has a key that this replica has none. */
const TLS_ACCESS_DENIED = Buffer.from([0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x31]);

/** A socket that has not introduced itself yet. */
interface Stranger {
  readonly socket: Socket;
  readonly deadline: Deadline;
  readonly endsAt_ms: number;
  /** Why this side cut it off. */
  cutBecause: QuorateError | undefined;
}

export class ControlServer extends EventEmitter<ControlServerEvents> {
  private readonly identity: ControlIdentity;
  private readonly transportKey: Buffer | undefined;
  private readonly handshakeTimeoutMs: number;
  private readonly server: Server;
  private readonly sockets = new Set<Socket>();
  /** In order of arrival. */
  private readonly strangers = new Set<Stranger>();
  private readonly connections_ = new Set<ControlConnection>();
  private readonly rejections: RejectionLog;
  private isReferenced = true;
  private listening: Promise<AddressInfo> | undefined;
  private closing: Promise<void> | undefined;

  /** Throws QUORATE_CLUSTER_KEY if there is a key that cannot be used. */
  constructor(options: ControlServerOptions) {
    super();
    this.identity = options;
    this.transportKey = options.clusterKey === undefined ? undefined : deriveTransportKey(options.clusterKey);
    this.handshakeTimeoutMs = options.handshakeTimeoutMs ?? HANDSHAKE_TIMEOUT_MS;
    this.rejections = new RejectionLog((error) => this.emit('warning', error));
    this.server = createTcpServer({ noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEP_ALIVE_IDLE_MS });
    this.server.on('connection', (socket) => this.arrived(socket));
  }

  /**
   * Starts to listen and resolves with the address (port 0: one that the system chose). Rejects with
   * QUORATE_CLUSTER_KEY (no key, and the address is not a loopback one), QUORATE_ADDRESS_IN_USE, or QUORATE_SYSTEM.
   */
  listen(host: string, port: number): Promise<AddressInfo> {
    if (this.listening !== undefined) return Promise.reject(invalidArgument('listen() was called before'));
    this.listening = this.startListening(host, port);
    return this.listening;
  }

  private async startListening(host: string, port: number): Promise<AddressInfo> {
    if (typeof host !== 'string' || host === '') throw invalidArgument('the host to listen on is missing');
    if (!Number.isInteger(port) || port < 0 || port > 65_535) throw outOfRange(`port ${port} is outside 0..65535`);
    const where = formatAddress(host, port);
    let address: string;
    try {
      ({ address } = await lookup(host));
    } catch (error) {
      throw new QuorateError(
        'QUORATE_SYSTEM',
        `the host of ${where} cannot be resolved`,
        systemDetails(error as Error),
      );
    }
    // The address that was checked is the one that is used: the name may resolve differently a moment later.
    if (this.transportKey === undefined && !isLoopback(address)) {
      throw new QuorateError(
        'QUORATE_CLUSTER_KEY',
        `without a cluster key the control channel listens on loopback only, not on ${where}; configure a cluster key`,
      );
    }
    if (this.closing !== undefined) throw new QuorateError('QUORATE_CLOSED', 'the control server was closed');
    await new Promise<void>((resolve, reject) => {
      const failed = (error: NodeJS.ErrnoException) => {
        const details = systemDetails(error);
        reject(
          error.code === 'EADDRINUSE'
            ? new QuorateError(
                'QUORATE_ADDRESS_IN_USE',
                `${where} is held by another process, perhaps a second replica with this id; stop it or choose another port`,
                details,
              )
            : new QuorateError('QUORATE_SYSTEM', `cannot listen on ${where}: ${error.message}`, details),
        );
      };
      this.server.once('error', failed);
      // exclusive: worker processes of node:cluster must not share the port of a replica.
      this.server.listen({ host: address, port, backlog: LISTEN_BACKLOG, exclusive: true }, () => {
        this.server.off('error', failed);
        // Later errors are those of accept(), such as too many open files.
        this.server.on('error', (error) => {
          const message = `a connection to ${where} could not be accepted: ${error.message}`;
          this.emit('warning', new QuorateError('QUORATE_SYSTEM', message, systemDetails(error)));
        });
        resolve();
      });
    });
    return this.server.address() as AddressInfo;
  }

  /** Members that are connected now. */
  get connections(): ReadonlySet<ControlConnection> {
    return this.connections_;
  }

  /** Sockets, strangers included. */
  get socketCount(): number {
    return this.sockets.size;
  }

  /** Connections that were turned away so far, by error code. */
  get rejectedConnections(): Readonly<Record<string, number>> {
    return this.rejections.counts();
  }

  // -- strangers ---------------------------------------------------------------------------------------------------

  private arrived(socket: Socket): void {
    const from = formatAddress(socket.remoteAddress, socket.remotePort);
    socket.on('error', () => {}); // told by "close", here and to whoever reads from it
    if (this.closing !== undefined || !this.makeRoom(from)) {
      socket.destroy();
      return;
    }
    this.sockets.add(socket);
    if (!this.isReferenced) socket.unref();
    const stranger: Stranger = {
      socket,
      endsAt_ms: performance.now() + this.handshakeTimeoutMs,
      cutBecause: undefined,
      deadline: new Deadline(this.handshakeTimeoutMs, () => {
        this.cut(stranger, 'QUORATE_TIMEOUT', `${from} did not introduce itself within ${this.handshakeTimeoutMs} ms`);
      }),
    };
    this.strangers.add(stranger);
    socket.on('close', () => {
      this.sockets.delete(socket);
      this.strangers.delete(stranger);
      stranger.deadline.clear();
    });
    this.admit(stranger, from).catch((error: QuorateError) => {
      if (this.closing === undefined) this.rejections.record(stranger.cutBecause ?? error);
    });
  }

  private cut(stranger: Stranger, code: string, message: string): void {
    stranger.cutBecause = new QuorateError(code, message);
    this.strangers.delete(stranger);
    stranger.socket.destroy();
  }

  /** At the limit the stranger that has waited longest makes room: idle ones cannot keep members out. */
  private makeRoom(from: string): boolean {
    if (this.sockets.size < CONNECTIONS_MAX) return true;
    const [oldest] = this.strangers;
    if (oldest === undefined) {
      this.rejections.record(
        new QuorateError('QUORATE_LIMIT', `${from}: all ${CONNECTIONS_MAX} connections are taken by members`),
      );
      return false;
    }
    const waiting = formatAddress(oldest.socket.remoteAddress, oldest.socket.remotePort);
    this.cut(oldest, 'QUORATE_LIMIT', `${waiting} had to make room: all ${CONNECTIONS_MAX} connections are taken`);
    // Its "close" comes later; the place counts as free from now on.
    this.sockets.delete(oldest.socket);
    return true;
  }

  /** Rejects if the stranger is turned away or leaves. */
  private async admit(stranger: Stranger, from: string): Promise<void> {
    const { socket } = stranger;
    const firstByte = await this.peek(socket, from);
    let transport: FrameTransport;
    if (this.transportKey === undefined) {
      if (firstByte === TLS_HANDSHAKE_BYTE) {
        this.dismiss(socket, TLS_ACCESS_DENIED);
        throw new QuorateError('QUORATE_CLUSTER_KEY', `${from} has a cluster key, this replica has none`);
      }
      transport = new FrameTransport(socket, from);
    } else if (firstByte === TLS_HANDSHAKE_BYTE) {
      transport = await this.startTls(socket, this.transportKey, from);
    } else {
      if (firstByte === FRAME_BYTE) {
        const error = {
          code: 'QUORATE_CLUSTER_KEY',
          message: 'this replica requires a cluster key; configure the same at every replica',
        };
        const farewell = encodeFrame({ kind: FrameKind.farewell, error });
        const header = Buffer.alloc(FRAME_HEADER_BYTES);
        header.writeUInt32BE(farewell.length);
        this.dismiss(socket, Buffer.concat([header, farewell]));
        throw new QuorateError('QUORATE_CLUSTER_KEY', `${from} has no cluster key or does not use it`);
      }
      socket.destroy();
      throw new QuorateError('QUORATE_PROTOCOL', `${from} does not speak TLS`);
    }
    try {
      const peer = await exchangeHello(
        transport,
        this.identity,
        undefined,
        Math.max(1, stranger.endsAt_ms - performance.now()),
      );
      stranger.deadline.clear();
      this.strangers.delete(stranger);
      this.welcome(new ControlConnection(transport, peer, true));
    } catch (error) {
      if (!transport.isEnding) transport.destroy(undefined);
      throw error;
    }
  }

  /** A last word in the stranger's own language; the deadline still counts for its end. */
  private dismiss(socket: Socket, word: Buffer): void {
    socket.end(word);
    socket.resume();
  }

  /** First byte that a socket sends, without taking it away. */
  private peek(socket: Socket, from: string): Promise<number> {
    return new Promise((resolve, reject) => {
      const readable = () => {
        const chunk = socket.read() as Buffer | null;
        if (chunk === null) return;
        stop();
        socket.unshift(chunk);
        resolve(chunk[0] as number);
      };
      const closed = () => {
        stop();
        reject(new QuorateError('QUORATE_DISCONNECTED', `${from} left without a word`));
      };
      const stop = () => {
        socket.off('readable', readable);
        socket.off('close', closed);
      };
      socket.on('readable', readable);
      socket.on('close', closed);
    });
  }

  private startTls(socket: Socket, transportKey: Buffer, from: string): Promise<FrameTransport> {
    return new Promise((resolve, reject) => {
      // A TLS server for this one socket, which listens nowhere: its events cannot belong to another connection.
      const server = createTlsServer({ ...serverTlsOptions(transportKey), handshakeTimeout: this.handshakeTimeoutMs });
      server.once('secureConnection', (secure) => {
        const transport = new FrameTransport(secure, from);
        try {
          assertPreSharedKey(secure);
          resolve(transport);
        } catch (error) {
          transport.destroy(undefined);
          reject(error as Error);
        }
      });
      server.on('tlsClientError', (error: NodeJS.ErrnoException, secure) => {
        secure.destroy();
        if (isWrongKey(error)) {
          reject(new QuorateError('QUORATE_CLUSTER_KEY', `${from} has another cluster key`, { cause: error }));
        } else if (error.code === 'ERR_TLS_HANDSHAKE_TIMEOUT') {
          reject(
            new QuorateError('QUORATE_TIMEOUT', `${from} did not finish the TLS handshake in time`, { cause: error }),
          );
        } else if (error.code === 'ECONNRESET' || error.code === 'EPIPE') {
          reject(new QuorateError('QUORATE_DISCONNECTED', `${from} left during the TLS handshake`, { cause: error }));
        } else {
          reject(
            new QuorateError('QUORATE_PROTOCOL', `${from} failed the TLS handshake (${error.code})`, { cause: error }),
          );
        }
      });
      socket.once('close', () =>
        reject(new QuorateError('QUORATE_DISCONNECTED', `${from} left during the TLS handshake`)),
      );
      server.emit('connection', socket);
    });
  }

  // -- members -----------------------------------------------------------------------------------------------------

  private welcome(connection: ControlConnection): void {
    if (this.closing !== undefined) {
      void connection.close();
      return;
    }
    // The newest are kept: the oldest ones may belong to a host that vanished without a word.
    const same = [...this.connections_].filter((other) => other.peer.id === connection.peer.id && !other.isClosed);
    for (const other of same.slice(0, Math.max(0, same.length + 1 - CONNECTIONS_PER_PEER_MAX))) {
      const error = new QuorateError(
        'QUORATE_LIMIT',
        `replica ${other.peer.id} has more than ${CONNECTIONS_PER_PEER_MAX} connections; the oldest is closed`,
      );
      this.emit('warning', error);
      void other.close(error);
    }
    this.connections_.add(connection);
    connection.on('close', () => this.connections_.delete(connection));
    this.emit('connection', connection);
  }

  /** Stops listening, turns strangers away and closes all connections. Resolves when no socket is left. */
  close(): Promise<void> {
    this.closing ??= this.shutDown();
    return this.closing;
  }

  private async shutDown(): Promise<void> {
    await this.listening?.catch(() => {});
    for (const { socket } of [...this.strangers]) socket.destroy();
    const closed = [...this.connections_].map((connection) => connection.close());
    if (this.server.listening) closed.push(new Promise((resolve) => this.server.close(() => resolve())));
    await Promise.all(closed);
  }

  /** Server and connections keep the process alive (default). */
  ref(): void {
    this.isReferenced = true;
    this.server.ref();
    for (const socket of this.sockets) socket.ref();
    for (const connection of this.connections_) connection.ref();
  }

  /** Server and connections alone do not keep the process alive. */
  unref(): void {
    this.isReferenced = false;
    this.server.unref();
    for (const socket of this.sockets) socket.unref();
    for (const connection of this.connections_) connection.unref();
  }
}
