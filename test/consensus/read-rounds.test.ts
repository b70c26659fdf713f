// What counts as proof in a read round: completions in the order of their requests, those before the round set apart.
import { beforeEach, describe, expect, it } from 'vitest';
import { ReadRounds } from '#lib/consensus/read-rounds.js';

let rounds: ReadRounds;
beforeEach(() => {
  rounds = new ReadRounds();
});

describe('a read round', () => {
  it('is shared by all who ask before it is opened; those who ask later share the next', () => {
    expect([rounds.request(), rounds.request()]).toEqual([1, 1]);
    rounds.open(64);
    expect(rounds.isDue).toBe(false);
    expect([rounds.request(), rounds.request()]).toEqual([2, 2]);
    expect(rounds.isDue).toBe(false);
    expect(rounds.close()).toBe(1);
    expect(rounds.isDue).toBe(true);
    rounds.open(128);
    expect(rounds.readLsn).toBe(128);
    expect(rounds.close()).toBe(2);
    expect(rounds.isDue).toBe(false);
  });

  it('takes no operation for proof that was posted before it was opened', () => {
    rounds.request();
    rounds.open(0);
    rounds.noteEarlier(3, 2);
    expect(rounds.needsProof(3, 2)).toBe(true);
    expect(rounds.needsProof(3, 3)).toBe(false);
    for (const expected of [false, false, true]) {
      rounds.completed(3, true);
      expect(rounds.hasProof(3)).toBe(expected);
    }
    expect(rounds.needsProof(3, 0)).toBe(false);
  });

  it('takes no failure for proof, and asks for another operation behind it', () => {
    rounds.request();
    rounds.open(0);
    rounds.noteEarlier(1, 1);
    rounds.completed(1, false);
    rounds.completed(1, false);
    expect(rounds.hasProof(1)).toBe(false);
    expect(rounds.needsProof(1, 0)).toBe(true);
    rounds.completed(1, true);
    expect(rounds.hasProof(1)).toBe(true);
  });

  it('forgets the proof of a life that is over, and those of the round before', () => {
    rounds.request();
    rounds.open(0);
    rounds.completed(0, true);
    rounds.completed(1, true);
    rounds.forget(1);
    expect([rounds.hasProof(0), rounds.hasProof(1)]).toEqual([true, false]);
    rounds.close();
    rounds.request();
    rounds.open(0);
    expect(rounds.hasProof(0)).toBe(false);
  });

  it('that is abandoned is never passed, and its number is not given out again', () => {
    rounds.request();
    rounds.open(0);
    const next = rounds.request();
    rounds.abandon();
    expect([rounds.isOpen, rounds.isDue]).toEqual([false, false]);
    expect(rounds.request()).toBeGreaterThan(next);
  });

  it('is not opened unasked, or inside another', () => {
    expect(() => rounds.open(0)).toThrow('nobody asked for');
    rounds.request();
    rounds.open(0);
    rounds.request();
    expect(() => rounds.open(0)).toThrow('inside another');
  });
});
