// Keeps one outgoing connection to a peer alive. It retries for as long as it is open, since a replica outlives its
// peers: whatever the reason of a failure, it may be mended at the other end.
import { EventEmitter } from 'node:events';
import type { QuorateError } from '../../errors.js';
import { ControlClient, type ControlClientOptions } from './client.js';
import type { ControlConnection } from './connection.js';
import { DIAL_DELAY_MAX_MS, DIAL_DELAY_MIN_MS, DIAL_STABLE_MS, WARNING_CODES_MAX } from './limits.js';

export interface DialerOptions extends ControlClientOptions {
  readonly peerId: number;
  readonly host: string;
  readonly port: number;
  /** Time for one attempt, default HANDSHAKE_TIMEOUT_MS. */
  readonly timeoutMs?: number | undefined;
  /** Uniform in [0, 1), for the jitter; default Math.random. */
  readonly random?: () => number;
}

/**
 * "connected" and "disconnected" alternate; the error says why the connection ended, or is absent if close() ended it.
 * "failed": an attempt failed, each time. "warning": attempts fail for a reason that will not pass by itself (another
 * cluster key, another version ...), once for each reason until the peer is reached.
 */
export interface DialerEvents {
  connected: [connection: ControlConnection];
  disconnected: [error: QuorateError | undefined];
  failed: [error: QuorateError, attempt: number];
  warning: [error: QuorateError];
}

/** What a peer that is starting, stopping or restarting looks like. */
const PASSING_CODES: ReadonlySet<string> = new Set([
  'QUORATE_CONNECTION_REFUSED',
  'QUORATE_DISCONNECTED',
  'QUORATE_PEER_CLOSED',
]);

/** How long to wait before an attempt: doubled each time up to the limit, of which a random half is taken off. */
export function retryDelayMs(failures: number, random: () => number): number {
  const fullMs = Math.min(DIAL_DELAY_MAX_MS, DIAL_DELAY_MIN_MS * 2 ** Math.min(failures - 1, 16));
  return Math.max(DIAL_DELAY_MIN_MS, fullMs * (1 - random() / 2));
}

export class Dialer extends EventEmitter<DialerEvents> {
  readonly peerId: number;
  private readonly client: ControlClient;
  private readonly random: () => number;
  private readonly cancel = new AbortController();
  private connection_: ControlConnection | undefined;
  private lastError_: QuorateError | undefined;
  private lastFault: QuorateError | undefined;
  /** Codes of the "warning"s since the peer was last reached for long enough; peers can name codes of their own. */
  private readonly warnedCodes = new Set<string>();
  /** Attempts since the peer was last reached for long enough. */
  private failures = 0;
  private timer: NodeJS.Timeout | undefined;
  private attempt: Promise<void> | undefined;
  private isReferenced = true;
  private isStarted = false;
  private closing: Promise<void> | undefined;

  /** Throws QUORATE_CLUSTER_KEY if there is a key that cannot be used. */
  constructor(private readonly options: DialerOptions) {
    super();
    this.peerId = options.peerId;
    this.client = new ControlClient(options);
    this.random = options.random ?? Math.random;
  }

  /** The connection, while there is one. */
  get connection(): ControlConnection | undefined {
    return this.connection_;
  }

  /** Why the last attempt failed or the last connection ended; undefined while connected. */
  get lastError(): QuorateError | undefined {
    return this.lastError_;
  }

  /**
   * What explains best why there is no connection; undefined while there is one. A peer that has gone since does not
   * hide that the two could not agree, such as on the cluster key.
   */
  get reason(): QuorateError | undefined {
    return this.connection_ === undefined ? (this.lastFault ?? this.lastError_) : undefined;
  }

  /** Begins to dial. */
  start(): void {
    if (this.isStarted || this.closing !== undefined) return;
    this.isStarted = true;
    this.dial();
  }

  private dial(): void {
    this.timer = undefined;
    this.attempt = this.tryOnce().finally(() => {
      this.attempt = undefined;
    });
  }

  private async tryOnce(): Promise<void> {
    const { host, port, peerId, timeoutMs } = this.options;
    let connection: ControlConnection;
    try {
      connection = await this.client.dial(
        { host, port, peerId },
        { timeoutMs, signal: this.cancel.signal, keepAlive: this.isReferenced },
      );
    } catch (error) {
      if (this.closing === undefined) this.failed(error as QuorateError);
      return;
    }
    if (this.closing !== undefined) {
      await connection.close();
      return;
    }
    this.reached(connection);
  }

  private failed(error: QuorateError): void {
    this.failures++;
    this.lastError_ = error;
    const { code } = error;
    if (!PASSING_CODES.has(code)) {
      this.lastFault = error;
      if (!this.warnedCodes.has(code) && this.warnedCodes.size < WARNING_CODES_MAX) {
        this.warnedCodes.add(code);
        this.emit('warning', error);
      }
    }
    this.emit('failed', error, this.failures);
    this.retry();
  }

  private reached(connection: ControlConnection): void {
    if (!this.isReferenced) connection.unref();
    const since_ms = performance.now();
    this.connection_ = connection;
    this.lastError_ = undefined;
    this.lastFault = undefined;
    connection.on('close', (error) => {
      this.connection_ = undefined;
      this.lastError_ = error;
      // A peer that accepts and drops us at once is not dialed in a tight loop.
      if (performance.now() - since_ms >= DIAL_STABLE_MS) {
        this.failures = 0;
        this.warnedCodes.clear();
      }
      this.failures++;
      this.emit('disconnected', error);
      this.retry();
    });
    this.emit('connected', connection);
  }

  /** The peer has been heard of just now: an attempt that waits for its time is made at once. */
  hurry(): void {
    if (this.timer === undefined || this.closing !== undefined) return;
    clearTimeout(this.timer);
    this.failures = 0;
    this.dial();
  }

  private retry(): void {
    // A listener may have closed the dialer.
    if (this.closing !== undefined) return;
    this.timer = setTimeout(() => this.dial(), retryDelayMs(this.failures, this.random));
    if (!this.isReferenced) this.timer.unref();
  }

  /** Stops dialing and closes the connection. Resolves when no socket is left. */
  close(): Promise<void> {
    this.closing ??= this.shutDown();
    return this.closing;
  }

  private async shutDown(): Promise<void> {
    clearTimeout(this.timer);
    this.cancel.abort();
    await Promise.all([this.attempt, this.connection_?.close()]);
  }

  ref(): void {
    this.isReferenced = true;
    this.timer?.ref();
    this.connection_?.ref();
  }

  /** Neither attempts nor the connection keep the process alive. */
  unref(): void {
    this.isReferenced = false;
    this.timer?.unref();
    this.connection_?.unref();
  }
}
