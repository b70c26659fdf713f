// Programs of fixtures/ on a small file system of their own, which they fill up.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'vitest';

/**
 * Runs a fixture with a file system of 2 MiB, in a mount namespace that vanishes with the process, and this folder, in which
 * it is mounted; what it prints.
 */
export async function runOnSmallDisk(fixture: string, folder: string): Promise<unknown> {
  const small = join(folder, 'small');
  mkdirSync(small);
  const program = fileURLToPath(new URL(`fixtures/${fixture}`, import.meta.url));
  const script = 'mount -t tmpfs -o size=2m tmpfs "$1" && exec "$2" "$3" "$1" "$4"';
  const child = spawn('unshare', ['--mount', 'sh', '-c', script, 'sh', small, process.execPath, program, folder], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let [output, errors] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors += text;
  });
  const [code] = (await once(child, 'close')) as [number];
  expect(code, errors).toBe(0);
  return JSON.parse(output);
}
