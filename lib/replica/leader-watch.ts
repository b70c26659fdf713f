// Who leads, as this replica tells it: news of a leader at once, the loss of one only after a grace, since a failover is
// mostly over by then; and how the last takeover that made this replica the leader went.
import { formatEpoch } from '../consensus/epoch.js';
import type { ReplicationPlane } from '../consensus/replication-plane.js';
import { monotonicNs } from '../verbs/objects.js';
import type { TakeoverStages } from './replica-options.js';

/** Listeners are told that there is no leader when it has been so for this long. */
const LEADER_LOST_GRACE_MS = 10;

export interface LeaderWatchHost {
  /** Another replica leads, or the same one in another epoch; before `announce`. */
  onLeaderKnown(leader: number): void;
  /** Tells the listeners. */
  announce(leader: number | undefined, epoch: string): void;
}

export class LeaderWatch {
  private last: number | undefined;
  private lastEpoch = 0;
  /** Runs while it is not told yet that there is no leader. */
  private lost: NodeJS.Timeout | undefined;
  private isClosed = false;
  private stages: TakeoverStages | undefined;

  constructor(private readonly host: LeaderWatchHost) {}

  /** Of the last takeover that made this replica the leader. */
  get lastTakeover(): TakeoverStages | undefined {
    return this.stages;
  }

  /** `plane` has just become the leader of this epoch. */
  tookOver(plane: ReplicationPlane, epoch: number): void {
    const stages = plane.candidacyStages;
    this.stages = {
      epoch: formatEpoch(epoch),
      leaderLostAtNs: stages.leaderLostAt_ns,
      candidateAtNs: stages.candidateAt_ns,
      majorityAtNs: stages.majorityAt_ns,
      activeAtNs: monotonicNs(),
    };
  }

  /** Something may have happened; called after everything that the plane did. */
  look(plane: ReplicationPlane, isLossDue = false): void {
    const leader = plane.leader < 0 ? undefined : plane.leader;
    const epoch = leader === undefined ? this.lastEpoch : plane.promisedEpoch;
    if (leader === this.last && epoch === this.lastEpoch) {
      this.forgetLoss();
      return;
    }
    if (leader === undefined && !isLossDue) {
      // A failover is mostly over before anybody could use the news that it has begun, and telling takes time from it.
      this.lost ??= setTimeout(() => {
        if (!this.isClosed) this.look(plane, true);
      }, LEADER_LOST_GRACE_MS);
      return;
    }
    this.forgetLoss();
    this.last = leader;
    this.lastEpoch = epoch;
    if (leader !== undefined) this.host.onLeaderKnown(leader);
    this.host.announce(leader, formatEpoch(epoch));
  }

  private forgetLoss(): void {
    if (this.lost === undefined) return; // as after almost every commit
    clearTimeout(this.lost);
    this.lost = undefined;
  }

  close(): void {
    this.isClosed = true;
    this.forgetLoss();
  }
}
