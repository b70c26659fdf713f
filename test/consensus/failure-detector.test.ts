import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { FailureDetector } from '#lib/consensus/failure-detector.js';
import { PeerProcessState } from '#lib/fabric/fabric.js';

const THRESHOLDS = { scoreMax: 15, failBelow: 2, recoverAbove: 6 };

function beating(ticks: number): { detector: FailureDetector; counter: number } {
  const detector = new FailureDetector(THRESHOLDS, 4);
  let counter = 0;
  for (let tick = 0; tick < ticks; tick++) detector.observe(1, ++counter);
  return { detector, counter };
}

describe('failure detector', () => {
  test('trusts nobody at first, and a peer once it has beaten more than recoverAbove times', () => {
    expect(beating(0).detector.trustedMask).toBe(0);
    expect(beating(6).detector.trusts(1)).toBe(false);
    expect(beating(7).detector.trusts(1)).toBe(true);
    expect(beating(7).detector.trustedMask).toBe(0b10);
  });

  test('suspects a peer that stopped after scoreMax - failBelow + 1 ticks at the latest', () => {
    const { detector, counter } = beating(1000);
    for (let tick = 0; tick < 13; tick++) {
      detector.observe(1, counter);
      expect(detector.trusts(1), `tick ${tick}`).toBe(true);
    }
    detector.observe(1, counter);
    expect(detector.trusts(1)).toBe(false);
  });

  test('suspects a peer at once when its memory is unreachable', () => {
    const { detector } = beating(1000);
    detector.observeUnreachable(1);
    expect(detector.trusts(1)).toBe(false);
  });

  test('keeps trusting a peer that is read less often than it beats, as long as it beats', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 3 }), { minLength: 50, maxLength: 200 }), (pattern) => {
        // No beat for at most two reads in a row: the peer ticks at about the same pace, with jitter.
        const { detector, counter } = beating(100);
        let now = counter;
        let silent = 0;
        for (const step of pattern) {
          const beats = step === 0 && silent < 2 ? 0 : Math.max(step, 2);
          silent = beats === 0 ? silent + 1 : 0;
          now += beats;
          detector.observe(1, now);
          expect(detector.trusts(1)).toBe(true);
        }
      }),
    );
  });

  test('tells peers apart', () => {
    const { detector } = beating(10);
    expect(detector.trusts(0)).toBe(false);
    expect(detector.trusts(2)).toBe(false);
  });

  test('takes the counter of a new life, which begins again, for a beat', () => {
    const { detector } = beating(100);
    detector.observeUnreachable(1);
    for (let counter = 1; counter <= 7; counter++) detector.observe(1, counter);
    expect(detector.trusts(1)).toBe(true);
  });

  test('suspects a process that the host sees stopped, at once', () => {
    const { detector, counter } = beating(30);
    expect(detector.missedBeats(1, counter + 1)).toBe(0);
    expect(detector.missedBeats(1, counter)).toBe(1);
    detector.observe(1, counter, PeerProcessState.stopped);
    expect(detector.trusts(1)).toBe(false);
  });

  test('forgives a process that the host sees running ten times as many missed beats, and no more', () => {
    const { detector, counter } = beating(30);
    for (let missed = 1; missed <= 10 * THRESHOLDS.scoreMax; missed++) {
      expect(detector.missedBeats(1, counter)).toBe(missed);
      detector.observe(1, counter, PeerProcessState.running);
      expect(detector.trusts(1)).toBe(true);
    }
    detector.observe(1, counter, PeerProcessState.running);
    expect(detector.trusts(1)).toBe(false);
  });

  test('trusts nobody because the host sees it running', () => {
    const { detector, counter } = beating(7);
    for (let missed = 0; missed < 7; missed++) detector.observe(1, counter);
    expect(detector.trusts(1)).toBe(false);
    for (let missed = 0; missed < 20; missed++) detector.observe(1, counter, PeerProcessState.running);
    expect(detector.trusts(1)).toBe(false);
    // Nor is it trusted any sooner for that.
    for (let beat = 1; beat <= THRESHOLDS.recoverAbove; beat++) detector.observe(1, counter + beat);
    expect(detector.trusts(1)).toBe(false);
    detector.observe(1, counter + THRESHOLDS.recoverAbove + 1);
    expect(detector.trusts(1)).toBe(true);
  });

  test('refuses thresholds that make no sense', () => {
    for (const thresholds of [
      { scoreMax: 15, failBelow: 0, recoverAbove: 6 },
      { scoreMax: 15, failBelow: 7, recoverAbove: 6 },
      { scoreMax: 6, failBelow: 2, recoverAbove: 6 },
      { scoreMax: Number.NaN, failBelow: 2, recoverAbove: 6 },
    ]) {
      expect(() => new FailureDetector(thresholds, 4)).toThrow(RangeError);
    }
  });
});
