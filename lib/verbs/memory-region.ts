// A registered range of memory: what a device may access, and how.
import { invalidArgument } from '../errors.js';
import { Memory } from './memory.js';
import { Access, type NativeMemoryRegion } from './native.js';
import { checkObject } from './options.js';
import type { ProtectionDomain } from './protection-domain.js';
import { existingFace, VerbsObject } from './verbs-object.js';

export { Access };

/** What MemoryRegion.reregister() changes. */
export interface MemoryRegionChanges {
  /** Of the same context. */
  protectionDomain?: ProtectionDomain;
  /** With `offset` and `length`. */
  memory?: Memory;
  /** First byte of the memory that is registered. */
  offset?: number;
  /** Bytes. */
  length?: number;
  /** Bits of Access. */
  access?: number;
}

/**
 * A memory region, see ibv_reg_mr(3). close() deregisters it: when it returns, no byte of any remote WRITE or atomic
 * through this region can still land, on both providers; if the device does not confirm it, it throws
 * QUORATE_REVOKE_FAILED and the right must be taken as still valid.
 */
export class MemoryRegion extends VerbsObject<NativeMemoryRegion> {
  /** @internal */
  static of(native: NativeMemoryRegion, parent?: VerbsObject): MemoryRegion {
    return (existingFace(native) as MemoryRegion | undefined) ?? new MemoryRegion(native, parent);
  }

  /** Key for work requests of this process. */
  get lkey(): number {
    return this.native.lkey;
  }

  /** Key that peers need to access the region. Whoever has it can use the region's rights: never log it. */
  get rkey(): number {
    return this.native.rkey;
  }

  /** Address of the first byte of the region. */
  get address(): number {
    return this.native.address;
  }

  /** Bytes. */
  get length(): number {
    return this.native.length;
  }

  /** Rights, bits of {@link Access}. */
  get access(): number {
    return this.native.access;
  }

  /**
   * Registers the region anew, see ibv_rereg_mr(3): in another domain, over other bytes, with other rights. What is
   * absent stays. The keys may change. When it returns, nothing that only the old registration allowed can still land.
   * No memory window may be bound to the region.
   *
   * @throws QuorateError QUORATE_UNSUPPORTED if the device has no such thing (SoftRoCE has not; see Context.capabilities):
   * then nothing has changed; QUORATE_REVOKE_FAILED, after which the region can only be closed; RangeError
   * QUORATE_OUT_OF_RANGE, TypeError QUORATE_INVALID_ARGUMENT
   */
  reregister(changes: MemoryRegionChanges): void {
    checkObject('changes', changes);
    const { protectionDomain, memory, ...rest } = changes;
    if (memory !== undefined && !(memory instanceof Memory)) throw invalidArgument('memory must be a Memory');
    if (protectionDomain !== undefined && protectionDomain?.kind !== 'ProtectionDomain') {
      throw invalidArgument('protectionDomain must be a ProtectionDomain');
    }
    this.native.reregister({
      ...rest,
      ...(memory === undefined ? {} : { memory: memory.native }),
      ...(protectionDomain === undefined ? {} : { protectionDomain: protectionDomain.native }),
    });
    if (protectionDomain !== undefined) this.moveTo(protectionDomain);
  }
}
