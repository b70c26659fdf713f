// The option `holdAtExitMs`: a killed process shall not spend the failover of its own cluster giving its memory back.
import { ExitHold } from '../verbs/objects.js';
import { checkInteger, invalid } from './check-options.js';

/** Many times a failover, and less than a process of Node.js takes to start, which may want the same port. */
const HOLD_AT_EXIT_DEFAULT_MS = 20;
const HOLD_AT_EXIT_MS_MAX = 1_000;

/**
 * Holds what the process has beyond its end; null if that is not wanted. On RDMA devices descriptors must close at once,
 * since that is what tells other hosts of the end. If it is impossible `warn` is told, and a hold that was asked for
 * throws QUORATE_SYSTEM.
 */
export function holdAtExit(option: number | undefined, isShm: boolean, warn: (error: Error) => void): ExitHold | null {
  if (option === undefined && !isShm) return null;
  const holdMs = option === undefined ? HOLD_AT_EXIT_DEFAULT_MS : option;
  checkInteger(holdMs, 0, HOLD_AT_EXIT_MS_MAX, 'holdAtExitMs');
  if (holdMs === 0) return null;
  if (!isShm)
    return invalid('holdAtExitMs is for device "shm": other hosts notice the end of a process by its connections');
  try {
    return new ExitHold(holdMs * 1e6);
  } catch (error) {
    if (option !== undefined) throw error;
    warn(error as Error);
    return null;
  }
}
