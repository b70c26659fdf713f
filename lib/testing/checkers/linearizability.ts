// Invariant 6: a read returns nothing older than the last write acknowledged before it began. More: there is an order of
// all operations, each placed between its invocation and its response, in which every response is what the register
// would have answered. An operation of unknown outcome may take effect at any time after its invocation, or never.
//
// The algorithm is that of Wing and Gong in Lowe's form ("Testing for linearizability", 2017): a depth-first search over
// the operations that may come next, with a memory of (set of operations placed, state) so that no configuration is
// tried twice. Registers are independent of each other, so each is checked by itself (linearizability is local).
import { QuorateError } from '../../errors.js';
import { Random } from '../../fabric/sim/random.js';
import { type Command, Operation, step } from '../sim-state-machine.js';

/** One operation of a client: what it asked for, when, and what came of it. Registers are named by numbers. */
export interface HistoryOperation {
  /** Who invoked it; it invokes one operation after the other. */
  readonly process: number;
  /** What was asked: the operation, its register and its arguments. */
  readonly command: Command;
  /** When it was invoked, on a clock that all operations of the history share. */
  readonly invoked_ns: number;
  /** Infinity while there is no response: the outcome is unknown. */
  returned_ns: number;
  /** What was answered, as {@link Operation} has it: of a write 0, say. Without meaning where there is no response. */
  result: number;
  /** "origin:sequence" of the command, where it has one. */
  readonly session?: string;
  /** For a read that is no command: where the log was applied up to when it was answered. */
  readLsn?: number;
}

/** What the check of a history says. */
export type Verdict = LinearizableVerdict | ViolationVerdict | UndecidedVerdict;

/** There is an order of the operations that explains every response. */
export interface LinearizableVerdict {
  /** Always "linearizable". */
  readonly kind: 'linearizable';
}

/** There is no such order. */
export interface ViolationVerdict {
  /** Always "violation". */
  readonly kind: 'violation';
  /** The register whose operations cannot be explained. */
  readonly key: number;
  /** All operations on it. */
  readonly operations: readonly HistoryOperation[];
}

/** The search was given up. */
export interface UndecidedVerdict {
  /** Always "undecided". */
  readonly kind: 'undecided';
  /** The register whose operations were too many. */
  readonly key: number;
  /** Steps after which the search was given up. */
  readonly steps: number;
}

/** Steps of the search for one register before it is given up; ordinary histories need a few per operation. */
const STEPS_MAX = 3_000_000;

interface Entry {
  readonly operation: HistoryOperation;
  readonly index: number;
  readonly isCall: boolean;
  /** For a call: its return, null if it has none. */
  match: Entry | null;
  previous: Entry | null;
  next: Entry | null;
}

const OPERATIONS: readonly number[] = Object.values(Operation);

function usedBy(operation: number): readonly (keyof Command)[] {
  if (operation === Operation.read) return ['key'];
  return operation === Operation.compareAndSet ? ['key', 'value', 'expected'] : ['key', 'value'];
}

/**
 * A history may come from anywhere, by JSON, say, which has no Infinity: the search would find something all the same. It
 * would take digits for another register, or for an answer that nobody can have given.
 */
function checkOperation(operation: HistoryOperation, index: number): void {
  const problem = whatIsWrong(operation);
  if (problem === undefined) return;
  throw new QuorateError('QUORATE_INVALID_ARGUMENT', `operation ${index} of the history: ${problem}`);
}

function whatIsWrong(operation: HistoryOperation): string | undefined {
  if (typeof operation !== 'object' || operation === null) return 'it is no object';
  const { command, invoked_ns, returned_ns, result } = operation;
  if (!(typeof invoked_ns === 'number' && typeof returned_ns === 'number' && invoked_ns <= returned_ns)) {
    return (
      `invoked_ns ${invoked_ns} and returned_ns ${returned_ns} are not numbers, the first no larger than the second; ` +
      'returned_ns is Infinity where there is no response'
    );
  }
  if (typeof command !== 'object' || command === null) return 'it has no command';
  if (!OPERATIONS.includes(command.operation)) return `its command's operation is none of ${OPERATIONS.join(', ')}`;
  for (const name of usedBy(command.operation)) {
    if (!Number.isFinite(command[name])) return `its command's ${name} is not a number`;
  }
  if (returned_ns !== Number.POSITIVE_INFINITY && !Number.isFinite(result)) return 'its result is not a number';
  return undefined;
}

/**
 * Whether there is an order of all operations, each between its invocation and its response, in which every response is what
 * a register would have answered (Wing and Gong; Lowe, "Testing for linearizability", 2017). Register by register; the
 * search for one is given up after `stepsMax` steps, default 3 million. Throws QUORATE_INVALID_ARGUMENT for what is no
 * history, or an operation that is none.
 */
export function checkLinearizability(history: readonly HistoryOperation[], stepsMax = STEPS_MAX): Verdict {
  if (!Array.isArray(history))
    throw new QuorateError('QUORATE_INVALID_ARGUMENT', 'the history is no list of operations');
  const byKey = new Map<number, HistoryOperation[]>();
  for (const [index, operation] of (history as readonly HistoryOperation[]).entries()) {
    checkOperation(operation, index);
    // A read without a response constrains nothing.
    if (operation.returned_ns === Number.POSITIVE_INFINITY && operation.command.operation === Operation.read) continue;
    const operations = byKey.get(operation.command.key);
    if (operations === undefined) byKey.set(operation.command.key, [operation]);
    else operations.push(operation);
  }
  let undecided: Verdict | null = null;
  for (const [key, operations] of byKey) {
    const kind = checkRegister(operations, stepsMax);
    if (kind === 'violation') return { kind, key, operations };
    if (kind === 'undecided') undecided ??= { kind, key, steps: stepsMax };
  }
  return undecided ?? { kind: 'linearizable' };
}

/**
 * Whether the order of the log is a linearization: replayed in that order the operations that took effect answer what
 * was answered, and none stands behind one that was invoked only after its own response. If it is, the history is
 * linearizable and no search is needed; if not, the search has the last word, for the log is not the only order there is.
 * A read that is no command stands behind all that was applied when it was answered.
 */
export function logOrderIsLinearization(
  history: readonly HistoryOperation[],
  effectLsns: ReadonlyMap<string, number>,
): boolean {
  const inLog: { lsn: number; operation: HistoryOperation }[] = [];
  for (const operation of history) {
    const { readLsn } = operation;
    // Entries begin at whole numbers, so a half stands between what was applied and what was not.
    const lsn = readLsn === undefined ? effectLsns.get(operation.session ?? '') : readLsn - 0.5;
    if (lsn !== undefined) inLog.push({ lsn, operation });
    else if (operation.returned_ns !== Number.POSITIVE_INFINITY) return false;
  }
  inLog.sort((a, b) => a.lsn - b.lsn || a.operation.invoked_ns - b.operation.invoked_ns);
  const registers = new Map<number, number>();
  let latestInvocation_ns = Number.NEGATIVE_INFINITY;
  for (const { operation } of inLog) {
    const { command, invoked_ns, returned_ns } = operation;
    const after = step(registers.get(command.key) ?? 0, command);
    registers.set(command.key, after.register);
    latestInvocation_ns = Math.max(latestInvocation_ns, invoked_ns);
    if (returned_ns < latestInvocation_ns) return false;
    if (returned_ns !== Number.POSITIVE_INFINITY && after.result !== operation.result) return false;
  }
  return true;
}

function buildEntries(operations: readonly HistoryOperation[]): Entry {
  const entries: { at: number; isReturn: number; entry: Entry }[] = [];
  for (const [index, operation] of operations.entries()) {
    const call: Entry = { operation, index, isCall: true, match: null, previous: null, next: null };
    entries.push({ at: operation.invoked_ns, isReturn: 0, entry: call });
    if (operation.returned_ns === Number.POSITIVE_INFINITY) continue;
    call.match = { operation, index, isCall: false, match: null, previous: null, next: null };
    entries.push({ at: operation.returned_ns, isReturn: 1, entry: call.match });
  }
  // At the same instant calls come before returns: such operations overlap.
  entries.sort((a, b) => a.at - b.at || a.isReturn - b.isReturn);
  const head: Entry = {
    operation: operations[0] as HistoryOperation,
    index: -1,
    isCall: false,
    match: null,
    previous: null,
    next: null,
  };
  let last = head;
  for (const { entry } of entries) {
    last.next = entry;
    entry.previous = last;
    last = entry;
  }
  return head;
}

function unlink(entry: Entry): void {
  (entry.previous as Entry).next = entry.next;
  if (entry.next !== null) entry.next.previous = entry.previous;
}

function relink(entry: Entry): void {
  (entry.previous as Entry).next = entry;
  if (entry.next !== null) entry.next.previous = entry;
}

function checkRegister(operations: readonly HistoryOperation[], stepsMax: number): Verdict['kind'] {
  const head = buildEntries(operations);
  // Sets of operations are known by two sums of random numbers, one per operation (Zobrist hashing).
  const random = new Random(operations.length);
  const marks = operations.map(() => [random.uint32(), random.uint32()] as const);
  let setLow = 0;
  let setHigh = 0;
  let register = 0;
  let open = operations.filter(({ returned_ns }) => returned_ns !== Number.POSITIVE_INFINITY).length;
  const seen = new Set<string>();
  const placed: { call: Entry; register: number }[] = [];
  let entry = head.next;
  for (let steps = 0; open > 0; steps++) {
    if (steps >= stepsMax) return 'undecided';
    if (entry?.isCall) {
      const { operation, index } = entry;
      const after = step(register, operation.command);
      const [markLow, markHigh] = marks[index] as readonly [number, number];
      if (entry.match === null || after.result === operation.result) {
        const low = (setLow ^ markLow) >>> 0;
        const high = (setHigh ^ markHigh) >>> 0;
        const key = `${low}:${high}:${after.register}`;
        if (!seen.has(key)) {
          seen.add(key);
          placed.push({ call: entry, register });
          register = after.register;
          setLow = low;
          setHigh = high;
          unlink(entry);
          if (entry.match !== null) {
            unlink(entry.match);
            open--;
          }
          entry = head.next;
          continue;
        }
      }
      entry = entry.next;
      continue;
    }
    // A response whose operation has no place yet (or the end, with such responses before it): go back a step.
    const last = placed.pop();
    if (last === undefined) return 'violation';
    const { call } = last;
    if (call.match !== null) {
      relink(call.match);
      open++;
    }
    relink(call);
    const [markLow, markHigh] = marks[call.index] as readonly [number, number];
    setLow = (setLow ^ markLow) >>> 0;
    setHigh = (setHigh ^ markHigh) >>> 0;
    register = last.register;
    entry = call.next;
  }
  return 'linearizable';
}

/** The operations of a violation, for a person to read. */
export function formatHistory(operations: readonly HistoryOperation[]): string[] {
  const names = ['', 'write', 'read', 'compareAndSet', 'add'];
  return [...operations]
    .sort((a, b) => a.invoked_ns - b.invoked_ns)
    .map(({ process, command, invoked_ns, returned_ns, result }) => {
      const { operation, key, value, expected } = command;
      const argument =
        operation === Operation.compareAndSet
          ? `${expected} -> ${value}`
          : operation === Operation.read
            ? ''
            : `${value}`;
      const outcome = returned_ns === Number.POSITIVE_INFINITY ? 'unknown' : `${result}`;
      const end = returned_ns === Number.POSITIVE_INFINITY ? '...' : (returned_ns / 1e6).toFixed(3);
      const when = `${(invoked_ns / 1e6).toFixed(3)} .. ${end} ms`;
      return `${when.padEnd(32)} client ${process}: ${names[operation]}(${key}${argument && ', '}${argument}) = ${outcome}`;
    });
}
