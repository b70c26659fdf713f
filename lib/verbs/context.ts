// An open device, from which everything else is made.
import { type AsyncEvent, publicEvent } from './async-events.js';
import { type DeviceCapabilities, probeCapabilities } from './capabilities.js';
import { CompletionChannel } from './completion-channel.js';
import { CompletionQueue, type CompletionQueueOptions, nativeQueueOptions } from './completion-queue.js';
import { normalizeGid } from './gid.js';
import { Memory } from './memory.js';
import type {
  AddressVector,
  DeviceAttributes,
  DeviceInfo,
  ExtendedDeviceAttributes,
  GidEntry,
  MemoryOptions,
  NativeContext,
  PortAttributes,
} from './native.js';
import { checkObject } from './options.js';
import { ProtectionDomain } from './protection-domain.js';
import { existingFace, nativeOrNull, VerbsObject } from './verbs-object.js';
import { PeerProcess } from './waiter.js';

export type { MemoryOptions } from './native.js';

/** An open device, see ibv_open_device(3). Closing it closes everything that was made from it. */
export class Context extends VerbsObject<NativeContext> {
  #attributes: DeviceAttributes | undefined;
  #capabilities: DeviceCapabilities | undefined;

  /** @internal */
  static of(native: NativeContext): Context {
    return (existingFace(native) as Context | undefined) ?? new Context(native);
  }

  /** The device as listDevices() describes it. */
  get device(): DeviceInfo {
    return this.native.device;
  }

  /** Name of the device: "shm", "rxe0". */
  get name(): string {
    return this.native.device.name;
  }

  /**
   * True if taking the REMOTE_WRITE flag from a queue pair (RTS to RTS) is synchronous by the device's own rules: when
   * modify() returns no byte of an earlier WRITE can still land. Not so on SoftRoCE.
   */
  get accessFlagsRevocationIsSynchronous(): boolean {
    return this.native.accessFlagsRevocationIsSynchronous;
  }

  /**
   * True if a READ can bring a checksum of what it brings (SendFlags.CHECKSUM). So on shm, where the processor that copies
   * the bytes sees them anyway; RDMA devices have no such thing, and the caller reads what came once more.
   */
  get checksummedReads(): boolean {
    return this.native.checksummedReads;
  }

  /**
   * Limits and identity of the device, see ibv_query_device(3).
   *
   * @throws QuorateError QUORATE_CLOSED, QUORATE_SYSTEM
   */
  queryDevice(): DeviceAttributes {
    this.#attributes = this.native.queryDevice();
    return this.#attributes;
  }

  /**
   * What the device can do of that which not every device can. What is false is refused, mostly with QUORATE_UNSUPPORTED.
   * Found out at the first use, by trying it on small objects that are closed again.
   *
   * @throws QuorateError QUORATE_CLOSED
   */
  get capabilities(): DeviceCapabilities {
    this.#capabilities ??= probeCapabilities(this);
    return this.#capabilities;
  }

  /**
   * What queryDevice() does not say, see ibv_query_device_ex(3).
   *
   * @throws QuorateError QUORATE_CLOSED, QUORATE_SYSTEM
   */
  queryDeviceExtended(): ExtendedDeviceAttributes {
    return this.native.queryDeviceExtended();
  }

  /** @internal The limits as queried before; they do not change while a device is open. */
  get limits(): DeviceAttributes {
    return this.#attributes ?? this.queryDevice();
  }

  /**
   * State and properties of a port, see ibv_query_port(3). Ports are counted from 1.
   *
   * @throws RangeError QUORATE_OUT_OF_RANGE if the device has no such port
   */
  queryPort(portNum = 1): PortAttributes {
    return this.native.queryPort(portNum);
  }

  /** The valid entries of the port's GID table, see ibv_query_gid_table(3). */
  queryGids(portNum = 1): GidEntry[] {
    return this.native.queryGids(portNum);
  }

  /**
   * An entry of the port's table of partition keys, see ibv_query_pkey(3): 15 bits, and the highest one for full
   * membership. 0xffff is the default partition; RoCE and shm have no other.
   *
   * @throws RangeError QUORATE_OUT_OF_RANGE beyond `pkeyTblLen` of the port
   */
  queryPkey(portNum = 1, index = 0): number {
    return this.native.queryPkey(portNum, index);
  }

  /**
   * The GID to use on a port: on Ethernet the RoCE v2 entry of an IPv4 address, else of a global IPv6 address, else the
   * link-local one; on InfiniBand entry 0.
   *
   * @throws QuorateError QUORATE_NO_GID with the table in the message
   */
  chooseGid(portNum = 1): GidEntry {
    return this.native.chooseGid(portNum);
  }

  /**
   * The address vector of a peer whose endpoint is known, for ProtectionDomain.createAddressHandle().
   *
   * @param remote what QueuePair.endpoint() of the peer says
   * @param portNum own port, default 1
   * @param sgidIndex own GID; default: what chooseGid() chooses
   * @throws QuorateError QUORATE_NO_GID; TypeError QUORATE_INVALID_ARGUMENT if the GID is none
   */
  addressVectorFor(remote: { gid: string; lid: number }, portNum = 1, sgidIndex?: number): AddressVector {
    checkObject('remote', remote);
    if (this.queryPort(portNum).linkLayer === 'InfiniBand') return { isGlobal: false, dlid: remote.lid, portNum };
    return {
      dgid: normalizeGid(remote.gid),
      sgidIndex: sgidIndex ?? this.chooseGid(portNum).index,
      portNum,
    };
  }

  /**
   * Page-aligned, pre-faulted memory that can be registered, see {@link Memory}. It is not kept by the context: it
   * lives while it, its `buffer` or a memory region over it is referenced.
   *
   * @throws QuorateError QUORATE_SYSTEM (no memory, /dev/shm full, no huge pages), QUORATE_UNSUPPORTED (huge pages on shm);
   * RangeError QUORATE_OUT_OF_RANGE; TypeError QUORATE_INVALID_ARGUMENT
   */
  allocateMemory(options: MemoryOptions): Memory {
    return Memory.of(this.native.allocateMemory(options));
  }

  /**
   * Takes and acknowledges one asynchronous event, see ibv_get_async_event(3): null if none is pending. Never waits.
   */
  getAsyncEvent(): AsyncEvent | null {
    const event = this.native.getAsyncEvent();
    return event === null ? null : publicEvent(event);
  }

  /**
   * Watches the asynchronous events, see ibv_get_async_event(3), in this thread's event loop: each is taken,
   * acknowledged and handed to the callback. A second call replaces the callback, null stops watching. What the
   * callback throws is an uncaught exception. The context does not hold the event loop open unless ref() is called. See
   * asyncEvents() for `for await`.
   */
  onAsyncEvent(callback: ((event: AsyncEvent) => void) | null): void {
    this.native.onAsyncEvent(typeof callback === 'function' ? (event) => callback(publicEvent(event)) : callback);
  }

  /** Holds the event loop open while events are watched. @throws TypeError QUORATE_INVALID_ARGUMENT if they are not */
  ref(): void {
    this.native.ref();
  }

  /** Undoes ref(). @throws TypeError QUORATE_INVALID_ARGUMENT if events are not watched */
  unref(): void {
    this.native.unref();
  }

  /** See ibv_alloc_pd(3). */
  allocateProtectionDomain(): ProtectionDomain {
    return this.retain(ProtectionDomain.of(this.native.allocateProtectionDomain(), this));
  }

  /** See ibv_create_comp_channel(3). */
  createCompletionChannel(): CompletionChannel {
    return this.retain(CompletionChannel.of(this.native.createCompletionChannel(), this));
  }

  /**
   * See ibv_create_cq(3), and ibv_create_cq_ex(3) for what the options ask for.
   *
   * @param depth completions that the queue holds at least; one that overflows is lost for good
   * @param channel where events of the queue go, see requestNotify(); default none
   * @throws RangeError QUORATE_OUT_OF_RANGE if the device has no queues of that depth; QuorateError QUORATE_MEMLOCK;
   * QUORATE_UNSUPPORTED if the device lacks what the options ask for, see Context.capabilities
   */
  createCompletionQueue(
    depth: number,
    channel?: CompletionChannel | null,
    options?: CompletionQueueOptions,
  ): CompletionQueue {
    const native = this.native.createCompletionQueue(
      depth,
      nativeOrNull(channel, CompletionChannel, 'channel'),
      ...(options === undefined ? [] : [nativeQueueOptions(options)]),
    );
    return this.retain(CompletionQueue.of(native, this, channel ?? undefined));
  }

  /**
   * The process that opened the device instance behind a GID, to be watched for its death; null where the provider
   * cannot tell (only shm can), or where there is no such instance any more.
   *
   * @throws TypeError QUORATE_INVALID_ARGUMENT for what is no GID of this provider
   */
  openPeerProcess(gid: string): PeerProcess | null {
    const native = this.native.openPeerProcess(gid);
    return native === null ? null : PeerProcess.of(native);
  }
}
