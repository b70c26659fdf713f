// The log on disk: what is written of a ring that others write, and what is found again after a loss of power at any moment,
// with any part of the last write there.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { DurableLog, type LogDisk } from '#lib/consensus/durable-log.js';
import { type ChainPosition, EntryType, entryBytes, sealEntry, writeEntryHeader } from '#lib/consensus/entry.js';
import {
  CorruptLogError,
  LogRecovery,
  type LogSource,
  type RecoveredLog,
  replay,
} from '#lib/consensus/log-recovery.js';

const CLUSTER = 4711;
const RING_BYTES = 64 * 1024;
const BEGINNING: ChainPosition = { lsn: 0, hashLow: CLUSTER, hashHigh: 0, epoch: 0 };

/** A ring as a leader fills it. */
class Ring {
  readonly bytes = new Uint8Array(RING_BYTES);
  readonly words = new Uint32Array(this.bytes.buffer);
  tail: ChainPosition = { ...BEGINNING };
  version = 0;
  applied = 0;

  /** An entry of the epoch; with a payload that nothing else has. */
  append(epoch: number, payloadBytes: number, commitLsn = 0): void {
    const size = entryBytes(payloadBytes);
    const at = (this.tail.lsn % RING_BYTES) / 4;
    if (at * 4 + size > RING_BYTES) throw new Error('the test wrote beyond the ring');
    writeEntryHeader(this.words, at, this.tail.lsn, epoch, EntryType.command, payloadBytes, commitLsn, epoch, 1);
    this.bytes.fill(epoch, at * 4 + 56, at * 4 + size);
    sealEntry(this.words, at, this.tail);
  }

  /** Another leader truncates the log. */
  truncate(to: ChainPosition): void {
    this.tail = { ...to };
    this.version++;
  }
}

/** Files in memory; a write is there when complete() is called. */
class Disk implements LogDisk, LogSource {
  readonly files = new Map<number, Uint8Array>();
  pending: { segment: number; offset: number; bytes: Uint8Array; done: (error: Error | null) => void } | null = null;

  append(segment: number, offset: number, bytes: Uint8Array, done: (error: Error | null) => void): void {
    if (this.pending !== null) throw new Error('a second write while one is under way');
    this.pending = { segment, offset, bytes: bytes.slice(), done };
  }
  private place(bytes: Uint8Array): void {
    const { segment, offset } = this.pending as NonNullable<Disk['pending']>;
    const before = this.files.get(segment) ?? new Uint8Array(0);
    const after = new Uint8Array(Math.max(before.length, offset + bytes.length));
    after.set(before);
    after.set(bytes, offset);
    this.files.set(segment, after);
  }
  complete(): void {
    const { pending } = this;
    if (pending === null) return;
    this.place(pending.bytes);
    this.pending = null;
    pending.done(null);
  }
  /** The power goes: of what was under way these sectors of 64 bytes are there, and the file has the length. */
  tear(isThere: (sector: number) => boolean): void {
    const { pending } = this;
    if (pending === null) return;
    const bytes = pending.bytes.slice();
    for (let sector = 0; sector * 64 < bytes.length; sector++) {
      if (!isThere(sector)) bytes.fill(0, sector * 64, sector * 64 + 64);
    }
    this.place(bytes);
    this.pending = null;
  }
  get segments(): number[] {
    return [...this.files.keys()].sort((a, b) => a - b);
  }
  read(segment: number): Uint32Array {
    const bytes = this.files.get(segment) as Uint8Array;
    const words = new Uint32Array(bytes.length >>> 2);
    new Uint8Array(words.buffer).set(bytes.subarray(0, words.length * 4));
    return words;
  }
  recover(start: ChainPosition = BEGINNING, isDetached = false): RecoveredLog {
    return LogRecovery.run(this, start, CLUSTER, isDetached);
  }
}

function durableLog(ring: Ring, disk: Disk, segmentBytes = 1024 * 1024, recovered?: RecoveredLog): DurableLog {
  return new DurableLog(
    {
      clusterId: CLUSTER,
      ring: ring.bytes,
      segmentBytes,
      applied: recovered?.tail ?? BEGINNING,
      position: recovered?.tail ?? BEGINNING,
      segments: recovered?.segments ?? [],
      nextSegment: recovered?.nextSegment ?? 1,
      isDetached: recovered?.isDetached ?? false,
      onProgress: () => {},
      onFailure: () => {},
    },
    disk,
  );
}

/** A state that was received from another replica, from which the log goes on; it is not on disk yet. */
function receiveSnapshot(log: DurableLog, ring: Ring): ChainPosition {
  const received = { lsn: 4096, hashLow: 5, hashHigh: 6, epoch: 2 };
  log.restart(received);
  ring.truncate(received);
  ring.applied = received.lsn;
  return received;
}

/** A log of which each step appends an entry and writes it into a segment of its own; `ends` are where the steps began. */
function segmentPerGroup() {
  const [ring, disk] = [new Ring(), new Disk()];
  const log = durableLog(ring, disk, 256);
  const ends: ChainPosition[] = [{ ...ring.tail }];
  const step = (epoch: number): void => {
    ring.append(epoch, 100);
    ends.push({ ...ring.tail });
    take(log, ring);
    disk.complete();
  };
  return { ring, disk, log, ends, step };
}

const take = (log: DurableLog, ring: Ring): void => log.take(ring.tail.lsn, ring.applied, ring.version);

describe('a log on its way to disk', () => {
  test('counts as synced when the write is complete, with the epoch of its last entry; what comes meanwhile is one group', () => {
    const [ring, disk] = [new Ring(), new Disk()];
    const log = durableLog(ring, disk);
    ring.append(1, 8);
    take(log, ring);
    const first = { ...ring.tail };
    for (let count = 0; count < 5; count++) ring.append(2, 8);
    take(log, ring);
    expect(log.synced.lsn).toBe(0);
    expect(log.takenLsn).toBe(ring.tail.lsn);
    disk.complete();
    expect(log.synced).toEqual(first);
    disk.complete(); // all five
    expect(log.synced).toEqual(ring.tail);
    expect(disk.recover().tail).toEqual(ring.tail);
  });

  /** A log that gave way to a snapshot of the second epoch: that has other entries, and its place is none in this log. */
  function overruled() {
    const [ring, disk] = [new Ring(), new Disk()];
    const log = durableLog(ring, disk);
    for (let count = 0; count < 4; count++) ring.append(1, 40);
    take(log, ring);
    disk.complete();
    const other = new Ring();
    for (let count = 0; count < 3; count++) other.append(2, 8);
    const place = { ...other.tail };
    expect(place.lsn).toBeLessThan(ring.tail.lsn);
    log.restart(place);
    return { ring, disk, log, other, place };
  }

  test('gives way to a snapshot of another leader, also when the power goes before an entry is written behind that', () => {
    const { disk, log, other, place } = overruled();
    expect(log.isDetached).toBe(true);
    expect(log.reaches(place.lsn)).toBe(true);
    log.forget(place.lsn);
    const recovered = disk.recover(place, true);
    expect(recovered).toMatchObject({ tail: place, groups: [], segments: [], discard: [1], isDetached: true });
    // A snapshot that was not marked so is one of this log, or something is lost.
    expect(() => disk.recover(place)).toThrow(/does not go through/);

    // The next process goes on there, and what it writes says so: it is found even if the old segment is still there.
    const next = durableLog(other, disk, 1024 * 1024, recovered);
    other.append(2, 8);
    take(next, other);
    disk.complete();
    expect(next.isDetached).toBe(false);
    expect(disk.recover(place, true)).toMatchObject({ tail: other.tail, segments: [{ number: 2, lsn: place.lsn }] });
  });

  test('gives way to a snapshot of another leader, also when the power goes before all of what is written behind that is there', () => {
    const { ring, disk, log, other, place } = overruled();
    ring.bytes.set(other.bytes);
    ring.truncate(place);
    ring.applied = place.lsn;
    ring.append(2, 8);
    take(log, ring);
    // While that is being written the snapshot gets to the disk.
    expect(log.reaches(place.lsn)).toBe(true);
    const { isDetached } = log;
    disk.tear(() => false);
    expect(disk.recover(place, isDetached)).toMatchObject({ tail: place, discard: [2, 1], isDetached: true });
  });

  test('is none to a cluster that was forked off, whichever segments of it are left, and how whole they are', () => {
    const [ring, disk] = [new Ring(), new Disk()];
    const log = durableLog(ring, disk, 512);
    for (let count = 0; count < 9; count++) {
      ring.append(1, 200);
      take(log, ring);
      disk.complete();
    }
    const all = new Map(disk.files);
    expect(all.size).toBeGreaterThan(3);
    const fork = { lsn: ring.tail.lsn, hashLow: 8, hashHigh: 9, epoch: 77 };
    fc.assert(
      fc.property(fc.subarray([...all.keys()]), fc.nat(1200), (left, cutBytes) => {
        disk.files.clear();
        for (const segment of left) disk.files.set(segment, all.get(segment) as Uint8Array);
        const torn = left[0];
        if (torn !== undefined) disk.files.set(torn, (all.get(torn) as Uint8Array).slice(0, cutBytes));
        const recovered = LogRecovery.run(disk, fork, CLUSTER + 1, true);
        expect(recovered).toMatchObject({
          start: fork,
          tail: fork,
          commitLsn: fork.lsn,
          groups: [],
          segments: [],
          cut: null,
        });
        expect(recovered.discard).toEqual(left);
        expect(recovered.nextSegment).toBeGreaterThan(left.at(-1) ?? 0);
      }),
    );
  });

  test('takes nothing that does not chain, whatever stands in the ring', () => {
    const [ring, disk] = [new Ring(), new Disk()];
    const log = durableLog(ring, disk);
    ring.append(1, 8);
    const end = ring.tail.lsn;
    ring.append(1, 8);
    ring.words[(end >>> 2) + 20] = ((ring.words[(end >>> 2) + 14] as number) ^ 1) >>> 0;
    ring.words[(end >>> 2) + 14] = ((ring.words[(end >>> 2) + 14] as number) ^ 1) >>> 0;
    take(log, ring);
    expect(log.takenLsn).toBe(end);
  });

  test('follows a truncation, and keeps what was common to both logs', () => {
    const [ring, disk] = [new Ring(), new Disk()];
    const log = durableLog(ring, disk);
    ring.append(1, 8);
    ring.append(1, 8);
    const common = { ...ring.tail };
    for (let count = 0; count < 3; count++) ring.append(1, 100);
    take(log, ring);
    disk.complete();
    const long = { ...ring.tail };
    expect(log.synced).toEqual(long);
    ring.truncate(common);
    take(log, ring); // nothing is known yet: the longer log may still be the one
    expect(log.takenLsn).toBe(long.lsn);
    expect(disk.recover().tail).toEqual(long);
    ring.append(2, 8);
    take(log, ring);
    disk.complete();
    expect(log.synced).toEqual(ring.tail);
    const recovered = disk.recover();
    expect(recovered.tail).toEqual(ring.tail);
    const epochs: number[] = [];
    replay(recovered, disk, new Uint8Array(RING_BYTES), {
      entry: (_words, _at, _type, _bytes, end) => epochs.push(end.epoch),
    });
    expect(epochs).toEqual([1, 1, 2]);
  });

  test('drops what is before a snapshot, and not what a later truncation went back to', () => {
    const { ring, disk, log, ends, step } = segmentPerGroup();
    for (let count = 0; count < 4; count++) step(1);
    ring.truncate(ends[1] as ChainPosition);
    step(2);
    step(2);
    ring.applied = ring.tail.lsn;
    const snapshot = { ...ring.tail };
    step(2);
    expect(log.reaches(snapshot.lsn)).toBe(true);
    for (const segment of log.forget(snapshot.lsn)) disk.files.delete(segment);
    expect(disk.segments.length).toBeLessThan(4);
    expect(disk.recover(snapshot).tail).toEqual(ring.tail);
  });

  test('does not reach a snapshot with a suffix that was truncated, before what took its place is there', () => {
    const [ring, disk] = [new Ring(), new Disk()];
    const log = durableLog(ring, disk);
    ring.append(1, 8);
    const common = { ...ring.tail };
    for (let count = 0; count < 5; count++) ring.append(1, 100);
    take(log, ring);
    disk.complete();
    const long = ring.tail.lsn;
    // The leader of the second epoch has other entries there, which are committed by others and applied here.
    ring.truncate(common);
    ring.append(2, 8);
    take(log, ring);
    ring.applied = ring.tail.lsn;
    const snapshot = { ...ring.tail };
    expect(snapshot.lsn).toBeLessThan(long);
    expect(log.reaches(common.lsn)).toBe(true);
    expect(log.reaches(snapshot.lsn)).toBe(false); // or a loss of power would leave a log that does not lead to it
    ring.append(2, 8);
    take(log, ring);
    disk.complete();
    expect(log.reaches(snapshot.lsn)).toBe(true);
    expect(disk.recover(snapshot).tail.epoch).toBe(2);
  });

  test('is found behind a snapshot, whichever of the segments before it are there still', () => {
    const { ring, disk, log, ends, step } = segmentPerGroup();
    for (let count = 0; count < 5; count++) step(1);
    ring.truncate(ends[4] as ChainPosition);
    step(2);
    ring.truncate(ends[2] as ChainPosition);
    for (let count = 0; count < 3; count++) step(3);
    ring.applied = ring.tail.lsn;
    const snapshot = { ...ring.tail };
    step(3);
    const all = new Map(disk.files);
    const gone = log.forget(snapshot.lsn);
    expect(gone.length).toBeGreaterThan(4);
    fc.assert(
      fc.property(fc.subarray(gone), (removed) => {
        disk.files.clear();
        for (const [segment, bytes] of all) if (!removed.includes(segment)) disk.files.set(segment, bytes);
        expect(disk.recover(snapshot).tail).toEqual(ring.tail);
      }),
    );
  });

  test('behind a snapshot that was received counts when that is on disk, and not before', () => {
    const [ring, disk] = [new Ring(), new Disk()];
    const log = durableLog(ring, disk);
    ring.append(1, 8);
    take(log, ring);
    disk.complete();
    const before = { ...log.synced };
    const received = receiveSnapshot(log, ring);
    ring.append(3, 8);
    take(log, ring);
    disk.complete();
    expect(log.synced).toEqual(before);
    expect(disk.recover().tail).toEqual(before); // the power goes: the snapshot was never there
    expect(log.reaches(received.lsn - 64)).toBe(false);
    expect(log.reaches(received.lsn)).toBe(true);
    log.forget(received.lsn);
    expect(log.synced).toEqual(ring.tail);
    expect(disk.recover(received).tail).toEqual(ring.tail);
  });

  test('counts behind the snapshot that was received last only, also when one before that gets to the disk meanwhile', () => {
    const [ring, disk] = [new Ring(), new Disk()];
    const log = durableLog(ring, disk);
    ring.append(1, 8);
    take(log, ring);
    disk.complete();
    const before = { ...log.synced };
    expect(log.reaches(before.lsn)).toBe(true); // a snapshot of this place is being stored
    const received = receiveSnapshot(log, ring);
    log.forget(before.lsn); // and now it is
    ring.append(3, 8);
    take(log, ring);
    disk.complete();
    expect(log.synced).toEqual(before);
    expect(log.awaitsSnapshot).toBe(true);
    expect(disk.recover(before).tail).toEqual(before); // the power goes
    log.forget(received.lsn);
    expect(log.synced).toEqual(ring.tail);
    expect(disk.recover(received).tail).toEqual(ring.tail);
  });

  test('is not given up for a snapshot before its end, until it is there again or a later epoch has overruled it', () => {
    // The leader counted all of this log; then a snapshot came for a place in the middle of it.
    const interrupted = () => {
      const [ring, disk] = [new Ring(), new Disk()];
      const log = durableLog(ring, disk);
      const ends = Array.from({ length: 4 }, () => {
        ring.append(1, 8);
        return { ...ring.tail };
      });
      take(log, ring);
      disk.complete();
      const [, place, , told] = ends as [ChainPosition, ChainPosition, ChainPosition, ChainPosition];
      log.restart(place);
      ring.truncate(place);
      ring.applied = place.lsn;
      return { ring, disk, log, place, told };
    };
    const again = interrupted();
    expect(again.log.synced).toEqual(again.told);
    for (const isThere of [false, true]) {
      // The segments before the snapshot would go, and with them what was told.
      expect(again.log.reaches(again.place.lsn)).toBe(false);
      again.ring.append(1, 8);
      take(again.log, again.ring);
      again.disk.complete();
      expect(again.log.reaches(again.place.lsn)).toBe(isThere);
    }
    expect(again.ring.tail).toEqual(again.told);

    const overruled = interrupted();
    overruled.ring.append(2, 8);
    take(overruled.log, overruled.ring);
    expect(overruled.log.reaches(overruled.place.lsn)).toBe(false);
    overruled.disk.complete();
    expect(overruled.ring.tail.lsn).toBeLessThan(overruled.told.lsn);
    expect(overruled.log.reaches(overruled.place.lsn)).toBe(true);
  });

  test('is not told of behind a snapshot by a write that was under way when that was received', () => {
    const [ring, disk] = [new Ring(), new Disk()];
    const log = durableLog(ring, disk);
    // It reaches above the place of the snapshot, and is not what the log has there.
    for (let count = 0; count < 9; count++) ring.append(1, 600);
    take(log, ring);
    const received = receiveSnapshot(log, ring);
    expect(received.lsn).toBeLessThan(log.bytesWritten);
    disk.complete();
    expect(log.reaches(received.lsn)).toBe(true);
    log.forget(received.lsn);
    expect(log.synced).toEqual(received);
    ring.append(3, 8);
    take(log, ring);
    disk.complete();
    expect(log.synced).toEqual(ring.tail);
    expect(disk.recover(received).tail).toEqual(ring.tail);
  });

  test('begins a segment where it was truncated to, since what is before the last one that a snapshot needs goes', () => {
    const [ring, disk] = [new Ring(), new Disk()];
    const log = durableLog(ring, disk, 64 + 4 * (64 + 256)); // four groups of one entry each
    const write = (epoch: number): ChainPosition => {
      ring.append(epoch, 200);
      take(log, ring);
      disk.complete();
      return { ...ring.tail };
    };
    const ends = Array.from({ length: 5 }, () => write(1));
    expect(disk.segments).toEqual([1, 2]);
    // The second segment has room for all that follows, and begins with what is no part of the log any more.
    ring.truncate(ends[2] as ChainPosition);
    write(2);
    const snapshot = write(2);
    ring.applied = snapshot.lsn;
    expect(snapshot.lsn).toBeGreaterThan((ends[3] as ChainPosition).lsn);
    write(2);
    expect(log.reaches(snapshot.lsn)).toBe(true);
    for (const segment of log.forget(snapshot.lsn)) disk.files.delete(segment);
    expect(disk.recover(snapshot).tail).toEqual(ring.tail);
  });

  test('stops for good when the disk fails', () => {
    const [ring, disk] = [new Ring(), new Disk()];
    const log = durableLog(ring, disk);
    ring.append(1, 8);
    take(log, ring);
    const { done } = disk.pending as NonNullable<Disk['pending']>;
    disk.pending = null;
    done(new Error('ENOSPC'));
    ring.append(1, 8);
    take(log, ring);
    expect(disk.pending).toBeNull();
    expect(log.synced.lsn).toBe(0);
    expect(log.takenLsn).toBeGreaterThan(ring.tail.lsn); // it holds nobody up
  });
});

describe('recovery', () => {
  const sizes = fc.array(fc.array(fc.integer({ min: 0, max: 300 }), { minLength: 1, maxLength: 4 }), {
    minLength: 1,
    maxLength: 12,
  });

  /** Writes groups of entries of these sizes, the last of which is under way. */
  function written(
    groups: readonly (readonly number[])[],
    segmentBytes: number,
  ): { disk: Disk; synced: ChainPosition; end: ChainPosition } {
    const [ring, disk] = [new Ring(), new Disk()];
    const log = durableLog(ring, disk, segmentBytes);
    for (const [index, group] of groups.entries()) {
      for (const size of group) ring.append(1 + (index >> 2), size, index * 64);
      take(log, ring);
      if (index < groups.length - 1) disk.complete();
    }
    return { disk, synced: { ...log.synced }, end: { ...ring.tail } };
  }

  test('takes nothing for committed by the word of an entry that stands in front of it', () => {
    const ring = new Ring();
    const disk = new Disk();
    const log = durableLog(ring, disk);
    ring.append(1, 100);
    const committed = ring.tail.lsn;
    ring.append(1, 100, committed);
    for (const commitLsn of [ring.tail.lsn + 64, 2 ** 40, 2 ** 60]) ring.append(1, 100, commitLsn);
    take(log, ring);
    disk.complete();
    expect(disk.recover()).toMatchObject({ tail: ring.tail, commitLsn: committed });
  });

  test('finds all that was synced, whatever part of the last write is there, and nothing that was not written', () => {
    fc.assert(
      fc.property(
        sizes,
        fc.constantFrom(256, 1024, 1024 * 1024),
        fc.infiniteStream(fc.boolean()),
        (groups, bytes, coins) => {
          const { disk, synced, end } = written(groups, bytes);
          const isThere = Array.from({ length: 64 }, () => coins.next().value as boolean);
          disk.tear((sector) => isThere[sector % 64] as boolean);
          const { tail } = disk.recover();
          expect([synced, end]).toContainEqual(tail);
        },
      ),
      { seed: 20, numRuns: 400 },
    );
  });

  test('refuses a log of which a byte is wrong in front of what was written later', () => {
    fc.assert(
      fc.property(sizes, fc.constantFrom(256, 1024 * 1024), fc.nat(), (groups, bytes, choice) => {
        const { disk, synced } = written([...groups, [10]], bytes);
        disk.complete();
        const last = disk.files.get(disk.segments.at(-1) as number) as Uint8Array;
        const file = disk.files.get(disk.segments[choice % disk.segments.length] as number) as Uint8Array;
        const at = choice % file.length;
        // The last group cannot be told from one that is torn, nor can padding that nothing covers.
        if (file === last && at >= last.length - 192) return;
        file[at] = (file[at] as number) ^ 0x10;
        let tail: ChainPosition | null = null;
        try {
          tail = disk.recover().tail;
        } catch (error) {
          expect(error).toBeInstanceOf(CorruptLogError);
        }
        if (tail !== null) expect(tail.lsn).toBeGreaterThanOrEqual(synced.lsn);
      }),
      { seed: 21, numRuns: 400 },
    );
  });
});
