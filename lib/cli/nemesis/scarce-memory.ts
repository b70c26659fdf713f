// Exhausted memory, without exhausting the machine's. On shared memory the replicas of a run have a small file system of
// their own for it (private-memory.ts), which is filled up; on RDMA devices a replica is started with little memory that
// it may lock. A replica that is started under such a shortage must fail with an error that has a code, and no other, unless
// the shortage passes.
import { spawnSync } from 'node:child_process';
import { emptyFileSystem, fillFileSystem } from './ballast.js';
import { PRIVATE_MEMORY_BYTES_MAX } from './private-memory.js';

/** Of locked memory: less than any replica needs, more than the libraries do. */
const MEMLOCK_BYTES = 256 * 1024;
/** Left free on the private file system: less than a replica's memory. */
const FREE_BYTES = 64 * 1024;
const COMMAND_TIMEOUT_MS = 20_000;

/** A way to make memory scarce for a replica that starts. */
export interface Shortage {
  begin(): void;
  end(): void;
  /** Program that starts the replica's process; see Cluster.tryRestart(). */
  readonly wrapper: readonly string[];
  /** Replicas that run may give memory back in the middle of it, such as what a transfer of the state took. */
  readonly mayPass: boolean;
}

/** A file that fills the private file system of the run. */
function fullFileSystem(folder: string): Shortage {
  return {
    wrapper: [],
    mayPass: true,
    begin: () => fillFileSystem(folder, { freeBytes: FREE_BYTES, fileSystemBytesMax: PRIVATE_MEMORY_BYTES_MAX }),
    end: () => emptyFileSystem(folder),
  };
}

/** A limit for one process, which has lost the privilege to exceed it. */
const LITTLE_LOCKED_MEMORY: Shortage = {
  mayPass: false,
  wrapper: [
    ...['setpriv', '--bounding-set=-ipc_lock', '--inh-caps=-ipc_lock', '--'],
    ...['prlimit', `--memlock=${MEMLOCK_BYTES}:${MEMLOCK_BYTES}`, '--'],
  ],
  begin() {},
  end() {},
};

/** How memory can be made scarce for these replicas; a text says why it cannot. */
export function openShortage(fabric: 'shm' | 'verbs', privateFolder: string | undefined): Shortage | string {
  if (fabric === 'verbs') {
    const works = spawnSync(
      LITTLE_LOCKED_MEMORY.wrapper[0] as string,
      [...LITTLE_LOCKED_MEMORY.wrapper.slice(1), 'true'],
      {
        timeout: COMMAND_TIMEOUT_MS,
      },
    );
    return works.status === 0 ? LITTLE_LOCKED_MEMORY : 'setpriv and prlimit do not work here';
  }
  return privateFolder === undefined
    ? 'it needs a file system of its own for shared memory'
    : fullFileSystem(privateFolder);
}
