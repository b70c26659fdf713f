// What users ask of a leader about the membership and are waiting for: one change at a time until it is committed, a
// transfer of leadership until somebody else leads, a learner until it has caught up. Composes the steps of a
// replacement. Whether a change may be made is decided by the replication plane.
import { memberWithId } from '../consensus/configuration.js';
import type { MembershipChange, MembershipRefusal } from '../consensus/membership.js';
import type { ReplicationPlane } from '../consensus/replication-plane.js';
import { QuorateError } from '../errors.js';
import { OutcomeUnknownError } from './pending-proposals.js';
import type { NewMember } from './replica-options.js';

/** Default bound of everything that waits for another replica to catch up. */
export const CATCH_UP_TIMEOUT_DEFAULT_MS = 60_000;
/** Default bound of a transfer: until the successor holds the log, and again until it leads. */
export const TRANSFER_TIMEOUT_DEFAULT_MS = 5_000;
/** Requests about the membership that wait at a time. */
export const MEMBERSHIP_REQUESTS_MAX = 64;

export interface MembershipRequestsOptions {
  readonly plane: ReplicationPlane;
  readonly now_ns: () => number;
  /** Sends what was appended, and looks at what came of it. */
  readonly onBegun: () => void;
  /** The error of a call that only the leader serves. */
  readonly notLeader: () => QuorateError;
}

interface Wait {
  /** Settles the wait and returns true if what is waited for is there; may throw what it ends with. */
  readonly isOver: () => boolean;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}

const closedUnknown = () =>
  new OutcomeUnknownError('the replica was closed before the change was known to be committed');

export class MembershipRequests {
  private pending: { endLsn: number; resolve: () => void; reject: (error: Error) => void } | undefined;
  private readonly waits = new Set<Wait>();
  private transfer:
    | { to: number; isCeded: boolean; resolve: (to: number) => void; reject: (error: Error) => void }
    | undefined;
  private transferTimer: NodeJS.Timeout | undefined;
  private closedBecause: Error | undefined;

  constructor(private readonly options: MembershipRequestsOptions) {}

  private error(refusal: MembershipRefusal): QuorateError {
    if (refusal.code === 'QUORATE_NOT_LEADER') return this.options.notLeader();
    return new QuorateError(refusal.code, refusal.message);
  }

  // -- one change --------------------------------------------------------------------------------------------------

  /** Resolves when the change is committed. Nothing was done if it rejects with anything but an unknown outcome. */
  change(change: MembershipChange): Promise<void> {
    if (this.closedBecause !== undefined) return Promise.reject(this.closedBecause);
    const { plane, onBegun } = this.options;
    const result = plane.changeMembership(change);
    if (typeof result !== 'number') return Promise.reject(this.error(result));
    // The plane has told of the configuration, and who heard of it may have closed the replica.
    if (this.closedBecause !== undefined) return Promise.reject(closedUnknown());
    // One at a time: the plane has refused if there was one.
    const committed = new Promise<void>((resolve, reject) => {
      this.pending = { endLsn: result, resolve, reject };
    });
    onBegun();
    return committed;
  }

  /** The plane applied a configuration whose entry ends at `endLsn`. */
  applied(endLsn: number): void {
    const { pending } = this;
    if (pending === undefined || pending.endLsn !== endLsn) return;
    this.pending = undefined;
    pending.resolve();
  }

  // -- waiting -----------------------------------------------------------------------------------------------------

  /** Whether somebody waits for something that only looking shows. */
  get isWaiting(): boolean {
    return this.waits.size > 0;
  }

  /** Looks whether what is waited for has come. */
  look(): void {
    for (const wait of this.waits) {
      try {
        if (!wait.isOver()) continue;
        this.end(wait, undefined);
      } catch (error) {
        this.end(wait, error as Error);
      }
    }
  }

  private end(wait: Wait, error: Error | undefined): void {
    if (!this.waits.delete(wait)) return;
    clearTimeout(wait.timer);
    if (error === undefined) wait.resolve();
    else wait.reject(error);
  }

  private until(isOver: () => boolean, timeoutMs: number, late: () => QuorateError): Promise<void> {
    if (this.closedBecause !== undefined) return Promise.reject(this.closedBecause);
    if (this.waits.size >= MEMBERSHIP_REQUESTS_MAX) {
      const message = `${MEMBERSHIP_REQUESTS_MAX} requests about the membership wait already: try again later`;
      return Promise.reject(new QuorateError('QUORATE_BACKPRESSURE', message));
    }
    return new Promise((resolve, reject) => {
      const wait: Wait = { isOver, resolve, reject, timer: setTimeout(() => this.end(wait, late()), timeoutMs) };
      this.waits.add(wait);
      this.look();
    });
  }

  /** Resolves when the configuration in force is committed, which somebody else asked for. */
  private async inForceCommitted(endsAt_ms: number): Promise<void> {
    const { plane } = this.options;
    if (plane.role !== 'leader') throw this.options.notLeader();
    const { version } = plane.configuration;
    const isCommitted = (): boolean => {
      if (plane.appliedConfiguration.version >= version) return true; // also if the leader steps down for it
      if (plane.role !== 'leader') throw this.options.notLeader();
      return false;
    };
    const late = () =>
      new QuorateError('QUORATE_CHANGE_IN_PROGRESS', `configuration ${version} is not committed yet: try again`);
    if (isCommitted()) return;
    await this.until(isCommitted, Math.max(0, endsAt_ms - performance.now()), late);
  }

  /**
   * Makes the change as soon as its turn comes: other changes may be under way, and a learner may have to catch up. Returns
   * false if `next` has none to make, since somebody else has made it by then, whether it is committed or not.
   */
  private async changeInTurn(next: () => MembershipChange | null, endsAt_ms: number): Promise<boolean> {
    const { plane } = this.options;
    for (;;) {
      const change = next();
      if (change === null) return false;
      try {
        await this.change(change);
        return true;
      } catch (error) {
        const code = (error as QuorateError).code;
        const isPassing =
          code === 'QUORATE_CHANGE_IN_PROGRESS' || code === 'QUORATE_BACKPRESSURE' || code === 'QUORATE_NOT_CAUGHT_UP';
        const leftMs = endsAt_ms - performance.now();
        if (!isPassing || leftMs <= 0) throw error;
        const { version } = plane.appliedConfiguration;
        let isTurnOver = false;
        if (code === 'QUORATE_BACKPRESSURE') {
          setImmediate(() => {
            isTurnOver = true;
          });
        }
        const isNext = (): boolean => {
          if (plane.role !== 'leader') throw this.options.notLeader();
          // Within a turn of the event loop a full log gets no room: to try again at once would keep it from ever having any.
          if (code === 'QUORATE_BACKPRESSURE') return isTurnOver;
          if (code === 'QUORATE_NOT_CAUGHT_UP' && plane.isCaughtUp(change.id)) return true;
          return plane.appliedConfiguration.version > version; // who was to catch up may be removed, too
        };
        await this.until(isNext, leftMs, () => error as QuorateError);
      }
    }
  }

  /** Promotes the learner now, or as soon as it has caught up within the time. */
  async promote(id: number, timeoutMs: number): Promise<void> {
    const change: MembershipChange = { kind: 'promote', id };
    await (timeoutMs > 0 ? this.changeInTurn(() => change, performance.now() + timeoutMs) : this.change(change));
  }

  /**
   * Adds the new member, promotes it once it has caught up, removes the old one. Each step is skipped if it is done by
   * then, so that a replacement that was interrupted can be asked for again, also while another one does the same.
   */
  async replace(oldId: number, member: NewMember, timeoutMs: number): Promise<void> {
    const endsAt_ms = performance.now() + timeoutMs;
    const { plane } = this.options;
    const { id, host, port, priority } = member;
    // What a replica that does not lead knows of the members may be old, or may never be committed.
    if (plane.role !== 'leader') throw this.options.notLeader();
    const roleOf = (one: number) => memberWithId(plane.configuration, one)?.role;
    if (roleOf(oldId) === undefined && roleOf(id) !== 'voter') {
      throw new QuorateError('QUORATE_UNKNOWN_MEMBER', `replica ${oldId} is no member and cannot be replaced`);
    }
    const add = (): MembershipChange | null => {
      const there = memberWithId(plane.configuration, id);
      if (there === undefined || there.role === 'spare') return { kind: 'addLearner', id, host, port, priority };
      if (there.host === host && there.port === port) return null;
      // Somebody else, and not what an earlier attempt has added.
      const text = `replica ${id} is a ${there.role} at ${there.host}:${there.port} already, and not at ${host}:${port}`;
      throw new QuorateError('QUORATE_MEMBER_EXISTS', text);
    };
    await this.changeInTurn(add, endsAt_ms);
    await this.changeInTurn(() => (roleOf(id) === 'voter' ? null : { kind: 'promote', id }), endsAt_ms);
    const remove = (): MembershipChange | null => (roleOf(oldId) === undefined ? null : { kind: 'remove', id: oldId });
    if (!(await this.changeInTurn(remove, endsAt_ms))) await this.inForceCommitted(endsAt_ms);
  }

  // -- transfer ----------------------------------------------------------------------------------------------------

  /** Resolves with the successor when that leads. */
  transferLeadership(to: number | undefined, timeoutMs: number): Promise<number> {
    if (this.closedBecause !== undefined) return Promise.reject(this.closedBecause);
    const { plane, now_ns, onBegun } = this.options;
    if (this.transfer !== undefined) {
      const message = `leadership is being transferred to replica ${this.transfer.to} already`;
      return Promise.reject(new QuorateError('QUORATE_TRANSFER_IN_PROGRESS', message));
    }
    const result = plane.transferLeadership(to, now_ns(), timeoutMs * 1e6);
    if (typeof result !== 'number') return Promise.reject(this.error(result));
    const settled = new Promise<number>((resolve, reject) => {
      this.transfer = { to: result, isCeded: false, resolve, reject };
      this.transferTimer = setTimeout(() => {
        this.transferTimer = setTimeout(() => {
          this.endTransfer(`replica ${result} was not seen to lead within ${2 * timeoutMs} ms; who leads is not known`);
        }, timeoutMs);
        onBegun(); // the plane looks whether its time is over
      }, timeoutMs);
    });
    onBegun();
    return settled;
  }

  /** The plane gave the transfer up and goes on leading. */
  transferEnded(reason: string): void {
    this.endTransfer(`leadership was not transferred and stays here: ${reason}`);
  }

  private endTransfer(failure: string | null): void {
    const { transfer } = this;
    if (transfer === undefined) return;
    this.transfer = undefined;
    clearTimeout(this.transferTimer);
    if (failure === null) transfer.resolve(transfer.to);
    else transfer.reject(new QuorateError('QUORATE_TRANSFER_FAILED', failure));
  }

  /** Who leads, as far as is known. */
  leaderKnown(leader: number): void {
    const { transfer } = this;
    if (transfer === undefined || !transfer.isCeded) return;
    this.endTransfer(leader === transfer.to ? null : `replica ${leader} leads instead of replica ${transfer.to}`);
  }

  // -- ends --------------------------------------------------------------------------------------------------------

  deposed(why: string): void {
    if (this.transfer !== undefined) this.transfer.isCeded = true;
    const { pending } = this;
    this.pending = undefined;
    pending?.reject(new OutcomeUnknownError(`${why} before the change of membership was known to be committed`));
    this.look();
  }

  close(error: Error): void {
    this.closedBecause = error;
    const { pending } = this;
    this.pending = undefined;
    pending?.reject(closedUnknown());
    for (const wait of [...this.waits]) this.end(wait, error);
    this.endTransfer('the replica was closed before the next leader was seen');
  }
}
