// When a takeover went through its stages, as status() tells. A function of its own, so that the rehearsal runs it, too.
import { formatEpoch } from '../consensus/epoch.js';
import type { ReplicationPlane } from '../consensus/replication-plane.js';
import { monotonicNs } from '../verbs/index.js';
import type { TakeoverStages } from './replica-options.js';

/** Of the takeover that has just made `plane` the leader of this epoch. */
export function takeoverStages(plane: ReplicationPlane, epoch: number): TakeoverStages {
  const stages = plane.candidacyStages;
  return {
    epoch: formatEpoch(epoch),
    leaderLostAtNs: stages.leaderLostAt_ns,
    candidateAtNs: stages.candidateAt_ns,
    majorityAtNs: stages.majorityAt_ns,
    activeAtNs: monotonicNs(),
  };
}
