// The segments of the log as files: `0000000001.log`, `0000000002.log`, ... Appends to the last one, one group at a time,
// each of them synced before it counts; the work is done by the threads of the file system, not by this one. After a
// failure nothing is written any more: whether what the kernel could not write is still there, nobody can know.
import {
  close,
  closeSync,
  fdatasync,
  fsync,
  fsyncSync,
  ftruncateSync,
  open,
  openSync,
  readdirSync,
  readFileSync,
  unlinkSync,
  write,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import type { LogDisk } from '../../consensus/durable-log.js';
import type { LogSource } from '../../consensus/log-recovery.js';

const NAME = /^(\d{10})\.log$/;

function nameOf(segment: number): string {
  return `${String(segment).padStart(10, '0')}.log`;
}

export class SegmentFiles implements LogDisk, LogSource {
  private descriptor = -1;
  private readonly directoryDescriptor: number;
  private numbers: number[];
  private cached: { segment: number; words: Uint32Array } | null = null;
  private isWriting_ = false;
  private isClosed = false;
  private onIdle: (() => void) | null = null;

  constructor(private readonly directory: string) {
    this.directoryDescriptor = openSync(directory, 'r');
    this.numbers = readdirSync(directory)
      .map((name) => Number(NAME.exec(name)?.[1] ?? Number.NaN))
      .filter((number) => !Number.isNaN(number))
      .sort((a, b) => a - b);
  }

  get segments(): readonly number[] {
    return this.numbers;
  }

  read(segment: number): Uint32Array {
    if (this.cached?.segment === segment) return this.cached.words;
    const bytes = readFileSync(join(this.directory, nameOf(segment)));
    const words = new Uint32Array(bytes.length >>> 2);
    new Uint8Array(words.buffer).set(bytes.subarray(0, words.length * 4));
    this.cached = { segment, words };
    return words;
  }

  /**
   * Makes what recovery found true on disk, before anything is written behind it or told of it. What a process reads may be
   * nowhere but in the memory of the kernel: the one before may have ended between a write and its sync. Where that sync failed the
   * kernel even holds the bytes for written, so they are written once more.
   */
  settle(cut: { readonly segment: number; readonly bytes: number } | null, discard: readonly number[]): void {
    this.cached = null;
    // Those that were written last go first: what is left after a crash in between is a log with a shorter end.
    for (const segment of [...discard].sort((a, b) => b - a)) this.unlink(segment);
    // Those before it were synced before it was begun. If there is a torn one it is the last: what is behind it is discarded.
    const last = this.numbers.at(-1);
    if (last !== undefined) this.writeAgain(last, cut?.segment === last ? cut.bytes : undefined);
    fsyncSync(this.directoryDescriptor);
  }

  /** All of the segment, or so many bytes of it, and no more is there then. */
  private writeAgain(segment: number, bytesKept?: number): void {
    const path = join(this.directory, nameOf(segment));
    const bytes = readFileSync(path).subarray(0, bytesKept);
    const descriptor = openSync(path, 'r+');
    try {
      ftruncateSync(descriptor, bytes.length);
      for (let done = 0; done < bytes.length; ) done += writeSync(descriptor, bytes, done, bytes.length - done, done);
      fsyncSync(descriptor);
    } finally {
      closeSync(descriptor);
    }
  }

  /** Files of segments that nobody needs any more. */
  drop(segments: readonly number[]): void {
    for (const segment of segments) this.unlink(segment);
    if (segments.length > 0) fsync(this.directoryDescriptor, () => {}); // should they be there again, they are no harm
  }

  private unlink(segment: number): void {
    unlinkSync(join(this.directory, nameOf(segment)));
    this.numbers = this.numbers.filter((one) => one !== segment);
  }

  append(segment: number, offset: number, bytes: Uint8Array, done: (error: Error | null) => void): void {
    this.isWriting_ = true;
    const finish = (error: Error | null): void => {
      this.isWriting_ = false;
      if (this.isClosed) this.release();
      done(error);
      this.onIdle?.();
    };
    if (offset > 0) {
      this.writeAll(bytes, 0, offset, (error) => {
        if (error !== null) finish(error);
        else fdatasync(this.descriptor, finish);
      });
      return;
    }
    const before = this.descriptor;
    this.descriptor = -1;
    if (before >= 0) close(before, () => {}); // all that was written to it is synced
    open(join(this.directory, nameOf(segment)), 'wx', 0o600, (openError, descriptor) => {
      if (openError !== null) {
        finish(openError);
        return;
      }
      this.descriptor = descriptor;
      this.numbers.push(segment);
      this.writeAll(bytes, 0, 0, (error) => {
        if (error !== null) finish(error);
        else
          fdatasync(descriptor, (syncError) =>
            syncError ? finish(syncError) : fsync(this.directoryDescriptor, finish),
          );
      });
    });
  }

  private writeAll(bytes: Uint8Array, done: number, at: number, callback: (error: Error | null) => void): void {
    write(this.descriptor, bytes, done, bytes.length - done, at, (error, written) => {
      if (error !== null) callback(error);
      else if (done + written === bytes.length) callback(null);
      else this.writeAll(bytes, done + written, at + written, callback);
    });
  }

  /** Resolves when nothing is being written. */
  idle(): Promise<void> {
    if (!this.isWriting_) return Promise.resolve();
    return new Promise((resolve) => {
      this.onIdle = () => {
        if (!this.isWriting_) resolve();
      };
    });
  }

  close(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    if (!this.isWriting_) this.release();
  }

  private release(): void {
    if (this.descriptor >= 0) closeSync(this.descriptor);
    this.descriptor = -1;
    closeSync(this.directoryDescriptor);
  }
}
