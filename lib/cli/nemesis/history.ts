// What clients asked and were answered. Operations travel between processes and threads as rows of numbers; they are
// judged by the linearizability checker that the simulator uses, key by key, and written to a file in words.
import { checkLinearizability, type HistoryOperation, type Verdict } from '../../testing/index.js';
import { Operation } from '../../testing/sim-state-machine.js';

/** How an operation ended. A failed one was certainly not executed; an unknown one may be, at any time, or never. */
export const Outcome = { ok: 0, failed: 1, unknown: 2 } as const;
export type Outcome = (typeof Outcome)[keyof typeof Outcome];

/**
 * Where an answer came from: the log, or the state of a replica, and what vouched for that. A command that a replica had
 * the leader propose is "forwarded".
 */
export const Means = { log: 0, lease: 1, barrier: 2, follower: 3, forwarded: 4 } as const;
export type Means = (typeof Means)[keyof typeof Means];

export interface OperationRecord {
  readonly client: number;
  readonly operation: number;
  readonly key: number;
  readonly value: number;
  readonly expected: number;
  readonly invoked_ns: number;
  /** Also of an operation that failed or has an unknown outcome: when the client gave it up. */
  readonly returned_ns: number;
  readonly outcome: Outcome;
  readonly result: number;
  readonly by: Means;
}

const FIELDS = [
  'client',
  'operation',
  'key',
  'value',
  'expected',
  'invoked_ns',
  'returned_ns',
  'outcome',
  'result',
  'by',
] as const satisfies readonly (keyof OperationRecord)[];

export function packOperations(operations: readonly OperationRecord[]): Float64Array {
  const rows = new Float64Array(operations.length * FIELDS.length);
  let at = 0;
  for (const operation of operations) for (const field of FIELDS) rows[at++] = operation[field];
  return rows;
}

export function unpackOperations(rows: Float64Array): OperationRecord[] {
  const operations: OperationRecord[] = [];
  for (let at = 0; at < rows.length; at += FIELDS.length) {
    const record: Record<string, number> = {};
    for (let index = 0; index < FIELDS.length; index++) record[FIELDS[index] as string] = rows[at + index] as number;
    operations.push(record as unknown as OperationRecord);
  }
  return operations;
}

/** In the checker's terms: what failed is left out, what is unknown has no end. */
function forChecker(operations: readonly OperationRecord[]): HistoryOperation[] {
  return operations
    .filter(({ outcome }) => outcome !== Outcome.failed)
    .map(({ client, operation, key, value, expected, invoked_ns, returned_ns, outcome, result }) => ({
      process: client,
      command: { operation, key, value, expected },
      invoked_ns,
      returned_ns: outcome === Outcome.ok ? returned_ns : Number.POSITIVE_INFINITY,
      result,
    }));
}

/** Steps of the search for one key before it is given up. */
const STEPS_MAX = 5_000_000;

/** Judges operations on any number of keys; every key starts at 0. */
export function checkOperations(operations: readonly OperationRecord[], stepsMax = STEPS_MAX): Verdict {
  return checkLinearizability(forChecker(operations), stepsMax);
}

export function byKey(operations: readonly OperationRecord[]): Map<number, OperationRecord[]> {
  const keys = new Map<number, OperationRecord[]>();
  for (const operation of operations) {
    const known = keys.get(operation.key);
    if (known === undefined) keys.set(operation.key, [operation]);
    else known.push(operation);
  }
  return keys;
}

// -- files -----------------------------------------------------------------------------------------------------------

const FORMAT = 'quorate nemesis history 2';
const OPERATION_NAMES = Object.fromEntries(Object.entries(Operation).map(([name, number]) => [number, name]));
const OUTCOME_NAMES = Object.keys(Outcome) as (keyof typeof Outcome)[];
export const MEANS_NAMES = Object.keys(Means) as (keyof typeof Means)[];

interface OperationInWords {
  readonly client: number;
  readonly operation: keyof typeof Operation;
  readonly key: number;
  readonly value: number;
  readonly expected: number;
  readonly invoked_ns: number;
  readonly returned_ns: number;
  readonly outcome: keyof typeof Outcome;
  readonly result: number;
  readonly by: keyof typeof Means;
}

/** The file's text; `about` is kept for whoever reads it (seed, options, schedule of faults). */
export function formatHistoryFile(operations: readonly OperationRecord[], about: object): string {
  const inWords = [...operations]
    .sort((a, b) => a.key - b.key || a.invoked_ns - b.invoked_ns)
    .map((record) => ({
      ...record,
      operation: OPERATION_NAMES[record.operation],
      outcome: OUTCOME_NAMES[record.outcome],
      by: MEANS_NAMES[record.by],
    }));
  const lines = inWords.map((record) => `    ${JSON.stringify(record)}`).join(',\n');
  const { format, ...rest } = { ...about, format: FORMAT };
  const head = JSON.stringify({ format, ...rest }, null, 2).slice(0, -2);
  return `${head},\n  "operations": [\n${lines}\n  ]\n}\n`;
}

export function parseHistoryFile(text: string): OperationRecord[] {
  const file = JSON.parse(text) as { format?: unknown; operations?: OperationInWords[] };
  if (file.format !== FORMAT || !Array.isArray(file.operations)) throw new Error(`it is not a "${FORMAT}"`);
  return file.operations.map((record, index) => {
    const operation = Operation[record.operation];
    const outcome = Outcome[record.outcome];
    const by = Means[record.by];
    if (operation === undefined || outcome === undefined || by === undefined)
      throw new Error(`operation ${index} makes no sense`);
    for (const field of FIELDS) {
      if (field === 'operation' || field === 'outcome' || field === 'by') continue;
      if (!Number.isFinite(record[field])) throw new Error(`operation ${index}: ${field} is no number`);
    }
    return { ...record, operation, outcome, by };
  });
}
