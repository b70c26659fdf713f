// Messages between simulated replicas: the ports of one life, their memory, and the links over which they write. Link by
// link it does what MessageFabric does on verbs; here WRITEs are torn, late, and land after their link was given up.
import { MESSAGE_REGION_BYTES } from '../../consensus/limits.js';
import { MessagePort, type OutgoingMessage } from '../../consensus/message-port.js';
import { FabricStatus } from '../fabric.js';
import type { SimLink } from './sim-link.js';
import type { SimNode } from './sim-node.js';

/** Bytes in front of each message: how many messages this life has sent to the peer's before, for whoever checks. */
const COUNT_BYTES = 8;

export interface SimMessageHost {
  onMessage(peer: number, message: Uint8Array): void;
  /** What was written may have been taken by the peer, or not; nobody will tell. */
  onStreamEnded(peer: number): void;
  onBroken(peer: number): void;
}

class PeerMessages {
  outgoing: SimLink | null = null;
  incoming: SimLink | null = null;
  /** Wakes that came and were not noticed yet. */
  wakes = 0;
  sent = 0;

  constructor(
    readonly port: MessagePort,
    readonly incomingBytes: Uint8Array,
  ) {}
}

export class SimMessageFabric {
  private readonly peers = new Map<number, PeerMessages>();

  constructor(
    private readonly node: SimNode,
    private readonly host: SimMessageHost,
  ) {}

  private peer(id: number): PeerMessages {
    const known = this.peers.get(id);
    if (known !== undefined) return known;
    const incoming = new Uint8Array(MESSAGE_REGION_BYTES);
    const outgoing = new Uint8Array(MESSAGE_REGION_BYTES);
    const port = new MessagePort(
      {
        incoming,
        outgoing,
        write: (offset, lengthBytes, wake) => {
          const { outgoing: link } = this.peer(id);
          if (link === null) throw new Error(`replica ${this.node.id} writes a message without a link`);
          const remote = link.remoteMessages;
          link.postWrite(0, outgoing, offset, remote, offset, lengthBytes, 0, wake);
        },
        onMessage: (bytes) => this.take(id, bytes),
        onStreamEnded: () => this.host.onStreamEnded(id),
      },
      this.newStream(),
    );
    const made = new PeerMessages(port, incoming);
    this.peers.set(id, made);
    return made;
  }

  private newStream(): number {
    return 1 + this.node.world.random.integer(2 ** 31);
  }

  send(id: number, message: Uint8Array): OutgoingMessage | null {
    const peer = this.peer(id);
    const bytes = new Uint8Array(COUNT_BYTES + message.length);
    new DataView(bytes.buffer).setFloat64(0, peer.sent, true);
    bytes.set(message, COUNT_BYTES);
    const sent = peer.port.send(bytes);
    if (sent !== null) peer.sent++;
    return sent;
  }

  withdraw(id: number, message: OutgoingMessage): boolean {
    return this.peer(id).port.withdraw(message);
  }

  private take(id: number, bytes: Uint8Array): void {
    const count = new DataView(bytes.buffer, bytes.byteOffset, bytes.length).getFloat64(0, true);
    const from = this.peer(id).incoming?.initiator;
    if (from !== undefined) this.node.observer.onMessageTaken?.(this.node, from, count);
    this.host.onMessage(id, bytes.subarray(COUNT_BYTES));
  }

  /** Main plane: takes what has come and completed, posts what there is. */
  turn(): void {
    const { now_ns } = this.node.world;
    for (const [id, peer] of this.peers) {
      const { wakes, port } = peer;
      peer.wakes = 0;
      if (wakes > 0) port.woken(wakes);
      this.complete(id, peer, now_ns);
      port.flush();
      if (peer.outgoing !== null) this.node.preempt('main');
    }
  }

  private complete(id: number, peer: PeerMessages, now_ns: number): void {
    for (;;) {
      const completed = peer.outgoing?.takeCompleted(now_ns) ?? null;
      if (completed === null) return;
      if (completed.status === FabricStatus.success) {
        peer.port.writeCompleted();
        continue;
      }
      this.close(peer);
      this.host.onBroken(id);
      return;
    }
  }

  private close(peer: PeerMessages): void {
    const link = peer.outgoing;
    peer.outgoing = null;
    peer.port.unlinked();
    link?.closeInitiator(() => {});
  }

  // -- links -------------------------------------------------------------------------------------------------------

  linkTo(id: number): SimLink | null {
    return this.peers.get(id)?.outgoing ?? null;
  }

  /** The stream for which a link to the peer is asked for. */
  streamTo(id: number): number {
    return this.peer(id).port.stream;
  }

  /** Responder: the peer's fresh link, in place of the one before; returns up to where its stream was taken. */
  accept(id: number, link: SimLink, stream: number): number | null {
    const peer = this.peer(id);
    this.closeIncoming(peer);
    peer.incoming = link;
    peer.wakes = 0;
    link.remoteMessages = peer.incomingBytes;
    link.onLanded = () => {
      if (peer.incoming !== link) return;
      peer.wakes++;
      this.node.wakeMain(this.node.world.now_ns);
    };
    return peer.port.accepted(link.generation, stream);
  }

  /** Nothing of the link before lands any more. */
  private closeIncoming(peer: PeerMessages): void {
    peer.incoming?.closeResponder();
  }

  /** Initiator: false if the link is to be made again, since the peer does not know the stream. */
  install(id: number, link: SimLink, stream: number, position: number | null): boolean {
    const peer = this.peer(id);
    this.close(peer);
    if (peer.port.stream !== stream || !peer.port.linked(link.generation, position)) {
      if (peer.port.stream === stream) this.restart(id);
      link.closeInitiator(() => {});
      return false;
    }
    peer.outgoing = link;
    this.node.wakeMain(this.node.world.now_ns);
    return true;
  }

  remove(id: number): void {
    const peer = this.peers.get(id);
    if (peer !== undefined) this.close(peer);
  }

  /** The peer is in another life, which knows nothing of what the one before was sent. */
  restart(id: number): void {
    const peer = this.peers.get(id);
    if (peer === undefined) return;
    this.close(peer);
    peer.port.begin(this.newStream());
  }
}
