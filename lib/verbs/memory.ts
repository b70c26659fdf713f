// Memory that can be registered with a device.
import type { NativeMemory } from './native.js';
import { existingFace, VerbsObject } from './verbs-object.js';

/**
 * Page-aligned memory outside the JavaScript heap, mapped and pre-faulted. Several memory regions may cover the same
 * memory. Its mapping goes only when the last holder is gone: this object, a `buffer` of any thread, a memory region.
 */
export class Memory extends VerbsObject<NativeMemory> {
  /** @internal */
  static of(native: NativeMemory): Memory {
    return (existingFace(native) as Memory | undefined) ?? new Memory(native);
  }

  /** Address of the first byte in this process; what localAddress and remoteAddress of work requests are based on. */
  get address(): number {
    return this.native.address;
  }

  /** Bytes. */
  get length(): number {
    return this.native.length;
  }

  /**
   * The memory itself as an ArrayBuffer, always the same one in a thread; other threads have their own over the same
   * memory. Peers may write to it at any time: nothing in it is to be trusted. close() detaches it in the thread that
   * calls it; it cannot be transferred to another thread, share the Memory instead.
   *
   * @throws QuorateError QUORATE_CLOSED; QUORATE_UNSUPPORTED in runtimes without external array buffers (Electron), or
   * without any as long as the memory (`constants.MAX_LENGTH` of node:buffer, 4 GiB in Node.js 20)
   */
  get buffer(): ArrayBuffer {
    return this.native.buffer;
  }
}
