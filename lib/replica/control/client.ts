// The dialing end of the control channel: one attempt to reach a replica and to be accepted by it.
import { connect as connectTcp, type Socket } from 'node:net';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import { QuorateError } from '../../errors.js';
import { formatAddress, isLoopback } from './address.js';
import { assertPreSharedKey, clientTlsOptions, deriveTransportKey } from './cluster-key.js';
import { ControlConnection } from './connection.js';
import { Deadline } from './deadline.js';
import { FrameTransport } from './frame-transport.js';
import { type ControlIdentity, exchangeHello } from './hello.js';
import { HANDSHAKE_TIMEOUT_MS, KEEP_ALIVE_IDLE_MS } from './limits.js';
import { dialError } from './socket-error.js';

export interface ControlClientOptions extends ControlIdentity {
  /** Without a key only addresses of this host are dialed. */
  readonly clusterKey?: Uint8Array | string | undefined;
}

export interface DialTarget {
  readonly host: string;
  readonly port: number;
  /** The replica that must answer there; any member if absent. */
  readonly peerId?: number | undefined;
}

export interface DialOptions {
  /** Time for TCP, TLS and hello together, default HANDSHAKE_TIMEOUT_MS. */
  readonly timeoutMs?: number | undefined;
  /** Gives up; the promise rejects with QUORATE_CANCELLED. */
  readonly signal?: AbortSignal | undefined;
  /** False: the attempt and the connection do not keep the process alive. Default true. */
  readonly keepAlive?: boolean | undefined;
}

export class ControlClient {
  private readonly identity: ControlIdentity;
  private readonly transportKey: Buffer | undefined;

  /** Throws QUORATE_CLUSTER_KEY if there is a key that cannot be used. */
  constructor(options: ControlClientOptions) {
    this.identity = options;
    this.transportKey = options.clusterKey === undefined ? undefined : deriveTransportKey(options.clusterKey);
  }

  /**
   * Connects to a replica; register handlers at once, frames come from the next turn of the event loop on. Rejects with
   * QUORATE_CONNECTION_REFUSED (nothing listens there, the replica is not up), QUORATE_CLUSTER_KEY (another key at the
   * other end, or none), QUORATE_UNREACHABLE, QUORATE_TIMEOUT, QUORATE_PROTOCOL (another service), QUORATE_DISCONNECTED,
   * or what either side has against the other's hello: QUORATE_VERSION, QUORATE_DUPLICATE_ID, QUORATE_NOT_A_MEMBER,
   * QUORATE_UNEXPECTED_ID, QUORATE_CLUSTER_MISMATCH.
   */
  async dial(target: DialTarget, options: DialOptions = {}): Promise<ControlConnection> {
    const { timeoutMs = HANDSHAKE_TIMEOUT_MS, signal, keepAlive = true } = options;
    const address = formatAddress(target.host, target.port);
    const label = target.peerId === undefined ? address : `${address} (replica ${target.peerId})`;
    const endsAt_ms = performance.now() + timeoutMs;
    const cancelled = () => new QuorateError('QUORATE_CANCELLED', `dialing ${label} was cancelled`);
    if (signal?.aborted) throw cancelled();
    const socket = this.connect(target);
    if (!keepAlive) socket.unref();
    let wasCancelled = false;
    const abort = () => {
      wasCancelled = true;
      socket.destroy();
    };
    signal?.addEventListener('abort', abort);
    try {
      const transport = await this.untilSecure(socket, address, label, timeoutMs);
      const leftMs = Math.max(1, endsAt_ms - performance.now());
      try {
        const peer = await exchangeHello(transport, this.identity, target.peerId, leftMs);
        return new ControlConnection(transport, peer, false);
      } catch (error) {
        if (!transport.isEnding) transport.destroy(undefined);
        await transport.whenClosed();
        throw error;
      }
    } catch (error) {
      throw wasCancelled ? cancelled() : error;
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  }

  private connect({ host, port }: DialTarget): Socket {
    const tcp = { host, port, noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEP_ALIVE_IDLE_MS };
    return this.transportKey === undefined
      ? connectTcp(tcp)
      : connectTls({ ...tcp, ...clientTlsOptions(this.transportKey) });
  }

  private untilSecure(socket: Socket, address: string, label: string, timeoutMs: number): Promise<FrameTransport> {
    return new Promise((resolve, reject) => {
      let isConnected = false;
      // Not socket.closed, which is true before the handle is gone and "close" has been emitted.
      let isGone = false;
      socket.once('close', () => {
        isGone = true;
      });
      const settle = () => {
        deadline.clear();
        socket.off('error', failed);
        socket.off('close', closed);
      };
      const giveUp = (error: QuorateError) => {
        settle();
        socket.on('error', () => {}); // whatever else it has to say
        socket.destroy();
        // Who is told of the failure may rely on the socket being gone.
        if (isGone) reject(error);
        else socket.once('close', () => reject(error));
      };
      const failed = (error: Error) => giveUp(dialError(error, label));
      const closed = () =>
        giveUp(new QuorateError('QUORATE_DISCONNECTED', `the connection to ${label} ended before it was secure`));
      const deadline = new Deadline(timeoutMs, () => {
        const phase = isConnected
          ? 'accepted the connection but did not finish the TLS handshake'
          : 'did not accept a connection';
        giveUp(new QuorateError('QUORATE_TIMEOUT', `${label} ${phase} within ${timeoutMs} ms`));
      });
      socket.on('error', failed);
      socket.on('close', closed);
      socket.once('connect', () => {
        isConnected = true;
        if (this.transportKey !== undefined || isLoopback(socket.remoteAddress)) return;
        // Nobody there could prove who it is, and everybody in between could listen.
        const message = `without a cluster key only this host is dialed, not ${label}; configure a cluster key`;
        giveUp(new QuorateError('QUORATE_CLUSTER_KEY', message));
      });
      socket.once(this.transportKey === undefined ? 'connect' : 'secureConnect', () => {
        if (socket.destroyed) return;
        try {
          if (this.transportKey !== undefined) assertPreSharedKey(socket as TLSSocket);
        } catch (error) {
          giveUp(error as QuorateError);
          return;
        }
        settle();
        resolve(new FrameTransport(socket, address));
      });
    });
  }
}
