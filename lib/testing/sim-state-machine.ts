// The replicated state of a simulation: a few registers, and a table of sessions that applies each command at most once.
// Small on purpose, with operations whose results show a lost, doubled or reordered command: every written value is
// unique, and add() returns what it made.

/** What can be done with a register. */
export const Operation = {
  /** Sets it to a value; the result is 0. */
  write: 1,
  /** The result is its value. */
  read: 2,
  /** Sets it to a value if it has the expected one; the result is 1 if so, else 0. */
  compareAndSet: 3,
  /** Adds a value, modulo 2^32; the result is the sum. */
  add: 4,
} as const;

/** What a client asks of a register. */
export interface Command {
  /** One of {@link Operation}. */
  readonly operation: number;
  /** The register. */
  readonly key: number;
  /** Written, set or added. */
  readonly value: number;
  /** Of compareAndSet: the value that it must have. */
  readonly expected: number;
}

export const COMMAND_BYTES = 12;

/** Filler of byte `index` is FILLER_STEP times `index` and the value, so each command has other bytes at each place. */
const FILLER_STEP = 31;
/** FILLER_STEP times this is 1 modulo 256: the filler of a value is that of zero, begun so many times `value` later. */
const FILLER_STEP_INVERSE = 223;
let filler = new Uint8Array(0);

function fillerFrom(begin: number, lengthBytes: number): Uint8Array {
  if (filler.length < begin + lengthBytes) {
    filler = new Uint8Array((begin + lengthBytes) * 2);
    for (let index = 0; index < filler.length; index++) filler[index] = index * FILLER_STEP;
  }
  return filler.subarray(begin, begin + lengthBytes);
}

export function encodeCommand(command: Command, fillerBytes: number): Uint8Array {
  const bytes = new Uint8Array(COMMAND_BYTES + fillerBytes);
  const view = new DataView(bytes.buffer);
  view.setUint8(0, command.operation);
  view.setUint8(1, command.key);
  view.setUint32(4, command.value, true);
  view.setUint32(8, command.expected, true);
  const begin = (COMMAND_BYTES + command.value * FILLER_STEP_INVERSE) % 256;
  if (fillerBytes > 0) bytes.set(fillerFrom(begin, fillerBytes), COMMAND_BYTES);
  return bytes;
}

export function decodeCommand(bytes: Uint8Array, offset: number, lengthBytes: number): Command {
  if (lengthBytes < COMMAND_BYTES) throw new RangeError(`command of ${lengthBytes} bytes is below ${COMMAND_BYTES}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset + offset, COMMAND_BYTES);
  return {
    operation: view.getUint8(0),
    key: view.getUint8(1),
    value: view.getUint32(4, true),
    expected: view.getUint32(8, true),
  };
}

/** What an operation does to a register and what it answers; the linearizability checker uses the same definition. */
export function step(register: number, command: Command): { register: number; result: number } {
  switch (command.operation) {
    case Operation.write:
      return { register: command.value, result: 0 };
    case Operation.read:
      return { register, result: register };
    case Operation.compareAndSet:
      return register === command.expected ? { register: command.value, result: 1 } : { register, result: 0 };
    case Operation.add: {
      const sum = (register + command.value) % 2 ** 32;
      return { register: sum, result: sum };
    }
    default:
      throw new RangeError(`operation ${command.operation} is unknown`);
  }
}

/** Origins from here on are no sessions: each is one command, which is applied as often as it comes. */
const SESSIONLESS_BEGIN = 2 ** 40;

export function isSessionless(origin: number): boolean {
  return origin >= SESSIONLESS_BEGIN;
}

export function sessionless(origin: number): number {
  return SESSIONLESS_BEGIN + origin;
}

interface Session {
  sequence: number;
  result: number;
}

export interface StateSnapshot {
  readonly registers: readonly number[];
  readonly sessions: readonly (readonly [number, number, number])[];
}

export class SimStateMachine {
  private registers: number[];
  private readonly sessions = new Map<number, Session>();

  constructor(keys: number) {
    this.registers = new Array<number>(keys).fill(0);
  }

  /** The result that the session's command had, if it was the last one applied; undefined if it was not applied. */
  resultOf(origin: number, sequence: number): number | undefined {
    const session = this.sessions.get(origin);
    return session !== undefined && session.sequence === sequence ? session.result : undefined;
  }

  registerAt(key: number): number {
    return this.registers[key] as number;
  }

  lastSequence(origin: number): number {
    return this.sessions.get(origin)?.sequence ?? 0;
  }

  /** Returns whether the command took effect: false for a duplicate of one that did. */
  apply(origin: number, sequence: number, command: Command): boolean {
    const session = this.sessions.get(origin);
    if (session !== undefined && sequence <= session.sequence && !isSessionless(origin)) return false;
    const { register, result } = step(this.registers[command.key] as number, command);
    this.registers[command.key] = register;
    if (session === undefined) this.sessions.set(origin, { sequence, result });
    else {
      session.sequence = sequence;
      session.result = result;
    }
    return true;
  }

  snapshot(): StateSnapshot {
    return {
      registers: [...this.registers],
      sessions: [...this.sessions].map(([origin, { sequence, result }]) => [origin, sequence, result] as const),
    };
  }

  restore(snapshot: StateSnapshot): void {
    this.registers = [...snapshot.registers];
    this.sessions.clear();
    for (const [origin, sequence, result] of snapshot.sessions) this.sessions.set(origin, { sequence, result });
  }

  digest(): string {
    return JSON.stringify(this.snapshot());
  }
}
