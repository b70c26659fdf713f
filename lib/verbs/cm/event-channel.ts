// An event channel of the connection manager: ids are made from it, and their events reach this thread's event loop
// through it.
import { invalidArgument } from '../../errors.js';
import { addon } from '../load-addon.js';
import { checkOptions, type Members } from '../options.js';
import { VerbsObject } from '../verbs-object.js';
import { CmId } from './id.js';
import type { NativeCmEvent, NativeCmEventChannel } from './native.js';
import { openShmCmEventChannel } from './shm-channel.js';

/** Which connection manager to use. */
export interface CmOptions {
  /**
   * Whose connection manager: that of the kernel's RDMA devices ("ibverbs", default; librdmacm is opened), or that of the
   * shm device, for processes of one host.
   */
  provider?: 'ibverbs' | 'shm';
  /** shm: as in {@link DeviceOptions}; only processes that use the same folder can connect. */
  shmDirectory?: string;
}

const CM_OPTIONS: Members<CmOptions> = { provider: true, shmDirectory: true };

/**
 * Where connections are made and accepted, see rdma_create_event_channel(3) and rdma_cm(7). It belongs to the thread that
 * made it, and lives until it is closed. Nothing here blocks the thread.
 *
 * The channel holds the event loop open while an operation is under way or an iteration waits, unless unref() was called.
 *
 * @example
 * const channel = CmEventChannel.open();
 * const id = channel.createId();
 * await id.resolveAddress({ host: '10.0.0.1', port: 7174 });
 * await id.resolveRoute();
 * const context = openDevice(id.deviceName);
 * // ... protection domain, memory, completion queue ...
 * const queuePair = id.createQueuePair(domain, { sendCq: queue });
 * const { privateData } = await id.connect({ privateData: hello });
 */
export class CmEventChannel extends VerbsObject<NativeCmEventChannel> {
  #holds = 0;
  #mayHold = true;

  private constructor(native: NativeCmEventChannel) {
    super(native);
    native.onEvent((event) => this.#dispatch(event));
  }

  /**
   * Opens a channel.
   *
   * @throws QuorateError QUORATE_NO_LIBRARY without librdmacm, QUORATE_NO_DEVICE without an RDMA device or the kernel's
   * connection manager (module rdma_ucm), QUORATE_SYSTEM; TypeError QUORATE_INVALID_ARGUMENT for unknown options
   */
  static open(options: CmOptions = {}): CmEventChannel {
    checkOptions('options', options, CM_OPTIONS);
    const { provider = 'ibverbs', shmDirectory } = options;
    if (shmDirectory !== undefined && typeof shmDirectory !== 'string') {
      throw invalidArgument('shmDirectory must be a string');
    }
    if (provider === 'shm') return new CmEventChannel(openShmCmEventChannel(shmDirectory));
    if (provider !== 'ibverbs') throw invalidArgument(`provider must be 'ibverbs' or 'shm', got ${String(provider)}`);
    if (shmDirectory !== undefined) throw invalidArgument("shmDirectory is for provider 'shm'");
    return new CmEventChannel(addon.openCmEventChannel());
  }

  /**
   * A new id, for one connection or for a listener, see rdma_create_id(3) with RDMA_PS_TCP.
   *
   * @throws QuorateError QUORATE_CLOSED, QUORATE_SYSTEM
   */
  createId(): CmId {
    return this.retain(CmId.of(this.native.createId(), this));
  }

  /** Lets operations and iterations of this channel hold the event loop open. That is the default. */
  ref(): void {
    this.#mayHold = true;
    this.#apply();
  }

  /** Undoes ref(): the process may end while an operation is under way. */
  unref(): void {
    this.#mayHold = false;
    this.#apply();
  }

  /** Closes all ids of the channel as well; their operations reject with QUORATE_CLOSED. Queue pairs stay open. */
  override close(): void {
    for (const child of this.children()) child.close();
    super.close();
  }

  /** Event channels belong to the thread that made them. @throws TypeError QUORATE_INVALID_ARGUMENT always */
  override share(): number {
    throw invalidArgument('a CmEventChannel belongs to the thread that made it');
  }

  /** @internal Holds the event loop until the function that is returned is called. */
  hold(): () => void {
    this.#holds++;
    this.#apply();
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      this.#holds--;
      this.#apply();
    };
  }

  #apply(): void {
    if (this.closed) return;
    if (this.#mayHold && this.#holds > 0) this.native.ref();
    else this.native.unref();
  }

  #dispatch({ id, listener, ...event }: NativeCmEvent): void {
    if (id === null) return; // closed meanwhile
    if (listener === null) {
      CmId.existing(id)?.deliver(event);
      return;
    }
    const parent = CmId.existing(listener);
    if (parent === undefined) id.close();
    else parent.deliverRequest(this.retain(CmId.of(id, this, event.parameters)));
  }
}
