// A disk of the run's own that fails as real ones do: ext4 on a loop device, whose blocks get room when they are first
// written, in a file on a file system in memory. When that has no room left the device refuses writes, the kernel aborts
// the journal of ext4 and lets nothing be written any more, and what programs are told is ENOSPC, EIO or EROFS. When the power
// goes, what had not reached the device is lost, however much of it programs had written. A device that has no room left is not
// to be trusted with what it took before: files lost bytes whose fdatasync had succeeded, in a third of the tries of a program
// that does nothing but append and sync (Linux 6.18). One that has room loses nothing that was synced. All of it is mounted in
// the mount namespace of the run (private-memory.ts): loop devices detach themselves with their mounts.
import { mkdirSync, rmdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { emptyFileSystem, fillFileSystem } from './ballast.js';
import { hasCommand, runCommand } from './command.js';
import { IN_OWN_NAMESPACE } from './private-memory.js';

const JOURNAL_MIB = 4;
/** Of the store, besides a device that is written to the end and the one that takes its place. */
const STORE_EXTRA_BYTES = 8 * 1024 * 1024;
/** Exit codes of e2fsck up to this one: nothing was wrong, or all of it was put right. */
const CHECKED_MAX = 1;
/** EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH: from now on nothing reaches the device. Node.js has no ioctl(). */
const SHUT_DOWN =
  'open(my $root, "<", $ARGV[0]) or die "$!"; my $flags = pack("L", 2); ioctl($root, 0x8004587d, $flags) or die "$!";';
const PROGRAMS = ['mkfs.ext4', 'e2fsck', 'perl'];

/** A small one, mounted and shut down; of it nothing is left when the program ends that mounted it. */
const TRIAL = [
  'mount -t tmpfs -o mode=0700,size=16m quorate-nemesis /tmp && cd /tmp && mkdir folder',
  'truncate --size 8M device && mkfs.ext4 -q -F device && mount -t ext4 -o loop device folder',
  'perl -e "$0" folder',
].join(' && ');

/** Why there cannot be any here; undefined if there can, which is tried. */
export function whyNoThinDisks(): string | undefined {
  const missing = PROGRAMS.filter((program) => !hasCommand(program));
  if (missing.length > 0) return `it needs ${missing.join(', ')}`;
  const [program = '', ...args] = [...IN_OWN_NAMESPACE, 'sh', '-c', TRIAL, SHUT_DOWN];
  try {
    runCommand(program, args);
    return undefined;
  } catch (error) {
    return `a loop device cannot be used (${(error as Error).message.split(' failed: ').at(-1)?.trim()})`;
  }
}

export class ThinDisk {
  /** A file system in memory. */
  private readonly store: string;
  private readonly storeBytes: number;
  private devices = 0;

  /** `folder` is where it is mounted, its store beside it; `deviceBytes` is its size as programs see it. */
  constructor(
    readonly folder: string,
    deviceBytes: number,
  ) {
    this.store = `${folder}-store`;
    this.storeBytes = 2 * deviceBytes + STORE_EXTRA_BYTES;
    mkdirSync(folder);
    mkdirSync(this.store);
    runCommand('mount', ['-t', 'tmpfs', '-o', `mode=0700,size=${this.storeBytes}`, 'quorate-nemesis', this.store]);
    const { device } = this;
    runCommand('truncate', ['--size', `${deviceBytes}`, device]);
    runCommand('mkfs.ext4', ['-q', '-F', '-m', '0', '-J', `size=${JOURNAL_MIB}`, device]);
    this.mount();
  }

  /** The file that is the device now. */
  private get device(): string {
    return join(this.store, `device-${this.devices}`);
  }

  private mount(): void {
    runCommand('mount', ['-t', 'ext4', '-o', 'loop', this.device, this.folder]);
  }

  /** Takes all room behind the device that there is by now. */
  exhaust(): void {
    fillFileSystem(this.store, { freeBytes: 0, fileSystemBytesMax: this.storeBytes });
  }

  /**
   * The device loses power, with all that has not reached it, is given room, checked and mounted again. No replica runs on it.
   * It is a copy from then on, since a file system may have users for a while, of whom nobody knows.
   */
  losePower(): void {
    runCommand('perl', ['-e', SHUT_DOWN, this.folder]);
    const before = this.device;
    this.devices++;
    emptyFileSystem(this.store);
    runCommand('cp', ['--sparse=always', before, this.device]);
    runCommand('umount', ['--lazy', this.folder]);
    rmSync(before);
    runCommand('e2fsck', ['-p', '-f', this.device], CHECKED_MAX);
    this.mount();
  }

  remove(): void {
    for (const mounted of [this.folder, this.store]) {
      runCommand('umount', ['--lazy', mounted]);
      rmdirSync(mounted);
    }
  }
}
