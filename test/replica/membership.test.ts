// Changes of the membership as a service makes them, through the public API, on shm, all members in this process: what
// was acknowledged survives every change, and who may not change anything is told why.
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join as pathOf } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  type BackgroundProfile,
  type MemberAddress,
  type NotLeaderError,
  Replica,
  type ReplicaOptions,
  type ReplicaStatus,
} from '#lib/index.js';
import { answers, CLUSTER_KEY, CommandLog, freePorts, members, optionsFor, waitFor, warningOf } from './fixture.js';

const LOG_BYTES = 256 * 1024;
/** Trust comes soon, as these tests wait for it often; silence is suspicious only after 0.4 s, as everything is busy. */
const PROFILE: BackgroundProfile = {
  tick_ns: 15e6,
  electionTick_ns: 5e6,
  takeoverTimeout_ns: 1e9,
  scoreMax: 30,
  failBelow: 2,
  recoverAbove: 3,
  stallTimeout_ns: 4e9,
};
const bytes = (text: string) => new Uint8Array(Buffer.from(text));

/** Replicas that come and go, by id. */
let replicas: Map<number, Replica<number>>;
let machines: Map<number, CommandLog>;
let places: MemberAddress[];
let clients: Client[];

beforeEach(() => {
  replicas = new Map();
  machines = new Map();
  clients = [];
});

afterEach(async () => {
  for (const client of clients) await client.stop();
  await Promise.all([...replicas.values()].map((replica) => replica.close()));
});

async function open(id: number, options: Partial<ReplicaOptions<number>>): Promise<Replica<number>> {
  const machine = new CommandLog();
  machines.set(id, machine);
  const { members: _, ...rest } = optionsFor(id, [], {
    profile: PROFILE,
    logBytes: LOG_BYTES,
    stateMachine: machine,
  });
  const replica = await Replica.open<number>({ ...rest, ...options });
  replicas.set(id, replica);
  return replica;
}

/** Founders 0 .. count - 1 of `total` places. */
async function found(
  count: number,
  total = count,
  priorities: readonly number[] = [],
  more: Partial<ReplicaOptions<number>> = {},
): Promise<Replica<number>> {
  places = await members(total);
  const founders = places.slice(0, count).map((place) => ({ ...place, priority: priorities[place.id] ?? 0 }));
  await Promise.all(founders.map(({ id }) => open(id, { members: founders, ...more })));
  return steady();
}

function join(id: number, more: Partial<ReplicaOptions<number>> = {}): Promise<Replica<number>> {
  const { host, port } = places[id] as MemberAddress;
  const others = places.filter((place) => place.id !== id && replicas.has(place.id));
  return open(id, { join: others, address: { host, port }, ...more });
}

const leading = () => [...replicas.values()].find((replica) => replica.status().role === 'leader');

/** A leader that counts on all voters and trusts them. */
function steady(): Promise<Replica<number>> {
  return waitFor(() => {
    const leader = leading();
    if (leader === undefined) return undefined;
    const { members: all, peers } = leader.status();
    const voters = all.filter(({ role }) => role === 'voter');
    const trusts = (id: number) => id === leader.id || peers.some((peer) => peer.id === id && peer.trusted);
    return voters.every(({ id, phase }) => phase === 'active' && trusts(id)) && leader;
  }, 'a leader that counts on all voters');
}

const place = (id: number) => places[id] as MemberAddress;

/** A client that proposes one command after the other, at whoever leads, each until it is known to be applied. */
class Client {
  readonly acknowledged: string[] = [];
  private stopped = false;
  private readonly finished: Promise<void>;
  private sequence = 0;

  constructor(private readonly origin: number) {
    this.finished = this.run();
    clients.push(this);
  }

  private async run(): Promise<void> {
    while (!this.stopped) {
      const command = `${this.origin}.${++this.sequence}`;
      const session = { origin: this.origin, sequence: this.sequence };
      for (;;) {
        const leader = leading();
        try {
          if (leader !== undefined) {
            await leader.propose(bytes(command.padEnd(200)), { session });
            this.acknowledged.push(command);
            break;
          }
        } catch (error) {
          expect((error as { code: string }).code).toMatch(/^QUORATE_(NOT_LEADER|OUTCOME_UNKNOWN|CLOSED|REMOVED)$/);
        }
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  async stop(): Promise<void> {
    this.stopped = true;
    await this.finished;
  }
}

/** Everything that was acknowledged was applied once at every member, in the same order. */
async function verify(ids: readonly number[]): Promise<void> {
  for (const client of clients) await client.stop();
  const leader = await steady();
  const { length } = machines.get(leader.id)?.commands ?? [];
  const expected = machines.get(leader.id)?.commands.slice(0, length);
  for (const id of ids) {
    const machine = machines.get(id) as CommandLog;
    await waitFor(() => machine.commands.length === length, `replica ${id} to apply ${length} commands`);
    expect(machine.commands).toEqual(expected);
  }
  const applied = (expected as string[]).map((command) => command.trim());
  expect(new Set(applied).size).toBe(applied.length);
  for (const { acknowledged } of clients) {
    expect(acknowledged.length).toBeGreaterThan(0);
    expect(acknowledged.filter((command) => !applied.includes(command))).toEqual([]);
  }
}

describe('membership', () => {
  it('grows from three to five and shrinks back under load, and nothing is lost', async () => {
    const leader = await found(3, 5);
    for (const origin of [1, 2, 3]) new Client(origin);
    for (const id of [3, 4]) {
      const joining = join(id);
      await leader.addLearner(place(id));
      await joining;
      await leader.promote(id, { timeoutMs: 30_000 });
    }
    expect(leader.status().voters).toEqual([0, 1, 2, 3, 4]);
    await waitFor(
      () => [3, 4].every((id) => replicas.get(id)?.status().isVoter),
      'the new ones to know that they are voters',
    );
    const gone = [0, 1, 2].filter((id) => id !== leader.id);
    for (const id of gone) {
      const removed = new Promise<Error>((resolve) => replicas.get(id)?.once('removed', resolve));
      await leader.remove(id);
      expect(await removed).toMatchObject({ code: 'QUORATE_REMOVED' });
      await expect(replicas.get(id)?.propose(bytes('x'))).rejects.toMatchObject({ code: 'QUORATE_REMOVED' });
    }
    expect(leader.status().voters).toEqual([leader.id, 3, 4]);
    await verify([leader.id, 3, 4]);
    expect(
      leader
        .status()
        .peers.map(({ id }) => id)
        .sort(),
    ).toEqual(expect.arrayContaining([3, 4]));
  });

  it('lets a leader remove itself, which steps down when that is committed; the rest goes on', async () => {
    const leader = await found(3);
    new Client(1);
    const removed = new Promise<Error>((resolve) => leader.once('removed', resolve));
    const deposed = new Promise<string>((resolve) => leader.once('deposed', (_epoch, reason) => resolve(reason)));
    await leader.remove(leader.id);
    expect(await deposed).toContain('does not list this replica');
    expect(await removed).toMatchObject({ code: 'QUORATE_REMOVED' });
    const next = await waitFor(() => leading() !== leader && leading(), 'another leader');
    expect(next.status().voters).toEqual([0, 1, 2].filter((id) => id !== leader.id));
    await verify(next.status().voters);
  });

  it('sends nobody to a leader that was removed and is about to step down', async () => {
    const leader = await found(3);
    const refused = leader.remove(leader.id).then(() => leader.setPriority(leader.id, 1));
    await expect(refused).rejects.toMatchObject({ code: 'QUORATE_NOT_LEADER', leader: undefined });
  });

  it('leaves nothing that runs when a leader that was removed is closed by a listener of "removed"', async () => {
    const leader = await found(3);
    const running = new Map<NodeJS.Timeout, number | undefined>();
    const { setTimeout: set, clearTimeout: clear } = globalThis;
    vi.spyOn(globalThis, 'setTimeout').mockImplementation(((call: () => void, timeoutMs?: number) => {
      const timer = set(() => {
        running.delete(timer);
        call();
      }, timeoutMs);
      running.set(timer, timeoutMs);
      return timer;
    }) as typeof setTimeout);
    vi.spyOn(globalThis, 'clearTimeout').mockImplementation((timer) => {
      running.delete(timer as NodeJS.Timeout);
      clear(timer);
    });
    try {
      const closed = new Promise<void>((resolve) => leader.once('removed', () => resolve(leader.close())));
      await leader.remove(leader.id);
      await closed;
      await Promise.all([...replicas.values()].map((replica) => replica.close()));
    } finally {
      vi.restoreAllMocks();
    }
    expect([...running].filter(([timer]) => timer.hasRef()).map(([, timeoutMs]) => timeoutMs)).toEqual([]);
  });

  it('settles a change when a listener of "configuration" closes the replica', async () => {
    const leader = await found(1);
    leader.once('configuration', () => void leader.close());
    await expect(leader.setPriority(0, 1)).rejects.toMatchObject({ code: 'QUORATE_OUTCOME_UNKNOWN' });
  });

  it('transfers leadership under load, and no command is left in doubt', async () => {
    let leader = await found(3);
    const unknown: unknown[] = [];
    for (const origin of [1, 2]) new Client(origin);
    for (const replica of replicas.values()) {
      const { propose } = replica;
      replica.propose = async function (...parameters) {
        try {
          return await propose.apply(this, parameters);
        } catch (error) {
          if ((error as { code: string }).code === 'QUORATE_OUTCOME_UNKNOWN') unknown.push(error);
          throw error;
        }
      };
    }
    for (let round = 0; round < 3; round++) {
      const to = (leader.id + 2) % 3;
      expect(await leader.transferLeadership(to)).toBe(to);
      leader = await waitFor(() => leading(), 'the next leader');
      expect(leader.id).toBe(to);
      leader = await steady();
    }
    await verify([0, 1, 2]);
    expect(unknown).toEqual([]);
  });

  it('keeps its leader when a transfer does not come to an end, with the commands that waited', async () => {
    const leader = await found(3);
    const [silent] = [...replicas.values()].filter((replica) => replica !== leader) as [Replica<number>];
    // Its process goes without a word; the leader finds out later than it is asked to hand over.
    await silent.close();
    const transfer = leader.transferLeadership(silent.id, { timeoutMs: 50 });
    const waiting = leader.propose(bytes('waited'));
    await expect(transfer).rejects.toMatchObject({ code: 'QUORATE_TRANSFER_FAILED' });
    expect(await waiting).toMatchObject({ result: 1 });
    expect(leader.status()).toMatchObject({ role: 'leader', transferringTo: undefined });
  });

  it('does not wait any longer for a learner to catch up that has been removed', async () => {
    const leader = await found(1, 2);
    await leader.addLearner(place(1));
    // Nobody has started that process.
    const promotion = leader.promote(1, { timeoutMs: 600_000 });
    await Promise.all([expect(promotion).rejects.toMatchObject({ code: 'QUORATE_UNKNOWN_MEMBER' }), leader.remove(1)]);
  });

  it('replaces a voter that is gone by a new member', async () => {
    const leader = await found(3, 4);
    new Client(1);
    const victim = [2, 1, 0].find((id) => id !== leader.id) as number;
    await replicas.get(victim)?.close();
    replicas.delete(victim);
    const joining = join(3);
    await leader.replace(victim, place(3));
    await joining;
    expect(leader.status().voters).toEqual([0, 1, 2, 3].filter((id) => id !== victim));
    await verify(leader.status().voters);
  });

  it('replaces a voter once when it is asked to twice at once', async () => {
    const leader = await found(3, 4);
    const victim = [2, 1, 0].find((id) => id !== leader.id) as number;
    const joining = join(3);
    await Promise.all([leader.replace(victim, place(3)), leader.replace(victim, place(3))]);
    await joining;
    expect(leader.status().voters).toEqual([0, 1, 2, 3].filter((id) => id !== victim));
  });

  it('sends who asks a follower for a replacement to the leader, whatever the follower knows of the members', async () => {
    const leader = await found(3, 4);
    const [follower, gone] = [...replicas.values()].filter((replica) => replica !== leader) as [
      Replica<number>,
      Replica<number>,
    ];
    await waitFor(() => follower.status().leader === leader.id, 'the follower to know the leader');
    const elsewhere = { code: 'QUORATE_NOT_LEADER', leader: leader.id };
    await expect(follower.replace(3, { ...place(3), id: 4 })).rejects.toMatchObject(elsewhere);
    await leader.remove(gone.id);
    await waitFor(() => !follower.status().voters.includes(gone.id), 'the follower to know of the removal');
    await expect(follower.replace(gone.id, place(leader.id))).rejects.toMatchObject(elsewhere);
  });

  it('adds a member when the bytes of the cluster key were wiped after open()', async () => {
    places = await members(2);
    const clusterKey = Buffer.from(CLUSTER_KEY);
    const leader = await open(0, { members: [place(0)], clusterKey });
    clusterKey.fill(0);
    const warnings: unknown[] = [];
    leader.on('warning', (warning) => warnings.push(warning));
    await leader.addLearner(place(1));
    await open(1, { join: [place(0)], address: place(1), openTimeoutMs: 10_000 });
    await leader.promote(1, { timeoutMs: 10_000 });
    expect(warnings).toEqual([]);
  });

  it('listens nowhere any more when a replica closes right after its address was changed', async () => {
    const replica = await found(1);
    const { host, port } = place(0);
    const [next] = (await freePorts(1)) as [number];
    await replica.changeAddress(0, { host, port: next });
    while (!(await answers(host, next)));
    await replica.close();
    // Port by port: each can be listened on by somebody else.
    for (const free of [port, next]) {
      const server = createServer();
      server.listen(free, host);
      await once(server, 'listening');
      await new Promise((resolve) => server.close(resolve));
    }
  });

  it('listens again where it did when its address is changed back at once', async () => {
    const replica = await found(1);
    const { host, port } = place(0);
    const [next] = (await freePorts(1)) as [number];
    const warnings: unknown[] = [];
    replica.on('warning', (warning) => warnings.push(warning));
    await replica.changeAddress(0, { host, port: next });
    while (!(await answers(host, next)));
    await replica.changeAddress(0, { host, port });
    // One of the two is left a moment later.
    while ((await answers(host, next)) && (await answers(host, port)));
    expect(await answers(host, port)).toBe(true);
    expect(warnings).toEqual([]);
  });

  it('changes the address of a member that runs, of one that is down, and of the leader', async () => {
    const leader = await found(3);
    const [one, other] = [...replicas.values()].filter((replica) => replica !== leader) as [
      Replica<number>,
      Replica<number>,
    ];
    const ports = await freePorts(3);
    const moved = (index: number) => ({ host: '127.0.0.1', port: ports[index] as number });
    await leader.changeAddress(one.id, moved(0));
    await leader.changeAddress(leader.id, moved(1));
    // Who comes back finds the others where they are now.
    await other.close();
    await leader.changeAddress(other.id, moved(2));
    const contacts = [{ id: one.id, ...moved(0) }];
    const back = await open(other.id, { join: contacts, address: moved(2) });
    await waitFor(() => back.status().isVoter, 'the one that came back to be a voter');
    await leader.propose(bytes('last'));
    await waitFor(() => machines.get(other.id)?.commands.at(-1) === 'last', 'the one that came back to apply');
    expect(leader.status().members).toMatchObject(
      [
        { id: one.id, ...moved(0), phase: 'active' },
        { id: leader.id, ...moved(1), phase: 'active' },
        { id: other.id, ...moved(2), phase: 'active' },
      ].sort((a, b) => a.id - b.id),
    );
  });

  it('finds a member that has moved back to where the cluster was founded, whatever the list said meanwhile', async () => {
    const leader = await found(3);
    const [one, other] = [...replicas.values()].filter((replica) => replica !== leader) as [
      Replica<number>,
      Replica<number>,
    ];
    const { host, port } = place(other.id);
    const [next] = (await freePorts(1)) as [number];
    await leader.changeAddress(other.id, { host, port: next });
    await one.close();
    const list = places.map((member) => (member.id === other.id ? { ...member, port: next } : member));
    const restarted = await open(one.id, { members: list });
    await waitFor(() => restarted.status().isVoter, 'the one that was restarted to be a voter');
    await leader.changeAddress(other.id, { host, port });
    await other.close();
    await open(other.id, { members: places });
    const linked = (at: Replica<number>) => at.status().peers.find(({ id }) => id === other.id)?.linked;
    await waitFor(() => linked(leader) && linked(restarted), 'both to be linked with the one that has moved back');
  });

  it('elects by priority, and shows everything in status()', async () => {
    const leader = await found(3, 4, [7, 8, 9]);
    const [first, second] = [2, 1, 0].filter((id) => id !== leader.id) as [number, number];
    // Neither who founded the cluster nor who has the lower id, but who was preferred since.
    await leader.setPriority(second, 10);
    await leader.setPriority(first, 11);
    await leader.addSpare(place(3));
    const spare = await join(3);
    await waitFor(() => leader.status().members[3]?.bootId !== 0, 'the process of the spare to be known');
    expect(spare.status()).toMatchObject({ isVoter: false, appliedLsn: 0 });
    const { members: seen, tailLsn } = leader.status();
    expect(seen).toMatchObject([
      { id: 0, role: 'voter', phase: 'active', returning: false },
      { role: 'voter', phase: 'active', ...place(1) },
      { id: 2, role: 'voter', phase: 'active', acknowledgedLsn: tailLsn },
      { role: 'spare', priority: 0, phase: 'none', acknowledgedLsn: 0, ...place(3) },
    ]);
    expect([seen[first]?.priority, seen[second]?.priority]).toEqual([11, 10]);
    await expect(leader.promote(3)).rejects.toMatchObject({ code: 'QUORATE_NOT_CAUGHT_UP' });
    await leader.close();
    const next = await waitFor(() => leading() !== leader && leading(), 'another leader');
    expect(next.id).toBe(first);
    await next.addLearner(place(3));
    await next.promote(3, { timeoutMs: 20_000 });
    await waitFor(() => spare.status().isVoter, 'the spare to be a voter');
  });

  it('lets go of a founder that was removed at a spare, too, whose own log ends with the founders', async () => {
    const leader = await found(3, 4);
    await leader.addSpare(place(3));
    const spare = await join(3);
    const gone = [0, 1, 2].find((id) => id !== leader.id) as number;
    const dialed = (replica: Replica<number>) => replica.status().peers.some(({ id }) => id === gone);
    await waitFor(() => dialed(spare), 'the spare to know all');
    await leader.remove(gone);
    await waitFor(() => spare.status().members.every(({ id }) => id !== gone), 'the spare to hear of it');
    await waitFor(() => !dialed(leader), 'the leader to let go of it');
    await waitFor(() => !dialed(spare), 'the spare to let go of it');
  });

  it('shows of a leader that was closed nothing that only a leader has', async () => {
    const leader = await found(3);
    await leader.propose(bytes('one'));
    const other = [0, 1, 2].find((id) => id !== leader.id) as number;
    // Whom nothing is sent to any more: the transfer is under way still when the leader closes.
    const { links } = leader as unknown as { links: { forget(id: number): void } };
    links.forget(other);
    const transferred = leader.transferLeadership(other).catch((error: unknown) => error);
    await waitFor(() => leader.status().transferringTo === other, 'the transfer to begin');
    await leader.close();
    expect(await transferred).toMatchObject({ code: 'QUORATE_TRANSFER_FAILED' });
    const { role, transferringTo, members: all, peers } = leader.status();
    expect({ role, transferringTo }).toEqual({ role: 'follower', transferringTo: undefined });
    const none = { phase: 'none', acknowledgedLsn: 0 };
    expect(all).toMatchObject([none, none, none]);
    expect(peers.map(({ phase }) => phase)).toEqual(['none', 'none']);
  });

  it.each(['addLearner', 'replace'])('leaves a spare the priority that it was added with at %s()', async (way) => {
    const leader = await found(way === 'replace' ? 2 : 1, 3);
    await leader.addSpare({ ...place(2), priority: 7 });
    await join(2);
    const priority = () => leader.status().members.find(({ id }) => id === 2)?.priority;
    expect(priority()).toBe(7);
    const other = [0, 1].find((id) => id !== leader.id) as number;
    await (way === 'replace' ? leader.replace(other, place(2)) : leader.addLearner(place(2)));
    expect(priority()).toBe(7);
  });

  it('gives a spare the priority that it is made a learner with', async () => {
    const leader = await found(1, 2);
    await leader.addSpare({ ...place(1), priority: 7 });
    await leader.addLearner({ ...place(1), priority: 0 });
    expect(leader.status().members[1]).toMatchObject({ role: 'learner', priority: 0 });
  });

  it('refuses what cannot be done, by code, and does nothing then', async () => {
    const leader = await found(3, 5);
    const follower = [...replicas.values()].find((replica) => replica !== leader) as Replica<number>;
    await waitFor(() => follower.status().leader === leader.id, 'the follower to know the leader');
    const notLeader = (await follower.remove(leader.id).catch((error: unknown) => error)) as NotLeaderError;
    expect(notLeader).toMatchObject({ code: 'QUORATE_NOT_LEADER', leader: leader.id });
    const version = leader.status().configurationVersion;
    const refused: [Promise<unknown>, string][] = [
      [leader.addLearner(place(1)), 'QUORATE_MEMBER_EXISTS'],
      [leader.addLearner({ ...place(1), id: 3 }), 'QUORATE_MEMBER_EXISTS'],
      [leader.addLearner({ ...place(3), id: 16 }), 'QUORATE_INVALID_ARGUMENT'],
      [leader.addLearner({ ...place(3), priority: 1001 }), 'QUORATE_INVALID_ARGUMENT'],
      [leader.promote(3), 'QUORATE_UNKNOWN_MEMBER'],
      [leader.promote(1), 'QUORATE_MEMBER_EXISTS'],
      [leader.remove(4), 'QUORATE_UNKNOWN_MEMBER'],
      [leader.replace(4, place(3)), 'QUORATE_UNKNOWN_MEMBER'],
      [leader.replace(1, place(1)), 'QUORATE_INVALID_ARGUMENT'],
      [leader.changeAddress(0, { host: '127.0.0.1', port: place(1).port }), 'QUORATE_MEMBER_EXISTS'],
      [leader.setPriority(4, 1), 'QUORATE_UNKNOWN_MEMBER'],
      [leader.transferLeadership(4), 'QUORATE_NO_SUCCESSOR'],
      [leader.transferLeadership(leader.id), 'QUORATE_NO_SUCCESSOR'],
    ].map(([promise, code]) => [(promise as Promise<unknown>).catch((error: unknown) => error), code as string]);
    for (const [error, code] of refused) expect(await error).toMatchObject({ code });
    expect(leader.status().configurationVersion).toBe(version);
    // One at a time: the second of two finds the first under way.
    const [first, second] = await Promise.allSettled([leader.addLearner(place(3)), leader.addLearner(place(4))]);
    expect(first.status).toBe('fulfilled');
    expect(second).toMatchObject({ reason: { code: 'QUORATE_CHANGE_IN_PROGRESS' } });
    // Nobody has started that process.
    await expect(leader.promote(3)).rejects.toMatchObject({ code: 'QUORATE_NOT_CAUGHT_UP' });
    await expect(leader.promote(3, { timeoutMs: 20 })).rejects.toMatchObject({ code: 'QUORATE_NOT_CAUGHT_UP' });
    const lost = [...replicas.values()].find((one) => one !== leader && one !== follower) as Replica<number>;
    await lost.close();
    const peer = () => leader.status().peers.find(({ id }) => id === lost.id);
    await waitFor(() => peer()?.trusted === false, 'its loss to be seen');
    await expect(leader.remove(follower.id)).rejects.toMatchObject({ code: 'QUORATE_QUORUM_AT_RISK' });
  });

  it('tells a process that nobody has added, and that stays so, what is missing', async () => {
    await found(1, 2);
    const error = await join(1, { openTimeoutMs: 1000 }).then(
      () => new Error('it opened'),
      (failure: Error) => failure,
    );
    expect(error).toMatchObject({ code: 'QUORATE_OPEN_TIMEOUT', message: expect.stringContaining('addLearner') });
  });

  it.each(['the list of the founders', 'join'])(
    'tells a member that has moved, and is started at its former address by %s',
    async (way) => {
      const leader = await found(3);
      const away = [...replicas.values()].find((replica) => replica !== leader) as Replica<number>;
      await away.close();
      const { host, port } = place(away.id);
      const [next] = (await freePorts(1)) as [number];
      await leader.changeAddress(away.id, { host, port: next });
      const started =
        way === 'join'
          ? join(away.id, { openTimeoutMs: 5000 })
          : open(away.id, { members: places, openTimeoutMs: 5000 });
      await expect(started).rejects.toMatchObject({
        code: 'QUORATE_OPEN_TIMEOUT',
        message: expect.stringContaining(
          `lists it at ${host}:${next} and it listens at ${host}:${port}: start it there`,
        ),
      });
    },
  );

  const elsewhere = (there: number, here: number): string =>
    `lists it at 127.0.0.1:${there} and it listens at 127.0.0.1:${here}: start it there`;

  it('warns of a spare that is started elsewhere than it was added, as nobody can call it up', async () => {
    const leader = await found(1, 2);
    const [port] = (await freePorts(1)) as [number];
    await leader.addSpare(place(1));
    const spare = await join(1, { address: { host: '127.0.0.1', port } });
    expect((await warningOf(spare, 'QUORATE_ADDRESS_CHANGE')).message).toContain(elsewhere(place(1).port, port));
  });

  it('warns of a member that has moved, and waits for no leader at its former address', async () => {
    const leader = await found(3);
    const away = [...replicas.values()].find((replica) => replica !== leader) as Replica<number>;
    await away.close();
    const [next] = (await freePorts(1)) as [number];
    await leader.changeAddress(away.id, { host: '127.0.0.1', port: next });
    const started = await open(away.id, { members: places, waitForLeader: false });
    expect((await warningOf(started, 'QUORATE_ADDRESS_CHANGE')).message).toContain(
      elsewhere(next, place(away.id).port),
    );
  });

  it('warns of no address where the founders only know each other by different names', async () => {
    places = await members(2);
    const lists = places.map(({ id }) => places.map((one) => (one.id === id ? { ...one, host: 'localhost' } : one)));
    const warnings: unknown[] = [];
    await Promise.all(
      lists.map(async (list, id) => {
        const replica = await open(id, { members: list, waitForLeader: false });
        replica.on('warning', ({ code }) => warnings.push(code));
      }),
    );
    await steady();
    expect(warnings).not.toContain('QUORATE_ADDRESS_CHANGE');
  });

  it('tells a founder that was removed while it was away that it is no member, also if it has left a region', async () => {
    const directory = mkdtempSync(pathOf(tmpdir(), 'quorate-membership-'));
    try {
      places = await members(3);
      const options = { members: places, surviveCrash: { directory } };
      await Promise.all(places.map(({ id }) => open(id, options)));
      const leader = await steady();
      const away = [...replicas.values()].find((replica) => replica !== leader) as Replica<number>;
      await leader.propose(bytes('in the log'));
      await away.close();
      await leader.remove(away.id);
      await expect(open(away.id, { ...options, openTimeoutMs: 2000 })).rejects.toMatchObject({
        code: 'QUORATE_OPEN_TIMEOUT',
        message: expect.stringContaining('does not list it'),
      });
      await Promise.all([...replicas.values()].map((replica) => replica.close()));
    } finally {
      rmSync(directory, { recursive: true });
    }
  });

  it('tells a member that was cut off when it was removed, as soon as it is back', async () => {
    const leader = await found(3);
    const away = [...replicas.values()].find((replica) => replica !== leader) as Replica<number>;
    const removed = new Promise<Error>((resolve) => away.once('removed', resolve));
    // What a partition does: no link and no connection, in both directions, and none can be made.
    const { directory, links, place, membership } = away as unknown as {
      directory: { places: Map<number, { dialer: { close(): Promise<void> } }> };
      links: { forget(id: number): void };
      place: { close(): Promise<void> };
      membership: { follow(): void };
    };
    await place.close();
    for (const [id, { dialer }] of directory.places) {
      await dialer.close();
      links.forget(id);
    }
    await leader.remove(away.id);
    directory.places.clear();
    membership.follow();
    expect(await removed).toMatchObject({ code: 'QUORATE_REMOVED' });
  });

  it('shows who the members are when it was told by others that it is none, and its own log does not say so', async () => {
    const leader = await found(3);
    const [away, rest] = [...replicas.values()].filter((replica) => replica !== leader) as [
      Replica<number>,
      Replica<number>,
    ];
    interface Inside {
      directory: { places: Map<number, { dialer: { close(): Promise<void> } }> };
      links: { forget(id: number): void };
      place: { close(): Promise<void> };
      membership: { follow(): void };
    }
    // Neither links nor connections lead from it or to it.
    const inside = (replica: Replica<number>) => replica as unknown as Inside;
    await inside(away).place.close();
    for (const other of [leader, rest]) {
      for (const [one, id] of [
        [away, other.id],
        [other, away.id],
      ] as const) {
        await inside(one).directory.places.get(id)?.dialer.close();
        inside(one).links.forget(id);
      }
    }
    await leader.remove(away.id);
    const told = new Promise<ReplicaStatus>((resolve) => away.once('removed', () => resolve(away.status())));
    inside(away).directory.places.clear();
    inside(away).membership.follow();
    const shown = await told;
    expect(shown.voters).toEqual(leader.status().voters);
    expect(shown.members.map(({ id }) => id)).toEqual(shown.voters);
    expect(shown.isVoter).toBe(false);
  });

  it('goes on with a voter that the leader did not reach when it added the one that leads now', async () => {
    const priorities = [3, 1, 2];
    // The one of the lowest priority leaves elections to the others for as long as a takeover may take.
    const profile = { ...PROFILE, takeoverTimeout_ns: 20e9 };
    const leader = await found(3, 4, priorities, { profile });
    const away = [1, 2, 0].map((id) => replicas.get(id)).find((replica) => replica !== leader) as Replica<number>;
    // No link and no connection between these two, and none can be made; each reaches the others.
    interface Inside {
      directory: { places: Map<number, { dialer: { close(): Promise<void> } }> };
      links: { forget(id: number): void };
    }
    for (const [one, other] of [
      [leader, away],
      [away, leader],
    ] as const) {
      const { directory, links } = one as unknown as Inside;
      await directory.places.get(other.id)?.dialer.close();
      links.forget(other.id);
    }
    const joining = join(3, { profile });
    await leader.addLearner(place(3));
    await joining;
    await leader.promote(3, { timeoutMs: 20_000 });
    const lists = (replica: Replica<number>) => replica.status().members.some(({ id }) => id === 3);
    expect(lists(away)).toBe(false);
    const transferred = leader.transferLeadership(3);
    transferred.catch(() => {}); // another one may win the election; whoever does, all voters must come along
    await waitFor(() => leader.status().role !== 'leader' && leading(), 'another leader');
    await waitFor(() => lists(away), 'the voter that was cut off to hear of the new one');
    new Client(1);
    await waitFor(
      () => (machines.get(away.id)?.commands.length ?? 0) > 10,
      'it to apply what is committed from now on',
    );
  });
});

describe('options of a replica that joins', () => {
  const contact = { id: 0, host: '127.0.0.1', port: 1 };
  const address = { host: '127.0.0.1', port: 2 };
  it.each([
    ['members and join', { members: [contact], join: [contact], address }],
    ['no address', { join: [contact] }],
    ['an address without join', { members: [{ ...contact, id: 5 }], address }],
    ['no other replica', { join: [{ ...contact, id: 5 }], address }],
    ['an empty list', { join: [], address }],
    ['a host that is too long', { join: [contact], address: { ...address, host: 'x'.repeat(256) } }],
    ['a priority that is no number', { members: [{ ...contact, id: 5, priority: -1 }] }],
  ])('are refused: %s', async (_what, options) => {
    await expect(open(5, options)).rejects.toMatchObject({ code: 'QUORATE_INVALID_ARGUMENT' });
  });
});
