// The 64-bit hash that chains log entries and seals status blocks, kept in two 32-bit lanes so that it needs no
// BigInt. It guards against torn, stale and foreign bytes, not against an adversary. Each lane is a bijection of the
// word for a given state (a change of one word is always seen), and the rotation carries high bits down, so that
// changes of several words cancel only by chance, independently in the two lanes.
//
// Results are left in the module's variables `hashLow` and `hashHigh` (live bindings), because returning a pair
// would allocate on the hot path.

/** Result of the last call of hashWords(): low 32 bits, unsigned. */
export let hashLow = 0;
/** Result of the last call of hashWords(): high 32 bits, unsigned. */
export let hashHigh = 0;

/**
 * Hashes `count` words from `start`, seeded with (seedLow, seedHigh). The words at skipA and skipA + 1 (where the
 * hash itself is stored) count as zero; pass -2 to skip none.
 */
export function hashWords(
  words: Uint32Array,
  start: number,
  count: number,
  skip: number,
  seedLow: number,
  seedHigh: number,
): void {
  let low = (seedLow ^ 0x9e3779b1) | 0;
  let high = (seedHigh ^ 0x85ebca77 ^ count) | 0;
  const end = start + count;
  for (let index = start; index < end; index++) {
    const word = index === skip || index === skip + 1 ? 0 : (words[index] as number) | 0;
    low = Math.imul(low ^ word, 0x9e3779b1);
    low = (low << 15) | (low >>> 17);
    high = Math.imul(high ^ word, 0xc2b2ae3d | 0);
    high = ((high << 13) | (high >>> 19)) + low;
  }
  low ^= low >>> 16;
  low = Math.imul(low, 0x85ebca6b | 0);
  low ^= low >>> 13;
  high ^= high >>> 16;
  high = Math.imul(high, 0xc2b2ae35 | 0);
  high ^= high >>> 13;
  hashLow = (low ^ high) >>> 0;
  hashHigh = Math.imul(high, 0x27d4eb2f) >>> 0;
}
