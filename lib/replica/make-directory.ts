// Makes a directory, and those above it that are missing. mkdirSync() of Node.js 20 does so without an end, and nothing else in the
// process goes on, where nothing can be made in a directory that is there, and the file system says ENOENT: in /proc, for example.
import { existsSync, mkdirSync } from 'node:fs';
import { dirname } from 'node:path';

/** This user's alone, unless it is there already. Throws the error of the system call. */
export function makeDirectory(path: string): void {
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EEXIST') return; // should it be none, whatever is done in it fails
    if (code !== 'ENOENT' || existsSync(dirname(path))) throw error;
    makeDirectory(dirname(path));
    makeDirectory(path);
  }
}
