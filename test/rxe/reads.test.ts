// Linearizable reads where every link is a link of RDMA devices: by lease, behind a barrier and at followers, before and
// after the leader goes.
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Replica } from '#lib/index.js';
import { openCluster, type TestCluster, waitFor } from '../replica/fixture.js';
import { rdmaDevices } from './devices.js';

const TIMEOUT_MS = 170_000;
let cluster: TestCluster;
beforeAll(async () => {
  cluster = await openCluster(3, { device: rdmaDevices()[0] as string, openTimeoutMs: 120_000 });
}, TIMEOUT_MS);
afterAll(() => cluster.close(), TIMEOUT_MS);

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
  expect(cluster.replicas[0]?.status().fabric).toBe('verbs');
  await readEverywhere(cluster.replicas);
});

test('so are those at the next leader', { timeout: TIMEOUT_MS }, async () => {
  const leader = await cluster.leader();
  await leader.close();
  await readEverywhere(cluster.replicas.filter((replica) => replica !== leader));
});
