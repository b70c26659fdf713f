// The demo's state machine: a key-value store that also keeps its own record of what was applied. Each command carries
// its session's origin and sequence number a second time, inside the payload, and the record counts how often each was
// applied. It knows nothing of the session table that is to make that number 1, so it can convict it.
import { createHash } from 'node:crypto';
import { QuorateError } from '../../errors.js';
import type { StateMachine } from '../../replica/replica-options.js';
import { type KeyValueResult, KeyValueStore } from '../../rsm/key-value-store.js';

/** origin, sequence: 32 bits each, little-endian. */
export const AUDIT_HEADER_BYTES = 8;
/** Most commands of one origin. */
export const AUDIT_SEQUENCE_MAX = 16_000_000;
/** Most origins: the driver and one for each life of each replica. */
export const AUDIT_ORIGINS_MAX = 65_536;
const APPLICATIONS_MAX = 255;
const RECORD_BYTES_MIN = 1024;
const SNAPSHOT_HEADER_BYTES = 12; // last LSN, number of records
const SNAPSHOT_RECORD_BYTES = 16; // origin, highest sequence, number out of order

/** A key-value command with its audit header; without one (a probe) it changes nothing but the record. */
export function encodeAudited(origin: number, sequence: number, command: Uint8Array | undefined): Uint8Array {
  const bytes = new Uint8Array(AUDIT_HEADER_BYTES + (command?.length ?? 0));
  const view = new DataView(bytes.buffer);
  view.setUint32(0, origin, true);
  view.setUint32(4, sequence, true);
  if (command !== undefined) bytes.set(command, AUDIT_HEADER_BYTES);
  return bytes;
}

/** Little-endian. A DataView for each command would cost more than the rest of applying it. */
function readUint32(bytes: Uint8Array, at: number): number {
  const [a, b, c, d] = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]] as [number, number, number, number];
  return (a | (b << 8) | (c << 16) | (d << 24)) >>> 0;
}

/** What was applied of one origin. */
class OriginRecord {
  /** How often sequence n + 1 was applied. */
  applications = new Uint8Array(RECORD_BYTES_MIN);
  highest = 0;
  outOfOrder = 0;

  note(sequence: number): void {
    if (sequence > this.applications.length) {
      const larger = new Uint8Array(Math.max(sequence, this.applications.length * 2));
      larger.set(this.applications);
      this.applications = larger;
    }
    const count = this.applications[sequence - 1] as number;
    if (count < APPLICATIONS_MAX) this.applications[sequence - 1] = count + 1;
    if (sequence !== this.highest + 1) this.outOfOrder++;
    if (sequence > this.highest) this.highest = sequence;
  }

  used(): Uint8Array {
    return this.applications.subarray(0, this.highest);
  }
}

export class AuditedStore implements StateMachine<KeyValueResult | 'probed'> {
  readonly store = new KeyValueStore();
  private records = new Map<number, OriginRecord>();
  private lastLsn = -1;

  apply(command: Uint8Array, lsn: number): KeyValueResult | 'probed' {
    if (lsn <= this.lastLsn) throw new Error(`LSN ${lsn} was applied after LSN ${this.lastLsn}`);
    this.lastLsn = lsn;
    if (command.length < AUDIT_HEADER_BYTES) return 'invalid';
    const origin = readUint32(command, 0);
    const sequence = readUint32(command, 4);
    if (sequence === 0 || sequence > AUDIT_SEQUENCE_MAX) return 'invalid';
    let record = this.records.get(origin);
    if (record === undefined) {
      if (this.records.size === AUDIT_ORIGINS_MAX) return 'full';
      record = new OriginRecord();
      this.records.set(origin, record);
    }
    record.note(sequence);
    return command.length === AUDIT_HEADER_BYTES ? 'probed' : this.store.apply(command.subarray(AUDIT_HEADER_BYTES));
  }

  /** How often each sequence number of the origin was applied, from 1 on. */
  applications(origin: number): Uint8Array {
    return this.records.get(origin)?.used().slice() ?? new Uint8Array(0);
  }

  /** Commands of the origin that were applied when their predecessor had not been. */
  outOfOrder(origin: number): number {
    return this.records.get(origin)?.outOfOrder ?? 0;
  }

  /** SHA-256 over the record of all origins. */
  auditDigest(): string {
    const hash = createHash('sha256');
    for (const [origin, record] of [...this.records].sort(([a], [b]) => a - b)) {
      hash.update(`${origin}:${record.highest}:${record.outOfOrder}:`).update(record.used());
    }
    return hash.digest('hex');
  }

  snapshot(): Uint8Array {
    const records = [...this.records].map(([origin, record]) => ({ origin, record, used: record.used() }));
    const state = this.store.snapshot();
    const bytes = new Uint8Array(
      records.reduce((sum, { used }) => sum + SNAPSHOT_RECORD_BYTES + used.length, SNAPSHOT_HEADER_BYTES) +
        state.length,
    );
    const view = new DataView(bytes.buffer);
    view.setFloat64(0, this.lastLsn, true);
    view.setUint32(8, records.length, true);
    let at = SNAPSHOT_HEADER_BYTES;
    for (const { origin, record, used } of records) {
      view.setUint32(at, origin, true);
      view.setUint32(at + 4, record.highest, true);
      view.setFloat64(at + 8, record.outOfOrder, true);
      at += SNAPSHOT_RECORD_BYTES;
      bytes.set(used, at);
      at += used.length;
    }
    bytes.set(state, at);
    return bytes;
  }

  restore(snapshot: Uint8Array): void {
    const refuse = (what: string): QuorateError =>
      new QuorateError('QUORATE_SNAPSHOT_INVALID', `the snapshot's audit record cannot be used: ${what}`);
    const view = new DataView(snapshot.buffer, snapshot.byteOffset, snapshot.length);
    let at = SNAPSHOT_HEADER_BYTES;
    if (snapshot.length < at) throw refuse('it is too short');
    const lastLsn = view.getFloat64(0, true);
    const count = view.getUint32(8, true);
    if (!Number.isSafeInteger(lastLsn) || count > AUDIT_ORIGINS_MAX) throw refuse('its header is out of range');
    const records = new Map<number, OriginRecord>();
    for (let index = 0; index < count; index++) {
      if (snapshot.length - at < SNAPSHOT_RECORD_BYTES) throw refuse(`it ends in record ${index} of ${count}`);
      const record = new OriginRecord();
      const origin = view.getUint32(at, true);
      record.highest = view.getUint32(at + 4, true);
      record.outOfOrder = view.getFloat64(at + 8, true);
      at += SNAPSHOT_RECORD_BYTES;
      if (record.highest > snapshot.length - at || record.highest > AUDIT_SEQUENCE_MAX || records.has(origin)) {
        throw refuse(`record ${index} is out of range`);
      }
      record.applications = snapshot.slice(at, at + record.highest);
      at += record.highest;
      records.set(origin, record);
    }
    this.store.restore(snapshot.subarray(at));
    this.records = records;
    this.lastLsn = lastLsn;
  }
}
