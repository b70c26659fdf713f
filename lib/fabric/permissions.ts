// How the right to write this replica's log is given to one peer and taken away again. Taking away must be synchronous:
// when revoke() returns no byte of any earlier WRITE of that peer can still land, because the next writer is let in on
// the strength of it. What is synchronous differs by device, so there are three strategies:
//
// * mr-dereg: each grant exposes a memory region of its own, whose remote key only that peer learns; revocation
//   deregisters it. ibv_dereg_mr waits for the packets that are using the region, by the verbs contract (the memory
//   may be unmapped after it), so it is sound on every device that keeps that contract; on rxe it was also measured.
// * qp-flush: revocation moves the queue pair to the error state and waits for the flush completion of a RECV that was
//   posted before, which the same serialized responder produces. Costs a fresh queue pair.
// * qp-flags: revocation removes REMOTE_WRITE from the queue pair's access flags (Mu's fast path). Offered only where
//   the device makes it synchronous: shm does; on rxe bytes were seen to land up to 6 ms later. Costs a fresh queue
//   pair, too: see below.
//
// A permission must also end for good. A leader that stood still may wake up when its replica has been granted again,
// in a later epoch, and go on with WRITEs of the epoch before: they must not find the door open. With mr-dereg they
// carry a key that is gone; with the other two the permission is the queue pair's, so a queue pair carries one only,
// and the peer makes a fresh link before it can be granted again (docs/bugs/permission-outlived-its-grant.md).
//
// Runs in the background plane's thread. Simulations run it, too, on a simulated device, so it takes of a device no more
// than it needs, and loads no addon.
import { QuorateError } from '../errors.js';
import type { Memory } from '../verbs/memory.js';
import { Access, QpState } from '../verbs/rights.js';

export const PERMISSION_STRATEGIES = ['mr-dereg', 'qp-flush', 'qp-flags'] as const;
export type PermissionStrategy = (typeof PERMISSION_STRATEGIES)[number];

/** How long qp-flush waits for the flush completion before it reports the revocation as unproven; from then on it only looks. */
const FLUSH_TIMEOUT_NS = 2e9;
const MARKERS_POLLED_MAX = 64;

const READ_ONLY = Access.REMOTE_READ;
const READ_WRITE = Access.REMOTE_READ | Access.REMOTE_WRITE;

/** Access flags that the responder's queue pair of a log link starts with. */
export function initialLogAccess(strategy: PermissionStrategy): number {
  return strategy === 'mr-dereg' ? READ_WRITE : READ_ONLY;
}

/** The strategy for a device, or an explanation why the one asked for is not to be had. */
export function choosePermissionStrategy(
  wanted: PermissionStrategy | undefined,
  flagsAreSynchronous: boolean,
  deviceName: string,
): PermissionStrategy {
  if (wanted === undefined) return flagsAreSynchronous ? 'qp-flags' : 'mr-dereg';
  if (!PERMISSION_STRATEGIES.includes(wanted)) {
    throw new QuorateError(
      'QUORATE_INVALID_ARGUMENT',
      `permissionStrategy ${String(wanted)} is unknown; use one of ${PERMISSION_STRATEGIES.join(', ')}`,
    );
  }
  if (wanted === 'qp-flags' && !flagsAreSynchronous) {
    throw new QuorateError(
      'QUORATE_UNSUPPORTED',
      `permissionStrategy qp-flags is not safe on ${deviceName}: the device may still place bytes after the access ` +
        'flags were removed; use mr-dereg or qp-flush',
    );
  }
  return wanted;
}

/** What is needed of a queue pair: {@link QueuePair} of quorate/verbs, or a simulated one. */
export interface PermissionQueuePair {
  readonly number: number;
  setAccessFlags(accessFlags: number): void;
  modify(attributes: { readonly state: QpState }): void;
  query(): { readonly state: QpState };
  close(): void;
}

/** What is needed of a memory region. */
export interface PermissionRegion {
  readonly rkey: number;
  close(): void;
}

/** What is needed of a protection domain. */
export interface PermissionDomain<Log> {
  registerMemory(log: Log, offset: number, length: number, accessFlags: number): PermissionRegion;
}

/** What is needed of a completion queue: whose requests were flushed. */
export interface PermissionQueue {
  poll(completionsMax: number): readonly { readonly qpNum: number }[];
}

/** Undefined where the device does not say. */
function stateOf(queuePair: PermissionQueuePair): QpState | undefined {
  try {
    return queuePair.query().state;
  } catch {
    return undefined;
  }
}

/** One end of a log link at the responder: what a grant opens. */
export interface IncomingLogLink {
  readonly generation: number;
  readonly queuePair: PermissionQueuePair;
}

export class LogPermissions<Log extends { readonly length: number } = Memory> {
  private readonly links = new Map<number, IncomingLogLink>();
  /** Links whose service ended with a revocation, to be closed; those that were their peer's current one are missed. */
  private readonly ended: { peer: number; link: IncomingLogLink; wasCurrent: boolean }[] = [];
  /** Links that the device did not close when it was asked to. They carry no permission. */
  private unclosed: { peer: number; link: IncomingLogLink }[] = [];
  private readonly spareRegions: PermissionRegion[] = [];
  /** The device refused a region for the next grant, which asks once more. */
  private isSpareRefused = false;
  /** Why the revocation that is asked for again is not proven; null if no marker was waited for in vain. */
  private overdue: QuorateError | null = null;
  private granted: { peer: number; link: IncomingLogLink; region: PermissionRegion | null } | null = null;

  constructor(
    private readonly strategy: PermissionStrategy,
    private readonly protectionDomain: PermissionDomain<Log>,
    private readonly logMemory: Log,
    private readonly incomingQueue: PermissionQueue,
    /** Told when the responder's end of a peer's log link is of no use any more, so that the peer makes a fresh one. */
    private readonly onLinkDead: (peer: number, generation: number) => void,
    /** Told of what the device refused while nobody waited for it; that is tried again. */
    private readonly onFailure: (what: string, error: unknown) => void,
    /** A clock that only moves forward. */
    private readonly now_ns: () => number = () => performance.now() * 1e6,
  ) {
    if (strategy === 'mr-dereg') this.spareRegions.push(this.register());
  }

  /** A fresh link of the peer replaces the one it had. */
  setLink(peer: number, link: IncomingLogLink): void {
    const old = this.links.get(peer);
    this.links.set(peer, link);
    // The one that carries the permission stays until that is revoked, as its packets may still be on their way.
    if (old !== undefined && this.granted?.link !== old) this.closeLink(peer, old);
  }

  /** See BackgroundFabric.logWriter. */
  get writer(): number {
    return this.granted?.peer ?? -1;
  }

  /** Generation of the peer's current log link, 0 if it has none. */
  generation(peer: number): number {
    return this.links.get(peer)?.generation ?? 0;
  }

  /**
   * Does what is slow while nobody waits for it: queue pairs that have done their service are closed, a region for the
   * next grant is registered.
   */
  prepare(): void {
    // At every tick, and hardly ever is there one: an array less each time.
    if (this.ended.length > 0) {
      const { unclosed } = this;
      this.unclosed = [];
      for (const { peer, link } of unclosed) this.closeLink(peer, link);
      for (const { peer, link, wasCurrent } of this.ended.splice(0)) {
        this.closeLink(peer, link);
        if (wasCurrent) this.onLinkDead(peer, link.generation);
      }
    }
    if (this.strategy !== 'mr-dereg' || this.spareRegions.length > 0 || this.isSpareRefused) return;
    try {
      this.spareRegions.push(this.register());
    } catch (error) {
      this.isSpareRefused = true;
      this.onFailure('a region for the next grant', error);
    }
  }

  /** Whatever the device says to it: others do not wait for that. */
  private closeLink(peer: number, link: IncomingLogLink): void {
    try {
      link.queuePair.close();
    } catch (error) {
      this.unclosed.push({ peer, link });
      this.onFailure(`closing a log link of replica ${peer}`, error);
    }
  }

  private register(): PermissionRegion {
    const access = Access.LOCAL_WRITE | Access.REMOTE_WRITE;
    return this.protectionDomain.registerMemory(this.logMemory, 0, this.logMemory.length, access);
  }

  /** Lets the peer write; returns the remote key that it needs, 0 where the link's own key serves. */
  enable(peer: number): number {
    if (this.granted !== null) {
      throw new Error(`single writer: replica ${peer} enabled while replica ${this.granted.peer} may write the log`);
    }
    const link = this.links.get(peer);
    if (link === undefined) {
      throw new QuorateError('QUORATE_LINK_DEAD', `replica ${peer} has no log link to enable now; a fresh one is made`);
    }
    // With qp-flags the change itself tells, and a query would cost as much.
    if (this.strategy !== 'qp-flags' && link.queuePair.query().state !== QpState.RTS) {
      return this.refuseDead(peer, link);
    }
    if (this.strategy === 'mr-dereg') {
      const region = this.spareRegions.pop() ?? this.register();
      this.isSpareRefused = false;
      this.granted = { peer, link, region };
      return region.rkey;
    }
    // Not of this link, whose marker would be waited for in vain: it works, as was asked just now.
    if (this.strategy === 'qp-flush') this.dropMarkers();
    this.granted = { peer, link, region: null };
    try {
      link.queuePair.setAccessFlags(READ_WRITE);
    } catch (error) {
      // Asked only now: in a failover, where nothing is broken, a query costs as much as the change itself.
      const state = stateOf(link.queuePair);
      if (state === QpState.RTS || state === undefined) {
        // It may have opened all the same, and whoever asked believes that nobody can write.
        this.revoke(peer);
        throw error;
      }
      this.granted = null;
      this.refuseDead(peer, link);
    }
    return 0;
  }

  private refuseDead(peer: number, link: IncomingLogLink): never {
    this.dropLink(peer, link);
    throw new QuorateError(
      'QUORATE_LINK_DEAD',
      `the log link of replica ${peer} (generation ${link.generation}) failed before it was granted; a fresh one is made`,
    );
  }

  /** See BackgroundFabric.revokeLogWriter. */
  revoke(peer: number): void {
    const { granted } = this;
    if (granted === null || granted.peer !== peer) {
      throw new Error(`replica ${peer} does not hold the permission that is to be revoked`);
    }
    if (granted.region !== null) granted.region.close();
    else if (this.strategy === 'qp-flags') this.removeWriteAccess(granted.link.queuePair);
    else this.flush(granted.link.queuePair);
    this.granted = null;
    const wasCurrent = this.links.get(peer) === granted.link;
    const canServeAgain = this.strategy === 'mr-dereg' && stateOf(granted.link.queuePair) === QpState.RTS;
    if (wasCurrent && canServeAgain) return;
    if (wasCurrent) this.links.delete(peer);
    this.ended.push({ peer, link: granted.link, wasCurrent });
  }

  private dropLink(peer: number, link: IncomingLogLink): void {
    this.links.delete(peer);
    this.closeLink(peer, link);
    this.onLinkDead(peer, link.generation);
  }

  /**
   * A queue pair that left the connected states (an operation of the peer was refused, say) takes no access flags any
   * more; moving it to the error state is as synchronous where qp-flags is offered.
   */
  private removeWriteAccess(queuePair: PermissionQueuePair): void {
    try {
      queuePair.setAccessFlags(READ_ONLY);
    } catch (error) {
      if (queuePair.query().state === QpState.RTS) throw error; // it failed for another reason
      queuePair.modify({ state: QpState.ERR });
    }
  }

  private flush(queuePair: PermissionQueuePair): void {
    queuePair.modify({ state: QpState.ERR });
    const deadline_ns = this.now_ns() + FLUSH_TIMEOUT_NS;
    for (;;) {
      // Those of others were flushed because their peer's operation failed; nobody waits for them.
      for (const { qpNum } of this.incomingQueue.poll(MARKERS_POLLED_MAX)) {
        if (qpNum !== queuePair.number) continue;
        this.overdue = null;
        return;
      }
      // This thread has more to do: one that does not beat is taken for dead.
      if (this.overdue !== null) throw this.overdue;
      if (this.now_ns() > deadline_ns) {
        this.overdue = new QuorateError(
          'QUORATE_REVOKE_FAILED',
          `the flush marker of queue pair ${queuePair.number} did not arrive within ${FLUSH_TIMEOUT_NS / 1e6} ms; the ` +
            'permission of its peer is not proven revoked, so no other is granted',
        );
        throw this.overdue;
      }
    }
  }

  /**
   * What came before a grant is of queue pairs that had failed, one of which may have had the number of the one that is
   * granted, since devices give numbers out again: it would be taken for the proof that this one has stopped. The marker
   * of the granted one is not among it, as access flags can be set only while that works.
   */
  private dropMarkers(): void {
    while (this.incomingQueue.poll(MARKERS_POLLED_MAX).length > 0);
  }
}
