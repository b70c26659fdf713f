// The option `lease`: what a user writes, and what it means for a profile that says nothing of leases.
import type { BackgroundProfile } from '../consensus/background-plane.js';
import { LEASE_TICKS_MIN, type LeaseSettings, leaseLengthMax_ns } from '../consensus/lease.js';
import { checkInteger, checkNames, invalid } from './check-options.js';
import type { LeaseOptions } from './replica-options.js';

/**
 * Clocks of computers run wrong by some 100 ppm at most, and CLOCK_MONOTONIC is slewed by up to 500 ppm besides,
 * adjtimex(2).
 */
const DRIFT_BOUND_DEFAULT_PPM = 1_000;
const DRIFT_BOUND_MAX_PPM = 500_000;
const LENGTH_US_MIN = 100;

/** Ticks without a beat after which a peer that was fully trusted is suspected. */
function detectionTicks({ scoreMax, failBelow }: BackgroundProfile): number {
  return scoreMax - failBelow + 1;
}

/**
 * By default a lease is as long as it can be without holding up a failover: two ticks shorter than the silence after which
 * a leader is suspected. No lease if that is too short to be renewed in time.
 */
export function resolveLease(option: LeaseOptions | 'off' = {}, profile: BackgroundProfile): LeaseSettings | null {
  if (option === 'off') return null;
  if (typeof option !== 'object' || option === null) {
    return invalid('lease must be "off" or an object with lengthUs and driftBoundPpm');
  }
  checkNames<LeaseOptions>(option, { lengthUs: true, driftBoundPpm: true }, 'lease');
  const { lengthUs, driftBoundPpm = DRIFT_BOUND_DEFAULT_PPM } = option;
  const driftBound = checkInteger(driftBoundPpm, 0, DRIFT_BOUND_MAX_PPM, 'lease.driftBoundPpm') / 1e6;
  if (lengthUs !== undefined) {
    const maxUs = Math.floor(leaseLengthMax_ns(profile.takeoverTimeout_ns) / 1000);
    return { length_ns: checkInteger(lengthUs, LENGTH_US_MIN, maxUs, 'lease.lengthUs') * 1000, driftBound };
  }
  const ticks = detectionTicks(profile) - 2;
  const length_ns = Math.floor((ticks * profile.tick_ns) / 1000) * 1000;
  const isUsable =
    ticks >= LEASE_TICKS_MIN &&
    length_ns >= LENGTH_US_MIN * 1000 &&
    length_ns <= leaseLengthMax_ns(profile.takeoverTimeout_ns);
  return isUsable ? { length_ns, driftBound } : null;
}
