// The part of a replica that outlives its process, from the replica's point of view: the region it opens before its
// device, the return from what was left in it, and the keeper that has something in it for the next process. One object, so
// that the replica, which composes everything, need not know how they hang together.
import type { Configuration } from '../../consensus/configuration.js';
import { chainBeginning } from '../../consensus/entry.js';
import { QuorateError } from '../../errors.js';
import { checkInteger, checkNames, invalid } from '../check-options.js';
import { absolutePath } from '../directories.js';
import type { SurviveCrashOptions } from '../replica-options.js';
import { SNAPSHOT_BYTES_MAX } from '../transfer/limits.js';
import type { TransferStatus } from '../transfer/progress.js';
import { REGION_BUSY_POLL_MS, REGION_BUSY_WAIT_MS, SNAPSHOT_BYTES_DEFAULT } from './limits.js';
import { type Recovered, Recovery, type RecoveryHost, type RecoveryStatus } from './recovery.js';
import { type Predecessor, Region } from './region.js';
import { RegionKeeper, type RegionKeeperHost, type RegionStatus } from './region-keeper.js';

export interface CrashSurvivalOptions {
  readonly id: number;
  readonly clusterKey: Uint8Array | string;
  readonly logBytes: number;
  readonly shmDirectory: string | undefined;
  readonly surviveCrash: boolean | SurviveCrashOptions | undefined;
}

export type CrashSurvivalHost = Omit<RecoveryHost, 'region' | 'logBytes'> &
  Omit<RegionKeeperHost, 'region' | 'logBytes' | 'snapshotBytesMax'>;

export class CrashSurvival {
  private predecessor: Predecessor | Error | null = null;
  private recovery: Recovery | undefined;
  private keeper: RegionKeeper | undefined;
  private host: CrashSurvivalHost | undefined;

  private constructor(
    readonly region: Region,
    private readonly logBytes: number,
    private readonly snapshotBytesMax: number,
    /** Warnings from before there is a replica to tell them. */
    private readonly early: Error[],
  ) {}

  /** Null if it is not asked for. Throws QUORATE_INVALID_ARGUMENT, QUORATE_SYSTEM. */
  static prepare(options: CrashSurvivalOptions): CrashSurvival | null {
    const { surviveCrash: asked, id, clusterKey, logBytes, shmDirectory } = options;
    if (asked === undefined || asked === false) return null;
    if (typeof asked !== 'boolean' && (typeof asked !== 'object' || asked === null)) {
      return invalid('surviveCrash is neither true nor an object');
    }
    const settings: SurviveCrashOptions = asked === true ? {} : asked;
    checkNames(settings, { directory: true, snapshotBytesMax: true }, 'surviveCrash');
    const { directory, snapshotBytesMax = SNAPSHOT_BYTES_DEFAULT } = settings;
    if (directory !== undefined && (typeof directory !== 'string' || !directory.startsWith('/'))) {
      return invalid('surviveCrash.directory is not an absolute path');
    }
    checkInteger(snapshotBytesMax, 0, SNAPSHOT_BYTES_MAX, 'surviveCrash.snapshotBytesMax');
    const early: Error[] = [];
    // As the shm provider chooses its own, see native/provider/shm/directory.cc.
    const { QUORATE_SHM_DIR: fromEnvironment } = process.env;
    const base = directory ?? shmDirectory ?? (fromEnvironment || `/dev/shm/quorate-${process.geteuid?.()}`);
    if (typeof base !== 'string' || base === '') return invalid('shmDirectory is not the path of a directory');
    const option = directory === undefined ? 'shmDirectory' : 'surviveCrash.directory';
    const region = Region.open(absolutePath(base, option), id, clusterKey, logBytes, (error) => early.push(error));
    return new CrashSurvival(region, logBytes, snapshotBytesMax, early);
  }

  /**
   * Opens what holds the log at `region.logPath`. A process that was killed holds it for as long as it takes to die; one that
   * lives does so for longer, and then this rejects with QUORATE_REGION_IN_USE.
   */
  async openLog<Opened>(open: (logPath: string) => Opened): Promise<Opened> {
    for (const end_ms = performance.now() + REGION_BUSY_WAIT_MS; ; ) {
      try {
        this.region.dropLogOfOtherSize();
        return open(this.region.logPath);
      } catch (error) {
        if ((error as { syscall?: unknown }).syscall !== 'flock') throw error;
        if (performance.now() > end_ms) {
          throw new QuorateError(
            'QUORATE_REGION_IN_USE',
            `the region ${this.region.path} belongs to a process that is alive: stop that, or give this replica another ` +
              'surviveCrash.directory if it is of another cluster with the same key',
            { cause: error },
          );
        }
        await new Promise((resolve) => setTimeout(resolve, REGION_BUSY_POLL_MS));
      }
    }
  }

  /** Takes over what is in the log memory, which is this process's from now on, and empty. */
  take(log: ArrayBuffer): void {
    try {
      this.predecessor = this.region.take(log);
    } catch (error) {
      this.predecessor = error as Error;
    }
  }

  /** The replica is there to be served. */
  attach(host: CrashSurvivalHost): void {
    this.host = host;
    for (const error of this.early) host.onWarning(error);
  }

  /** Comes back from what the process before left; null if there is nothing, or nothing of use. See Recovery.run(). */
  async recover(genesis: Configuration): Promise<Recovered | null> {
    const { predecessor, host, region, logBytes } = this;
    if (predecessor === null || host === undefined) return null;
    this.recovery = new Recovery({ ...recoveryPart(host), region, logBytes });
    return await this.recovery.run(genesis, predecessor);
  }

  /** The replica has a log now, which it goes on with from `recovered`, or with nothing. */
  begin(genesis: Configuration, recovered: Recovered | null): void {
    const { region, host, logBytes, snapshotBytesMax } = this;
    this.predecessor = null; // whatever came of it
    if (host === undefined) return;
    if (recovered === null) {
      // With the state that every replica begins with, the log reaches back to its beginning.
      const { clusterId } = genesis;
      try {
        region.putAnchor({ clusterId, position: chainBeginning(clusterId), configuration: genesis, snapshot: null });
      } catch (error) {
        const text = `nothing of this process will outlive it: ${region.path} cannot be written (${(error as Error).message})`;
        host.onWarning(new QuorateError('QUORATE_SYSTEM', text, { cause: error }));
        return;
      }
    }
    this.keeper = new RegionKeeper({ ...keeperPart(host), region, logBytes, snapshotBytesMax });
  }

  look(): void {
    this.keeper?.look();
  }

  /** See RegionKeeper.makeWay(). */
  makeWay(): void {
    this.keeper?.makeWay();
  }

  noteTransfer({ role, state, bytesDone, lsn }: TransferStatus): void {
    if (role === 'receiver') this.recovery?.noteTransfer(bytesDone, state === 'done', lsn);
  }

  get recoveryStatus(): RecoveryStatus | undefined {
    return this.recovery?.status;
  }

  get regionStatus(): RegionStatus | undefined {
    return this.keeper?.status;
  }

  /** Nothing more is written. What is there stays for the next process. */
  async close(): Promise<void> {
    this.recovery?.close(new QuorateError('QUORATE_CLOSED', 'the replica was closed'));
    await this.keeper?.close();
  }

  /** The replica does not come back: nothing of it is kept. After its device was closed. */
  remove(): void {
    this.region.remove();
  }
}

/** Getters and methods of a host keep their object. */
function recoveryPart(host: CrashSurvivalHost): Omit<RecoveryHost, 'region' | 'logBytes'> {
  const { id, stateMachine, replay } = host;
  return {
    id,
    stateMachine,
    replay,
    donors: () => host.donors(),
    readLog: (...parameters) => host.readLog(...parameters),
    restoreSessions: (sessions) => host.restoreSessions(sessions),
    onStatus: (status) => host.onStatus(status),
    onWarning: (error) => host.onWarning(error),
    isClosed: () => host.isClosed(),
  };
}

function keeperPart(host: CrashSurvivalHost): Omit<RegionKeeperHost, 'region' | 'logBytes' | 'snapshotBytesMax'> {
  return {
    appliedLsn: () => host.appliedLsn(),
    ringBeginLsn: () => host.ringBeginLsn(),
    freeze: () => host.freeze(),
    isGiving: () => host.isGiving(),
    onWarning: (error) => host.onWarning(error),
  };
}
