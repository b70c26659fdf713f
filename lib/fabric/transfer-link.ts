// The data path of a state transfer: the donor's memory, which one receiver may READ and nobody may write, and the
// receiver's end, which pulls chunks of it into memory of its own. Either end has staging memory, made for one transfer,
// and the areas in which its state machine keeps state: a chunk consists of parts of these. All of it lies in the
// protection domain for state, so that a link that carries snapshots reaches neither log nor status, and a link of another
// kind reaches no state. What stands there comes from another process, so nothing here trusts it: the caller bounds what
// it asks for, and checks what it got.
import { invalidArgument, QuorateError } from '../errors.js';
import {
  Access,
  type CompletionChannel,
  CompletionEvents,
  type CompletionQueue,
  type Memory,
  type MemoryRegion,
  QpState,
  type QueuePair,
  SendFlags,
  type SendWorkRequest,
  WcStatus,
  type WorkCompletion,
  WrOpcode,
} from '../verbs/objects.js';
import { closeAll } from './close-all.js';
import type { QueuePairAddress, RemoteRange } from './link-parameters.js';
import type { HeldStateAreas, StateArea } from './state-memory.js';
import type { VerbsEndpoint } from './verbs-endpoint.js';

/** Sizes of a transfer's staging memory: `slots` chunks of at most `chunkBytes`. */
export interface TransferGeometry {
  readonly chunkBytes: number;
  readonly slots: number;
}

/** Memory of the donor that the receiver may READ. */
export interface ReadableArea extends RemoteRange {
  readonly lengthBytes: number;
}

/**
 * Where the bytes of a chunk lie at the donor, in their order: area, offset in it and length in bytes of each part, one
 * after the other. Area 0 is the staging memory, area n the one of index n - 1 of what the donor's state machine has.
 */
export type ChunkParts = readonly number[];
export const PART_NUMBERS = 3;

/** Bytes of all parts together. */
export function chunkLength(parts: ChunkParts): number {
  let lengthBytes = 0;
  for (let at = 0; at < parts.length; at += PART_NUMBERS) lengthBytes += parts[at + 2] as number;
  return lengthBytes;
}

/** Whether something of the chunk is in the donor's staging memory. */
export function isStaged(parts: ChunkParts): boolean {
  for (let at = 0; at < parts.length; at += PART_NUMBERS) if (parts[at] === 0) return true;
  return false;
}

/** Parts of a chunk, at either end. */
export const CHUNK_PARTS_MAX = 64;
/** Less than this is copied rather than transferred by a READ of its own, at either end. */
export const DIRECT_BYTES_MIN = 4096;

/** Most READ requests in a send queue; a chunk takes one for each piece that the device transfers as a whole. */
const READ_REQUESTS_MAX = 2048;

/** The donor's end: memory that the receiver READs. */
export class TransferSource {
  /** The staging memory: slot `index` begins at index times chunkBytes. */
  readonly bytes: Uint8Array;
  readonly address: QueuePairAddress;
  readonly readable: RemoteRange;

  private constructor(
    /** What the state machine has, as of now. */
    readonly state: HeldStateAreas,
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

  /** Makes the staging memory and connects to the receiver's queue pair. Rejects with QUORATE_MEMLOCK, QUORATE_SYSTEM. */
  static async open(
    endpoint: VerbsEndpoint,
    { chunkBytes, slots }: TransferGeometry,
    receiver: QueuePairAddress,
  ): Promise<TransferSource> {
    const { context, stateMemory } = endpoint;
    const { domain } = stateMemory;
    const made: { close(): void }[] = [];
    const keep = <Made extends { close(): void }>(object: Made): Made => {
      made.unshift(object);
      return object;
    };
    try {
      const state = keep(stateMemory.hold());
      const memory = keep(context.allocateMemory({ lengthBytes: chunkBytes * slots }));
      // Least rights: the receiver READs, and that is all that anybody can do here.
      const region = keep(domain.registerMemory(memory, 0, chunkBytes * slots, Access.REMOTE_READ));
      const queue = keep(context.createCompletionQueue(1));
      const queuePair = keep(domain.createQueuePair({ sendCq: queue, cap: { maxSendWr: 1, maxRecvWr: 1 } }));
      const accessFlags = Access.REMOTE_READ;
      queuePair.modify({ state: QpState.INIT, pkeyIndex: 0, portNum: endpoint.portNum, accessFlags });
      const address = endpoint.address(queuePair);
      await endpoint.connect(queuePair, address, receiver);
      return new TransferSource(state, memory, region, queue, queuePair, address);
    } catch (error) {
      closeAll(made);
      throw error;
    }
  }

  /** What the receiver must know of the state machine's areas. */
  get areas(): ReadableArea[] {
    return this.state.areas.map(({ address, rkey, lengthBytes }) => ({ address, rkey, lengthBytes }));
  }

  /** The bytes of these parts, where they lie. */
  views(parts: ChunkParts): Uint8Array[] {
    const views: Uint8Array[] = [];
    for (let at = 0; at < parts.length; at += PART_NUMBERS) {
      const area = parts[at] as number;
      const buffer = area === 0 ? this.memory.buffer : (this.state.areas[area - 1] as StateArea).buffer;
      views.push(new Uint8Array(buffer, parts[at + 1] as number, parts[at + 2] as number));
    }
    return views;
  }

  /** The receiver reaches nothing any more, and the memory is released. */
  close(): void {
    closeAll([this.queuePair, this.region, this.queue, this.memory, this.state]);
  }
}

/** The receiver's end: READs chunks into its own memory, several at a time, in order. */
export class TransferSink {
  readonly address: QueuePairAddress;
  /**
   * Told of each chunk in the order of read(), and of its checksum where the device computed it on the way; an error ends
   * the link.
   */
  onArrived: (error: QuorateError | undefined, sum?: number) => void = () => {};
  private readonly channel: CompletionChannel;
  private readonly queue: CompletionQueue;
  private readonly queuePair: QueuePair;
  private readonly events: CompletionEvents;
  private state: HeldStateAreas;
  /** With those that there were before the state machine allocated more. */
  private readonly held: HeldStateAreas[] = [];
  private readonly requestsMax: number;
  private memory: Memory | undefined;
  private region: MemoryRegion | undefined;
  private chunkBytes = 0;
  /** What may be READ: staging memory, then the areas of the donor's state machine. */
  private sources: readonly ReadableArea[] = [];
  /** READs that are under way, of each chunk. */
  private readonly outstanding: number[] = [];
  private outstandingRequests = 0;
  private isClosed = false;
  private hasFailed = false;

  /** Makes the queue pair that the donor is told of. Throws QUORATE_MEMLOCK, QUORATE_SYSTEM. */
  constructor(private readonly endpoint: VerbsEndpoint) {
    const { context, stateMemory } = endpoint;
    const { maxQpWr, maxCqe } = context.queryDevice();
    this.requestsMax = Math.min(READ_REQUESTS_MAX, maxQpWr, maxCqe);
    this.channel = context.createCompletionChannel();
    try {
      this.queue = context.createCompletionQueue(this.requestsMax, this.channel);
      this.queuePair = stateMemory.domain.createQueuePair({
        sendCq: this.queue,
        cap: { maxSendWr: this.requestsMax, maxRecvWr: 1 },
      });
      this.queuePair.modify({ state: QpState.INIT, pkeyIndex: 0, portNum: endpoint.portNum, accessFlags: 0 });
    } catch (error) {
      this.channel.close(); // and what uses it
      throw error;
    }
    this.address = endpoint.address(this.queuePair);
    this.events = new CompletionEvents(this.channel);
    this.state = this.hold();
  }

  private hold(): HeldStateAreas {
    const state = this.endpoint.stateMemory.hold();
    this.held.push(state);
    return state;
  }

  /** Undefined where no READ reaches. */
  private areaOf(buffer: ArrayBufferLike): StateArea | undefined {
    // A state machine may allocate memory when it is asked for a place.
    if (this.state.indexOf(buffer) < 0 && this.endpoint.stateMemory.has(buffer)) this.state = this.hold();
    return this.state.areas[this.state.indexOf(buffer)];
  }

  /** Connects to the donor, and makes room for as many chunks as it has. */
  async connect(
    donor: QueuePairAddress,
    { chunkBytes, slots }: TransferGeometry,
    staging: RemoteRange,
    areas: readonly ReadableArea[],
  ): Promise<void> {
    const lengthBytes = chunkBytes * slots;
    this.chunkBytes = chunkBytes;
    this.sources = [{ ...staging, lengthBytes }, ...areas];
    this.memory = this.endpoint.context.allocateMemory({ lengthBytes });
    this.region = this.endpoint.stateMemory.domain.registerMemory(this.memory, 0, lengthBytes, Access.LOCAL_WRITE);
    await this.endpoint.connect(this.queuePair, this.address, donor);
    this.events.watch(this.queue, (completions) => this.completed(completions));
  }

  /**
   * Begins to READ a chunk into these places, or into the slot of this number where they are null. Returns where its bytes
   * will be, in their order: what is not in memory of the state machine, or is little, lands in the slot. Null if there is
   * no room for so many READs before others have ended. The parts must lie in the donor's memory, and together they have
   * as many bytes as the places. `sumBefore`: the checksum of the bytes before the chunk.
   */
  read(slot: number, parts: ChunkParts, places: readonly Uint8Array[] | null, sumBefore: number): Uint8Array[] | null {
    const { memory, region, sources } = this;
    if (memory === undefined || region === undefined) throw invalidArgument('the transfer link is not connected');
    const lengthBytes = chunkLength(parts);
    const slotOffset = slot * this.chunkBytes;
    if (lengthBytes > this.chunkBytes || slot < 0 || slotOffset >= memory.length) {
      throw invalidArgument(`${lengthBytes} bytes for slot ${slot} are outside of the transfer's memory`);
    }
    const landing: Uint8Array[] = [];
    const requests: SendWorkRequest[] = [];
    let part = 0;
    let partDone = 0;
    /** READs what follows of the chunk, so many bytes, to this address. */
    const fetch = (length: number, localAddress: number, lkey: number): void => {
      for (let done = 0; done < length; ) {
        const source = sources[parts[part] as number] as ReadableArea;
        const partLength = parts[part + 2] as number;
        const bytes = Math.min(length - done, partLength - partDone, this.endpoint.transferBytesMax);
        requests.push({
          opcode: WrOpcode.RDMA_READ,
          sendFlags: 0,
          localAddress: localAddress + done,
          length: bytes,
          lkey,
          remoteAddress: source.address + (parts[part + 1] as number) + partDone,
          rkey: source.rkey,
        });
        done += bytes;
        partDone += bytes;
        if (partDone === partLength) {
          part += PART_NUMBERS;
          partDone = 0;
        }
      }
    };
    let done = 0;
    /** Bytes of the chunk up to `done` that go to the slot and have not been asked for yet. */
    let staged = 0;
    const fetchStaged = (): void => {
      if (staged === 0) return;
      const offset = slotOffset + done - staged;
      landing.push(new Uint8Array(memory.buffer, offset, staged));
      fetch(staged, region.address + offset, region.lkey);
      staged = 0;
    };
    for (const place of places ?? []) {
      const area = place.length < DIRECT_BYTES_MIN ? undefined : this.areaOf(place.buffer);
      if (area === undefined) staged += place.length;
      else {
        fetchStaged();
        landing.push(place);
        fetch(place.length, area.address + place.byteOffset, area.lkey);
      }
      done += place.length;
    }
    if (places === null) done = staged = lengthBytes;
    fetchStaged();
    if (done !== lengthBytes) throw invalidArgument(`${done} bytes of places for a chunk of ${lengthBytes} bytes`);
    // Rather all of it by a copy than nothing.
    if (requests.length > this.requestsMax && places !== null) return this.read(slot, parts, null, sumBefore);
    if (requests.length > this.requestsMax - this.outstandingRequests) {
      if (this.outstandingRequests > 0) return null;
      this.failed(`a chunk takes ${requests.length} READs, and the device has room for ${this.requestsMax}`);
      return null;
    }
    if (this.endpoint.context.checksummedReads) {
      for (const request of requests) request.sendFlags = SendFlags.CHECKSUM | SendFlags.CHECKSUM_CONTINUED;
      Object.assign(requests[0] as SendWorkRequest, { sendFlags: SendFlags.CHECKSUM, checksumBefore: sumBefore });
    }
    (requests.at(-1) as { sendFlags: number }).sendFlags |= SendFlags.SIGNALED;
    this.outstanding.push(requests.length);
    this.outstandingRequests += requests.length;
    const { accepted, errno } = this.queuePair.postSend(requests);
    if (accepted < requests.length) this.failed(`READs could not be posted (errno ${errno})`);
    return landing;
  }

  /** Looks for what has ended already: where the device did it at once nobody needs to be woken. */
  poll(): void {
    if (!this.isClosed) this.completed(this.queue.poll());
  }

  private completed(completions: readonly WorkCompletion[]): void {
    for (const { status, checksum } of completions) {
      if (this.isClosed || this.hasFailed) return;
      if (status === WcStatus.SUCCESS) {
        this.outstandingRequests -= this.outstanding.shift() ?? 0;
        this.onArrived(undefined, checksum);
      } else this.failed(`a READ ended with work completion status ${status}`);
    }
  }

  private failed(what: string): void {
    if (this.hasFailed) return;
    this.hasFailed = true;
    this.onArrived(new QuorateError('QUORATE_LINK_DEAD', `the link to the donor failed: ${what}`));
  }

  /** Ends the link. Views of its slots are of no use any more. */
  close(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    this.events.close();
    closeAll([this.queuePair, this.region, this.queue, this.channel, this.memory, ...this.held]);
  }
}
