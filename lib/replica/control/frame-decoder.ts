// Cuts a byte stream into frames. A length above the limit is refused before anything is allocated for it, and what is
// allocated for a frame grows with what has arrived of it: a peer cannot make this side hold memory by announcing.
import { QuorateError } from '../../errors.js';
import { FRAME_HEADER_BYTES } from './frames.js';

const ALLOCATION_BYTES_FIRST = 512 * 1024;

export class FrameDecoder {
  /** Largest payload that is accepted. */
  limitBytes: number;
  private readonly chunks: Buffer[] = [];
  private readonly header = Buffer.alloc(FRAME_HEADER_BYTES);
  private headerFilled = 0;
  private payload: Buffer | undefined;
  private payloadBytes = 0;
  private payloadFilled = 0;

  constructor(limitBytes: number) {
    this.limitBytes = limitBytes;
  }

  push(chunk: Buffer): void {
    if (chunk.length > 0) this.chunks.push(chunk);
  }

  /** The payload of the next complete frame, in memory of its own; undefined if more bytes are needed. */
  next(): Buffer | undefined {
    while (this.chunks.length > 0) {
      if (this.payload === undefined) {
        this.headerFilled += this.take(this.header, this.headerFilled, FRAME_HEADER_BYTES);
        if (this.headerFilled < FRAME_HEADER_BYTES) return undefined;
        this.begin(this.header.readUInt32BE(0));
      }
      const done = this.fill();
      if (done !== undefined) return done;
    }
    return undefined;
  }

  /** Whether the stream stands between two frames. */
  get atBoundary(): boolean {
    return this.headerFilled === 0 && this.chunks.length === 0;
  }

  private begin(lengthBytes: number): void {
    if (lengthBytes === 0 || lengthBytes > this.limitBytes) {
      throw new QuorateError(
        'QUORATE_PROTOCOL',
        `a frame announces ${lengthBytes} bytes; 1 to ${this.limitBytes} are allowed here`,
      );
    }
    this.payloadBytes = lengthBytes;
    this.payloadFilled = 0;
    // Not from the pool: bodies may keep views of it.
    this.payload = Buffer.allocUnsafeSlow(Math.min(lengthBytes, ALLOCATION_BYTES_FIRST));
  }

  private fill(): Buffer | undefined {
    let payload = this.payload as Buffer;
    while (this.chunks.length > 0 && this.payloadFilled < this.payloadBytes) {
      if (this.payloadFilled === payload.length) {
        const larger = Buffer.allocUnsafeSlow(Math.min(this.payloadBytes, payload.length * 2));
        payload.copy(larger);
        payload = this.payload = larger;
      }
      this.payloadFilled += this.take(payload, this.payloadFilled, payload.length);
    }
    if (this.payloadFilled < this.payloadBytes) return undefined;
    this.payload = undefined;
    this.headerFilled = 0;
    return payload;
  }

  /** Moves bytes of the oldest chunk to target[start .. end); returns how many. */
  private take(target: Buffer, start: number, end: number): number {
    const chunk = this.chunks[0] as Buffer;
    const count = Math.min(chunk.length, end - start);
    chunk.copy(target, start, 0, count);
    if (count === chunk.length) this.chunks.shift();
    else this.chunks[0] = chunk.subarray(count);
    return count;
  }
}
