// The rehearsal goes through a takeover whatever the replica's own profile is, and leaves nothing behind.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Replica, type ReplicaOptions } from '#lib/index.js';
import { LeasePromise } from '../../dist/consensus/lease.js';
import { ReplicationPlane } from '../../dist/consensus/replication-plane.js';
import { VerbsBackgroundFabric } from '../../dist/fabric/verbs-background-fabric.js';
import { VerbsEndpoint } from '../../dist/fabric/verbs-endpoint.js';
import { LeaderWatch } from '../../dist/replica/leader-watch.js';
import { resolveLease } from '../../dist/replica/lease-options.js';
import { PROFILES } from '../../dist/replica/profiles.js';
import { rehearse } from '../../dist/replica/rehearsal.js';
import { members, optionsFor } from './fixture.js';

/** Of a replica that rehearses if nobody says otherwise. */
function rehearsing(...parameters: Parameters<typeof optionsFor>): ReplicaOptions<number> {
  const { rehearseTakeovers: _, ...options } = optionsFor(...parameters);
  return { ...options, ...parameters[2] };
}

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

  it('does what a replica does when it has become the leader', async () => {
    const tookOver = vi.spyOn(LeaderWatch.prototype, 'tookOver');
    try {
      const { leaders } = await rehearse({ strategy: 'qp-flags', shmDirectory });
      expect(tookOver).toHaveBeenCalledTimes(leaders.length);
    } finally {
      tookOver.mockRestore();
    }
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

it("a rehearsal gives its replication planes options of the shape of a replica's own, for which V8 compiles", async () => {
  const shapes = new Map<ReplicationPlane, string>();
  const { poll: original } = ReplicationPlane.prototype;
  const poll = vi.spyOn(ReplicationPlane.prototype, 'poll').mockImplementation(function (
    this: ReplicationPlane,
    now_ns: number,
  ) {
    shapes.set(this, Object.keys(this['options']).join(' '));
    return original.call(this, now_ns);
  });
  const replica = await Replica.open(rehearsing(0, await members(1), { shmDirectory, keepCompiledCode: false }));
  poll.mockRestore();
  await replica.close();
  expect(shapes.size).toBe(3 + 1);
  expect([...new Set(shapes.values())]).toHaveLength(1);
});

it('is left out on a software device whose failures are noticed late, and as the option says', async () => {
  const { open } = VerbsEndpoint;
  const opened = vi.spyOn(VerbsEndpoint, 'open').mockImplementation((options) => {
    const endpoint = open.call(VerbsEndpoint, options);
    return Object.defineProperty(endpoint, 'isSoftware', { value: true });
  });
  try {
    const rehearsals: number[] = [];
    const chosen: Partial<ReplicaOptions<number>>[] = [
      {},
      { profile: 'relaxed' },
      { profile: 'balanced' },
      { profile: 'fast' },
      { profile: 'fast', rehearseTakeovers: false },
      { profile: 'relaxed', rehearseTakeovers: true },
    ];
    for (const more of chosen) {
      opened.mockClear();
      const options = { shmDirectory, keepCompiledCode: false, ...more };
      const replica = await Replica.open(rehearsing(0, await members(1), options));
      await replica.close();
      rehearsals.push((opened.mock.calls.length - 1) / 3);
    }
    expect(rehearsals).toEqual([0, 0, 1, 1, 0, 1]);
  } finally {
    opened.mockRestore();
  }
});

it('is made by the first replica of a thread for all that follow, once V8 keeps what it compiled', async () => {
  const opened = vi.spyOn(VerbsEndpoint, 'open'); // by each replica, and by a rehearsal in this thread for its three
  const replicas: Replica<number>[] = [];
  const rehearsals = async (count: number, more: Partial<ReplicaOptions<number>>) => {
    opened.mockClear();
    const lists = await Promise.all(Array.from({ length: count }, () => members(1)));
    const options = { shmDirectory, ...more };
    replicas.push(...(await Promise.all(lists.map((list) => Replica.open(rehearsing(0, list, options))))));
    return (opened.mock.calls.length - count) / 3;
  };
  try {
    expect(await rehearsals(1, { keepCompiledCode: false })).toBe(1);
    expect(await rehearsals(1, { keepCompiledCode: false })).toBe(1);
    expect(await rehearsals(2, {})).toBe(1);
    expect(await rehearsals(1, {})).toBe(0);
    expect(await rehearsals(1, { permissionStrategy: 'mr-dereg' })).toBe(1);
  } finally {
    opened.mockRestore();
    await Promise.all(replicas.map((replica) => replica.close()));
  }
});
