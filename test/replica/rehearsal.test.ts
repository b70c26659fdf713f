// The rehearsal goes through a takeover whatever the replica's own profile is, and leaves nothing behind.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { VerbsBackgroundFabric } from '../../dist/fabric/verbs-background-fabric.js';
import { resolveLease } from '../../dist/replica/lease-options.js';
import { PROFILES } from '../../dist/replica/profiles.js';
import { rehearse } from '../../dist/replica/rehearsal.js';

let shmDirectory: string;
beforeEach(() => {
  shmDirectory = mkdtempSync(join(tmpdir(), 'quorate-rehearsal-'));
});
afterEach(() => {
  rmSync(shmDirectory, { recursive: true });
});

describe('a rehearsal', () => {
  it.each(['fast', 'balanced', 'relaxed'] as const)(
    'with profile %s has a leader, loses it and has another',
    async (name) => {
      const profile = PROFILES[name];
      let notices = 0;
      const notifyMain = () => {
        notices++;
      };
      const lease = resolveLease(undefined, profile);
      const { leaders, applied } = await rehearse({ strategy: 'qp-flags', shmDirectory, profile, lease, notifyMain });
      expect(leaders).toEqual([0, 1]);
      expect(applied).toBe(16);
      expect(notices).toBeGreaterThan(0);
      expect(readdirSync(shmDirectory)).toEqual([]);
    },
  );

  it.each(['mr-dereg', 'qp-flush'] as const)('does so with strategy %s', async (strategy) => {
    expect((await rehearse({ strategy, shmDirectory })).leaders).toEqual([0, 1]);
  });

  it("sees the leader's process end, as a background plane does", async () => {
    const { prototype } = VerbsBackgroundFabric;
    const { exitedMask } = prototype;
    let seen = 0;
    prototype.exitedMask = function (this: VerbsBackgroundFabric) {
      const mask = exitedMask.call(this);
      seen |= mask;
      return mask;
    };
    try {
      await rehearse({ strategy: 'qp-flags', shmDirectory });
    } finally {
      prototype.exitedMask = exitedMask;
    }
    expect(seen).toBe(1);
  });
});
