// What tests of the control channel share: servers, clients and dialers that close with the test, strangers that speak
// TCP or TLS but not the protocol, and child processes that are ended by pid.
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { connect as connectTcp, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { fileURLToPath } from 'node:url';
import { onTestFinished } from 'vitest';
import { clientTlsOptions, deriveTransportKey } from '#lib/replica/control/cluster-key.js';
import { FrameDecoder } from '#lib/replica/control/frame-decoder.js';
import { decodeFrame, type Frame } from '#lib/replica/control/frames.js';
import { encodeValue } from '#lib/replica/control/message-pack.js';
import {
  ControlClient,
  type ControlClientOptions,
  type ControlConnection,
  ControlServer,
  type ControlServerOptions,
  Dialer,
  type DialerOptions,
} from '#lib/replica/control-channel.js';

export const CLUSTER_KEY = 'a cluster key for tests only';
export const HOST = '127.0.0.1';
/** Where ports are given up and taken again: no other test listens here, so none can take them in between. */
export const HOST_OF_DIALERS = '127.77.0.1';
export const MEMBER_IDS = [0, 1, 2];

type IdentityOptions = Pick<ControlServerOptions, 'memberIds' | 'hello' | 'clusterKey'>;

/** Replica `id` of the test cluster, with the right key. */
export function identity(id: number, more: { bootId?: number; clusterId?: number | null } = {}): IdentityOptions {
  const hello = { id, bootId: 1000 + id, clusterId: null, ...more };
  return { memberIds: MEMBER_IDS, hello: () => hello, clusterKey: CLUSTER_KEY };
}

export interface TestServer {
  readonly server: ControlServer;
  readonly port: number;
  readonly connections: ControlConnection[];
  readonly warnings: (Error & { code: string })[];
}

export async function startServer(more: Partial<ControlServerOptions> = {}, port = 0): Promise<TestServer> {
  const server = new ControlServer({ ...identity(0), ...more });
  const connections: ControlConnection[] = [];
  const warnings: (Error & { code: string })[] = [];
  server.on('connection', (connection) => connections.push(connection));
  server.on('warning', (error) => warnings.push(error));
  const address = await server.listen(HOST, port);
  onTestFinished(() => server.close());
  return { server, port: address.port, connections, warnings };
}

/** Dials as replica 1 unless told otherwise. */
export async function dial(
  port: number,
  more: Partial<ControlClientOptions> = {},
  peerId?: number,
): Promise<ControlConnection> {
  const connection = await new ControlClient({ ...identity(1), ...more }).dial({ host: HOST, port, peerId });
  onTestFinished(() => connection.close());
  return connection;
}

export function makeDialer(port: number, more: Partial<DialerOptions> = {}): Dialer {
  const dialer = new Dialer({ ...identity(1), peerId: 0, host: HOST, port, ...more });
  onTestFinished(() => dialer.close());
  return dialer;
}

/** Both ends of a new connection: replica 0 (incoming) and replica 1 (outgoing). */
export async function connectedPair(): Promise<{
  server: TestServer;
  incoming: ControlConnection;
  outgoing: ControlConnection;
}> {
  const server = await startServer();
  const arrival = once(server.server, 'connection');
  const outgoing = await dial(server.port);
  const [incoming] = (await arrival) as [ControlConnection];
  return { server, incoming, outgoing };
}

/** The error that a promise rejects with. */
export async function rejection(promise: Promise<unknown>): Promise<Error & { code: string; errno?: number }> {
  const outcome = await promise.then(
    (value) => ({ value }),
    (error: Error & { code: string }) => ({ error }),
  );
  if ('error' in outcome) return outcome.error;
  throw new Error(`resolved with ${String(outcome.value)} where a rejection was due`);
}

/** Lets the event loop turn until the condition holds; the test's own time limit bounds it. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}

/** A TCP connection whose errors do not matter; it collects what it is told until it is closed. */
export class StrangerSocket {
  received: Buffer = Buffer.alloc(0);
  readonly closed: Promise<void>;

  constructor(readonly socket: Socket) {
    this.closed = new Promise((resolve) => socket.once('close', () => resolve()));
    socket.on('error', () => {});
    socket.on('data', (chunk) => {
      this.received = Buffer.concat([this.received, chunk]);
    });
    onTestFinished(() => {
      socket.destroy();
    });
  }

  /** Complete frames received so far. */
  frames(): Frame[] {
    const decoder = new FrameDecoder(2 ** 24);
    decoder.push(this.received);
    const frames: Frame[] = [];
    for (let payload = decoder.next(); payload !== undefined; payload = decoder.next())
      frames.push(decodeFrame(payload));
    return frames;
  }
}

export async function connectStranger(port: number): Promise<StrangerSocket> {
  const socket = connectTcp(port, HOST);
  const stranger = new StrangerSocket(socket);
  await once(socket, 'connect');
  return stranger;
}

/** Someone who has the cluster key, but speaks the protocol by hand. */
export async function connectKeyHolder(port: number): Promise<StrangerSocket> {
  const socket = connectTls({ host: HOST, port, ...clientTlsOptions(deriveTransportKey(CLUSTER_KEY)) });
  const stranger = new StrangerSocket(socket);
  await once(socket, 'secureConnect');
  return stranger;
}

/** A frame with any value in it, right or wrong. */
export function frameOf(value: unknown): Buffer {
  const payload = encodeValue(value);
  const header = Buffer.alloc(4);
  header.writeUInt32BE(payload.length);
  return Buffer.concat([header, payload]);
}

const CHILD = fileURLToPath(new URL('fixtures/control-child.mjs', import.meta.url));

/** A child process of fixtures/control-child.mjs; killed with the test if it still runs, also if it is stopped. */
export function startChild(task: string, ...args: (string | number)[]): ChildProcess {
  const child = fork(CHILD, [task, ...args.map(String)], { stdio: ['ignore', 'pipe', 'pipe', 'ipc'] });
  onTestFinished(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  });
  return child;
}
