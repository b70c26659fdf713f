// Reads behind a barrier as a service uses them, on shm, all members in this process: what is read then is current, many
// reads share one round trip, and a read that cannot be vouched for says so.
import { afterEach, describe, expect, it } from 'vitest';
import type { Replica } from '#lib/index.js';
import { openCluster, type TestCluster, waitFor } from './fixture.js';

let cluster: TestCluster;
afterEach(async () => {
  await cluster?.close();
});

const bytes = (text: string) => new Uint8Array(Buffer.from(text));

/** What the tests look into: the posting of proofs, and the fence in front of the own log. */
interface Internals {
  fabric: { queueLsnWrite(peer: number, ...rest: number[]): void };
  endpoint: { fence: { raise(epoch: number): void } };
  plane: { leaderEpoch: number };
}
const internalsOf = (replica: Replica<number>): Internals => replica as unknown as Internals;

/** The peers to which the replica posts a WRITE for the sake of its proof alone, in order. */
function watchProofs(replica: Replica<number>): number[] {
  const { fabric } = internalsOf(replica);
  const proofs: number[] = [];
  const original = fabric.queueLsnWrite;
  fabric.queueLsnWrite = function (peer, ...rest) {
    proofs.push(peer);
    original.call(this, peer, ...rest);
  };
  return proofs;
}

async function steadyLeader(): Promise<Replica<number>> {
  const leader = await cluster.leader();
  const others = cluster.replicas.length - 1;
  await waitFor(() => leader.status().peers.filter(({ phase }) => phase === 'active').length === others, 'all active');
  return leader;
}

describe('a read barrier', () => {
  it.each([1, 2, 3, 5])('is passed at the leader of %i, and what was acknowledged is there', async (count) => {
    cluster = await openCluster(count);
    const leader = await cluster.leader();
    for (let index = 0; index < 50; index++) {
      await leader.propose(bytes(`c${index}`));
      await leader.readBarrier();
      expect(cluster.machines[leader.id]?.commands.length).toBe(index + 1);
    }
    expect(leader.status().pendingReadBarriers).toBe(0);
  });

  it('at the next leader covers what the leader before acknowledged', async () => {
    cluster = await openCluster(3);
    const first = await cluster.leader();
    await Promise.all(Array.from({ length: 200 }, (_, index) => first.propose(bytes(`c${index}`))));
    await first.close();
    const next = await waitFor(
      () => cluster.replicas.find((replica) => replica !== first && replica.status().role === 'leader'),
      'a new leader',
    );
    await next.readBarrier();
    expect(cluster.machines[next.id]?.commands.length).toBe(200);
  });

  it('leaves the log as it is, through many laps of reads and writes', async () => {
    cluster = await openCluster(3, { logBytes: 64 * 1024 });
    const leader = await steadyLeader();
    const payload = new Uint8Array(1000);
    for (let round = 0; round < 300; round++) {
      const proposals = Array.from({ length: 3 }, () => leader.propose(payload));
      const early = leader.readBarrier();
      await Promise.all(proposals);
      await early;
      const { tailLsn } = leader.status();
      await leader.readBarrier();
      expect(leader.status().tailLsn).toBe(tailLsn);
    }
    for (const machine of cluster.machines) await waitFor(() => machine.commands.length === 900, 'all to apply');
  });

  it('is shared by all that ask in one turn: one WRITE to each follower', async () => {
    cluster = await openCluster(3);
    const leader = await steadyLeader();
    const proofs = watchProofs(leader);
    await Promise.all(Array.from({ length: 1000 }, () => leader.readBarrier()));
    expect([...proofs].sort()).toEqual([0, 1, 2].filter((id) => id !== leader.id));
  });

  it('costs no WRITE of its own where commands are replicated', async () => {
    cluster = await openCluster(3);
    const leader = await steadyLeader();
    const proofs = watchProofs(leader);
    const barrier = leader.readBarrier();
    await Promise.all([leader.propose(bytes('x')), barrier]);
    expect(proofs).toEqual([]);
    await leader.readBarrier();
    expect(proofs.length).toBe(2);
  });

  it('is refused at a follower by an error that names the leader', async () => {
    cluster = await openCluster(3);
    const leader = await cluster.leader();
    const follower = cluster.replicas.find((replica) => replica !== leader) as Replica<number>;
    await waitFor(() => follower.status().leader === leader.id, 'the follower to know the leader');
    await expect(follower.readBarrier()).rejects.toMatchObject({ code: 'QUORATE_NOT_LEADER', leader: leader.id });
  });

  it('is not passed by a leader whose own log was granted away, which is told to read again', async () => {
    cluster = await openCluster(3);
    const leader = await steadyLeader();
    const { endpoint, plane } = internalsOf(leader);
    // What a grant to another replica does first. Below any epoch that the next candidate takes.
    endpoint.fence.raise(plane.leaderEpoch + 1);
    const barriers = await Promise.allSettled([leader.readBarrier(), leader.readBarrier()]);
    for (const barrier of barriers) {
      expect(barrier).toMatchObject({ status: 'rejected', reason: { code: 'QUORATE_LEADERSHIP_ENDED' } });
      expect(String((barrier as PromiseRejectedResult).reason)).toContain('read again');
    }
    await expect(leader.readBarrier()).rejects.toMatchObject({ code: 'QUORATE_NOT_LEADER' });
  });

  it('is never passed by a leader whose majority is gone', async () => {
    cluster = await openCluster(3);
    const leader = await steadyLeader();
    await Promise.all(cluster.replicas.filter((replica) => replica !== leader).map((replica) => replica.close()));
    await expect(leader.readBarrier()).rejects.toMatchObject({
      code: expect.stringMatching(/^QUORATE_(LEADERSHIP_ENDED|NOT_LEADER)$/),
    });
  });

  it('beyond the limit is refused, and those before are not', async () => {
    cluster = await openCluster(3, { pendingReadBarriersMax: 2 });
    const leader = await steadyLeader();
    const [first, second, third] = await Promise.allSettled(Array.from({ length: 3 }, () => leader.readBarrier()));
    expect([first?.status, second?.status]).toEqual(['fulfilled', 'fulfilled']);
    expect(third).toMatchObject({ status: 'rejected', reason: { code: 'QUORATE_BACKPRESSURE' } });
    await leader.readBarrier();
  });

  it('that waits when its replica is closed rejects, and so do later ones', async () => {
    cluster = await openCluster(3);
    const leader = await steadyLeader();
    const barrier = leader.readBarrier();
    const closed = leader.close();
    await expect(barrier).rejects.toMatchObject({ code: 'QUORATE_CLOSED' });
    await closed;
    await expect(leader.readBarrier()).rejects.toMatchObject({ code: 'QUORATE_CLOSED' });
  });
});
