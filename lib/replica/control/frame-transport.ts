// Frames over one connected socket, TLS or plain: cuts what arrives, bounds what waits to be sent, and ends in exactly
// one way: closed() is called once, with the first reason there was, when the socket is gone.
import type { Socket } from 'node:net';
import { QuorateError } from '../../errors.js';
import { Deadline } from './deadline.js';
import { FrameDecoder } from './frame-decoder.js';
import {
  decodeFrame,
  encodeFrame,
  FRAME_HEADER_BYTES,
  type Frame,
  FrameKind,
  toWireError,
  type WireError,
} from './frames.js';
import { BLOB_QUEUE_BYTES, CLOSE_GRACE_MS, HELLO_FRAME_BYTES_MAX, QUEUE_BYTES_MAX } from './limits.js';
import { lostError } from './socket-error.js';

export interface FrameReceiver {
  received(frame: Frame): void;
  /** The socket is gone. No error: this side closed it. */
  closed(error: QuorateError | undefined): void;
}

export class FrameTransport {
  private receiver: FrameReceiver | undefined;
  private readonly decoder = new FrameDecoder(HELLO_FRAME_BYTES_MAX);
  private reason: QuorateError | undefined;
  /** This side has said its last frame, or may say none any more. */
  private ending = false;
  private closed_ = false;
  private paused = false;
  private grace: Deadline | undefined;
  private flushWaiters: (() => void)[] = [];
  private readonly closeWaiters: (() => void)[] = [];

  /** `label` names the other end in errors. */
  constructor(
    private readonly socket: Socket,
    public label: string,
  ) {
    socket.on('data', (chunk: Buffer) => {
      if (this.isEnding) return; // read only to see the peer's end
      this.decoder.push(chunk);
      this.dispatch();
    });
    socket.on('end', () => this.ended());
    socket.on('error', (error) => {
      this.reason ??= this.ending ? undefined : lostError(error, this.label);
      this.socket.destroy();
    });
    socket.on('close', () => this.finish());
    socket.resume();
  }

  /** Who gets the frames from now on. */
  deliverTo(receiver: FrameReceiver): void {
    this.receiver = receiver;
  }

  set limitBytes(bytes: number) {
    this.decoder.limitBytes = bytes;
  }

  /** Nothing can be sent any more. */
  get isEnding(): boolean {
    return this.ending || this.closed_ || this.socket.destroyed;
  }

  /** Why it ended or is ending; undefined while it is open, and if this side closed it. */
  get closeReason(): QuorateError | undefined {
    return this.reason;
  }

  get queuedBytes(): number {
    return this.socket.writableLength;
  }

  /** Sends a frame. `encoded` must come from encodeFrame(). The caller has checked hasRoom(). */
  write(encoded: Buffer): void {
    if (this.isEnding) return;
    const header = Buffer.allocUnsafe(FRAME_HEADER_BYTES);
    header.writeUInt32BE(encoded.length);
    this.socket.cork();
    this.socket.write(header);
    this.socket.write(encoded, this.flushed);
    this.socket.uncork();
  }

  hasRoom(bytes: number, limitBytes = QUEUE_BYTES_MAX): boolean {
    return this.queuedBytes + FRAME_HEADER_BYTES + bytes <= limitBytes;
  }

  /** Resolves when little enough waits to be sent that a blob may add to it, or when the socket is gone. */
  whenFlushed(): Promise<void> {
    if (this.closed_ || this.queuedBytes <= BLOB_QUEUE_BYTES) return Promise.resolve();
    return new Promise((resolve) => this.flushWaiters.push(resolve));
  }

  private readonly flushed = (): void => {
    // The stream counts the write that was just done only after this callback.
    if (this.flushWaiters.length > 0) setImmediate(() => this.wakeFlushed());
  };

  private wakeFlushed(): void {
    if (!this.closed_ && this.queuedBytes > BLOB_QUEUE_BYTES) return;
    const waiters = this.flushWaiters;
    this.flushWaiters = [];
    for (const resolve of waiters) resolve();
  }

  /** Holds back frames, and soon the sender, until resume(). */
  pause(): void {
    this.paused = true;
    this.socket.pause();
  }

  resume(): void {
    if (!this.paused) return;
    this.paused = false;
    this.dispatch();
    if (!this.paused) this.socket.resume();
  }

  private dispatch(): void {
    while (!this.paused && !this.isEnding) {
      let frame: Frame;
      try {
        const payload = this.decoder.next();
        if (payload === undefined) return;
        frame = decodeFrame(payload);
      } catch (error) {
        this.fail(error as QuorateError);
        return;
      }
      this.receiver?.received(frame);
    }
  }

  /** The peer sends nothing more. */
  private ended(): void {
    if (!this.ending) {
      const where = this.decoder.atBoundary ? '' : ' in the middle of a frame';
      this.reason ??= new QuorateError('QUORATE_DISCONNECTED', `${this.label} ended the connection${where}`);
      this.ending = true;
    }
    this.cutAfterGrace();
  }

  /** The peer broke the protocol, or is not wanted: tells it why and closes. */
  fail(error: QuorateError): void {
    this.reason ??= error;
    this.end(toWireError(error));
  }

  /** Sends what is queued and a farewell, then closes; cut off if the peer does not follow in time. */
  end(error: WireError | null): void {
    if (this.isEnding) return;
    this.write(encodeFrame({ kind: FrameKind.farewell, error }));
    this.ending = true;
    this.socket.end();
    this.cutAfterGrace();
    if (this.paused) {
      this.paused = false;
      this.socket.resume();
    }
  }

  /** The peer has said its last frame. */
  farewell(reason: QuorateError): void {
    this.reason ??= reason;
    this.ending = true;
    this.socket.end();
    this.cutAfterGrace();
  }

  /** Closes at once. */
  destroy(error: QuorateError | undefined): void {
    if (!this.ending) this.reason ??= error;
    this.ending = true;
    this.socket.destroy();
  }

  private cutAfterGrace(): void {
    if (this.closed_) return;
    this.grace ??= new Deadline(CLOSE_GRACE_MS, () => this.socket.destroy());
  }

  private finish(): void {
    if (this.closed_) return;
    this.closed_ = true;
    this.grace?.clear();
    if (!this.ending) {
      this.reason ??= new QuorateError('QUORATE_DISCONNECTED', `the connection to ${this.label} was cut`);
    }
    this.ending = true;
    this.wakeFlushed();
    this.receiver?.closed(this.reason);
    for (const resolve of this.closeWaiters.splice(0)) resolve();
  }

  get isClosed(): boolean {
    return this.closed_;
  }

  /** Resolves when the socket is gone. */
  whenClosed(): Promise<void> {
    if (this.closed_) return Promise.resolve();
    return new Promise((resolve) => this.closeWaiters.push(resolve));
  }

  ref(): void {
    this.socket.ref();
  }

  unref(): void {
    this.socket.unref();
  }
}
