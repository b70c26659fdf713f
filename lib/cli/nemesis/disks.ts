// The directories of durable replicas: one folder for the run, in the machine's folder for temporary files, with a directory
// for each replica. A replica that is killed finds its own again; one whose disk is lost finds nothing. The disks are the
// machine's, or file systems of the run's own, one for each replica, to which more can be done: those in memory can be filled
// up, and thin ones can fail and lose power, too. These are mounted in the mount namespace of the run (private-memory.ts), and
// vanish with its last process.
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { emptyFileSystem, fillFileSystem } from './ballast.js';
import { runCommand } from './command.js';
import { privateMemory } from './private-memory.js';
import { ThinDisk, whyNoThinDisks } from './thin-disk.js';

/** From the simplest to the one to which most can be done. */
export const DISK_KINDS = ['machine', 'memory', 'thin'] as const;
export type DiskKind = (typeof DISK_KINDS)[number];

/** Why there can be no disks of this kind here; undefined if there can. */
export function whyNoDisks(kind: DiskKind): string | undefined {
  if (kind === 'machine') return undefined;
  if (privateMemory() === undefined) return 'file systems of its own, and the right to mount them, are needed';
  return kind === 'thin' ? whyNoThinDisks() : undefined;
}

/** Disks of this kind, or of the next simpler one that there can be. */
function possibleKind(kind: DiskKind): DiskKind {
  const kinds = DISK_KINDS.slice(0, DISK_KINDS.indexOf(kind) + 1);
  return kinds.findLast((one) => whyNoDisks(one) === undefined) as DiskKind;
}

/** What a replica of a run has on disk is some MiB; the rest is for the ballast, which is memory. */
const DISK_BYTES = 64 * 1024 * 1024;
/** Left free on a full disk: the write that fails has begun, or not. */
const FREE_BYTES = 16 * 1024;

/** A file system in memory: syncing it takes no time. */
class MemoryDisk {
  constructor(readonly folder: string) {
    mkdirSync(folder);
    runCommand('mount', ['-t', 'tmpfs', '-o', `mode=0700,size=${DISK_BYTES}`, 'quorate-nemesis', folder]);
  }

  /** What a process had written is there still: memory is all that this disk is. */
  losePower(): void {}

  remove(): void {
    // A replica that is being killed may have files there still.
    runCommand('umount', ['--lazy', this.folder]);
    rmdirSync(this.folder);
  }
}

export class Disks {
  readonly folder = mkdtempSync(join(tmpdir(), 'quorate-nemesis-disks-'));
  /** By replica; empty if the disks are the machine's. */
  private readonly disks: (MemoryDisk | ThinDisk)[] = [];
  /** Of these replicas. */
  private readonly failing = new Set<number>();
  readonly kind: DiskKind;

  /** So many disks of this kind, or of the next simpler one that there can be. */
  constructor(replicas: number, kind: DiskKind) {
    this.kind = possibleKind(kind);
    for (let id = 0; this.kind !== 'machine' && id < replicas; id++) {
      const folder = join(this.folder, `disk-${id}`);
      this.disks.push(this.kind === 'thin' ? new ThinDisk(folder, DISK_BYTES) : new MemoryDisk(folder));
    }
  }

  /** They are the run's own. */
  private disk(id: number): MemoryDisk | ThinDisk {
    return this.disks[id] as MemoryDisk | ThinDisk;
  }

  get canBeFilled(): boolean {
    return this.kind !== 'machine';
  }

  get canFail(): boolean {
    return this.kind === 'thin';
  }

  directory(id: number): string {
    return join(this.disks[id]?.folder ?? this.folder, `replica-${id}`);
  }

  /** Its replica does not run. */
  lose(id: number): void {
    rmSync(this.directory(id), { recursive: true, force: true });
  }

  /** Takes all room that there is by now on the disk of this replica; what it gives back itself can be taken again. */
  fill(id: number): void {
    fillFileSystem(this.disk(id).folder, { freeBytes: FREE_BYTES, fileSystemBytesMax: DISK_BYTES });
  }

  /** Makes room again. */
  makeRoom(id: number): void {
    emptyFileSystem(this.disk(id).folder);
  }

  /** The disk of this replica fails at one of the next writes. */
  fail(id: number): void {
    this.failing.add(id);
    (this.disks[id] as ThinDisk).exhaust();
  }

  /**
   * The power of the disk goes and comes back; its replica does not run. The disk is sound then, and has room; if it was failing
   * the directory is gone: what had been synced might not be there (thin-disk.ts), and no replica is to rely on it.
   */
  losePower(id: number): void {
    if (this.kind === 'machine') return;
    this.disk(id).losePower();
    this.makeRoom(id);
    if (this.failing.delete(id)) this.lose(id);
  }

  /** Puts what is on disks of the run's own where it outlives the run. Nothing runs on them any more. */
  keep(): void {
    for (const [id, disk] of this.disks.entries()) {
      const directory = this.directory(id);
      if (existsSync(directory)) cpSync(directory, join(this.folder, `replica-${id}`), { recursive: true });
      disk.remove();
    }
    this.disks.length = 0;
  }

  remove(): void {
    for (const disk of this.disks) disk.remove();
    this.disks.length = 0;
    rmSync(this.folder, { recursive: true, force: true });
  }
}
