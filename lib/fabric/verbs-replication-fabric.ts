// The replication plane's fabric on verbs: log links to the peers, posted and polled through one PostList, so that
// appending an entry, writing it to all followers and collecting the completions is a single native call.
import { LSN_BYTES, MAX_REPLICAS } from '../consensus/limits.js';
import { writeU53 } from '../consensus/sealed-block.js';
import {
  type CompletionQueue,
  FENCED,
  type Fence,
  type Memory,
  OP_FENCED_COPY,
  PostList,
  type QueuePair,
  WC,
  WC_STRIDE,
  WcStatus,
  WR,
  WR_STRIDE,
  WrOpcode,
} from '../verbs/objects.js';
import { CompletionBuffer } from './completion-buffer.js';
import { FabricStatus, type ReplicationFabric } from './fabric.js';

/** Work requests that one PostList takes in one submit. */
const WORK_REQUESTS_MAX = 2048;
/** Operations outstanding to one peer; each may be several work requests. */
const OPERATIONS_MAX = 64;
/** Memory behind the plane's workspace: what queueLsnWrite() sends, one place for each operation that may be outstanding. */
export const LSN_PLACES_BYTES = MAX_REPLICAS * OPERATIONS_MAX * LSN_BYTES;
/** Slot of the fence, and of the two memories that fenced copies may touch. */
const FENCE_SLOT = 0;
const LOG_MEMORY_SLOT = 0;
const WORKSPACE_MEMORY_SLOT = 1;

// A work request's wrId says what completed: kind (2 bits), peer (4 bits), serial number of the link (the rest), so that
// late completions of a link that was given up are told from those of its successor.
const KIND_PART = 0;
const KIND_LAST = 1;
const KIND_APPEND = 2;
const SERIAL_UNIT = 64;

/** Translates a work completion's status for the core. */
export function fabricStatus(wcStatus: number): number {
  if (wcStatus === WcStatus.SUCCESS) return FabricStatus.success;
  if (wcStatus === FENCED) return FabricStatus.fenced;
  if (wcStatus === WcStatus.RETRY_EXC_ERR) return FabricStatus.unreachable;
  return FabricStatus.failed;
}

export interface LogTarget {
  readonly queuePair: QueuePair;
  readonly logAddress: number;
  readonly readKey: number;
  /** 0 where each grant names its own. */
  readonly writeKey: number;
}

/** A class, not a copy with more fields: each copy would have a shape of its own, and this is the hot path. */
class OutgoingLog {
  readonly logAddress: number;
  readonly readKey: number;
  currentWriteKey: number;

  constructor(
    { logAddress, readKey, writeKey }: LogTarget,
    /** First wrId of the link's requests: serial and peer. */
    readonly wrIdBase: number,
  ) {
    this.logAddress = logAddress;
    this.readKey = readKey;
    this.currentWriteKey = writeKey;
  }
}

export interface ReplicationMemories {
  readonly log: Memory;
  readonly logKey: number;
  readonly workspace: Memory;
  /** How much of it, from its beginning, is the plane's to use; LSN_PLACES_BYTES follow. */
  readonly workspaceBytes: number;
  readonly workspaceKey: number;
}

export class VerbsReplicationFabric implements ReplicationFabric {
  readonly logWords: Uint32Array;
  readonly logBytes: Uint8Array;
  readonly workspaceWords: Uint32Array;
  readonly workspaceBytes: Uint8Array;
  readonly completionPeer: Int32Array;
  readonly completionToken: Float64Array;
  readonly completionStatus: Int32Array;
  private readonly book = new CompletionBuffer(OPERATIONS_MAX, MAX_REPLICAS * OPERATIONS_MAX + WORK_REQUESTS_MAX);
  private readonly list: PostList;
  private readonly workRequests: Float64Array;
  private readonly completions: Float64Array;
  /** Links that work; one that broke leaves its place at once. */
  private readonly peers: (OutgoingLog | null)[] = new Array(MAX_REPLICAS).fill(null);
  private readonly queuePairs: (QueuePair | null)[] = new Array(MAX_REPLICAS).fill(null);
  private linkSerial = 0;
  /** Peers to which operations were queued without a link; they fail with the next submit. */
  private unconnectedMask = 0;
  /** The completions in the arrays were handed out and are dropped by the next submit. */
  private delivered = false;
  private queued = 0;
  private readonly lsnPlaces: Uint32Array;
  /** Operations of queueLsnWrite() to each peer so far. */
  private readonly lsnWrites = new Uint32Array(MAX_REPLICAS);
  private readonly logAddress: number;
  private readonly workspaceAddress: number;

  constructor(
    private readonly id: number,
    completionQueue: CompletionQueue,
    fence: Fence,
    private readonly memories: ReplicationMemories,
    /** Largest WRITE or READ that goes out as one work request. */
    private readonly transferBytesMax: number,
  ) {
    this.logBytes = new Uint8Array(memories.log.buffer);
    this.logWords = new Uint32Array(memories.log.buffer);
    this.workspaceBytes = new Uint8Array(memories.workspace.buffer, 0, memories.workspaceBytes);
    this.workspaceWords = new Uint32Array(memories.workspace.buffer, 0, memories.workspaceBytes / 4);
    this.lsnPlaces = new Uint32Array(memories.workspace.buffer, memories.workspaceBytes, LSN_PLACES_BYTES / 4);
    this.logAddress = memories.log.address;
    this.workspaceAddress = memories.workspace.address;
    this.completionPeer = this.book.completionPeer;
    this.completionToken = this.book.completionToken;
    this.completionStatus = this.book.completionStatus;
    this.list = new PostList(completionQueue, {
      maxWorkRequests: WORK_REQUESTS_MAX,
      maxCompletions: WORK_REQUESTS_MAX * 2,
    });
    this.workRequests = this.list.workRequests;
    this.completions = this.list.completions;
    this.list.bindFence(FENCE_SLOT, fence);
    this.list.bindMemory(LOG_MEMORY_SLOT, memories.log);
    this.list.bindMemory(WORKSPACE_MEMORY_SLOT, memories.workspace);
  }

  /** Puts a fresh link in place; null when there is none any more. What was outstanding on the old one has failed. */
  setPeer(peer: number, target: LogTarget | null): void {
    this.postQueued();
    this.dropDelivered();
    this.book.failAll(peer);
    this.list.bindQueuePair(peer, target?.queuePair ?? null);
    this.queuePairs[peer]?.close();
    this.queuePairs[peer] = target?.queuePair ?? null;
    this.peers[peer] = target === null ? null : new OutgoingLog(target, ++this.linkSerial * SERIAL_UNIT + peer * 4);
  }

  logConnected(peer: number): boolean {
    return this.peers[peer] !== null;
  }

  setLogWriteKey(peer: number, key: number): void {
    const link = this.peers[peer];
    if (link && key !== 0) link.currentWriteKey = key;
  }

  queueAppend(epoch: number, workspaceOffset: number, logOffset: number, lengthBytes: number, token: number): void {
    const at = this.nextRequest();
    const requests = this.workRequests;
    requests[at + WR.op] = OP_FENCED_COPY;
    requests[at + WR.slot] = FENCE_SLOT;
    requests[at + WR.wrId] = KIND_APPEND;
    requests[at + WR.localAddress] = this.workspaceAddress + workspaceOffset;
    requests[at + WR.length] = lengthBytes;
    requests[at + WR.remoteAddress] = this.logAddress + logOffset;
    requests[at + WR.epoch] = epoch;
    this.book.posted(this.id, token);
  }

  queueWrite(peer: number, logOffset: number, lengthBytes: number, token: number): void {
    const link = this.peers[peer];
    this.queueTransfer(
      WrOpcode.RDMA_WRITE,
      peer,
      this.logAddress + logOffset,
      this.memories.logKey,
      link ? link.logAddress + logOffset : 0,
      link ? link.currentWriteKey : 0,
      lengthBytes,
      token,
    );
  }

  queueLsnWrite(peer: number, logOffset: number, lsn: number, token: number): void {
    const link = this.peers[peer];
    // The device may fetch the bytes at any time until the operation completes. No more than OPERATIONS_MAX are
    // outstanding to a peer and they complete in order, so the one that had this place before is over.
    const turn = (this.lsnWrites[peer] as number) % OPERATIONS_MAX;
    this.lsnWrites[peer] = turn + 1;
    const place = peer * OPERATIONS_MAX + turn;
    writeU53(this.lsnPlaces, (place * LSN_BYTES) / 4, lsn);
    this.queueTransfer(
      WrOpcode.RDMA_WRITE,
      peer,
      this.workspaceAddress + this.memories.workspaceBytes + place * LSN_BYTES,
      this.memories.workspaceKey,
      link ? link.logAddress + logOffset : 0,
      link ? link.currentWriteKey : 0,
      LSN_BYTES,
      token,
    );
  }

  queueRead(peer: number, logOffset: number, lengthBytes: number, workspaceOffset: number, token: number): void {
    const link = this.peers[peer];
    this.queueTransfer(
      WrOpcode.RDMA_READ,
      peer,
      this.workspaceAddress + workspaceOffset,
      this.memories.workspaceKey,
      link ? link.logAddress + logOffset : 0,
      link ? link.readKey : 0,
      lengthBytes,
      token,
    );
  }

  private queueTransfer(
    opcode: number,
    peer: number,
    localAddress: number,
    lkey: number,
    remoteAddress: number,
    rkey: number,
    lengthBytes: number,
    token: number,
  ): void {
    this.book.posted(peer, token);
    const link = this.peers[peer];
    if (!link) {
      this.unconnectedMask |= 1 << peer;
      return;
    }
    const { workRequests: requests, transferBytesMax } = this;
    for (let done = 0; done < lengthBytes; ) {
      const part = Math.min(lengthBytes - done, transferBytesMax);
      const at = this.nextRequest();
      requests[at + WR.op] = opcode;
      requests[at + WR.slot] = peer;
      requests[at + WR.localAddress] = localAddress + done;
      requests[at + WR.length] = part;
      requests[at + WR.lkey] = lkey;
      requests[at + WR.remoteAddress] = remoteAddress + done;
      requests[at + WR.rkey] = rkey;
      requests[at + WR.sendFlags] = 0;
      done += part;
      requests[at + WR.wrId] = link.wrIdBase + (done === lengthBytes ? KIND_LAST : KIND_PART);
    }
  }

  private nextRequest(): number {
    if (this.queued === WORK_REQUESTS_MAX) this.postQueued();
    return this.queued++ * WR_STRIDE;
  }

  private postQueued(): void {
    if (this.queued === 0) return;
    const count = this.queued;
    this.queued = 0;
    this.dropDelivered();
    this.take(this.list.submit(count, 0, 0));
  }

  private dropDelivered(): void {
    if (!this.delivered) return;
    this.book.count = 0;
    this.delivered = false;
  }

  submit(spin_ns: number, wanted: number): number {
    const { book } = this;
    this.dropDelivered();
    const count = this.queued;
    this.queued = 0;
    // Appends complete within their submit, so they do not count towards the completions that are waited for.
    const stillWanted = wanted - book.count;
    const waitFor = stillWanted > 0 ? stillWanted + book.outstanding(this.id) : 0;
    this.take(this.list.submit(count, waitFor > 0 ? spin_ns : 0, waitFor));
    if (this.unconnectedMask !== 0) {
      for (let peer = 0; peer < MAX_REPLICAS; peer++) {
        if ((this.unconnectedMask & (1 << peer)) !== 0 && this.peers[peer] === null) book.failAll(peer);
      }
      this.unconnectedMask = 0;
    }
    this.delivered = true;
    return book.count;
  }

  private take(count: number): void {
    const { completions, book, peers } = this;
    for (let index = 0; index < count; index++) {
      const at = index * WC_STRIDE;
      const status = completions[at + WC.status] as number;
      const wrId = completions[at + WC.wrId] as number;
      if (wrId === KIND_APPEND) {
        book.completed(this.id, fabricStatus(status));
        continue;
      }
      const peer = (wrId >>> 2) & (MAX_REPLICAS - 1);
      const link = peers[peer];
      if (!link || link.wrIdBase !== wrId - (wrId & 3)) continue; // of a link given up; its operations have failed
      if (status === WcStatus.SUCCESS || status === FENCED) {
        if ((wrId & 3) === KIND_LAST) book.completed(peer, fabricStatus(status));
        continue;
      }
      // A link that failed once takes nothing any more, and all that is outstanding on it fails with it.
      peers[peer] = null;
      book.completed(peer, fabricStatus(status));
      book.failAll(peer);
    }
  }

  close(): void {
    for (let peer = 0; peer < MAX_REPLICAS; peer++) this.setPeer(peer, null);
    this.list.close();
  }
}
