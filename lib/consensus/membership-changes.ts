// When a leader changes the membership, at somebody's request or by itself: to keep the configuration true to the lives that
// there are, and to have spares take the places of voters that are gone. Which configuration a change leads to is decided in
// membership.ts and replacement.ts; here is whether any may be made now, and that one at a time is.
import { type Configuration, memberWithId } from './configuration.js';
import {
  isCaughtUp,
  isRefusal,
  type LeaderView,
  type MembershipChange,
  type MembershipRefusal,
  planChange,
  planMaintenance,
} from './membership.js';
import type { Replacement } from './replacement.js';
import type { Role } from './replication-host.js';

/** The log that changes are appended to, and what its replica is at present. */
export interface ConfigurationLog {
  readonly role: Role;
  readonly tailLsn: number;
  /** Configuration in force: the latest in the log. */
  readonly configuration: Configuration;
  /** The configuration in force is applied, and so committed. */
  readonly isConfigurationApplied: boolean;
  /** By the configuration in force, and in this life. */
  readonly isVoter: boolean;
  /** Replica that leadership is being transferred to, -1 if none. */
  readonly transferringTo: number;
  /** Returns false, and appends nothing, if there is no room. */
  appendConfiguration(configuration: Configuration): boolean;
}

export class MembershipChanges {
  constructor(
    private readonly log: ConfigurationLog,
    private readonly view: LeaderView,
    private readonly replacement: Replacement,
  ) {}

  /**
   * Why this replica may not change the membership now, null if it may: only as active leader, whose noop is committed
   * and with it the configuration in force (a leader of an earlier epoch may have appended another one that a majority
   * does not hold), and only one change at a time.
   */
  whyNoChange(): MembershipRefusal | null {
    const { log } = this;
    if (log.role !== 'leader') {
      return { code: 'QUORATE_NOT_LEADER', message: 'this replica is not the leader; nothing was changed' };
    }
    if (!log.isConfigurationApplied) {
      const { version } = log.configuration;
      return {
        code: 'QUORATE_CHANGE_IN_PROGRESS',
        message: `configuration ${version} is not committed yet and nothing else was changed: try again when it is`,
      };
    }
    if (log.transferringTo >= 0) {
      return {
        code: 'QUORATE_TRANSFER_IN_PROGRESS',
        message: `leadership is being transferred to replica ${log.transferringTo}; nothing was changed: ask the next leader`,
      };
    }
    if (!log.isVoter) {
      // Its removal is committed and it is about to step down: what it began now nobody might be left to finish.
      return {
        code: 'QUORATE_NOT_LEADER',
        message: 'this replica is no voter any more and steps down; nothing was changed: ask the next leader',
      };
    }
    return null;
  }

  /** Appends the configuration that the change leads to. Returns the LSN at which its entry ends, or why it was not made. */
  change(change: MembershipChange): number | MembershipRefusal {
    const refusal = this.whyNoChange();
    if (refusal !== null) return refusal;
    const next = planChange(this.log.configuration, change, this.view);
    if (isRefusal(next)) return next;
    if (!this.log.appendConfiguration(next)) {
      return {
        code: 'QUORATE_BACKPRESSURE',
        message: 'the log is full of entries that followers have yet to apply; nothing was changed: try again',
      };
    }
    return this.log.tailLsn;
  }

  /** The learner could be promoted now, as far as its log goes; a spare, which may have one of before, could not. */
  isCaughtUp(id: number): boolean {
    const member = memberWithId(this.log.configuration, id);
    if (member === undefined || member.role === 'spare') return false;
    return this.log.role === 'leader' && isCaughtUp(member, this.view);
  }

  /** Keeps the configuration true to the lives that there are: voters that came back, learners that were first seen. */
  maintain(): void {
    if (this.whyNoChange() !== null) return;
    const next = planMaintenance(this.log.configuration, this.view);
    if (next !== null) this.log.appendConfiguration(next);
  }

  /** Spares take the places of voters that are gone for too long. */
  replaceTheGone(now_ns: number): void {
    if (this.log.role !== 'leader') return;
    this.replacement.look(now_ns, this.log.configuration, this.view);
    if (this.whyNoChange() !== null) return;
    const next = this.replacement.plan(this.log.configuration, this.view);
    if (next !== null) this.log.appendConfiguration(next);
  }
}
