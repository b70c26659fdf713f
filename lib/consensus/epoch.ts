// An epoch names one candidacy: (counter, incarnation). The incarnation is the ordinal that the configuration gave
// to this life of the candidate, unique for ever in the cluster, so no two candidacies share an epoch even when a
// replica lost its memory and forgot which counters it had used. Both are packed into one safe integer, so epochs
// compare with < and travel as two 32-bit words.
import { INCARNATION_MAX } from './limits.js';

/** No epoch: nothing promised, no leader. Smaller than every real epoch. */
export const EPOCH_NONE = 0;

/** Epochs with a higher counter would be no safe integers. */
export const EPOCH_COUNTER_MAX = 2 ** 33 - 1;

/** Packs (counter, incarnation). Counter starts at 1. */
export function makeEpoch(counter: number, incarnation: number): number {
  if (!Number.isInteger(counter) || counter < 1 || counter > EPOCH_COUNTER_MAX) {
    throw new RangeError(`epoch counter ${counter} is not in 1..${EPOCH_COUNTER_MAX}`);
  }
  if (!Number.isInteger(incarnation) || incarnation < 1 || incarnation >= INCARNATION_MAX) {
    throw new RangeError(`incarnation ${incarnation} is not in 1..${INCARNATION_MAX - 1}`);
  }
  return counter * INCARNATION_MAX + incarnation;
}

export function epochCounter(epoch: number): number {
  return Math.floor(epoch / INCARNATION_MAX);
}

export function epochIncarnation(epoch: number): number {
  return epoch % INCARNATION_MAX;
}

/** "counter.incarnation", as logs and traces show epochs. */
export function formatEpoch(epoch: number): string {
  return `${epochCounter(epoch)}.${epochIncarnation(epoch)}`;
}
