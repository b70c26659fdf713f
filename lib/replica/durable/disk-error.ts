// What a failing disk is called, and what to do about it.
import { QuorateError } from '../../errors.js';

/** Of a write, a sync or a store's operation on the directory of replica `id`. */
export function diskError(id: number, directory: string, what: string, cause: unknown): QuorateError {
  const {
    code = '',
    message = String(cause),
    errno,
  } = (cause ?? {}) as { code?: string; message?: string; errno?: number };
  const isFull =
    ['ENOSPC', 'EDQUOT', 'EFBIG'].includes(String(code)) || /ENOSPC|No space left|MDB_MAP_FULL/.test(message);
  const remedy = isFull
    ? 'make room on that file system, then start the replica again'
    : 'see the log of the kernel; replace the disk or clear the directory, then start the replica again';
  const details = { cause, ...(typeof errno === 'number' ? { errno: Math.abs(errno) } : {}) };
  return new QuorateError(
    isFull ? 'QUORATE_DISK_FULL' : 'QUORATE_DISK_FAILED',
    `replica ${id} cannot ${what} in ${directory} (${message}); it acknowledges nothing and does not lead from now on, and ` +
      `nothing that was acknowledged is lost: ${remedy}`,
    details,
  );
}
