// The background plane's side of the simulated fabric. Links that the host made are handed over between two ticks.
import {
  MAILBOX_MESSAGE_BYTES,
  MAILBOX_RECALL_BYTES,
  MAILBOX_SLOT_BYTES,
  MAX_REPLICAS,
  STATUS_BYTES,
} from '../../consensus/limits.js';
import { type BackgroundFabric, PeerProcessState } from '../fabric.js';
import { CompletionList } from './completion-list.js';
import type { SimLink } from './sim-link.js';
import type { SimNode } from './sim-node.js';

/** Operations that may be queued between two calls of submit(). */
const QUEUE_MAX = 1024;
/** Stand for a WRITE where the bytes of a READ would be. */
const WRITE = 0;
const WRITE_AND_WAKE = -1;
const WRITE_RECALL = -2;

export class SimBackgroundFabric implements BackgroundFabric {
  readonly statusWords: Uint32Array;
  readonly mailboxWords: Uint32Array;
  readonly logWords: Uint32Array;
  readonly probeWords: Uint32Array;
  readonly outboxWords: Uint32Array;
  readonly completionPeer: Int32Array;
  readonly completionToken: Float64Array;
  readonly completionStatus: Int32Array;
  private readonly list = new CompletionList();
  /** What is queued: the peer, the token, and the bytes of a READ or what a WRITE does. */
  private readonly queuedPeer = new Int32Array(QUEUE_MAX);
  private readonly queuedToken = new Float64Array(QUEUE_MAX);
  private readonly queuedReadBytes = new Int32Array(QUEUE_MAX);
  private queued = 0;
  /** Links are below this index. */
  private linksEnd = 0;
  private readonly links: (SimLink | null)[] = new Array(MAX_REPLICAS).fill(null);
  private exited = 0;
  private readonly exitedProcesses = new Float64Array(MAX_REPLICAS);
  private readonly outgoingLogGenerations = new Float64Array(MAX_REPLICAS);

  constructor(
    private readonly node: SimNode,
    /** Told when a probe link failed, so that a fresh one is made. */
    private readonly onProbeBroken: (peer: number) => void,
  ) {
    this.statusWords = new Uint32Array(node.status.buffer);
    this.mailboxWords = new Uint32Array(node.mailboxes.buffer);
    this.logWords = new Uint32Array(node.log.buffer);
    this.probeWords = new Uint32Array(node.probe.buffer);
    this.outboxWords = new Uint32Array(node.outbox.buffer);
    this.completionPeer = this.list.completionPeer;
    this.completionToken = this.list.completionToken;
    this.completionStatus = this.list.completionStatus;
  }

  setProbe(peer: number, link: SimLink | null): void {
    this.list.begin();
    this.links[peer]?.closeInitiator((token, status) => this.list.add(peer, token, status));
    this.links[peer] = link;
    this.exited &= ~(1 << peer);
    if (link !== null && peer >= this.linksEnd) this.linksEnd = peer + 1;
  }

  probeTo(peer: number): SimLink | null {
    return this.links[peer] as SimLink | null;
  }

  setOutgoingLogGeneration(peer: number, generation: number): void {
    this.outgoingLogGenerations[peer] = generation;
  }

  probeConnected(peer: number): boolean {
    return this.links[peer] !== null;
  }

  queueStatusRead(peer: number, lengthBytes: number, token: number): void {
    this.queue(peer, token, lengthBytes);
  }

  queueMailboxWrite(peer: number, token: number, wake: boolean): void {
    this.queue(peer, token, wake ? WRITE_AND_WAKE : WRITE);
  }

  queueRecallWrite(peer: number, token: number): void {
    this.queue(peer, token, WRITE_RECALL);
  }

  /** The host saw the process at the other end of the probe link die. */
  noticeExit(node: SimNode): void {
    if (this.links[node.id]?.responder !== node) return;
    this.exited |= 1 << node.id;
    this.exitedProcesses[node.id] = node.processId;
  }

  exitedMask(): number {
    return this.exited;
  }

  exitedProcess(peer: number): number {
    return this.exitedProcesses[peer] as number;
  }

  processState(peer: number): PeerProcessState {
    const responder = this.links[peer]?.responder;
    if (!this.node.network.options.hostSeesProcesses || !responder?.alive) return PeerProcessState.unknown;
    return responder.isStopped() ? PeerProcessState.stopped : PeerProcessState.running;
  }

  private queue(peer: number, token: number, readBytes: number): void {
    if (this.queued === QUEUE_MAX) throw new RangeError(`more than ${QUEUE_MAX} operations are queued`);
    this.queuedPeer[this.queued] = peer;
    this.queuedToken[this.queued] = token;
    this.queuedReadBytes[this.queued] = readBytes;
    this.queued++;
  }

  submit(_spin_ns: number, _wanted: number): number {
    const { list, node } = this;
    node.preempt('background');
    list.begin();
    const { queued } = this;
    this.queued = 0;
    for (let index = 0; index < queued; index++) {
      const peer = this.queuedPeer[index] as number;
      const token = this.queuedToken[index] as number;
      const readBytes = this.queuedReadBytes[index] as number;
      const link = this.links[peer];
      if (!link) throw new Error(`replica ${node.id} queued an operation to replica ${peer} without a probe link`);
      const { responder } = link;
      if (readBytes > 0) {
        link.postRead(token, node.probe, peer * STATUS_BYTES, responder.status, 0, readBytes);
      } else {
        const isRecall = readBytes === WRITE_RECALL;
        const offset = isRecall ? MAILBOX_MESSAGE_BYTES : 0;
        const from = peer * MAILBOX_SLOT_BYTES + offset;
        const to = node.id * MAILBOX_SLOT_BYTES + offset;
        const lengthBytes = isRecall ? MAILBOX_RECALL_BYTES : MAILBOX_MESSAGE_BYTES;
        const wakes = readBytes === WRITE_AND_WAKE;
        link.postWrite(token, node.outbox, from, responder.mailboxes, to, lengthBytes, 0, wakes);
      }
    }
    const { now_ns } = node.world;
    for (let peer = 0; peer < this.linksEnd; peer++) {
      const link = this.links[peer];
      if (!link) continue;
      if (list.take(peer, link, now_ns)) continue;
      this.links[peer] = null;
      link.closeInitiator((token, status) => list.add(peer, token, status));
      this.onProbeBroken(peer);
    }
    return list.end();
  }

  raiseFence(epoch: number): void {
    const { node } = this;
    node.preempt('background');
    if (epoch > node.fence) node.fence = epoch;
    node.observer.onFenceRaised(node, epoch);
  }

  revokeLogWriter(peer: number): void {
    this.node.preempt('background');
    this.node.revoke(peer);
    this.node.preempt('background');
  }

  enableLogWriter(peer: number): number {
    this.node.preempt('background');
    const key = this.node.enable(peer);
    this.node.preempt('background');
    return key;
  }

  logWriter(): number {
    return this.node.logWriter();
  }

  incomingLogGeneration(peer: number): number {
    return this.node.incomingLogGeneration(peer);
  }

  outgoingLogGeneration(peer: number): number {
    return this.outgoingLogGenerations[peer] as number;
  }
}
