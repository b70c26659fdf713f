// Spares that take the places of voters that are gone, by themselves, on shm, all members in this process.
import { afterEach, beforeEach, expect, it } from 'vitest';
import { type BackgroundProfile, type MemberAddress, Replica, type ReplicaOptions } from '#lib/index.js';
import { CommandLog, members, optionsFor, waitFor } from './fixture.js';

const REPLACE_AFTER_MS = 1_000;
const LOG_BYTES = 64 * 1024;
const PROFILE: BackgroundProfile = {
  tick_ns: 15e6,
  electionTick_ns: 5e6,
  takeoverTimeout_ns: 1e9,
  scoreMax: 30,
  failBelow: 2,
  recoverAbove: 3,
  stallTimeout_ns: 4e9,
};

let replicas: Map<number, Replica<number>>;
let machines: Map<number, CommandLog>;
let places: MemberAddress[];
let news: Map<number, string[]>;

beforeEach(() => {
  replicas = new Map();
  machines = new Map();
  news = new Map();
});

afterEach(async () => {
  await Promise.all([...replicas.values()].map((replica) => replica.close()));
});

async function open(id: number, more: Partial<ReplicaOptions<number>>): Promise<Replica<number>> {
  const machine = new CommandLog();
  machines.set(id, machine);
  const { members: _, ...rest } = optionsFor(id, [], { profile: PROFILE, logBytes: LOG_BYTES, stateMachine: machine });
  const replica = await Replica.open<number>({ ...rest, replaceAfterMs: REPLACE_AFTER_MS, ...more });
  replicas.set(id, replica);
  const told: string[] = [];
  news.set(id, told);
  replica.on('replacement', ({ state, voter, spare }) => told.push(`${state} ${voter} by ${spare}`));
  return replica;
}

const leading = () => [...replicas.values()].find((replica) => replica.status().role === 'leader');

/** A leader that counts on so many voters, trusts them, and knows all spares. */
function steady(voters: number): Promise<Replica<number>> {
  return waitFor(() => {
    const leader = leading();
    if (leader === undefined) return undefined;
    const status = leader.status();
    const trusts = (id: number) => id === leader.id || status.peers.some((peer) => peer.id === id && peer.trusted);
    const isSteady = status.members.every(({ id, role, phase, bootId }) => {
      return trusts(id) && bootId !== 0 && (role === 'spare' || phase === 'active');
    });
    return isSteady && status.voters.length === voters && leader;
  }, `a leader that counts on ${voters} voters`);
}

async function foundWithSpares(
  voters: number,
  spares: number,
  more: Partial<ReplicaOptions<number>> = {},
): Promise<Replica<number>> {
  places = await members(voters + spares);
  const founders = places.slice(0, voters);
  await Promise.all(founders.map(({ id }) => open(id, { members: founders, ...more })));
  const leader = await steady(voters);
  for (const place of places.slice(voters)) {
    await leader.addSpare(place);
    await open(place.id, { join: founders, address: { host: place.host, port: place.port }, ...more });
  }
  return steady(voters);
}

async function propose(replica: Replica<number>, count: number, name: string): Promise<void> {
  for (let index = 0; index < count; index++) await replica.propose(Buffer.from(`${name} ${index}`.padEnd(300)));
}

async function kill(id: number): Promise<void> {
  await replicas.get(id)?.close();
  replicas.delete(id);
}

it('a spare takes the place of a voter that is gone, gets the state, and nothing is lost', async () => {
  const leader = await foundWithSpares(3, 1);
  await propose(leader, 400, 'before'); // more than the ring holds
  const victim = places.map(({ id }) => id).find((id) => id < 3 && id !== leader.id) as number;
  await kill(victim);
  await propose(leader, 50, 'meanwhile');
  const now = await waitFor(() => {
    const { voters } = leader.status();
    return voters.includes(3) && !voters.includes(victim) && voters;
  }, 'the spare to be a voter');
  expect(now).toHaveLength(3);
  await steady(3);
  await propose(leader, 50, 'after');
  const machine = machines.get(3) as CommandLog;
  const expected = machines.get(leader.id) as CommandLog;
  await waitFor(() => machine.commands.length === expected.commands.length, 'the spare to apply all');
  expect(machine.commands).toEqual(expected.commands);
  expect(expected.commands).toHaveLength(500);
  const steps = [`begun ${victim} by 3`, `removed ${victim} by 3`, `done ${victim} by 3`];
  for (const id of replicas.keys()) {
    await waitFor(() => news.get(id)?.length === 3, `replica ${id} to hear of it`);
    expect(news.get(id)).toEqual(steps);
  }
  // Full redundancy: the death of another one is survived.
  await kill(leader.id);
  const next = await waitFor(leading, 'the next leader');
  await propose(next, 1, 'still there');
});

it('a leader that is gone is replaced by its successor', async () => {
  const leader = await foundWithSpares(3, 1);
  await propose(leader, 20, 'before');
  await kill(leader.id);
  const next = await waitFor(leading, 'the next leader');
  await waitFor(() => {
    const { voters } = next.status();
    return voters.includes(3) && !voters.includes(leader.id) && voters.length === 3;
  }, 'the spare to be a voter');
  await propose(next, 1, 'after');
});

it('a voter that is started again in time keeps its place', async () => {
  const leader = await foundWithSpares(3, 1, { replaceAfterMs: 60_000 });
  const victim = places.map(({ id }) => id).find((id) => id < 3 && id !== leader.id) as number;
  await kill(victim);
  await propose(leader, 20, 'meanwhile');
  await open(victim, { members: places.slice(0, 3), replaceAfterMs: 60_000 });
  await steady(3);
  expect(leader.status().voters).toEqual([0, 1, 2]);
  expect(leader.status().members.find(({ id }) => id === 3)?.role).toBe('spare');
  expect([...news.values()].flat()).toEqual([]);
});

it('a time within which nobody could look often enough is refused', async () => {
  places = await members(1);
  const opening = (replaceAfterMs: number, profile: BackgroundProfile) =>
    open(0, { members: places, replaceAfterMs, profile });
  await expect(opening(999, PROFILE)).rejects.toMatchObject({ code: 'QUORATE_INVALID_ARGUMENT' });
  await expect(opening(1500, { ...PROFILE, tick_ns: 100e6 })).rejects.toMatchObject({
    code: 'QUORATE_INVALID_ARGUMENT',
  });
});
