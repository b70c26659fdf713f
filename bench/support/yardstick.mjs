// The programs in C and C++ that benchmarks compare with: each runs for itself, and prints one JSON object.
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const YARDSTICK_TIMEOUT_MS = 180_000;

/**
 * What the program printed; undefined if it has not been built (scripts/build.mjs).
 * @param {string} name of the program
 * @param {(string | number)[]} args
 */
export async function runYardstick(name, args) {
  const program = fileURLToPath(new URL(`../../out/native/${name}`, import.meta.url));
  if (!existsSync(program)) return undefined;
  const { stdout } = await promisify(execFile)(program, args.map(String), { timeout: YARDSTICK_TIMEOUT_MS });
  return JSON.parse(stdout);
}
