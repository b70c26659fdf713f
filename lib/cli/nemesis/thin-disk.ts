// A disk of the run's own that fails as real ones do: ext4 on a loop device, whose blocks get room when they are first
// written, in a file on a file system in memory. When that has no room left the device refuses writes, the kernel aborts
// the journal of ext4 and lets nothing be written any more, and what programs are told is ENOSPC, EIO or EROFS. When the power
// goes, what had not reached the device is lost, however much of it programs had written. All of it is mounted in
// the mount namespace of the run (private-memory.ts): loop devices detach themselves with their mounts.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, rmdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { DemoError } from '../demo/deadline.js';
import { emptyFileSystem, fillFileSystem } from './ballast.js';

/** Of the device, as programs see it: what a replica of a run has on disk is some MiB. */
const DEVICE_BYTES = 64 * 1024 * 1024;
const JOURNAL_MIB = 4;
/** Of the file system in memory: room for a device that is written to the end, and for the one that takes its place. */
const STORE_BYTES = 2 * DEVICE_BYTES + 8 * 1024 * 1024;
const COMMAND_TIMEOUT_MS = 20_000;
/** Exit codes of e2fsck up to this one: nothing was wrong, or all of it was put right. */
const CHECKED_MAX = 1;
/** EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH: from now on nothing reaches the device. Node.js has no ioctl(). */
const SHUT_DOWN =
  'open(my $root, "<", $ARGV[0]) or die "$!"; my $flags = pack("L", 2); ioctl($root, 0x8004587d, $flags) or die "$!";';
const PROGRAMS = ['mkfs.ext4', 'e2fsck', 'perl'];

/** Administrators' programs are not in everyone's path. */
const ENVIRONMENT = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin` };

function run(program: string, args: readonly string[], statusMax = 0): void {
  const { status, stderr, error } = spawnSync(program, args, {
    ...{ timeout: COMMAND_TIMEOUT_MS, encoding: 'utf8', env: ENVIRONMENT },
  });
  if (status === null || status > statusMax) {
    throw new DemoError(`${program} ${args.join(' ')} failed: ${stderr ?? error?.message}`);
  }
}

/** Why there cannot be any here, apart from mounting; undefined if there can. */
export function whyNoThinDisks(): string | undefined {
  if (!existsSync('/dev/loop-control')) return 'there are no loop devices here';
  const missing = PROGRAMS.filter(
    (program) => spawnSync('sh', ['-c', `command -v ${program}`], { env: ENVIRONMENT }).status !== 0,
  );
  return missing.length > 0 ? `it needs ${missing.join(', ')}` : undefined;
}

export class ThinDisk {
  private readonly store: string;
  private devices = 0;

  /** `folder` is where it is mounted; its store is mounted beside it. */
  constructor(readonly folder: string) {
    this.store = `${folder}-store`;
    mkdirSync(folder);
    mkdirSync(this.store);
    run('mount', ['-t', 'tmpfs', '-o', `mode=0700,size=${STORE_BYTES}`, 'quorate-nemesis', this.store]);
    const { device } = this;
    run('truncate', ['--size', `${DEVICE_BYTES}`, device]);
    run('mkfs.ext4', ['-q', '-F', '-m', '0', '-J', `size=${JOURNAL_MIB}`, device]);
    this.mount();
  }

  /** The file that is the device now. */
  private get device(): string {
    return join(this.store, `device-${this.devices}`);
  }

  private mount(): void {
    run('mount', ['-t', 'ext4', '-o', 'loop', this.device, this.folder]);
  }

  /** Takes all room behind the device that there is by now. */
  exhaust(): void {
    fillFileSystem(this.store, { freeBytes: 0, fileSystemBytesMax: STORE_BYTES });
  }

  /**
   * The device loses power, with all that has not reached it, is given room, checked and mounted again. No replica runs on it.
   * It is a copy from then on, since a file system may have users for a while, of whom nobody knows.
   */
  losePower(): void {
    run('perl', ['-e', SHUT_DOWN, this.folder]);
    const before = this.device;
    this.devices++;
    emptyFileSystem(this.store);
    run('cp', ['--sparse=always', before, this.device]);
    run('umount', ['--lazy', this.folder]);
    rmSync(before);
    run('e2fsck', ['-p', '-f', this.device], CHECKED_MAX);
    this.mount();
  }

  remove(): void {
    for (const mounted of [this.folder, this.store]) {
      run('umount', ['--lazy', mounted]);
      rmdirSync(mounted);
    }
  }
}
