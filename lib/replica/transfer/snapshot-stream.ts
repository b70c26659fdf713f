// A snapshot as a stream of bytes: the session table first, then the state. The donor's side freezes both in one go and
// hands the bytes out piece by piece; the receiver's side takes them in the same order, and what it builds takes effect
// only when all of it is there. Neither holds more than a piece, except for state machines that know nothing but whole
// snapshots.
import { QuorateError } from '../../errors.js';
import type { RestoreInPlace, SnapshotStream, StateMachine } from '../replica-options.js';
import { callUser, callUserAtOnce } from '../user-code.js';
import { EMPTY_PIECES_MAX, PIECE_TIMEOUT_MS, RESTORE_WHOLE_BYTES_MAX, SESSIONS_BYTES_MAX } from './limits.js';

type Pieces = Iterator<Uint8Array> | AsyncIterator<Uint8Array>;
type Step = IteratorResult<Uint8Array> | Promise<IteratorResult<Uint8Array>>;

const SNAPSHOT = 'snapshot() of the state machine';
const SNAPSHOT_CHUNKS = 'snapshotChunks() of the state machine';
const TAKEN = 'taken() of what snapshotChunks() returned';
const RESTORE_IN_PLACE = 'restoreInPlace() of the state machine';

function noBytes(what: string): QuorateError {
  return new QuorateError('QUORATE_INVALID_ARGUMENT', `${what} something else than a Uint8Array`);
}

function tooLargeForRestore(): QuorateError {
  return new QuorateError(
    'QUORATE_LIMIT',
    `the state has more than ${RESTORE_WHOLE_BYTES_MAX} bytes, too much for restore(): give the state machine restoreChunks()`,
  );
}

/** Bytes that a transfer carries, piece by piece. */
export interface PieceSource {
  /** Of all pieces, if that is known. */
  readonly bytesTotal: number | undefined;
  /** The state machine that it is of can take so much back; no limit if absent. */
  readonly restorableBytesMax?: number;
  /** The next piece, valid until the one after is asked for; null at the end. Not a promise where nothing is waited for. */
  pull(): Uint8Array | null | Promise<Uint8Array | null>;
  /** Pieces stay as they are until taken() tells that they are not needed any more. */
  readonly staysUntilTaken: boolean;
  /** So many bytes from the beginning are at the receiver. */
  taken(bytes: number): void;
  /** No more pieces are wanted. */
  close(): void;
}

/** The donor's side. Frozen when it is made: what is applied afterwards is not in it. */
export class SnapshotSource implements PieceSource {
  /** All of it, if the state machine says how much that is. */
  readonly bytesTotal: number | undefined;
  readonly staysUntilTaken: boolean;
  readonly restorableBytesMax: number;
  private readonly stream: SnapshotStream | null;
  private readonly sessionsBytes: number;
  private sessions: Uint8Array | null;
  private readonly pieces: Pieces | null;
  /** Taken at once, so that a generator, which does nothing until then, has seen the state of this moment. */
  private first: Step | null = null;
  private whole: Uint8Array | null = null;
  /** Bytes of all pieces of the stream that were pulled. */
  private given = 0;
  /** The latest pieces, as far as they were empty. */
  private emptyPieces = 0;
  private isClosed = false;

  constructor(stateMachine: StateMachine<never>, sessions: Uint8Array) {
    this.sessions = sessions;
    this.sessionsBytes = sessions.length;
    const isWhole = stateMachine.restoreChunks === undefined && stateMachine.restoreInPlace === undefined;
    this.restorableBytesMax = isWhole ? sessions.length + RESTORE_WHOLE_BYTES_MAX : Number.POSITIVE_INFINITY;
    if (stateMachine.snapshotChunks === undefined) {
      this.whole = callUserAtOnce(SNAPSHOT, () => stateMachine.snapshot());
      // A string, say, has a length too, and would be copied as zeros.
      if (!(this.whole instanceof Uint8Array)) throw noBytes(`${SNAPSHOT} returned`);
      this.pieces = null;
      this.stream = null;
      this.staysUntilTaken = false;
      this.bytesTotal = sessions.length + this.whole.length;
      return;
    }
    const stream = callUserAtOnce(SNAPSHOT_CHUNKS, () => stateMachine.snapshotChunks?.() as SnapshotStream);
    this.stream = stream;
    this.staysUntilTaken = typeof stream.taken === 'function';
    const isAsync = Symbol.asyncIterator in stream;
    const pieces: Pieces = isAsync ? stream[Symbol.asyncIterator]() : stream[Symbol.iterator]();
    this.pieces = pieces;
    this.first = callUser(SNAPSHOT_CHUNKS, () => pieces.next());
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
    const step = this.first ?? callUser(SNAPSHOT_CHUNKS, () => pieces.next());
    this.first = null;
    return step instanceof Promise ? step.then((result) => this.piece(result)) : this.piece(step);
  }

  private piece(step: IteratorResult<Uint8Array>): Uint8Array | null {
    if (step.done === true) return null;
    if (!(step.value instanceof Uint8Array)) throw noBytes(`${SNAPSHOT_CHUNKS} yields`);
    this.given += step.value.length;
    this.emptyPieces = step.value.length > 0 ? 0 : this.emptyPieces + 1;
    if (this.emptyPieces > EMPTY_PIECES_MAX) {
      const text = `${SNAPSHOT_CHUNKS} yields more than ${EMPTY_PIECES_MAX} empty pieces, one after the other`;
      throw new QuorateError('QUORATE_INVALID_ARGUMENT', text);
    }
    return step.value;
  }

  taken(bytes: number): void {
    if (bytes <= this.sessionsBytes) return;
    callUserAtOnce(TAKEN, () => this.stream?.taken?.(bytes - this.sessionsBytes));
  }

  /** The state machine need not keep the view any more. */
  close(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    this.sessions = null;
    this.whole = null;
    this.first = null;
    try {
      const ended = this.pieces?.return?.();
      if (ended instanceof Promise) ended.catch(() => {});
    } catch {
      // It was to end, and it has.
    }
    try {
      // An iterator that came to its end notices nothing of return().
      callUserAtOnce(TAKEN, () => this.stream?.taken?.(this.given));
    } catch {
      // As above: what it said before ended the transfer.
    }
  }
}

/** The pieces of a source for somebody who is done with each of them when the next one is asked for. */
export class PieceReader {
  private bytes = 0;
  private failure: Error | null = null;
  private refuse: ((error: Error) => void) | null = null;

  /** `pieceTimeoutMs`: how long the state machine may take for one piece. */
  constructor(
    private readonly source: PieceSource,
    private readonly pieceTimeoutMs = PIECE_TIMEOUT_MS,
  ) {}

  /** What is stored here is for this state machine, and of no use where it could not take it back. */
  private checkRestorable(bytes: number): void {
    if (bytes > (this.source.restorableBytesMax ?? Number.POSITIVE_INFINITY)) throw tooLargeForRestore();
  }

  async pull(): Promise<Uint8Array | null> {
    if (this.failure !== null) throw this.failure;
    this.checkRestorable(this.source.bytesTotal ?? 0);
    this.source.taken(this.bytes);
    const pulled = this.source.pull();
    const piece = pulled instanceof Promise ? await this.unlessInterrupted(pulled) : pulled;
    this.bytes += piece?.length ?? 0;
    this.checkRestorable(this.bytes);
    return piece;
  }

  private unlessInterrupted<Value>(promise: Promise<Value>): Promise<Value> {
    return new Promise((resolve, reject) => {
      const { pieceTimeoutMs } = this;
      const stalled = (): void => {
        const text = `${SNAPSHOT_CHUNKS} gave neither a piece nor its end for ${pieceTimeoutMs} ms`;
        this.interrupt(new QuorateError('QUORATE_TIMEOUT', text));
      };
      const timer = setTimeout(stalled, pieceTimeoutMs);
      this.refuse = (error) => {
        clearTimeout(timer);
        reject(error);
      };
      promise.then(resolve, reject).finally(() => clearTimeout(timer));
    });
  }

  /** No piece is waited for any more: the state machine may never give it. What is pulled, now and later, rejects. */
  interrupt(error: Error): void {
    this.failure ??= error;
    this.refuse?.(error);
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
    if (lengthBytes > RESTORE_WHOLE_BYTES_MAX) throw tooLargeForRestore();
    kept.push(piece.slice());
  }
  const whole = Buffer.concat(kept, lengthBytes);
  kept.length = 0;
  return () => callUserAtOnce('restore() of the state machine', () => stateMachine.restore(whole));
}

/** Where the bytes of a stream go: into the session table, then into memory that the state machine names. */
class Places {
  /** Those that are not full yet, and how many bytes of the stream were before the first of them. */
  private readonly places: Uint8Array[] = [];
  private begin = 0;
  private end = 0;

  constructor(
    private readonly restore: RestoreInPlace,
    sessions: Uint8Array,
  ) {
    if (sessions.length > 0) this.add(sessions);
  }

  private add(place: Uint8Array): void {
    if (!(place instanceof Uint8Array) || place.length === 0) {
      throw new QuorateError(
        'QUORATE_INVALID_ARGUMENT',
        `next() of what ${RESTORE_IN_PLACE} returned gives something else than bytes to be filled`,
      );
    }
    this.places.push(place);
    this.end += place.length;
  }

  /**
   * The places of these bytes of the stream, in their order, in as few pieces as they lie in memory. The same ones if they
   * are asked for again.
   */
  of(offset: number, lengthBytes: number): Uint8Array[] {
    while (this.end < offset + lengthBytes)
      this.add(callUserAtOnce(`next() of what ${RESTORE_IN_PLACE} returned`, () => this.restore.next()));
    const found: Uint8Array[] = [];
    let at = this.begin;
    for (const place of this.places) {
      const from = Math.max(0, offset - at);
      const to = Math.min(place.length, offset + lengthBytes - at);
      if (to <= 0) break;
      if (from < to) {
        const last = found.at(-1);
        const begin = place.byteOffset + from;
        if (last !== undefined && last.buffer === place.buffer && last.byteOffset + last.length === begin) {
          found[found.length - 1] = new Uint8Array(place.buffer, last.byteOffset, last.length + to - from);
        } else {
          found.push(place.subarray(from, to));
        }
      }
      at += place.length;
    }
    return found;
  }

  /** All bytes of the stream up to here are in their places. */
  filled(bytes: number): void {
    for (;;) {
      const first = this.places[0];
      if (first === undefined || this.begin + first.length > bytes) return;
      this.begin += first.length;
      this.places.shift();
    }
  }
}

/** The receiver's side. */
export class SnapshotSink {
  private readonly sessions: Uint8Array;
  /** Of the whole stream. */
  private filledBytes = 0;
  private readonly pieces = new PieceQueue();
  private readonly restored: Promise<() => void>;
  private readonly inPlace: { readonly restore: RestoreInPlace; readonly places: Places } | null = null;
  private failure: Error | null = null;
  private refuse: ((error: Error) => void) | null = null;
  private isAborted = false;

  /**
   * `stateBytes` is what follows the session table, if that is known. Throws QUORATE_LIMIT if the session table is
   * announced as larger than any can be, and what restoreInPlace() throws.
   */
  constructor(stateMachine: StateMachine<never>, sessionsBytes: number, stateBytes?: number) {
    if (sessionsBytes > SESSIONS_BYTES_MAX) {
      throw new QuorateError(
        'QUORATE_LIMIT',
        `a session table of ${sessionsBytes} bytes was announced; at most ${SESSIONS_BYTES_MAX} are accepted`,
      );
    }
    this.sessions = new Uint8Array(sessionsBytes);
    if (stateMachine.restoreInPlace !== undefined) {
      const restore = callUserAtOnce(
        RESTORE_IN_PLACE,
        () => stateMachine.restoreInPlace?.(stateBytes) as RestoreInPlace,
      );
      this.inPlace = { restore, places: new Places(restore, this.sessions) };
      this.restored = new Promise(() => {});
      return;
    }
    this.restored = (
      stateMachine.restoreChunks === undefined
        ? restoreWhole(stateMachine, this.pieces)
        : callUser('restoreChunks() of the state machine', () =>
            Promise.resolve(this.pieces).then((pieces) => stateMachine.restoreChunks?.(pieces) as Promise<() => void>),
          )
    ).finally(() => this.pieces.leave());
    this.restored.catch((error: Error) => {
      this.failure = error;
    });
  }

  /**
   * Where these bytes of the stream go, in their order; null if the state machine has no places for them, and they are to
   * be written. Throws what the state machine throws.
   */
  places(offset: number, lengthBytes: number): Uint8Array[] | null {
    return this.inPlace === null ? null : this.inPlace.places.of(offset, lengthBytes);
  }

  /** The stream up to here is in its places. */
  filled(bytes: number): void {
    this.filledBytes = bytes;
    this.inPlace?.places.filled(bytes);
  }

  /** Takes the next bytes of the stream. Resolves when they are not needed any more; throws what the state machine threw. */
  async write(bytes: Uint8Array): Promise<void> {
    if (this.failure !== null) throw this.failure;
    const places = this.places(this.filledBytes, bytes.length);
    if (places !== null) {
      let at = 0;
      for (const place of places) {
        place.set(bytes.subarray(at, at + place.length));
        at += place.length;
      }
      this.filled(this.filledBytes + bytes.length);
      return;
    }
    const { sessions, filledBytes } = this;
    const part = Math.min(Math.max(0, sessions.length - filledBytes), bytes.length);
    if (part > 0) sessions.set(bytes.subarray(0, part), filledBytes);
    this.filled(filledBytes + bytes.length);
    if (part < bytes.length) await this.pieces.write(part === 0 ? bytes : bytes.subarray(part));
    if (this.failure !== null) throw this.failure;
  }

  /** All bytes are there: resolves with the sessions, and with what puts the state in place. Rejects when it is interrupted. */
  async finish(): Promise<{ sessions: Uint8Array; put: () => void }> {
    const { inPlace, sessions, filledBytes } = this;
    if (this.failure !== null) throw this.failure;
    if (filledBytes < sessions.length) {
      const text = `it ends after ${filledBytes} of ${sessions.length} bytes of its session table`;
      throw new QuorateError('QUORATE_SNAPSHOT_INVALID', `the snapshot cannot be used: ${text}`);
    }
    this.pieces.end();
    const method = inPlace === null ? 'restoreChunks()' : 'finish() of what restoreInPlace() returned';
    const put = await this.unlessInterrupted(
      inPlace === null
        ? this.restored
        : callUser(method, async () => inPlace.restore.finish(filledBytes - sessions.length)),
    );
    if (typeof put !== 'function') {
      throw new QuorateError('QUORATE_INVALID_ARGUMENT', `${method} of the state machine did not return a function`);
    }
    return { sessions, put: () => callUserAtOnce('what puts the state of a snapshot in place', put) };
  }

  private unlessInterrupted<Value>(promise: Promise<Value>): Promise<Value> {
    return new Promise((resolve, reject) => {
      this.refuse = reject;
      promise.then(resolve, reject);
    });
  }

  /**
   * Nothing of it will be used: a state machine that waits for bytes is told at once, and one that has all of them, and may
   * never settle, is not waited for. abort() must follow.
   */
  interrupt(error: Error): void {
    this.failure ??= error;
    this.pieces.fail(error);
    this.refuse?.(error);
  }

  /**
   * Nothing of it is used, and nothing is written to its places any more. What the state machine makes of that changes nothing:
   * what it throws is a warning.
   */
  abort(error: Error, onWarning: (failure: Error) => void): void {
    this.interrupt(error);
    if (this.isAborted) return;
    this.isAborted = true;
    try {
      callUserAtOnce(`abort() of what ${RESTORE_IN_PLACE} returned`, () => this.inPlace?.restore.abort?.(error));
    } catch (failure) {
      onWarning(failure as Error);
    }
  }
}
