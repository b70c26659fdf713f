// The rules by which a new cluster forks off an old one whose majority is lost: which of several survivors has the best log,
// whether one may be taken at all, and where the new cluster begins. What is done with them is the host's
// (lib/replica/force-new-cluster.ts), and the simulated operator's.
import { type Configuration, majority, voterWithId } from './configuration.js';
import type { ChainPosition } from './entry.js';
import { EPOCH_COUNTER_MAX, epochCounter, makeEpoch } from './epoch.js';
import { hashHigh, hashLow, hashWords } from './hash.js';

/** Candidacies of the old cluster that nobody here has heard of are fewer than this, by a wide margin. */
const EPOCH_COUNTER_STEP = 2 ** 16;

/** What is to be known of a survivor before it may be asked. */
export interface SurvivorView {
  readonly id: number;
  readonly bootId: number;
  /** Id of the leader that it follows or followed last, its own if it leads. */
  readonly leader: number | undefined;
  readonly isFollower: boolean;
  readonly tailLsn: number;
  /** In force, and committed. */
  readonly configurations: readonly Configuration[];
  /** The replica is trusted, or its process answers. */
  isReachable(id: number): boolean;
}

export interface ForkRefusal {
  readonly code: string;
  readonly why: string;
}

/** Why no new cluster is forced here, null if one may be. */
export function forkRefusal(survivor: SurvivorView, evenIfNotVoter: boolean): ForkRefusal | null {
  const { id, bootId, leader, configurations, tailLsn } = survivor;
  // Who led last is known for as long as nobody else leads, dead or not.
  if (leader !== undefined && (leader === id || survivor.isReachable(leader))) {
    return {
      code: 'QUORATE_LEADER_EXISTS',
      why: `replica ${leader} leads; change the membership there instead`,
    };
  }
  for (const configuration of configurations) {
    const reachable = configuration.voters.filter((voter) => voter.id === id || survivor.isReachable(voter.id));
    if (survivor.isFollower && reachable.length < majority(configuration)) continue;
    const ids = reachable.map((voter) => voter.id).join(', ');
    return {
      code: 'QUORATE_QUORUM_REACHABLE',
      why:
        `voters ${ids} are alive, a majority of configuration ${configuration.version}: they will elect a leader; end those ` +
        'that shall not',
    };
  }
  const isVoter = configurations.some((configuration) => voterWithId(configuration, id)?.bootId === bootId);
  if (!isVoter && !evenIfNotVoter) {
    return {
      code: 'QUORATE_NOT_A_VOTER',
      why:
        'it is no voter in this life, so that its log may lack what every voter has; use a voter, or pass ' +
        'evenIfNotVoter: true if there is none left',
    };
  }
  if (tailLsn === 0) {
    return { code: 'QUORATE_NO_LOG', why: 'it has no log and no state; found a cluster with open() instead' };
  }
  return null;
}

/** The end of a survivor's log. */
export interface LogEnd {
  readonly tailEpoch: number;
  readonly tailLsn: number;
}

/**
 * Of logs that survived the loss of a majority, one that ends in a later epoch, or in the same and is longer, holds all that
 * the other one holds of what may have been acknowledged.
 */
export function isBetterLog(one: LogEnd, other: LogEnd): boolean {
  return one.tailEpoch === other.tailEpoch ? one.tailLsn > other.tailLsn : one.tailEpoch > other.tailEpoch;
}

function forkCounter(appliedEpoch: number, promisedEpoch: number): number {
  return Math.max(epochCounter(promisedEpoch), epochCounter(appliedEpoch)) + EPOCH_COUNTER_STEP;
}

/** Whether a new cluster would have epochs above those of the old one: for the place of the fork, and for its leaders. */
export function hasForkEpochs(appliedEpoch: number, promisedEpoch: number): boolean {
  return forkCounter(appliedEpoch, promisedEpoch) < EPOCH_COUNTER_MAX;
}

/** The place of the fork: the end of the old log, in the chain of the new cluster, and with epochs above the old ones. */
export function forkPosition(
  applied: Readonly<ChainPosition>,
  promisedEpoch: number,
  clusterId: number,
): ChainPosition {
  const words = Uint32Array.of(clusterId >>> 0, Math.floor(clusterId / 2 ** 32) >>> 0);
  hashWords(words, 0, words.length, -2, applied.hashLow, applied.hashHigh);
  return { lsn: applied.lsn, hashLow, hashHigh, epoch: makeEpoch(forkCounter(applied.epoch, promisedEpoch), 1) };
}
