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
import { type Configuration, majority, voterWithId } from '../consensus/configuration.js';
import type { ChainPosition } from '../consensus/entry.js';
import { epochCounter, makeEpoch } from '../consensus/epoch.js';
import { hashHigh, hashLow, hashWords } from '../consensus/hash.js';
import { BOOT_ID_MAX } from '../consensus/limits.js';
import { QuorateError } from '../errors.js';
import { invalid } from './check-options.js';
import type { ReplicaStatus } from './replica-options.js';

/** Candidacies of the old cluster that nobody here has heard of are fewer than this, by a wide margin. */
const EPOCH_COUNTER_STEP = 2 ** 16;

/** Says that the consequences of Replica.forceNewCluster() are understood. */
export interface ForceNewClusterOptions {
  /** Must be true: see docs/OPERATIONS.md, "When a majority is lost". */
  readonly iUnderstandThatAcknowledgedCommandsMayBeLost: true;
  /** Also from a member that is no voter: a learner, whose log may end earlier than any voter's. Default false. */
  readonly evenIfNotVoter?: boolean;
}

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
  const { evenIfNotVoter } = options;
  if (evenIfNotVoter !== undefined && typeof evenIfNotVoter !== 'boolean') invalid('evenIfNotVoter is not a boolean');
}

/** Why a new cluster is not forced here, null if it may be. */
export function whyNotForced(survivor: SurvivorView, evenIfNotVoter: boolean): QuorateError | null {
  const { id, bootId, leader, configurations, tailLsn } = survivor;
  const refuse = (code: string, why: string): QuorateError =>
    new QuorateError(code, `a new cluster was not forced from replica ${id}, and nothing was changed: ${why}`);
  // Who led last is known for as long as nobody else leads, dead or not.
  if (leader !== undefined && (leader === id || survivor.isReachable(leader))) {
    return refuse('QUORATE_LEADER_EXISTS', `replica ${leader} leads; change the membership there instead`);
  }
  for (const configuration of configurations) {
    const reachable = configuration.voters.filter((voter) => voter.id === id || survivor.isReachable(voter.id));
    if (survivor.isFollower && reachable.length < majority(configuration)) continue;
    const ids = reachable.map((voter) => voter.id).join(', ');
    return refuse(
      'QUORATE_QUORUM_REACHABLE',
      `voters ${ids} are alive, a majority of configuration ${configuration.version}: they will elect a leader; end those ` +
        'that shall not',
    );
  }
  const isVoter = configurations.some((configuration) => voterWithId(configuration, id)?.bootId === bootId);
  if (!isVoter && !evenIfNotVoter) {
    return refuse(
      'QUORATE_NOT_A_VOTER',
      'it is no voter in this life, so that its log may lack what every voter has; use a voter, or pass ' +
        'evenIfNotVoter: true if there is none left',
    );
  }
  if (tailLsn === 0) return refuse('QUORATE_NO_LOG', 'it has no log and no state; found a cluster with open() instead');
  return null;
}

/** Where the new cluster begins. */
export interface Fork {
  readonly clusterId: number;
  /** Everything below is in the state of the survivor. */
  readonly position: ChainPosition;
  readonly sessions: Uint8Array;
  /** Where the survivor listens. */
  readonly place: { readonly id: number; readonly host: string; readonly port: number; readonly priority: number };
}

/** The place of the fork: the end of the old log, in the chain of the new cluster, and with epochs above the old ones. */
export function forkPosition(
  applied: Readonly<ChainPosition>,
  promisedEpoch: number,
  clusterId: number,
): ChainPosition {
  const words = Uint32Array.of(clusterId >>> 0, Math.floor(clusterId / 2 ** 32) >>> 0);
  hashWords(words, 0, words.length, -2, applied.hashLow, applied.hashHigh);
  const counter = Math.max(epochCounter(promisedEpoch), epochCounter(applied.epoch)) + EPOCH_COUNTER_STEP;
  return { lsn: applied.lsn, hashLow, hashHigh, epoch: makeEpoch(counter, 1) };
}

export function newClusterId(old: number): number {
  for (;;) {
    const clusterId = randomInt(1, BOOT_ID_MAX);
    if (clusterId !== old) return clusterId;
  }
}

function epochOf(formatted: string): [number, number] {
  const match = /^([0-9]{1,10})\.([0-9]{1,7})$/.exec(formatted);
  if (match === null) return invalid(`tailEpoch '${formatted}' is not of the form counter.incarnation`);
  return [Number(match[1]), Number(match[2])];
}

/**
 * Of replicas that survived the loss of a majority, by what their `status()` says, the one whose log is the best: the log
 * that ends in the latest epoch, and of those the longest. It holds all that any of them holds of what may have been
 * acknowledged. At equal logs the first one. Throws QUORATE_INVALID_ARGUMENT.
 */
export function bestSurvivor<Survivor extends Pick<ReplicaStatus, 'tailEpoch' | 'tailLsn'>>(
  survivors: readonly Survivor[],
): Survivor {
  let best: Survivor | undefined;
  for (const survivor of survivors) {
    if (best === undefined) {
      epochOf(survivor.tailEpoch);
      best = survivor;
      continue;
    }
    const [counter, incarnation] = epochOf(survivor.tailEpoch);
    const [bestCounter, bestIncarnation] = epochOf(best.tailEpoch);
    const differences = [counter - bestCounter, incarnation - bestIncarnation, survivor.tailLsn - best.tailLsn];
    if ((differences.find((difference) => difference !== 0) ?? 0) > 0) best = survivor;
  }
  return best ?? invalid('bestSurvivor() needs the status of one replica at least');
}
