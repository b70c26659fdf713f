// One life of a replica as its fabric sees it: the memory that peers reach, the fence, and who may write the log. It
// ends with a crash; the next life of the same replica is another node with fresh memory.
import { MAILBOX_BYTES, MAILBOX_SLOT_BYTES, MAX_REPLICAS, STATUS_BYTES } from '../../consensus/limits.js';
import type { SimLink } from './sim-link.js';
import type { SimNetwork } from './sim-network.js';
import type { SimWorld } from './sim-world.js';

/** Told of everything that happens to a log and to the right to write it, at the instant it happens. */
export interface SimFabricObserver {
  /** Bytes of a WRITE of `initiator` were placed in the log of `node`. */
  onPlaced(node: SimNode, initiator: SimNode, logOffset: number, lengthBytes: number): void;
  /** A WRITE of `initiator` arrived at the log of `node` without permission; not a byte of it was placed. */
  onRefused?(node: SimNode, initiator: SimNode, logOffset: number, lengthBytes: number): void;
  /** The node's own plane appended to its log. */
  onAppended(node: SimNode, epoch: number, logOffset: number, lengthBytes: number): void;
  /** The node's main plane took a message of `from`, which had sent it `count` messages before. */
  onMessageTaken?(node: SimNode, from: SimNode, count: number): void;
  onFenceRaised(node: SimNode, epoch: number): void;
  onRevoked(node: SimNode, peer: number): void;
  onEnabled(node: SimNode, peer: number): void;
}

/** Thrown out of a fabric call when the process died in the middle of it; unwinds the code that made the call. */
export class SimProcessDied extends Error {
  constructor() {
    super('the simulated process died');
  }
}

export interface LogGrant {
  readonly peer: number;
  readonly link: SimLink;
  /** Remote key of the grant; 0 where the permission is the link's. */
  readonly key: number;
}

export class SimNode {
  alive = true;
  /** Set by the host. */
  processId = 0;
  fence = 0;
  granted: LogGrant | null = null;
  readonly log: Uint8Array;
  readonly status = new Uint8Array(STATUS_BYTES);
  readonly mailboxes = new Uint8Array(MAILBOX_BYTES);
  readonly probe = new Uint8Array(MAX_REPLICAS * STATUS_BYTES);
  readonly outbox = new Uint8Array(MAX_REPLICAS * MAILBOX_SLOT_BYTES);
  readonly workspace: Uint8Array;
  /** Links on which this node posts, while they are in use. */
  readonly outgoing = new Set<SimLink>();
  /** Set by the host. */
  wakeMain: (at_ns: number) => void = () => {};
  /** Set by the host. */
  wakeBackground: () => void = () => {};
  /** Called at every call into the fabric: the place where the caller may lose the processor, or its life. */
  preempt: (plane: 'main' | 'background') => void = () => {};
  /** Whether its process stands still, as its host sees it. */
  isStopped: () => boolean = () => false;
  /** The responder's end of a peer's log link is of no use any more. */
  onLinkDead: (peer: number, generation: number) => void = () => {};
  private readonly incomingLog: (SimLink | null)[] = new Array(MAX_REPLICAS).fill(null);
  private readonly retired: SimLink[] = [];

  constructor(
    readonly world: SimWorld,
    readonly network: SimNetwork,
    readonly id: number,
    readonly observer: SimFabricObserver,
    logBytes: number,
    workspaceBytes: number,
  ) {
    this.log = new Uint8Array(logBytes);
    this.workspace = new Uint8Array(workspaceBytes);
  }

  /** The process dies and its memory with it. */
  crash(): void {
    this.alive = false;
    for (const link of this.outgoing) link.initiatorDied();
    this.outgoing.clear();
  }

  // -- permission on the own log -----------------------------------------------------------------------------------

  /** A fresh log link of the peer replaces the one it had. */
  setIncomingLog(peer: number, link: SimLink): void {
    const old = this.incomingLog[peer];
    this.incomingLog[peer] = link;
    if (!old) return;
    // The one that carries the permission stays open until that is revoked, as its packets may still be on their way.
    if (this.granted?.link === old) this.retired.push(old);
    else old.closeResponder();
  }

  incomingLogGeneration(peer: number): number {
    return this.incomingLog[peer]?.generation ?? 0;
  }

  private permissionIsOfLink(): boolean {
    return this.network.options.strategy === 'link';
  }

  mayWrite(link: SimLink, key: number): boolean {
    const { granted } = this;
    if (granted === null) return false;
    if (!this.permissionIsOfLink()) return granted.peer === link.initiator.id && granted.key === key;
    return granted.link === link;
  }

  enable(peer: number): number {
    if (this.granted !== null) {
      const text = `replica ${peer} enabled while replica ${this.granted.peer} may write the log of replica ${this.id}`;
      this.world.fail('single writer', text);
      throw new Error(text);
    }
    const link = this.incomingLog[peer];
    if (!link) throw new Error(`replica ${peer} has no log link to enable`);
    if (link.responderClosed) {
      this.dropLink(peer, link);
      throw new Error(`the log link of replica ${peer} (generation ${link.generation}) failed before it was granted`);
    }
    const key = this.permissionIsOfLink() ? 0 : 1 + this.world.random.integer(2 ** 32 - 2);
    this.granted = { peer, link, key };
    this.observer.onEnabled(this, peer);
    return key;
  }

  revoke(peer: number): void {
    const { granted } = this;
    if (granted === null || granted.peer !== peer) {
      const text = `replica ${peer} does not hold the permission to write the log of replica ${this.id}, to be revoked`;
      this.world.fail('permission book', text);
      throw new Error(text);
    }
    this.drainWrites(peer);
    this.granted = null;
    this.observer.onRevoked(this, peer);
    // Where the permission is the link's, a link carries one only (see LogPermissions).
    if (this.permissionIsOfLink()) granted.link.closeResponder();
    if (granted.link.responderClosed) this.dropLink(peer, granted.link);
    for (const link of this.retired.splice(0)) link.closeResponder();
  }

  /** What is on its way lands now, in part or in full, or never. */
  protected drainWrites(peer: number): void {
    for (const link of this.retired) link.drain();
    this.incomingLog[peer]?.drain();
  }

  private dropLink(peer: number, link: SimLink): void {
    if (this.incomingLog[peer] !== link) return; // replaced already
    this.incomingLog[peer] = null;
    link.closeResponder();
    this.onLinkDead(peer, link.generation);
  }
}
