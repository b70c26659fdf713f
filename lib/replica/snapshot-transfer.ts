// What a snapshot carries from the leader to a replica that the log cannot bring up to date: the state machine's bytes,
// the session table (so that retries stay exactly-once) and the place in the log that both stand for. Packed as one
// blob, checked whole before anything of it is used.
import { Packr } from 'msgpackr';
import { type Configuration, checkConfiguration } from '../consensus/configuration.js';
import type { ChainPosition } from '../consensus/entry.js';
import { QuorateError } from '../errors.js';

export interface Snapshot {
  readonly position: ChainPosition;
  readonly configuration: Configuration;
  readonly sessions: Uint8Array;
  readonly state: Uint8Array;
}

const packer = new Packr({ useRecords: false });

export function encodeSnapshot(snapshot: Snapshot): Uint8Array {
  return packer.pack(snapshot);
}

export function decodeSnapshot(bytes: Uint8Array): Snapshot {
  const refuse = (what: string): never => {
    throw new QuorateError('QUORATE_SNAPSHOT_INVALID', `the snapshot cannot be used: ${what}`);
  };
  /** What the decoder, or the check of a part, throws. */
  const refused = <Value>(action: () => Value): Value => {
    try {
      return action();
    } catch (error) {
      return refuse((error as Error).message);
    }
  };
  const value = refused(() => packer.unpack(bytes) as Partial<Record<keyof Snapshot, unknown>> | null);
  if (typeof value !== 'object' || value === null) return refuse('not an object');
  const position = value.position as Partial<ChainPosition> | undefined;
  for (const field of ['lsn', 'hashLow', 'hashHigh', 'epoch'] as const) {
    const part = position?.[field];
    if (typeof part !== 'number' || !Number.isSafeInteger(part) || part < 0) return refuse(`position.${field}`);
  }
  if (!(value.sessions instanceof Uint8Array) || !(value.state instanceof Uint8Array)) return refuse('no bytes');
  return {
    position: position as ChainPosition,
    configuration: refused(() => checkConfiguration(value.configuration)),
    sessions: value.sessions,
    state: value.state,
  };
}
