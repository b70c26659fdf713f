// Directories that options name. mkdirSync() of Node.js 20 with `recursive` goes on without an end, and nothing else in the
// process does, where nothing can be made in a directory that is there and the file system says ENOENT: in /proc, for example.
import { existsSync, mkdirSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { QuorateError } from '../errors.js';

/** Makes it, and those above it that are missing: this user's alone, unless they are there. Throws the error of the system call. */
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

/** What an option names, wherever the process is later. Throws QUORATE_INVALID_ARGUMENT or QUORATE_SYSTEM. */
export function absolutePath(path: string, option: string): string {
  if (path.includes('\0')) {
    throw new QuorateError('QUORATE_INVALID_ARGUMENT', `${option} has a NUL character, which no path can have`);
  }
  try {
    return resolve(path);
  } catch (error) {
    const { message, errno = 0, syscall = 'uv_cwd' } = error as NodeJS.ErrnoException;
    throw new QuorateError(
      'QUORATE_SYSTEM',
      `${option} ${path} is relative, and the working directory of this process is not there any more (${message}): name the ` +
        'directory by its absolute path, or start the process where there is one',
      { cause: error, errno: Math.abs(errno), syscall },
    );
  }
}
