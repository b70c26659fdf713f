// Who the replica of a directory is, and its last snapshot: LMDB, whose transactions are on disk when they are committed.
import { setTimeout as sleep } from 'node:timers/promises';
import { type Database, open, type RootDatabase } from 'lmdb';
import { type Configuration, checkConfiguration } from '../../consensus/configuration.js';
import type { ChainPosition } from '../../consensus/entry.js';
import { QuorateError } from '../../errors.js';
import { checksum } from '../../verbs/checksum.js';
import {
  SNAPSHOT_PIECE_BYTES,
  SNAPSHOT_PIECES_IN_FLIGHT_MAX,
  STORE_FORMAT,
  STORE_REASON_TIMEOUT_MS,
} from './limits.js';

export interface Identity {
  readonly format: number;
  readonly id: number;
  /** The life that this directory stands for. */
  readonly bootId: number;
  readonly logBytes: number;
  /** First configuration of the cluster; null while this replica is part of none. */
  readonly genesis: Configuration | null;
  /** Where the cluster was forked off another one: its epochs are above this one, and those of the other below. Otherwise 0. */
  readonly epochFloor: number;
}

export interface StoredSnapshot {
  readonly position: ChainPosition;
  readonly configuration: Configuration;
  readonly sessionsBytes: number;
  readonly bytes: number;
  readonly pieces: number;
  /** Of all pieces, one after the other. */
  readonly sum: number;
  /** Part of the pieces' keys. */
  readonly name: number;
  /** The log on disk need not lead to the place: see DurableLog.isDetached. */
  readonly isDetached: boolean;
}

type Key = string;

/** The store rejects with an error that promises another one, which says why: with it, or soon after. */
async function committed(write: Promise<unknown>): Promise<void> {
  try {
    await write;
  } catch (error) {
    const { commitError } = error as { commitError?: Promise<never> };
    if (commitError !== undefined)
      await Promise.race([commitError, sleep(STORE_REASON_TIMEOUT_MS, undefined, { ref: false })]);
    throw error;
  }
}

function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}

export class StateStore {
  private readonly database: RootDatabase<unknown, Key>;
  /** By name of the snapshot and ordinal. */
  private readonly pieceTable: Database<Buffer, [number, number]>;

  constructor(private readonly path: string) {
    // Committed means synced: an overlapping sync would come after. Batches make a promise of their own, which nobody gets:
    // where the disk is full or fails it would end the process.
    this.database = open<unknown, Key>({ path, overlappingSync: false, eventTurnBatching: false });
    this.pieceTable = this.database.openDB<Buffer, [number, number]>({ name: 'pieces', encoding: 'binary' });
  }

  private invalid(what: string): QuorateError {
    return new QuorateError(
      'QUORATE_STORE_INVALID',
      `${this.path} cannot be used: ${what}; if it cannot be brought back, remove the directory: the replica then comes back ` +
        'with a new life and gets the state of the others',
    );
  }

  identity(): Identity | null {
    const value = this.database.get('identity') as Record<string, unknown> | undefined;
    if (value === undefined) return null;
    const { format, id, bootId, logBytes, genesis, epochFloor = 0 } = value;
    if (format !== STORE_FORMAT) throw this.invalid(`it has format ${format}, this version reads ${STORE_FORMAT}`);
    if (!isCount(id) || !isCount(bootId) || bootId === 0 || !isCount(logBytes) || !isCount(epochFloor)) {
      throw this.invalid('its identity');
    }
    const checked = genesis === null ? null : checkConfiguration(genesis);
    return { format, id, bootId, logBytes, genesis: checked, epochFloor };
  }

  setIdentity(identity: Identity): void {
    this.database.transactionSync(() => {
      this.database.putSync('identity', identity);
    });
  }

  snapshot(): StoredSnapshot | null {
    const value = this.database.get('snapshot') as Record<string, unknown> | undefined;
    if (value === undefined) return null;
    const { position, sessionsBytes, bytes, pieces, sum, name, isDetached } = value;
    const { lsn, hashLow, hashHigh, epoch } = (position ?? {}) as Record<string, unknown>;
    const numbers = [lsn, hashLow, hashHigh, epoch, sessionsBytes, bytes, pieces, sum, name];
    if (!numbers.every(isCount) || typeof isDetached !== 'boolean') throw this.invalid('its record of a snapshot');
    return { ...(value as unknown as StoredSnapshot), configuration: checkConfiguration(value['configuration']) };
  }

  /** The bytes of the snapshot, session table first. Throws QUORATE_STORE_INVALID where they are not those that were stored. */
  *pieces({ pieces, name, sum, bytes }: StoredSnapshot): Generator<Uint8Array> {
    let before = 0;
    let total = 0;
    for (let index = 0; index < pieces; index++) {
      const piece = this.pieceTable.get([name, index]);
      if (piece === undefined) throw this.invalid(`piece ${index} of ${pieces} of its snapshot is missing`);
      before = checksum(piece, before);
      total += piece.length;
      yield piece;
    }
    if (before !== sum || total !== bytes) throw this.invalid('its snapshot is damaged: the checksum differs');
  }

  /** Puts the pieces of a snapshot into the store, a few at a time. They mean nothing until commit(). */
  async write(
    name: number,
    pull: () => Uint8Array | null | Promise<Uint8Array | null>,
  ): Promise<{ pieces: number; bytes: number; sum: number }> {
    let pieces = 0;
    let bytes = 0;
    let sum = 0;
    let inFlight: Promise<void>[] = [];
    for (let piece = await pull(); piece !== null; piece = await pull()) {
      for (let at = 0; at < piece.length; at += SNAPSHOT_PIECE_BYTES) {
        // The store writes it later, and the piece is valid until the next one is asked for.
        const part = Buffer.from(piece.subarray(at, at + SNAPSHOT_PIECE_BYTES));
        sum = checksum(part, sum);
        bytes += part.length;
        const put = committed(this.pieceTable.put([name, pieces++], part));
        put.catch(() => {}); // it is waited for later
        inFlight.push(put);
        if (inFlight.length < SNAPSHOT_PIECES_IN_FLIGHT_MAX) continue;
        await Promise.all(inFlight);
        inFlight = [];
      }
    }
    await Promise.all(inFlight);
    return { pieces, bytes, sum };
  }

  /** From now on this is the snapshot; on disk when it resolves. */
  async commit(snapshot: StoredSnapshot): Promise<void> {
    await committed(this.database.put('snapshot', snapshot));
    await this.sweep(snapshot.name);
  }

  /** From now on the directory is that of another life, in another cluster, with this state: at once, on disk on return. */
  become(identity: Identity, snapshot: StoredSnapshot): void {
    this.database.transactionSync(() => {
      this.database.putSync('identity', identity);
      this.database.putSync('snapshot', snapshot);
    });
  }

  /** Removes the pieces of all snapshots but this one. */
  async sweep(name: number): Promise<void> {
    const gone = [...this.pieceTable.getKeys()].filter((key) => key[0] !== name);
    await Promise.all(gone.map((key) => committed(this.pieceTable.remove(key))));
  }

  async close(): Promise<void> {
    await this.database.close();
  }
}
