// Proposals at followers where messages go over links of RDMA devices: results come back, links that break are replaced
// without a loss, and sessions bridge the end of a leader.
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

test('proposals at a follower return what the leader returned, small ones and large ones', {
  timeout: TIMEOUT_MS,
}, async () => {
  const { leader, follower } = await roles();
  expect(follower.status().fabric).toBe('verbs');
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

test('a session bridges the end of the leader', { timeout: TIMEOUT_MS }, async () => {
  const { leader, follower } = await roles();
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
