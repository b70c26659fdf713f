// Who the replica of a directory is, and its last snapshot: LevelDB, whose writes are on disk when they have ended.
import { existsSync, mkdirSync } from 'node:fs';
import { open, readdir, rename, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { ClassicLevel } from 'classic-level';
import { type Configuration, checkConfiguration } from '../../consensus/configuration.js';
import type { ChainPosition } from '../../consensus/entry.js';
import type { QuorateError } from '../../errors.js';
import { checksum } from '../../verbs/checksum.js';
import { storeInvalid } from './disk-error.js';
import { SNAPSHOT_PIECE_BYTES, SNAPSHOT_PIECES_IN_FLIGHT_MAX, STORE_CACHE_BYTES, STORE_FORMAT } from './limits.js';
import { sealRecord, unsealRecord } from './sealed-record.js';
import { findDamage } from './table-check.js';

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

const IDENTITY = 'identity';
const SNAPSHOT = 'snapshot';
/** Before the keys of pieces, and behind them. */
const PIECES = 'piece/';
const PIECES_END = 'piece0';
const DIGITS = 16;
/** The end of the names of the files with what the store has sorted. */
const TABLE = '.ldb';
/** Behind the names of those that are damaged, while the store is opened. */
const DAMAGED = '.damaged';
const CORRUPTION = 'LEVEL_CORRUPTION';
/** What version 1 of this store left in its directory. */
const FORMER_STORE = 'data.mdb';
/** Of every write: those before a sync need not be on disk with it, since the store may have changed its log in between. */
const SYNC = { sync: true } as const;

/** In the order of snapshots, and of the pieces of each. */
function pieceKey(name: number, index: number): string {
  return `${piecesOf(name)}${String(index).padStart(DIGITS, '0')}`;
}

function piecesOf(name: number): string {
  return `${PIECES}${String(name).padStart(DIGITS, '0')}/`;
}

function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}

/** What the store found to be damaged by itself is so called; anything else that it says is of the disk. */
function readError(path: string, error: unknown): unknown {
  const { code, message } = error as { code?: string; message: string };
  return code === CORRUPTION ? storeInvalid(path, message) : error;
}

/**
 * Takes the tables that are damaged out of the store's sight before it opens: as soon as it is open it may make new ones of them, with
 * checksums that are right. It does not open without one that it needs. Which those were, and where they are damaged.
 */
async function setDamagedAside(path: string): Promise<{ name: string; where: string }[]> {
  for (const name of await readdir(path)) {
    if (!name.endsWith(TABLE + DAMAGED)) continue; // of a process that ended before it had put them back
    await rename(join(path, name), join(path, name.slice(0, -DAMAGED.length)));
  }
  const damaged: { name: string; where: string }[] = [];
  for (const name of await readdir(path)) {
    if (!name.endsWith(TABLE)) continue;
    const where = await findDamage(join(path, name));
    if (where === null) continue;
    await rename(join(path, name), join(path, name + DAMAGED));
    damaged.push({ name, where });
  }
  return damaged;
}

export class StateStore {
  private failure: Error | undefined;

  private constructor(
    private readonly path: string,
    private readonly database: ClassicLevel<string, Uint8Array>,
  ) {}

  static async open(path: string): Promise<StateStore> {
    if (existsSync(join(path, FORMER_STORE)))
      throw storeInvalid(path, `it has format 1, this version reads ${STORE_FORMAT}`);
    mkdirSync(path, { recursive: true, mode: 0o700 });
    const damages = await setDamagedAside(path);
    // From here on it opens by itself.
    const database = new ClassicLevel<string, Uint8Array>(path, {
      valueEncoding: 'view',
      compression: false,
      cacheSize: STORE_CACHE_BYTES,
    });
    try {
      await database.open();
    } catch (error) {
      for (const { name } of damages) await rename(join(path, name + DAMAGED), join(path, name));
      const cause = (error as Error).cause ?? error;
      const [first] = damages;
      if (first === undefined || (cause as { code?: string }).code !== CORRUPTION) throw readError(path, cause);
      throw storeInvalid(path, `its file ${first.name} is damaged ${first.where}`);
    }
    // An earlier process left them behind unfinished.
    for (const { name } of damages) await unlink(join(path, name + DAMAGED));
    return new StateStore(path, database);
  }

  /**
   * Has the store write. What it wrote after a write that failed might not be found again, so it is asked for nothing more then;
   * when it is opened anew it finds out for itself what is there.
   */
  private async change(begin: () => Promise<void>): Promise<void> {
    if (this.failure !== undefined) throw this.failure;
    try {
      await begin();
    } catch (error) {
      this.failure ??= error as Error;
      throw error;
    }
  }

  private record(key: string): Record<string, unknown> | undefined {
    let sealed: Uint8Array | undefined;
    try {
      sealed = this.database.getSync(key);
    } catch (error) {
      throw readError(this.path, error);
    }
    if (sealed === undefined) return undefined;
    const record = unsealRecord(sealed);
    if (record === undefined) throw this.invalid(`its record '${key}' is damaged: the checksum differs`);
    return record;
  }

  /** The file that the store wrote to may be a new one: its entry in the directory must be on disk, too. */
  private async settle(begin: () => Promise<void>): Promise<void> {
    await this.change(async () => {
      await begin();
      const directory = await open(this.path, 'r');
      try {
        await directory.sync();
      } finally {
        await directory.close();
      }
    });
  }

  private invalid(what: string): QuorateError {
    return storeInvalid(this.path, what);
  }

  identity(): Identity | null {
    const value = this.record(IDENTITY);
    if (value === undefined) return null;
    const { format, id, bootId, logBytes, genesis, epochFloor = 0 } = value;
    if (format !== STORE_FORMAT) throw this.invalid(`it has format ${format}, this version reads ${STORE_FORMAT}`);
    if (!isCount(id) || !isCount(bootId) || bootId === 0 || !isCount(logBytes) || !isCount(epochFloor)) {
      throw this.invalid('its identity');
    }
    const checked = genesis === null ? null : checkConfiguration(genesis);
    return { format, id, bootId, logBytes, genesis: checked, epochFloor };
  }

  /** On disk when it resolves. */
  async setIdentity(identity: Identity): Promise<void> {
    await this.settle(() => this.database.put(IDENTITY, sealRecord(identity), SYNC));
  }

  snapshot(): StoredSnapshot | null {
    const value = this.record(SNAPSHOT);
    if (value === undefined) return null;
    const { position, sessionsBytes, bytes, pieces, sum, name, isDetached } = value;
    const { lsn, hashLow, hashHigh, epoch } = (position ?? {}) as Record<string, unknown>;
    const numbers = [lsn, hashLow, hashHigh, epoch, sessionsBytes, bytes, pieces, sum, name];
    if (!numbers.every(isCount) || typeof isDetached !== 'boolean') throw this.invalid('its record of a snapshot');
    return { ...(value as unknown as StoredSnapshot), configuration: checkConfiguration(value['configuration']) };
  }

  /** The bytes of the snapshot, session table first. Throws QUORATE_STORE_INVALID where they are not those that were stored. */
  async *pieces({ pieces, name, sum, bytes }: StoredSnapshot): AsyncGenerator<Uint8Array> {
    let before = 0;
    let total = 0;
    for (let index = 0; index < pieces; index++) {
      const piece = await this.database.get(pieceKey(name, index), { fillCache: false }).catch((error: unknown) => {
        throw readError(this.path, error);
      });
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
        const part = piece.subarray(at, at + SNAPSHOT_PIECE_BYTES);
        sum = checksum(part, sum);
        bytes += part.length;
        // The store has a copy of it at once.
        const key = pieceKey(name, pieces++);
        const put = this.change(() => this.database.put(key, part, SYNC));
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
    await this.putInForce(this.record(IDENTITY), snapshot);
    await this.sweep(snapshot.name);
  }

  /**
   * From now on the directory is that of another life, in another cluster, with this state: at once, and on disk when it
   * resolves.
   */
  async become(identity: Identity, snapshot: StoredSnapshot): Promise<void> {
    await this.putInForce(identity, snapshot);
  }

  /**
   * Both in a table, and all tables gone in which the identity was before. What is damaged in the store's own log it takes for never
   * written when it is opened, and so it does with the end of its list of tables: then the state before would be in force, and
   * nobody would be told. So that state has to be one that it refuses, since tables of it are missing.
   */
  private async putInForce(identity: unknown, snapshot: StoredSnapshot): Promise<void> {
    const records = [[SNAPSHOT, snapshot] as const, ...(identity === undefined ? [] : [[IDENTITY, identity] as const])];
    const puts = records.map(([key, record]) => ({ type: 'put', key, value: sealRecord(record) }) as const);
    await this.settle(() => this.database.batch(puts, SYNC));
    await this.change(async () => {
      await this.database.compactRange(IDENTITY, IDENTITY);
      // Should it have failed nobody was told, but the store takes nothing more then.
      await this.database.del(PIECES_END);
    });
  }

  /** Removes the pieces of all snapshots but this one, and gives back the room that they took. */
  async sweep(name: number): Promise<void> {
    await this.remove(PIECES, piecesOf(name));
    await this.remove(piecesOf(name + 1), PIECES_END);
  }

  private async remove(from: string, to: string): Promise<void> {
    const range = { gte: from, lt: to };
    const [first] = await this.database.keys({ ...range, limit: 1 }).all();
    if (first === undefined) return;
    await this.change(async () => {
      await this.database.clear(range);
      await this.database.compactRange(from, to);
    });
  }

  async close(): Promise<void> {
    await this.database.close();
  }
}
