// A folder of its own for the shm device of one test file, so that files can run side by side; checks afterwards that
// nothing was left behind in it.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { afterAll } from 'vitest';

export function useShmDirectory(): string {
  const directory = mkdtempSync('/dev/shm/quorate-test-');
  process.env.QUORATE_SHM_DIR = directory;
  afterAll(() => {
    rmSync(directory, { recursive: true, force: true });
  });
  return directory;
}

/** Names of the segments and other files that are in the folder now. */
export function filesIn(directory: string): string[] {
  return readdirSync(directory).sort();
}
