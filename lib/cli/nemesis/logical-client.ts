// One client: one operation at a time, at whichever replica seems to lead, recorded with when it was invoked and when it
// returned. Clients with a session try an operation of unknown outcome again under its number, and must find that it was
// executed once; clients without one must leave it at "unknown".
import type { Random } from '../../fabric/sim/random.js';
import { Operation } from '../../testing/sim-state-machine.js';
import { monotonic_ns } from '../demo/messages.js';
import { type Connections, NO_ANSWER, NOT_SENT } from './connections.js';
import { Means, type OperationRecord, Outcome } from './history.js';
import type { ClientStart } from './messages.js';

/** Clients that propose at any replica, which has the leader propose it; the others look for the leader. */
const FORWARDING_PROBABILITY = 0.5;
/** An attempt goes to any replica instead of the one that is believed to lead. */
const STRAY_PROBABILITY = 0.03;
/** A client with a session gives an operation of unknown outcome up, and its session. */
const GIVE_UP_PROBABILITY = 0.03;
const RETRY_PAUSE_MS_MAX = 10;
/** Reads that are answered from the state of any replica, instead of going through the log. */
const STATE_READ_PROBABILITY = 0.6;
/** Answers to them that are part of normal operation under faults; such a read has no effect and is tried again. */
const NOT_READ = new Set([
  NOT_SENT,
  NO_ANSWER,
  'QUORATE_NOT_LEADER',
  'QUORATE_LEADERSHIP_ENDED',
  'QUORATE_DISCONNECTED',
  'QUORATE_PEER_CLOSED',
  'QUORATE_TIMEOUT',
  'QUORATE_BACKPRESSURE',
  'QUORATE_REMOVED',
  'QUORATE_NOT_A_MEMBER', // the leader knows of the removal already
  'QUORATE_CLOSED',
]);
/** Answers that say for certain that the command was not proposed. */
const NOT_PROPOSED = new Set([
  NOT_SENT,
  'QUORATE_NOT_LEADER',
  'QUORATE_BACKPRESSURE',
  'QUORATE_REMOVED',
  'QUORATE_TIMEOUT',
]);
/** Answers that leave the outcome open and are part of normal operation under faults. */
const UNKNOWN = new Set([NO_ANSWER, 'QUORATE_OUTCOME_UNKNOWN', 'QUORATE_CLOSED', 'RESULT_UNKNOWN']);
/** Sessions of one client; each is left behind after an operation that was given up. */
const SESSIONS_PER_CLIENT = 2 ** 20;

export interface ClientHost {
  readonly start: ClientStart;
  readonly connections: Connections;
  /** Unique in the run, above 0. */
  readonly nextValue: () => number;
  /** Last value that any client of the process saw in a register: makes compare-and-set succeed now and then. */
  readonly lastSeen: Map<number, number>;
  /** An error that has no place in normal operation. */
  readonly strange: (code: string) => void;
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

export class LogicalClient {
  private readonly hasSession: boolean;
  private readonly isForwarding: boolean;
  private sessions = 0;
  private sequence = 0;
  private target: number;

  /** `number` is unique in the run. */
  constructor(
    readonly number: number,
    private readonly host: ClientHost,
    private readonly random: Random,
  ) {
    this.hasSession = random.chance(0.7);
    this.isForwarding = random.chance(FORWARDING_PROBABILITY);
    this.target = random.integer(host.start.sockets.length);
  }

  private get origin(): number {
    return this.hasSession ? 1 + this.number * SESSIONS_PER_CLIENT + this.sessions : 0;
  }

  /** Any operation on this key. */
  operate(key: number): Promise<OperationRecord> {
    const { random, host } = this;
    const operation = random.pick([
      Operation.write,
      Operation.write,
      Operation.read,
      Operation.read,
      Operation.compareAndSet,
      Operation.add,
    ]);
    if (operation === Operation.read && random.chance(STATE_READ_PROBABILITY)) return this.readState(key);
    const expected = operation === Operation.compareAndSet ? (host.lastSeen.get(key) ?? 0) : 0;
    const value = operation === Operation.read ? 0 : host.nextValue();
    return this.perform({ operation, key, value, expected }, host.start.operationTimeoutMs);
  }

  read(key: number, timeoutMs: number): Promise<OperationRecord> {
    return this.perform({ operation: Operation.read, key, value: 0, expected: 0 }, timeoutMs);
  }

  private async readState(key: number): Promise<OperationRecord> {
    const { host, random, number: client } = this;
    const { connections, start } = host;
    const command = { operation: Operation.read, key, value: 0, expected: 0 };
    const request = { ...command, origin: 0, sequence: 0, fillerBytes: 0, isStateRead: true };
    const invoked_ns = monotonic_ns();
    for (;;) {
      const { result, code, by = Means.log } = await connections.request(random.integer(start.sockets.length), request);
      const returned_ns = monotonic_ns();
      if (result !== undefined) {
        this.note(command, result);
        return { client, ...command, invoked_ns, returned_ns, outcome: Outcome.ok, result, by: by as Means };
      }
      if (code === undefined || !NOT_READ.has(code)) host.strange(code ?? 'an answer without result and code');
      if (returned_ns > invoked_ns + start.operationTimeoutMs * 1e6) {
        return { client, ...command, invoked_ns, returned_ns, outcome: Outcome.failed, result: 0, by: Means.log };
      }
      await sleep(random.between(0, RETRY_PAUSE_MS_MAX));
    }
  }

  private async perform(
    command: Pick<OperationRecord, 'operation' | 'key' | 'value' | 'expected'>,
    timeoutMs: number,
  ): Promise<OperationRecord> {
    const { host, random } = this;
    const { connections, start } = host;
    const fillerBytes = random.chance(0.5) ? 0 : random.integer(start.fillerBytesMax + 1);
    if (this.hasSession) this.sequence++;
    if (this.isForwarding || random.chance(STRAY_PROBABILITY)) this.target = random.integer(start.sockets.length);
    const invoked_ns = monotonic_ns();
    const deadline_ns = invoked_ns + timeoutMs * 1e6;
    /** Some attempt may have been executed. */
    let mayHaveHappened = false;
    const record = (outcome: Outcome, result: number, by: Means): OperationRecord => {
      const returned_ns = monotonic_ns();
      return { client: this.number, ...command, invoked_ns, returned_ns, outcome, result, by };
    };
    const forwardMs = this.isForwarding ? start.attemptTimeoutMs : 0;
    for (;;) {
      const request = { ...command, origin: this.origin, sequence: this.sequence, fillerBytes, forwardMs };
      const { result, code, leader, by = Means.log } = await connections.request(this.target, request);
      if (result !== undefined) {
        this.note(command, result);
        return record(Outcome.ok, result, by as Means);
      }
      if (code === undefined || !NOT_PROPOSED.has(code)) {
        mayHaveHappened = true;
        if (code === undefined || !UNKNOWN.has(code)) host.strange(code ?? 'an answer without result and code');
      }
      const isOver = monotonic_ns() > deadline_ns;
      const givesUp = mayHaveHappened && (!this.hasSession || random.chance(GIVE_UP_PROBABILITY));
      if (isOver || givesUp) {
        if (this.hasSession && mayHaveHappened) {
          // Its last command may still take effect, so no later one can come from this session.
          this.sessions++;
          this.sequence = 0;
        } else if (this.hasSession) {
          this.sequence--;
        }
        return record(mayHaveHappened ? Outcome.unknown : Outcome.failed, 0, Means.log);
      }
      this.target = leader ?? random.integer(start.sockets.length);
      await sleep(random.between(0, RETRY_PAUSE_MS_MAX));
    }
  }

  private note(command: Pick<OperationRecord, 'operation' | 'key' | 'value'>, result: number): void {
    const { operation, key, value } = command;
    const { lastSeen } = this.host;
    if (operation === Operation.read || operation === Operation.add) lastSeen.set(key, result);
    else if (operation === Operation.write || result === 1) lastSeen.set(key, value);
  }
}
