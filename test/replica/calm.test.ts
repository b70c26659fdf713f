// What the background thread does when no election is on, and when one does not end.
import { expect, test } from 'vitest';
import { CALM_NS, Calm, DEFERRAL_NS_MAX } from '#lib/replica/calm.js';

const TICK_NS = 100_000;

test('without an election everything is done at once', () => {
  const calm = new Calm();
  for (let now_ns = 0; now_ns < CALM_NS; now_ns += TICK_NS) expect(calm.isDue(now_ns, false)).toBe(true);
});

test('a short election is not disturbed, and a moment after it what waited is done', () => {
  const calm = new Calm();
  calm.isDue(0, false);
  const end_ns = 10 * TICK_NS;
  for (let now_ns = TICK_NS; now_ns <= end_ns; now_ns += TICK_NS) expect(calm.isDue(now_ns, true)).toBe(false);
  for (let now_ns = end_ns + TICK_NS; now_ns < end_ns + CALM_NS; now_ns += TICK_NS) {
    expect(calm.isDue(now_ns, false)).toBe(false);
  }
  expect(calm.isDue(end_ns + CALM_NS, false)).toBe(true);
});

test('an election that does not end, perhaps for want of what waits, puts nothing off for longer than the limit', () => {
  const calm = new Calm();
  calm.isDue(0, false);
  let last_ns = 0;
  for (let now_ns = TICK_NS; now_ns < 20 * DEFERRAL_NS_MAX; now_ns += TICK_NS) {
    if (calm.isDue(now_ns, true)) last_ns = now_ns;
    expect(now_ns - last_ns).toBeLessThanOrEqual(DEFERRAL_NS_MAX);
  }
  expect(last_ns).toBeGreaterThan(0);
});
