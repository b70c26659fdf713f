// The replication plane's side of the simulated fabric. The fenced append is atomic with its check of the epoch, as the
// contract says; between any two operations of one submit() the process may lose the processor, or its life.
import { LSN_BYTES, MAX_REPLICAS } from '../../consensus/limits.js';
import { writeU53 } from '../../consensus/sealed-block.js';
import { FabricStatus, type ReplicationFabric } from '../fabric.js';
import { CompletionList } from './completion-list.js';
import type { SimLink } from './sim-link.js';
import type { SimNode } from './sim-node.js';

type Operation =
  | { kind: 'append'; epoch: number; workspaceOffset: number; logOffset: number; lengthBytes: number; token: number }
  | {
      kind: 'write';
      peer: number;
      key: number;
      logOffset: number;
      lengthBytes: number;
      token: number;
      /** What is written, at the beginning of it; null for the bytes of the own log at the same offset. */
      bytes: Uint8Array | null;
    }
  | { kind: 'read'; peer: number; logOffset: number; lengthBytes: number; workspaceOffset: number; token: number };

export class SimReplicationFabric implements ReplicationFabric {
  readonly logWords: Uint32Array;
  readonly logBytes: Uint8Array;
  readonly workspaceWords: Uint32Array;
  readonly workspaceBytes: Uint8Array;
  readonly completionPeer: Int32Array;
  readonly completionToken: Float64Array;
  readonly completionStatus: Int32Array;
  private readonly list = new CompletionList();
  private readonly queue: Operation[] = [];
  private readonly links: (SimLink | null)[] = new Array(MAX_REPLICAS).fill(null);
  /** Links are below this index. */
  private linksEnd = 0;
  private readonly writeKeys = new Float64Array(MAX_REPLICAS);

  constructor(private readonly node: SimNode) {
    this.logBytes = node.log;
    this.logWords = new Uint32Array(node.log.buffer);
    this.workspaceBytes = node.workspace;
    this.workspaceWords = new Uint32Array(node.workspace.buffer);
    this.completionPeer = this.list.completionPeer;
    this.completionToken = this.list.completionToken;
    this.completionStatus = this.list.completionStatus;
  }

  /** Puts a fresh link in place, or none; what was outstanding on the old one completes as failed first. */
  setPeer(peer: number, link: SimLink | null): void {
    this.list.begin();
    this.post();
    this.links[peer]?.closeInitiator((token, status) => this.list.add(peer, token, status));
    this.links[peer] = link;
    if (link !== null && peer >= this.linksEnd) this.linksEnd = peer + 1;
    this.writeKeys[peer] = 0;
  }

  linkTo(peer: number): SimLink | null {
    return this.links[peer] as SimLink | null;
  }

  logConnected(peer: number): boolean {
    return this.links[peer] !== null;
  }

  setLogWriteKey(peer: number, key: number): void {
    if (key !== 0) this.writeKeys[peer] = key;
  }

  queueAppend(epoch: number, workspaceOffset: number, logOffset: number, lengthBytes: number, token: number): void {
    this.queue.push({ kind: 'append', epoch, workspaceOffset, logOffset, lengthBytes, token });
  }

  queueWrite(peer: number, logOffset: number, lengthBytes: number, token: number): void {
    const key = this.writeKeys[peer] as number;
    this.queue.push({ kind: 'write', peer, key, logOffset, lengthBytes, token, bytes: null });
  }

  queueLsnWrite(peer: number, logOffset: number, lsn: number, token: number): void {
    const key = this.writeKeys[peer] as number;
    const bytes = new Uint8Array(LSN_BYTES);
    writeU53(new Uint32Array(bytes.buffer), 0, lsn);
    this.queue.push({ kind: 'write', peer, key, logOffset, lengthBytes: LSN_BYTES, token, bytes });
  }

  queueRead(peer: number, logOffset: number, lengthBytes: number, workspaceOffset: number, token: number): void {
    this.queue.push({ kind: 'read', peer, logOffset, lengthBytes, workspaceOffset, token });
  }

  submit(spin_ns: number, wanted: number): number {
    const { list, node } = this;
    node.preempt('main');
    list.begin();
    const appends = this.post();
    this.collect();
    if (list.count - appends < wanted && spin_ns > 0) {
      node.world.interleave(spin_ns);
      if (!node.alive) node.preempt('main');
      this.collect();
    }
    return list.end();
  }

  /** Returns how many appends there were; they have completed. */
  private post(): number {
    const { node, list } = this;
    if (this.queue.length === 0) return 0;
    let isFenced = false;
    let appends = 0;
    for (const operation of this.queue.splice(0)) {
      const { token, lengthBytes, logOffset } = operation;
      if (operation.kind === 'append') appends++;
      if (isFenced) {
        list.add(operation.kind === 'append' ? node.id : operation.peer, token, FabricStatus.fenced);
        continue;
      }
      if (operation.kind === 'append') {
        const { epoch, workspaceOffset } = operation;
        isFenced = !this.append(epoch, workspaceOffset, logOffset, lengthBytes);
        list.add(node.id, token, isFenced ? FabricStatus.fenced : FabricStatus.success);
        node.preempt('main');
        continue;
      }
      const link = this.links[operation.peer];
      if (!link) {
        list.add(operation.peer, token, FabricStatus.failed);
        continue;
      }
      const { log } = link.responder;
      if (operation.kind === 'write') {
        const { bytes, key } = operation;
        if (bytes === null) link.postWrite(token, node.log, logOffset, log, logOffset, lengthBytes, key);
        else link.postWrite(token, bytes, 0, log, logOffset, lengthBytes, key);
      } else {
        link.postRead(token, node.workspace, operation.workspaceOffset, log, logOffset, lengthBytes);
      }
      node.preempt('main');
    }
    return appends;
  }

  /** The short critical section of an append: the check of the fence and the copy are one. */
  protected append(epoch: number, workspaceOffset: number, logOffset: number, lengthBytes: number): boolean {
    const { node } = this;
    if (node.fence !== epoch) return false;
    if (lengthBytes === 0) return true;
    if (logOffset + lengthBytes > node.log.length) throw new RangeError('append beyond the end of the ring');
    node.log.set(node.workspace.subarray(workspaceOffset, workspaceOffset + lengthBytes), logOffset);
    node.observer.onAppended(node, epoch, logOffset, lengthBytes);
    return true;
  }

  private collect(): void {
    const { list, node } = this;
    const { now_ns } = node.world;
    for (let peer = 0; peer < this.linksEnd; peer++) {
      const link = this.links[peer];
      if (!link) continue;
      if (list.take(peer, link, now_ns)) continue;
      // A link that failed once takes nothing any more, and all that is outstanding on it fails with it.
      this.links[peer] = null;
      link.closeInitiator((token, status) => list.add(peer, token, status));
    }
  }
}
