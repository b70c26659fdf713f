// Strangers at the control port of a running cluster: whatever they send, it goes on committing, and its user is told
// who knocks, seldom enough that a flood of them floods nothing else.
import { once } from 'node:events';
import { connect as connectTcp, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { MemberAddress } from '#lib/index.js';
import { CONNECTIONS_MAX, WARNING_INTERVAL_MS } from '#lib/replica/control/limits.js';
import { ControlClient, type ControlClientOptions } from '#lib/replica/control-channel.js';
import { CLUSTER_KEY, openCluster, type TestCluster, waitFor } from './fixture.js';

const OTHER_KEY = 'the key of another cluster';

interface Warning {
  readonly code: string;
  readonly message: string;
}

let cluster: TestCluster;
/** Of the replica that the strangers call on. */
let warnings: Warning[];
let address: MemberAddress;
let sockets: Socket[];

beforeEach(async () => {
  cluster = await openCluster(3);
  warnings = [];
  sockets = [];
  // The leader, where commands come in: what holds it up shows.
  const target = await cluster.leader();
  target.on('warning', (error) => warnings.push(error as Error & { code: string }));
  address = cluster.members[target.id] as MemberAddress;
});

afterEach(async () => {
  for (const socket of sockets) socket.destroy();
  await cluster.close();
});

/** All replicas apply what is proposed now. */
async function commits(count: number): Promise<void> {
  const before = cluster.machines[0]?.commands.length ?? 0;
  const leader = await cluster.leader();
  for (let index = before; index < before + count; index++) await leader.propose(Buffer.from(`command ${index}`));
  const expected = Array.from({ length: before + count }, (_, index) => `command ${index}`);
  for (const machine of cluster.machines) {
    await waitFor(() => machine.commands.length === expected.length, 'every replica to apply');
    expect(machine.commands).toEqual(expected);
  }
}

function stranger(socket: Socket): { socket: Socket; closed: Promise<unknown> } {
  sockets.push(socket);
  socket.on('error', () => {});
  socket.resume();
  return { socket, closed: new Promise((resolve) => socket.once('close', resolve)) };
}

async function dialAs(id: number, more: Partial<ControlClientOptions> = {}) {
  const hello = () => ({ id, bootId: 77, clusterId: null });
  const client = new ControlClient({ clusterKey: CLUSTER_KEY, memberIds: [0, 1, 2, id], hello, ...more });
  return await client.dial({ host: address.host, port: address.port });
}

const codes = () => warnings.map((warning) => warning.code).sort();

describe('a cluster that commits', () => {
  it('is not disturbed by garbage at its control port, and tells of it', async () => {
    await commits(10);
    const garbage = [
      Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n'),
      Buffer.from('SSH-2.0-OpenSSH_9.2\r\n'),
      Buffer.alloc(5000, 0x99),
      Buffer.concat([Buffer.from([0x16, 3, 1, 0, 200]), Buffer.alloc(200, 0xff)]),
    ];
    for (const bytes of garbage) {
      const { socket, closed } = stranger(connectTcp(address.port, address.host));
      socket.write(bytes);
      await closed;
      await commits(5);
    }
    // One that stays, in the middle of a record, while the cluster goes on.
    const { socket } = stranger(connectTcp(address.port, address.host));
    await once(socket, 'connect');
    socket.write(Buffer.from([0x16, 3, 1, 2, 0, 1, 0, 1]));
    await stranger(connectTls({ ...address, rejectUnauthorized: false })).closed;
    await commits(5);
    await waitFor(() => warnings.length > 0, 'a warning');
    expect(new Set(codes())).toEqual(new Set(['QUORATE_PROTOCOL']));
    expect(warnings[0]?.message).toMatch(/connection rejected: 127\.0\.0\.1:\d+ does not speak TLS/);
  });

  it('turns away who has another cluster key and who is no member, and names the reason', async () => {
    await expect(dialAs(1, { clusterKey: OTHER_KEY })).rejects.toMatchObject({ code: 'QUORATE_CLUSTER_KEY' });
    await commits(5);
    // Who has the key may ask about the cluster, to join it; without being a member it gets nothing else.
    const connection = await dialAs(9);
    expect(await connection.request('formation', null, 1000)).toMatchObject({ current: { version: 1 } });
    await expect(connection.request('link', {}, 1000)).rejects.toMatchObject({ code: 'QUORATE_NOT_A_MEMBER' });
    await expect(connection.sendBlob('snapshot', new Uint8Array(8), 1000)).rejects.toMatchObject({
      code: 'QUORATE_NOT_A_MEMBER',
    });
    // Nor is anything kept for it until all of a blob has come.
    const lengthBytes = 2 ** 30;
    const unfinished = (async function* () {
      yield new Uint8Array(8);
      await new Promise(() => {});
    })();
    await expect(connection.sendBlob('snapshot', unfinished, 10_000, { lengthBytes })).rejects.toMatchObject({
      code: 'QUORATE_NOT_A_MEMBER',
    });
    await commits(5);
    await connection.close();
    await waitFor(() => warnings.length === 1, 'a warning');
    expect(codes()).toEqual(['QUORATE_CLUSTER_KEY']);
    expect(warnings[0]?.message).toMatch(/^connection rejected: 127\.0\.0\.1:\d+ has another cluster key/);
  });

  it('is not flooded by many of them: it commits on, members stay connected, and few warnings come', async () => {
    let reconnected = 0;
    for (const replica of cluster.replicas) {
      replica.on('peer', (peer, isConnected) => {
        if (peer === address.id && isConnected) reconnected++;
      });
    }
    const started_ms = performance.now();
    // As many as may connect at all, and as many again: the later ones take the places of the earlier.
    const silent = Array.from({ length: 2 * CONNECTIONS_MAX }, () => stranger(connectTcp(address.port, address.host)));
    await Promise.all(silent.map(({ socket }) => once(socket, 'connect')));
    const attempts = 100;
    const wrongKeys = (async () => {
      for (let count = 0; count < attempts; count++) {
        const outcome = await dialAs(1, { clusterKey: OTHER_KEY }).catch((error: Warning) => error.code);
        expect(outcome).toBe('QUORATE_CLUSTER_KEY');
      }
    })();
    await commits(50);
    await wrongKeys;
    await commits(5);
    await waitFor(() => codes().includes('QUORATE_CLUSTER_KEY') && codes().includes('QUORATE_LIMIT'), 'both warnings');
    const intervals = Math.ceil((performance.now() - started_ms) / WARNING_INTERVAL_MS);
    for (const code of new Set(codes())) {
      expect(codes().filter((other) => other === code).length).toBeLessThanOrEqual(intervals);
    }
    expect(reconnected).toBe(0);
  });

  it('is told when a member sends what nobody understands', async () => {
    const member = (cluster.members.find(({ id }) => id !== address.id) as MemberAddress).id;
    const connection = await dialAs(member);
    for (let count = 0; count < 100; count++) connection.send('gossip', count);
    await waitFor(() => warnings.length > 0, 'a warning');
    await commits(5);
    expect(codes()).toEqual(['QUORATE_UNKNOWN_REQUEST']);
    expect(warnings[0]?.message).toContain('"gossip"');
    await connection.close();
  });
});
