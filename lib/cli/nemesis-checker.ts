// A thread of npm run nemesis: judges the histories of keys that are no longer used, while the run goes on. A random
// sample of them, evenly drawn over the whole run, is kept and judged again with a last read at the end of the run, so
// that a write that is lost long after it was acknowledged is noticed too.
import { parentPort, workerData } from 'node:worker_threads';
import { Random } from '../fabric/sim/random.js';
import { byKey, checkOperations, type OperationRecord, packOperations, unpackOperations } from './nemesis/history.js';
import type { FromChecker, KeyVerdict, ToChecker } from './nemesis/messages.js';

/** Most keys kept. */
const KEPT_MAX = 64;
/** Steps of the search for a key once another one has convicted the run: only a search that finds nothing is long. */
const STEPS_MAX_CONVICTED = 100_000;

if (parentPort === null) throw new Error('nemesis-checker.js is a thread of nemesis.js, not a program');
const port = parentPort;
const answer = (message: FromChecker) => port.postMessage(message);
const random = new Random((workerData as { seed: number }).seed);
const kept = new Map<number, OperationRecord[]>();
/** Keys whose histories have no linearization, or none that was found; what they are read at the end changes nothing. */
const judged = new Set<number>();
let seen = 0;
let isConvicted = false;

function check(key: number, operations: readonly OperationRecord[]): KeyVerdict[] {
  if (judged.has(key)) return [];
  const { kind } = checkOperations(operations, isConvicted ? STEPS_MAX_CONVICTED : undefined);
  if (kind === 'linearizable') return [];
  if (kind === 'violation') isConvicted = true;
  judged.add(key);
  return [{ key, kind, rows: packOperations(operations) }];
}

/** Keeps each key that was ever seen with the same probability. */
function sample(key: number, operations: OperationRecord[]): void {
  seen++;
  if (kept.size === KEPT_MAX) {
    if (random.integer(seen) >= KEPT_MAX) return;
    kept.delete(random.pick([...kept.keys()]));
  }
  kept.set(key, operations);
}

port.on('message', (message: ToChecker) => {
  if (message.type === 'check') {
    const keys = byKey(unpackOperations(message.rows));
    const verdicts: KeyVerdict[] = [];
    for (const [key, operations] of keys) {
      verdicts.push(...check(key, operations));
      sample(key, operations);
    }
    answer({ type: 'checked', keys: keys.size, verdicts });
  } else if (message.type === 'kept') {
    answer({ type: 'kept', keys: [...kept.keys()] });
  } else {
    for (const read of unpackOperations(message.rows)) kept.get(read.key)?.push(read);
    const verdicts = [...kept].flatMap(([key, operations]) => check(key, operations));
    answer({ type: 'finished', verdicts, rows: packOperations([...kept.values()].flat()) });
  }
});
