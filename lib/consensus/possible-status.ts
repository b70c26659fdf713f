// What the blocks can hold that a replica publishes of its log. A block may be whole and wrong all the same, from a process or
// memory that is at fault; one that contradicts itself is no news, as one that is torn, so that nothing in it is counted with.
import { ENTRY_ALIGNMENT_BYTES, EPOCH_RUNS_MAX } from './limits.js';
import { readU53 } from './sealed-block.js';
import { GrantField, MainField } from './status-layout.js';

/** An entry may begin or end there. */
export function isLsn(value: number): boolean {
  return Number.isSafeInteger(value) && value % ENTRY_ALIGNMENT_BYTES === 0;
}

/** What is applied is committed and in the log, and in a leader's log is what it commits. */
export function isPossibleMain(words: Uint32Array): boolean {
  const appliedLsn = readU53(words, MainField.appliedLsn);
  const tailLsn = readU53(words, MainField.tailLsn);
  const commitLsn = readU53(words, MainField.commitLsn);
  if (!isLsn(appliedLsn) || !isLsn(tailLsn) || !isLsn(commitLsn)) return false;
  if (appliedLsn > tailLsn || appliedLsn > commitLsn) return false;
  return readU53(words, MainField.leaderEpoch) === 0 || commitLsn <= tailLsn;
}

/** The log that is granted goes on from what is applied, by no more than the ring holds, in runs of ascending epochs. */
export function isPossibleGrant(words: Uint32Array, logBytes: number): boolean {
  const appliedLsn = readU53(words, GrantField.appliedLsn);
  const tailLsn = readU53(words, GrantField.tailLsn);
  const runs = words[GrantField.runCount] as number;
  if (!isLsn(appliedLsn) || !isLsn(tailLsn)) return false;
  if (appliedLsn > tailLsn || tailLsn - appliedLsn > logBytes) return false;
  if (runs > EPOCH_RUNS_MAX || (runs === 0) !== (appliedLsn === tailLsn)) return false;
  if (runs === 0) return true;
  let lastEpoch = 0;
  let lastLsn = -1;
  for (let run = 0; run < runs; run++) {
    const at = GrantField.runs + run * 4;
    const epoch = readU53(words, at);
    const startLsn = readU53(words, at + 2);
    if (!isLsn(startLsn) || epoch <= lastEpoch || startLsn <= lastLsn) return false;
    lastEpoch = epoch;
    lastLsn = startLsn;
  }
  // With as many runs as fit, those before may have been left out.
  const firstLsn = readU53(words, GrantField.runs + 2);
  const beginsThere = runs === EPOCH_RUNS_MAX ? firstLsn >= appliedLsn : firstLsn === appliedLsn;
  return beginsThere && lastLsn < tailLsn && lastEpoch === readU53(words, GrantField.tailEpoch);
}
