// Exactly-once execution under a state machine: which commands of which client session have been applied. A command
// carries (origin, sequence); a session applies 1, 2, 3 ... in this order and each once, however often and by however
// many leaders a command was put into the log. The table is part of the replicated state: it is a function of the log
// alone, and travels in snapshots.
//
// It is bounded. When a session more than SESSIONS_MAX begins, the one that applied a command longest ago (lowest LSN)
// is forgotten, at the same LSN by every replica. A forgotten session's next command is refused as a gap, so nothing
// is silently applied out of order; but its very first command, retried after SESSIONS_MAX other sessions have applied
// something in between, would count as a new session's. A client that retries for so long needs a fresh origin.
import { Packr, Unpackr } from 'msgpackr';
import { outOfRange, QuorateError } from '../errors.js';

/** Most sessions that are remembered. */
export const SESSIONS_MAX = 65_536;
/** Largest result kept for answering a duplicate: bytes of a Uint8Array, UTF-16 code units of a string. */
export const SESSION_RESULT_LENGTH_MAX = 256;

/** What to do with a command that comes out of the log. */
export type SessionDecision = 'apply' | 'duplicate' | 'gap';

/** Results that are kept, in memory and in snapshots; of all others a duplicate's result is undefined. */
type KeptResult = undefined | null | boolean | number | string | Uint8Array;

const SNAPSHOT_VERSION = 1;
const FIELDS_PER_SESSION = 4;

// Plain values only: no records, no classes, no references.
const packer = new Packr({ useRecords: false, moreTypes: false, structuredClone: false });
const unpacker = new Unpackr({ useRecords: false, moreTypes: false, structuredClone: false, int64AsType: 'number' });

/** One session; the sessions form a list from the one that applied longest ago to the one that applied last. */
class Session {
  sequence = 0;
  lsn = -1;
  result: KeptResult = undefined;
  older: Session | null = null;
  newer: Session | null = null;

  constructor(readonly origin: number) {}
}

function keepable(result: unknown): KeptResult {
  switch (typeof result) {
    case 'number':
      return result + 0; // a snapshot has no -0
    case 'boolean':
      return result;
    case 'string':
      return result.length <= SESSION_RESULT_LENGTH_MAX ? result : undefined;
    case 'object':
      if (result === null) return null;
      if (result instanceof Uint8Array && result.length <= SESSION_RESULT_LENGTH_MAX) return Uint8Array.from(result);
      return undefined;
    default:
      return undefined;
  }
}

/** Half of a surrogate pair, as cutting a text leaves it: in a snapshot it would become something else. */
const LONE_SURROGATE = /\p{Surrogate}/u;

function isNumberOf(value: unknown, min: number): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= min;
}

export class SessionTable {
  private sessions = new Map<number, Session>();
  private oldest: Session | null = null;
  private newest: Session | null = null;

  constructor(private readonly sessionsMax: number = SESSIONS_MAX) {
    if (!isNumberOf(sessionsMax, 1)) throw outOfRange(`sessionsMax is ${sessionsMax}; it must be a positive integer`);
  }

  /** Number of sessions remembered. */
  get size(): number {
    return this.sessions.size;
  }

  /**
   * What to do with the command (origin, sequence). Origin 0 is no session: always "apply". "duplicate": it was
   * applied before. "gap": its predecessor was not applied (or the session was forgotten), so it must not be applied,
   * at no replica. Changes nothing; the caller reports what it applied with finish().
   */
  begin(origin: number, sequence: number): SessionDecision {
    if (origin === 0) return 'apply';
    if (!isNumberOf(origin, 1) || !isNumberOf(sequence, 1)) return 'gap'; // the log's bytes, not a client's promise
    const last = this.find(origin)?.sequence ?? 0;
    if (sequence === last + 1) return 'apply';
    return sequence <= last ? 'duplicate' : 'gap';
  }

  /** Records that the command, for which begin() said "apply", was applied at `lsn` with this result. */
  finish(origin: number, sequence: number, lsn: number, result: unknown): void {
    if (origin === 0) return;
    let session = this.find(origin);
    const last = session?.sequence ?? 0;
    if (sequence !== last + 1) {
      throw new Error(`session ${origin} applied ${sequence} at LSN ${lsn}, but it had applied up to ${last} before`);
    }
    if (this.newest !== null && lsn <= this.newest.lsn) {
      throw new Error(
        `session ${origin} applied at LSN ${lsn}, not above ${this.newest.lsn} where a session applied last`,
      );
    }
    if (session === undefined) {
      if (this.sessions.size === this.sessionsMax) this.forgetOldest();
      session = new Session(origin);
      this.sessions.set(origin, session);
    } else if (session !== this.newest) {
      this.unlink(session);
    }
    if (session !== this.newest) this.linkNewest(session);
    session.sequence = sequence;
    session.lsn = lsn;
    session.result = keepable(result);
  }

  /** Sequence number that the session applied last; 0 for a session that is not known. */
  lastSequence(origin: number): number {
    return this.find(origin)?.sequence ?? 0;
  }

  /**
   * Result of the session's last command, if it was small enough to keep. With `sequence`, only if that is the last
   * one: results of earlier commands are not kept.
   */
  lastResult(origin: number, sequence?: number): unknown {
    const session = this.find(origin);
    if (session === undefined || (sequence !== undefined && sequence !== session.sequence)) return undefined;
    return session.result instanceof Uint8Array ? session.result.slice() : session.result;
  }

  /** The whole table as bytes, the same at every replica that applied the same log. */
  snapshot(): Uint8Array {
    const fields: unknown[] = [SNAPSHOT_VERSION];
    for (let session = this.oldest; session !== null; session = session.newer) {
      const { origin, sequence, lsn, result } = session;
      const travels = typeof result !== 'string' || !LONE_SURROGATE.test(result);
      fields.push(origin, sequence, lsn, travels ? result : undefined);
    }
    return Uint8Array.from(packer.pack(fields));
  }

  /** Replaces the table by a snapshot's. A snapshot that does not hold a table is refused and changes nothing. */
  restore(bytes: Uint8Array): void {
    const refuse = (what: string): QuorateError =>
      new QuorateError('QUORATE_SNAPSHOT_INVALID', `the snapshot's session table cannot be used: ${what}`);
    let fields: unknown;
    try {
      fields = unpacker.unpack(bytes);
    } catch (error) {
      throw refuse(`it does not decode (${error instanceof Error ? error.message : String(error)})`);
    }
    if (!Array.isArray(fields)) throw refuse('it is not a list');
    if (fields[0] !== SNAPSHOT_VERSION) throw refuse(`its version is not ${SNAPSHOT_VERSION}`);
    if ((fields.length - 1) % FIELDS_PER_SESSION !== 0) throw refuse(`it has ${fields.length} fields`);
    if ((fields.length - 1) / FIELDS_PER_SESSION > this.sessionsMax) {
      throw refuse(`it has more than ${this.sessionsMax} sessions`);
    }
    const restored = new SessionTable(this.sessionsMax);
    for (let at = 1; at < fields.length; at += FIELDS_PER_SESSION) {
      const [origin, sequence, lsn, result] = fields.slice(at, at + FIELDS_PER_SESSION) as unknown[];
      if (!isNumberOf(origin, 1) || restored.sessions.has(origin)) throw refuse(`origin of field ${at}`);
      if (!isNumberOf(sequence, 1)) throw refuse(`sequence of session ${origin}`);
      if (!isNumberOf(lsn, 0) || lsn <= (restored.newest?.lsn ?? -1)) throw refuse(`LSN of session ${origin}`);
      const session = new Session(origin);
      session.sequence = sequence;
      session.lsn = lsn;
      session.result = keepable(result);
      restored.sessions.set(origin, session);
      restored.linkNewest(session);
    }
    this.sessions = restored.sessions;
    this.oldest = restored.oldest;
    this.newest = restored.newest;
  }

  private find(origin: number): Session | undefined {
    const newest = this.newest;
    return newest !== null && newest.origin === origin ? newest : this.sessions.get(origin);
  }

  private linkNewest(session: Session): void {
    session.older = this.newest;
    session.newer = null;
    if (this.newest === null) this.oldest = session;
    else this.newest.newer = session;
    this.newest = session;
  }

  private unlink(session: Session): void {
    if (session.older === null) this.oldest = session.newer;
    else session.older.newer = session.newer;
    if (session.newer === null) this.newest = session.older;
    else session.newer.older = session.older;
  }

  private forgetOldest(): void {
    const session = this.oldest as Session;
    this.unlink(session);
    this.sessions.delete(session.origin);
  }
}
