// Large bodies (snapshots) over a connection that also carries requests: cut into chunks that take turns with other
// frames, and sent only as fast as the receiver consumes them. Each blob has a window of bytes that the receiver has
// granted and not consumed; the sender stops when it is used up, the receiver disconnects a sender that exceeds it. So
// a slow reader costs either side no more than one window, and requests on the same connection do not wait behind it.
import { invalidArgument, QuorateError } from '../../errors.js';
import { Deadline } from './deadline.js';
import { type Frame, FrameKind, fromWireError, toWireError, type WireError } from './frames.js';
import {
  BLOB_BYTES_MAX,
  BLOB_CHUNK_BYTES,
  BLOB_CHUNK_COST_BYTES_MIN,
  BLOB_STALL_TIMEOUT_MS,
  BLOB_WINDOW_BYTES,
  BLOBS_MAX,
} from './limits.js';

/** What the blobs of a connection need from it. */
export interface BlobPort {
  readonly label: string;
  /** Sends a frame; throws if the connection is closed or its queue is full. */
  send(frame: Frame): void;
  /** Sends an answer that the protocol owes, or why it cannot be sent; never throws. */
  reply(frame: Frame): void;
  /** Resolves when a blob may add to the queue of the connection, or when that is closed. */
  whenFlushed(): Promise<void>;
  /** Reports an error of a handler that is not one of this project's. */
  handlerFailed(type: string, error: unknown): void;
}

export interface SendBlobOptions {
  /** Travels ahead of the bytes; anything that request() takes. Default null. */
  readonly body?: unknown;
  /** Total length; needed, and exact, if the source is not a Uint8Array. */
  readonly lengthBytes?: number;
  /** Ends the transfer; the promise rejects with QUORATE_CANCELLED. */
  readonly signal?: AbortSignal;
}

export type BlobSource = Uint8Array | AsyncIterable<Uint8Array>;
export type BlobHandler = (blob: IncomingBlob) => unknown;

function chunkCost(bytes: number): number {
  return Math.max(bytes, BLOB_CHUNK_COST_BYTES_MIN);
}

/** Sending side of one blob. */
class OutgoingBlob {
  creditBytes = BLOB_WINDOW_BYTES;
  sentBytes = 0;
  ended = false;
  failure: Error | undefined;
  private interrupt: ((error: Error) => void) | undefined;
  private creditArrived: (() => void) | undefined;

  constructor(
    readonly id: number,
    readonly type: string,
    readonly lengthBytes: number,
    private readonly settle: (error: Error | undefined, result: unknown) => void,
  ) {}

  /** Waits for the promise, or rejects as soon as the blob has failed. */
  until<T>(promise: Promise<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (this.failure !== undefined) {
        promise.catch(() => {});
        reject(this.failure);
        return;
      }
      this.interrupt = reject;
      promise.then(resolve, reject);
    });
  }

  whenCredited(): Promise<void> {
    return new Promise((resolve) => {
      this.creditArrived = resolve;
    });
  }

  credit(bytes: number): void {
    this.creditBytes += bytes;
    this.creditArrived?.();
  }

  done(result: unknown): void {
    if (this.ended) return;
    this.ended = true;
    this.settle(undefined, result);
  }

  fail(error: Error): void {
    if (this.ended) return;
    this.ended = true;
    this.failure = error;
    this.interrupt?.(error);
    this.settle(error, undefined);
  }
}

/**
 * Receiving side of one blob: an async iterable of its bytes, to be iterated once. Bytes are granted to the sender
 * anew as they are consumed. Breaking out of the iteration cancels the transfer.
 */
export class IncomingBlob implements AsyncIterable<Uint8Array> {
  /** What the sender sent ahead of the bytes; unchecked. */
  readonly body: unknown;
  readonly lengthBytes: number;
  private receivedBytes_ = 0;
  private consumedBytes_ = 0;
  private readonly chunks: Uint8Array[] = [];
  /** Window that the sender may still use. */
  private windowBytes = BLOB_WINDOW_BYTES;
  /** Consumed but not yet granted anew. */
  private owedBytes = 0;
  private failure_: Error | undefined;
  private isIterated = false;
  private waiter: { resolve: () => void; stall: Deadline } | undefined;

  /** @internal */
  constructor(
    lengthBytes: number,
    body: unknown,
    private readonly label: string,
    private readonly grant: (bytes: number) => void,
    private readonly stallTimeoutMs = BLOB_STALL_TIMEOUT_MS,
  ) {
    this.lengthBytes = lengthBytes;
    this.body = body;
  }

  /** Bytes that have arrived, consumed or not. */
  get receivedBytes(): number {
    return this.receivedBytes_;
  }

  /** Bytes that the iteration has handed out. */
  get consumedBytes(): number {
    return this.consumedBytes_;
  }

  /** Bytes that have arrived and wait for the reader: at most one window. */
  get bufferedBytes(): number {
    return this.receivedBytes_ - this.consumedBytes_;
  }

  /** @internal All bytes were handed out. */
  get isComplete(): boolean {
    return this.consumedBytes_ === this.lengthBytes;
  }

  /** @internal */
  get failure(): Error | undefined {
    return this.failure_;
  }

  /** @internal Takes a chunk from the wire. Throws QUORATE_PROTOCOL if the sender exceeded length or window. */
  push(bytes: Uint8Array): void {
    if (this.failure_ !== undefined) return;
    if (bytes.length > this.lengthBytes - this.receivedBytes_) {
      throw new QuorateError(
        'QUORATE_PROTOCOL',
        `${this.label} sent more of a blob than the ${this.lengthBytes} bytes it announced`,
      );
    }
    this.windowBytes -= chunkCost(bytes.length);
    if (this.windowBytes < 0) {
      throw new QuorateError(
        'QUORATE_PROTOCOL',
        `${this.label} sent more of a blob than the window of ${BLOB_WINDOW_BYTES} bytes`,
      );
    }
    this.receivedBytes_ += bytes.length;
    this.chunks.push(bytes);
    this.wake();
  }

  /** @internal The transfer has ended early. */
  fail(error: Error): void {
    if (this.failure_ !== undefined) return;
    this.failure_ = error;
    this.chunks.length = 0;
    this.wake();
  }

  /** Ends the transfer; the sender's promise rejects with the error, the iteration too. */
  cancel(error: Error = new QuorateError('QUORATE_CANCELLED', 'the receiver does not want the blob')): void {
    if (!this.isComplete) this.fail(error);
  }

  private wake(): void {
    const { waiter } = this;
    this.waiter = undefined;
    waiter?.stall.clear();
    waiter?.resolve();
  }

  private whenChanged(): Promise<void> {
    return new Promise((resolve) => {
      const stall = new Deadline(this.stallTimeoutMs, () => {
        this.fail(
          new QuorateError(
            'QUORATE_TIMEOUT',
            `${this.label} sent nothing of a blob for ${this.stallTimeoutMs} ms, after ${this.receivedBytes_} of ${this.lengthBytes} bytes`,
          ),
        );
      });
      this.waiter = { resolve, stall };
    });
  }

  private consumed(bytes: number): void {
    this.consumedBytes_ += bytes;
    this.owedBytes += chunkCost(bytes);
    // A sender is held up only with less than one chunk of its window left, that is, when far more than this is owed.
    if (this.owedBytes < BLOB_WINDOW_BYTES / 4 || this.receivedBytes_ === this.lengthBytes) return;
    const owed = this.owedBytes;
    this.owedBytes = 0;
    this.windowBytes += owed;
    this.grant(owed);
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array, void, undefined> {
    if (this.isIterated) throw new QuorateError('QUORATE_CLOSED', 'a blob can be read once only');
    this.isIterated = true;
    try {
      while (!this.isComplete) {
        if (this.failure_ !== undefined) throw this.failure_;
        const chunk = this.chunks.shift();
        if (chunk === undefined) {
          await this.whenChanged();
          continue;
        }
        this.consumed(chunk.length);
        yield chunk;
      }
    } finally {
      this.cancel();
    }
  }

  /** Collects the whole blob. Rejects with QUORATE_LIMIT, before any memory is taken, if it is longer than `maxBytes`. */
  async bytes(maxBytes = BLOB_BYTES_MAX): Promise<Uint8Array> {
    if (this.lengthBytes > maxBytes) {
      const error = new QuorateError(
        'QUORATE_LIMIT',
        `the blob has ${this.lengthBytes} bytes; at most ${maxBytes} are accepted`,
      );
      this.cancel(error);
      throw error;
    }
    const whole = Buffer.allocUnsafeSlow(this.lengthBytes);
    let filled = 0;
    for await (const chunk of this) {
      whole.set(chunk, filled);
      filled += chunk.length;
    }
    return whole;
  }
}

/** All blobs of one connection, both directions. */
export class Blobs {
  private readonly handlers = new Map<string, BlobHandler>();
  private readonly outgoing = new Map<number, OutgoingBlob>();
  private readonly incoming = new Map<number, IncomingBlob>();
  private lastOutgoingId = 0;
  private lastIncomingId = 0;

  constructor(private readonly port: BlobPort) {}

  onBlob(type: string, handler: BlobHandler): void {
    this.handlers.set(type, handler);
  }

  // -- sending -----------------------------------------------------------------------------------------------------

  send(type: string, source: BlobSource, timeoutMs: number, options: SendBlobOptions): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const lengthBytes = source instanceof Uint8Array ? source.length : options.lengthBytes;
      if (lengthBytes === undefined || !Number.isInteger(lengthBytes) || lengthBytes < 0) {
        throw invalidArgument('sendBlob() needs a Uint8Array, or an async iterable and its lengthBytes');
      }
      if (options.lengthBytes !== undefined && options.lengthBytes !== lengthBytes) {
        throw invalidArgument(`lengthBytes is ${options.lengthBytes} but the source has ${lengthBytes} bytes`);
      }
      if (lengthBytes > BLOB_BYTES_MAX) {
        throw new QuorateError(
          'QUORATE_LIMIT',
          `a blob of ${lengthBytes} bytes is too large; the limit is ${BLOB_BYTES_MAX}`,
        );
      }
      if (this.outgoing.size >= BLOBS_MAX) {
        throw new QuorateError(
          'QUORATE_BACKPRESSURE',
          `${BLOBS_MAX} blobs are on their way to ${this.port.label} already; wait for one`,
        );
      }
      const { signal } = options;
      const cancelled = () => new QuorateError('QUORATE_CANCELLED', `the transfer of blob "${type}" was cancelled`);
      if (signal?.aborted) throw cancelled();
      const blob = new OutgoingBlob(this.lastOutgoingId + 1, type, lengthBytes, (error, result) => {
        deadline.clear();
        signal?.removeEventListener('abort', onAbort);
        this.outgoing.delete(blob.id);
        if (error === undefined) resolve(result);
        else reject(error);
      });
      const onAbort = () => this.abort(blob, cancelled());
      const deadline = new Deadline(timeoutMs, () => {
        const progress = `${blob.sentBytes} of ${lengthBytes} bytes`;
        const message = `blob "${type}" to ${this.port.label} was not taken within ${timeoutMs} ms; ${progress} were sent`;
        this.abort(blob, new QuorateError('QUORATE_TIMEOUT', message));
      });
      try {
        this.port.send({ kind: FrameKind.blobOpen, id: blob.id, type, lengthBytes, body: options.body });
      } catch (error) {
        deadline.clear();
        throw error;
      }
      this.lastOutgoingId = blob.id;
      this.outgoing.set(blob.id, blob);
      signal?.addEventListener('abort', onAbort);
      this.pump(blob, source).catch((error: Error) => this.abort(blob, error));
    });
  }

  /** Ends an outgoing blob from this side. */
  private abort(blob: OutgoingBlob, error: Error): void {
    if (blob.ended) return;
    blob.fail(error);
    this.port.reply({ kind: FrameKind.blobAbort, id: blob.id, error: toWireError(error) });
  }

  private async pump(blob: OutgoingBlob, source: BlobSource): Promise<void> {
    if (source instanceof Uint8Array) {
      await this.write(blob, source);
      return;
    }
    const iterator = source[Symbol.asyncIterator]();
    try {
      for (;;) {
        const step = await blob.until(Promise.resolve(iterator.next()));
        if (step.done) break;
        if (!(step.value instanceof Uint8Array))
          throw invalidArgument(`the source of blob "${blob.type}" yields something else than bytes`);
        if (step.value.length > blob.lengthBytes - blob.sentBytes) {
          throw invalidArgument(
            `the source of blob "${blob.type}" yields more than its lengthBytes, ${blob.lengthBytes}`,
          );
        }
        await this.write(blob, step.value);
      }
    } catch (error) {
      // Not waited for: a source that hangs may hang here as well.
      Promise.resolve(iterator.return?.()).catch(() => {});
      throw error;
    }
    if (blob.sentBytes !== blob.lengthBytes) {
      throw invalidArgument(
        `the source of blob "${blob.type}" ended after ${blob.sentBytes} of ${blob.lengthBytes} bytes`,
      );
    }
  }

  private async write(blob: OutgoingBlob, bytes: Uint8Array): Promise<void> {
    for (let start = 0; start < bytes.length; start += BLOB_CHUNK_BYTES) {
      const chunk = bytes.subarray(start, start + BLOB_CHUNK_BYTES);
      const cost = chunkCost(chunk.length);
      while (blob.creditBytes < cost) await blob.until(blob.whenCredited());
      await blob.until(this.port.whenFlushed());
      this.port.send({ kind: FrameKind.blobChunk, id: blob.id, bytes: chunk });
      blob.creditBytes -= cost;
      blob.sentBytes += chunk.length;
    }
  }

  // -- receiving ---------------------------------------------------------------------------------------------------

  /** Takes a frame that concerns blobs. Throws QUORATE_PROTOCOL. */
  received(frame: Frame): void {
    switch (frame.kind) {
      case FrameKind.blobOpen:
        this.opened(frame.id, frame.type, frame.lengthBytes, frame.body);
        return;
      case FrameKind.blobChunk:
        this.incomingOf(frame.id)?.push(frame.bytes);
        return;
      case FrameKind.blobAbort:
        this.incomingOf(frame.id)?.fail(fromWireError(frame.error, this.port.label));
        return;
      case FrameKind.blobCredit: {
        const blob = this.outgoingOf(frame.id);
        if (blob === undefined) return;
        if (blob.creditBytes + frame.bytes > BLOB_WINDOW_BYTES) throw this.violation('granted more than it received');
        blob.credit(frame.bytes);
        return;
      }
      case FrameKind.blobDone: {
        const blob = this.outgoingOf(frame.id);
        if (blob !== undefined && blob.sentBytes !== blob.lengthBytes) throw this.violation('is done before its end');
        blob?.done(frame.body);
        return;
      }
      case FrameKind.blobFailed:
        this.outgoingOf(frame.id)?.fail(fromWireError(frame.error, this.port.label));
        return;
    }
  }

  private violation(what: string): QuorateError {
    return new QuorateError('QUORATE_PROTOCOL', `${this.port.label}: a blob ${what}`);
  }

  /** The blob, or undefined if it has ended here already. An id that was never used is a violation. */
  private incomingOf(id: number): IncomingBlob | undefined {
    if (id > this.lastIncomingId) throw this.violation('was not opened');
    return this.incoming.get(id);
  }

  private outgoingOf(id: number): OutgoingBlob | undefined {
    if (id > this.lastOutgoingId) throw this.violation('is answered that was never sent');
    return this.outgoing.get(id);
  }

  private opened(id: number, type: string, lengthBytes: number, body: unknown): void {
    if (id !== this.lastIncomingId + 1) throw this.violation('has a number out of turn');
    this.lastIncomingId = id;
    // Not a violation: handlers of blobs that the sender has given up may still be busy.
    if (this.incoming.size >= BLOBS_MAX) {
      this.refuse(id, 'QUORATE_BACKPRESSURE', `${BLOBS_MAX} blobs are being received`);
      return;
    }
    const handler = this.handlers.get(type);
    if (handler === undefined) {
      this.refuse(id, 'QUORATE_UNKNOWN_REQUEST', `no handler for blobs of type "${type}"`);
      return;
    }
    const blob = new IncomingBlob(lengthBytes, body, this.port.label, (bytes) => {
      this.port.reply({ kind: FrameKind.blobCredit, id, bytes });
    });
    this.incoming.set(id, blob);
    void this.serve(id, type, blob, handler);
  }

  private refuse(id: number, code: string, message: string): void {
    this.port.reply({ kind: FrameKind.blobFailed, id, error: { code, message } });
  }

  private async serve(id: number, type: string, blob: IncomingBlob, handler: BlobHandler): Promise<void> {
    let answer: Frame;
    try {
      const body = await handler(blob);
      if (!blob.isComplete) {
        throw (
          blob.failure ??
          new QuorateError(
            'QUORATE_CANCELLED',
            `the receiver took only ${blob.consumedBytes} of ${blob.lengthBytes} bytes`,
          )
        );
      }
      answer = { kind: FrameKind.blobDone, id, body };
    } catch (error) {
      blob.cancel(error as Error);
      const wire: WireError = toWireError(error);
      if (wire.code === 'QUORATE_INTERNAL') this.port.handlerFailed(type, error);
      answer = { kind: FrameKind.blobFailed, id, error: wire };
    }
    // Before the answer goes out: the peer may open its next blob as soon as it has it.
    this.incoming.delete(id);
    this.port.reply(answer);
  }

  /** The connection is gone. */
  closed(error: (what: string) => Error): void {
    for (const blob of [...this.outgoing.values()]) blob.fail(error(`blob "${blob.type}"`));
    for (const blob of this.incoming.values()) blob.fail(error('a blob being received'));
  }
}
