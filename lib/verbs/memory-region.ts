// A registered range of memory: what a device may access, and how.
import { Access, type NativeMemoryRegion } from './native.js';
import { existingFace, VerbsObject } from './verbs-object.js';

export { Access };

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
}
