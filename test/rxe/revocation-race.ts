// The revocation race on SoftRoCE. Deregistering the writer's memory region, and the error state with a flush marker, are
// synchronous there by construction; taking the queue pair's access flags is not, and the test must be able to show it.
import { expect, it } from 'vitest';
import { revocationRace } from '../verbs/support/revocation-race.js';
import { rdmaDevices } from './devices.js';

const LIMIT_MS = 400_000;
const timeout = LIMIT_MS / 1000 - 20;
// A writer that is killed is slow to replace in an emulated machine; stopping it is the harder case.
const signals = 'none,stop';

/** @param trials of each strategy that must be synchronous */
export function revocationRaceTests(trials: number): void {
  const device = rdmaDevices().slice(0, 2).join(',');

  it.each(['mr-dereg', 'qp-flush'])(
    '%s is synchronous on SoftRoCE',
    async (strategy) => {
      const outcome = await revocationRace({ device, strategy, trials, signals, seed: 7, timeout });
      expect(outcome, JSON.stringify(outcome)).toMatchObject({ trials, late: 0 });
    },
    LIMIT_MS,
  );

  it(
    'qp-flags is not: late bytes are found',
    async () => {
      const options = {
        device,
        strategy: 'qp-flags',
        trials: 3000,
        signals: 'none',
        seed: 7,
        timeout,
        'until-late': true,
      } as const;
      const outcome = await revocationRace(options);
      expect(outcome.late, JSON.stringify(outcome)).toBeGreaterThan(0);
    },
    LIMIT_MS,
  );
}
