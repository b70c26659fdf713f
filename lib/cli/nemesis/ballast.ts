// Fills up a file system of the run's own, and makes room again: by files that take all that is free.
import { readdirSync, rmSync, statfsSync } from 'node:fs';
import { join } from 'node:path';
import { DemoError } from '../demo/deadline.js';
import { runCommand } from './command.js';

const NAME = 'ballast-';

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
  try {
    runCommand('fallocate', ['--length', `${bytes}`, path]);
  } catch (error) {
    // Whoever else writes there may have taken it in between.
    if (!/No space left/.test((error as Error).message)) throw error;
  }
}

export function emptyFileSystem(folder: string): void {
  for (const name of ballasts(folder)) rmSync(join(folder, name), { force: true });
}
