// One life of a replica as its fabric sees it: the memory that peers reach, the fence, and who may write the log. It
// ends with a crash; the next life of the same replica is another node with fresh memory.
import { MAILBOX_BYTES, MAILBOX_SLOT_BYTES, MAX_REPLICAS, STATUS_BYTES } from '../../consensus/limits.js';
import { QuorateError } from '../../errors.js';
import { initialLogAccess, LogPermissions } from '../permissions.js';
import type { SimLink } from './sim-link.js';
import type { SimNetwork } from './sim-network.js';
import { SimDeviceError, SimPermissionDevice } from './sim-permission-device.js';
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
  /** Writes a line of trace. */
  trace: (text: string) => void = () => {};
  private readonly incomingLog: (SimLink | null)[] = new Array(MAX_REPLICAS).fill(null);
  private readonly device: SimPermissionDevice;
  private readonly permissions: LogPermissions<Uint8Array>;

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
    const device = new SimPermissionDevice(this, network.nextNodeNumber());
    this.device = device;
    this.permissions = new LogPermissions(
      network.options.strategy,
      device,
      this.log,
      device,
      (peer, generation) => this.onLinkDead(peer, generation),
      (what, error) => this.trace(`${what}: ${(error as Error).message}`),
      () => device.now_ns(),
    );
  }

  /** The process dies and its memory with it. */
  crash(): void {
    this.alive = false;
    for (const link of this.outgoing) link.initiatorDied();
    this.outgoing.clear();
  }

  /** Where time has passed in the middle of a call. */
  mustLive(): void {
    if (!this.alive) throw new SimProcessDied();
  }

  // -- permission on the own log -----------------------------------------------------------------------------------

  /** A fresh log link of the peer replaces the one it had. */
  setIncomingLog(peer: number, link: SimLink): void {
    const queuePair = this.device.connect(link, initialLogAccess(this.network.options.strategy));
    this.incomingLog[peer] = link;
    this.permissions.setLink(peer, { generation: link.generation, queuePair });
  }

  incomingLogGeneration(peer: number): number {
    return this.permissions.generation(peer);
  }

  logWriter(): number {
    return this.permissions.writer;
  }

  mayWrite(link: SimLink, key: number): boolean {
    return this.device.permits(link, key);
  }

  /** Peers that the device would let write the log now, whatever the permission manager thinks. */
  writers(): ReadonlySet<number> {
    return this.device.writers();
  }

  enable(peer: number): number {
    this.device.grantee = peer;
    let key: number;
    try {
      key = this.permissions.enable(peer);
    } catch (error) {
      this.judge('single writer', error);
      this.permissions.prepare();
      throw error;
    }
    this.granted = { peer, link: this.incomingLog[peer] as SimLink, key };
    this.observer.onEnabled(this, peer);
    return key;
  }

  revoke(peer: number): void {
    try {
      this.permissions.revoke(peer);
    } catch (error) {
      this.judge('permission book', error);
      throw error;
    }
    if (this.device.writers().has(peer)) {
      this.world.fail('single writer', `replica ${peer} can write the log of ${this.id}, which was taken from it`);
    }
    // A grant that failed was told to nobody.
    if (this.granted !== null) {
      this.granted = null;
      this.observer.onRevoked(this, peer);
    }
    this.permissions.prepare();
  }

  /** What is on its way over these links lands now, in part or in full, or never. */
  drainWrites(links: readonly SimLink[]): void {
    for (const link of links) link.drain();
  }

  /** Devices and links may fail; anything else is an error of the caller. */
  private judge(invariant: string, error: unknown): void {
    const isExpected =
      error instanceof SimDeviceError || error instanceof QuorateError || error instanceof SimProcessDied;
    if (!isExpected) this.world.fail(invariant, `replica ${this.id}: ${(error as Error).message}`);
  }
}
