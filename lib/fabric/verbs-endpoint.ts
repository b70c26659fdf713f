// One replica's end of the verbs fabric: the device, the memory that peers reach, and the making of links. Log, status and
// state live in protection domains of their own, so that a link of one kind cannot reach the memory of another; each
// peer's mailbox slot is a region of its own.
import { randomInt } from 'node:crypto';
import { EXCHANGE_BYTES } from '../consensus/exchange.js';
import {
  MAILBOX_BYTES,
  MAILBOX_SLOT_BYTES,
  MAX_REPLICAS,
  STATUS_BYTES,
  workspaceBytesMin,
} from '../consensus/limits.js';
import { QuorateError } from '../errors.js';
import {
  Access,
  type CompletionChannel,
  type CompletionQueue,
  type Context,
  Fence,
  type GidEntry,
  listDevices,
  type Memory,
  type MemoryRegion,
  openDevice,
  type PeerProcess,
  type PortAttributes,
  PortState,
  type ProtectionDomain,
  QpState,
  type QueuePair,
  WrOpcode,
} from '../verbs/objects.js';
import type { LinkKind, LinkReply, LinkRequest, QueuePairAddress } from './link-parameters.js';
import { choosePermissionStrategy, initialLogAccess, type PermissionStrategy } from './permissions.js';
import { StateMemoryAreas } from './state-memory.js';
import { PROBE_MEMORY_BYTES } from './verbs-background-fabric.js';
import { LSN_PLACES_BYTES } from './verbs-replication-fabric.js';

export interface EndpointOptions {
  readonly device?: string | undefined;
  readonly devicePort?: number | undefined;
  readonly gidIndex?: number | undefined;
  readonly shmDirectory?: string | undefined;
  readonly logBytes: number;
  /** File that holds the log, so that it outlives this process; what is in it is kept. Default: memory of this process. */
  readonly logPath?: string | undefined;
  readonly permissionStrategy?: PermissionStrategy | undefined;
}

/** Word of the control memory that follows the exchange: not 0 when the background plane is to end. */
export const CONTROL_STOP_OFFSET = EXCHANGE_BYTES;
const CONTROL_BYTES = EXCHANGE_BYTES + 64;

/** What the first READ of a log link brings, into a place behind the workspace where nobody looks. */
const WARM_UP_BYTES = 64;
/** Not the wrId of any request of the replication fabric, which drops what it does not know. */
const WARM_UP_WR_ID = 3;

/** Requests in a link's send queue: a window of batches plus a takeover READ, in pieces of the smallest path MTU. */
const LOG_SEND_REQUESTS_MAX = 2048;
const PROBE_SEND_REQUESTS_MAX = 16;
/** How often a peer can wake this replica's background plane before that has to run and make room for more. */
const PROBE_WAKES_MAX = 16;
/** Links that are being replaced have two responders for a while. */
const WAKE_QUEUE_DEPTH = MAX_REPLICAS * PROBE_WAKES_MAX * 4;
/** Local ack timeout 4.096 us * 2^14 = 67 ms, times the tries: a dead peer is reported, a busy one is not. */
const ACK_TIMEOUT_EXPONENT = 14;
const RETRY_COUNT = 6;
const RNR_RETRY_COUNT = 6;
const READS_OUTSTANDING_MAX = 16;
/** Software devices split large transfers badly under load (docs/RXE.md); hardware takes them whole. */
const TRANSFER_BYTES_MAX = 1024 * 1024;

/** An initiator's queue pair that is not connected yet. */
export interface PendingLink {
  readonly kind: LinkKind;
  readonly queuePair: QueuePair;
  readonly request: LinkRequest;
}

export class VerbsEndpoint {
  readonly fence = new Fence();
  readonly probeDomain: ProtectionDomain;
  readonly logDomain: ProtectionDomain;
  /** What the state machine keeps its state in, if it asks for it. */
  readonly stateMemory: StateMemoryAreas;
  readonly logMemory: Memory;
  readonly statusMemory: Memory;
  readonly mailboxMemory: Memory;
  readonly workspaceMemory: Memory;
  /** How much of the workspace is the replication plane's. */
  readonly workspaceBytes: number;
  readonly probeMemory: Memory;
  readonly controlMemory: Memory;
  readonly logRegion: MemoryRegion;
  readonly workspaceRegion: MemoryRegion;
  readonly probeRegion: MemoryRegion;
  readonly channel: CompletionChannel;
  /** Completions of the replication plane; events go to the main thread's loop. */
  readonly mainQueue: CompletionQueue;
  /** Completions of the background plane, which polls. */
  readonly backgroundQueue: CompletionQueue;
  /** Receive side of the log links' responders: flush markers only. */
  readonly incomingQueue: CompletionQueue;
  /** Receive side of the probe links' responders: a completion is a peer's wake of the background plane. */
  readonly wakeQueue: CompletionQueue;
  /** Where a device of the kernel announces them; shm needs none. */
  readonly wakeChannel: CompletionChannel | null;
  private readonly statusRegion: MemoryRegion;
  private readonly logWriteRegion: MemoryRegion | null;
  private readonly mailboxRegions: MemoryRegion[] = [];
  /** They are not the context's: whoever was to use and to close them may have ended before it came to that. */
  private readonly peerProcesses = new Set<PeerProcess>();
  private readonly port: PortAttributes;
  private readonly gid: GidEntry;
  readonly portNum: number;
  /** True for devices whose protocol runs on this host's processors. */
  readonly isSoftware: boolean;
  /** Largest transfer that goes out as one work request. */
  readonly transferBytesMax: number;

  private constructor(
    readonly context: Context,
    readonly strategy: PermissionStrategy,
    options: EndpointOptions,
  ) {
    const { devicePort = 1 } = options;
    this.portNum = devicePort;
    this.port = context.queryPort(this.portNum);
    this.gid = this.selectGid(options.gidIndex);
    this.isSoftware = /rxe|siw/.test(context.device.driver);
    this.transferBytesMax = this.isSoftware ? this.port.activeMtuBytes : TRANSFER_BYTES_MAX;
    this.probeDomain = context.allocateProtectionDomain();
    this.logDomain = context.allocateProtectionDomain();
    this.stateMemory = new StateMemoryAreas(context);
    const isShared = options.logPath !== undefined;
    this.logMemory = context.allocateMemory({
      lengthBytes: options.logBytes,
      ...(isShared ? { shared: true, sharedPath: options.logPath as string } : {}),
    });
    this.statusMemory = context.allocateMemory({ lengthBytes: STATUS_BYTES });
    this.mailboxMemory = context.allocateMemory({ lengthBytes: MAILBOX_BYTES });
    this.workspaceBytes = workspaceBytesMin(options.logBytes);
    const workspaceMemoryBytes = this.workspaceBytes + LSN_PLACES_BYTES + WARM_UP_BYTES;
    this.workspaceMemory = context.allocateMemory({ lengthBytes: workspaceMemoryBytes });
    this.probeMemory = context.allocateMemory({ lengthBytes: PROBE_MEMORY_BYTES });
    this.controlMemory = context.allocateMemory({ lengthBytes: CONTROL_BYTES });
    const remoteWrite = Access.LOCAL_WRITE | Access.REMOTE_WRITE;
    this.logRegion = this.logDomain.registerMemory(this.logMemory, 0, options.logBytes, Access.REMOTE_READ);
    this.logWriteRegion =
      strategy === 'mr-dereg' ? null : this.logDomain.registerMemory(this.logMemory, 0, options.logBytes, remoteWrite);
    this.workspaceRegion = this.logDomain.registerMemory(
      this.workspaceMemory,
      0,
      workspaceMemoryBytes,
      Access.LOCAL_WRITE,
    );
    this.statusRegion = this.probeDomain.registerMemory(this.statusMemory, 0, STATUS_BYTES, Access.REMOTE_READ);
    this.probeRegion = this.probeDomain.registerMemory(this.probeMemory, 0, PROBE_MEMORY_BYTES, Access.LOCAL_WRITE);
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      this.mailboxRegions.push(
        this.probeDomain.registerMemory(this.mailboxMemory, peer * MAILBOX_SLOT_BYTES, MAILBOX_SLOT_BYTES, remoteWrite),
      );
    }
    const { maxCqe } = context.queryDevice();
    this.channel = context.createCompletionChannel();
    this.mainQueue = context.createCompletionQueue(
      Math.min(maxCqe, MAX_REPLICAS * LOG_SEND_REQUESTS_MAX),
      this.channel,
    );
    this.backgroundQueue = context.createCompletionQueue(MAX_REPLICAS * PROBE_SEND_REQUESTS_MAX * 2);
    this.incomingQueue = context.createCompletionQueue(Math.min(maxCqe, 4096));
    this.wakeChannel = context.device.provider === 'shm' ? null : context.createCompletionChannel();
    this.wakeQueue = context.createCompletionQueue(Math.min(maxCqe, WAKE_QUEUE_DEPTH), this.wakeChannel);
  }

  /** Opens the device asked for, or the best there is. */
  static open(options: EndpointOptions): VerbsEndpoint {
    const shm = options.shmDirectory === undefined ? {} : { shmDirectory: options.shmDirectory };
    const { device = defaultDevice(shm) } = options;
    const context = openDevice(device, shm);
    try {
      const strategy = choosePermissionStrategy(
        options.permissionStrategy,
        context.accessFlagsRevocationIsSynchronous,
        context.device.name,
      );
      return new VerbsEndpoint(context, strategy, options);
    } catch (error) {
      context.close();
      throw error;
    }
  }

  get isShm(): boolean {
    return this.context.device.provider === 'shm';
  }

  private selectGid(index: number | undefined): GidEntry {
    if (index === undefined) return this.context.chooseGid(this.portNum);
    const entry = this.context.queryGids(this.portNum).find((gid) => gid.index === index);
    if (entry === undefined) {
      throw new QuorateError(
        'QUORATE_NO_GID',
        `device ${this.context.device.name} port ${this.portNum} has no valid GID at index ${index}`,
      );
    }
    return entry;
  }

  /** Initiator: makes a queue pair and what the responder must know of it. */
  initiate(kind: LinkKind, generation: number): PendingLink {
    const sendQueue = kind === 'log' ? this.mainQueue : this.backgroundQueue;
    const sendRequestsMax = kind === 'log' ? LOG_SEND_REQUESTS_MAX : PROBE_SEND_REQUESTS_MAX;
    const queuePair = this.createQueuePair(kind, sendQueue, sendRequestsMax, 0);
    const request = {
      kind,
      generation,
      queuePair: this.address(queuePair),
      logBytes: this.logMemory.length,
      stream: 0,
    };
    return { kind, queuePair, request };
  }

  /** Initiator: connects to the responder that replied. */
  async complete(pending: PendingLink, reply: LinkReply): Promise<void> {
    const { kind, queuePair, request } = pending;
    await this.connect(queuePair, request.queuePair, reply.queuePair);
    if (kind === 'log') this.warmUp(queuePair, reply);
  }

  /**
   * READs a little of the peer's log now. The first operation of a link is slow: shm maps the peer's whole log, a device
   * resolves routes. A takeover, which is when a log link is used first, must not pay for that.
   */
  private warmUp(queuePair: QueuePair, reply: LinkReply): void {
    queuePair.postSend([
      {
        opcode: WrOpcode.RDMA_READ,
        wrId: WARM_UP_WR_ID,
        localAddress: this.workspaceMemory.address + this.workspaceBytes + LSN_PLACES_BYTES,
        length: WARM_UP_BYTES,
        lkey: this.workspaceRegion.lkey,
        remoteAddress: reply.readable.address,
        rkey: reply.readable.rkey,
      },
    ]);
  }

  /** This process, as its peers see it; null where they cannot tell whether it lives. */
  ownProcess(): PeerProcess | null {
    return this.isShm ? this.context.openPeerProcess(this.gid.gid) : null;
  }

  /** The process behind a link's other end, where the host can tell whether it lives. */
  peerProcess(reply: LinkReply): PeerProcess | null {
    if (!this.isShm) return null;
    for (const process of this.peerProcesses) {
      if (!process.closed) continue;
      process.close(); // the background thread did, and this thread's object keeps its descriptors until it does
      this.peerProcesses.delete(process);
    }
    const process = this.context.openPeerProcess(reply.queuePair.gid);
    if (process !== null) this.peerProcesses.add(process);
    return process;
  }

  /** Whether the memory behind a link's other end is on this host, where this endpoint looks. A device tells when it is used. */
  finds(reply: LinkReply): boolean {
    if (!this.isShm) return true;
    const process = this.peerProcess(reply);
    process?.close();
    return process !== null;
  }

  /** Responder: makes and connects the other end of a peer's link. */
  async accept(peer: number, request: LinkRequest): Promise<{ queuePair: QueuePair; reply: LinkReply }> {
    if (request.logBytes !== this.logMemory.length) {
      throw new QuorateError(
        'QUORATE_CONFIGURATION_MISMATCH',
        `replica ${peer} has a log of ${request.logBytes} bytes, this one ${this.logMemory.length}; logBytes must be the ` +
          'same at every replica',
      );
    }
    const isLog = request.kind === 'log';
    const access = isLog ? initialLogAccess(this.strategy) : Access.REMOTE_READ | Access.REMOTE_WRITE;
    const queuePair = this.createQueuePair(request.kind, this.incomingQueue, 1, access);
    try {
      // Log: the marker whose flush proves, where a strategy needs it, that the responder has stopped. Probe: wakes.
      const receives = isLog ? 1 : PROBE_WAKES_MAX;
      queuePair.postReceive(Array.from({ length: receives }, () => ({ wrId: 0 })));
      const own = this.address(queuePair);
      await this.connect(queuePair, own, request.queuePair);
      const mailbox = this.mailboxRegions[peer] as MemoryRegion;
      const reply: LinkReply = {
        queuePair: own,
        readable: isLog
          ? { address: this.logRegion.address, rkey: this.logRegion.rkey }
          : { address: this.statusRegion.address, rkey: this.statusRegion.rkey },
        writable: isLog
          ? { address: this.logRegion.address, rkey: this.logWriteRegion?.rkey ?? 0 }
          : { address: mailbox.address, rkey: mailbox.rkey },
        position: null,
      };
      return { queuePair, reply };
    } catch (error) {
      queuePair.close();
      throw error;
    }
  }

  private createQueuePair(
    kind: LinkKind,
    sendQueue: CompletionQueue,
    sendRequestsMax: number,
    accessFlags: number,
  ): QueuePair {
    const domain = kind === 'log' ? this.logDomain : this.probeDomain;
    const queuePair = domain.createQueuePair({
      sendCq: sendQueue,
      recvCq: kind === 'log' ? this.incomingQueue : this.wakeQueue,
      cap: { maxSendWr: sendRequestsMax, maxRecvWr: kind === 'log' ? 1 : PROBE_WAKES_MAX },
    });
    try {
      queuePair.modify({ state: QpState.INIT, pkeyIndex: 0, portNum: this.portNum, accessFlags });
    } catch (error) {
      queuePair.close();
      throw error;
    }
    return queuePair;
  }

  /** What the other end of a connection must know of this queue pair of this endpoint. */
  address(queuePair: QueuePair): QueuePairAddress {
    return {
      qpNum: queuePair.number,
      psn: randomInt(2 ** 24),
      gid: this.gid.gid,
      lid: this.port.lid,
      mtuBytes: this.port.activeMtuBytes,
    };
  }

  /** From INIT to RTS: connects a queue pair with another endpoint's. */
  async connect(queuePair: QueuePair, own: QueuePairAddress, peer: QueuePairAddress): Promise<void> {
    // To RTR on a thread of the pool: it may wait for address resolution.
    await queuePair.modifyAsync({
      state: QpState.RTR,
      av: {
        isGlobal: peer.gid !== '',
        dgid: peer.gid,
        sgidIndex: this.gid.index,
        dlid: peer.lid,
        portNum: this.portNum,
      },
      pathMtuBytes: Math.min(own.mtuBytes, peer.mtuBytes),
      destQpNum: peer.qpNum,
      rqPsn: peer.psn,
      maxDestRdAtomic: READS_OUTSTANDING_MAX,
      minRnrTimer: 12,
    });
    queuePair.modify({
      state: QpState.RTS,
      timeout: ACK_TIMEOUT_EXPONENT,
      retryCnt: RETRY_COUNT,
      rnrRetry: RNR_RETRY_COUNT,
      sqPsn: own.psn,
      maxRdAtomic: READS_OUTSTANDING_MAX,
    });
  }

  /** Releases everything, children before parents. */
  close(): void {
    for (const process of this.peerProcesses) process.close();
    this.context.close();
    this.fence.close();
  }
}

/** The first RDMA device with an active port, else shm. */
function defaultDevice(shm: { shmDirectory?: string }): string {
  for (const device of listDevices(shm)) {
    if (device.provider === 'shm') continue;
    const context = openDevice(device.name, shm);
    try {
      if (context.queryPort(1).state === PortState.ACTIVE) return device.name;
    } finally {
      context.close();
    }
  }
  return 'shm';
}
