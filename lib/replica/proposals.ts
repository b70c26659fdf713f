// Commands on their way from the caller through the log into the state machine: checks what is proposed, gives it to the
// replication plane or has it wait for room in the ring, and settles its promise when the command comes out of the log.
import { types } from 'node:util';
import { PROPOSE_LEAVING, PROPOSE_LOG_FULL, PROPOSE_NOT_LEADER } from '../consensus/replication-plane.js';
import { QuorateError } from '../errors.js';
import type { SessionTable } from '../rsm/session-table.js';
import type { FlushSchedule } from './flush-schedule.js';
import { NotLeaderError } from './not-leader-error.js';
import { OutcomeUnknownError, PendingProposals } from './pending-proposals.js';
import type { ProposeResult, SessionCommand, StateMachine } from './replica-options.js';
import { checkNoPromise, thrownError } from './user-code.js';

type Resolve<Result> = (result: ProposeResult<Result>) => void;
type Reject = (error: Error) => void;

/** What takes commands into the log: the replication plane. */
export interface CommandLog {
  propose(origin: number, sequence: number, payload: Uint8Array): number;
}

/**
 * Has another replica propose a command. With `error` this one tried before, and says what came of it: that it does not
 * lead, or that the outcome is unknown.
 */
export type Elsewhere<Result> = (
  command: Uint8Array,
  session: SessionCommand | undefined,
  resolve: Resolve<Result>,
  reject: Reject,
  error: Error | undefined,
) => void;

export interface ProposalsHost<Result> {
  readonly stateMachine: Pick<StateMachine<Result>, 'apply'>;
  readonly sessions: SessionTable;
  /** Largest command, in bytes, and the size of the log that it follows from. */
  readonly payloadBytesMax: number;
  readonly logBytes: number;
  /** Most proposals that are not settled. */
  readonly pendingMax: number;
  /** Why nothing can be proposed here, asked when there is no log to propose to. */
  refusal(): Error;
  /** Sends what was put into the log. */
  readonly flushSchedule: FlushSchedule;
  /** An invariant broke while a command was appended. */
  onFailure(error: Error): void;
}

interface WaitingProposal<Result> {
  readonly payload: Uint8Array;
  readonly lengthBytes: number;
  readonly session: SessionCommand | undefined;
  readonly resolve: Resolve<Result>;
  readonly reject: Reject;
}

/** What the promise that was made last is settled by. One function for all promises: V8 starts a new one slowly each time. */
const captured: { resolve: unknown; reject: Reject } = { resolve: undefined, reject: () => {} };
const capture = (resolve: unknown, reject: Reject): void => {
  captured.resolve = resolve;
  captured.reject = reject;
};

const NOTHING = new Uint8Array(0);

/**
 * Why the bytes of a command, which had this length, cannot be copied any more: their buffer is another thread's by now, or
 * has another length. Of one that has gone they have the length of an empty command, and copying them throws, which would end
 * whoever does it for all others; one that has grown may never find room, and all others would wait behind it.
 */
export function whyGone(command: Uint8Array, lengthBytes: number): QuorateError | null {
  if (command.length === lengthBytes) {
    if (lengthBytes > 0) return null;
    try {
      NOTHING.set(command);
      return null;
    } catch {
      // Gone, and told below.
    }
  }
  const text =
    'the bytes of the command are gone, since their buffer was transferred elsewhere, or has shrunk or grown; it was not ' +
    'proposed: leave them alone until the promise settles';
  return new QuorateError('QUORATE_INVALID_ARGUMENT', text);
}

export class Proposals<Result> {
  private readonly pending = new PendingProposals<ProposeResult<Result>>();
  /** Proposals that found the ring full, in order. */
  private readonly waiting: WaitingProposal<Result>[] = [];

  constructor(private readonly host: ProposalsHost<Result>) {}

  /** Proposals that are not settled. */
  get size(): number {
    return this.pending.size + this.waiting.length;
  }

  get isWaiting(): boolean {
    return this.waiting.length > 0;
  }

  /**
   * `log` is the log of the leader that this replica is, or undefined if it is none. Then the command goes elsewhere, if
   * that is wanted; so does one with a session when leadership ends before its outcome is known.
   */
  propose(
    log: CommandLog | undefined,
    command: Uint8Array,
    session: SessionCommand | undefined,
    elsewhere: Elsewhere<Result> | undefined,
  ): Promise<ProposeResult<Result>> {
    const promise = new Promise<ProposeResult<Result>>(capture);
    const { resolve, reject } = captured;
    try {
      this.begin(log, command, session, elsewhere, resolve as Resolve<Result>, reject);
    } catch (error) {
      // What only looks like bytes, as a Proxy of them, throws when it is asked for its length.
      reject(types.isUint8Array(command) ? (error as Error) : notBytes());
    }
    return promise;
  }

  private begin(
    log: CommandLog | undefined,
    command: Uint8Array,
    named: SessionCommand | undefined,
    elsewhere: Elsewhere<Result> | undefined,
    resolve: Resolve<Result>,
    reject: Reject,
  ): void {
    const { host } = this;
    if (!(command instanceof Uint8Array)) {
      reject(notBytes());
      return;
    }
    if (command.length > host.payloadBytesMax) {
      reject(
        new QuorateError(
          'QUORATE_PAYLOAD_TOO_LARGE',
          `the command has ${command.length} bytes; the limit is ${host.payloadBytesMax} bytes with a log of ` +
            `${host.logBytes} bytes (at most one eighth of it, and 1 MiB)`,
        ),
      );
      return;
    }
    // A caller may count its next command in the same object while this one waits.
    const session = named === undefined ? undefined : { origin: named?.origin, sequence: named?.sequence };
    if (session !== undefined && !(isSessionNumber(session.origin) && isSessionNumber(session.sequence))) {
      reject(
        new QuorateError('QUORATE_INVALID_ARGUMENT', 'session origin and sequence must be integers from 1 to 2^53 - 1'),
      );
      return;
    }
    if (log === undefined) {
      if (elsewhere === undefined) reject(host.refusal());
      else elsewhere(command, session, resolve, reject, undefined);
      return;
    }
    if (this.size >= host.pendingMax) {
      reject(
        new QuorateError(
          'QUORATE_BACKPRESSURE',
          `${host.pendingMax} proposals wait for commit already; the command was not proposed: slow down and try again`,
        ),
      );
      return;
    }
    const failed =
      session === undefined || elsewhere === undefined
        ? reject
        : (error: Error) => {
            if (error instanceof OutcomeUnknownError || error instanceof NotLeaderError) {
              elsewhere(command, session, resolve, reject, error);
            } else {
              reject(error);
            }
          };
    try {
      const lengthBytes = command.length;
      if (this.isWaiting || !this.append(log, command, lengthBytes, session, resolve, failed)) {
        this.waiting.push({ payload: command, lengthBytes, session, resolve, reject: failed });
      }
      host.flushSchedule.soon();
    } catch (error) {
      host.onFailure(error as Error);
      reject(error as Error);
    }
  }

  /** The ring may have room again. */
  proposeWaiting(log: CommandLog): void {
    let taken = 0;
    for (const { payload, lengthBytes, session, resolve, reject } of this.waiting) {
      if (!this.append(log, payload, lengthBytes, session, resolve, reject)) break;
      taken++;
    }
    if (taken === 0) return;
    this.waiting.splice(0, taken);
    this.host.flushSchedule.soon();
  }

  private append(
    log: CommandLog,
    payload: Uint8Array,
    lengthBytes: number,
    session: SessionCommand | undefined,
    resolve: Resolve<Result>,
    reject: Reject,
  ): boolean {
    const gone = whyGone(payload, lengthBytes);
    if (gone !== null) {
      reject(gone);
      return true;
    }
    const lsn = log.propose(session?.origin ?? 0, session?.sequence ?? 0, payload);
    if (lsn === PROPOSE_LOG_FULL || lsn === PROPOSE_LEAVING) return false;
    if (lsn === PROPOSE_NOT_LEADER) reject(new NotLeaderError(undefined));
    else this.pending.add({ lsn, resolve, reject });
    return true;
  }

  /** A committed command, in log order, whoever proposed it; its bytes lie in memory that is used again. */
  apply(
    lsn: number,
    origin: number,
    sequence: number,
    bytes: Uint8Array,
    payloadOffset: number,
    payloadBytes: number,
  ): void {
    const { sessions, stateMachine } = this.host;
    const decision = sessions.begin(origin, sequence);
    if (decision === 'apply') {
      let result: Result;
      try {
        result = stateMachine.apply(bytes.subarray(payloadOffset, payloadOffset + payloadBytes), lsn);
      } catch (error) {
        throw thrownError(error, 'apply() of the state machine');
      }
      checkNoPromise(result, 'apply() of the state machine');
      sessions.finish(origin, sequence, lsn, result);
      // Not before: an error of apply() ends the replica, and with it all that is pending, this one included.
      this.pending.take(lsn)?.resolve({ lsn, result, duplicate: false });
    } else if (decision === 'duplicate') {
      const result = sessions.lastResult(origin, sequence) as Result | undefined;
      this.pending.take(lsn)?.resolve({ lsn, result, duplicate: true });
    } else {
      this.pending
        .take(lsn)
        ?.reject(
          new QuorateError(
            'QUORATE_SESSION_GAP',
            `session ${origin}: command ${sequence} came before its predecessor and was not applied; commands of a session ` +
              'must be proposed in order, without gaps',
          ),
        );
    }
  }

  /** Settles all that are left: those in the log, whose fate is not known here, and those that never got there. */
  rejectAll(inLog: () => Error, notInLog: () => Error): void {
    this.pending.rejectAll(inLog);
    for (const proposal of this.waiting.splice(0)) proposal.reject(notInLog());
  }
}

function notBytes(): QuorateError {
  return new QuorateError('QUORATE_INVALID_ARGUMENT', 'propose() takes a Uint8Array');
}

function isSessionNumber(value: unknown): boolean {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 1;
}
