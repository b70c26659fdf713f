// The rehearsal goes through a takeover whatever the replica's own profile is, and leaves nothing behind.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { LeasePromise } from '../../dist/consensus/lease.js';
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
    'with profile %s has a leader, loses it and has another, over and over',
    async (name) => {
      const profile = PROFILES[name];
      let notices = 0;
      const notifyMain = () => {
        notices++;
      };
      const lease = resolveLease(undefined, profile);
      const { leaders, applied } = await rehearse({ strategy: 'qp-flags', shmDirectory, profile, lease, notifyMain });
      expect(leaders.length).toBeGreaterThanOrEqual(2);
      for (let next = 1; next < leaders.length; next++) expect(leaders[next]).not.toBe(leaders[next - 1]);
      expect(applied).toBe(8 * leaders.length);
      expect(notices).toBeGreaterThan(0);
      expect(readdirSync(shmDirectory)).toEqual([]);
    },
  );

  it.each(['mr-dereg', 'qp-flush'] as const)('does so with strategy %s', async (strategy) => {
    expect((await rehearse({ strategy, shmDirectory })).leaders.slice(0, 2)).toEqual([0, 1]);
  });

  it('takes the lease of a leader back that stands still', async () => {
    const { prototype } = LeasePromise;
    const { recalled } = prototype;
    const takenBack: boolean[] = [];
    prototype.recalled = function (this: LeasePromise, epoch, processId) {
      const { holder } = this;
      recalled.call(this, epoch, processId);
      takenBack.push(holder >= 0 && this.holder !== holder);
    };
    try {
      await rehearse({ strategy: 'qp-flags', shmDirectory });
    } finally {
      prototype.recalled = recalled;
    }
    expect(takenBack).toContain(true);
  });

  it("sees the leader's process end, as a background plane does", async () => {
    const { prototype } = VerbsBackgroundFabric;
    const { wait } = prototype;
    let seen = 0;
    prototype.wait = function (this: VerbsBackgroundFabric, timeout_ns, isUrgent) {
      const before = this.exitedMask();
      const result = wait.call(this, timeout_ns, isUrgent);
      seen |= this.exitedMask() & ~before;
      return result;
    };
    let leaders: readonly number[];
    try {
      ({ leaders } = await rehearse({ strategy: 'qp-flags', shmDirectory }));
    } finally {
      prototype.wait = wait;
    }
    expect(seen).toBe(1 << (leaders.at(-2) as number));
  });
});
