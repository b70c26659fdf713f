// How the directory of a durable replica becomes that of the new cluster which is forced from it. The survivor's state is
// written first, as the pieces of a snapshot that is not in force: until then the directory is the old replica's, and the next
// snapshot sweeps away what an attempt left. Then one batch of the store puts the new identity and this snapshot in
// force, at once: from its sync on the directory is the new life's. The log of the old cluster is of no use from there on.
// Its segments are sealed with that cluster's id and do not lead to the snapshot, so whoever opens the directory
// discards them, as he discards a log that a received snapshot overtook, and before anything of the new log is written.
import { randomInt } from 'node:crypto';
import { type Configuration, genesisConfiguration } from '../../consensus/configuration.js';
import { formatEpoch } from '../../consensus/epoch.js';
import { BOOT_ID_MAX } from '../../consensus/limits.js';
import { errorCode, QuorateError } from '../../errors.js';
import type { Fork } from '../force-new-cluster.js';
import { PieceReader, type PieceSource } from '../transfer/snapshot-stream.js';
import { forkError } from './disk-error.js';
import { STORE_FORMAT } from './limits.js';
import type { StoredPromise } from './promise-store.js';
import { fromSource, SourceError, writePieces } from './snapshot-pieces.js';
import type { StateStore } from './state-store.js';

/** The new cluster, and the state that it begins with. */
export interface DurableFork extends Fork {
  /** Session table and state, as they are at the position. */
  source(): PieceSource;
}

interface Owner {
  readonly id: number;
  readonly logBytes: number;
  readonly directory: string;
}

function checkSurvivor(fork: DurableFork, bootId: number | undefined, promise: StoredPromise, directory: string): void {
  // An empty directory, on a disk that took the place of one that failed, is nobody's.
  if (bootId !== undefined && bootId !== fork.survivorBootId) {
    throw new QuorateError(
      'QUORATE_STORE_MISMATCH',
      `${directory} is not that of the survivor any more; nothing was changed in it`,
    );
  }
  if (promise.epoch >= fork.position.epoch) {
    throw new QuorateError(
      'QUORATE_STORE_INVALID',
      `${directory} holds a promise of epoch ${formatEpoch(promise.epoch)}, which the epochs of the new cluster, from ` +
        `${formatEpoch(fork.position.epoch)} on, should be far above; nothing was changed in it`,
    );
  }
}

/**
 * Makes the directory that of the new cluster, unless an earlier attempt got so far. Rejects with QUORATE_DISK_FULL,
 * QUORATE_DISK_FAILED, QUORATE_SNAPSHOT_FAILED (the state machine gave no snapshot) or QUORATE_STORE_MISMATCH.
 */
export async function becomeFork(
  state: StateStore,
  promise: StoredPromise,
  { id, logBytes, directory }: Owner,
  fork: DurableFork,
): Promise<void> {
  const known = state.identity();
  if (known?.genesis?.clusterId === fork.clusterId) return;
  checkSurvivor(fork, known?.bootId, promise, directory);
  const bootId = randomInt(1, BOOT_ID_MAX);
  const genesis = genesisConfiguration(fork.clusterId, [{ ...fork.place, bootId }]);
  try {
    const snapshot = await writeState(state, fork, genesis);
    const identity = { format: STORE_FORMAT, id, bootId, logBytes, genesis, epochFloor: fork.position.epoch };
    await state.become(identity, snapshot);
    await state.sweep(snapshot.name);
  } catch (error) {
    if (error instanceof SourceError) {
      const text =
        `the state machine of replica ${id} gave no snapshot (${error.message}), so the new cluster is not stored; ${directory} ` +
        'is that of the old one still: call forceNewCluster() again, with the same survivor';
      throw new QuorateError('QUORATE_SNAPSHOT_FAILED', text, { cause: error.cause });
    }
    throw errorCode(error) === undefined ? forkError(id, directory, error) : error;
  }
}

async function writeState(state: StateStore, fork: DurableFork, configuration: Configuration) {
  const source = await fromSource(() => fork.source());
  try {
    const written = await writePieces(state, state.snapshot(), new PieceReader(source));
    const { position, sessions } = fork;
    return { position, configuration, sessionsBytes: sessions.length, isDetached: true, ...written };
  } finally {
    source.close();
  }
}
