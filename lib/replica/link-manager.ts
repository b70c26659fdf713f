// Keeps the links to all peers in place. For every member that the control channel reaches there is one probe link, one
// log link and one message link; a link that failed is replaced by one with fresh queue pairs, and a peer that comes back
// in a new life gets all new links. Answers the peers' requests for the responder's ends of their links.
import { randomInt } from 'node:crypto';
import { QuorateError } from '../errors.js';
import { checkLinkReply, checkLinkRequest, type LinkKind, type LinkReply } from '../fabric/link-parameters.js';
import type { MessageFabric } from '../fabric/message-fabric.js';
import type { PendingLink, VerbsEndpoint } from '../fabric/verbs-endpoint.js';
import type { VerbsReplicationFabric } from '../fabric/verbs-replication-fabric.js';
import type { BackgroundThread } from './background-thread.js';
import { type ControlConnection, WarningLimit } from './control-channel.js';

const REQUEST_TIMEOUT_MS = 10_000;
/** Generations are 32 bits; half of them is more than a process ever makes. */
const GENERATION_BEGIN_MAX = 2 ** 31;
const RETRY_DELAY_MIN_MS = 10;
const RETRY_DELAY_MAX_MS = 500;
/**
 * When a peer dies, its links break before its control connection ends. Taking them down and making new ones, which
 * would be in vain, must not keep this thread from the takeover.
 */
const RELINK_DELAY_MS = 25;

export interface LinkManagerOptions {
  /** Cluster that this replica is part of: it links with replicas of no other one. */
  readonly clusterId: number;
  readonly endpoint: VerbsEndpoint;
  readonly fabric: VerbsReplicationFabric;
  readonly messages: MessageFabric;
  readonly background: BackgroundThread;
  /** A log link leads to the peer's life `bootId`, in its process `processId`; called before anything is posted on it. */
  readonly onLogLinked: (peer: number, bootId: number, processId: number) => void;
  /** Log link gone. */
  readonly onLogUnlinked: (peer: number) => void;
  /** Tells the peer, if it can be reached now, that its log link of this generation is dead at this end. */
  readonly tellLogDead: (peer: number, generation: number) => void;
  /** The peer takes this replica for no member. */
  readonly onRefused: (peer: number) => void;
  readonly onWarning: (error: Error) => void;
}

class PeerLinks {
  connection: ControlConnection | undefined;
  /** Life that the links lead to. */
  bootId = 0;
  /** Process of that life. */
  processId = 0;
  /** Process that the stream of messages goes to, also while there is no link. */
  messagesTo = 0;
  /** Counts links that the peer asked for, so that an earlier one that takes longer is dropped. */
  readonly asked = { probe: 0, log: 0 };
  /** Generation of the log link that the peer made last. */
  acceptedLog = 0;
  /** Whether the own end of that one is dead, which the peer may not have heard. */
  isAcceptedLogDead = false;
  readonly generation = { probe: 0, log: 0, message: 0 };
  readonly live = { probe: false, log: false, message: false };
  readonly making = { probe: false, log: false, message: false };
  /** What the last attempt failed by does not pass by itself. */
  readonly isFaulty = { probe: false, log: false, message: false };
  /** What keeps links from being made, a wrong option at the peer, does so at each retry. */
  readonly warnings = new WarningLimit();
  /** What makes those that could not be made another time. */
  readonly retries: { [Kind in LinkKind]?: NodeJS.Timeout | undefined } = {};
  readonly retryDelayMs = { probe: RETRY_DELAY_MIN_MS, log: RETRY_DELAY_MIN_MS, message: RETRY_DELAY_MIN_MS };
}

const KINDS = ['probe', 'log', 'message'] as const;

export class LinkManager {
  private readonly peers = new Map<number, PeerLinks>();
  private readonly timers = new Set<NodeJS.Timeout>();
  /** Not the same as in an earlier process of this life, whose requests may still stand in the peers' mailboxes. */
  private nextGeneration = randomInt(1, GENERATION_BEGIN_MAX);
  private closed = false;

  constructor(private readonly options: LinkManagerOptions) {}

  private peer(id: number): PeerLinks {
    let links = this.peers.get(id);
    if (links === undefined) {
      links = new PeerLinks();
      this.peers.set(id, links);
    }
    return links;
  }

  /** Whether the links to the peer that consensus needs are in place. */
  linked(id: number): boolean {
    const links = this.peers.get(id);
    if (links === undefined) return false;
    return links.live.probe && links.live.log;
  }

  /** Whether there is a link for messages to this process of the peer. */
  messagesReach(id: number, processId: number): boolean {
    const links = this.peers.get(id);
    return links?.live.message === true && links.processId === processId;
  }

  /** Life of the peer that the links lead to, 0 if none. */
  bootId(id: number): number {
    return this.peers.get(id)?.bootId ?? 0;
  }

  /** The control channel reaches the peer. */
  connected(id: number, connection: ControlConnection): void {
    const links = this.peer(id);
    links.connection = connection;
    const { bootId, processId } = connection.peer;
    if (links.processId !== processId) {
      links.bootId = bootId;
      links.processId = processId;
      for (const kind of KINDS) this.drop(id, kind);
      if (links.messagesTo !== processId) this.options.messages.restart(id);
      links.messagesTo = processId;
    }
    for (const kind of KINDS) this.ensure(id, kind);
    if (links.isAcceptedLogDead) this.options.tellLogDead(id, links.acceptedLog);
  }

  /** The control channel to the peer is down. Links that work stay: only memory tells whether the peer lives. */
  disconnected(id: number): void {
    this.peer(id).connection = undefined;
    this.options.background.send({ type: 'disconnected', peer: id });
  }

  /** The peer is no member any more: its links end, and none is made until it is connected again. */
  forget(id: number): void {
    const links = this.peer(id);
    links.connection = undefined;
    for (const kind of KINDS) this.drop(id, kind);
    links.bootId = 0;
    links.processId = 0;
    links.isAcceptedLogDead = false;
  }

  /** A link was found broken: replaces it in a moment. Meanwhile nothing goes over it; the fabric has seen to that. */
  broken(id: number, kind: LinkKind): void {
    const generation = this.peer(id).generation[kind];
    this.later(RELINK_DELAY_MS, () => {
      if (this.peer(id).generation[kind] === generation) this.replace(id, kind);
    });
  }

  private replace(id: number, kind: LinkKind): void {
    this.drop(id, kind);
    this.ensure(id, kind);
  }

  /**
   * This end of the peer's log link is dead: the peer hears of it now, and when there is a connection to it again. By itself
   * it would never notice: it writes nothing before it is granted, and is granted nothing over a dead link.
   */
  incomingLogDead(id: number, generation: number): void {
    const links = this.peer(id);
    if (links.acceptedLog !== generation) return; // it has made a fresh one
    links.isAcceptedLogDead = true;
    this.options.tellLogDead(id, generation);
  }

  /** The peer says that its end of our log link is dead. */
  logDeadAtPeer(id: number, generation: unknown): void {
    const links = this.peer(id);
    if (links.live.log && links.generation.log === generation) this.replace(id, 'log');
  }

  private drop(id: number, kind: LinkKind): void {
    const { fabric, background, onLogUnlinked } = this.options;
    const links = this.peer(id);
    if (!links.live[kind]) return;
    links.live[kind] = false;
    if (kind === 'probe') {
      background.send({ type: 'probe', peer: id, link: null });
    } else if (kind === 'message') {
      this.options.messages.remove(id);
    } else {
      background.send({ type: 'outgoingLog', peer: id, generation: 0 });
      fabric.setPeer(id, null);
      onLogUnlinked(id);
    }
  }

  private ensure(id: number, kind: LinkKind): void {
    const links = this.peer(id);
    if (this.closed || links.live[kind] || links.making[kind] || links.connection === undefined) return;
    links.making[kind] = true;
    this.cancel(links.retries[kind]); // of a connection before
    void this.make(id, kind, links.connection).then((made) => {
      links.making[kind] = false;
      if (this.closed) return;
      if (made) {
        links.retryDelayMs[kind] = RETRY_DELAY_MIN_MS;
        return;
      }
      // The peer may not be formed yet, or has just gone: try again, ever less eagerly, while it is connected.
      links.retries[kind] = this.later(links.retryDelayMs[kind], () => this.ensure(id, kind));
      links.retryDelayMs[kind] = Math.min(links.retryDelayMs[kind] * 2, RETRY_DELAY_MAX_MS);
    });
  }

  /** The peer makes links, so it can be linked with: those that could not be made are not waited for any longer. */
  private hurry(id: number): void {
    const links = this.peer(id);
    for (const kind of KINDS) {
      const retry = links.retries[kind];
      if (retry === undefined || !this.timers.has(retry)) continue;
      // Two that cannot be linked would ask each other as fast as they can, each because the other asks.
      if (links.isFaulty[kind]) continue;
      links.retryDelayMs[kind] = RETRY_DELAY_MIN_MS;
      this.ensure(id, kind);
    }
  }

  private later(delayMs: number, action: () => void): NodeJS.Timeout | undefined {
    if (this.closed) return undefined;
    const timer = setTimeout(() => {
      this.timers.delete(timer);
      action();
    }, delayMs);
    this.timers.add(timer);
    return timer;
  }

  private cancel(timer: NodeJS.Timeout | undefined): void {
    if (timer === undefined) return;
    clearTimeout(timer);
    this.timers.delete(timer);
  }

  private async make(id: number, kind: LinkKind, connection: ControlConnection): Promise<boolean> {
    const { clusterId, endpoint, messages, onRefused } = this.options;
    const links = this.peer(id);
    const generation = this.nextGeneration++;
    links.isFaulty[kind] = false;
    let pending: PendingLink | undefined;
    try {
      pending = kind === 'message' ? messages.initiate(id, generation) : endpoint.initiate(kind, generation);
      const reply = checkLinkReply(
        await connection.request('link', { ...pending.request, clusterId }, REQUEST_TIMEOUT_MS),
      );
      if (!endpoint.finds(reply)) {
        // Who closes gives its memory back behind its connections: one that still answers had it.
        await connection.request('formation', null, REQUEST_TIMEOUT_MS);
        throw new QuorateError(
          'QUORATE_CONFIGURATION_MISMATCH',
          `the memory of replica ${id} is not where this one looks for it: device "shm" is for the processes of one host, all with ` +
            'one shmDirectory, which containers have to share; between hosts it takes an RDMA device',
        );
      }
      await endpoint.complete(pending, reply);
      if (this.closed || links.connection !== connection || connection.peer.processId !== links.processId) {
        pending.queuePair.close();
        return false;
      }
      return this.install(id, pending, reply);
    } catch (error) {
      pending?.queuePair.close();
      const code = (error as { code?: string }).code;
      const isPassing =
        code === 'QUORATE_NOT_READY' ||
        code === 'QUORATE_NOT_A_MEMBER' || // it has not heard of this replica yet, or that it was added again
        code === 'QUORATE_CLOSED' ||
        links.connection !== connection;
      links.isFaulty[kind] = !isPassing;
      if (!isPassing && !this.closed) this.warn(links, error as Error);
      if (code === 'QUORATE_NOT_A_MEMBER' && !this.closed) onRefused(id);
      return false;
    }
  }

  private warn(links: PeerLinks, error: Error): void {
    const { code = 'QUORATE_SYSTEM' } = error as { code?: string };
    const told = links.warnings.limited(error, code);
    if (told !== undefined) this.options.onWarning(told);
  }

  /** False if the link is to be made again. */
  private install(id: number, pending: PendingLink, reply: LinkReply): boolean {
    const { fabric, messages, background, onLogLinked } = this.options;
    const { kind, queuePair } = pending;
    const { generation } = pending.request;
    const links = this.peer(id);
    if (kind === 'message' && !messages.install(id, pending, reply)) return false;
    if (kind === 'probe') {
      // First: what cannot be shared is no link, and is made again.
      background.send({
        type: 'probe',
        peer: id,
        link: {
          queuePair: queuePair.shareUntilThreadEnds(),
          statusAddress: reply.readable.address,
          statusKey: reply.readable.rkey,
          mailboxAddress: reply.writable.address,
          mailboxKey: reply.writable.rkey,
          process: this.options.endpoint.peerProcess(reply)?.shareUntilThreadEnds() ?? null,
          processId: links.processId,
        },
      });
    }
    links.generation[kind] = generation;
    links.live[kind] = true;
    if (kind !== 'log') return true;
    fabric.setPeer(id, {
      queuePair,
      logAddress: reply.readable.address,
      readKey: reply.readable.rkey,
      writeKey: reply.writable.rkey,
    });
    onLogLinked(id, links.bootId, links.processId);
    background.send({ type: 'outgoingLog', peer: id, generation });
    return true;
  }

  /** A peer asks for the responder's end of one of its links. */
  async accept(id: number, value: unknown): Promise<LinkReply> {
    const { endpoint, messages, background } = this.options;
    const request = checkLinkRequest(value);
    this.checkCluster(id, value);
    this.hurry(id);
    const { kind } = request;
    if (kind === 'message') return messages.accept(id, request);
    const links = this.peer(id);
    const turn = ++links.asked[kind];
    const { queuePair, reply } = await endpoint.accept(id, request);
    if (turn !== links.asked[kind]) {
      queuePair.close();
      throw new QuorateError('QUORATE_CLOSED', `the ${kind} link of replica ${id} was replaced while it was made`);
    }
    let shared: number;
    try {
      shared = queuePair.shareUntilThreadEnds();
    } catch (error) {
      queuePair.close();
      throw error;
    }
    if (kind === 'probe') {
      background.send({ type: 'incomingProbe', peer: id, queuePair: shared });
    } else {
      links.acceptedLog = request.generation;
      links.isAcceptedLogDead = false;
      background.send({ type: 'incomingLog', peer: id, generation: request.generation, queuePair: shared });
    }
    return reply;
  }

  /** The hellos told of no cluster if one of the two was part of none then; it may have joined another one since. */
  private checkCluster(id: number, request: unknown): void {
    const { clusterId } = this.options;
    const { clusterId: other } = request as { readonly clusterId?: unknown };
    if (other === clusterId) return;
    const text =
      `replica ${id} is part of cluster ${typeof other === 'number' ? other.toString(16) : '(unknown)'}, and is asking for links ` +
      `with one of cluster ${clusterId.toString(16)}; one of the two must be restarted to join the other's cluster`;
    throw new QuorateError('QUORATE_CLUSTER_MISMATCH', text);
  }

  /** Ends all links of this side. */
  close(): void {
    this.closed = true;
    for (const timer of this.timers) clearTimeout(timer);
    this.timers.clear();
  }
}
