// What a failing disk is called, and what to do about it.
import { QuorateError } from '../../errors.js';

/** What is in the way is the path or who owns it: nothing of what was stored is in doubt, and none of it may be cleared for that. */
const NOT_THE_DISK: readonly string[] = ['EACCES', 'EPERM', 'ENOTDIR', 'ELOOP', 'ENAMETOOLONG'];

/** Nor is it the disk that has no descriptor left to open a file with; the store has but words for it. */
function isOutOfFiles(code: string, message: string): boolean {
  return code === 'EMFILE' || code === 'ENFILE' || /Too many open files/.test(message);
}

function errorOf(cause: unknown, say: (message: string, isFull: boolean) => string): QuorateError {
  const {
    code = '',
    message = String(cause),
    errno,
  } = (cause ?? {}) as { code?: string | number; message?: string; errno?: number };
  const isFull =
    ['ENOSPC', 'EDQUOT', 'EFBIG'].includes(String(code)) ||
    /ENOSPC|No space left|Disk quota exceeded|File too large/.test(message); // the store has but words for it
  const details = { cause, ...(typeof errno === 'number' ? { errno: Math.abs(errno) } : {}) };
  return new QuorateError(isFull ? 'QUORATE_DISK_FULL' : 'QUORATE_DISK_FAILED', say(message, isFull), details);
}

/** Of a write, a sync or a store's operation on the directory of replica `id`. */
export function diskError(id: number, directory: string, what: string, cause: unknown): QuorateError {
  return errorOf(cause, (message, isFull) => {
    const { syscall = '', code = '' } = (cause ?? {}) as { syscall?: string; code?: string };
    const isDevice = ['fdatasync', 'fsync'].includes(syscall);
    const again = 'then start the replica again';
    let remedy = `see the log of the kernel; replace the disk or clear the directory, ${again}`;
    if (isFull) {
      remedy = `make room ${isDevice ? 'on its device and clear the directory' : 'on that file system'}, ${again}`;
    } else if (isOutOfFiles(code, message)) {
      remedy = `close some, or raise how many may be open (ulimit -n), ${again}; what is there is unharmed`;
    } else if (NOT_THE_DISK.includes(code)) {
      remedy = `see to the path, and to who may read and write there, ${again}; what is there is unharmed`;
    }
    return (
      `replica ${id} cannot ${what} in ${directory} (${message}); it acknowledges nothing and does not lead from now on, and ` +
      `nothing that was acknowledged is lost: ${remedy}`
    );
  });
}

/** What is at this path, in the directory of a replica, is not what was stored there. */
export function storeInvalid(path: string, what: string): QuorateError {
  return new QuorateError(
    'QUORATE_STORE_INVALID',
    `${path} cannot be used: ${what}; if it cannot be brought back, remove the whole directory of the replica: it then comes ` +
      'back with a new life and gets the state of the others',
  );
}

/** Of writing the new cluster that is forced from replica `id` to its directory. */
export function forkError(id: number, directory: string, cause: unknown): QuorateError {
  return errorOf(cause, (message, isFull) => {
    const remedy = isFull
      ? 'make room on that file system'
      : 'see the log of the kernel; repair the disk, or put an empty one in its place';
    return (
      `the new cluster of replica ${id} cannot be stored in ${directory} (${message}); what is there is wholly of the old ` +
      `cluster still, or wholly of the new one, and the state machine holds the state: ${remedy}, then call ` +
      'forceNewCluster() again, with the same survivor'
    );
  });
}
