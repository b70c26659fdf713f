// What clients write. Each value comes once in a run, and is hardly ever a sum of others: clients also add, and where 3 is
// written, and 4 is added, and 7 is written, a read of 7 tells little about what happened. So the numbers 1, 2, 3 ... are
// spread over all 32 bits.

/** A power of two; each has so much less than 2^32 values, and after those it begins anew. */
const PROCESSES_MAX = 32;

/** The value of this number, from 1, of a process of clients: 32 bits. */
export function clientValue(process: number, number: number): number {
  // splitmix32. Each step can be undone, so different numbers have different values.
  let mixed = Math.imul(number * PROCESSES_MAX + process, 0x9e3779b9);
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x21f0aaad);
  mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
  return (mixed ^ (mixed >>> 15)) >>> 0;
}
