// A small file system for the shared memory of one run, so that it can be filled up without touching the machine's. It
// is mounted in a mount namespace of its own, so nobody else sees it and it vanishes with the last process of the run,
// however that ends. A process cannot change its namespace once it has threads, so the program starts itself again there.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmdirSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';

/** Size of the file system for each replica: its memory, that of the life before, and what a start takes for a moment. */
const BYTES_PER_REPLICA = 96 * 1024 * 1024;
const REPLICAS_MAX = 7;
/** No file system of a run is larger. */
export const PRIVATE_MEMORY_BYTES_MAX = BYTES_PER_REPLICA * REPLICAS_MAX;
/** Set inside: the mount point. */
const VARIABLE = 'QUORATE_NEMESIS_MEMORY';
/** Tells the library where shared memory is. */
const LIBRARY_VARIABLE = 'QUORATE_SHM_DIR';
const COMMAND_TIMEOUT_MS = 20_000;

/** Mounts of what follows on the command line vanish with its last process, and nobody else sees them. */
export const IN_OWN_NAMESPACE = ['unshare', '--mount', '--propagation', 'private', '--'];
/** The inner program gets SIGTERM when the outer one is killed. */
const DIE_WITH_PARENT = ['setpriv', '--pdeathsig', 'TERM', '--'];

/** The run's own file system, if this process is inside. */
export function privateMemory(): string | undefined {
  return process.env[VARIABLE];
}

/** Inside: removes the mount point at the end, which the outer program cannot if it is killed. */
export function removeMountPointAtExit(): void {
  const folder = privateMemory();
  if (folder === undefined) return;
  process.on('exit', () => {
    spawnSync('umount', ['--lazy', folder], { timeout: COMMAND_TIMEOUT_MS, stdio: 'ignore' });
    rmdirSync(folder);
  });
}

/** Whether this user may mount one here. */
export function canMountPrivately(): boolean {
  const [program = '', ...args] = [...IN_OWN_NAMESPACE, ...DIE_WITH_PARENT, 'sh', '-c', 'mount -t tmpfs none /tmp'];
  return spawnSync(program, args, { timeout: COMMAND_TIMEOUT_MS, stdio: 'ignore' }).status === 0;
}

/** Runs a program of Node.js inside; resolves with its exit code. */
export function runWithPrivateMemory(replicas: number, program: string, argv: readonly string[]): Promise<number> {
  const bytes = BYTES_PER_REPLICA * Math.min(replicas, REPLICAS_MAX);
  const folder = mkdtempSync(join(tmpdir(), 'quorate-nemesis-memory-'));
  const removeFolder = () => {
    if (existsSync(folder)) rmdirSync(folder);
  };
  process.on('exit', removeFolder);
  const script = `mount -t tmpfs -o mode=0700,size=${bytes} quorate-nemesis "$0" && exec "$@"`;
  const [command = '', ...args] = [
    ...IN_OWN_NAMESPACE,
    ...['sh', '-c', script, folder],
    ...[...DIE_WITH_PARENT, process.execPath, ...process.execArgv, program, ...argv],
  ];
  const child = spawn(command, args, {
    stdio: 'inherit',
    env: { ...process.env, [VARIABLE]: folder, [LIBRARY_VARIABLE]: join(folder, 'shm') },
  });
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.removeAllListeners(signal);
    // The terminal's go to the whole group; a second one does no harm.
    process.on(signal, () => child.kill(signal));
  }
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('exit', (code, signal) => resolve(code ?? 128 + constants.signals[signal ?? 'SIGKILL']));
  });
}
