// Simulated devices that fail when a permission to write a log is given or taken, before that took effect or behind it, and
// that prove too late that one is gone. Such a replica grants nobody, and tries again; every invariant holds.
import { expect, test } from 'vitest';
import { PERMISSION_STRATEGIES } from '#lib/fabric/permissions.js';
import { failingPermissions } from '#lib/testing/sim-options.js';
import { runSimulation } from '#lib/testing/simulation.js';

const SEEDS = 3;

/** What the trace of a run must tell of, by strategy: what failed. */
const FAILURES = {
  'mr-dereg': ['close', 'destroy', 'query', 'registerMemory'],
  'qp-flush': ['destroy', 'marker', 'modify', 'setAccessFlags'],
  'qp-flags': ['destroy', 'setAccessFlags'],
} as const;

test.each(PERMISSION_STRATEGIES)(
  'devices that fail at permissions let nobody write beside another one, %s',
  {
    timeout: 120_000,
  },
  (strategy) => {
    let failures = 0;
    let operations = 0;
    let leaderChanges = 0;
    const seen = new Set<string>();
    for (let seed = 1; seed <= SEEDS; seed++) {
      const result = runSimulation({
        seed,
        replicas: 3,
        virtualSeconds: 8,
        traceLines: 1_000_000,
        adjust: (options) => {
          const { network, faults } = failingPermissions(options, 1 / 3);
          const interval_ns = Math.min(faults.interval_ns, 200e6);
          return { ...options, network: { ...network, strategy }, faults: { ...faults, interval_ns } };
        },
      });
      expect(result.violation, `seed ${seed}`).toBeNull();
      failures += result.permissionFailures;
      operations += result.operations;
      leaderChanges += result.leaderChanges;
      for (const line of result.trace) {
        const [, call, effect] = /(\w+) of its device fails(, and takes effect)?$/.exec(line) ?? [];
        if (call !== undefined) seen.add(effect === undefined ? call : `${call} with effect`);
        if (/the flush marker .* will take/.test(line)) seen.add('marker');
      }
    }
    expect(failures).toBeGreaterThan(5 * SEEDS);
    expect(operations).toBeGreaterThan(10 * SEEDS);
    expect(leaderChanges).toBeGreaterThan(SEEDS);
    for (const call of FAILURES[strategy]) expect([...seen]).toContain(call);
    expect([...seen].some((call) => call.endsWith(' with effect'))).toBe(true);
  },
);
