// The way out when a majority of the voters is lost for ever: one survivor becomes the only voter of a new cluster, which
// goes on with its log and state. It is unsafe by nature, and refused unless it is asked for in so many words: what was
// acknowledged by voters that are lost, and had not reached this one, is gone; and nobody can know from here that the others
// are lost and do not go on without this one.
//
// The new cluster is a fork: another cluster id, with which the chain of the log is seeded anew at the place of the fork, and
// epochs far above all that the old one can have used. The survivor takes part in it as a new life, with memory, keys and
// queue pairs of its own, and has ended the old one before. So no member of the old cluster can write into it, vote in it,
// or be taken for one of its members: its links are gone, its hello is refused, and its bytes do not chain.
import { randomInt } from 'node:crypto';
import { inspect } from 'node:util';
import type { ChainPosition } from '../consensus/entry.js';
import { EPOCH_NONE, makeEpoch } from '../consensus/epoch.js';
import { forkRefusal, isBetterLog, type LogEnd, type SurvivorView } from '../consensus/fork.js';
import { BOOT_ID_MAX } from '../consensus/limits.js';
import { QuorateError } from '../errors.js';
import { checkCallOptions, checkInteger, invalid } from './check-options.js';
import type { ReplicaStatus } from './replica-options.js';

/** Says that the consequences of Replica.forceNewCluster() are understood. */
export interface ForceNewClusterOptions {
  /** Must be true: see docs/OPERATIONS.md, "When a majority is lost". */
  readonly iUnderstandThatAcknowledgedCommandsMayBeLost: true;
  /** Also from a member that is no voter: a learner, whose log may end earlier than any voter's. Default false. */
  readonly evenIfNotVoter?: boolean;
}

export function checkForced(options: ForceNewClusterOptions): void {
  if (
    typeof options !== 'object' ||
    options === null ||
    options.iUnderstandThatAcknowledgedCommandsMayBeLost !== true
  ) {
    throw new QuorateError(
      'QUORATE_UNSAFE',
      'forceNewCluster() loses every acknowledged command that this replica does not hold, and splits the cluster in two if ' +
        'a majority of the old one is alive after all. If that is understood, pass ' +
        '{ iUnderstandThatAcknowledgedCommandsMayBeLost: true }',
    );
  }
  const known = { iUnderstandThatAcknowledgedCommandsMayBeLost: true, evenIfNotVoter: true } as const;
  checkCallOptions(options, known, 'forceNewCluster()');
  const { evenIfNotVoter } = options;
  if (evenIfNotVoter !== undefined && typeof evenIfNotVoter !== 'boolean') invalid('evenIfNotVoter is not a boolean');
}

/** Why a new cluster is not forced here, null if it may be. */
export function whyNotForced(survivor: SurvivorView, evenIfNotVoter: boolean): QuorateError | null {
  const refusal = forkRefusal(survivor, evenIfNotVoter);
  if (refusal === null) return null;
  const text = `a new cluster was not forced from replica ${survivor.id}, and nothing was changed: ${refusal.why}`;
  return new QuorateError(refusal.code, text);
}

/** Where the new cluster begins. */
export interface Fork {
  readonly clusterId: number;
  /** The life that ends with it. */
  readonly survivorBootId: number;
  /** Everything below is in the state of the survivor. */
  readonly position: ChainPosition;
  readonly sessions: Uint8Array;
  /** Where the survivor listens, with the priority that it has. */
  readonly place: { readonly id: number; readonly host: string; readonly port: number; readonly priority: number };
}

export function newClusterId(old: number): number {
  for (;;) {
    const clusterId = randomInt(1, BOOT_ID_MAX);
    if (clusterId !== old) return clusterId;
  }
}

/** What is compared must be as status() has it: of texts '9000' is larger than '10000', and as a number 10.10 is 10.1. */
function logEnd(survivor: Pick<ReplicaStatus, 'tailEpoch' | 'tailLsn'>): LogEnd {
  if (typeof survivor !== 'object' || survivor === null) return invalid('a survivor is not what status() returned');
  const { tailEpoch, tailLsn } = survivor;
  checkInteger(tailLsn, 0, Number.MAX_SAFE_INTEGER, 'tailLsn');
  const match = typeof tailEpoch === 'string' ? /^([0-9]{1,10})\.([0-9]{1,7})$/.exec(tailEpoch) : null;
  if (match === null) return invalid(`tailEpoch ${inspect(tailEpoch)} is not a text of the form counter.incarnation`);
  const [counter, incarnation] = [Number(match[1]), Number(match[2])];
  if (counter === 0) return { tailEpoch: EPOCH_NONE, tailLsn };
  try {
    return { tailEpoch: makeEpoch(counter, incarnation), tailLsn };
  } catch (error) {
    return invalid(`tailEpoch '${tailEpoch}': ${(error as RangeError).message}`);
  }
}

/**
 * Of replicas that survived the loss of a majority, by what their `status()` says, the one whose log is the best: the log
 * that ends in the latest epoch, and of those the longest. It holds all that any of them holds of what may have been
 * acknowledged. At equal logs the first one. Throws QUORATE_INVALID_ARGUMENT.
 */
export function bestSurvivor<Survivor extends Pick<ReplicaStatus, 'tailEpoch' | 'tailLsn'>>(
  survivors: readonly Survivor[],
): Survivor {
  if (!Array.isArray(survivors)) invalid('bestSurvivor() takes a list of what status() of each survivor returned');
  let best: { readonly survivor: Survivor; readonly end: LogEnd } | undefined;
  for (const survivor of survivors) {
    const end = logEnd(survivor);
    if (best === undefined || isBetterLog(end, best.end)) best = { survivor, end };
  }
  return best?.survivor ?? invalid('bestSurvivor() needs the status of one replica at least');
}
