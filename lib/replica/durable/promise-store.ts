// Where a voter's promise is kept: a directory of its own, since the background plane writes it, in its thread, synchronously
// and before the promise can be seen. One small record in one file, which the next one takes the place of in a single step.
import { closeSync, fsyncSync, mkdirSync, openSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { EPOCH_NONE } from '../../consensus/epoch.js';
import { MAX_REPLICAS } from '../../consensus/limits.js';
import { storeInvalid } from './disk-error.js';
import { sealRecord, unsealRecord } from './sealed-record.js';

export interface StoredPromise {
  readonly epoch: number;
  readonly to: number;
  /** For how long the process that wrote it may have promised a lease, by its clock. */
  readonly leaseWait_ns: number;
}

/** Of a life that has not promised anything. */
export const NO_PROMISE: StoredPromise = { epoch: EPOCH_NONE, to: -1, leaseWait_ns: 0 };

export class PromiseStore {
  private readonly path: string;
  private readonly pathOfNext: string;
  private readonly directoryDescriptor: number;

  constructor(directory: string) {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    this.path = join(directory, 'promise');
    this.pathOfNext = join(directory, 'promise.next');
    this.directoryDescriptor = openSync(directory, 'r');
  }

  read(): StoredPromise {
    let sealed: Buffer;
    try {
      sealed = readFileSync(this.path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return NO_PROMISE;
      throw error;
    }
    const value = unsealRecord(sealed);
    const { epoch, to, leaseWait_ns } = value ?? {};
    const isEpoch = Number.isSafeInteger(epoch) && (epoch as number) >= 0;
    const isReplica = Number.isInteger(to) && (to as number) >= -1 && (to as number) < MAX_REPLICAS;
    if (!isEpoch || !isReplica || !Number.isSafeInteger(leaseWait_ns)) {
      throw storeInvalid(this.path, 'it does not hold a promise that can be read');
    }
    return value as unknown as StoredPromise;
  }

  /** On disk when it returns. After an error the promise of before is there, or this one. */
  write(promise: StoredPromise): void {
    const descriptor = openSync(this.pathOfNext, 'w', 0o600);
    try {
      writeFileSync(descriptor, sealRecord(promise));
      fsyncSync(descriptor);
    } finally {
      closeSync(descriptor);
    }
    renameSync(this.pathOfNext, this.path);
    fsyncSync(this.directoryDescriptor);
  }

  close(): void {
    closeSync(this.directoryDescriptor);
  }
}
