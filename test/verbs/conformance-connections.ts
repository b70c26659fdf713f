// The connection manager: what it must do on every provider. Both sides are in this process, on two event channels.
import { once } from 'node:events';
import { readdirSync, readlinkSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { afterEach, describe, expect, it } from 'vitest';
import {
  Access,
  type CmAcceptOptions,
  type CmConnectionParameters,
  type CmConnectOptions,
  type CmError,
  CmEventChannel,
  CmEventType,
  type CmId,
  type CmOptions,
  type CmQueuePairOptions,
  errorCode,
  openDevice,
  QpState,
  WcStatus,
  WrOpcode,
} from '#lib/verbs/index.js';
import { pollOne, thrownBy } from './support/ends.js';

export interface ConnectionSetting {
  options: CmOptions;
  /** Device that has the address. */
  device: string;
  /** An address of this host that leads to the device. */
  host: string;
}

/** What a connection needs beside the id. */
function endFor(id: CmId, options: CmQueuePairOptions = {}) {
  const context = openDevice(id.deviceName);
  const domain = context.allocateProtectionDomain();
  const memory = context.allocateMemory({ lengthBytes: 4096 });
  const region = domain.registerMemory(memory, 0, 4096, Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ);
  const queue = context.createCompletionQueue(64);
  const queuePair = id.createQueuePair(domain, { sendCq: queue, ...options });
  const bytes = new Uint8Array(memory.buffer);
  return { context, domain, memory, region, queue, queuePair, bytes };
}

async function failure(promise: Promise<unknown>): Promise<CmError> {
  return promise.then(
    () => Promise.reject(new Error('it did not fail')),
    (error) => error,
  );
}

const text = (bytes: Uint8Array) => Buffer.from(bytes).toString().replace(/\0+$/, '');

export function describeConnections({ options, device, host }: ConnectionSetting): void {
  describe(`connections by the connection manager of ${device}`, () => {
    const closers: (() => void)[] = [];
    afterEach(() => {
      for (const close of closers.splice(0).reverse()) close();
    });

    function channel(): CmEventChannel {
      const opened = CmEventChannel.open(options);
      closers.push(() => opened.close());
      return opened;
    }
    function end(id: CmId, queuePairOptions: CmQueuePairOptions = {}) {
      const made = endFor(id, queuePairOptions);
      closers.push(() => made.context.close());
      return made;
    }
    async function listener(backlog = 4) {
      const id = channel().createId();
      await id.listen({ host, backlog });
      const port = id.localAddress?.port ?? 0;
      expect(port).toBeGreaterThan(0);
      return { id, port, requests: id.requests() };
    }
    async function resolved(port: number): Promise<CmId> {
      const id = channel().createId();
      await id.resolveAddress({ host, port });
      await id.resolveRoute();
      return id;
    }
    async function nextRequest(requests: AsyncGenerator<CmId>): Promise<CmId & { request: CmConnectionParameters }> {
      const { value } = await requests.next();
      const id = value as CmId;
      expect(id.request).not.toBe(null);
      return id as CmId & { request: CmConnectionParameters };
    }
    /** Two ends, connected through the manager. */
    async function connection(
      clientOptions: CmConnectOptions & CmQueuePairOptions = {},
      serverOptions: CmAcceptOptions & CmQueuePairOptions = {},
    ) {
      const { port, requests, id } = await listener();
      const client = await resolved(port);
      const rights = ({ accessFlags }: CmQueuePairOptions) => (accessFlags === undefined ? {} : { accessFlags });
      const { accessFlags: _client, ...connectOptions } = clientOptions;
      const { accessFlags: _server, ...acceptOptions } = serverOptions;
      const clientEnd = end(client, rights(clientOptions));
      const connecting = client.connect(connectOptions);
      const server = await nextRequest(requests);
      const serverEnd = end(server, rights(serverOptions));
      const [answer] = await Promise.all([connecting, server.accept(acceptOptions)]);
      return { listening: id, client, clientEnd, server, serverEnd, answer };
    }

    it('carry private data both ways, and the queue pairs are ready', async () => {
      const sides = await connection(
        { privateData: Buffer.from('from the client'), responderResources: 2, initiatorDepth: 4 },
        { privateData: Buffer.from('from the server') },
      );
      const { client, server, clientEnd, serverEnd, answer } = sides;
      expect(text(server.request.privateData)).toBe('from the client');
      expect(text(answer.privateData)).toBe('from the server');
      // Each field of what arrives matches the other one of what the peer said, rdma_get_cm_event(3).
      expect(server.request).toMatchObject({ responderResources: 4, initiatorDepth: 2 });
      expect(answer).toMatchObject({ responderResources: 2, initiatorDepth: 4 });
      expect([client.deviceName, server.deviceName]).toEqual([device, device]);
      expect([client.connected, server.connected]).toEqual([true, true]);
      expect(client.peerAddress).toMatchObject({ host });
      for (const [own, other] of [
        [clientEnd, serverEnd],
        [serverEnd, clientEnd],
      ] as const) {
        expect(own.queuePair.query()).toMatchObject({ state: QpState.RTS, destQpNum: other.queuePair.number });
      }
      expect(clientEnd.queuePair.query()).toMatchObject({ maxDestRdAtomic: 2, maxRdAtomic: 4 });
      expect(serverEnd.queuePair.query()).toMatchObject({ maxDestRdAtomic: 4, maxRdAtomic: 2 });
    });

    it('carry messages, receives of which were posted before connecting', async () => {
      const { port, requests } = await listener();
      const client = await resolved(port);
      const a = end(client);
      const receive = { wrId: 1, localAddress: a.memory.address + 2048, length: 64, lkey: a.region.lkey };
      expect(a.queuePair.postReceive([receive]).accepted).toBe(1);
      const connecting = client.connect();
      const server = await nextRequest(requests);
      const b = end(server);
      await Promise.all([connecting, server.accept()]);
      b.bytes.fill(0x5a, 0, 64);
      b.queuePair.postSend([
        { wrId: 2, opcode: WrOpcode.SEND, localAddress: b.memory.address, length: 64, lkey: b.region.lkey },
      ]);
      expect(pollOne(b.queue)).toMatchObject({ wrId: 2, status: WcStatus.SUCCESS });
      expect(pollOne(a.queue)).toMatchObject({ wrId: 1, status: WcStatus.SUCCESS, byteLen: 64 });
      expect(a.bytes.subarray(2048, 2112).every((byte) => byte === 0x5a)).toBe(true);
    });

    it('give the peer the rights that were asked for, and none by default', async () => {
      const { clientEnd, serverEnd } = await connection({}, { accessFlags: Access.REMOTE_WRITE });
      const write = (from: typeof clientEnd, to: typeof clientEnd) => {
        from.bytes.fill(0x77, 0, 8);
        from.queuePair.postSend([
          {
            opcode: WrOpcode.RDMA_WRITE,
            localAddress: from.memory.address,
            length: 8,
            lkey: from.region.lkey,
            remoteAddress: to.memory.address + 1024,
            rkey: to.region.rkey,
          },
        ]);
        return pollOne(from.queue).status;
      };
      expect(write(clientEnd, serverEnd)).toBe(WcStatus.SUCCESS);
      expect(serverEnd.bytes[1024]).toBe(0x77);
      expect(write(serverEnd, clientEnd)).not.toBe(WcStatus.SUCCESS);
      expect(clientEnd.bytes[1024]).toBe(0);
    });

    it('end for both sides when one disconnects, which flushes what is outstanding', async () => {
      const { client, server, clientEnd, serverEnd } = await connection();
      const receive = { wrId: 9, localAddress: serverEnd.memory.address, length: 8, lkey: serverEnd.region.lkey };
      serverEnd.queuePair.postReceive([receive]);
      const ended = server.disconnected();
      await client.disconnect();
      await ended;
      await client.disconnected(); // has ended already
      expect([client.connected, server.connected]).toEqual([false, false]);
      expect([clientEnd.queuePair.state, serverEnd.queuePair.state]).toEqual([QpState.ERR, QpState.ERR]);
      expect(pollOne(serverEnd.queue)).toMatchObject({ wrId: 9, status: WcStatus.WR_FLUSH_ERR });
    });

    it('end for the peer when the channel is closed, and the queue pair stays', async () => {
      const { client, server, clientEnd } = await connection();
      const ended = server.disconnected();
      client.channel.close();
      await ended;
      expect([client.closed, client.channel.closed]).toEqual([true, true]);
      expect(thrownBy(() => client.channel.createId()).code).toBe('QUORATE_CLOSED');
      expect(clientEnd.queuePair.closed).toBe(false);
    });

    it('are told of in the order of rdma_cm(7)', async () => {
      const { port, requests } = await listener();
      const client = channel().createId();
      const seen: string[] = [];
      const watching = (async () => {
        for await (const event of client.events()) {
          seen.push(event.name);
          expect(event.status).toBe(0);
          if (event.type === CmEventType.DISCONNECTED) return;
        }
      })();
      await client.resolveAddress({ host, port });
      await client.resolveRoute();
      end(client);
      const connecting = client.connect();
      const server = await nextRequest(requests);
      end(server);
      await Promise.all([connecting, server.accept()]);
      await server.disconnect();
      await watching;
      expect(seen).toEqual(['ADDR_RESOLVED', 'ROUTE_RESOLVED', 'CONNECT_RESPONSE', 'DISCONNECTED']);
    });

    it('are refused with the reason and the private data of the peer', async () => {
      const { port, requests } = await listener();
      const client = await resolved(port);
      end(client);
      const refused = failure(client.connect());
      (await nextRequest(requests)).reject(Buffer.from('not you'));
      const error = await refused;
      expect(error).toMatchObject({ code: 'QUORATE_CM_REJECTED', eventType: CmEventType.REJECTED, status: 28 });
      expect(error.message).toContain('the program at the peer refused');
      expect(text(error.privateData)).toBe('not you');
    });

    it('are refused where nobody listens', async () => {
      const { id, port } = await listener();
      id.close();
      const client = await resolved(port);
      end(client);
      const error = await failure(client.connect());
      expect(error).toMatchObject({ code: 'QUORATE_CM_REJECTED', status: 8 });
      expect(error.message).toContain('nobody listens on that port');
    });

    it('are refused when the listener closes before it took the request', async () => {
      const { id, port } = await listener();
      const client = await resolved(port);
      end(client);
      const refused = failure(client.connect());
      const arrived = (async () => {
        for await (const request of id.requests()) return request;
        throw new Error('the iteration ended');
      })();
      const request = await arrived;
      id.close();
      request.close();
      expect(await refused).toMatchObject({ code: 'QUORATE_CM_REJECTED' });
    });

    it('can be many at one listener', async () => {
      const { port, requests } = await listener(8);
      const clients = await Promise.all([0, 1, 2, 3].map(() => resolved(port)));
      const answers = clients.map((client, index) => {
        end(client);
        return client.connect({ privateData: Uint8Array.of(index) });
      });
      const numbers = new Set<number>();
      for (let i = 0; i < clients.length; i++) {
        const server = await nextRequest(requests);
        numbers.add(server.request.privateData[0] as number);
        end(server);
        await server.accept({ privateData: Uint8Array.of((server.request.privateData[0] as number) + 100) });
      }
      expect([...numbers].sort()).toEqual([0, 1, 2, 3]);
      const received = (await Promise.all(answers)).map((answer) => answer.privateData[0]);
      expect(received).toEqual([100, 101, 102, 103]);
    });

    it('give up when a signal aborts or the time is over', async () => {
      const { port, id } = await listener();
      const aborted = await resolved(port);
      end(aborted);
      const controller = new AbortController();
      const connecting = failure(aborted.connect({ signal: controller.signal }));
      controller.abort(new Error('no longer wanted'));
      expect((await connecting).message).toBe('no longer wanted');
      expect(aborted.closed).toBe(true);

      // Where nobody else has asked: what was aborted may have got through to the other one.
      const second = await listener();
      const calling = await resolved(second.port);
      end(calling);
      const unanswered = failure(calling.connect());
      const accepting = await nextRequest(second.requests);
      end(accepting);
      const later = new AbortController();
      const accepted = failure(accepting.accept({ signal: later.signal }));
      later.abort(new Error('no longer wanted either')); // while the queue pair gets ready
      expect((await accepted).message).toBe('no longer wanted either');
      expect(accepting.closed).toBe(true);
      expect(await unanswered).toMatchObject({ code: 'QUORATE_CM_REJECTED' });

      const late = await resolved(port);
      end(late);
      expect(errorCode(await failure(late.connect({ timeoutMs: 50 })))).toBe('QUORATE_TIMEOUT');
      expect(late.closed).toBe(true);

      const closed = await resolved(port);
      end(closed);
      const closing = failure(closed.connect());
      closed.close();
      expect(errorCode(await closing)).toBe('QUORATE_CLOSED');

      const stop = new AbortController();
      const iteration = (async () => {
        for await (const request of id.requests({ signal: stop.signal })) request.close();
      })();
      stop.abort();
      await iteration;
      expect(errorCode(await failure(id.resolveRoute({ signal: stop.signal })))).toBe(undefined);
    });

    it('refuse what makes no sense', async () => {
      const { port, id, requests } = await listener();
      const fresh = channel().createId();
      expect(fresh.deviceName).toBe('');
      expect(errorCode(await failure(fresh.connect()))).toBe('QUORATE_INVALID_ARGUMENT');
      expect(errorCode(await failure(fresh.accept()))).toBe('QUORATE_INVALID_ARGUMENT');
      expect(errorCode(await failure(fresh.resolveRoute()))).toBe('QUORATE_SYSTEM');
      expect(() => fresh.reject()).toThrow('ids that a listener delivered');
      expect(() => fresh.share()).toThrow('belongs to the thread');
      const other = channel().createId();
      expect(await failure(other.listen({ host, port }))).toMatchObject({ code: 'QUORATE_SYSTEM', errno: 98 });

      const client = await resolved(port);
      const a = end(client);
      expect(() => client.useQueuePair(a.queuePair)).toThrow('has a queue pair already');
      const tooLong = await failure(client.connect({ privateData: new Uint8Array(57) }));
      expect(tooLong).toBeInstanceOf(RangeError);
      expect(tooLong.message).toContain('at most 56 bytes');
      const connecting = client.connect();
      expect((await failure(client.resolveRoute())).message).toContain('busy connecting to');
      const server = await nextRequest(requests);
      end(server);
      expect(errorCode(await failure(server.accept({ privateData: new Uint8Array(197) })))).toBe(
        'QUORATE_OUT_OF_RANGE',
      );
      await Promise.all([connecting, server.accept()]);
      id.close();
      expect(errorCode(await failure(id.listen({ host })))).toBe('QUORATE_CLOSED');
    });

    it('refuse every wrong argument with a code, and nothing has happened', async () => {
      const { port } = await listener();
      const fresh = channel().createId();
      const client = await resolved(port);
      const { domain, queue } = end(client);
      const wrong = [null, 1, 'text', true, Symbol('s'), 1n, [], { host: 1, port: 1 }] as never[];
      const outside = [-1, 0.5, NaN, Infinity, 2 ** 32, 'text', null, 1n] as never[];
      const calls: [string, (value: never) => unknown, never[]][] = [
        ['resolveAddress', (value) => fresh.resolveAddress(value), [undefined as never, ...wrong]],
        ['host', (value) => fresh.resolveAddress({ host: value, port }), [null, 1, '', {}] as never[]],
        [
          'port',
          (value) => fresh.resolveAddress({ host, port: value }),
          [undefined as never, ...outside, 65_536 as never],
        ],
        [
          'timeoutMs',
          (value) => fresh.resolveAddress({ host, port }, { timeoutMs: value }),
          [0 as never, ...outside.filter((v) => v !== null)],
        ],
        ['source', (value) => fresh.resolveAddress({ host, port }, { source: value }), wrong],
        ['listen port', (value) => fresh.listen({ host, port: value }), outside],
        [
          'backlog',
          (value) => fresh.listen({ host, backlog: value }),
          [0 as never, ...outside.filter((v) => v !== null)],
        ],
        ['bindAddress', (value) => fresh.bindAddress(value), [undefined as never, ...wrong]],
        ['domain', (value) => client.createQueuePair(value, { sendCq: queue }), [undefined as never, ...wrong]],
        ['options', (value) => client.createQueuePair(domain, value), [undefined as never, ...wrong]],
        ['useQueuePair', (value) => client.useQueuePair(value), [undefined as never, ...wrong]],
        ['privateData', (value) => client.connect({ privateData: value }), wrong],
        ['flowControl', (value) => client.connect({ flowControl: value }), [1, 'text', {}] as never[]],
        ['open', (value) => CmEventChannel.open(value), [null, 1, 'text', { provider: 'x' }, { other: 1 }] as never[]],
      ];
      for (const name of ['responderResources', 'initiatorDepth', 'retryCount', 'rnrRetryCount', 'timeoutMs']) {
        const values = outside.filter((value) => value !== null);
        calls.push([name, (value) => client.connect({ [name]: value }), [...values, 1e9 as never]]);
      }
      for (const [name, call, values] of calls) {
        for (const value of values) {
          const error = await failure(Promise.resolve().then(() => call(value)));
          const label = `${name} with ${typeof value} ${typeof value === 'object' ? JSON.stringify(value) : String(value)}`;
          expect(['QUORATE_INVALID_ARGUMENT', 'QUORATE_OUT_OF_RANGE'], `${label}: ${error.stack}`).toContain(
            error.code,
          );
        }
      }
      expect([fresh.deviceName, fresh.localAddress, client.connected]).toEqual(['', null, false]);
      await fresh.resolveAddress({ host, port }); // as good as new
    });

    it('go away with a thread that ends in the middle of it', async () => {
      for (let i = 0; i < 2; i++) {
        const worker = new Worker(new URL('fixtures/connections-thread.mjs', import.meta.url), {
          workerData: { options, host },
        });
        const [message] = await once(worker, 'message');
        expect(message).toBe('in the middle');
        await worker.terminate();
      }
      const { client, server } = await connection(); // all is as before
      expect([client.connected, server.connected]).toEqual([true, true]);
    });

    it('leave no descriptor behind', async () => {
      // Those of the connection manager: sockets (shm), and the kernel's (RDMA devices) with what watches it.
      const descriptors = () =>
        readdirSync('/proc/self/fd').filter((number) => {
          try {
            return /^socket:|rdma_cm|eventpoll/.test(readlinkSync(`/proc/self/fd/${number}`));
          } catch {
            return false; // that with which the folder is read
          }
        }).length;
      const round = async () => {
        await (await connection()).client.disconnect();
        for (const close of closers.splice(0).reverse()) close();
        await new Promise((resolve) => setImmediate(resolve)); // sockets and watchers close in the event loop
      };
      await round();
      const before = descriptors();
      for (let i = 0; i < 10; i++) await round();
      await expect.poll(descriptors, { timeout: 20_000 }).toBeLessThanOrEqual(before);
    });
  });
}
