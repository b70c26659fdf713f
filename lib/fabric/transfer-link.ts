// The data path of a state transfer: the donor's staging memory, which one receiver may READ and nobody may write, and
// the receiver's end, which pulls chunks of it into memory of its own. Both ends make all of it for one transfer, in a
// protection domain of its own: a link that carries snapshots reaches neither log nor status, and a link of another
// kind, or of another transfer, does not reach the chunks. What stands there comes from another process, so nothing
// here trusts it: the caller bounds what it asks for, and checks what it got.
import { invalidArgument, QuorateError } from '../errors.js';
import {
  Access,
  type CompletionChannel,
  CompletionEvents,
  type CompletionQueue,
  type Memory,
  type MemoryRegion,
  type ProtectionDomain,
  QpState,
  type QueuePair,
  SendFlags,
  type SendWorkRequest,
  WcStatus,
  type WorkCompletion,
  WrOpcode,
} from '../verbs/index.js';
import type { QueuePairAddress, RemoteRange } from './link-parameters.js';
import type { VerbsEndpoint } from './verbs-endpoint.js';

/** Sizes of a transfer's staging memory: `slots` chunks of at most `chunkBytes`. */
export interface TransferGeometry {
  readonly chunkBytes: number;
  readonly slots: number;
}

/** Most READ requests in a send queue; a chunk takes one for each piece that the device transfers as a whole. */
const READ_REQUESTS_MAX = 2048;

/** Closes what there is, the last one first, even if one of them cannot be closed. */
function closeAll(objects: readonly ({ close(): void } | null | undefined)[]): void {
  let failure: unknown;
  for (const object of objects) {
    try {
      object?.close();
    } catch (error) {
      failure ??= error;
    }
  }
  if (failure !== undefined) throw failure;
}

/** The donor's end: memory for chunks, which the receiver READs. */
export class TransferSource {
  /** The staging memory: slot `index` begins at index times chunkBytes. */
  readonly bytes: Uint8Array;
  readonly address: QueuePairAddress;
  readonly readable: RemoteRange;

  private constructor(
    private readonly domain: ProtectionDomain,
    private readonly memory: Memory,
    private readonly region: MemoryRegion,
    private readonly queue: CompletionQueue,
    private readonly queuePair: QueuePair,
    address: QueuePairAddress,
  ) {
    this.bytes = new Uint8Array(memory.buffer);
    this.address = address;
    this.readable = { address: region.address, rkey: region.rkey };
  }

  /** Makes the memory and connects it to the receiver's queue pair. Rejects with QUORATE_MEMLOCK, QUORATE_SYSTEM. */
  static async open(
    endpoint: VerbsEndpoint,
    { chunkBytes, slots }: TransferGeometry,
    receiver: QueuePairAddress,
  ): Promise<TransferSource> {
    const { context } = endpoint;
    const made: { close(): void }[] = [];
    const keep = <Made extends { close(): void }>(object: Made): Made => {
      made.unshift(object);
      return object;
    };
    try {
      const memory = keep(context.allocateMemory({ lengthBytes: chunkBytes * slots }));
      const domain = keep(context.allocateProtectionDomain());
      // Least rights: the receiver READs, and that is all that anybody can do here.
      const region = keep(domain.registerMemory(memory, 0, chunkBytes * slots, Access.REMOTE_READ));
      const queue = keep(context.createCompletionQueue(1));
      const queuePair = keep(domain.createQueuePair({ sendCq: queue, cap: { maxSendWr: 1, maxRecvWr: 1 } }));
      const accessFlags = Access.REMOTE_READ;
      queuePair.modify({ state: QpState.INIT, pkeyIndex: 0, portNum: endpoint.portNum, accessFlags });
      const address = endpoint.address(queuePair);
      await endpoint.connect(queuePair, address, receiver);
      return new TransferSource(domain, memory, region, queue, queuePair, address);
    } catch (error) {
      closeAll(made);
      throw error;
    }
  }

  /** The receiver reaches nothing any more, and the memory is released. */
  close(): void {
    closeAll([this.queuePair, this.region, this.queue, this.domain, this.memory]);
  }
}

/** The receiver's end: READs chunks into its own memory, several at a time, in order. */
export class TransferSink {
  readonly address: QueuePairAddress;
  /** Told of each chunk in the order of read(); an error ends the link. */
  onArrived: (error: QuorateError | undefined) => void = () => {};
  private readonly domain: ProtectionDomain;
  private readonly channel: CompletionChannel;
  private readonly queue: CompletionQueue;
  private readonly queuePair: QueuePair;
  private readonly events: CompletionEvents;
  private memory: Memory | undefined;
  private region: MemoryRegion | undefined;
  private source: (TransferGeometry & RemoteRange) | undefined;
  private isClosed = false;
  private hasFailed = false;

  /** Makes the queue pair that the donor is told of. Throws QUORATE_MEMLOCK, QUORATE_SYSTEM. */
  constructor(private readonly endpoint: VerbsEndpoint) {
    const { context } = endpoint;
    this.domain = context.allocateProtectionDomain();
    this.channel = context.createCompletionChannel();
    this.queue = context.createCompletionQueue(READ_REQUESTS_MAX, this.channel);
    this.queuePair = this.domain.createQueuePair({
      sendCq: this.queue,
      cap: { maxSendWr: READ_REQUESTS_MAX, maxRecvWr: 1 },
    });
    this.queuePair.modify({ state: QpState.INIT, pkeyIndex: 0, portNum: endpoint.portNum, accessFlags: 0 });
    this.address = endpoint.address(this.queuePair);
    this.events = new CompletionEvents(this.channel);
  }

  /** Chunks that may be under way at a time. */
  readsMax(chunkBytes: number): number {
    return Math.max(1, Math.floor(READ_REQUESTS_MAX / Math.ceil(chunkBytes / this.endpoint.transferBytesMax)));
  }

  /** Connects to the donor, and makes room for as many chunks as it has. */
  async connect(donor: QueuePairAddress, source: TransferGeometry & RemoteRange): Promise<void> {
    const lengthBytes = source.chunkBytes * source.slots;
    this.source = source;
    this.memory = this.endpoint.context.allocateMemory({ lengthBytes });
    this.region = this.domain.registerMemory(this.memory, 0, lengthBytes, Access.LOCAL_WRITE);
    await this.endpoint.connect(this.queuePair, this.address, donor);
    this.bytes = new Uint8Array(this.memory.buffer);
    this.events.watch(this.queue, (completions) => this.completed(completions));
  }

  /** Where chunks land: slot `index` begins at index times chunkBytes, as at the donor. Empty until it is connected. */
  bytes: Uint8Array = new Uint8Array(0);

  /** Begins to READ the first `lengthBytes` of the donor's slot into the own slot of the same number. */
  read(slot: number, lengthBytes: number): void {
    const { source, region, endpoint } = this;
    if (source === undefined || region === undefined) throw invalidArgument('the transfer link is not connected');
    if (slot < 0 || slot >= source.slots || lengthBytes < 1 || lengthBytes > source.chunkBytes) {
      throw invalidArgument(`slot ${slot} with ${lengthBytes} bytes is outside of the transfer's memory`);
    }
    const offset = slot * source.chunkBytes;
    const requests: SendWorkRequest[] = [];
    for (let done = 0; done < lengthBytes; ) {
      const length = Math.min(lengthBytes - done, endpoint.transferBytesMax);
      const isLast = done + length === lengthBytes;
      requests.push({
        opcode: WrOpcode.RDMA_READ,
        sendFlags: isLast ? SendFlags.SIGNALED : 0,
        localAddress: region.address + offset + done,
        length,
        lkey: region.lkey,
        remoteAddress: source.address + offset + done,
        rkey: source.rkey,
      });
      done += length;
    }
    const { accepted, errno } = this.queuePair.postSend(requests);
    if (accepted < requests.length) this.failed(`READs could not be posted (errno ${errno})`);
    // Where the device has done it already nobody needs to be woken.
    else if (!this.isClosed) this.completed(this.queue.poll());
  }

  private completed(completions: readonly WorkCompletion[]): void {
    for (const { status } of completions) {
      if (this.isClosed || this.hasFailed) return;
      if (status === WcStatus.SUCCESS) this.onArrived(undefined);
      else this.failed(`a READ ended with work completion status ${status}`);
    }
  }

  private failed(what: string): void {
    if (this.hasFailed) return;
    this.hasFailed = true;
    this.onArrived(new QuorateError('QUORATE_LINK_DEAD', `the link to the donor failed: ${what}`));
  }

  /** Ends the link. Views of `bytes` are of no use any more. */
  close(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    this.events.close();
    closeAll([this.queuePair, this.region, this.queue, this.channel, this.domain, this.memory]);
  }
}
