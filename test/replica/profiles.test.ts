// How often an idle event loop turns: seldom, for the sake of processor time, and often enough to be seen not to be stalled.
import { expect, it } from 'vitest';
import { housekeepingIntervalMs, PROFILES } from '../../dist/replica/profiles.js';

it.each([
  ['fast', PROFILES.fast, 20],
  ['balanced', PROFILES.balanced, 50],
  ['relaxed, two of its ticks', PROFILES.relaxed, 80],
  ['a short stall timeout', { ...PROFILES.balanced, stallTimeout_ns: 300_000_000 }, 30],
  ['the shortest one', { ...PROFILES.balanced, stallTimeout_ns: 50_000_000 }, 20],
])(
  'an idle event loop turns several times within the stall timeout, and no more often than it must: %s',
  (_, profile, ms) => {
    expect(housekeepingIntervalMs(profile)).toBe(ms);
    expect(profile.stallTimeout_ns / 1e6 / ms).toBeGreaterThan(2);
  },
);
