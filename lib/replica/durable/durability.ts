// The durable mode of one replica: its directory, which no other process may use, and what is in there. `state` (LevelDB): who
// this replica is, and its last snapshot; `promise`: what it promised as a voter, written by the background plane;
// `log`: the log behind the snapshot, in files. Opens them, brings back what they hold, takes snapshots when the log has
// grown, and stops using all of it when the disk fails.
import { randomInt } from 'node:crypto';
import { closeSync, existsSync, fsyncSync, openSync, readdirSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import type { Configuration } from '../../consensus/configuration.js';
import { decodeConfiguration } from '../../consensus/configuration.js';
import { DurableLog } from '../../consensus/durable-log.js';
import {
  type ChainPosition,
  chainBeginning,
  copyPosition,
  EntryType,
  entryOrigin,
  entrySequence,
  isSamePosition,
} from '../../consensus/entry.js';
import { EPOCH_NONE, formatEpoch } from '../../consensus/epoch.js';
import { BOOT_ID_MAX, ENTRY_HEADER_BYTES } from '../../consensus/limits.js';
import {
  CorruptLogError,
  LogRecovery,
  type LogSource,
  type RecoveredLog,
  replay,
} from '../../consensus/log-recovery.js';
import type { CommandSink, RecoveredState } from '../../consensus/replication-host.js';
import { errorCode, QuorateError } from '../../errors.js';
import { lockFile } from '../../verbs/file-lock.js';
import { monotonicNs } from '../../verbs/objects.js';
import { makeDirectory } from '../directories.js';
import type { StateMachine } from '../replica-options.js';
import type { DonorHost } from '../transfer/donor.js';
import { PieceReader, SnapshotSink } from '../transfer/snapshot-stream.js';
import { turn } from '../turn.js';
import { diskError, forkError, storeInvalid } from './disk-error.js';
import { becomeFork, type DurableFork } from './durable-fork.js';
import { CLOSE_TIMEOUT_MS, SEGMENT_BYTES, SNAPSHOT_RETRY_MS, STORE_FORMAT } from './limits.js';
import { NO_PROMISE, PromiseStore, type StoredPromise } from './promise-store.js';
import { SegmentFiles } from './segment-files.js';
import { fromSource, SourceError, writePieces } from './snapshot-pieces.js';
import { type Identity, StateStore, type StoredSnapshot } from './state-store.js';

export interface DurabilityOptions {
  /** Its absolute path. */
  readonly directory: string;
  readonly id: number;
  readonly logBytes: number;
  readonly snapshotAfterBytes: number;
}

/** What is brought back, and into what. */
export interface ReplayHost extends CommandSink {
  readonly stateMachine: StateMachine<never>;
  readonly ring: Uint8Array;
  restoreSessions(sessions: Uint8Array): void;
  readonly onWarning: (error: Error) => void;
}

/** What the running replica does for its durability. */
export interface DurabilityHost {
  /** State, sessions, configuration and place in the log of this moment. */
  freeze(): ReturnType<DonorHost['freeze']>;
  /** More of the log is on disk, or there is room for more. */
  onProgress(): void;
  /** The disk failed. */
  onFailure(error: QuorateError): void;
  onWarning(error: Error): void;
}

/**
 * The entries of files that were made just now must not vanish with the power, or the replica would be another one; nor may those
 * of directories above, made by this process or by one that ended before it had come to this.
 */
function syncDirectories(directory: string): void {
  for (const path of [join(directory, 'state'), join(directory, 'promise'), directory]) syncPath(path);
  const { dev } = statSync(directory);
  for (let path = directory; path !== dirname(path) && statSync(dirname(path)).dev === dev; path = dirname(path)) {
    try {
      syncPath(dirname(path));
    } catch (error) {
      // A folder in which this user may make files and not look is the administrator's.
      if ((error as NodeJS.ErrnoException).code !== 'EACCES') throw error;
    }
  }
}

/**
 * Whatever an earlier process had written and not synced when it ended is in the memory of the kernel: from there it is read as
 * if it were on disk, and must be there before this process relies on it.
 */
function syncFound(directory: string): void {
  for (const folder of ['state', 'promise', 'log'].map((name) => join(directory, name))) {
    if (!existsSync(folder)) continue;
    for (const name of readdirSync(folder)) syncPath(join(folder, name));
    syncPath(folder);
  }
}

function syncPath(path: string): void {
  const descriptor = openSync(path, 'r');
  try {
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

export class Durability {
  readonly bootId: number;
  /** What this life promised in its earlier processes. */
  readonly promise: StoredPromise;
  private identity: Identity;
  private recovered: { log: RecoveredLog; applied: ChainPosition; state: RecoveredState } | null = null;
  private snapshot: StoredSnapshot | null;
  private log: DurableLog | null = null;
  private host: DurabilityHost | null = null;
  private bytesAtSnapshot = 0;
  /** The snapshot that is being taken, until it is stored or given up. */
  private taking: Promise<void> | null = null;
  private pieces: PieceReader | null = null;
  private retryAt_ms = 0;
  private failure_: QuorateError | null = null;
  private onReached: (() => void) | null = null;
  private isClosed = false;
  private ended: Promise<void> | undefined;
  private isReleased = false;

  /**
   * Opens the directory, or makes it. Rejects with QUORATE_STORE_IN_USE (another process has it), QUORATE_STORE_INVALID,
   * QUORATE_STORE_MISMATCH (it is another replica's), QUORATE_DISK_FULL or QUORATE_DISK_FAILED. With a fork the directory
   * becomes that of the new cluster first: see becomeFork().
   */
  static async open(options: DurabilityOptions, fork: DurableFork | null = null): Promise<Durability> {
    const { id, directory } = options;
    const failed = (error: unknown): QuorateError =>
      fork === null ? diskError(id, directory, 'open its store', error) : forkError(id, directory, error);
    let lock = -1;
    try {
      makeDirectory(join(directory, 'log'));
      lock = openSync(join(directory, 'lock'), 'a', 0o600);
    } catch (error) {
      throw failed(error);
    }
    let state: StateStore | undefined;
    try {
      if (!lockFile(lock)) {
        throw new QuorateError(
          'QUORATE_STORE_IN_USE',
          `${directory} is in use by another replica, perhaps in another process; each replica has a directory of its own: ` +
            'stop the other one, or name another directory',
        );
      }
      syncFound(directory);
      state = await StateStore.open(join(directory, 'state'));
      const promise = Durability.findPromise(directory);
      if (fork !== null) await becomeFork(state, promise, options, fork);
      const identity = await Durability.identify(state, directory, options, promise);
      syncDirectories(directory);
      return new Durability(options, lock, state, identity, promise);
    } catch (error) {
      await state?.close();
      closeSync(lock);
      throw errorCode(error) === undefined ? failed(error) : error;
    }
  }

  static promisePath(directory: string): string {
    return join(resolve(directory), 'promise');
  }

  private static findPromise(directory: string): StoredPromise {
    const store = new PromiseStore(Durability.promisePath(directory));
    try {
      const promise = store.read();
      // After a sync that failed the kernel may hold for written what is not: see SegmentFiles.settle().
      if (promise !== NO_PROMISE) store.write(promise);
      return promise;
    } finally {
      store.close();
    }
  }

  private static async identify(
    state: StateStore,
    directory: string,
    { id, logBytes }: DurabilityOptions,
    promise: StoredPromise,
  ): Promise<Identity> {
    const known = state.identity();
    if (known === null) {
      if (promise !== NO_PROMISE || readdirSync(join(directory, 'log')).length > 0) {
        throw storeInvalid(directory, 'it has lost whose directory this is, and there is more in it');
      }
      const bootId = randomInt(1, BOOT_ID_MAX);
      const fresh = { format: STORE_FORMAT, id, bootId, logBytes, genesis: null, epochFloor: EPOCH_NONE };
      await state.setIdentity(fresh);
      return fresh;
    }
    const mismatch = (what: string): never => {
      throw new QuorateError('QUORATE_STORE_MISMATCH', `${directory} ${what}: name the directory of this replica`);
    };
    if (known.id !== id) mismatch(`is that of replica ${known.id}, not ${id}`);
    if (known.logBytes !== logBytes) {
      mismatch(`was made with logBytes ${known.logBytes}, now it is ${logBytes}, and the size cannot change`);
    }
    // It joins on disk before it promises or writes anything. The store takes a record that was damaged for one that was never
    // written, and gives the one before: such a replica would vote as the voter that it was, without its log.
    if (known.genesis === null && (promise.epoch > EPOCH_NONE || readdirSync(join(directory, 'log')).length > 0)) {
      throw storeInvalid(directory, 'it has lost which cluster it is part of, and there is more in it');
    }
    return known;
  }

  private readonly files: SegmentFiles;

  private constructor(
    private readonly options: DurabilityOptions,
    private readonly lock: number,
    private readonly state: StateStore,
    identity: Identity,
    promise: StoredPromise,
  ) {
    this.identity = identity;
    this.bootId = identity.bootId;
    // One that reaches no further was made in the cluster that this one was forked off, and is no vote here.
    this.promise = promise.epoch > identity.epochFloor ? promise : NO_PROMISE;
    this.snapshot = state.snapshot();
    this.files = new SegmentFiles(join(options.directory, 'log'));
  }

  get directory(): string {
    return this.options.directory;
  }

  /** First configuration of the cluster that this replica is part of, null if it is part of none. */
  get genesis(): Configuration | null {
    return this.identity.genesis;
  }

  get failure(): QuorateError | null {
    return this.failure_;
  }
  get syncedLsn(): number {
    return this.log?.synced.lsn ?? 0;
  }
  get snapshotLsn(): number {
    return this.snapshot?.position.lsn ?? 0;
  }

  // -- coming back -------------------------------------------------------------------------------------------------

  /**
   * Feeds the state machine with the snapshot and what is known to be committed behind it, and puts the rest of the log
   * into the ring. Null if this replica is part of no cluster yet. Rejects with QUORATE_LOG_CORRUPT, or with
   * QUORATE_STORE_INVALID, if the disk lost what it had, and then has changed nothing on it; with QUORATE_DISK_FULL or
   * QUORATE_DISK_FAILED if snapshot or log cannot be used. `held` is where the state machine and the sessions stand already.
   */
  async recover(host: ReplayHost, held: ChainPosition | null = null): Promise<RecoveredState | null> {
    const { genesis } = this.identity;
    if (genesis === null) return null;
    const { snapshot, files } = this;
    let configuration = genesis;
    const applied = chainBeginning(genesis.clusterId);
    if (snapshot !== null) {
      if (held === null || !isSamePosition(held, snapshot.position)) await this.restore(snapshot, host);
      copyPosition(snapshot.position, applied);
      configuration = snapshot.configuration;
    }
    const log = this.readLog(applied, genesis.clusterId, snapshot?.isDetached ?? false);
    this.checkPromised(log);
    this.onDisk('write the end of its log once more', () => files.settle(log.cut, log.discard));
    const { ring } = host;
    replay(log, this.logOnDisk, ring, {
      entry: (words, at, type, payloadBytes, end) => {
        if (end.lsn > log.commitLsn) return;
        const payload = at * 4 + ENTRY_HEADER_BYTES;
        if (type === EntryType.command) {
          const bytes = new Uint8Array(words.buffer, words.byteOffset, words.length * 4);
          host.applyCommand(
            applied.lsn,
            entryOrigin(words, at),
            entrySequence(words, at),
            bytes,
            payload,
            payloadBytes,
          );
        } else if (type === EntryType.configuration) {
          configuration = decodeConfiguration(new Uint8Array(words.buffer).slice(payload, payload + payloadBytes));
        }
        copyPosition(end, applied);
      },
    });
    if (log.tail.lsn - applied.lsn > ring.length) {
      throw this.corrupt(
        `only ${applied.lsn} of ${log.tail.lsn} bytes of it are known to be committed, and the rest does not fit the ring`,
      );
    }
    const foreignBelowLsn = Math.max(log.start.lsn, log.tail.lsn - ring.length);
    const state = { applied: { ...applied }, configuration, foreignBelowLsn };
    this.recovered = { log, applied, state };
    return state;
  }

  private async restore(snapshot: StoredSnapshot, host: ReplayHost): Promise<void> {
    const sink = new SnapshotSink(host.stateMachine, snapshot.sessionsBytes, snapshot.bytes - snapshot.sessionsBytes);
    let restored: Awaited<ReturnType<SnapshotSink['finish']>>;
    try {
      for await (const piece of this.storedPieces(snapshot)) await sink.write(piece);
      restored = await sink.finish();
    } catch (error) {
      sink.abort(error as Error, host.onWarning);
      throw error;
    }
    restored.put();
    host.restoreSessions(restored.sessions);
  }

  /** What the state machine throws, to which they go, is not the disk's. */
  private async *storedPieces(snapshot: StoredSnapshot): AsyncGenerator<Uint8Array> {
    try {
      yield* this.state.pieces(snapshot);
    } catch (error) {
      throw errorCode(error) === undefined
        ? diskError(this.options.id, this.directory, 'read its snapshot', error)
        : error;
    }
  }

  private onDisk<Value>(what: string, action: () => Value): Value {
    try {
      return action();
    } catch (error) {
      throw diskError(this.options.id, this.directory, what, error);
    }
  }

  private get logOnDisk(): LogSource {
    const { files } = this;
    const { segments } = files;
    return { segments, read: (segment) => this.onDisk('read its log', () => files.read(segment)) };
  }

  private readLog(start: ChainPosition, clusterId: number, isDetached: boolean): RecoveredLog {
    try {
      return LogRecovery.run(this.logOnDisk, start, clusterId, isDetached);
    } catch (error) {
      if (error instanceof CorruptLogError) throw this.corrupt(error.message, error);
      throw error;
    }
  }

  /**
   * Who has entries had promised the epoch of a leader before, on disk: without that promise it might make another one. The
   * place of a snapshot that was received may be of a later epoch than any that was promised.
   */
  private checkPromised({ start, tail }: RecoveredLog): void {
    const isGone = this.promise === NO_PROMISE && tail.epoch > this.identity.epochFloor;
    const isEarlier = this.promise !== NO_PROMISE && tail.lsn > start.lsn && tail.epoch > this.promise.epoch;
    if (!isGone && !isEarlier) return;
    const what = `what this replica promised as a voter is gone, and its log has entries of epoch ${formatEpoch(tail.epoch)}`;
    throw storeInvalid(Durability.promisePath(this.directory), what);
  }

  private corrupt(what: string, cause?: unknown): QuorateError {
    return new QuorateError(
      'QUORATE_LOG_CORRUPT',
      `the log of replica ${this.options.id} in ${this.directory} lost entries that had been synced: ${what}. This replica ` +
        'must not go on as the voter it was. While a majority of the others runs, or can be started, remove the directory and ' +
        'start this one again: it gets the state of the others, as a new life. Otherwise bring the directory back from a copy',
      { cause },
    );
  }

  // -- running -----------------------------------------------------------------------------------------------------

  /** The cluster is known; on disk when it resolves, and never another one. Rejects with QUORATE_DISK_FULL or QUORATE_DISK_FAILED. */
  async join(genesis: Configuration): Promise<void> {
    if (this.identity.genesis !== null) return;
    const identity = { ...this.identity, genesis };
    try {
      await this.state.setIdentity(identity);
    } catch (error) {
      throw diskError(this.options.id, this.directory, 'store which cluster it is part of', error);
    }
    this.identity = identity;
  }

  /** The log begins or goes on, after join(); nothing of this replica has been seen by others before. */
  begin(ring: Uint8Array, host: DurabilityHost): DurableLog {
    const { genesis } = this.identity;
    if (genesis === null) throw new Error('a durable log begins before its cluster is known');
    this.host = host;
    const { recovered } = this;
    const position = recovered?.log.tail ?? chainBeginning(genesis.clusterId);
    this.bytesAtSnapshot = -(position.lsn - (recovered?.log.start.lsn ?? 0));
    this.log = new DurableLog(
      {
        clusterId: genesis.clusterId,
        ring,
        segmentBytes: Math.min(SEGMENT_BYTES, this.options.snapshotAfterBytes),
        applied: recovered?.applied ?? position,
        position,
        segments: recovered?.log.segments ?? [],
        nextSegment: recovered?.log.nextSegment ?? 1,
        isDetached: recovered?.log.isDetached ?? false,
        onProgress: () => {
          this.onReached?.();
          if (!this.isClosed) host.onProgress();
        },
        onFailure: (error) => this.failed(diskError(this.options.id, this.directory, 'write its log', error)),
      },
      this.files,
    );
    this.recovered = null;
    return this.log;
  }

  private failed(error: QuorateError): void {
    if (this.failure_ !== null) return;
    this.failure_ = error;
    this.log?.fail(error);
    this.onReached?.();
    if (!this.isClosed) this.host?.onFailure(error);
  }

  /** The background plane could not store a promise. */
  promiseFailed(error: QuorateError): void {
    this.failed(error);
  }

  /** Takes a snapshot when it is time; to be called after whatever was applied. */
  look(): void {
    const { log } = this;
    this.onReached?.(); // a snapshot that was received may have made the one under way useless
    if (log === null || this.taking !== null || this.failure_ !== null || this.isClosed) return;
    const grown = log.bytesWritten - this.bytesAtSnapshot >= this.options.snapshotAfterBytes;
    if (!grown && !log.awaitsSnapshot) return;
    if (monotonicNs() / 1e6 < this.retryAt_ms) return;
    this.taking = this.takeSnapshot(log)
      .catch((error: unknown) => {
        this.retryAt_ms = monotonicNs() / 1e6 + SNAPSHOT_RETRY_MS;
        if (this.isClosed) return;
        if (error instanceof SourceError) {
          const text = `replica ${this.options.id} cannot take a snapshot, so its log on disk keeps growing: ${error.message}`;
          this.host?.onWarning(new QuorateError('QUORATE_SNAPSHOT_FAILED', text, { cause: error.cause }));
        } else {
          this.failed(diskError(this.options.id, this.directory, 'store a snapshot', error));
        }
      })
      .finally(() => {
        this.taking = null;
      });
  }

  private async takeSnapshot(log: DurableLog): Promise<void> {
    // Not inside the plane's own call.
    await turn();
    if (this.isClosed || this.failure_ !== null) return;
    const { state, host } = this;
    const bytesWritten = log.bytesWritten;
    const frozen = await fromSource(() => (host as DurabilityHost).freeze());
    const { position, configuration, sessionsBytes, source } = frozen;
    const pieces = new PieceReader(source);
    this.pieces = pieces;
    try {
      if (this.isClosed) return;
      const written = await writePieces(state, this.snapshot, pieces);
      if (!(await this.reached(log, position.lsn))) return;
      const { isDetached } = log;
      const snapshot = { position: { ...position }, configuration, sessionsBytes, isDetached, ...written };
      await state.commit(snapshot);
      this.snapshot = snapshot;
    } finally {
      this.pieces = null;
      source.close();
    }
    this.bytesAtSnapshot = bytesWritten;
    const gone = log.forget(position.lsn);
    this.files.drop(gone);
    if (!this.isClosed) this.host?.onProgress();
  }

  /**
   * Resolves when the log on disk goes so far that the snapshot may take the place of what is before; false if it never
   * will, since there is a newer one, or an end.
   */
  private async reached(log: DurableLog, lsn: number): Promise<boolean> {
    while (!log.reaches(lsn)) {
      if (log.isBehind(lsn) || this.failure_ !== null || this.isClosed) return false;
      await new Promise<void>((done) => {
        this.onReached = done;
      });
    }
    return true;
  }

  /** Throws QUORATE_DISK_FAILED while a write is under way that close() did not wait for: it could still change the directory. */
  checkQuiet(): void {
    if (!this.isReleased) {
      throw forkError(this.options.id, this.directory, new Error('a write to it is under way and does not end'));
    }
  }

  /** Begins nothing any more: what is applied from here on gets into no snapshot, and what arrives into no log. */
  stop(): void {
    this.isClosed = true;
    this.log?.close();
    this.onReached?.();
    this.pieces?.interrupt(new QuorateError('QUORATE_CLOSED', `replica ${this.options.id} was closed`));
  }

  /**
   * Ends the use of the directory; what was being written gets time to end, and so does the thread that writes promises, whose end
   * is passed. On a disk that stands still it goes on afterwards, and the directory is in use for so long.
   */
  close(threadEnded: Promise<void> = Promise.resolve()): Promise<void> {
    this.ended ??= this.end(threadEnded);
    return this.ended;
  }

  private async end(threadEnded: Promise<void>): Promise<void> {
    this.stop();
    const released = this.release(threadEnded);
    released.catch(() => {}); // after the timeout nobody is there to be told
    let timer: NodeJS.Timeout | undefined;
    const timeout = new Promise<void>((done) => {
      timer = setTimeout(done, CLOSE_TIMEOUT_MS);
    });
    await Promise.race([released, timeout]);
    clearTimeout(timer);
  }

  private async release(threadEnded: Promise<void>): Promise<void> {
    await threadEnded;
    await this.files.idle();
    this.files.close();
    await this.taking;
    await this.state.close();
    closeSync(this.lock);
    this.isReleased = true;
  }
}
