// The simulated disk of one replica: what a loss of power leaves of it. A write is on disk when its completion is reported;
// of one that is under way when the process ends all, nothing, the beginning or any pieces may be there. If the process alone
// ended these are in the memory of the kernel: the next process reads them, and until that has synced them the power takes them. Promises are
// written synchronously, so they are there or not. A disk outlives the processes that use it; its life is the one that the
// configuration names. It may fail a write, or be full for a while: of the write that failed it keeps what it would keep of
// one that was under way.
import type { Configuration } from '../consensus/configuration.js';
import { decodeConfiguration } from '../consensus/configuration.js';
import type { LogDisk } from '../consensus/durable-log.js';
import { type ChainPosition, chainBeginning, EntryType, entryOrigin, entrySequence } from '../consensus/entry.js';
import { ENTRY_HEADER_BYTES } from '../consensus/limits.js';
import { LogRecovery, type LogSource, type RecoveredLog, replay } from '../consensus/log-recovery.js';
import type { RecoveredState } from '../consensus/replication-host.js';
import type { Random } from '../fabric/sim/random.js';
import { decodeCommand, type SimStateMachine, type StateSnapshot } from './sim-state-machine.js';

/** The disks of a simulation's durable replicas. */
export interface SimDiskOptions {
  /** Time of a write with its sync, at least. */
  readonly syncMin_ns: number;
  /** The same, at most. */
  readonly syncMax_ns: number;
  /** A segment of the log is about so long. */
  readonly segmentBytes: number;
  /** A snapshot is stored when so much log was written since the last one. */
  readonly snapshotAfterBytes: number;
  /** Time that it takes to store a snapshot, at most. */
  readonly snapshotMax_ns: number;
  /** How often a replica that crashes has lost its disk, too, where the cluster can bear that. */
  readonly diskLossProbability: number;
}

export interface SimStoredSnapshot {
  /** See DurableLog.isDetached. */
  readonly isDetached: boolean;
  readonly position: ChainPosition;
  readonly configuration: Configuration;
  readonly state: StateSnapshot;
}

interface Pending {
  readonly segment: number;
  readonly offset: number;
  readonly bytes: Uint8Array;
}

const SECTOR_BYTES = 512;

/** What the file system says of a write that failed. */
export class SimDiskError extends Error {
  constructor(readonly code: 'EIO' | 'ENOSPC') {
    super(code === 'EIO' ? 'EIO: i/o error' : 'ENOSPC: no space left on device');
  }
}

export class SimDisk implements LogSource {
  private promise = { epoch: 0, to: -1, leaseWait_ns: 0 };
  snapshot: SimStoredSnapshot | null = null;
  /** Promises up to this epoch were made in the cluster that the disk's own one was forked off. */
  private epochFloor = 0;
  /** Something was written: a process that starts comes back. */
  isUsed = false;
  /** The next write, whatever it is of, fails. */
  failsOnce = false;
  /** It takes nothing until then. */
  fullUntil_ns = 0;
  private readonly files = new Map<number, Uint8Array>();
  private pending: Pending | null = null;
  /** What was written last is in the memory of the kernel, and this is what is on disk; a file that is not there yet is null. */
  private unsynced: { readonly segment: number; readonly onDisk: Uint8Array | null } | null = null;

  constructor(
    /** The life that it stands for. */
    public bootId: number,
    private genesis: Configuration,
  ) {}

  /** What its life promised in earlier processes. */
  get promised(): { readonly epoch: number; readonly to: number } {
    return this.promise.epoch > this.epochFloor ? this.promise : { epoch: 0, to: -1 };
  }

  /** Stands for another life from now on, the first one of a new cluster. The log, and the promise, are the old ones still. */
  become(genesis: Configuration, bootId: number, snapshot: SimStoredSnapshot): void {
    this.genesis = genesis;
    this.bootId = bootId;
    this.snapshot = snapshot;
    this.epochFloor = snapshot.position.epoch;
  }

  /** Segments that nobody needs are being removed, in any order, and the power goes. */
  loseSegments(random: Random): void {
    this.drop(this.segments.filter(() => random.chance(0.5)));
  }

  get segments(): readonly number[] {
    return [...this.files.keys()].sort((a, b) => a - b);
  }

  read(segment: number): Uint32Array {
    const bytes = this.files.get(segment) as Uint8Array;
    const words = new Uint32Array(bytes.length >>> 2);
    new Uint8Array(words.buffer).set(bytes.subarray(0, words.length * 4));
    return words;
  }

  /** The error of a write that ends at this moment; null if it succeeds. */
  refusal(now_ns: number): SimDiskError | null {
    if (this.failsOnce) {
      this.failsOnce = false;
      return new SimDiskError('EIO');
    }
    return now_ns < this.fullUntil_ns ? new SimDiskError('ENOSPC') : null;
  }

  recordPromise(epoch: number, to: number, leaseWait_ns: number): void {
    this.isUsed = true;
    this.promise = { epoch, to, leaseWait_ns };
  }

  begin(write: Pending): void {
    this.isUsed = true;
    this.pending = write;
  }

  complete(): void {
    const { pending } = this;
    this.pending = null;
    if (pending !== null) this.place(pending.segment, pending.offset, pending.bytes, pending.bytes.length);
  }

  private place(segment: number, offset: number, bytes: Uint8Array, length: number): void {
    const before = this.files.get(segment) ?? new Uint8Array(0);
    const after = new Uint8Array(Math.max(before.length, offset + length));
    after.set(before);
    after.set(bytes.subarray(0, length), offset);
    this.files.set(segment, after);
  }

  /** The process that used the disk is gone: what was under way is there in part, in full or not at all. */
  processEnded(random: Random): void {
    const { pending } = this;
    this.pending = null;
    if (pending === null) return;
    const { segment, offset, bytes } = pending;
    this.unsynced = { segment, onDisk: this.files.get(segment) ?? null };
    const kind = random.integer(4);
    if (kind === 0) return;
    if (kind === 1) {
      this.place(segment, offset, bytes, bytes.length);
      return;
    }
    const length = random.integer(bytes.length + 1);
    if (kind === 2) {
      this.place(segment, offset, bytes, length);
      return;
    }
    // The file has its new length, but not all of its sectors.
    const torn = bytes.slice();
    for (let at = 0; at < torn.length; at += SECTOR_BYTES) {
      if (random.chance(0.5)) torn.fill(0, at, at + SECTOR_BYTES);
    }
    this.place(segment, offset, torn, torn.length);
  }

  /** With the process, or before the next one: of what nobody has synced any part may have got to the disk. */
  powerLost(random: Random): void {
    const { unsynced } = this;
    this.unsynced = null;
    if (unsynced === null || !this.files.has(unsynced.segment) || random.chance(0.5)) return;
    if (unsynced.onDisk === null) this.files.delete(unsynced.segment);
    else this.files.set(unsynced.segment, unsynced.onDisk);
  }

  /** A process has synced what it found. */
  private settle(): void {
    this.unsynced = null;
  }

  /** What is on disk now, without changing it. */
  recover(): RecoveredLog {
    const { snapshot, genesis } = this;
    const start = snapshot?.position ?? chainBeginning(genesis.clusterId);
    return LogRecovery.run(this, start, genesis.clusterId, snapshot?.isDetached ?? false);
  }

  /** A process starts: brings back what is there, and cuts off what is torn. */
  resume(
    ring: Uint8Array,
    state: SimStateMachine,
  ): { log: RecoveredLog; applied: ChainPosition; recovered: RecoveredState } {
    const log = this.recover();
    const { snapshot, genesis } = this;
    if (snapshot !== null) state.restore(snapshot.state);
    let configuration = snapshot?.configuration ?? genesis;
    const applied = { ...log.start };
    replay(log, this, ring, {
      entry: (words, at, type, payloadBytes, end) => {
        if (end.lsn > log.commitLsn) return;
        const bytes = new Uint8Array(words.buffer, words.byteOffset, words.length * 4);
        const offset = at * 4 + ENTRY_HEADER_BYTES;
        if (type === EntryType.command) {
          state.apply(entryOrigin(words, at), entrySequence(words, at), decodeCommand(bytes, offset, payloadBytes));
        } else if (type === EntryType.configuration) {
          configuration = decodeConfiguration(bytes.slice(offset, offset + payloadBytes));
        }
        Object.assign(applied, end);
      },
    });
    if (log.tail.lsn - applied.lsn > ring.length) {
      throw new Error(`the log on disk reaches from LSN ${applied.lsn} to ${log.tail.lsn}, more than the ring holds`);
    }
    if (log.cut !== null && !log.discard.includes(log.cut.segment)) {
      const { segment, bytes } = log.cut;
      this.files.set(segment, (this.files.get(segment) as Uint8Array).slice(0, bytes));
    }
    this.drop(log.discard);
    this.settle();
    const foreignBelowLsn = Math.max(log.start.lsn, log.tail.lsn - ring.length);
    return { log, applied, recovered: { applied: { ...applied }, configuration, foreignBelowLsn } };
  }

  drop(segments: readonly number[]): void {
    for (const segment of segments) this.files.delete(segment);
  }
}

/** The disk as one process of the replica uses it. */
export class SimLogDisk implements LogDisk {
  constructor(
    private readonly disk: SimDisk,
    /** Calls back when a write's time has passed, if the process still lives. */
    private readonly later: (then: () => void) => void,
    private readonly now_ns: () => number,
  ) {}

  append(segment: number, offset: number, bytes: Uint8Array, done: (error: Error | null) => void): void {
    this.disk.begin({ segment, offset, bytes: bytes.slice() });
    this.later(() => {
      const refusal = this.disk.refusal(this.now_ns());
      if (refusal === null) this.disk.complete();
      done(refusal);
    });
  }
}
