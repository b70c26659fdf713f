// Messages between replicas on verbs: for each peer a region of memory that this peer alone may write, an image of what
// is written at the peer, and a queue pair in each direction, all in a protection domain of their own: a message link
// reaches neither log nor status. What stands in the regions, and when it is written, is the business of MessagePort.
//
// Lives in the main thread, which a completion channel wakes when a peer's WRITE with immediate has come.
import { randomInt } from 'node:crypto';
import {
  MAX_REPLICAS,
  MESSAGE_REGION_BYTES,
  MESSAGE_WAKES_MAX,
  MESSAGE_WRITE_BYTES_MAX,
  MESSAGE_WRITES_MAX,
} from '../consensus/limits.js';
import { MessagePort, type OutgoingMessage } from '../consensus/message-port.js';
import { QuorateError } from '../errors.js';
import {
  Access,
  type CompletionChannel,
  type CompletionQueue,
  type Memory,
  type MemoryRegion,
  PostList,
  type ProtectionDomain,
  QpState,
  type QueuePair,
  WC,
  WC_STRIDE,
  WcStatus,
  WR,
  WR_STRIDE,
  WrOpcode,
} from '../verbs/objects.js';
import type { LinkReply, LinkRequest } from './link-parameters.js';
import type { PendingLink, VerbsEndpoint } from './verbs-endpoint.js';

/** wrId of a link's requests: serial number of the link, peer (4 bits), whether it is the last part of a WRITE. */
const SERIAL_UNIT = 32;
const RECEIVES_POLLED_MAX = 64;
const NOTHING = { address: 0, rkey: 0 } as const;
const RESOLVED = Promise.resolve();

export interface MessageFabricHost {
  onMessage(peer: number, message: Uint8Array): void;
  /** The stream to the peer has ended: what became of the messages that were written nobody will tell. */
  onStreamEnded(peer: number): void;
  /** The link on which this replica writes has failed; a fresh one is wanted. */
  onBroken(peer: number): void;
  /** The peer sends what cannot be. */
  onFault(error: QuorateError): void;
}

interface Outgoing {
  readonly queuePair: QueuePair;
  readonly address: number;
  readonly rkey: number;
  readonly wrId: number;
}

/** What there is for one peer. */
class PeerMessages {
  outgoing: Outgoing | null = null;
  incoming: QueuePair | null = null;
  /** Counts links accepted, so that an earlier one that takes longer is dropped. */
  accepted = 0;
  isFaultTold = false;

  constructor(
    readonly port: MessagePort,
    readonly incomingRegion: MemoryRegion,
    readonly outgoingMemory: Memory,
    readonly outgoingRegion: MemoryRegion,
  ) {}
}

function newStream(): number {
  return randomInt(1, 2 ** 48 - 1);
}

export class MessageFabric {
  private readonly domain: ProtectionDomain;
  private readonly channel: CompletionChannel;
  private readonly sendQueue: CompletionQueue;
  private readonly receiveQueue: CompletionQueue;
  private readonly list: PostList;
  private readonly peers: (PeerMessages | null)[] = new Array(MAX_REPLICAS).fill(null);
  private readonly partsMax: number;
  private queued = 0;
  /** Work requests that have not completed, on links that work. */
  private readonly outstanding = new Int32Array(MAX_REPLICAS);
  private linkSerial = 0;
  private isFlushScheduled = false;
  private isArmed = false;
  private isClosed = false;

  constructor(
    private readonly endpoint: VerbsEndpoint,
    private readonly host: MessageFabricHost,
  ) {
    const { context } = endpoint;
    this.partsMax = Math.ceil(MESSAGE_WRITE_BYTES_MAX / endpoint.transferBytesMax);
    const requestsMax = MAX_REPLICAS * this.sendRequestsMax;
    const { maxCqe } = context.queryDevice();
    this.domain = context.allocateProtectionDomain();
    this.channel = context.createCompletionChannel();
    this.sendQueue = context.createCompletionQueue(Math.min(maxCqe, requestsMax), this.channel);
    // Links that are being replaced have two responders for a while.
    this.receiveQueue = context.createCompletionQueue(
      Math.min(maxCqe, MAX_REPLICAS * MESSAGE_WAKES_MAX * 4),
      this.channel,
    );
    this.list = new PostList(this.sendQueue, { maxWorkRequests: requestsMax, maxCompletions: requestsMax });
    this.channel.onEvent((queue) => {
      if (queue === this.receiveQueue) this.takeWakes();
      else this.isArmed = false;
      this.turn();
    });
    this.receiveQueue.requestNotify(false);
  }

  private get sendRequestsMax(): number {
    return this.partsMax * MESSAGE_WRITES_MAX;
  }

  /** Where messages of one peer are; made with the first link. Throws QUORATE_MEMLOCK, QUORATE_SYSTEM. */
  private peer(id: number): PeerMessages {
    const known = this.peers[id];
    if (known) return known;
    const { context } = this.endpoint;
    const lengthBytes = MESSAGE_REGION_BYTES;
    const made: { close(): void }[] = [];
    try {
      const incoming = context.allocateMemory({ lengthBytes });
      made.unshift(incoming);
      const outgoing = context.allocateMemory({ lengthBytes });
      made.unshift(outgoing);
      const remoteWrite = Access.LOCAL_WRITE | Access.REMOTE_WRITE;
      const incomingRegion = this.domain.registerMemory(incoming, 0, lengthBytes, remoteWrite);
      made.unshift(incomingRegion);
      const outgoingRegion = this.domain.registerMemory(outgoing, 0, lengthBytes, Access.LOCAL_WRITE);
      const port = this.makePort(id, incoming, outgoing);
      const peer = new PeerMessages(port, incomingRegion, outgoing, outgoingRegion);
      this.peers[id] = peer;
      return peer;
    } catch (error) {
      for (const object of made) object.close();
      throw error;
    }
  }

  private makePort(id: number, incoming: Memory, outgoing: Memory): MessagePort {
    return new MessagePort(
      {
        incoming: new Uint8Array(incoming.buffer),
        outgoing: new Uint8Array(outgoing.buffer),
        write: (offset, length, wake) => this.queue(id, offset, length, wake),
        onMessage: (message) => this.host.onMessage(id, message),
        onStreamEnded: () => this.host.onStreamEnded(id),
      },
      newStream(),
    );
  }

  // -- messages ----------------------------------------------------------------------------------------------------

  /** There is or was a link to the peer, so messages can be sent: they wait for the next one, if there is none. */
  isKnown(id: number): boolean {
    return this.peers[id] !== null;
  }

  /**
   * Sends a message with all others of this turn; null if more than `queueBytesMax` would wait for this peer, or it is not
   * known.
   */
  send(id: number, bytes: Uint8Array, queueBytesMax?: number): OutgoingMessage | null {
    const peer = this.peers[id];
    if (this.isClosed || !peer) return null;
    const message = peer.port.send(bytes, queueBytesMax);
    if (message !== null) this.flushSoon();
    return message;
  }

  private flushSoon(): void {
    if (this.isFlushScheduled) return;
    this.isFlushScheduled = true;
    void RESOLVED.then(this.flushNow);
  }

  /** Takes a message back; false if it may arrive. */
  withdraw(id: number, message: OutgoingMessage): boolean {
    return this.peers[id]?.port.withdraw(message) ?? true;
  }

  /** Bytes that wait for room in this peer's ring. */
  queuedBytes(id: number): number {
    return this.peers[id]?.port.queuedBytes ?? 0;
  }

  private readonly flushNow = (): void => {
    this.isFlushScheduled = false;
    this.turn();
  };

  /** Posts and polls until nothing is to be posted and nothing has completed. */
  private turn(): void {
    while (!this.isClosed) {
      for (const peer of this.peers) peer?.port.flush();
      const queued = this.queued;
      if (queued === 0 && !this.hasOutstanding()) return;
      if (this.submit() > 0) continue;
      if (!this.hasOutstanding()) return;
      if (this.isArmed) return;
      this.isArmed = true;
      this.sendQueue.requestNotify(false);
      if (this.submit() === 0) return; // nothing came before it was armed
    }
  }

  private hasOutstanding(): boolean {
    for (let id = 0; id < MAX_REPLICAS; id++) if ((this.outstanding[id] as number) > 0) return true;
    return false;
  }

  private queue(id: number, offset: number, lengthBytes: number, wake: boolean): void {
    const { outgoing, outgoingMemory, outgoingRegion } = this.peers[id] as PeerMessages;
    if (outgoing === null) throw new Error(`a message is written to replica ${id}, to which there is no link`);
    const requests = this.list.workRequests;
    const { transferBytesMax } = this.endpoint;
    for (let done = 0; done < lengthBytes; ) {
      const part = Math.min(lengthBytes - done, transferBytesMax);
      const isLast = done + part === lengthBytes;
      const at = this.queued++ * WR_STRIDE;
      // The immediate is not looked at: its arrival is what wakes.
      requests[at + WR.op] = isLast && wake ? WrOpcode.RDMA_WRITE_WITH_IMM : WrOpcode.RDMA_WRITE;
      requests[at + WR.slot] = id;
      requests[at + WR.wrId] = outgoing.wrId + (isLast ? 1 : 0);
      requests[at + WR.localAddress] = outgoingMemory.address + offset + done;
      requests[at + WR.length] = part;
      requests[at + WR.lkey] = outgoingRegion.lkey;
      requests[at + WR.remoteAddress] = outgoing.address + offset + done;
      requests[at + WR.rkey] = outgoing.rkey;
      requests[at + WR.sendFlags] = 0;
      this.outstanding[id] = (this.outstanding[id] as number) + 1;
      done += part;
    }
  }

  /** One native call: posts what is queued, takes what has completed; returns how much that was. */
  private submit(): number {
    const queued = this.queued;
    this.queued = 0;
    const count = this.list.submit(queued, 0, 0);
    const { completions } = this.list;
    for (let index = 0; index < count; index++) {
      const at = index * WC_STRIDE;
      const wrId = completions[at + WC.wrId] as number;
      const id = (wrId % SERIAL_UNIT) >> 1;
      const peer = this.peers[id];
      const isLast = wrId % 2 === 1;
      if (!peer || peer.outgoing?.wrId !== wrId - (isLast ? 1 : 0)) continue; // of a link that was given up
      this.outstanding[id] = (this.outstanding[id] as number) - 1;
      if (completions[at + WC.status] !== WcStatus.SUCCESS) this.broken(id, peer);
      else if (isLast) peer.port.writeCompleted();
    }
    return count;
  }

  private broken(id: number, peer: PeerMessages): void {
    this.outstanding[id] = 0;
    peer.port.unlinked();
    if (peer.outgoing !== null) {
      peer.outgoing = null;
      this.host.onBroken(id);
    }
  }

  /** Peers have written something: takes it, and makes room for as many wakes as came. */
  private takeWakes(): void {
    this.receiveQueue.requestNotify(false);
    for (;;) {
      const wakes = this.receiveQueue.poll(RECEIVES_POLLED_MAX);
      if (wakes.length === 0) return;
      for (const { qpNum, status } of wakes) {
        if (status !== WcStatus.SUCCESS) continue; // a responder that ended
        const peer = this.peers.find((one) => one?.incoming?.number === qpNum);
        if (!peer) continue;
        peer.incoming?.postReceive([{ wrId: 0 }]);
        peer.port.woken(1);
        if (this.isClosed) return;
        if (peer.port.fault !== null && !peer.isFaultTold) {
          peer.isFaultTold = true;
          const id = this.peers.indexOf(peer);
          const text = `replica ${id} sent ${peer.port.fault}; nothing more is taken from it until it begins anew`;
          this.host.onFault(new QuorateError('QUORATE_PROTOCOL', text));
        }
      }
    }
  }

  // -- links -------------------------------------------------------------------------------------------------------

  /** Initiator: makes a queue pair and what the responder must know of it. */
  initiate(id: number, generation: number): PendingLink {
    const { port } = this.peer(id);
    const queuePair = this.createQueuePair(0);
    const request: LinkRequest = {
      kind: 'message',
      generation,
      queuePair: this.endpoint.address(queuePair),
      logBytes: this.endpoint.logMemory.length,
      stream: port.stream,
    };
    return { kind: 'message', queuePair, request };
  }

  /**
   * Initiator: the link is in use from now on. False if the peer does not know the stream that it was made for; then
   * another one has begun, and the link is to be made again.
   */
  install(id: number, { queuePair, request }: PendingLink, reply: LinkReply): boolean {
    const peer = this.peer(id);
    this.remove(id);
    if (peer.port.stream !== request.stream || !peer.port.linked(request.generation, reply.position)) {
      if (peer.port.stream === request.stream) this.restart(id);
      queuePair.close();
      return false;
    }
    peer.outgoing = {
      queuePair,
      address: reply.writable.address,
      rkey: reply.writable.rkey,
      wrId: ++this.linkSerial * SERIAL_UNIT + id * 2,
    };
    this.list.bindQueuePair(id, queuePair);
    this.queuePairs[id] = queuePair;
    // Not now: if the link fails with its first WRITE, whoever made it must know it by then.
    this.flushSoon();
    return true;
  }

  private readonly queuePairs: (QueuePair | null)[] = new Array(MAX_REPLICAS).fill(null);

  /** The link on which this replica writes is gone. */
  remove(id: number): void {
    const peer = this.peers[id];
    if (!peer || this.isClosed) return;
    peer.port.unlinked();
    peer.outgoing = null;
    this.outstanding[id] = 0;
    this.list.bindQueuePair(id, null);
    this.queuePairs[id]?.close();
    this.queuePairs[id] = null;
  }

  /** The peer is another process from now on, which knows nothing of what the one before was sent. */
  restart(id: number): void {
    this.remove(id);
    this.peers[id]?.port.begin(newStream());
  }

  /** Responder: makes and connects the other end of a peer's link, in place of the one before. */
  async accept(id: number, request: LinkRequest): Promise<LinkReply> {
    const peer = this.peer(id);
    // Before anything else: what is on its way through the one before must not land in what comes through this one.
    peer.incoming?.close();
    peer.incoming = null;
    const turn = ++peer.accepted;
    const queuePair = this.createQueuePair(Access.REMOTE_WRITE);
    try {
      queuePair.postReceive(Array.from({ length: MESSAGE_WAKES_MAX }, () => ({ wrId: 0 })));
      const own = this.endpoint.address(queuePair);
      await this.endpoint.connect(queuePair, own, request.queuePair);
      if (turn !== peer.accepted || this.isClosed) {
        throw new QuorateError('QUORATE_CLOSED', `the message link of replica ${id} was replaced while it was made`);
      }
      peer.incoming = queuePair;
      peer.isFaultTold = false;
      const position = peer.port.accepted(request.generation, request.stream);
      const { address, rkey } = peer.incomingRegion;
      return { queuePair: own, readable: NOTHING, writable: { address, rkey }, position };
    } catch (error) {
      queuePair.close();
      throw error;
    }
  }

  private createQueuePair(accessFlags: number): QueuePair {
    const queuePair = this.domain.createQueuePair({
      sendCq: this.sendQueue,
      recvCq: this.receiveQueue,
      cap: { maxSendWr: this.sendRequestsMax, maxRecvWr: MESSAGE_WAKES_MAX },
    });
    try {
      queuePair.modify({ state: QpState.INIT, pkeyIndex: 0, portNum: this.endpoint.portNum, accessFlags });
    } catch (error) {
      queuePair.close();
      throw error;
    }
    return queuePair;
  }

  /** Ends all links; the endpoint releases the rest. */
  close(): void {
    if (this.isClosed) return;
    this.channel.onEvent(null);
    for (let id = 0; id < MAX_REPLICAS; id++) {
      this.remove(id);
      this.peers[id]?.incoming?.close();
    }
    this.isClosed = true;
    this.list.close();
  }
}
