// Linearizable reads as a service uses them, on shm, all members in this process: by lease at the leader, without one, and
// at followers.
import { afterEach, describe, expect, it } from 'vitest';
import { Replica } from '#lib/index.js';
import { type CommandLog, members, openCluster, optionsFor, type TestCluster, waitFor } from './fixture.js';

let cluster: TestCluster;
afterEach(async () => {
  await cluster?.close();
});

const bytes = (text: string) => new Uint8Array(Buffer.from(text));
const machineOf = (replica: Replica<number>): CommandLog => cluster.machines[replica.id] as CommandLog;
const followersOf = (leader: Replica<number>) => cluster.replicas.filter((replica) => replica !== leader);

/** What the tests look into: the background thread, which extends the lease and beats, and the control connections. */
interface Internals {
  background: { stop(): Promise<void> };
  ownProcess: { alive: boolean };
  connections: Map<number, { request(type: string, ...rest: unknown[]): Promise<unknown> }>;
  plane: { noteCommit(epoch: number, lsn: number): void };
}
const internalsOf = (replica: Replica<number>): Internals => replica as unknown as Internals;

async function leaseHolder(): Promise<Replica<number>> {
  const leader = await cluster.leader();
  await waitFor(() => leader.status().leaseRemainingUs > 0, 'the leader to hold a lease');
  return leader;
}

function countIndexRequests(replica: Replica<number>, leader: Replica<number>): () => number {
  const connection = internalsOf(replica).connections.get(leader.id);
  if (connection === undefined) throw new Error('the follower is not connected to the leader');
  let count = 0;
  const original = connection.request;
  connection.request = function (type, ...rest) {
    if (type === 'readIndex') count++;
    return original.call(this, type, ...rest);
  };
  return () => count;
}

describe('a read by lease', () => {
  it.each([1, 2, 3, 5])('at the leader of %i returns what was acknowledged, in the same turn', async (count) => {
    cluster = await openCluster(count);
    const leader = await leaseHolder();
    for (let index = 1; index <= 20; index++) {
      await leader.propose(bytes(`c${index}`));
      await waitFor(() => leader.leasedRead(() => true), 'a lease');
      expect(leader.leasedRead(() => machineOf(leader).commands.length) ?? index).toBe(index);
    }
  });

  it('goes on while nothing is proposed: the lease is renewed', async () => {
    cluster = await openCluster(3);
    const leader = await leaseHolder();
    const first = leader.status().leaseRemainingUs;
    const begun = Date.now();
    await waitFor(() => Date.now() - begun > (2 * first) / 1000, 'two lengths to pass');
    await waitFor(() => leader.leasedRead(() => 'read') === 'read', 'a lease again');
  });

  it('is refused at followers, and the function is not even called', async () => {
    cluster = await openCluster(3);
    const leader = await leaseHolder();
    for (const follower of followersOf(leader)) {
      expect(follower.leasedRead(() => expect.unreachable('a follower reads by lease'))).toBeUndefined();
      expect(follower.status().leaseRemainingUs).toBe(0);
    }
  });

  it('is refused once the majority has been silent for as long as the lease, and what it read is thrown away', async () => {
    cluster = await openCluster(3, { profile: 'relaxed' });
    const leader = await leaseHolder();
    await Promise.all(followersOf(leader).map((follower) => internalsOf(follower).background.stop()));
    await waitFor(() => leader.status().leaseRemainingUs === 0, 'the lease to end');
    expect(leader.leasedRead(() => 'stale')).toBeUndefined();
  });

  it('that takes longer than the lease lasts does not count', async () => {
    cluster = await openCluster(3);
    const leader = await leaseHolder();
    // The voters' promises end with their background threads.
    await Promise.all(followersOf(leader).map((follower) => internalsOf(follower).background.stop()));
    let calls = 0;
    const value = leader.leasedRead(() => {
      calls++;
      for (const until = Date.now() + 2_000; Date.now() < until; );
      return 'late';
    });
    expect([calls, value]).toEqual([1, undefined]);
  });

  it('does not count when peers may take this process for dead', async () => {
    cluster = await openCluster(3);
    const leader = await leaseHolder();
    await waitFor(() => leader.leasedRead(() => true), 'a lease');
    Object.defineProperty(leader, 'ownProcess', { value: { alive: false, close: () => {} } });
    expect(leader.leasedRead(() => true)).toBeUndefined();
  });

  it('is not offered where leases are off, and read() does without', async () => {
    cluster = await openCluster(3, { lease: 'off' });
    const leader = await cluster.leader();
    await leader.propose(bytes('x'));
    await leader.readBarrier(); // a lease would be there by now
    expect(leader.leasedRead(() => true)).toBeUndefined();
    expect(await leader.read(() => machineOf(leader).commands.length)).toBe(1);
    expect(leader.status().leaseRemainingUs).toBe(0);
  });

  it('needs promises of a majority: one voter of three with leases off does no harm, two do', async () => {
    const list = await members(3);
    for (const off of [1, 2]) {
      const replicas = await Promise.all(
        list.map(({ id }) =>
          Replica.open(optionsFor(id, list, { profile: 'relaxed', ...(id > 2 - off ? { lease: 'off' } : {}) })),
        ),
      );
      try {
        const leader = await waitFor(() => replicas.find((replica) => replica.status().role === 'leader'), 'a leader');
        expect(leader.id).toBe(0);
        for (let reads = 0; reads < 20; reads++) await leader.readBarrier();
        if (off === 1) await waitFor(() => leader.leasedRead(() => true), 'a lease by two of three');
        else {
          // The others have seen several beats when they have answered a question each.
          for (const follower of [replicas[1], replicas[2]])
            for (let n = 0; n < 50; n++) await follower?.read(() => true);
          expect(leader.leasedRead(() => true)).toBeUndefined();
        }
      } finally {
        await Promise.all(replicas.map((replica) => replica.close()));
      }
    }
  });

  it('passes on what the function throws', async () => {
    cluster = await openCluster(3);
    const leader = await leaseHolder();
    const fail = () => {
      throw new Error('no such key');
    };
    expect(() => leader.leasedRead(fail)).toThrow('no such key');
    await expect(leader.read(fail)).rejects.toThrow('no such key');
  });
});

describe('a read at a follower', () => {
  it('returns what was acknowledged at the leader a moment ago', async () => {
    cluster = await openCluster(3);
    const leader = await cluster.leader();
    const followers = followersOf(leader);
    await waitFor(
      () => followers.every((follower) => follower.status().leader === leader.id),
      'all to know the leader',
    );
    for (let index = 1; index <= 30; index++) {
      await leader.propose(bytes(`c${index}`));
      const lengths = followers.map((follower) => follower.read(() => machineOf(follower).commands.length));
      expect(await Promise.all(lengths)).toEqual(followers.map(() => index));
    }
  });

  it('shares its question with all reads of the turn, and with none that came before', async () => {
    cluster = await openCluster(3);
    const leader = await cluster.leader();
    const follower = followersOf(leader)[0] as Replica<number>;
    await waitFor(() => follower.status().leader === leader.id, 'the follower to know the leader');
    const requests = countIndexRequests(follower, leader);
    const first = Array.from({ length: 500 }, () => follower.read(() => true));
    expect(follower.status().pendingReadBarriers).toBe(500);
    await new Promise((resolve) => setImmediate(resolve));
    const later = Array.from({ length: 500 }, () => follower.read(() => true));
    await Promise.all([...first, ...later]);
    expect(requests()).toBe(2);
    expect(follower.status().pendingReadBarriers).toBe(0);
  });

  it('waits until the follower has applied what the leader says', async () => {
    cluster = await openCluster(3);
    const leader = await cluster.leader();
    const follower = followersOf(leader)[0] as Replica<number>;
    await waitFor(() => follower.status().leader === leader.id, 'the follower to know the leader');
    const connection = internalsOf(follower).connections.get(leader.id);
    if (connection === undefined) throw new Error('not connected');
    const { appliedLsn } = follower.status();
    // A leader that is further than the follower's log is.
    connection.request = async () => ({ epoch: 0, lsn: appliedLsn + 640 });
    let isRead = false;
    const read = follower.read(() => {
      isRead = true;
      return machineOf(follower).commands.length;
    });
    while (follower.status().appliedLsn < appliedLsn + 640) {
      expect(isRead).toBe(false);
      await leader.propose(bytes('x'));
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(await read).toBeGreaterThan(0);
  });

  it('is refused when the one that was asked leads no more, or nobody answers in time', async () => {
    cluster = await openCluster(3);
    const leader = await cluster.leader();
    const follower = followersOf(leader)[0] as Replica<number>;
    await waitFor(() => follower.status().leader === leader.id, 'the follower to know the leader');
    const connection = internalsOf(follower).connections.get(leader.id);
    if (connection === undefined) throw new Error('not connected');
    const { request } = connection;
    connection.request = () => new Promise(() => {});
    await expect(follower.read(() => true, { timeoutMs: 20 })).rejects.toMatchObject({ code: 'QUORATE_TIMEOUT' });
    expect(follower.status().pendingReadBarriers).toBe(0);
    connection.request = request;
    const other = followersOf(leader)[1] as Replica<number>;
    const asked = internalsOf(leader).connections.get(other.id);
    await expect(asked?.request('readIndex', null, 5_000)).rejects.toMatchObject({ code: 'QUORATE_NOT_LEADER' });
  });

  it('goes to the next leader when the leader is gone', async () => {
    cluster = await openCluster(3);
    const first = await cluster.leader();
    await Promise.all(Array.from({ length: 50 }, (_, index) => first.propose(bytes(`c${index}`))));
    await first.close();
    const rest = followersOf(first);
    const next = await waitFor(() => rest.find((replica) => replica.status().role === 'leader'), 'a new leader');
    const follower = rest.find((replica) => replica !== next) as Replica<number>;
    await waitFor(() => follower.status().leader === next.id, 'the follower to know the new leader');
    expect(await follower.read(() => machineOf(follower).commands.length)).toBe(50);
    expect(await next.read(() => machineOf(next).commands.length)).toBe(50);
  });

  it('beyond the limit is refused', async () => {
    cluster = await openCluster(3, { pendingReadBarriersMax: 2 });
    const leader = await cluster.leader();
    const follower = followersOf(leader)[0] as Replica<number>;
    await waitFor(() => follower.status().leader === leader.id, 'the follower to know the leader');
    const reads = await Promise.allSettled(Array.from({ length: 3 }, () => follower.read(() => true)));
    expect(reads.map(({ status }) => status)).toEqual(['fulfilled', 'fulfilled', 'rejected']);
    expect(reads[2]).toMatchObject({ reason: { code: 'QUORATE_BACKPRESSURE' } });
  });

  it('that waits when its replica is closed rejects, and so do later ones', async () => {
    cluster = await openCluster(3);
    const leader = await cluster.leader();
    const follower = followersOf(leader)[0] as Replica<number>;
    await waitFor(() => follower.status().leader === leader.id, 'the follower to know the leader');
    const read = follower.read(() => true);
    const closed = follower.close();
    await expect(read).rejects.toMatchObject({ code: 'QUORATE_CLOSED' });
    await closed;
    await expect(follower.read(() => true)).rejects.toMatchObject({ code: 'QUORATE_CLOSED' });
  });
});

describe('options about leases that make no sense', () => {
  it.each([
    [{ lease: 'on' }, 'lease must be "off"'],
    [{ lease: { lengthUs: 99 } }, 'lease.lengthUs 99'],
    [{ lease: { lengthUs: 1_500_001 } }, 'lease.lengthUs 1500001'],
    [{ lease: { driftBoundPpm: -1 } }, 'lease.driftBoundPpm -1'],
    [{ lease: { driftBoundPpm: 600_000 } }, 'lease.driftBoundPpm 600000'],
  ])('are refused: %j', async (more, text) => {
    const list = await members(1);
    const open = Replica.open(optionsFor(0, list, { profile: 'relaxed', ...(more as object) }));
    await expect(open).rejects.toMatchObject({
      code: 'QUORATE_INVALID_ARGUMENT',
      message: expect.stringContaining(text),
    });
  });
});
