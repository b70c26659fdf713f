// A lock that keeps a second process away from files that only one may use. The kernel lets go of it when the process
// ends, however it ends, so nothing is left behind.
import { addon } from './load-addon.js';

/**
 * Locks the open file, flock(2); false if another process, or another part of this one, has locked it. Closing the file
 * unlocks it.
 */
export function lockFile(descriptor: number): boolean {
  return addon.lockFile(descriptor);
}
