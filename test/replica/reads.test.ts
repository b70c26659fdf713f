// Linearizable reads as a service uses them, on shm, all members in this process: by lease at the leader, without one, and
// at followers.
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { Replica } from '#lib/index.js';
import { FollowerReads } from '#lib/replica/follower-reads.js';
import type { Answer, Mailbox } from '#lib/replica/mailbox/mailbox.js';
import { MessageKind } from '#lib/replica/mailbox/messages.js';
import { askReadIndex } from '#lib/replica/mailbox/read-index.js';
import { ReadBarriers } from '#lib/replica/read-barriers.js';
import { type CommandLog, members, openCluster, optionsFor, type TestCluster, waitFor } from './fixture.js';

let cluster: TestCluster;
let leader: Replica<number>;

/** A cluster for one test, which may do to it what it likes; its leader holds a lease. */
async function open(count: number, more: Parameters<typeof openCluster>[1] = {}): Promise<void> {
  cluster = await openCluster(count, more);
  leader = await cluster.leader();
  await waitFor(() => more.lease === 'off' || leader.status().leaseRemainingUs > 0, 'the leader to hold a lease');
}

const bytes = (text: string) => new Uint8Array(Buffer.from(text));
const machineOf = (replica: Replica<number>): CommandLog => cluster.machines[replica.id] as CommandLog;
const followers = () => cluster.replicas.filter((replica) => replica !== leader);

/** What the tests look into: the background thread, which beats and promises, what peers think of it, the mailbox. */
interface Internals {
  background: { stop(): Promise<void>; worker: { terminate(): Promise<number> } };
  ownProcess: { alive: boolean };
  mailbox: Mailbox;
}
const internalsOf = (replica: Replica<number>): Internals => replica as unknown as Internals;

const lease = () => waitFor(() => leader.leasedRead(() => true), 'a lease');

/** Of the profile that these clusters have, rounded up. */
const LEASE_MS = 400;

describe('a read by lease', () => {
  afterEach(() => cluster.close());

  it.each([1, 3])('at the leader of %i returns what was acknowledged', async (count) => {
    await open(count);
    for (let index = 1; index <= 20; index++) {
      await leader.propose(bytes(`c${index}`));
      const length = await waitFor(() => leader.leasedRead(() => machineOf(leader).commands.length), 'a lease');
      expect(length).toBe(index);
    }
  });

  it('is refused once the majority has been silent for as long as the lease, and one that takes so long does not count', async () => {
    await open(3);
    await lease();
    await Promise.all(followers().map((follower) => internalsOf(follower).background.stop()));
    let calls = 0;
    const value = leader.leasedRead(() => {
      calls++;
      for (const until = Date.now() + LEASE_MS * 2; Date.now() < until; );
      return 'late';
    });
    expect([calls, value]).toEqual([1, undefined]);
    expect(leader.status().leaseRemainingUs).toBe(0);
    expect(leader.leasedRead(() => 'stale')).toBeUndefined();
  });

  it('is not offered where leases are off, and read() does without', async () => {
    await open(3, { lease: 'off' });
    await leader.propose(bytes('x'));
    // The followers have seen several beats when they have read.
    for (const follower of followers()) for (let reads = 0; reads < 50; reads++) await follower.read(() => true);
    expect(leader.leasedRead(() => true)).toBeUndefined();
    expect(await leader.read(() => machineOf(leader).commands.length)).toBe(1);
    expect(leader.status().leaseRemainingUs).toBe(0);
  });

  it('is done without where leases are off, for as long as read() is told to wait for a majority', async () => {
    await open(3, { lease: 'off' });
    const passed = vi.spyOn(ReadBarriers.prototype, 'passed').mockImplementation(() => {});
    await expect(leader.read(() => true, { timeoutMs: 20 })).rejects.toMatchObject({ code: 'QUORATE_TIMEOUT' });
    passed.mockRestore();
    expect(await leader.read(() => true, { timeoutMs: 30_000 })).toBe(true);
  });

  it.each([
    ['one voter of three', [2]],
    ['two voters of three', [1, 2]],
  ])('needs promises of a majority: leases are off at %s', async (_, off) => {
    const list = (await members(3)).map((member) => ({ ...member, priority: member.id === 0 ? 1 : 0 }));
    const replicas = await Promise.all(
      list.map(({ id }) =>
        Replica.open(optionsFor(id, list, { profile: 'relaxed', ...(off.includes(id) ? { lease: 'off' } : {}) })),
      ),
    );
    cluster = { ...cluster, replicas, close: async () => void (await Promise.all(replicas.map((one) => one.close()))) };
    const first = await waitFor(() => replicas.find((replica) => replica.status().role === 'leader'), 'a leader');
    // Whoever is found by a majority before replica 0 is may have stood for election, whatever its priority.
    if (first.id !== 0) await first.transferLeadership(0);
    leader = replicas[0] as Replica<number>;
    await waitFor(() => leader.status().role === 'leader', 'replica 0 to lead');
    if (off.length === 1) {
      await lease();
      return;
    }
    for (const follower of followers()) for (let reads = 0; reads < 50; reads++) await follower.read(() => true);
    expect(leader.leasedRead(() => true)).toBeUndefined();
  });
});

describe('at a leader that holds a lease', () => {
  beforeAll(() => open(3));
  afterAll(() => cluster.close());

  it('reads by lease go on while nothing is proposed: the lease is renewed', async () => {
    const begun = Date.now();
    await waitFor(() => Date.now() - begun > LEASE_MS * 2, 'two lengths to pass');
    await lease();
  });

  it('they are refused at the followers, where the function is not even called', () => {
    for (const follower of followers()) {
      expect(follower.leasedRead(() => expect.unreachable('a follower reads by lease'))).toBeUndefined();
      expect(follower.status().leaseRemainingUs).toBe(0);
    }
  });

  it('they do not count when peers may take its process for dead', async () => {
    await lease();
    const { ownProcess } = internalsOf(leader);
    expect(ownProcess.alive).toBe(true);
    Object.defineProperty(leader, 'ownProcess', { value: { alive: false }, configurable: true });
    expect(leader.leasedRead(() => true)).toBeUndefined();
    Object.defineProperty(leader, 'ownProcess', { value: ownProcess, configurable: true });
    await lease();
  });

  it('by a function that returns a promise are refused, with a lease, at the leader without one, and at a follower', async () => {
    const refusal = { code: 'QUORATE_INVALID_ARGUMENT', message: expect.stringContaining('returned a promise') };
    const later = async () => {
      await leader.readBarrier();
      throw new Error('which nobody waits for');
    };
    await lease();
    expect(() => leader.leasedRead(later)).toThrow(expect.objectContaining(refusal));
    await expect(leader.read(later)).rejects.toMatchObject(refusal);
    vi.spyOn(leader, 'leasedRead').mockReturnValue(undefined);
    await expect(leader.read(later)).rejects.toMatchObject(refusal);
    await expect((followers()[0] as Replica<number>).read(later)).rejects.toMatchObject(refusal);
    vi.restoreAllMocks();
  });

  it('by such a function are refused at a leader that never has a lease, and nobody has to wait for that', async () => {
    const { replicas, close } = await openCluster(1, { lease: 'off' });
    try {
      const [alone] = replicas as [Replica<number>];
      const refusal = { code: 'QUORATE_INVALID_ARGUMENT', message: expect.stringContaining('returned a promise') };
      const promises: Promise<never>[] = [];
      const later = () => {
        const promise = Promise.reject(new Error('which nobody waits for'));
        promises.push(promise);
        return promise;
      };
      expect(() => alone.leasedRead(later)).toThrow(expect.objectContaining(refusal));
      await expect(alone.read(later)).rejects.toMatchObject(refusal);
      expect(promises).toHaveLength(2);
    } finally {
      await close();
    }
  });

  it('they pass on what the function throws', async () => {
    await lease();
    const fail = () => {
      throw new Error('no such key');
    };
    expect(() => leader.leasedRead(fail)).toThrow('no such key');
    await expect(leader.read(fail)).rejects.toThrow('no such key');
  });
});

describe('a read at a follower', () => {
  let follower: Replica<number>;
  beforeAll(async () => {
    await open(3, { pendingReadBarriersMax: 1000 });
    await waitFor(() => followers().every((one) => one.status().leader === leader.id), 'all to know the leader');
    follower = followers()[0] as Replica<number>;
  });
  afterAll(() => cluster.close());

  type Ask = Mailbox['readIndex'];

  /** Replaces how the follower asks; the function returned puts it back. */
  function replaceAsking(make: (ask: Ask) => Ask): () => void {
    const { mailbox } = internalsOf(follower);
    const original = mailbox.readIndex.bind(mailbox);
    mailbox.readIndex = make(original);
    return () => {
      mailbox.readIndex = original;
    };
  }

  /** The question goes out, and its answer is kept from the follower, who may be given another one. */
  function keepAnswer(ask: Ask, peer: number, other: (settle: (answer: Answer | null) => void) => void) {
    return (...[, settle]: Parameters<Ask>) => {
      other(settle);
      return ask(peer, () => {});
    };
  }

  it('returns what was acknowledged at the leader a moment ago', async () => {
    const before = machineOf(leader).commands.length;
    for (let index = 1; index <= 30; index++) {
      await leader.propose(bytes(`c${index}`));
      const lengths = followers().map((one) => one.read(() => machineOf(one).commands.length));
      expect(await Promise.all(lengths)).toEqual([before + index, before + index]);
    }
  });

  it('shares its question with all reads of the turn, and with none that came before', async () => {
    let questions = 0;
    const restore = replaceAsking((ask) => (...asked) => {
      questions++;
      return ask(...asked);
    });
    const first = Array.from({ length: 500 }, () => follower.read(() => true));
    expect(follower.status().pendingReadBarriers).toBe(500);
    await new Promise((resolve) => setImmediate(resolve));
    const later = Array.from({ length: 500 }, () => follower.read(() => true));
    await Promise.all([...first, ...later]);
    restore();
    expect(questions).toBe(2);
    expect(follower.status().pendingReadBarriers).toBe(0);
  });

  it('waits until the follower has applied what the leader says', async () => {
    const lsn = follower.status().appliedLsn + 640; // further than the follower's log is
    const restore = replaceAsking((ask) =>
      keepAnswer(ask, leader.id, (settle) => {
        setImmediate(() => settle({ kind: MessageKind.readIndexIs, tag: { asker: 0, number: 0 }, epoch: 0, lsn }));
      }),
    );
    let appliedAtRead = 0;
    const read = follower.read(() => {
      appliedAtRead = follower.status().appliedLsn;
      return true;
    });
    while (appliedAtRead === 0) {
      await leader.propose(bytes('x'));
      await new Promise((resolve) => setImmediate(resolve));
    }
    restore();
    expect(await read).toBe(true);
    expect(appliedAtRead).toBeGreaterThanOrEqual(lsn);
  });

  it('is refused when nobody answers in time, and by one that does not lead', async () => {
    let settleLate: (answer: Answer | null) => void = () => {};
    const restore = replaceAsking((ask) =>
      keepAnswer(ask, leader.id, (settle) => {
        settleLate = settle;
      }),
    );
    await expect(follower.read(() => true, { timeoutMs: 20 })).rejects.toMatchObject({ code: 'QUORATE_TIMEOUT' });
    restore();
    settleLate(null);
    expect(follower.status().pendingReadBarriers).toBe(0);
    await expect(askReadIndex(internalsOf(leader).mailbox, follower.id, 5_000)).rejects.toMatchObject({
      code: 'QUORATE_NOT_LEADER',
    });
  });

  it('beyond the limit is refused', async () => {
    const reads = await Promise.allSettled(Array.from({ length: 1001 }, () => follower.read(() => true)));
    expect(reads.filter(({ status }) => status === 'fulfilled').length).toBe(1000);
    expect(reads[1000]).toMatchObject({ status: 'rejected', reason: { code: 'QUORATE_BACKPRESSURE' } });
  });

  it('asks the next leader when the leader is gone, also when the question had been sent', async () => {
    const { length } = machineOf(leader).commands;
    const restore = replaceAsking((ask) => keepAnswer(ask, leader.id, () => {}));
    const unanswered = follower.read(() => machineOf(follower).commands.length, { timeoutMs: 30_000 });
    await new Promise((resolve) => setImmediate(resolve));
    restore();
    await leader.close();
    expect(await unanswered).toBe(length);
    const rest = followers();
    const next = await waitFor(() => rest.find((replica) => replica.status().role === 'leader'), 'a new leader');
    const other = rest.find((replica) => replica !== next) as Replica<number>;
    await waitFor(() => other.status().leader === next.id, 'the follower to know the new leader');
    expect(await other.read(() => machineOf(other).commands.length)).toBe(length);
    expect(await next.read(() => machineOf(next).commands.length)).toBe(length);
  });

  it('that waits when its replica is closed rejects, and so do later ones', async () => {
    const other = followers().find((one) => one.status().role !== 'leader') as Replica<number>;
    const read = other.read(() => true);
    const closed = other.close();
    await expect(read).rejects.toMatchObject({ code: 'QUORATE_CLOSED' });
    await closed;
    await expect(other.read(() => true)).rejects.toMatchObject({ code: 'QUORATE_CLOSED' });
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

it.each(['closes', 'fails'])(
  'a read at a follower whose leader %s is told that this one leads no more, not that its own replica does so',
  async (how) => {
    await open(3, { lease: 'off' });
    const [follower] = followers() as [Replica<number>];
    await waitFor(() => follower.status().leader === leader.id, 'the follower to know the leader');
    leader.on('fatal', () => {});
    const passed = vi.spyOn(ReadBarriers.prototype, 'passed').mockImplementation(() => {});
    const read = follower.read(() => true, { timeoutMs: 30_000 }).catch((error: Error) => error);
    await waitFor(() => leader.status().pendingReadBarriers === 1, 'the question to wait at the leader');
    passed.mockRestore();
    if (how === 'closes') void leader.close();
    else void internalsOf(leader).background.worker.terminate();
    expect(await read).toMatchObject({ code: 'QUORATE_NOT_LEADER' });
    await cluster.close();
  },
);

it('ends as many reads as may wait, when their time is up, in one go', async () => {
  const reads = new FollowerReads({
    ask: async () => ({ epoch: 1, lsn: 100 }),
    onAnswer: () => {},
    appliedLsn: () => 0, // and never so far
  });
  const waiting = Array.from({ length: 65_536 }, () => reads.join(1));
  const ends = await Promise.allSettled(waiting);
  expect(ends.every((end) => end.status === 'rejected' && end.reason.code === 'QUORATE_TIMEOUT')).toBe(true);
  expect(reads.size).toBe(0);
});

it('asks the next leader at once, though nobody waits any more for what the one before was asked', async () => {
  const questions: ((index: { epoch: number; lsn: number }) => void)[] = [];
  const reads = new FollowerReads({
    ask: () => new Promise((resolve) => questions.push(resolve)),
    onAnswer: () => {},
    appliedLsn: () => 100,
  });
  await expect(reads.join(1)).rejects.toMatchObject({ code: 'QUORATE_TIMEOUT' });
  expect(questions.length).toBe(1); // the leader does not answer
  const read = reads.join(20_000);
  reads.leaderChanged();
  await new Promise(setImmediate);
  expect(questions.length).toBe(2);
  questions[1]?.({ epoch: 2, lsn: 100 });
  await read;
  expect(reads.size).toBe(0);
});
