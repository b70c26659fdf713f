// One authenticated connection between two replicas: requests with answers, one-way messages and blobs, in both
// directions. Made by ControlServer and ControlClient once both sides have accepted each other.
import assert from 'node:assert/strict';
import { EventEmitter } from 'node:events';
import { errorCode, invalidArgument, outOfRange, QuorateError } from '../../errors.js';
import { type BlobSource, Blobs, type IncomingBlob, type SendBlobOptions } from './blobs.js';
import { Deadline } from './deadline.js';
import type { FrameTransport } from './frame-transport.js';
import { encodeFrame, type Frame, FrameKind, fromWireError, isTypeName, toWireError } from './frames.js';
import type { PeerHello } from './hello.js';
import {
  BLOB_BYTES_MAX,
  FRAME_BYTES_MAX,
  QUEUE_BYTES_MAX,
  QUEUE_RESERVE_BYTES,
  REPLY_BYTES_SMALL,
  REQUESTS_MAX,
  TIMEOUT_MS_MAX,
  UNHANDLED_TYPES_MAX,
} from './limits.js';
import { WarningLimit } from './warning-limit.js';

/** Answers a request: what it returns (or resolves with) is the answer, what it throws travels back with its code. */
export type RequestHandler = (body: unknown) => unknown;
export type MessageHandler = (body: unknown) => unknown;

/**
 * "close": the connection is gone, once; the error says why, or is absent if this side closed it. QUORATE_DISCONNECTED:
 * the peer's process ended or the network broke; QUORATE_PEER_CLOSED: the peer closed in good order.
 * "warning": something was dropped that its sender will not hear of, such as a message without a handler; what the peer
 * can provoke at will is told at most once per code and WARNING_INTERVAL_MS.
 */
export interface ControlConnectionEvents {
  close: [error: QuorateError | undefined];
  warning: [error: QuorateError];
}

interface OutstandingRequest {
  readonly type: string;
  readonly deadline: Deadline;
  readonly resolve: (body: unknown) => void;
  readonly reject: (error: Error) => void;
}

function checkType(type: string): void {
  if (!isTypeName(type))
    throw invalidArgument(`"${String(type)}" is not the name of a type: a letter, then letters, digits or . _ -`);
}

function checkTimeout(timeoutMs: number): void {
  if (!Number.isFinite(timeoutMs) || timeoutMs < 1 || timeoutMs > TIMEOUT_MS_MAX) {
    throw outOfRange(`a timeout of ${timeoutMs} ms is outside 1..${TIMEOUT_MS_MAX}`);
  }
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof (value as PromiseLike<unknown> | null | undefined)?.then === 'function';
}

export class ControlConnection extends EventEmitter<ControlConnectionEvents> {
  /** Who the peer said it is, checked. */
  readonly peer: PeerHello;
  /** True if the peer made the connection. */
  readonly isIncoming: boolean;
  private readonly requestHandlers = new Map<string, RequestHandler>();
  private readonly messageHandlers = new Map<string, MessageHandler>();
  private readonly unhandledTypes = new Set<string>();
  /** The peer decides how often a handler fails or an answer is lost. */
  private readonly warningLimit = new WarningLimit();
  private readonly outstanding = new Map<number, OutstandingRequest>();
  private lastRequestId = 0;
  /** Requests of the peer whose handlers have not finished. */
  private serving = 0;
  private readonly blobs: Blobs;

  /** @internal Frames are delivered from the next turn of the event loop on: handlers must be registered before. */
  constructor(
    private readonly transport: FrameTransport,
    peer: PeerHello,
    isIncoming: boolean,
  ) {
    super();
    this.peer = peer;
    this.isIncoming = isIncoming;
    transport.label = `replica ${peer.id} at ${transport.label}`;
    this.blobs = new Blobs({
      label: transport.label,
      send: (frame) => this.post(encodeFrame(frame)),
      reply: (frame) => this.reply(frame),
      whenFlushed: () => transport.whenFlushed(),
      handlerFailed: (type, error) => this.handlerFailed(type, error),
    });
    transport.deliverTo({
      received: (frame) => {
        try {
          this.received(frame);
        } catch (error) {
          if (errorCode(error) !== 'QUORATE_PROTOCOL') throw error;
          transport.fail(error as QuorateError);
        }
      },
      closed: (error) => this.finished(error),
    });
    setImmediate(() => transport.resume());
  }

  /** "replica 2 at 10.0.0.2:7000", for messages. */
  get label(): string {
    return this.transport.label;
  }

  /** True as soon as nothing can be sent any more. */
  get isClosed(): boolean {
    return this.transport.isEnding;
  }

  /** Bytes that wait for the kernel to take them; at most QUEUE_BYTES_MAX and a reserve. */
  get queuedBytes(): number {
    return this.transport.queuedBytes;
  }

  get outstandingRequests(): number {
    return this.outstanding.size;
  }

  // -- calls -------------------------------------------------------------------------------------------------------

  /**
   * Asks the peer and resolves with its answer, unchecked: what comes from a peer must be checked before use. `body` is
   * plain data (null, booleans, numbers, strings, bytes, arrays, plain objects). Rejects with the code that the peer's
   * handler threw, QUORATE_UNKNOWN_REQUEST, QUORATE_TIMEOUT, QUORATE_BACKPRESSURE (too many or too much under way),
   * QUORATE_LIMIT (body larger than a frame), or what closed the connection; after a timeout or a lost connection the
   * request may have been executed.
   */
  request(type: string, body: unknown, timeoutMs: number): Promise<unknown> {
    return new Promise((resolve, reject) => {
      checkType(type);
      checkTimeout(timeoutMs);
      if (this.outstanding.size >= REQUESTS_MAX) {
        throw new QuorateError(
          'QUORATE_BACKPRESSURE',
          `${REQUESTS_MAX} requests to ${this.label} have no answer yet; wait for some`,
        );
      }
      const id = this.lastRequestId + 1;
      this.post(encodeFrame({ kind: FrameKind.request, id, type, body }));
      this.lastRequestId = id;
      const deadline = new Deadline(timeoutMs, () => {
        this.outstanding.delete(id);
        reject(
          new QuorateError('QUORATE_TIMEOUT', `${this.label} did not answer request "${type}" within ${timeoutMs} ms`),
        );
      });
      this.outstanding.set(id, { type, deadline, resolve, reject });
    });
  }

  /** Sends a one-way message. Throws QUORATE_BACKPRESSURE, QUORATE_LIMIT or QUORATE_CLOSED; says nothing of arrival. */
  send(type: string, body: unknown): void {
    checkType(type);
    this.post(encodeFrame({ kind: FrameKind.message, type, body }));
  }

  /**
   * Sends up to BLOB_BYTES_MAX bytes, only as fast as the peer consumes them, and resolves with what the peer's handler
   * returned. `timeoutMs` covers all of it. The source must not change until then. Rejects like request(), and with
   * QUORATE_CANCELLED if either side gave up.
   */
  async sendBlob(type: string, source: BlobSource, timeoutMs: number, options: SendBlobOptions = {}): Promise<unknown> {
    checkType(type);
    checkTimeout(timeoutMs);
    return this.blobs.send(type, source, timeoutMs, options);
  }

  onRequest(type: string, handler: RequestHandler): void {
    checkType(type);
    this.requestHandlers.set(type, handler);
  }

  onMessage(type: string, handler: MessageHandler): void {
    checkType(type);
    this.messageHandlers.set(type, handler);
  }

  /** Takes blobs of a type as a stream; the handler must read all of it before it returns. */
  onBlobStream(type: string, handler: (blob: IncomingBlob) => unknown): void {
    checkType(type);
    this.blobs.onBlob(type, handler);
  }

  /** Takes blobs of a type whole. Longer ones are refused with QUORATE_LIMIT. */
  onBlob(type: string, handler: (bytes: Uint8Array, body: unknown) => unknown, maxBytes = BLOB_BYTES_MAX): void {
    this.onBlobStream(type, async (blob) => handler(await blob.bytes(maxBytes), blob.body));
  }

  // -- sending -----------------------------------------------------------------------------------------------------

  private post(encoded: Buffer): void {
    if (this.isClosed) throw this.closedError('nothing can be sent');
    if (!this.transport.hasRoom(encoded.length)) {
      throw new QuorateError(
        'QUORATE_BACKPRESSURE',
        `${this.queuedBytes} bytes wait to be sent to ${this.label}; the limit is ${QUEUE_BYTES_MAX}`,
      );
    }
    this.transport.write(encoded);
  }

  /** Answers, or says why it cannot; a peer that does not even read that is disconnected. */
  private reply(frame: Frame): void {
    if (this.isClosed) return;
    let encoded: Buffer;
    try {
      encoded = encodeFrame(frame);
      if (this.transport.hasRoom(encoded.length)) {
        this.transport.write(encoded);
        return;
      }
    } catch (error) {
      encoded = this.lostAnswer(frame, error);
    }
    if (encoded.length > REPLY_BYTES_SMALL) {
      encoded = this.lostAnswer(frame, new QuorateError('QUORATE_BACKPRESSURE', 'too many answers wait to be sent'));
    }
    if (this.transport.hasRoom(encoded.length, QUEUE_BYTES_MAX + QUEUE_RESERVE_BYTES)) {
      this.transport.write(encoded);
      return;
    }
    const message = `${this.label} does not read: ${this.queuedBytes} bytes of answers wait for it`;
    this.transport.destroy(new QuorateError('QUORATE_BACKPRESSURE', message));
  }

  /** What takes the place of an answer that cannot be sent. */
  private lostAnswer(frame: Frame, error: unknown): Buffer {
    this.warnSeldom('QUORATE_ANSWER_LOST', `an answer to ${this.label} could not be sent`, error);
    if (frame.kind === FrameKind.response) {
      return encodeFrame({ kind: FrameKind.failure, id: frame.id, error: toWireError(error) });
    }
    assert(frame.kind === FrameKind.blobDone, 'only answers carry bodies that may not be sendable');
    return encodeFrame({ kind: FrameKind.blobFailed, id: frame.id, error: toWireError(error) });
  }

  // -- receiving ---------------------------------------------------------------------------------------------------

  private received(frame: Frame): void {
    switch (frame.kind) {
      case FrameKind.request:
        void this.serve(frame.id, frame.type, frame.body);
        return;
      case FrameKind.response:
        this.outstandingOf(frame.id)?.resolve(frame.body);
        return;
      case FrameKind.failure:
        this.outstandingOf(frame.id)?.reject(fromWireError(frame.error, this.label));
        return;
      case FrameKind.message:
        this.receivedMessage(frame.type, frame.body);
        return;
      case FrameKind.farewell:
        this.transport.farewell(
          frame.error === null
            ? new QuorateError('QUORATE_PEER_CLOSED', `${this.label} closed the connection`)
            : fromWireError(frame.error, this.label),
        );
        return;
      case FrameKind.hello:
      case FrameKind.accept:
        throw new QuorateError('QUORATE_PROTOCOL', `${this.label} introduced itself twice`);
      default:
        this.blobs.received(frame);
    }
  }

  /** Takes the request off the list; undefined for an answer that came after the timeout. */
  private outstandingOf(id: number): OutstandingRequest | undefined {
    if (id > this.lastRequestId)
      throw new QuorateError('QUORATE_PROTOCOL', `${this.label} answered request ${id}, which was never sent`);
    const request = this.outstanding.get(id);
    this.outstanding.delete(id);
    request?.deadline.clear();
    return request;
  }

  private async serve(id: number, type: string, body: unknown): Promise<void> {
    const handler = this.requestHandlers.get(type);
    const refuse = (code: string, message: string) =>
      this.reply({ kind: FrameKind.failure, id, error: { code, message } });
    if (handler === undefined) {
      refuse('QUORATE_UNKNOWN_REQUEST', `no handler for requests of type "${type}"`);
      return;
    }
    if (this.serving >= REQUESTS_MAX) {
      refuse('QUORATE_BACKPRESSURE', `${REQUESTS_MAX} requests are being served`);
      return;
    }
    // A peer that asks and does not read: nothing is executed, and no memory taken, for an answer that has no room.
    if (!this.transport.hasRoom(FRAME_BYTES_MAX)) {
      refuse('QUORATE_BACKPRESSURE', 'too many answers wait to be read; the request was not executed');
      return;
    }
    this.serving++;
    let answer: Frame;
    try {
      // An answer that is there at once goes out at once, so that the next request of the same turn sees its bytes in
      // the queue. Waiting even for a microtask would first run the handlers of all requests that arrived together.
      const result = handler(body);
      answer = { kind: FrameKind.response, id, body: isThenable(result) ? await result : result };
    } catch (error) {
      const wire = toWireError(error);
      if (wire.code === 'QUORATE_INTERNAL') this.handlerFailed(type, error);
      answer = { kind: FrameKind.failure, id, error: wire };
    }
    this.serving--;
    this.reply(answer);
  }

  private receivedMessage(type: string, body: unknown): void {
    const handler = this.messageHandlers.get(type);
    if (handler === undefined) {
      // Once per type, and for a limited number of types: a peer cannot flood the log.
      if (this.unhandledTypes.has(type) || this.unhandledTypes.size >= UNHANDLED_TYPES_MAX) return;
      this.unhandledTypes.add(type);
      this.warn(
        'QUORATE_UNKNOWN_REQUEST',
        `no handler for messages of type "${type}" from ${this.label}; they are dropped`,
      );
      return;
    }
    void (async () => handler(body))().catch((error) => this.handlerFailed(type, error));
  }

  private handlerFailed(type: string, error: unknown): void {
    this.warnSeldom('QUORATE_INTERNAL', `the handler of "${type}" from ${this.label} failed`, error);
  }

  private warnSeldom(code: string, what: string, cause: unknown): void {
    const before = this.warningLimit.admit(code);
    if (before !== undefined) this.warn(code, what + before, cause);
  }

  private warn(code: string, what: string, cause?: unknown): void {
    const why = cause === undefined ? '' : `: ${cause instanceof Error ? cause.message : String(cause)}`;
    this.emit('warning', new QuorateError(code, what + why, cause === undefined ? {} : { cause }));
  }

  // -- the end -----------------------------------------------------------------------------------------------------

  private closedError(what: string): QuorateError {
    const reason = this.transport.closeReason;
    if (reason === undefined)
      return new QuorateError('QUORATE_CLOSED', `${what}: the connection to ${this.label} was closed`);
    return new QuorateError(reason.code, `${what}: ${reason.message}`, { cause: reason });
  }

  private finished(error: QuorateError | undefined): void {
    this.abandon();
    this.emit('close', error);
  }

  /** Nothing that waits for the peer can be fulfilled any more. */
  private abandon(): void {
    const outstanding = [...this.outstanding.values()];
    this.outstanding.clear();
    for (const request of outstanding) {
      request.deadline.clear();
      request.reject(this.closedError(`request "${request.type}" has no answer and may have been executed`));
    }
    this.blobs.closed((what) => this.closedError(`${what} is incomplete`));
  }

  /**
   * Closes in good order: what was sent before still goes out, outstanding requests reject. Resolves when the socket is
   * gone, after at most CLOSE_GRACE_MS. With an error, the peer is told the reason by its code.
   */
  close(error?: QuorateError): Promise<void> {
    this.transport.end(error === undefined ? null : toWireError(error));
    this.abandon();
    return this.transport.whenClosed();
  }

  /** Cuts the connection at once, without a word. */
  destroy(): void {
    this.transport.destroy(undefined);
  }

  /** The connection keeps the process alive (default). */
  ref(): void {
    this.transport.ref();
  }

  /** The connection alone does not keep the process alive. */
  unref(): void {
    this.transport.unref();
  }
}
