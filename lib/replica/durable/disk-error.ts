// What a failing disk is called, and what to do about it.
import { statfsSync } from 'node:fs';
import { constants } from 'node:os';
import { QuorateError } from '../../errors.js';
import { SNAPSHOT_PIECE_BYTES, SNAPSHOT_PIECES_IN_FLIGHT_MAX } from './limits.js';

/** What the store says, too, when only a part of what it wrote found room: no more than this. */
const STORE_ERROR = constants.errno.EIO;
const STORE_WRITE_BYTES_MAX = SNAPSHOT_PIECE_BYTES * SNAPSHOT_PIECES_IN_FLIGHT_MAX;

function hasNoRoom(directory: string): boolean {
  try {
    const { bavail, bsize } = statfsSync(directory);
    return bavail * bsize < STORE_WRITE_BYTES_MAX;
  } catch {
    return false;
  }
}

function errorOf(directory: string, cause: unknown, say: (message: string, isFull: boolean) => string): QuorateError {
  const {
    code = '',
    message = String(cause),
    errno,
  } = (cause ?? {}) as { code?: string | number; message?: string; errno?: number };
  const isFull =
    ['ENOSPC', 'EDQUOT', 'EFBIG'].includes(String(code)) ||
    /ENOSPC|No space left|MDB_MAP_FULL/.test(message) ||
    (code === STORE_ERROR && hasNoRoom(directory));
  const details = { cause, ...(typeof errno === 'number' ? { errno: Math.abs(errno) } : {}) };
  return new QuorateError(isFull ? 'QUORATE_DISK_FULL' : 'QUORATE_DISK_FAILED', say(message, isFull), details);
}

/** Of a write, a sync or a store's operation on the directory of replica `id`. */
export function diskError(id: number, directory: string, what: string, cause: unknown): QuorateError {
  return errorOf(directory, cause, (message, isFull) => {
    const remedy = isFull
      ? 'make room on that file system, then start the replica again'
      : 'see the log of the kernel; replace the disk or clear the directory, then start the replica again';
    return (
      `replica ${id} cannot ${what} in ${directory} (${message}); it acknowledges nothing and does not lead from now on, and ` +
      `nothing that was acknowledged is lost: ${remedy}`
    );
  });
}

/** Of writing the new cluster that is forced from replica `id` to its directory. */
export function forkError(id: number, directory: string, cause: unknown): QuorateError {
  return errorOf(directory, cause, (message, isFull) => {
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
