// The background plane's fabric on verbs: probe links to the peers (READ of status, WRITE into the own mailbox slot),
// the fence, and the permissions on the own log. Lives in the background plane's thread; queue pairs are made by the
// main thread and handed over.
import {
  MAILBOX_MESSAGE_BYTES,
  MAILBOX_RECALL_BYTES,
  MAILBOX_SLOT_BYTES,
  MAX_REPLICAS,
  STATUS_BYTES,
} from '../consensus/limits.js';
import {
  type CompletionChannel,
  type CompletionQueue,
  type Fence,
  type Memory,
  type PeerProcess,
  PostList,
  ProcessState,
  type QueuePair,
  type Waiter,
  WaitReason,
  WC,
  WC_STRIDE,
  WcStatus,
  WR,
  WR_STRIDE,
  WrOpcode,
} from '../verbs/objects.js';
import { CompletionBuffer } from './completion-buffer.js';
import { type BackgroundFabric, PeerProcessState } from './fabric.js';
import type { LogPermissions } from './permissions.js';
import { fabricStatus } from './verbs-replication-fabric.js';

/** One status READ, one mailbox WRITE and one recall per peer at a time, and some air. */
const OPERATIONS_MAX = 4;
const SERIAL_UNIT = 16;
const WAKES_POLLED_MAX = 64;
/** Wakes left alone during an election, of the PROBE_WAKES_MAX that a link has room for. */
const WAKES_DEFERRED_MAX = 4;
/** What a device's host says of a process, in the words of the core, which knows no verbs. */
const PROCESS_STATES: Readonly<Record<ProcessState, PeerProcessState>> = {
  [ProcessState.UNKNOWN]: PeerProcessState.unknown,
  [ProcessState.RUNNING]: PeerProcessState.running,
  [ProcessState.STOPPED]: PeerProcessState.stopped,
};

export interface ProbeTarget {
  readonly queuePair: QueuePair;
  readonly statusAddress: number;
  readonly statusKey: number;
  readonly mailboxAddress: number;
  readonly mailboxKey: number;
  /** The process at the other end, where the host can tell whether it lives. */
  readonly process: PeerProcess | null;
  /** By what the replicas know it: a new one with each start. */
  readonly processId: number;
}

/** A class, not a copy with one more field: each copy would have a shape of its own. */
class OutgoingProbe {
  readonly statusAddress: number;
  readonly statusKey: number;
  readonly mailboxAddress: number;
  readonly mailboxKey: number;

  constructor(
    { statusAddress, statusKey, mailboxAddress, mailboxKey }: ProbeTarget,
    /** Of the link's requests: serial number and peer. */
    readonly wrId: number,
  ) {
    this.statusAddress = statusAddress;
    this.statusKey = statusKey;
    this.mailboxAddress = mailboxAddress;
    this.mailboxKey = mailboxKey;
  }
}

export interface BackgroundMemories {
  readonly status: Memory;
  readonly mailbox: Memory;
  readonly log: Memory;
  /** STATUS_BYTES per peer for what READs bring, then MAILBOX_SLOT_BYTES per peer for what is written. */
  readonly probe: Memory;
  readonly probeKey: number;
}

/** Size of BackgroundMemories.probe. */
export const PROBE_MEMORY_BYTES = MAX_REPLICAS * (STATUS_BYTES + MAILBOX_SLOT_BYTES);

export interface BackgroundWaiting {
  readonly waiter: Waiter;
  readonly wakeQueue: CompletionQueue;
  readonly wakeChannel: CompletionChannel | null;
}

export class VerbsBackgroundFabric implements BackgroundFabric {
  readonly statusWords: Uint32Array;
  readonly mailboxWords: Uint32Array;
  readonly logWords: Uint32Array;
  readonly probeWords: Uint32Array;
  readonly outboxWords: Uint32Array;
  readonly completionPeer: Int32Array;
  readonly completionToken: Float64Array;
  readonly completionStatus: Int32Array;
  private readonly book = new CompletionBuffer(OPERATIONS_MAX, MAX_REPLICAS * OPERATIONS_MAX * 2);
  private readonly list: PostList;
  private readonly workRequests: Float64Array;
  private readonly completions: Float64Array;
  private readonly peers: (OutgoingProbe | null)[] = new Array(MAX_REPLICAS).fill(null);
  private readonly queuePairs: (QueuePair | null)[] = new Array(MAX_REPLICAS).fill(null);
  /** Responders of the peers' probe links, where their wakes arrive. */
  private readonly incoming: (QueuePair | null)[] = new Array(MAX_REPLICAS).fill(null);
  private readonly processes: (PeerProcess | null)[] = new Array(MAX_REPLICAS).fill(null);
  private readonly processIds = new Float64Array(MAX_REPLICAS);
  private exited = 0;
  private brokenProbes = 0;
  private wakes = 0;
  private readonly outgoingLogGenerations = new Float64Array(MAX_REPLICAS);
  private linkSerial = 0;
  private queued = 0;
  private delivered = false;
  private readonly probeAddress: number;
  private readonly probeKey: number;

  constructor(
    completionQueue: CompletionQueue,
    private readonly fence: Fence,
    private readonly permissions: LogPermissions,
    memories: BackgroundMemories,
    /** What this plane's thread sleeps on, and where the peers' wakes arrive; none for one that is only ever ticked. */
    private readonly waiting: BackgroundWaiting | null,
  ) {
    this.statusWords = new Uint32Array(memories.status.buffer);
    this.mailboxWords = new Uint32Array(memories.mailbox.buffer);
    this.logWords = new Uint32Array(memories.log.buffer);
    this.probeWords = new Uint32Array(memories.probe.buffer, 0, (MAX_REPLICAS * STATUS_BYTES) / 4);
    this.outboxWords = new Uint32Array(
      memories.probe.buffer,
      MAX_REPLICAS * STATUS_BYTES,
      (MAX_REPLICAS * MAILBOX_SLOT_BYTES) / 4,
    );
    this.probeAddress = memories.probe.address;
    this.probeKey = memories.probeKey;
    this.completionPeer = this.book.completionPeer;
    this.completionToken = this.book.completionToken;
    this.completionStatus = this.book.completionStatus;
    const entries = MAX_REPLICAS * OPERATIONS_MAX;
    this.list = new PostList(completionQueue, { maxWorkRequests: entries, maxCompletions: entries * 2 });
    this.workRequests = this.list.workRequests;
    this.completions = this.list.completions;
  }

  /** Puts a fresh probe link in place; null when there is none any more. */
  setProbe(peer: number, target: ProbeTarget | null): void {
    if (this.delivered) {
      this.book.count = 0;
      this.delivered = false;
    }
    this.book.failAll(peer);
    this.list.bindQueuePair(peer, target?.queuePair ?? null);
    this.queuePairs[peer]?.close();
    this.queuePairs[peer] = target?.queuePair ?? null;
    this.waiting?.waiter.watchPeer(peer, target?.process ?? null);
    // It was shared between threads, and stays open, with descriptors of the peer, until somebody closes it.
    this.processes[peer]?.close();
    this.processes[peer] = target?.process ?? null;
    this.processIds[peer] = target?.processId ?? 0;
    this.exited &= ~(1 << peer);
    this.brokenProbes &= ~(1 << peer);
    this.peers[peer] = target === null ? null : new OutgoingProbe(target, ++this.linkSerial * SERIAL_UNIT + peer);
  }

  /** Notes which log link this replica has to the peer. */
  setOutgoingLogGeneration(peer: number, generation: number): void {
    this.outgoingLogGenerations[peer] = generation;
  }

  probeConnected(peer: number): boolean {
    return this.peers[peer] !== null;
  }

  queueStatusRead(peer: number, lengthBytes: number, token: number): void {
    const link = this.peers[peer] as OutgoingProbe;
    const offset = peer * STATUS_BYTES;
    this.queue(link, WrOpcode.RDMA_READ, peer, offset, link.statusAddress, link.statusKey, lengthBytes, token);
  }

  queueMailboxWrite(peer: number, token: number, wake: boolean): void {
    const link = this.peers[peer] as OutgoingProbe;
    const offset = MAX_REPLICAS * STATUS_BYTES + peer * MAILBOX_SLOT_BYTES;
    const { mailboxAddress, mailboxKey } = link;
    // The immediate is not looked at: its arrival is what wakes.
    const opcode = wake ? WrOpcode.RDMA_WRITE_WITH_IMM : WrOpcode.RDMA_WRITE;
    this.queue(link, opcode, peer, offset, mailboxAddress, mailboxKey, MAILBOX_MESSAGE_BYTES, token);
  }

  queueRecallWrite(peer: number, token: number): void {
    const link = this.peers[peer] as OutgoingProbe;
    const offset = MAX_REPLICAS * STATUS_BYTES + peer * MAILBOX_SLOT_BYTES + MAILBOX_MESSAGE_BYTES;
    const address = link.mailboxAddress + MAILBOX_MESSAGE_BYTES;
    this.queue(link, WrOpcode.RDMA_WRITE, peer, offset, address, link.mailboxKey, MAILBOX_RECALL_BYTES, token);
  }

  /** Puts the responder of a peer's fresh probe link in place. */
  setIncomingProbe(peer: number, queuePair: QueuePair): void {
    this.incoming[peer]?.close();
    this.incoming[peer] = queuePair;
  }

  /**
   * Sleeps until there may be something to do; true if the main thread has sent something. `isUrgent`: what can wait is
   * not done before, because what comes next is an election's.
   */
  wait(timeout_ns: number, isUrgent: boolean): boolean {
    const { waiting } = this;
    if (waiting === null) throw new Error('a background fabric without a waiter cannot wait');
    if (this.wakes > (isUrgent ? WAKES_DEFERRED_MAX : 0)) this.takeWakes(waiting.wakeQueue);
    const reasons = waiting.waiter.wait(timeout_ns);
    // Taken before a later wait: first comes what they woke for.
    if ((reasons & WaitReason.COMPLETION) !== 0) this.wakes++;
    if ((reasons & WaitReason.PEER_DIED) !== 0) {
      for (let peer = 0; peer < MAX_REPLICAS; peer++) {
        if (this.processes[peer]?.alive === false) this.noteExit(peer);
      }
    }
    return (reasons & WaitReason.WOKEN) !== 0;
  }

  /** Makes room for as many wakes as came. */
  private takeWakes(wakeQueue: CompletionQueue): void {
    this.wakes = 0;
    for (let wakes = wakeQueue.poll(WAKES_POLLED_MAX); wakes.length > 0; wakes = wakeQueue.poll(WAKES_POLLED_MAX)) {
      for (const { qpNum, status } of wakes) {
        if (status !== WcStatus.SUCCESS) continue; // a responder that ended
        this.incoming.find((queuePair) => queuePair?.number === qpNum)?.postReceive([{ wrId: 0 }]);
      }
    }
  }

  /** The peer's process has ended; it counts as gone until there is a fresh link to it. */
  noteExit(peer: number): void {
    this.exited |= 1 << peer;
  }

  /** Peers whose probe link failed since the last call, as bits: fresh ones are to be made when there is time. */
  takeBrokenProbes(): number {
    const broken = this.brokenProbes;
    this.brokenProbes = 0;
    return broken;
  }

  exitedMask(): number {
    return this.exited;
  }

  exitedProcess(peer: number): number {
    return this.processIds[peer] as number;
  }

  processState(peer: number): PeerProcessState {
    return PROCESS_STATES[this.processes[peer]?.state ?? ProcessState.UNKNOWN];
  }

  private queue(
    link: OutgoingProbe,
    opcode: number,
    peer: number,
    localOffset: number,
    remoteAddress: number,
    rkey: number,
    lengthBytes: number,
    token: number,
  ): void {
    this.book.posted(peer, token);
    const requests = this.workRequests;
    const at = this.queued++ * WR_STRIDE;
    requests[at + WR.op] = opcode;
    requests[at + WR.slot] = peer;
    requests[at + WR.wrId] = link.wrId;
    requests[at + WR.localAddress] = this.probeAddress + localOffset;
    requests[at + WR.length] = lengthBytes;
    requests[at + WR.lkey] = this.probeKey;
    requests[at + WR.remoteAddress] = remoteAddress;
    requests[at + WR.rkey] = rkey;
    requests[at + WR.sendFlags] = 0;
  }

  submit(spin_ns: number, wanted: number): number {
    const { book, completions, peers } = this;
    if (this.delivered) book.count = 0;
    const queued = this.queued;
    this.queued = 0;
    const count = this.list.submit(queued, wanted > 0 ? spin_ns : 0, wanted);
    for (let index = 0; index < count; index++) {
      const at = index * WC_STRIDE;
      const wrId = completions[at + WC.wrId] as number;
      const status = completions[at + WC.status] as number;
      const peer = wrId & (SERIAL_UNIT - 1);
      const link = peers[peer];
      if (!link || link.wrId !== wrId) continue; // of a link given up; its operations have failed
      if (status === WcStatus.SUCCESS) {
        book.completed(peer, fabricStatus(status));
        continue;
      }
      peers[peer] = null;
      book.completed(peer, fabricStatus(status));
      book.failAll(peer);
      this.brokenProbes |= 1 << peer;
    }
    this.delivered = true;
    return book.count;
  }

  raiseFence(epoch: number): void {
    this.fence.raise(epoch);
  }

  revokeLogWriter(peer: number): void {
    this.permissions.revoke(peer);
  }

  enableLogWriter(peer: number): number {
    return this.permissions.enable(peer);
  }

  logWriter(): number {
    return this.permissions.writer;
  }

  incomingLogGeneration(peer: number): number {
    return this.permissions.generation(peer);
  }

  outgoingLogGeneration(peer: number): number {
    return this.outgoingLogGenerations[peer] as number;
  }

  close(): void {
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      this.setProbe(peer, null);
      this.incoming[peer]?.close();
    }
    this.list.close();
  }
}
