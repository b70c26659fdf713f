// Fills up a file system of the run's own, and makes room again: by files that take all that is free.
import { spawnSync } from 'node:child_process';
import { readdirSync, rmSync, statfsSync } from 'node:fs';
import { join } from 'node:path';
import { DemoError } from '../demo/deadline.js';

const NAME = 'ballast-';
const COMMAND_TIMEOUT_MS = 20_000;

function ballasts(folder: string): string[] {
  return readdirSync(folder).filter((name) => name.startsWith(NAME));
}

/**
 * Takes what is free on the file system that is mounted here, all but `freeBytes`. One that is larger than
 * `fileSystemBytesMax` is none of the run's: that is an error, and nothing is written.
 */
export function fillFileSystem(folder: string, limits: { freeBytes: number; fileSystemBytesMax: number }): void {
  const { bavail, bsize, blocks } = statfsSync(folder);
  if (blocks * bsize > limits.fileSystemBytesMax) throw new DemoError(`${folder} is not the run's own file system`);
  const bytes = bavail * bsize - limits.freeBytes;
  if (bytes <= 0) return;
  const path = join(folder, `${NAME}${ballasts(folder).length}`);
  const { status, stderr } = spawnSync('fallocate', ['--length', `${bytes}`, path], {
    timeout: COMMAND_TIMEOUT_MS,
    encoding: 'utf8',
  });
  // Whoever else writes there may have taken it in between.
  if (status !== 0 && !/No space left/.test(stderr)) throw new DemoError(`cannot fill ${folder}: ${stderr}`);
}

export function emptyFileSystem(folder: string): void {
  for (const name of ballasts(folder)) rmSync(join(folder, name), { force: true });
}
