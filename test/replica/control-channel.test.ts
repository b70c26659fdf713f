// The control channel between replicas: who is let in, what either side does when the other misbehaves, is slow or is
// gone, and that nothing is left behind. Strangers, limits and failures are real sockets and processes.
import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import { type ConnectionOptions, connect as connectTls } from 'node:tls';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { LAYOUT_VERSION } from '#lib/consensus/limits.js';
import { QuorateError } from '#lib/errors.js';
import { isLoopback, isUnspecified } from '#lib/replica/control/address.js';
import { clientTlsOptions, deriveTransportKey } from '#lib/replica/control/cluster-key.js';
import { Deadline } from '#lib/replica/control/deadline.js';
import { retryDelayMs } from '#lib/replica/control/dialer.js';
import {
  BLOB_QUEUE_BYTES,
  BLOB_WINDOW_BYTES,
  CONNECTIONS_MAX,
  DIAL_DELAY_MAX_MS,
  DIAL_DELAY_MIN_MS,
  PROTOCOL_VERSION,
  QUEUE_BYTES_MAX,
  QUEUE_RESERVE_BYTES,
} from '#lib/replica/control/limits.js';
import { RejectionLog } from '#lib/replica/control/rejections.js';
import {
  ControlClient,
  type ControlConnection,
  ControlServer,
  type IncomingBlob,
} from '#lib/replica/control-channel.js';
import {
  CLUSTER_KEY,
  connectedPair,
  connectKeyHolder,
  connectStranger,
  dial,
  frameOf,
  HOST,
  HOST_OF_DIALERS,
  identity,
  makeDialer,
  rejection,
  StrangerSocket,
  startChild,
  startServer,
  until,
} from './control-fixture.js';

const TIMEOUT_MS = 60_000;
const OTHER_KEY = 'another cluster key for tests';

/** Bytes without a meaning, the same in every run. */
function noise(firstByte: number, lengthBytes: number): Buffer {
  const bytes = Buffer.alloc(lengthBytes);
  for (let index = 0, state = firstByte; index < lengthBytes; index++) {
    bytes[index] = state >>> 24 || firstByte;
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  }
  bytes[0] = firstByte;
  return bytes;
}

describe('the cluster key', () => {
  it('lets in who has it, at both ends, and says who is there', async () => {
    const { incoming, outgoing } = await connectedPair();
    expect(outgoing.peer).toMatchObject({ id: 0, bootId: 1000, clusterId: null });
    expect(incoming.peer).toMatchObject({ id: 1, bootId: 1001, clusterId: null });
    expect([incoming.isIncoming, outgoing.isIncoming]).toEqual([true, false]);
  });

  it('may be bytes or text', async () => {
    const { port } = await startServer({ clusterKey: Buffer.from(CLUSTER_KEY) });
    await dial(port, { clusterKey: CLUSTER_KEY });
  });

  it('that is another one is told apart from a peer that is not up, every time', async () => {
    const { server, port, warnings } = await startServer();
    const rounds = 20;
    for (let round = 0; round < rounds; round++) {
      const error = await rejection(dial(port, { clusterKey: OTHER_KEY }));
      expect(error).toMatchObject({
        code: 'QUORATE_CLUSTER_KEY',
        message: expect.stringContaining(`${HOST}:${port} has another`),
      });
    }
    await until(() => server.rejectedConnections['QUORATE_CLUSTER_KEY'] === rounds);
    expect(warnings.map((error) => error.code)).toEqual(['QUORATE_CLUSTER_KEY']);
    await server.close();
    const refused = await rejection(dial(port));
    expect(refused).toMatchObject({ code: 'QUORATE_CONNECTION_REFUSED', errno: 111, syscall: 'connect' });
  });

  it('that only one side has is reported by both', async () => {
    const withKey = await startServer();
    expect((await rejection(dial(withKey.port, { clusterKey: undefined }))).code).toBe('QUORATE_CLUSTER_KEY');
    await until(() => withKey.warnings.length === 1);
    expect(withKey.warnings[0]?.code).toBe('QUORATE_CLUSTER_KEY');
    const withoutKey = await startServer({ clusterKey: undefined });
    const error = await rejection(dial(withoutKey.port));
    expect(error).toMatchObject({
      code: 'QUORATE_CLUSTER_KEY',
      message: expect.stringContaining('without a cluster key'),
    });
    await until(() => withoutKey.warnings.length === 1);
    expect(withoutKey.warnings[0]?.code).toBe('QUORATE_CLUSTER_KEY');
  });

  it('is refused if it is too short, too long or no key at all', () => {
    for (const clusterKey of ['fifteen bytes!!', '', new Uint8Array(15), 'x'.repeat(1025), 16 as unknown as string]) {
      const attempt = () => new ControlServer({ ...identity(0), clusterKey });
      expect(attempt).toThrow(expect.objectContaining({ code: 'QUORATE_CLUSTER_KEY' }));
      expect(() => new ControlClient({ ...identity(0), clusterKey })).toThrow(
        expect.objectContaining({ code: 'QUORATE_CLUSTER_KEY' }),
      );
    }
    new ControlServer({ ...identity(0), clusterKey: new Uint8Array(16) });
  });

  it('may be missing on loopback only', async () => {
    const { port } = await startServer({ clusterKey: undefined });
    const connection = await dial(port, { clusterKey: undefined });
    expect(connection.peer.id).toBe(0);
    for (const host of ['0.0.0.0', '::', '192.0.2.1']) {
      const server = new ControlServer({ ...identity(0), clusterKey: undefined });
      expect((await rejection(server.listen(host, 0))).code).toBe('QUORATE_CLUSTER_KEY');
      await server.close();
    }
    const server = new ControlServer(identity(0));
    await server.listen('0.0.0.0', 0);
    await server.close();
  });
});

describe('addresses', () => {
  it('that are numeric and never leave the host count as loopback, nothing else', () => {
    for (const address of ['127.0.0.1', '127.255.0.9', '::1', '::ffff:127.0.0.1'])
      expect(isLoopback(address)).toBe(true);
    for (const address of [
      '0.0.0.0',
      '::',
      '10.0.0.1',
      '128.0.0.1',
      '::2',
      '::ffff:10.0.0.1',
      'localhost',
      '',
      undefined,
      '127.0.0.1.x',
    ]) {
      expect(isLoopback(address)).toBe(false);
    }
  });

  it('that stand for every address of the host are told from those of one', () => {
    for (const address of ['0.0.0.0', '::', '0:0:0:0:0:0:0:0', '::ffff:0.0.0.0'])
      expect(isUnspecified(address)).toBe(true);
    for (const address of ['127.0.0.1', '::1', '10.0.0.0', 'localhost', '', '0'])
      expect(isUnspecified(address)).toBe(false);
  });

  it('that are in use are reported as such', async () => {
    const { port } = await startServer();
    const second = new ControlServer(identity(0));
    const error = await rejection(second.listen(HOST, port));
    expect(error).toMatchObject({
      code: 'QUORATE_ADDRESS_IN_USE',
      errno: 98,
      message: expect.stringContaining('another process'),
    });
    await second.close();
  });

  it('that make no sense are refused', async () => {
    for (const [host, port, code] of [
      ['', 0, 'QUORATE_INVALID_ARGUMENT'],
      [HOST, -1, 'QUORATE_OUT_OF_RANGE'],
      [HOST, 65_536, 'QUORATE_OUT_OF_RANGE'],
      ['192.0.2.1', 0, 'QUORATE_SYSTEM'],
    ] as const) {
      const server = new ControlServer(identity(0));
      expect((await rejection(server.listen(host, port))).code).toBe(code);
      await server.close();
    }
  });
});

describe('strangers', () => {
  it.each([
    ['an HTTP request', Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')],
    ['noise', noise(0x99, 5000)],
    ['an SSH banner', Buffer.from('SSH-2.0-OpenSSH_9.2\r\n')],
    [
      'a record that starts a handshake and holds noise',
      Buffer.concat([Buffer.from([0x16, 3, 1, 0, 200]), noise(0xff, 200)]),
    ],
  ])('that send %s are closed, counted and reported', async (_what, bytes) => {
    const { server, port, warnings } = await startServer();
    const stranger = await connectStranger(port);
    stranger.socket.write(bytes);
    await stranger.closed;
    await until(() => server.socketCount === 0);
    expect(server.rejectedConnections).toEqual({ QUORATE_PROTOCOL: 1 });
    expect(warnings.map((error) => error.code)).toEqual(['QUORATE_PROTOCOL']);
    expect((await dial(port)).peer.id).toBe(0);
  });

  it.each([
    ['nothing at all', Buffer.alloc(0)],
    ['half a TLS record', Buffer.from([0x16, 3, 1, 0x02, 0, 1, 0, 1])],
    ['one byte', Buffer.from([0x16])],
  ])('that send %s and wait are closed when their time is up', async (_what, bytes) => {
    const { server, port, warnings } = await startServer({ handshakeTimeoutMs: 50 });
    const stranger = await connectStranger(port);
    if (bytes.length > 0) stranger.socket.write(bytes);
    await stranger.closed;
    await until(() => server.socketCount === 0);
    expect(server.rejectedConnections).toEqual({ QUORATE_TIMEOUT: 1 });
    expect(warnings.map((error) => error.code)).toEqual(['QUORATE_TIMEOUT']);
  });

  it('that send half a record are closed for the time they took by a server that was blocked meanwhile, too', async () => {
    const { server, port } = await startServer({ handshakeTimeoutMs: 200 });
    const stranger = await connectStranger(port);
    stranger.socket.write(Buffer.from([0x16, 3, 1, 0x02, 0, 1, 0, 1]));
    await until(() => server.socketCount === 1);
    // The server hands the socket to TLS within these turns; then its own limit and that of TLS are due at once.
    for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
    const blockedUntil_ms = performance.now() + 300;
    while (performance.now() < blockedUntil_ms);
    await stranger.closed;
    await until(() => server.socketCount === 0);
    expect(server.rejectedConnections).toEqual({ QUORATE_TIMEOUT: 1 });
  });

  it('that send byte after byte, never silent for long, are closed all the same when their time is up', async () => {
    const { server, port } = await startServer({ handshakeTimeoutMs: 200 });
    const stranger = await connectStranger(port);
    // A ClientHello of 128 KiB whose first record of 16 KiB never comes to its end.
    stranger.socket.write(Buffer.from([0x16, 3, 1, 0x3e, 0x80, 0x01, 0x01, 0xff, 0xff]));
    const drip = setInterval(() => stranger.socket.write(Buffer.alloc(1)), 1);
    await stranger.closed;
    clearInterval(drip);
    await until(() => server.socketCount === 0);
    expect(server.rejectedConnections).toEqual({ QUORATE_TIMEOUT: 1 });
  });

  it('that have the key but do not come to the end of their hello are closed when their time is up', async () => {
    const { server, port } = await startServer({ handshakeTimeoutMs: 2_000 });
    const stranger = await connectKeyHolder(port);
    stranger.socket.write(
      frameOf([0, { protocolVersion: PROTOCOL_VERSION, layoutVersion: LAYOUT_VERSION, id: 1 }]).subarray(0, -1),
    );
    await stranger.closed;
    await until(() => server.socketCount === 0);
    expect(server.rejectedConnections).toEqual({ QUORATE_TIMEOUT: 1 });
  });

  const psk = deriveTransportKey(CLUSTER_KEY);
  it.each<[string, ConnectionOptions]>([
    ['TLS with certificates', {}],
    ['TLS 1.3', { minVersion: 'TLSv1.3' }],
    [
      'the right key under another name',
      { ...clientTlsOptions(psk), pskCallback: () => ({ psk, identity: 'someone/1' }) },
    ],
  ])('that offer %s are turned away in the handshake', async (_what, options) => {
    const { server, port, warnings, connections } = await startServer();
    const socket = connectTls({ host: HOST, port, rejectUnauthorized: false, ...options });
    let isSecure = false;
    socket.once('secureConnect', () => {
      isSecure = true;
    });
    await new StrangerSocket(socket).closed;
    await until(() => server.socketCount === 0);
    expect(isSecure).toBe(false);
    expect(server.rejectedConnections).toEqual({ QUORATE_PROTOCOL: 1 });
    expect(warnings.map((error) => error.code)).toEqual(['QUORATE_PROTOCOL']);
    expect(connections).toEqual([]);
  });

  it('that send an endless handshake are closed after a bounded number of bytes', async () => {
    const { server, port } = await startServer();
    const stranger = await connectStranger(port);
    let arrivedBytes = 0;
    const record = Buffer.concat([Buffer.from([0x16, 3, 1, 0x3e, 0x80]), Buffer.alloc(16_000)]);
    // A ClientHello of 128 KiB, the most that OpenSSL takes, that goes on and on.
    record.set([0x01, 0x01, 0xff, 0xff], 5);
    while (!stranger.socket.destroyed && arrivedBytes < 64 * 1024 * 1024) {
      arrivedBytes = stranger.socket.bytesWritten;
      if (!stranger.socket.write(record))
        await Promise.race([once(stranger.socket, 'drain').catch(() => {}), stranger.closed]);
      record.fill(0, 5);
    }
    await stranger.closed;
    await until(() => server.socketCount === 0);
    expect(server.rejectedConnections).toEqual({ QUORATE_PROTOCOL: 1 });
    // What the kernel had buffered on both sides comes on top of what the server took.
    expect(arrivedBytes).toBeLessThan(16 * 1024 * 1024);
  });

  it('that announce a huge frame first, where no key is needed, are closed at its header', async () => {
    const { server, port } = await startServer({ clusterKey: undefined });
    const stranger = await connectStranger(port);
    stranger.socket.write(Buffer.from([0x00, 0x40, 0x00, 0x00]));
    await stranger.closed;
    await until(() => server.rejectedConnections['QUORATE_PROTOCOL'] === 1);
  });

  it('in great numbers make one warning, and leave room for members', async () => {
    const { server, port, warnings, connections } = await startServer({ handshakeTimeoutMs: TIMEOUT_MS });
    const idle: StrangerSocket[] = [];
    // One after the other: the first is the one that makes room.
    for (let count = 0; count < CONNECTIONS_MAX; count++) idle.push(await connectStranger(port));
    await until(() => server.socketCount === CONNECTIONS_MAX);
    const member = await dial(port);
    await until(() => connections.length === 1);
    expect(server.socketCount).toBeLessThanOrEqual(CONNECTIONS_MAX);
    await idle[0]?.closed;
    expect(server.rejectedConnections).toEqual({ QUORATE_LIMIT: 1 });
    for (const stranger of idle.slice(1)) stranger.socket.write('GET / HTTP/1.1\r\n\r\n');
    await Promise.all(idle.map((stranger) => stranger.closed));
    await until(() => server.rejectedConnections['QUORATE_PROTOCOL'] === CONNECTIONS_MAX - 1);
    expect(warnings.map((error) => error.code)).toEqual(['QUORATE_LIMIT', 'QUORATE_PROTOCOL']);
    expect(member.isClosed).toBe(false);
  });

  it('that leave are no reason to warn', async () => {
    const { server, port, warnings } = await startServer();
    const stranger = await connectStranger(port);
    await until(() => server.socketCount === 1);
    stranger.socket.destroy();
    await until(() => server.rejectedConnections['QUORATE_DISCONNECTED'] === 1);
    expect(server.socketCount).toBe(0);
    expect(warnings).toEqual([]);
  });

  it('at the other end are found out by the client too', async () => {
    const answers: [string, Buffer][] = [
      ['QUORATE_PROTOCOL', Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')],
      ['QUORATE_DISCONNECTED', Buffer.alloc(0)],
    ];
    for (const [code, answer] of answers) {
      const service = createServer((socket) => {
        socket.on('error', () => {});
        socket.once('data', () => socket.end(answer));
      }).listen(0, HOST);
      await once(service, 'listening');
      const { port } = service.address() as { port: number };
      expect((await rejection(dial(port))).code).toBe(code);
      await new Promise((resolve) => service.close(resolve));
    }
  });

  it('at the other end that never answer cost no more than the timeout', async () => {
    const sockets = new Set<{ destroy(): void }>();
    const service = createServer((socket) => {
      socket.on('error', () => {});
      sockets.add(socket);
    }).listen(0, HOST);
    await once(service, 'listening');
    const { port } = service.address() as { port: number };
    const error = await rejection(new ControlClient(identity(1)).dial({ host: HOST, port }, { timeoutMs: 50 }));
    expect(error).toMatchObject({ code: 'QUORATE_TIMEOUT', message: expect.stringContaining('TLS handshake') });
    const controller = new AbortController();
    const cancelled = rejection(
      new ControlClient(identity(1)).dial({ host: HOST, port }, { signal: controller.signal }),
    );
    await until(() => sockets.size === 2);
    controller.abort();
    expect((await cancelled).code).toBe('QUORATE_CANCELLED');
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => service.close(resolve));
  });

  it('are reported once in a while, with what was left out', () => {
    const reports: string[] = [];
    let now_ms = 0;
    const log = new RejectionLog(
      (error) => reports.push(error.message),
      () => now_ms,
    );
    const record = (code: string) => log.record(new QuorateError(code, `as ${code}`));
    for (let count = 0; count < 5; count++) record('QUORATE_PROTOCOL');
    record('QUORATE_TIMEOUT');
    now_ms = 9_999;
    record('QUORATE_PROTOCOL');
    now_ms = 10_000;
    record('QUORATE_PROTOCOL');
    expect(reports).toEqual([
      'connection rejected: as QUORATE_PROTOCOL',
      'connection rejected: as QUORATE_TIMEOUT',
      'connection rejected: as QUORATE_PROTOCOL (and 5 more of this kind since the last report)',
    ]);
    for (let index = 0; index < 1000; index++) record(`QUORATE_INVENTED_${index}`);
    expect(Object.keys(log.counts()).length).toBeLessThanOrEqual(33);
    expect(log.counts()).toMatchObject({ QUORATE_PROTOCOL: 7, QUORATE_TIMEOUT: 1, QUORATE_OTHER: 970 });
  });
});

describe('the hello', () => {
  it.each([
    ['the same id', { ...identity(0, { bootId: 77 }) }, 'QUORATE_DUPLICATE_ID', 'same id 0'],
    ['its own hello', identity(0), 'QUORATE_DUPLICATE_ID', 'itself'],
    ['an id that is no member', { ...identity(9), memberIds: [0, 9] }, 'QUORATE_NOT_A_MEMBER', 'replica 9'],
    ['a list without the server', { ...identity(1), memberIds: [1, 2] }, 'QUORATE_NOT_A_MEMBER', 'replica 0'],
    ['another cluster', identity(1, { clusterId: 6 }), 'QUORATE_CLUSTER_MISMATCH', 'cluster'],
  ])('with %s is refused with the same code at both ends', async (_what, client, code, text) => {
    const { server, port, warnings, connections } = await startServer(identity(0, { clusterId: 5 }));
    const error = await rejection(dial(port, client));
    expect(error).toMatchObject({ code, message: expect.stringContaining(text) });
    await until(() => server.socketCount === 0 && warnings.length === 1);
    expect(warnings[0]?.code).toBe(code);
    expect(connections).toEqual([]);
  });

  it('of a replica that is in no cluster yet is accepted by one that is', async () => {
    const { port } = await startServer(identity(0, { clusterId: 5 }));
    expect((await dial(port, identity(1, { clusterId: null }))).peer.clusterId).toBe(5);
  });

  it('of another replica than the one dialed is refused with the same code at both ends', async () => {
    const { port, warnings } = await startServer();
    expect((await rejection(dial(port, {}, 2))).code).toBe('QUORATE_UNEXPECTED_ID');
    await until(() => warnings.length === 1);
    expect(warnings[0]?.code).toBe('QUORATE_UNEXPECTED_ID');
  });

  it.each([
    ['protocol', { protocolVersion: PROTOCOL_VERSION + 1, layoutVersion: LAYOUT_VERSION }],
    ['memory layout', { protocolVersion: PROTOCOL_VERSION, layoutVersion: LAYOUT_VERSION + 1 }],
    [
      'protocol, and nothing else that is understood',
      { protocolVersion: PROTOCOL_VERSION + 6, layoutVersion: LAYOUT_VERSION, id: 'one' },
    ],
  ])('of another version of the %s is refused by its version, whatever else it says', async (_what, versions) => {
    const { server, port } = await startServer();
    const peer = await connectKeyHolder(port);
    peer.socket.write(frameOf([0, { id: 1, bootId: 1, clusterId: null, ...versions }]));
    await peer.closed;
    expect(peer.frames().map((frame) => frame.kind)).toEqual([0, 2]);
    expect(peer.frames()[1]).toMatchObject({ error: { code: 'QUORATE_VERSION' } });
    await until(() => server.rejectedConnections['QUORATE_VERSION'] === 1);
  });

  it.each([
    ['no hello but a request', [3, 1, 'link', null]],
    ['an acceptance before a hello', [1]],
    [
      'a hello without an id',
      [0, { protocolVersion: PROTOCOL_VERSION, layoutVersion: LAYOUT_VERSION, bootId: 1, clusterId: null }],
    ],
    [
      'a hello with a huge id',
      [0, { protocolVersion: PROTOCOL_VERSION, layoutVersion: LAYOUT_VERSION, id: 16, bootId: 1, clusterId: null }],
    ],
    [
      'a hello with a fractional boot id',
      [0, { protocolVersion: PROTOCOL_VERSION, layoutVersion: LAYOUT_VERSION, id: 1, bootId: 0.5, clusterId: null }],
    ],
    [
      'a hello with a boot id that no configuration may have',
      [
        0,
        { protocolVersion: PROTOCOL_VERSION, layoutVersion: LAYOUT_VERSION, id: 1, bootId: 2 ** 48, clusterId: null },
      ],
    ],
    ['a hello that is text', [0, 'hello']],
    ['a hello larger than the limit', [0, { padding: 'x'.repeat(20_000) }]],
  ])('refuses %s', async (_what, frame) => {
    const { server, port, connections } = await startServer();
    const peer = await connectKeyHolder(port);
    peer.socket.write(frameOf(frame));
    await peer.closed;
    expect(peer.frames().at(-1)).toMatchObject({ kind: 2, error: { code: 'QUORATE_PROTOCOL' } });
    await until(() => server.socketCount === 0);
    expect(connections).toEqual([]);
  });
});

describe('requests', () => {
  it('are answered, in any order, many at a time, in both directions', async () => {
    const { incoming, outgoing } = await connectedPair();
    const waiting: (() => void)[] = [];
    incoming.onRequest('reverse', async (body) => {
      await new Promise<void>((resolve) => waiting.push(resolve));
      return { twice: (body as number) * 2 };
    });
    outgoing.onRequest('who', () => 'one');
    const answers = Array.from({ length: 500 }, (_, index) => outgoing.request('reverse', index, TIMEOUT_MS));
    expect(await incoming.request('who', null, TIMEOUT_MS)).toBe('one');
    await until(() => waiting.length === 500);
    for (const release of waiting.reverse()) release();
    expect(await Promise.all(answers)).toEqual(Array.from({ length: 500 }, (_, index) => ({ twice: index * 2 })));
    expect(outgoing.outstandingRequests).toBe(0);
  });

  it('carry plain data and bytes unchanged', async () => {
    const { incoming, outgoing } = await connectedPair();
    incoming.onRequest('echo', (body) => body);
    const body = {
      gid: new Uint8Array([1, 2, 255]),
      psn: 2 ** 24 - 1,
      address: 2 ** 52 + 1,
      list: [null, true, 'ü', -1.5],
      none: undefined,
    };
    const answer = (await outgoing.request('echo', body, TIMEOUT_MS)) as typeof body;
    expect(Uint8Array.from(answer.gid)).toEqual(body.gid);
    expect(answer).toMatchObject({ psn: body.psn, address: body.address, list: body.list, none: null });
    expect(await outgoing.request('echo', undefined, TIMEOUT_MS)).toBeNull();
  });

  it('that arrive with the last frame of the hello find the handlers that "connection" registered', async () => {
    const { port, server } = await startServer();
    server.on('connection', (connection) => connection.onRequest('first', () => 'found'));
    const peer = await connectKeyHolder(port);
    const hello = frameOf([
      0,
      { protocolVersion: PROTOCOL_VERSION, layoutVersion: LAYOUT_VERSION, id: 1, bootId: 1, clusterId: null },
    ]);
    peer.socket.write(Buffer.concat([hello, frameOf([1]), frameOf([3, 1, 'first', null])]));
    await until(() => peer.frames().length === 3);
    expect(peer.frames()[2]).toMatchObject({ kind: 4, id: 1, body: 'found' });
  });

  it('bring back the code of the error that the handler threw, also from a later turn', async () => {
    const { incoming, outgoing } = await connectedPair();
    incoming.onRequest('now', () => {
      throw new QuorateError('QUORATE_NOT_READY', 'not yet', { errno: 11, syscall: 'ibv_poll' });
    });
    incoming.onRequest('later', async () => {
      await new Promise((resolve) => setImmediate(resolve));
      throw new QuorateError('QUORATE_NO_DEVICE', 'no such device');
    });
    const now = await rejection(outgoing.request('now', null, TIMEOUT_MS));
    expect(now).toMatchObject({ code: 'QUORATE_NOT_READY', errno: 11, syscall: 'ibv_poll' });
    expect(now.message).toMatch(/not yet.*replica 0/);
    expect((await rejection(outgoing.request('later', null, TIMEOUT_MS))).code).toBe('QUORATE_NO_DEVICE');
    expect((await rejection(outgoing.request('nobody', null, TIMEOUT_MS))).code).toBe('QUORATE_UNKNOWN_REQUEST');
    expect(outgoing.isClosed).toBe(false);
  });

  it('whose handler has a defect are reported at both ends', async () => {
    const { incoming, outgoing } = await connectedPair();
    incoming.onRequest('defect', () => (undefined as unknown as { x: number }).x);
    incoming.onRequest('odd', () => new Date());
    const warnings: Error[] = [];
    incoming.on('warning', (error) => warnings.push(error));
    expect((await rejection(outgoing.request('defect', null, TIMEOUT_MS))).code).toBe('QUORATE_INTERNAL');
    expect((await rejection(outgoing.request('odd', null, TIMEOUT_MS))).code).toBe('QUORATE_INVALID_ARGUMENT');
    expect(warnings).toHaveLength(2);
  });

  it('without an answer time out, and an answer that comes later does no harm', async () => {
    const { incoming, outgoing } = await connectedPair();
    const waiting: (() => void)[] = [];
    incoming.onRequest('slow', () => new Promise<void>((resolve) => waiting.push(resolve)));
    incoming.onRequest('echo', (body) => body);
    const error = await rejection(outgoing.request('slow', null, 20));
    expect(error).toMatchObject({ code: 'QUORATE_TIMEOUT', message: expect.stringContaining('"slow" within 20 ms') });
    expect(outgoing.outstandingRequests).toBe(0);
    await until(() => waiting.length === 1);
    waiting[0]?.();
    expect(await outgoing.request('echo', 1, TIMEOUT_MS)).toBe(1);
  });

  it('do not time out for an answer that came while this process was blocked', async () => {
    const service = createServer().listen(0, HOST);
    await once(service, 'listening');
    const arrival = once(service, 'connection');
    const stranger = await connectStranger((service.address() as { port: number }).port);
    const [peer] = (await arrival) as [Socket];
    const outcome = await new Promise<string>((resolve) => {
      setImmediate(() => {
        const deadline = new Deadline(1, () => resolve('timed out'));
        stranger.socket.once('data', () => {
          deadline.clear();
          resolve('heard');
        });
        peer.write('answer'); // the kernel has it when this returns
        const blockedUntil_ms = performance.now() + 10;
        while (performance.now() < blockedUntil_ms);
      });
    });
    expect(outcome).toBe('heard');
    peer.destroy();
    await new Promise((resolve) => service.close(resolve));
  });

  it('and messages are bounded in size, number and queue', async () => {
    const { incoming, outgoing } = await connectedPair();
    incoming.onRequest('never', () => new Promise(() => {}));
    expect((await rejection(outgoing.request('never', Buffer.alloc(4 * 1024 * 1024), TIMEOUT_MS))).code).toBe(
      'QUORATE_LIMIT',
    );
    const requests = Array.from({ length: 1024 }, () => rejection(outgoing.request('never', null, TIMEOUT_MS)));
    expect((await rejection(outgoing.request('never', null, TIMEOUT_MS))).code).toBe('QUORATE_BACKPRESSURE');
    const large = Buffer.alloc(3 * 1024 * 1024);
    const flood = () => {
      for (let count = 0; count < 10; count++) outgoing.send('unread', large);
    };
    expect(flood).toThrow(expect.objectContaining({ code: 'QUORATE_BACKPRESSURE' }));
    expect(outgoing.queuedBytes).toBeLessThanOrEqual(16 * 1024 * 1024);
    await outgoing.close();
    const codes = (await Promise.all(requests)).map((error) => error.code);
    expect(new Set(codes)).toEqual(new Set(['QUORATE_CLOSED']));
  });

  it('with arguments that make no sense are refused', async () => {
    const { outgoing } = await connectedPair();
    for (const timeoutMs of [0, -1, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect((await rejection(outgoing.request('x', null, timeoutMs))).code).toBe('QUORATE_OUT_OF_RANGE');
    }
    for (const type of ['', 'with space', 'x'.repeat(65), '9', null as unknown as string]) {
      expect((await rejection(outgoing.request(type, null, 10))).code).toBe('QUORATE_INVALID_ARGUMENT');
      expect(() => outgoing.onRequest(type, () => null)).toThrow(
        expect.objectContaining({ code: 'QUORATE_INVALID_ARGUMENT' }),
      );
    }
    expect((await rejection(outgoing.request('x', { when: new Date() }, 10))).code).toBe('QUORATE_INVALID_ARGUMENT');
  });

  it('reject when the connection ends, with the reason', async () => {
    const first = await connectedPair();
    first.incoming.onRequest('never', () => new Promise(() => {}));
    const pending = rejection(first.outgoing.request('never', null, TIMEOUT_MS));
    await first.incoming.close(new QuorateError('QUORATE_SHUTDOWN', 'going away'));
    expect(await pending).toMatchObject({
      code: 'QUORATE_SHUTDOWN',
      message: expect.stringContaining('may have been executed'),
    });
    const second = await connectedPair();
    second.incoming.onRequest('never', () => new Promise(() => {}));
    const cut = rejection(second.outgoing.request('never', null, TIMEOUT_MS));
    second.incoming.destroy();
    expect((await cut).code).toBe('QUORATE_DISCONNECTED');
    expect((await rejection(second.outgoing.request('never', null, TIMEOUT_MS))).code).toBe('QUORATE_DISCONNECTED');
  });
});

describe('messages', () => {
  it('arrive in order', async () => {
    const { incoming, outgoing } = await connectedPair();
    const received: unknown[] = [];
    incoming.onMessage('count', (body) => received.push(body));
    for (let index = 0; index < 1000; index++) outgoing.send('count', index);
    await until(() => received.length === 1000);
    expect(received).toEqual(Array.from({ length: 1000 }, (_, index) => index));
  });

  it('that nobody handles, or whose handler fails, are reported where they are dropped', async () => {
    const { incoming, outgoing } = await connectedPair();
    const codes: string[] = [];
    incoming.on('warning', (error) => codes.push(error.code));
    incoming.onMessage('defect', async () => {
      throw new Error('defect');
    });
    for (let index = 0; index < 100; index++) outgoing.send('unknown', index);
    for (let index = 0; index < 100; index++) outgoing.send(`unknown-${index}`, index);
    outgoing.send('defect', null);
    await until(() => codes.includes('QUORATE_INTERNAL'));
    expect(codes.filter((code) => code === 'QUORATE_UNKNOWN_REQUEST')).toHaveLength(16);
  });
});

describe('a peer that breaks the protocol', () => {
  const hello = frameOf([
    0,
    { protocolVersion: PROTOCOL_VERSION, layoutVersion: LAYOUT_VERSION, id: 1, bootId: 1, clusterId: null },
  ]);

  it.each([
    ['an oversized frame', Buffer.from([0x00, 0x40, 0x00, 0x01])],
    ['a frame of no length', Buffer.alloc(4)],
    ['a frame that is not MessagePack', Buffer.from([0, 0, 0, 1, 0xc1])],
    ['an extension', Buffer.from([0, 0, 0, 7, 0x91, 0xc7, 3, 1, 0, 0, 0])],
    ['an unknown kind', frameOf([77])],
    ['a second hello', hello],
    ['an answer to no question', frameOf([4, 1, null])],
    ['a chunk of no blob', frameOf([8, 1, new Uint8Array(1)])],
    ['a blob out of turn', frameOf([7, 2, 'snapshot', 10, null])],
    [
      'more of a blob than announced',
      Buffer.concat([frameOf([7, 1, 'snapshot', 10, null]), frameOf([8, 1, new Uint8Array(11)])]),
    ],
    [
      'more of a blob than its window',
      Buffer.concat([
        frameOf([7, 1, 'snapshot', 8 * 1024 * 1024, null]),
        ...Array.from({ length: 17 }, () => frameOf([8, 1, new Uint8Array(256 * 1024)])),
      ]),
    ],
    [
      'more small chunks than the window has room for',
      Buffer.concat([
        frameOf([7, 1, 'snapshot', 8192, null]),
        ...Array.from({ length: 1025 }, () => frameOf([8, 1, new Uint8Array(1)])),
      ]),
    ],
    ['credit for no blob', frameOf([9, 1, 10])],
  ])('by %s is told so and disconnected', async (_what, bytes) => {
    const { server, port } = await startServer();
    server.on('connection', (connection) => connection.onBlobStream('snapshot', () => new Promise(() => {})));
    const arrival = once(server, 'connection');
    const peer = await connectKeyHolder(port);
    peer.socket.write(Buffer.concat([hello, frameOf([1])]));
    const [connection] = (await arrival) as [ControlConnection];
    const closed = once(connection, 'close');
    peer.socket.write(bytes);
    expect((await closed)[0]).toMatchObject({ code: 'QUORATE_PROTOCOL' });
    await peer.closed;
    expect(peer.frames().at(-1)).toMatchObject({ kind: 2, error: { code: 'QUORATE_PROTOCOL' } });
    await until(() => server.socketCount === 0);
  });

  it('by never reading its answers is disconnected before they fill the memory', async () => {
    const { server, port } = await startServer();
    const answer = Buffer.alloc(1024 * 1024);
    let executed = 0;
    let queuedMax = 0;
    const warnings: Error[] = [];
    server.on('connection', (connection) => {
      connection.on('warning', (error) => warnings.push(error));
      connection.onRequest('large', () => {
        executed++;
        queuedMax = Math.max(queuedMax, connection.queuedBytes);
        return answer;
      });
    });
    const arrival = once(server, 'connection');
    const peer = await connectKeyHolder(port);
    peer.socket.write(Buffer.concat([hello, frameOf([1])]));
    const [connection] = (await arrival) as [ControlConnection];
    const closed = once(connection, 'close');
    peer.socket.pause();
    // Even of the shortest answer, which says that a request was refused, this many do not fit.
    const requests = Math.ceil((QUEUE_BYTES_MAX + QUEUE_RESERVE_BYTES) / 64);
    peer.socket.write(Buffer.concat(Array.from({ length: requests }, (_, id) => frameOf([3, id + 1, 'large', null]))));
    expect((await closed)[0]).toMatchObject({ code: 'QUORATE_BACKPRESSURE' });
    // What waits in the queue, and what the kernel holds in the buffers of both ends.
    expect(executed).toBeLessThan(64);
    expect(queuedMax).toBeLessThanOrEqual(QUEUE_BYTES_MAX);
    expect(warnings).toEqual([]);
  });

  it('by asking for the same failure again and again makes one warning', async () => {
    const { incoming, outgoing } = await connectedPair();
    const warnings: QuorateError[] = [];
    incoming.on('warning', (error) => warnings.push(error));
    incoming.onRequest('defect', () => (undefined as unknown as { x: number }).x);
    const requests = Array.from({ length: 500 }, () => rejection(outgoing.request('defect', null, TIMEOUT_MS)));
    const codes = (await Promise.all(requests)).map((error) => error.code);
    expect(new Set(codes)).toEqual(new Set(['QUORATE_INTERNAL']));
    expect(warnings.map((error) => error.code)).toEqual(['QUORATE_INTERNAL']);
  });
});

describe('blobs', () => {
  /** Bytes that differ from place to place. */
  function pattern(lengthBytes: number): Buffer {
    const bytes = Buffer.alloc(lengthBytes);
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, Math.floor(lengthBytes / 4));
    for (let index = 0, word = 1; index < words.length; index++) {
      word = (Math.imul(word, 1664525) + 1013904223) >>> 0;
      words[index] = word;
    }
    return bytes;
  }

  it.each([0, 1, 256 * 1024, 5_000_003])('of %i bytes arrive whole, with what goes with them', async (lengthBytes) => {
    const { incoming, outgoing } = await connectedPair();
    const bytes = pattern(lengthBytes);
    incoming.onBlob('snapshot', (received, body) => ({ same: bytes.equals(received), body }));
    const result = await outgoing.sendBlob('snapshot', bytes, TIMEOUT_MS, { body: { lsn: 17 } });
    expect(result).toEqual({ same: true, body: { lsn: 17 } });
  });

  it('come from an async source as well', async () => {
    const { incoming, outgoing } = await connectedPair();
    const bytes = pattern(1_000_000);
    incoming.onBlob('snapshot', (received) => bytes.equals(received));
    const source = async function* () {
      for (let start = 0; start < bytes.length; start += 7777) yield bytes.subarray(start, start + 7777);
    };
    expect(await outgoing.sendBlob('snapshot', source(), TIMEOUT_MS, { lengthBytes: bytes.length })).toBe(true);
  });

  it('of 64 MiB with a slow reader hold up neither memory nor requests', { timeout: 120_000 }, async () => {
    const { incoming, outgoing } = await connectedPair();
    const lengthBytes = 64 * 1024 * 1024;
    const bytes = pattern(lengthBytes);
    let queuedMax = 0;
    let bufferedMax = 0;
    let answered = 0;
    incoming.onRequest('echo', (body) => body);
    incoming.onBlobStream('snapshot', async (blob: IncomingBlob) => {
      let position = 0;
      let chunks = 0;
      for await (const chunk of blob) {
        if (!bytes.subarray(position, position + chunk.length).equals(chunk))
          throw new QuorateError('QUORATE_TEST', `differs at ${position}`);
        position += chunk.length;
        bufferedMax = Math.max(bufferedMax, blob.bufferedBytes);
        queuedMax = Math.max(queuedMax, outgoing.queuedBytes);
        if (++chunks % 16 === 0) {
          // Reads no further until the sender has used up the window, and a request has been answered meanwhile.
          await until(() => blob.receivedBytes === lengthBytes || blob.bufferedBytes > BLOB_WINDOW_BYTES / 2);
          await outgoing.request('echo', chunks, TIMEOUT_MS);
          answered++;
        }
      }
      return position;
    });
    expect(await outgoing.sendBlob('snapshot', bytes, 110_000)).toBe(lengthBytes);
    expect(answered).toBe(16);
    expect(bufferedMax).toBeGreaterThan(BLOB_WINDOW_BYTES / 2);
    expect(bufferedMax).toBeLessThanOrEqual(BLOB_WINDOW_BYTES);
    expect(queuedMax).toBeLessThanOrEqual(BLOB_QUEUE_BYTES + 512 * 1024);
  });

  it('are refused beyond what the receiver wants, and where nobody wants them', async () => {
    const { incoming, outgoing } = await connectedPair();
    incoming.onBlob('snapshot', () => null, 1000);
    expect((await rejection(outgoing.sendBlob('snapshot', pattern(1001), TIMEOUT_MS))).code).toBe('QUORATE_LIMIT');
    expect((await rejection(outgoing.sendBlob('unknown', pattern(10), TIMEOUT_MS))).code).toBe(
      'QUORATE_UNKNOWN_REQUEST',
    );
    expect(await outgoing.sendBlob('snapshot', pattern(1000), TIMEOUT_MS)).toBeNull();
  });

  it('bring back the code of the error that the receiver threw, in the middle or at the end', async () => {
    const { incoming, outgoing } = await connectedPair();
    incoming.onBlobStream('middle', async (blob) => {
      for await (const _chunk of blob) throw new QuorateError('QUORATE_SNAPSHOT_INVALID', 'no good');
    });
    incoming.onBlob('end', () => {
      throw new QuorateError('QUORATE_NOT_FOLLOWER', 'leads');
    });
    incoming.onBlobStream('partly', async (blob) => {
      for await (const _chunk of blob) break;
    });
    const bytes = pattern(20_000_000);
    expect((await rejection(outgoing.sendBlob('middle', bytes, TIMEOUT_MS))).code).toBe('QUORATE_SNAPSHOT_INVALID');
    expect((await rejection(outgoing.sendBlob('end', bytes, TIMEOUT_MS))).code).toBe('QUORATE_NOT_FOLLOWER');
    expect((await rejection(outgoing.sendBlob('partly', bytes, TIMEOUT_MS))).code).toBe('QUORATE_CANCELLED');
    expect(outgoing.isClosed).toBe(false);
  });

  it('that the sender gives up fail at the receiver too', async () => {
    const { incoming, outgoing } = await connectedPair();
    const failures: string[] = [];
    incoming.onBlobStream('snapshot', async (blob) => {
      try {
        for await (const _chunk of blob);
      } catch (error) {
        failures.push((error as { code: string }).code);
      }
    });
    const broken = async function* () {
      yield pattern(1000);
      throw new QuorateError('QUORATE_SYSTEM', 'the source broke');
    };
    expect((await rejection(outgoing.sendBlob('snapshot', broken(), TIMEOUT_MS, { lengthBytes: 2000 }))).code).toBe(
      'QUORATE_SYSTEM',
    );
    for (const lengthBytes of [999, 1001]) {
      const source = (async function* () {
        yield pattern(1000);
      })();
      expect((await rejection(outgoing.sendBlob('snapshot', source, TIMEOUT_MS, { lengthBytes }))).code).toBe(
        'QUORATE_INVALID_ARGUMENT',
      );
    }
    const controller = new AbortController();
    const hanging = (async function* () {
      yield pattern(1000);
      controller.abort();
      await new Promise(() => {});
    })();
    const options = { lengthBytes: 2000, signal: controller.signal };
    expect((await rejection(outgoing.sendBlob('snapshot', hanging, TIMEOUT_MS, options))).code).toBe(
      'QUORATE_CANCELLED',
    );
    await until(() => failures.length === 4);
    expect(failures).toEqual([
      'QUORATE_SYSTEM',
      'QUORATE_INVALID_ARGUMENT',
      'QUORATE_INVALID_ARGUMENT',
      'QUORATE_CANCELLED',
    ]);
  });

  it('time out when the receiver does not read, and are limited in number', async () => {
    const { incoming, outgoing } = await connectedPair();
    let opened = 0;
    let release = () => {};
    const released = new Promise<void>((resolve) => (release = resolve));
    incoming.onBlobStream('snapshot', () => {
      opened++;
      return released;
    });
    const bytes = pattern(10_000_000);
    const four = Array.from({ length: 4 }, () => rejection(outgoing.sendBlob('snapshot', bytes, 300)));
    expect((await rejection(outgoing.sendBlob('snapshot', bytes, TIMEOUT_MS))).code).toBe('QUORATE_BACKPRESSURE');
    expect((await Promise.all(four)).map((error) => error.code)).toEqual(Array(4).fill('QUORATE_TIMEOUT'));
    await until(() => opened === 4);
    // The handlers still hang, and hold their places: more is refused, but not a reason to disconnect.
    expect((await rejection(outgoing.sendBlob('snapshot', bytes, TIMEOUT_MS))).code).toBe('QUORATE_BACKPRESSURE');
    release();
    incoming.onBlob('other', (received) => received.length);
    expect(await outgoing.sendBlob('other', bytes, TIMEOUT_MS)).toBe(bytes.length);
  });

  it('without a length, or too long, are refused', async () => {
    const { outgoing } = await connectedPair();
    const source = (async function* () {
      yield new Uint8Array(1);
    })();
    expect((await rejection(outgoing.sendBlob('x', source, 10))).code).toBe('QUORATE_INVALID_ARGUMENT');
    expect((await rejection(outgoing.sendBlob('x', source, 10, { lengthBytes: 2 ** 30 + 1 }))).code).toBe(
      'QUORATE_LIMIT',
    );
    expect((await rejection(outgoing.sendBlob('x', source, 0, { lengthBytes: 1 }))).code).toBe('QUORATE_OUT_OF_RANGE');
  });

  it('fail at once when the receiving process is killed', async () => {
    const server = await startServer();
    const arrival = once(server.server, 'connection');
    const child = startChild('receive', server.port);
    const [connection] = (await arrival) as [ControlConnection];
    const sending = rejection(connection.sendBlob('snapshot', pattern(64 * 1024 * 1024), TIMEOUT_MS));
    const [message] = await once(child, 'message');
    expect(message).toBe('received a chunk');
    child.kill('SIGKILL');
    expect((await sending).code).toBe('QUORATE_DISCONNECTED');
    expect(connection.isClosed).toBe(true);
  });

  it('fail at once when the sending process is killed', async () => {
    const server = await startServer();
    let consumedBytes = 0;
    const failed = new Promise<{ code: string }>((resolve) => {
      server.server.on('connection', (connection) => {
        connection.onBlobStream('snapshot', async (blob) => {
          try {
            for await (const chunk of blob) {
              consumedBytes += chunk.length;
              if (consumedBytes === 2_000_000) child.kill('SIGKILL');
            }
          } catch (error) {
            resolve(error as { code: string });
          }
        });
      });
    });
    const child = startChild('send', server.port, 4_000_000);
    expect((await failed).code).toBe('QUORATE_DISCONNECTED');
    expect(consumedBytes).toBe(2_000_000);
  });

  it('to a process that is stopped time out', async () => {
    const server = await startServer();
    const arrival = once(server.server, 'connection');
    const child = startChild('receive', server.port);
    const [connection] = (await arrival) as [ControlConnection];
    child.kill('SIGSTOP');
    const error = await rejection(connection.sendBlob('snapshot', pattern(64 * 1024 * 1024), 500));
    expect(error.code).toBe('QUORATE_TIMEOUT');
    expect(connection.queuedBytes).toBeLessThanOrEqual(BLOB_QUEUE_BYTES + 512 * 1024);
    child.kill('SIGCONT');
  });
});

describe('a server', () => {
  it('serves many connections, and keeps the newest of each peer', async () => {
    const memberIds = Array.from({ length: 16 }, (_, id) => id);
    const { server, port, connections, warnings } = await startServer({ memberIds });
    server.on('connection', (connection) => connection.onRequest('echo', (body) => body));
    const dialed: ControlConnection[] = [];
    for (let id = 1; id < 16; id++) {
      for (let count = 0; count < 4; count++) dialed.push(await dial(port, { ...identity(id), memberIds }));
    }
    await until(() => connections.length === 60);
    expect(server.connections.size).toBe(60);
    expect(await Promise.all(dialed.map((connection, index) => connection.request('echo', index, TIMEOUT_MS)))).toEqual(
      dialed.map((_, index) => index),
    );
    const replaced = once(dialed[0] as ControlConnection, 'close');
    const fifth = await dial(port, { ...identity(1), memberIds });
    expect((await replaced)[0]).toMatchObject({ code: 'QUORATE_LIMIT' });
    expect(await fifth.request('echo', 'fifth', TIMEOUT_MS)).toBe('fifth');
    expect(warnings.map((error) => error.code)).toEqual(['QUORATE_LIMIT']);
  });

  it('closes all connections in good order, once', async () => {
    const { server, port } = await startServer();
    const connection = await dial(port);
    await connectStranger(port);
    await until(() => server.socketCount === 2);
    const closed = once(connection, 'close');
    await Promise.all([server.close(), server.close()]);
    expect((await closed)[0]).toMatchObject({ code: 'QUORATE_PEER_CLOSED' });
    await until(() => server.socketCount === 0);
    expect((await rejection(server.listen(HOST, 0))).code).toBe('QUORATE_INVALID_ARGUMENT');
  });

  it('that was closed does not listen any more', async () => {
    const server = new ControlServer(identity(0));
    await server.close();
    expect((await rejection(server.listen(HOST, 0))).code).toBe('QUORATE_CLOSED');
  });
});

describe('closing a connection', () => {
  it('still delivers what was sent before', async () => {
    const { incoming, outgoing } = await connectedPair();
    const received: number[] = [];
    incoming.onMessage('bulk', (body) => received.push((body as Uint8Array).length));
    for (let count = 0; count < 10; count++) outgoing.send('bulk', Buffer.alloc(1_000_000));
    const closed = once(incoming, 'close');
    await outgoing.close();
    expect((await closed)[0]).toMatchObject({ code: 'QUORATE_PEER_CLOSED' });
    expect(received).toEqual(Array(10).fill(1_000_000));
  });

  it('emits "close" once, without an error at the side that closed', async () => {
    const { incoming, outgoing } = await connectedPair();
    const events: unknown[] = [];
    outgoing.on('close', (error) => events.push(error));
    await Promise.all([outgoing.close(), outgoing.close(), incoming.close()]);
    outgoing.destroy();
    await outgoing.close();
    expect(events).toHaveLength(1);
    expect(() => outgoing.send('x', null)).toThrow(
      expect.objectContaining({ code: expect.stringMatching(/^QUORATE_(PEER_)?CLOSED$/) }),
    );
  });

  it('does not depend on the peer', async () => {
    const { port, server } = await startServer();
    const arrival = once(server, 'connection');
    const child = startChild('receive', port);
    const [connection] = (await arrival) as [ControlConnection];
    child.kill('SIGSTOP');
    await connection.close();
    expect(server.socketCount).toBe(0);
    child.kill('SIGCONT');
  });
});

describe('a dialer', () => {
  it('reaches a peer that comes up later, and again after each restart', async () => {
    const reserved = new ControlServer(identity(0));
    const { port } = await reserved.listen(HOST_OF_DIALERS, 0);
    await reserved.close();
    const dialer = makeDialer(port, { host: HOST_OF_DIALERS });
    const failure = once(dialer, 'failed');
    const warnings: Error[] = [];
    dialer.on('warning', (error) => warnings.push(error));
    dialer.start();
    expect((await failure)[0]).toMatchObject({ code: 'QUORATE_CONNECTION_REFUSED' });
    expect(dialer.lastError?.code).toBe('QUORATE_CONNECTION_REFUSED');
    for (let life = 1; life <= 3; life++) {
      const connected = once(dialer, 'connected');
      const server = new ControlServer(identity(0, { bootId: life }));
      server.on('connection', (connection) => connection.onRequest('life', () => life));
      await server.listen(HOST_OF_DIALERS, port);
      const [connection] = (await connected) as [ControlConnection];
      expect(dialer.connection).toBe(connection);
      expect(dialer.lastError).toBeUndefined();
      expect(connection.peer.bootId).toBe(life);
      expect(await connection.request('life', null, TIMEOUT_MS)).toBe(life);
      const disconnected = once(dialer, 'disconnected');
      await server.close();
      expect((await disconnected)[0]).toMatchObject({ code: 'QUORATE_PEER_CLOSED' });
      expect(dialer.connection).toBeUndefined();
    }
    expect(warnings).toEqual([]);
  });

  it('that waits before its next attempt makes it at once when the peer has been heard of', async () => {
    const reserved = new ControlServer(identity(0));
    const { port } = await reserved.listen(HOST_OF_DIALERS, 0);
    await reserved.close();
    // No time passes for it.
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    onTestFinished(() => void vi.useRealTimers());
    const dialer = makeDialer(port, { host: HOST_OF_DIALERS });
    let attempts = 0;
    dialer.on('failed', () => attempts++);
    dialer.hurry(); // it was not started yet
    const failure = once(dialer, 'failed');
    dialer.start();
    await failure;
    const again = once(dialer, 'failed');
    dialer.hurry();
    dialer.hurry(); // an attempt is under way
    await again;
    expect(attempts).toBe(2);
    const server = new ControlServer(identity(0));
    onTestFinished(() => server.close());
    await server.listen(HOST_OF_DIALERS, port);
    const connected = once(dialer, 'connected');
    dialer.hurry();
    await connected;
    const { connection } = dialer;
    dialer.hurry(); // it is connected
    await new Promise(setImmediate);
    expect(dialer.connection).toBe(connection);
  });

  it('warns once of a reason that will not pass by itself, and goes on trying', async () => {
    const { port } = await startServer({ clusterKey: OTHER_KEY });
    const dialer = makeDialer(port);
    const codes: string[] = [];
    let attempts = 0;
    dialer.on('warning', (error) => codes.push(error.code));
    dialer.on('failed', () => attempts++);
    dialer.start();
    await until(() => attempts >= 4);
    expect(codes).toEqual(['QUORATE_CLUSTER_KEY']);
  });

  it('warns once of each of two reasons that alternate', async () => {
    let attempts = 0;
    const hello = () => ({
      bootId: 1000,
      ...(attempts % 2 === 0 ? { id: 2, clusterId: null } : { id: 0, clusterId: 5 }),
    });
    const { port } = await startServer({ hello });
    const dialer = makeDialer(port, identity(1, { clusterId: 6 }));
    const codes: string[] = [];
    dialer.on('warning', (error) => codes.push(error.code));
    dialer.on('failed', () => attempts++);
    dialer.start();
    await until(() => attempts >= 6);
    expect(codes).toEqual(['QUORATE_UNEXPECTED_ID', 'QUORATE_CLUSTER_MISMATCH']);
  });

  it('accepts nobody but the peer it was told', async () => {
    const { port } = await startServer({ ...identity(2) });
    const dialer = makeDialer(port, { peerId: 0 });
    const warning = once(dialer, 'warning');
    dialer.start();
    expect((await warning)[0]).toMatchObject({ code: 'QUORATE_UNEXPECTED_ID' });
    expect(dialer.connection).toBeUndefined();
  });

  it('waits longer each time, up to the limit, with jitter', () => {
    expect(Array.from({ length: 8 }, (_, index) => retryDelayMs(index + 1, () => 0))).toEqual([
      20, 40, 80, 160, 320, 500, 500, 500,
    ]);
    for (let failures = 1; failures < 40; failures++) {
      for (const random of [0, 0.5, 0.999999]) {
        const delayMs = retryDelayMs(failures, () => random);
        expect(delayMs).toBeGreaterThanOrEqual(DIAL_DELAY_MIN_MS);
        expect(delayMs).toBeLessThanOrEqual(DIAL_DELAY_MAX_MS);
      }
    }
    expect(retryDelayMs(10, () => 0.5)).toBe(375);
  });

  it('stops when it is closed, whatever it is doing, and leaves no socket', async () => {
    const sockets = () => process.getActiveResourcesInfo().filter((name) => /TCPSocket|TLS/.test(name));
    const server = new ControlServer(identity(0));
    const { port } = await server.listen(HOST_OF_DIALERS, 0);
    const make = () => makeDialer(port, { host: HOST_OF_DIALERS });
    const connecting = make();
    connecting.start();
    await connecting.close();
    const connected = make();
    connected.start();
    await once(connected, 'connected');
    expect(sockets().length).toBeGreaterThan(0);
    const disconnected = once(connected, 'disconnected');
    await connected.close();
    expect((await disconnected)[0]).toBeUndefined();
    await server.close();
    expect(sockets()).toEqual([]);
    const waiting = make();
    waiting.start();
    await once(waiting, 'failed');
    expect(sockets()).toEqual([]);
    await waiting.close();
    const closedByListener = make();
    const failed = once(closedByListener, 'failed');
    closedByListener.on('failed', () => void closedByListener.close());
    closedByListener.start();
    await failed;
    await closedByListener.close();
    expect(sockets()).toEqual([]);
  });
});

describe('the process', () => {
  it.each([
    ['close', 'closed, left: \n'],
    ['unref', 'unreferenced\n'],
  ])('exits by itself after %s', async (task, output) => {
    const child = startChild(task);
    let printed = '';
    let complaints = '';
    child.stdout?.on('data', (chunk: Buffer) => (printed += chunk.toString()));
    child.stderr?.on('data', (chunk: Buffer) => (complaints += chunk.toString()));
    expect(await once(child, 'close')).toEqual([0, null]);
    expect([printed, complaints]).toEqual([output, '']);
  });
});
