// What outlives the process of a replica: a directory in shared memory (tmpfs) with its log ring, a snapshot of its state,
// and a record, the *anchor*, of which place in the log the snapshot stands for. There is one for each id and cluster key;
// the lock on its log file says whether its owner lives. A later process takes the ring out of it as a private copy,
// and begins with an empty one: what is in there is a source of bytes for it, never its log.
//
// Files are 0600 in a directory that is 0700. Everything in them is untrusted all the same: bounded before use, and checked.
import { createHash } from 'node:crypto';
import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { Packr } from 'msgpackr';
import { type Configuration, checkConfiguration } from '../../consensus/configuration.js';
import type { ChainPosition } from '../../consensus/entry.js';
import { ENTRY_ALIGNMENT_BYTES } from '../../consensus/limits.js';
import { QuorateError } from '../../errors.js';
import { checksum } from '../../verbs/checksum.js';
import { lockFile } from '../../verbs/file-lock.js';
import { makeDirectory } from '../directories.js';
import { SESSIONS_BYTES_MAX, SNAPSHOT_BYTES_MAX } from '../transfer/limits.js';
import { ANCHOR_BYTES_MAX, PIECE_BYTES } from './limits.js';

const FORMAT = 1;
const PAGE_BYTES = 4096;
const CHECKSUM_BYTES = 8;
const ANCHOR = 'anchor';
const LOG = 'log';
const SNAPSHOT_NAME = /^snapshot-[0-9]{1,15}$/;

const packer = new Packr({ useRecords: false });

export interface KeptSnapshot {
  readonly file: string;
  readonly bytes: number;
  /** Of its pieces. */
  readonly checksum: number;
  /** How many of the first bytes are the session table. */
  readonly sessionsBytes: number;
}

/** What a region stands for. */
export interface Anchor {
  readonly clusterId: number;
  /** Place in the log of the snapshot, or the beginning of the log. It was applied, and so is committed. */
  readonly position: ChainPosition;
  readonly configuration: Configuration;
  /** Null where the state is the one that a replica begins with. */
  readonly snapshot: KeptSnapshot | null;
}

/** What the life before left. */
export interface Predecessor {
  readonly anchor: Anchor;
  /** A private copy of its ring. */
  readonly ring: Uint32Array;
}

function unusable(what: string): QuorateError {
  return new QuorateError('QUORATE_REGION_UNUSABLE', what);
}

function checkNumber(value: unknown, max: number, what: string): number {
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0 || value > max) {
    throw unusable(`${what} is not an integer in 0..${max}`);
  }
  return value;
}

function checkAnchor(value: unknown): Anchor {
  if (typeof value !== 'object' || value === null) throw unusable('its record is no object');
  const { format, clusterId, position, configuration, snapshot } = value as Record<string, unknown>;
  if (format !== FORMAT) throw unusable(`its record has format ${String(format)}, known is ${FORMAT}`);
  const from = (position ?? {}) as Record<string, unknown>;
  const lsn = checkNumber(from['lsn'], Number.MAX_SAFE_INTEGER, 'position.lsn');
  if (lsn % ENTRY_ALIGNMENT_BYTES !== 0) throw unusable('position.lsn is not where an entry can begin');
  const checked = checkConfiguration(configuration);
  if (checked.clusterId !== clusterId) throw unusable('its configuration is of another cluster');
  return {
    clusterId: checked.clusterId,
    position: {
      lsn,
      hashLow: checkNumber(from['hashLow'], 2 ** 32 - 1, 'position.hashLow'),
      hashHigh: checkNumber(from['hashHigh'], 2 ** 32 - 1, 'position.hashHigh'),
      epoch: checkNumber(from['epoch'], Number.MAX_SAFE_INTEGER, 'position.epoch'),
    },
    configuration: checked,
    snapshot: snapshot === null ? null : checkSnapshot(snapshot),
  };
}

function checkSnapshot(value: unknown): KeptSnapshot {
  const from = (value ?? {}) as Record<string, unknown>;
  if (typeof from['file'] !== 'string' || !SNAPSHOT_NAME.test(from['file'])) throw unusable('snapshot.file is no name');
  const bytes = checkNumber(from['bytes'], SNAPSHOT_BYTES_MAX, 'snapshot.bytes');
  return {
    file: from['file'],
    bytes,
    checksum: checkNumber(from['checksum'], Number.MAX_SAFE_INTEGER, 'snapshot.checksum'),
    sessionsBytes: checkNumber(from['sessionsBytes'], Math.min(bytes, SESSIONS_BYTES_MAX), 'snapshot.sessionsBytes'),
  };
}

/** A directory that is this user's alone, made if it is not there. Throws QUORATE_INVALID_ARGUMENT, QUORATE_SYSTEM. */
function ownDirectory(path: string): void {
  try {
    makeDirectory(path);
    const { mode, uid } = lstatSync(path);
    if ((mode & constants.S_IFMT) === constants.S_IFDIR && uid === process.geteuid?.() && (mode & 0o077) === 0) return;
  } catch (error) {
    throw new QuorateError(
      'QUORATE_SYSTEM',
      `the region directory ${path} cannot be made: ${(error as Error).message}`,
      {
        cause: error,
      },
    );
  }
  throw new QuorateError(
    'QUORATE_INVALID_ARGUMENT',
    `the region directory ${path} must be a directory of this user with mode 0700: others could write a replica's memory`,
  );
}

/** Opens a file for reading that is nobody else's. */
function openOwn(path: string): number {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  const status = fstatSync(fd);
  if (status.isFile() && status.uid === process.geteuid?.() && (status.mode & 0o077) === 0) return fd;
  closeSync(fd);
  throw unusable(`${path} is not a regular file of this user with mode 0600`);
}

export class Region {
  readonly path: string;
  /** The anchor that stands in the region now; null if there is none. */
  anchor: Anchor | null = null;
  private nextSnapshot = 1;

  private constructor(
    path: string,
    private readonly logBytes: number,
    private readonly onWarning: (error: Error) => void,
  ) {
    this.path = path;
  }

  /** The region of this id. Throws QUORATE_INVALID_ARGUMENT, QUORATE_SYSTEM. */
  static open(
    directory: string,
    id: number,
    clusterKey: Uint8Array | string,
    logBytes: number,
    onWarning: (error: Error) => void,
  ): Region {
    const name = createHash('sha256').update('quorate region\0').update(clusterKey).digest('hex').slice(0, 16);
    const path = join(directory, `region-${name}-${id}`);
    ownDirectory(directory);
    ownDirectory(path);
    return new Region(path, logBytes, onWarning);
  }

  /** Where the log ring is to be allocated, as shared memory. */
  get logPath(): string {
    return join(this.path, LOG);
  }

  /** A ring of another size cannot be taken over. One whose owner lives is left alone: who opens it finds that out. */
  dropLogOfOtherSize(): void {
    let fd: number;
    try {
      fd = openSync(this.logPath, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    } catch {
      return; // what is wrong with it, if there is one, says who opens it
    }
    try {
      const { size, ino } = fstatSync(fd);
      const expected = Math.ceil(this.logBytes / PAGE_BYTES) * PAGE_BYTES;
      // Who lives may have put another file in its place meanwhile, and has a lock on that.
      if (size === expected || !lockFile(fd) || statSync(this.logPath).ino !== ino) return;
      this.onWarning(unusable(`the log in ${this.path} has ${size} bytes, and logBytes is ${this.logBytes} now`));
      unlinkSync(this.logPath);
    } finally {
      closeSync(fd);
    }
  }

  /**
   * Takes what the life before left out of the log memory, which is allocated, and so this process's alone; the memory is
   * empty afterwards. Null if there is nothing; throws QUORATE_REGION_UNUSABLE if what there is is of no use.
   */
  take(log: ArrayBuffer): Predecessor | null {
    const words = new Uint32Array(log, 0, this.logBytes / 4);
    try {
      const anchor = this.readAnchor();
      this.anchor = anchor;
      return anchor === null ? null : { anchor, ring: words.slice() };
    } finally {
      words.fill(0);
      this.removeSnapshotsBut(this.anchor?.snapshot?.file);
    }
  }

  private readAnchor(): Anchor | null {
    let fd: number;
    try {
      fd = openOwn(join(this.path, ANCHOR));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
      throw error;
    }
    try {
      const { size } = fstatSync(fd);
      if (size <= CHECKSUM_BYTES || size > ANCHOR_BYTES_MAX) throw unusable(`its record has ${size} bytes`);
      const bytes = new Uint8Array(size);
      if (readSync(fd, bytes, 0, size, 0) !== size) throw unusable('its record cannot be read');
      const body = bytes.subarray(CHECKSUM_BYTES);
      const sum = new DataView(bytes.buffer).getFloat64(0, true);
      if (sum !== checksum(body, 0)) throw unusable('the checksum of its record does not match');
      return checkAnchor(packer.unpack(body));
    } finally {
      closeSync(fd);
    }
  }

  /** From now on the region stands for this; what stood there before is removed. */
  putAnchor(anchor: Anchor): void {
    const body = packer.pack({ format: FORMAT, ...anchor });
    const bytes = new Uint8Array(CHECKSUM_BYTES + body.length);
    bytes.set(body, CHECKSUM_BYTES);
    if (bytes.length > ANCHOR_BYTES_MAX) throw unusable(`the record would have ${bytes.length} bytes`);
    new DataView(bytes.buffer).setFloat64(0, checksum(bytes.subarray(CHECKSUM_BYTES), 0), true);
    const path = join(this.path, ANCHOR);
    writeFileSync(`${path}.new`, bytes, { mode: 0o600 });
    renameSync(`${path}.new`, path);
    this.anchor = anchor;
    this.removeSnapshotsBut(anchor.snapshot?.file);
  }

  /** Exactly one snapshot is kept; another one is there only while it is being written. */
  private removeSnapshotsBut(file: string | undefined): void {
    for (const name of readdirSync(this.path)) {
      if (SNAPSHOT_NAME.test(name) && name !== file) unlinkSync(join(this.path, name));
    }
    if (file !== undefined) this.nextSnapshot = Number(file.slice('snapshot-'.length)) + 1;
  }

  /** A file for the next snapshot, which counts only once an anchor names it. */
  async createSnapshot(): Promise<{ file: string; handle: FileHandle }> {
    const file = `snapshot-${this.nextSnapshot % 1e15}`;
    const path = join(this.path, file);
    rmSync(path, { force: true });
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
    return { file, handle: await open(path, flags, 0o600) };
  }

  dropSnapshot(file: string): void {
    rmSync(join(this.path, file), { force: true });
  }

  /** The bytes of a snapshot in pieces, each valid until the next one is asked for. Throws QUORATE_REGION_UNUSABLE. */
  async *readSnapshot({ file, bytes, checksum: expected }: KeptSnapshot): AsyncGenerator<Uint8Array> {
    const handle = await open(join(this.path, file), constants.O_RDONLY | constants.O_NOFOLLOW).catch(
      (error: Error) => {
        throw unusable(`its snapshot cannot be opened: ${error.message}`);
      },
    );
    try {
      const status = await handle.stat();
      if (!status.isFile() || status.size !== bytes)
        throw unusable(`its snapshot has ${status.size} bytes of ${bytes}`);
      const piece = new Uint8Array(Math.min(PIECE_BYTES, Math.max(1, bytes)));
      let sum = 0;
      for (let done = 0; done < bytes; ) {
        const wanted = Math.min(piece.length, bytes - done);
        const { bytesRead } = await handle.read(piece, 0, wanted, done);
        if (bytesRead !== wanted) throw unusable(`its snapshot ends after ${done + bytesRead} bytes of ${bytes}`);
        sum = checksum(piece.subarray(0, wanted), sum);
        done += wanted;
        yield piece.subarray(0, wanted);
      }
      if (sum !== expected) throw unusable('the checksum of its snapshot does not match');
    } finally {
      await handle.close();
    }
  }

  /** The replica is no member any more: nothing of it shall stay in memory. */
  remove(): void {
    this.anchor = null;
    rmSync(this.path, { recursive: true, force: true });
  }
}
