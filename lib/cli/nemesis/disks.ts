// The directories of durable replicas: one folder for the run, in the machine's folder for temporary files, with a directory
// for each replica. A replica that is killed finds its own again; one whose disk is lost finds nothing. Small disks are file
// systems in memory, one for each replica, that can be filled up without touching the machine's; they are mounted in the
// mount namespace of the run (private-memory.ts) and vanish with its last process.
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DemoError } from '../demo/deadline.js';
import { emptyFileSystem, fillFileSystem } from './ballast.js';

/** What a replica of a run has on disk is some MiB; the rest is for the ballast, which is memory. */
const SMALL_DISK_BYTES = 64 * 1024 * 1024;
/** Left free on a full disk: the write that fails has begun, or not. */
const FREE_BYTES = 16 * 1024;
const COMMAND_TIMEOUT_MS = 20_000;

function mountCommand(program: 'mount' | 'umount', args: readonly string[]): void {
  const { status, stderr } = spawnSync(program, args, { timeout: COMMAND_TIMEOUT_MS, encoding: 'utf8' });
  if (status !== 0) throw new DemoError(`${program} ${args.join(' ')} failed: ${stderr}`);
}

export class Disks {
  readonly folder = mkdtempSync(join(tmpdir(), 'quorate-nemesis-disks-'));
  /** Mount points, by replica; empty if the disks are the machine's. */
  private readonly mounted: string[] = [];

  /** So many disks, small ones if they are to be filled up. */
  constructor(replicas: number, areSmall: boolean) {
    for (let id = 0; areSmall && id < replicas; id++) {
      const disk = join(this.folder, `disk-${id}`);
      mkdirSync(disk);
      mountCommand('mount', ['-t', 'tmpfs', '-o', `mode=0700,size=${SMALL_DISK_BYTES}`, 'quorate-nemesis', disk]);
      this.mounted.push(disk);
    }
  }

  get canBeFilled(): boolean {
    return this.mounted.length > 0;
  }

  directory(id: number): string {
    return join(this.mounted[id] ?? this.folder, `replica-${id}`);
  }

  /** Its replica does not run. */
  lose(id: number): void {
    rmSync(this.directory(id), { recursive: true, force: true });
  }

  /** Takes all room that there is by now on the disk of this replica; what it gives back itself can be taken again. */
  fill(id: number): void {
    fillFileSystem(this.mounted[id] as string, { freeBytes: FREE_BYTES, fileSystemBytesMax: SMALL_DISK_BYTES });
  }

  /** Makes room again. */
  makeRoom(id: number): void {
    emptyFileSystem(this.mounted[id] as string);
  }

  /** Puts what is on small disks where it outlives the run. Nothing runs on them any more. */
  keep(): void {
    for (const [id, disk] of this.mounted.entries()) {
      const directory = this.directory(id);
      if (existsSync(directory)) cpSync(directory, join(this.folder, `replica-${id}`), { recursive: true });
      this.unmount(disk);
    }
    this.mounted.length = 0;
  }

  remove(): void {
    for (const disk of this.mounted) this.unmount(disk);
    this.mounted.length = 0;
    rmSync(this.folder, { recursive: true, force: true });
  }

  private unmount(disk: string): void {
    // A replica that is being killed may have files there still.
    mountCommand('umount', ['--lazy', disk]);
    rmdirSync(disk);
  }
}
