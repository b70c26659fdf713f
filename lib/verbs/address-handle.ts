// Destinations of datagrams.
import type { AddressVector, NativeAddressHandle } from './native.js';
import { existingFace, VerbsObject } from './verbs-object.js';

/**
 * An address handle, see ibv_create_ah(3): the port that UD sends go to. Which queue pair of that port is said by each
 * request. It must stay open until the requests that name it have completed.
 */
export class AddressHandle extends VerbsObject<NativeAddressHandle> {
  /** @internal */
  static of(native: NativeAddressHandle, parent?: VerbsObject): AddressHandle {
    return (existingFace(native) as AddressHandle | undefined) ?? new AddressHandle(native, parent);
  }

  /** What it was made of. */
  get attributes(): Required<AddressVector> {
    return this.native.attributes;
  }
}
