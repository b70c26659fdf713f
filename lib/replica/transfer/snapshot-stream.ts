// A snapshot as a stream of bytes: the session table first, then the state. The donor's side freezes both in one go and
// hands the bytes out piece by piece; the receiver's side takes them in the same order, and what it builds takes effect
// only when all of it is there. Neither holds more than a piece, except for state machines that know nothing but whole
// snapshots.
import { QuorateError } from '../../errors.js';
import type { StateMachine } from '../replica-options.js';
import { RESTORE_WHOLE_BYTES_MAX, SESSIONS_BYTES_MAX } from './limits.js';

type Pieces = Iterator<Uint8Array> | AsyncIterator<Uint8Array>;
type Step = IteratorResult<Uint8Array> | Promise<IteratorResult<Uint8Array>>;

function invalidPiece(): QuorateError {
  return new QuorateError(
    'QUORATE_INVALID_ARGUMENT',
    'snapshotChunks() of the state machine yields something else than bytes',
  );
}

/** Bytes that a transfer carries, piece by piece. */
export interface PieceSource {
  /** Of all pieces, if that is known. */
  readonly bytesTotal: number | undefined;
  /** The next piece, valid until the one after is asked for; null at the end. Not a promise where nothing is waited for. */
  pull(): Uint8Array | null | Promise<Uint8Array | null>;
  /** No more pieces are wanted. */
  close(): void;
}

/** The donor's side. Frozen when it is made: what is applied afterwards is not in it. */
export class SnapshotSource implements PieceSource {
  /** All of it, if the state machine says how much that is. */
  readonly bytesTotal: number | undefined;
  private sessions: Uint8Array | null;
  private readonly pieces: Pieces | null;
  /** Taken at once, so that a generator, which does nothing until then, has seen the state of this moment. */
  private first: Step | null = null;
  private whole: Uint8Array | null = null;

  constructor(stateMachine: StateMachine<never>, sessions: Uint8Array) {
    this.sessions = sessions;
    if (stateMachine.snapshotChunks === undefined) {
      this.whole = stateMachine.snapshot();
      this.pieces = null;
      this.bytesTotal = sessions.length + this.whole.length;
      return;
    }
    const stream = stateMachine.snapshotChunks();
    const isAsync = Symbol.asyncIterator in stream;
    this.pieces = isAsync ? stream[Symbol.asyncIterator]() : stream[Symbol.iterator]();
    this.first = this.pieces.next();
    // Whoever asks for it hears of the error; nobody may before the transfer ends.
    if (this.first instanceof Promise) this.first.catch(() => {});
    const { lengthBytes } = stream;
    const isKnown = typeof lengthBytes === 'number' && Number.isSafeInteger(lengthBytes) && lengthBytes >= 0;
    this.bytesTotal = isKnown ? sessions.length + lengthBytes : undefined;
  }

  pull(): Uint8Array | null | Promise<Uint8Array | null> {
    const { sessions, whole, pieces } = this;
    if (sessions !== null) {
      this.sessions = null;
      if (sessions.length > 0) return sessions;
    }
    if (pieces === null) {
      this.whole = null;
      return whole;
    }
    const step = this.first ?? pieces.next();
    this.first = null;
    return step instanceof Promise ? step.then((result) => this.piece(result)) : this.piece(step);
  }

  private piece(step: IteratorResult<Uint8Array>): Uint8Array | null {
    if (step.done === true) return null;
    if (!(step.value instanceof Uint8Array)) throw invalidPiece();
    return step.value;
  }

  /** The state machine need not keep the view any more. */
  close(): void {
    this.sessions = null;
    this.whole = null;
    this.first = null;
    try {
      const ended = this.pieces?.return?.();
      if (ended instanceof Promise) ended.catch(() => {});
    } catch {
      // It was to end, and it has.
    }
  }
}

/** One piece at a time from whoever writes to whoever reads; the writer waits until its piece was used. */
class PieceQueue implements AsyncIterable<Uint8Array> {
  private piece: Uint8Array | null = null;
  private used: (() => void) | null = null;
  private wanted: ((step: IteratorResult<Uint8Array>) => void) | null = null;
  private refuse: ((error: Error) => void) | null = null;
  private isEnded = false;
  private isLeft = false;
  private failure: Error | null = null;

  /** Resolves when the reader is done with the piece, or reads no more. */
  write(piece: Uint8Array): Promise<void> {
    if (this.isLeft) return Promise.resolve();
    return new Promise((resolve) => {
      this.used = resolve;
      const { wanted } = this;
      this.wanted = null;
      this.refuse = null;
      if (wanted === null) this.piece = piece;
      else wanted({ done: false, value: piece });
    });
  }

  end(): void {
    this.isEnded = true;
    this.wanted?.({ done: true, value: undefined });
    this.wanted = null;
  }

  fail(error: Error): void {
    this.failure = error;
    this.piece = null;
    this.refuse?.(error);
    this.wanted = null;
    this.refuse = null;
    this.release();
  }

  /** The reader has ended, with or without the rest. */
  leave(): void {
    this.isLeft = true;
    this.release();
  }

  private release(): void {
    const { used } = this;
    this.used = null;
    used?.();
  }

  private next(): Promise<IteratorResult<Uint8Array>> {
    if (this.failure !== null) return Promise.reject(this.failure);
    const { piece } = this;
    if (piece !== null) {
      this.piece = null;
      return Promise.resolve({ done: false, value: piece });
    }
    this.release();
    if (this.isEnded) return Promise.resolve({ done: true, value: undefined });
    return new Promise((resolve, reject) => {
      this.wanted = resolve;
      this.refuse = reject;
    });
  }

  [Symbol.asyncIterator](): AsyncIterator<Uint8Array> {
    return {
      next: () => this.next(),
      return: () => {
        this.leave();
        return Promise.resolve({ done: true, value: undefined });
      },
    };
  }
}

/** What a state machine that has no restoreChunks() does with a stream. */
async function restoreWhole(stateMachine: StateMachine<never>, pieces: AsyncIterable<Uint8Array>): Promise<() => void> {
  const kept: Uint8Array[] = [];
  let lengthBytes = 0;
  for await (const piece of pieces) {
    lengthBytes += piece.length;
    if (lengthBytes > RESTORE_WHOLE_BYTES_MAX) {
      throw new QuorateError(
        'QUORATE_LIMIT',
        `the state has more than ${RESTORE_WHOLE_BYTES_MAX} bytes, too much for restore(): give the state machine restoreChunks()`,
      );
    }
    kept.push(piece.slice());
  }
  const whole = Buffer.concat(kept, lengthBytes);
  kept.length = 0;
  return () => stateMachine.restore(whole);
}

/** The receiver's side. */
export class SnapshotSink {
  private readonly sessions: Uint8Array;
  private sessionsFilled = 0;
  private readonly pieces = new PieceQueue();
  private readonly restored: Promise<() => void>;
  private failure: Error | null = null;

  /** Throws QUORATE_LIMIT if the session table is announced as larger than any can be. */
  constructor(stateMachine: StateMachine<never>, sessionsBytes: number) {
    if (sessionsBytes > SESSIONS_BYTES_MAX) {
      throw new QuorateError(
        'QUORATE_LIMIT',
        `a session table of ${sessionsBytes} bytes was announced; at most ${SESSIONS_BYTES_MAX} are accepted`,
      );
    }
    this.sessions = new Uint8Array(sessionsBytes);
    this.restored = (
      stateMachine.restoreChunks === undefined
        ? restoreWhole(stateMachine, this.pieces)
        : Promise.resolve(this.pieces).then((pieces) => stateMachine.restoreChunks?.(pieces) as Promise<() => void>)
    ).finally(() => this.pieces.leave());
    this.restored.catch((error: Error) => {
      this.failure = error;
    });
  }

  /** Takes the next bytes of the stream. Resolves when they are not needed any more; throws what the state machine threw. */
  async write(bytes: Uint8Array): Promise<void> {
    if (this.failure !== null) throw this.failure;
    const { sessions } = this;
    const part = Math.min(sessions.length - this.sessionsFilled, bytes.length);
    if (part > 0) {
      sessions.set(bytes.subarray(0, part), this.sessionsFilled);
      this.sessionsFilled += part;
    }
    if (part < bytes.length) await this.pieces.write(part === 0 ? bytes : bytes.subarray(part));
    if (this.failure !== null) throw this.failure;
  }

  /** All bytes are there: resolves with the sessions, and with what puts the state in place. */
  async finish(): Promise<{ sessions: Uint8Array; put: () => void }> {
    if (this.sessionsFilled < this.sessions.length) {
      const text = `it ends after ${this.sessionsFilled} of ${this.sessions.length} bytes of its session table`;
      throw new QuorateError('QUORATE_SNAPSHOT_INVALID', `the snapshot cannot be used: ${text}`);
    }
    this.pieces.end();
    const put = await this.restored;
    if (typeof put !== 'function') {
      throw new QuorateError(
        'QUORATE_INVALID_ARGUMENT',
        'restoreChunks() of the state machine did not return a function',
      );
    }
    return { sessions: this.sessions, put };
  }

  /** Nothing of it is used. */
  abort(error: Error): void {
    this.pieces.fail(error);
  }
}
