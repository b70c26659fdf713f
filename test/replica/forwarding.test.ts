// Proposals where nobody leads: they are forwarded to the leader by messages in registered memory and come back with its
// state machine's result, exactly once whatever ends in between. On shm; in this process, and in processes that are killed.
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { LeadershipTransfer } from '#lib/consensus/leadership-transfer.js';
import { type MemberAddress, type ProposeResult, Replica, type ReplicaOptions, type StateMachine } from '#lib/index.js';
import { FORWARDED_RESULT_BYTES_MAX } from '#lib/replica/mailbox/limits.js';
import type { Mailbox } from '#lib/replica/mailbox/mailbox.js';
import { QpState, type QueuePair } from '#lib/verbs/index.js';
import { type CommandLog, freePorts, members, openCluster, optionsFor, type TestCluster, waitFor } from './fixture.js';

// Processes start slowly where others keep the processors busy; what is waited for has limits of its own.
vi.setConfig({ testTimeout: 120_000 });

const bytes = (text: string) => new Uint8Array(Buffer.from(text));

let cluster: TestCluster;
let leader: Replica<number>;
let follower: Replica<number>;

async function open(more: Partial<ReplicaOptions<number>> = {}): Promise<void> {
  cluster = await openCluster(3, more);
  leader = await cluster.leader();
  follower = cluster.replicas.find((replica) => replica !== leader) as Replica<number>;
  await waitFor(() => follower.status().leader === leader.id, 'the follower to know the leader');
}

const mailboxOf = (replica: Replica<number>) => (replica as unknown as { mailbox: Mailbox }).mailbox;

/** Both ends of the links between two replicas over which messages go from the one to the other. */
function queuePairs(from: Replica<number>, to: Replica<number>): QueuePair[] {
  const part = (replica: Replica<number>) =>
    mailboxOf(replica).fabric as unknown as { peers: { incoming: QueuePair }[]; queuePairs: QueuePair[] };
  return [part(from).queuePairs[to.id] as QueuePair, part(to).peers[from.id]?.incoming as QueuePair];
}

/** What every replica has applied, once all have. */
async function appliedEverywhere(count: number): Promise<string[]> {
  for (const machine of cluster.machines) await waitFor(() => machine.commands.length >= count, 'all to apply');
  const [first, ...others] = cluster.machines.map(({ commands }) => commands);
  for (const other of others) expect(other).toEqual(first);
  return first as string[];
}

describe('a proposal at a follower', () => {
  afterEach(() => cluster.close());

  it('returns what the leader returned, in the order of the proposals, and the follower sees it when it reads', async () => {
    await open();
    const results = await Promise.all(Array.from({ length: 300 }, (_, index) => follower.propose(bytes(`c${index}`))));
    expect(results.map(({ result }) => result)).toEqual(Array.from({ length: 300 }, (_, index) => index + 1));
    const seen = await follower.read(() => (cluster.machines[follower.id] as CommandLog).commands.length);
    expect(seen).toBe(300);
    expect(await appliedEverywhere(300)).toEqual(Array.from({ length: 300 }, (_, index) => `c${index}`));
  });

  it('may be as large as one at the leader, and a larger one is refused', async () => {
    await open();
    const largest = new Uint8Array(leader.payloadBytesMax).fill(65);
    const results = await Promise.all([1, 2, 3, 4, 5].map(() => follower.propose(largest)));
    expect(results.map(({ result }) => result)).toEqual([1, 2, 3, 4, 5]);
    expect((await appliedEverywhere(5))[4]?.length).toBe(leader.payloadBytesMax);
    const larger = new Uint8Array(leader.payloadBytesMax + 1);
    await expect(follower.propose(larger)).rejects.toMatchObject({ code: 'QUORATE_PAYLOAD_TOO_LARGE' });
  });

  it('with a session is applied once, however often it is proposed and wherever', async () => {
    await open();
    const session = { origin: 77, sequence: 1 };
    const first = await follower.propose(bytes('once'), { session });
    const again = await Promise.all(cluster.replicas.map((replica) => replica.propose(bytes('once'), { session })));
    expect(first).toMatchObject({ result: 1, duplicate: false });
    for (const one of again) expect(one).toMatchObject({ result: 1, duplicate: true });
    const gap = follower.propose(bytes('x'), { session: { origin: 77, sequence: 3 } });
    await expect(gap).rejects.toMatchObject({ code: 'QUORATE_SESSION_GAP' });
    expect(await appliedEverywhere(1)).toEqual(['once']);
  });

  it('is refused at once where it may not be forwarded', async () => {
    await open();
    const refused = follower.propose(bytes('x'), { forward: false });
    await expect(refused).rejects.toMatchObject({ code: 'QUORATE_NOT_LEADER', leader: leader.id });
    await expect(follower.propose(bytes('x'), { timeoutMs: 0 })).rejects.toMatchObject({
      code: 'QUORATE_INVALID_ARGUMENT',
    });
  });

  it('waits for a leader, and is certainly not proposed if none comes in time', async () => {
    await open();
    const [other] = cluster.replicas.filter((replica) => replica !== leader && replica !== follower);
    await Promise.all([leader.close(), other?.close()]);
    const trusted = () => follower.status().peers.some(({ id, trusted }) => id === leader.id && trusted);
    await waitFor(() => !trusted(), 'the follower to miss its leader');
    const late = follower.propose(bytes('x'), { timeoutMs: 50 });
    await expect(late).rejects.toMatchObject({ code: 'QUORATE_NOT_LEADER' });
    expect(follower.status().pendingProposals).toBe(0);
  });

  it('beyond the limit is refused', async () => {
    await open({ pendingProposalsMax: 100 });
    const outcomes = await Promise.allSettled(Array.from({ length: 101 }, () => follower.propose(bytes('x'))));
    expect(outcomes.filter(({ status }) => status === 'fulfilled').length).toBe(100);
    expect(outcomes[100]).toMatchObject({ status: 'rejected', reason: { code: 'QUORATE_BACKPRESSURE' } });
  });

  it('is settled when its replica is closed', async () => {
    await open();
    const proposed = follower.propose(bytes('x'));
    await new Promise((resolve) => setImmediate(resolve));
    await Promise.all([follower.close(), proposed.catch(() => {})]);
    await expect(follower.propose(bytes('y'))).rejects.toMatchObject({ code: 'QUORATE_CLOSED' });
  });

  it('goes to the next leader when the leader closes, and each is applied once', async () => {
    await open();
    const origin = 5;
    const proposed: Promise<ProposeResult<number>>[] = [];
    for (let sequence = 1; sequence <= 200; sequence++) {
      proposed.push(follower.propose(bytes(`s${sequence}`), { session: { origin, sequence }, timeoutMs: 30_000 }));
      if (sequence === 100) void leader.close();
      if (sequence % 20 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    await Promise.all(proposed);
    const rest = cluster.machines.filter((_, id) => id !== leader.id);
    for (const machine of rest) await waitFor(() => machine.commands.length >= 200, 'all to apply');
    for (const machine of rest) {
      expect(machine.commands).toEqual(Array.from({ length: 200 }, (_, index) => `s${index + 1}`));
    }
  });

  it('with a session at a leader that hands over is answered by the next one', async () => {
    await open();
    const session = { origin: 9, sequence: 1 };
    const handedOver = leader.transferLeadership(follower.id, { timeoutMs: 20_000 });
    const proposed = leader.propose(bytes('x'), { session, timeoutMs: 30_000 });
    expect(await handedOver).toBe(follower.id);
    expect(await proposed).toMatchObject({ result: 1, duplicate: false });
    expect(await appliedEverywhere(1)).toEqual(['x']);
  });

  it('comes before those that its replica proposes as soon as it leads itself', async () => {
    await open();
    const origin = 9;
    // The leader takes no commands as long as it waits for its successor.
    const ready = vi.spyOn(LeadershipTransfer.prototype, 'isSuccessorReady').mockReturnValue(false);
    const handedOver = leader.transferLeadership(follower.id, { timeoutMs: 60_000 });
    await waitFor(() => leader.status().transferringTo === follower.id, 'the transfer to begin');
    const first = follower.propose(bytes('1'), { session: { origin, sequence: 1 }, timeoutMs: 30_000 });
    let second: Promise<ProposeResult<number>> | undefined;
    // As a listener of an event does that the plane has while it turns: that of a configuration, say.
    const { onLeader } = follower;
    vi.spyOn(follower, 'onLeader').mockImplementation((epoch) => {
      onLeader.call(follower, epoch);
      second ??= follower.propose(bytes('2'), { session: { origin, sequence: 2 }, timeoutMs: 30_000 });
      second.catch(() => {}); // awaited below
    });
    ready.mockRestore();
    expect(await handedOver).toBe(follower.id);
    expect(await first).toMatchObject({ result: 1 });
    expect(await second).toMatchObject({ result: 2 });
    expect(await appliedEverywhere(2)).toEqual(['1', '2']);
  });

  it('that waits at a leader when that fails goes to the next one', async () => {
    await open();
    // The leader takes no commands as long as it waits for its successor.
    const ready = vi.spyOn(LeadershipTransfer.prototype, 'isSuccessorReady').mockReturnValue(false);
    const handedOver = leader.transferLeadership(follower.id, { timeoutMs: 60_000 }).catch((error: Error) => error);
    await waitFor(() => leader.status().transferringTo === follower.id, 'the transfer to begin');
    const proposed = follower.propose(bytes('x'), { session: { origin: 5, sequence: 1 }, timeoutMs: 25_000 });
    await waitFor(() => leader.status().pendingProposals === 1, 'the command to wait at the leader');
    const failed = once(leader, 'fatal');
    (leader as unknown as { fail(error: Error): void }).fail(new Error('an invariant broke'));
    expect(await failed).toMatchObject([{ message: 'an invariant broke' }]);
    expect(await proposed).toMatchObject({ result: 1, duplicate: false });
    await handedOver;
    ready.mockRestore();
  });
});

describe('when message links break', () => {
  afterEach(() => cluster.close());

  it.each([
    ['the end of the follower', 0],
    ['the end of the leader', 1],
  ])('again and again at %s, everything arrives once and in order', async (_, end) => {
    await open();
    const total = 400;
    const answers: Promise<ProposeResult<number>>[] = [];
    for (let count = 1; count <= total; count++) {
      answers.push(follower.propose(bytes(`c${count}`), { timeoutMs: 30_000 }));
      if (count % 10 === 0) await new Promise((resolve) => setTimeout(resolve, 2));
      if (count % 100 !== 50) continue;
      // Questions and answers go over different links; both break.
      for (const pairs of [queuePairs(follower, leader), queuePairs(leader, follower)]) {
        const queuePair = pairs[end];
        if (queuePair && !queuePair.closed) queuePair.modify({ state: QpState.ERR });
      }
    }
    const results = await Promise.all(answers);
    expect(results.map(({ result }) => result)).toEqual(Array.from({ length: total }, (_, index) => index + 1));
    expect(await appliedEverywhere(total)).toEqual(Array.from({ length: total }, (_, index) => `c${index + 1}`));
  });
});

describe('the result of a forwarded command', () => {
  class Anything implements StateMachine<unknown> {
    applied = 0;
    apply(command: Uint8Array): unknown {
      this.applied++;
      const text = Buffer.from(command).toString();
      if (text === 'undefined') return undefined;
      if (text === 'function') return () => 1;
      if (text.startsWith('ones ')) return Array(Number(text.slice(5))).fill(1);
      if (text.startsWith('bytes ')) return new Uint8Array(Number(text.slice(6)));
      return JSON.parse(text);
    }
    snapshot = () => new Uint8Array(0);
    restore = () => {};
  }

  /** A leader, and a learner, which cannot become one: whose result it is stays certain. */
  async function openAny() {
    const places = await members(2);
    const [first, second] = places as [MemberAddress, MemberAddress];
    const machine = new Anything();
    const founder = optionsFor(first.id, [first], { profile: 'relaxed' });
    const leading = await Replica.open({ ...founder, stateMachine: machine });
    await waitFor(() => leading.status().role === 'leader', 'a leader');
    const { members: _, ...joiner } = optionsFor(second.id, [], { profile: 'relaxed' });
    const joined = Replica.open({ ...joiner, join: [first], address: second, stateMachine: new Anything() });
    await leading.addLearner(second);
    const following = await joined;
    return { leading, following, machine, close: () => Promise.all([leading.close(), following.close()]) };
  }

  it('is what apply() returned, if that is plain data; else an error that says that it was applied', async () => {
    const any = await openAny();
    try {
      for (const value of [null, true, 1.5, -7, 'text', [1, [2]], { a: { b: 'c' } }]) {
        const { result } = await any.following.propose(bytes(JSON.stringify(value)));
        expect(result).toEqual(value);
      }
      expect((await any.following.propose(bytes('undefined'))).result).toBeUndefined();
      expect((await any.following.propose(bytes('[-0]'))).result).toEqual([0]);
      const large = await any.following.propose(bytes(`bytes ${FORWARDED_RESULT_BYTES_MAX - 16}`));
      expect((large.result as Uint8Array).length).toBe(FORWARDED_RESULT_BYTES_MAX - 16);
      const { applied } = any.machine;
      await expect(any.following.propose(bytes(`bytes ${FORWARDED_RESULT_BYTES_MAX}`))).rejects.toMatchObject({
        code: 'QUORATE_RESULT_TOO_LARGE',
        message: expect.stringMatching(/was applied at LSN \d+/),
      });
      await expect(any.following.propose(bytes('function'))).rejects.toMatchObject({
        code: 'QUORATE_RESULT_NOT_SENDABLE',
      });
      expect(any.machine.applied).toBe(applied + 2);
    } finally {
      await any.close();
    }
  });

  it('is refused, and not altered, where it has half of a surrogate pair, as cutting a text leaves it', async () => {
    const any = await openAny();
    try {
      for (const cut of ['\ud83d', `${'x'.repeat(100)}\ud83d`, ['a', ['\ude00']], { a: { '\ud83d': 1 } }]) {
        await expect(any.following.propose(bytes(JSON.stringify(cut)))).rejects.toMatchObject({
          code: 'QUORATE_RESULT_NOT_SENDABLE',
          message: expect.stringMatching(/was applied at LSN \d+/),
        });
      }
      const whole = ['\ud83d\ude00', { '\ud83d\ude00': '\ud83d\ude00'.repeat(100) }];
      expect((await any.following.propose(bytes(JSON.stringify(whole)))).result).toEqual(whole);
    } finally {
      await any.close();
    }
  });

  it('is refused as one that cannot travel where a getter in it throws, whatever that is', async () => {
    const any = await openAny();
    const apply = any.machine.apply.bind(any.machine);
    try {
      for (const [thrown, why] of [
        [new Error('a bad day'), /was applied at LSN \d+, .*a bad day/],
        ['a text', /was applied at LSN \d+, .*threw 'a text', which is no Error/],
        [undefined, /was applied at LSN \d+, .*threw undefined, which is no Error/],
      ] as const) {
        for (const readsBefore of [0, 1, 2]) {
          let reads = 0;
          const getter = () => {
            if (reads++ >= readsBefore) throw thrown;
            return 1;
          };
          any.machine.apply = (command) => {
            apply(command);
            return Object.defineProperty({}, 'value', { enumerable: true, get: getter });
          };
          await expect(any.following.propose(bytes('null'))).rejects.toMatchObject({
            code: 'QUORATE_RESULT_NOT_SENDABLE',
            message: expect.stringMatching(why),
          });
        }
      }
    } finally {
      await any.close();
    }
  });

  it('is told to be missing, and nobody waits for it, where too much is on its way already', async () => {
    const any = await openAny();
    const count = 100;
    try {
      const outcomes = await Promise.allSettled(
        Array.from({ length: count }, () => any.following.propose(bytes('bytes 200000'), { timeoutMs: 60_000 })),
      );
      const missing = outcomes.filter(({ status }) => status === 'rejected');
      expect(missing.length).toBeGreaterThan(0);
      expect(missing.length).toBeLessThan(count);
      for (const outcome of missing) {
        expect(outcome).toMatchObject({
          reason: {
            code: 'QUORATE_RESULT_NOT_SENDABLE',
            message: expect.stringMatching(/was applied at LSN \d+/),
          },
        });
      }
      expect(any.machine.applied).toBe(count);
    } finally {
      await any.close();
    }
  });

  it('is told to be missing for each of many that come at once, for which there is no room, either', async () => {
    const any = await openAny();
    const count = 2000;
    try {
      // Nothing is committed for a while, as when a majority of the voters does not answer.
      Object.assign(any.leading, { poll: () => {}, flush: () => {} });
      const proposed = Array.from({ length: count }, () =>
        any.following.propose(bytes('bytes 20000'), { timeoutMs: 60_000 }),
      );
      await waitFor(() => any.leading.status().pendingProposals === count, 'the commands to reach the leader');
      for (const name of ['poll', 'flush']) delete (any.leading as unknown as Record<string, unknown>)[name];
      const outcomes = await Promise.allSettled(proposed);
      const missing = outcomes.filter(({ status }) => status === 'rejected');
      expect(missing.length).toBeGreaterThan(count / 2);
      for (const outcome of missing) expect(outcome).toMatchObject({ reason: { code: 'QUORATE_RESULT_NOT_SENDABLE' } });
      expect(any.machine.applied).toBe(count);
    } finally {
      await any.close();
    }
  });

  it('has as many values, levels and bytes of a key as propose() says, and no more', async () => {
    const any = await openAny();
    const nested = (levels: number): unknown => (levels === 0 ? 1 : [nested(levels - 1)]);
    const pairs: [string, string, RegExp][] = [
      ['ones 65535', 'ones 65536', /more than 65536 values/],
      [JSON.stringify(nested(16)), JSON.stringify(nested(17)), /more than 16 levels of nesting/],
      [`{"${'k'.repeat(128)}":1}`, `{"${'k'.repeat(129)}":1}`, /a key of 129 bytes, more than 128/],
    ];
    try {
      for (const [most, more, why] of pairs) {
        expect((await any.following.propose(bytes(most))).result).toEqual(new Anything().apply(bytes(most)));
        await expect(any.following.propose(bytes(more))).rejects.toMatchObject({
          code: 'QUORATE_RESULT_NOT_SENDABLE',
          message: expect.stringMatching(why),
        });
      }
    } finally {
      await any.close();
    }
  });
});

const CHILD = fileURLToPath(new URL('fixtures/proposing-replica.mjs', import.meta.url));

type FromChild =
  | { readonly type: 'open' | 'leader'; readonly leader: number | undefined }
  | { readonly type: 'acknowledged'; readonly command: string; readonly role: string }
  | {
      readonly type: 'failed';
      readonly command: string;
      readonly hasSession: boolean;
      readonly code: string;
      readonly message: string;
    }
  | { readonly type: 'applied'; readonly applied: readonly string[] };

describe('processes that propose at every replica', () => {
  const children: ChildProcess[] = [];
  afterEach(() => {
    for (const child of children.splice(0)) child.kill('SIGKILL');
  });

  it('see each command applied at most once, and those acknowledged exactly once, when the leader is killed', async () => {
    const ports = await freePorts(3);
    const acknowledged = new Set<string>();
    const byFollower = new Set<string>();
    const failures: Extract<FromChild, { type: 'failed' }>[] = [];
    const leaders = new Map<number, number | undefined>();
    const applied = new Map<number, readonly string[]>();
    for (let id = 0; id < 3; id++) {
      const child = fork(CHILD, [`${id}`, ports.join(), 'shm', '']);
      children.push(child);
      child.on('message', (message: FromChild) => {
        if (message.type === 'acknowledged') {
          acknowledged.add(message.command);
          if (message.role !== 'leader') byFollower.add(message.command);
        } else if (message.type === 'failed') failures.push(message);
        else if (message.type === 'applied') applied.set(id, message.applied);
        else leaders.set(id, message.leader);
      });
    }
    const agreed = () => {
      const [first, ...others] = [...leaders.values()];
      return leaders.size === 3 && first !== undefined && others.every((one) => one === first) && { leader: first };
    };
    const { leader: victim } = await waitFor(agreed, 'a leader that all know');
    await waitFor(() => byFollower.size > 200, 'commands of followers to be acknowledged');
    const killed = children[victim] as ChildProcess;
    killed.kill('SIGKILL');
    await once(killed, 'exit');
    const before = acknowledged.size;
    await waitFor(() => acknowledged.size > before + 200, 'commands to be acknowledged after the failover');
    const survivors = [0, 1, 2].filter((id) => id !== victim);
    for (const id of survivors) children[id]?.send('stop');
    await waitFor(() => survivors.every((id) => applied.has(id)), 'the survivors to tell what they applied');

    const [one, other] = survivors.map((id) => applied.get(id) as readonly string[]);
    const common = Math.min(one?.length ?? 0, other?.length ?? 0);
    expect(one?.slice(0, common)).toEqual(other?.slice(0, common));
    const longest = (one?.length ?? 0) > (other?.length ?? 0) ? one : other;
    expect(new Set(longest).size).toBe(longest?.length);
    const missing = [...acknowledged].filter((command) => !longest?.includes(command));
    expect(missing).toEqual([]);
    // Sessions bridge the failover; without one the outcome is unknown, and nothing else goes wrong.
    const bySurvivors = failures.filter(({ command }) => !command.startsWith(`${victim}/`));
    expect(bySurvivors.filter(({ hasSession }) => hasSession)).toEqual([]);
    expect(bySurvivors.filter(({ code }) => code !== 'QUORATE_OUTCOME_UNKNOWN')).toEqual([]);
  });
});
