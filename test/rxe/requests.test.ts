// What clients ask of replicas whose every link is a link of RDMA devices: linearizable reads by lease, behind a barrier and at
// followers; proposals at followers, of which results come back, and nothing is lost with links that break or a leader that
// goes. One cluster for all of it: to open one takes longer than the tests.
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Replica } from '#lib/index.js';
import type { Mailbox } from '#lib/replica/mailbox/mailbox.js';
import { QpState, type QueuePair } from '#lib/verbs/index.js';
import { openCluster, type TestCluster, waitFor } from '../replica/fixture.js';
import { rdmaDevices } from './devices.js';

const TIMEOUT_MS = 170_000;
const PROPOSE_TIMEOUT_MS = 100_000;
let cluster: TestCluster;
beforeAll(async () => {
  cluster = await openCluster(3, { device: rdmaDevices()[0] as string, openTimeoutMs: 120_000 });
}, TIMEOUT_MS);
afterAll(() => cluster.close(), TIMEOUT_MS);

const bytes = (text: string) => new Uint8Array(Buffer.from(text));

async function roles(): Promise<{ leader: Replica<number>; follower: Replica<number> }> {
  const leader = await cluster.leader();
  const follower = cluster.replicas.find((replica) => replica !== leader) as Replica<number>;
  await waitFor(() => follower.status().leader === leader.id, 'the follower to know the leader');
  return { leader, follower };
}

const lengthAt = (replica: Replica<number>) => () => cluster.machines[replica.id]?.commands.length;

async function readEverywhere(replicas: readonly Replica<number>[]): Promise<void> {
  const leader = await waitFor(() => replicas.find((replica) => replica.status().role === 'leader'), 'a leader');
  const follows = (replica: Replica<number>) => replica.status().leader === leader.id;
  await waitFor(() => replicas.every(follows), 'all to know the leader');
  const before = lengthAt(leader)() as number;
  for (let index = 1; index <= 10; index++) {
    await leader.propose(new Uint8Array([index]));
    const reads = replicas.map((replica) => replica.read(lengthAt(replica)));
    expect(await Promise.all(reads)).toEqual(replicas.map(() => before + index));
    await leader.readBarrier();
    expect(lengthAt(leader)()).toBe(before + index);
    expect(await waitFor(() => leader.leasedRead(lengthAt(leader)), 'a lease')).toBe(before + index);
  }
}

test('reads at the leader and at followers are current', { timeout: TIMEOUT_MS }, async () => {
  expect(cluster.replicas.map((replica) => replica.status().fabric)).toEqual(['verbs', 'verbs', 'verbs']);
  await readEverywhere(cluster.replicas);
});

test('proposals at a follower return what the leader returned, small ones and large ones', {
  timeout: TIMEOUT_MS,
}, async () => {
  const { leader, follower } = await roles();
  const sizes = [...Array.from({ length: 40 }, (_, index) => index + 1), 5_000, 50_000, leader.payloadBytesMax];
  const before = cluster.machines[leader.id]?.commands.length as number;
  const options = { timeoutMs: PROPOSE_TIMEOUT_MS };
  const results = await Promise.all(sizes.map((size) => follower.propose(new Uint8Array(size).fill(65), options)));
  expect(results.map(({ result }) => result)).toEqual(sizes.map((_, index) => before + index + 1));
  const applied = await follower.read(() => cluster.machines[follower.id]?.commands.slice(before));
  expect(applied?.map(({ length }) => length)).toEqual(sizes);
});

test('nothing is lost or doubled when message links break', { timeout: TIMEOUT_MS }, async () => {
  const { leader, follower } = await roles();
  const { fabric } = (follower as unknown as { mailbox: Mailbox }).mailbox;
  const { queuePairs } = fabric as unknown as { queuePairs: QueuePair[] };
  const before = cluster.machines[leader.id]?.commands.length as number;
  const results = [];
  for (let index = 1; index <= 40; index++) {
    results.push(follower.propose(bytes(`b${index}`), { timeoutMs: PROPOSE_TIMEOUT_MS }));
    if (index % 4 === 0) await results[index - 1];
    if (index % 16 === 8) queuePairs[leader.id]?.modify({ state: QpState.ERR });
  }
  expect((await Promise.all(results)).map(({ result }) => result)).toEqual(
    results.map((_, index) => before + index + 1),
  );
  expect(cluster.machines[leader.id]?.commands.slice(before)).toEqual(results.map((_, index) => `b${index + 1}`));
});

let survivors: Replica<number>[] = [];

test('a session bridges the end of the leader', { timeout: TIMEOUT_MS }, async () => {
  const { leader, follower } = await roles();
  survivors = cluster.replicas.filter((replica) => replica !== leader);
  const proposed = [];
  for (let sequence = 1; sequence <= 20; sequence++) {
    const options = { session: { origin: 7, sequence }, timeoutMs: PROPOSE_TIMEOUT_MS };
    proposed.push(follower.propose(bytes(`s${sequence}`), options));
    if (sequence === 10) void leader.close();
    await new Promise((resolve) => setImmediate(resolve));
  }
  await Promise.all(proposed);
  const commands = () => cluster.machines[follower.id]?.commands.filter((command) => command.startsWith('s'));
  const seen = await follower.read(commands, { timeoutMs: PROPOSE_TIMEOUT_MS });
  expect(seen).toEqual(proposed.map((_, index) => `s${index + 1}`));
});

test('reads are current at the next leader, too', { timeout: TIMEOUT_MS }, async () => {
  expect(survivors).toHaveLength(2);
  await readEverywhere(survivors);
});
