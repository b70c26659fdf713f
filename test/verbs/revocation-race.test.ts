// Short form of the revocation race on the shm device: whichever way a right is taken, no byte lands after the call has
// returned, also if the writer was stopped or killed in the middle of a copy. The long form is the tool itself.
import { expect, it } from 'vitest';
import { revocationRace } from './support/revocation-race.js';
import { useShmDirectory } from './support/shm-directory.js';

useShmDirectory();
const LIMIT_MS = 120_000;
const timeout = LIMIT_MS / 1000 - 10;

it.each(['mr-dereg', 'qp-flush', 'qp-flags', 'qp-close', 'mw-1', 'mw-2'])(
  '%s is synchronous on shm',
  async (strategy) => {
    const outcome = await revocationRace({ device: 'shm', strategy, trials: 60, seed: 20_251, timeout });
    expect(outcome, JSON.stringify(outcome)).toMatchObject({ trials: 60, late: 0, spoiled: 0 });
    // Every way in which a writer can be caught was met.
    expect(Object.keys(outcome.signals).sort()).toEqual(['kill', 'none', 'stop']);
    expect(outcome.statuses.SUCCESS).toBe(undefined);
  },
  LIMIT_MS,
);

it(
  'the watching sees late bytes where nothing is revoked',
  async () => {
    const outcome = await revocationRace({
      device: 'shm',
      strategy: 'none',
      trials: 10,
      signals: 'none,stop',
      timeout,
    });
    expect(outcome.late, JSON.stringify(outcome)).toBeGreaterThan(0);
    expect(outcome.latestUs).toBeGreaterThan(0);
  },
  LIMIT_MS,
);
