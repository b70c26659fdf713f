// Where a voter's promise is kept: a store of its own, since the background plane writes it, in its thread, synchronously
// and before the promise can be seen. One small record, one transaction that is on disk when it returns.
import { open, type RootDatabase } from 'lmdb';
import { EPOCH_NONE } from '../../consensus/epoch.js';
import { MAX_REPLICAS } from '../../consensus/limits.js';
import { QuorateError } from '../../errors.js';

export interface StoredPromise {
  readonly epoch: number;
  readonly to: number;
  /** For how long the process that wrote it may have promised a lease, by its clock. */
  readonly leaseWait_ns: number;
}

/** Of a life that has not promised anything. */
export const NO_PROMISE: StoredPromise = { epoch: EPOCH_NONE, to: -1, leaseWait_ns: 0 };

const KEY = 'promise';

export class PromiseStore {
  private readonly database: RootDatabase<StoredPromise, string>;

  constructor(private readonly path: string) {
    // Committed means synced: an overlapping sync would return before.
    this.database = open<StoredPromise, string>({ path, overlappingSync: false });
  }

  read(): StoredPromise {
    const value: unknown = this.database.get(KEY);
    if (value === undefined) return NO_PROMISE;
    const { epoch, to, leaseWait_ns } = value as Record<string, unknown>;
    const isEpoch = Number.isSafeInteger(epoch) && (epoch as number) >= 0;
    const isReplica = Number.isInteger(to) && (to as number) >= -1 && (to as number) < MAX_REPLICAS;
    if (!isEpoch || !isReplica || !Number.isSafeInteger(leaseWait_ns)) {
      throw new QuorateError('QUORATE_STORE_INVALID', `${this.path} does not hold a promise that can be read`);
    }
    return value as StoredPromise;
  }

  /** On disk when it returns. */
  write(promise: StoredPromise): void {
    this.database.transactionSync(() => {
      this.database.putSync(KEY, promise);
    });
  }

  async close(): Promise<void> {
    await this.database.close();
  }
}
