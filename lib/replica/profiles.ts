// Failure detection profiles: how often the background plane ticks, how many missed beats make a suspect, how long a
// takeover may take. Shorter ticks detect sooner and cost processor time; a larger scoreMax tolerates longer stalls of
// a busy host. The death of a process of the same host is seen at once, whatever the profile.
import type { BackgroundProfile } from '../consensus/background-plane.js';
import { QuorateError } from '../errors.js';
import type { ProfileName } from './replica-options.js';

/** The named profiles of failure detection. */
export const PROFILES: Readonly<Record<ProfileName, BackgroundProfile>> = {
  /** Silence of about 2 ms is a failure. For hosts with a processor to spare per replica. */
  fast: {
    tick_ns: 100_000,
    electionTick_ns: 100_000,
    takeoverTimeout_ns: 100_000_000,
    scoreMax: 20,
    failBelow: 2,
    recoverAbove: 6,
    stallTimeout_ns: 100_000_000,
  },
  /** Silence of about 35 ms is a failure. */
  balanced: {
    tick_ns: 2_500_000,
    electionTick_ns: 500_000,
    takeoverTimeout_ns: 200_000_000,
    scoreMax: 14,
    failBelow: 2,
    recoverAbove: 6,
    stallTimeout_ns: 500_000_000,
  },
  /** Silence of about 0.5 s is a failure. For software RDMA devices, where each READ costs both ends, and busy hosts. */
  relaxed: {
    tick_ns: 40_000_000,
    electionTick_ns: 5_000_000,
    takeoverTimeout_ns: 3_000_000_000,
    scoreMax: 13,
    failBelow: 2,
    recoverAbove: 4,
    stallTimeout_ns: 4_000_000_000,
  },
};

const TICK_NS_MIN = 5_000;
const TICK_NS_MAX = 1_000_000_000;
/** Then an idle replica's event loop turns every 20 ms (or two ticks), and garbage collection may well take longer than that. */
const STALL_TIMEOUT_NS_MIN = 50_000_000;
const HOUSEKEEPING_INTERVAL_MIN_MS = 20;
const HOUSEKEEPING_INTERVAL_MAX_MS = 50;
const TURNS_PER_STALL_TIMEOUT = 10;

/**
 * How often the event loop turns for what no event announces: a blocked ring, a membership change that waits. It is all that
 * an idle one does, and so as rare as it can be; but its turns are what shows that a leader is not stalled.
 */
export function housekeepingIntervalMs({ stallTimeout_ns, tick_ns }: BackgroundProfile): number {
  const wantedMs = Math.min(stallTimeout_ns / 1e6 / TURNS_PER_STALL_TIMEOUT, HOUSEKEEPING_INTERVAL_MAX_MS);
  return Math.max(HOUSEKEEPING_INTERVAL_MIN_MS, wantedMs, (tick_ns / 1e6) * 2);
}

/** Resolves the option `profile`; QUORATE_INVALID_ARGUMENT says what is wrong with it. */
export function resolveProfile(
  profile: ProfileName | BackgroundProfile | undefined,
  isSoftwareDevice: boolean,
): { name: string; profile: BackgroundProfile } {
  if (profile === undefined) {
    const name = isSoftwareDevice ? 'relaxed' : 'balanced';
    return { name, profile: PROFILES[name] };
  }
  if (typeof profile === 'string') {
    const named = Object.hasOwn(PROFILES, profile) ? PROFILES[profile] : undefined;
    if (named === undefined) {
      throw new QuorateError(
        'QUORATE_INVALID_ARGUMENT',
        `profile "${profile}" is unknown; use one of ${Object.keys(PROFILES).join(', ')} or explicit values`,
      );
    }
    return { name: profile, profile: named };
  }
  if (typeof profile !== 'object' || profile === null) {
    throw new QuorateError(
      'QUORATE_INVALID_ARGUMENT',
      `profile is neither one of ${Object.keys(PROFILES).join(', ')} nor an object with explicit values`,
    );
  }
  for (const key of Object.keys(PROFILES.balanced) as (keyof BackgroundProfile)[]) {
    // A string would pass the comparisons below, and then be put before other digits instead of being added.
    if (!Number.isFinite(profile[key])) {
      throw new QuorateError('QUORATE_INVALID_ARGUMENT', `profile.${key} ${profile[key]} is not a finite number`);
    }
  }
  for (const key of ['tick_ns', 'electionTick_ns'] as const) {
    const value = profile[key];
    if (!(value >= TICK_NS_MIN && value <= TICK_NS_MAX)) {
      throw new QuorateError(
        'QUORATE_INVALID_ARGUMENT',
        `profile.${key} ${value} is not in ${TICK_NS_MIN}..${TICK_NS_MAX}`,
      );
    }
  }
  // The others count beats by tick_ns, and would take a replica that beats less often in an election for dead.
  if (!(profile.electionTick_ns <= profile.tick_ns)) {
    throw new QuorateError(
      'QUORATE_INVALID_ARGUMENT',
      `profile.electionTick_ns ${profile.electionTick_ns} is more than tick_ns, ${profile.tick_ns}`,
    );
  }
  if (!(profile.takeoverTimeout_ns >= profile.tick_ns * 4)) {
    throw new QuorateError('QUORATE_INVALID_ARGUMENT', 'profile.takeoverTimeout_ns must be at least four ticks');
  }
  if (!(profile.stallTimeout_ns >= STALL_TIMEOUT_NS_MIN)) {
    throw new QuorateError(
      'QUORATE_INVALID_ARGUMENT',
      `profile.stallTimeout_ns ${profile.stallTimeout_ns} is not at least ${STALL_TIMEOUT_NS_MIN}`,
    );
  }
  const { scoreMax, failBelow, recoverAbove } = profile;
  if (!(failBelow >= 1 && recoverAbove >= failBelow && scoreMax > recoverAbove && scoreMax <= 1e6)) {
    throw new QuorateError(
      'QUORATE_INVALID_ARGUMENT',
      'profile scores must satisfy 1 <= failBelow <= recoverAbove < scoreMax <= 1000000',
    );
  }
  return { name: 'custom', profile };
}
