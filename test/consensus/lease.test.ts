// The arithmetic of leases: what a voter promises, when the leader set the counters that voters saw, and up to when enough
// of them promised.
import { describe, expect, test } from 'vitest';
import { EPOCH_NONE, makeEpoch } from '#lib/consensus/epoch.js';
import { BeatTimes, LeasePromise, LeaseTally } from '#lib/consensus/lease.js';
import { drawRecall, LeaseRecalls } from '#lib/consensus/lease-recall.js';
import { MAILBOX_MESSAGE_WORDS, MAILBOX_SLOT_WORDS, MAX_REPLICAS } from '#lib/consensus/limits.js';
import { SealedBlockWriter } from '#lib/consensus/sealed-block.js';

const LENGTH_NS = 1_000_000;
const DRIFT = 0.1;
const settings = { length_ns: LENGTH_NS, driftBound: DRIFT };
const WAIT_NS = 1_100_000; // what is a length by a clock that is as fast as it may be
const INCARNATION = 7;
const EPOCH = makeEpoch(3, INCARNATION);
const OTHER = 8;
const LEADER = 1;
const BOOT_ID = 1234;

function promised(): LeasePromise {
  const promise = new LeasePromise(settings);
  promise.saw(LEADER, BOOT_ID, EPOCH, 5);
  promise.begin(0, EPOCH);
  return promise;
}

describe('a promise', () => {
  test('counts from the first look at the clock after the counter was seen', () => {
    const promise = new LeasePromise(settings);
    promise.begin(0, EPOCH);
    promise.saw(LEADER, BOOT_ID, EPOCH, 5);
    expect(promise.publishedCounter(EPOCH)).toBe(0);
    expect(promise.remaining_ns(OTHER, 0)).toBe(0);
    promise.begin(400, EPOCH);
    expect(promise.publishedCounter(EPOCH)).toBe(5);
    expect(promise.remaining_ns(OTHER, 400)).toBe(WAIT_NS);
    expect(promise.remaining_ns(OTHER, 400 + WAIT_NS - 1)).toBe(1);
    expect(promise.remaining_ns(OTHER, 400 + WAIT_NS)).toBe(0);
  });

  test('does not stand in the way of its holder, but of another life of the same replica', () => {
    const promise = promised();
    expect(promise.remaining_ns(INCARNATION, 0)).toBe(0);
    expect(promise.remaining_ns(OTHER, 0)).toBeGreaterThan(0);
  });

  test('is not made anew for a counter that stands still', () => {
    const promise = promised();
    promise.saw(LEADER, BOOT_ID, EPOCH, 5);
    promise.begin(WAIT_NS / 2, EPOCH);
    expect(promise.remaining_ns(OTHER, WAIT_NS)).toBe(0);
    promise.saw(LEADER, BOOT_ID, EPOCH, 6);
    promise.begin(WAIT_NS, EPOCH);
    expect(promise.remaining_ns(OTHER, WAIT_NS)).toBe(WAIT_NS);
  });

  test('is not made for what was seen before somebody else was let in', () => {
    const promise = promised();
    promise.saw(LEADER, BOOT_ID, EPOCH, 6);
    const later = makeEpoch(4, OTHER);
    promise.begin(10, later);
    expect(promise.publishedCounter(later)).toBe(0);
    expect(promise.publishedCounter(EPOCH)).toBe(5);
    expect(promise.remaining_ns(OTHER, 10)).toBe(WAIT_NS - 10); // the one before is kept
  });

  test('ends when its holder leads no more in the same life, and only then', () => {
    const promise = promised();
    promise.observe(LEADER, BOOT_ID, EPOCH);
    promise.observe(LEADER, BOOT_ID + 1, 0);
    promise.observe(LEADER + 1, BOOT_ID, 0);
    expect(promise.remaining_ns(OTHER, 0)).toBe(WAIT_NS);
    promise.observe(LEADER, BOOT_ID, 0);
    expect(promise.remaining_ns(OTHER, 0)).toBe(0);
    expect(promise.publishedCounter(EPOCH)).toBe(0);
  });

  test('ends with the holder, and what was seen of it in its last moments makes no new one', () => {
    const promise = promised();
    promise.saw(LEADER, BOOT_ID, EPOCH, 6);
    promise.ended(LEADER, BOOT_ID + 1); // another one with its id
    expect(promise.remaining_ns(OTHER, 0)).toBe(WAIT_NS);
    promise.ended(LEADER, BOOT_ID);
    promise.begin(10, EPOCH);
    expect(promise.remaining_ns(OTHER, 10)).toBe(0);
  });

  test('ends when it was recalled in the process that holds it, for this epoch for good', () => {
    const promise = promised();
    expect(promise.recallableEpoch).toBe(EPOCH);
    promise.recalled(makeEpoch(2, INCARNATION), BOOT_ID); // what was recalled for the epoch before says nothing of this one
    promise.recalled(EPOCH, BOOT_ID + 1);
    expect(promise.remaining_ns(OTHER, 0)).toBe(WAIT_NS);
    promise.recalled(EPOCH, BOOT_ID);
    expect(promise.remaining_ns(OTHER, 0)).toBe(0);
    promise.saw(LEADER, BOOT_ID, EPOCH, 6);
    promise.begin(10, EPOCH);
    expect([promise.publishedCounter(EPOCH), promise.remaining_ns(OTHER, 10)]).toEqual([0, 0]);
    const later = makeEpoch(4, INCARNATION);
    promise.saw(LEADER, BOOT_ID, later, 7);
    promise.begin(20, later);
    expect([promise.publishedCounter(later), promise.remaining_ns(OTHER, 20)]).toEqual([7, WAIT_NS]);
  });

  test('cannot be recalled where it is not known which process has it, or nobody', () => {
    const promise = new LeasePromise(settings);
    expect(promise.recallableEpoch).toBe(EPOCH_NONE);
    promise.resume(LEADER, EPOCH, WAIT_NS);
    expect(promise.recallableEpoch).toBe(EPOCH_NONE);
    promise.recalled(EPOCH, BOOT_ID);
    expect(promise.remaining_ns(OTHER, 0)).toBe(WAIT_NS);
  });

  test('of an earlier process of the voter is ended by nothing that names no process', () => {
    const promise = new LeasePromise(settings);
    promise.resume(LEADER, EPOCH, WAIT_NS);
    promise.observe(LEADER, 0, EPOCH_NONE);
    promise.ended(LEADER, 0);
    promise.recalled(EPOCH, 0);
    expect(promise.remaining_ns(OTHER, 0)).toBe(WAIT_NS);
  });

  test('of a leader to itself is never shortened', () => {
    const promise = new LeasePromise(settings);
    promise.holdOwn(0, BOOT_ID, EPOCH, 500);
    promise.holdOwn(0, BOOT_ID, EPOCH, 0);
    expect(promise.remaining_ns(OTHER, 100)).toBe(400);
  });

  test('is never made where leases are off', () => {
    const promise = new LeasePromise(null);
    promise.saw(LEADER, BOOT_ID, EPOCH, 5);
    promise.begin(0, EPOCH);
    expect([promise.publishedCounter(EPOCH), promise.publishedLength_us, promise.remaining_ns(OTHER, 0)]).toEqual([
      0, 0, 0,
    ]);
  });
});

describe('the recalls that a leader sees', () => {
  /** What the peer does, with words of its own choice. */
  function recall(mailboxWords: Uint32Array, peer: number, random: () => number): void {
    const outboxWords = new Uint32Array(mailboxWords.length);
    drawRecall(outboxWords, peer, random);
    outboxWords.forEach((word, index) => {
      if (word !== 0) mailboxWords[index] = word;
    });
  }

  test('are those since it noted what stands there, of every voter, and not its messages', () => {
    const mailboxWords = new Uint32Array(MAX_REPLICAS * MAILBOX_SLOT_WORDS);
    const recalls = new LeaseRecalls(mailboxWords);
    recalls.watch(Array.from({ length: MAX_REPLICAS }, (_, peer) => peer));
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      recall(mailboxWords, peer, () => 0.25 + peer / 100);
      expect(recalls.isRecalled).toBe(true);
      recalls.note();
      expect(recalls.isRecalled).toBe(false);
      new SealedBlockWriter(mailboxWords, peer * MAILBOX_SLOT_WORDS, MAILBOX_MESSAGE_WORDS).publish();
      expect(recalls.isRecalled).toBe(false);
    }
  });

  test('count when a part of the words has changed', () => {
    const mailboxWords = new Uint32Array(MAX_REPLICAS * MAILBOX_SLOT_WORDS);
    const recalls = new LeaseRecalls(mailboxWords);
    recalls.watch([0, 3]);
    for (const index of [MAILBOX_MESSAGE_WORDS, MAILBOX_SLOT_WORDS - 1]) {
      recalls.note();
      mailboxWords[3 * MAILBOX_SLOT_WORDS + index] = 0x100;
      expect(recalls.isRecalled).toBe(true);
    }
    recalls.watch([0, 1]); // whose promises count for nothing now, its recall neither
    expect(recalls.isRecalled).toBe(false);
  });
});

describe('the times of beats', () => {
  test('are known for the last counters, and for no others', () => {
    const beats = new BeatTimes();
    for (let counter = 1; counter <= 1000; counter++) beats.note(counter, counter * 10);
    expect(beats.timeOf(1000)).toBe(10_000);
    expect(beats.timeOf(900)).toBe(9_000);
    for (const counter of [0, 1, 700, 1001, 1000 + 2 ** 32]) expect(beats.timeOf(counter)).toBeNaN();
  });
});

describe('a tally', () => {
  test('tells until when so many promises hold, by a clock that is as slow as it may be', () => {
    const tally = new LeaseTally(16);
    for (const begin_ns of [300, Number.NaN, 100, 200]) tally.add(begin_ns, LENGTH_NS, DRIFT);
    const relied_ns = 900_000;
    expect([1, 2, 3].map((wanted) => tally.endOf(wanted))).toEqual([300, 200, 100].map((begin) => begin + relied_ns));
    expect(tally.endOf(4)).toBe(0);
    tally.clear();
    expect(tally.endOf(1)).toBe(0);
  });

  test('never relies on more true time than a voter waits, whatever their clocks do within the bound', () => {
    for (const driftBound of [0, 1e-6, 0.001, 0.2, 0.5]) {
      const promise = new LeasePromise({ length_ns: LENGTH_NS, driftBound });
      promise.saw(LEADER, BOOT_ID, EPOCH, 1);
      promise.begin(0, EPOCH);
      const tally = new LeaseTally(1);
      tally.add(0, LENGTH_NS, driftBound);
      const waited_ns = promise.remaining_ns(OTHER, 0) / (1 + driftBound); // true time, by the fastest clock
      const relied_ns = tally.endOf(1) / (1 - driftBound); // true time, by the slowest clock
      expect(relied_ns).toBeLessThanOrEqual(waited_ns);
      expect(relied_ns).toBeGreaterThan(LENGTH_NS * 0.999);
    }
  });
});
