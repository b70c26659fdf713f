// The checksum of bytes that came out of another process's memory, and of those that READs bring.
import { addon } from './load-addon.js';

/**
 * 53 bits that stand for the bytes and for what came before them, as an integer: pass the checksum of the piece before, 0
 * for the first one. Of several arrays it is that of the bytes of all, one after the other. Finds every change of a single
 * 64-bit word and all others but one in 2^53; it is no protection against somebody who chooses the bytes. Several times as
 * fast as a CRC.
 *
 * @throws TypeError QUORATE_INVALID_ARGUMENT, RangeError QUORATE_OUT_OF_RANGE
 */
export function checksum(bytes: Uint8Array | readonly Uint8Array[], before: number): number {
  return addon.checksum(bytes, before);
}
