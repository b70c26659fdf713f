// The connection manager of the shm device, and what that of RDMA devices says where there is none.
import { spawn } from 'node:child_process';
import { getEventListeners, once } from 'node:events';
import { chmodSync, existsSync, mkdirSync, readdirSync, readlinkSync } from 'node:fs';
import { connect } from 'node:net';
import { constants } from 'node:os';
import { basename, join } from 'node:path';
import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';
import { CmEventChannel, type CmId, errorCode, listDevices, openDevice } from '#lib/verbs/index.js';
import { decodeFrame, encodeFrame, FrameReader, FrameType, MAX_FRAME_BYTES } from '../../dist/verbs/cm/shm-frames.js';
import { describeConnections } from './conformance-connections.js';
import { thrownBy } from './support/ends.js';
import { filesIn, useShmDirectory } from './support/shm-directory.js';

const directory = useShmDirectory();
const SHM = { provider: 'shm' } as const;
const HOST = '127.0.0.1';

describeConnections({ options: SHM, device: 'shm', host: HOST });

const closers: (() => void)[] = [];
afterEach(() => {
  for (const close of closers.splice(0).reverse()) close();
});
function channel(): CmEventChannel {
  const opened = CmEventChannel.open(SHM);
  closers.push(() => opened.close());
  return opened;
}
function queuePairFor(id: CmId): void {
  const context = openDevice(id.deviceName);
  closers.push(() => context.close());
  id.createQueuePair(context.allocateProtectionDomain(), { sendCq: context.createCompletionQueue(8) });
}
async function client(port: number): Promise<CmId> {
  const id = channel().createId();
  await id.resolveAddress({ host: 'localhost', port });
  await id.resolveRoute();
  queuePairFor(id);
  return id;
}
async function listening(): Promise<{ id: CmId; port: number }> {
  const id = channel().createId();
  await id.listen({ host: HOST });
  return { id, port: id.localAddress?.port ?? 0 };
}

/** Connects an id that knows its route; the listener refuses, and what it was asked is returned. */
async function refuse(id: CmId, listener: CmId) {
  queuePairFor(id);
  const connecting = id.connect().catch(errorCode);
  const { value: request } = await listener.requests().next();
  request?.reject();
  expect(await connecting).toBe('QUORATE_CM_REJECTED');
  return request;
}

describe('the address that a connection comes from', () => {
  /** What the listener is told of a client. */
  async function peerSeen(resolve: (id: CmId, port: number) => Promise<void>, host?: string): Promise<unknown> {
    const { id: listener, port } = await listening();
    const id = channel().createId();
    await resolve(id, port);
    await id.resolveRoute();
    const request = await refuse(id, listener);
    expect(request?.peerAddress).toEqual({ ...id.localAddress, ...(host === undefined ? {} : { host }) });
    return id.localAddress;
  }

  it('is the source that was asked for', async () => {
    const source = { host: '127.0.0.2', port: 7 };
    expect(await peerSeen((id, port) => id.resolveAddress({ host: HOST, port }, { source }))).toEqual(source);
  });

  it('is the one that the id was bound to', async () => {
    const own = { host: '127.0.0.2', port: 8 };
    const seen = peerSeen(async (id, port) => {
      await id.bindAddress(own);
      await id.resolveAddress({ host: HOST, port });
    });
    expect(await seen).toEqual(own);
  });

  it('is an IPv6 address where the peer was called by one', async () => {
    const seen = await peerSeen((id, port) => id.resolveAddress({ host: '::1', port }));
    expect(seen).toMatchObject({ host: '::1' });
  });

  it('is the one that is called where the id is bound to all of them', async () => {
    const own = { host: '0.0.0.0', port: 9 };
    const seen = peerSeen(async (id, port) => {
      await id.bindAddress(own);
      await id.resolveAddress({ host: '127.0.0.3', port });
    }, '127.0.0.3');
    expect(await seen).toEqual(own);
  });

  it('must be one of this host, and a port that nobody has', async () => {
    const { port } = await listening();
    const refusal = (source: { host: string; port?: number }) =>
      channel()
        .createId()
        .resolveAddress({ host: HOST, port }, { source })
        .catch((error) => error.errno);
    expect(await refusal({ host: '192.0.2.1' })).toBe(constants.errno.EADDRNOTAVAIL);
    expect(await refusal({ host: HOST, port })).toBe(constants.errno.EADDRINUSE);
  });
});

describe('addresses of this host', () => {
  it('may be written in any way that IPv6 allows', async () => {
    const listener = channel().createId();
    await listener.listen({ host: '0:0:0:0:0:0:0:1' });
    const port = listener.localAddress?.port ?? 0;
    await channel().createId().resolveAddress({ host: '::0001', port });
    const elsewhere = channel().createId().resolveAddress({ host: '2001:DB8::1', port });
    expect(await elsewhere.catch(errorCode)).toBe('QUORATE_CM_UNREACHABLE');
  });
});

describe('a folder that is named relative to the working directory', () => {
  it('stays the one that it was when the channel was opened', async () => {
    const portsAndFolders = () => filesIn(directory).filter((name) => /^cm-|^quorate-/.test(name));
    const before = portsAndFolders();
    const workingDirectory = process.cwd();
    closers.push(() => process.chdir(workingDirectory));
    process.chdir('/dev/shm');
    const opened = CmEventChannel.open({ ...SHM, shmDirectory: basename(directory) });
    closers.push(() => opened.close());
    const listener = opened.createId();
    await listener.listen({ host: HOST });
    const port = listener.localAddress?.port ?? 0;
    process.chdir(directory);
    const id = opened.createId();
    await id.resolveAddress({ host: HOST, port });
    await id.resolveRoute();
    await refuse(id, listener);
    listener.close();
    expect(portsAndFolders()).toEqual(before);
  });
});

describe('events of an id', () => {
  it('are let go of by an iteration that ends before it began, and with the id', async () => {
    const id = channel().createId();
    const { signal } = new AbortController();
    const listeners = () => getEventListeners(signal, 'abort').length;
    const events = id.events({ signal });
    expect(listeners()).toBe(1);
    await events.return();
    expect(listeners()).toBe(0);
    expect(await events.next()).toEqual({ done: true, value: undefined });
    id.events({ signal });
    id.close();
    expect(listeners()).toBe(0);
    const none = id.events({ signal }); // the id is closed already
    expect(listeners()).toBe(0);
    expect(await none.next()).toEqual({ done: true, value: undefined });
  });

  it('are those from the call on, also if the iteration begins later', async () => {
    const id = channel().createId();
    const events = id.events();
    await id.resolveAddress({ host: HOST, port: 1 });
    await id.resolveRoute();
    id.close();
    const names: string[] = [];
    for await (const { name } of events) names.push(name);
    expect(names).toEqual(['ADDR_RESOLVED', 'ROUTE_RESOLVED']);
  });
});

describe('connect()', () => {
  it('gives up when the signal aborts while its queue pair gets ready, and tells the peer', async () => {
    const { id: listener, port } = await listening();
    const calling = await client(port);
    const { queuePair } = calling;
    if (queuePair === undefined) throw new Error('it has none');
    const controller = new AbortController();
    const modifyAsync = queuePair.modifyAsync.bind(queuePair);
    queuePair.modifyAsync = async (attributes) => {
      controller.abort(new Error('no longer wanted'));
      await modifyAsync(attributes);
    };
    const connecting = calling.connect({ signal: controller.signal }).catch((error: Error) => error.message);
    for await (const request of listener.requests()) {
      queuePairFor(request);
      expect(await request.accept().catch(errorCode)).toBe('QUORATE_CM_REJECTED');
      break;
    }
    expect(await connecting).toBe('no longer wanted');
    expect(calling.closed).toBe(true);
  });
});

describe('resolveAddress()', () => {
  it('gives up when the signal aborts while the name is looked up, and closes the id', async () => {
    const id = channel().createId();
    const controller = new AbortController();
    const resolving = id.resolveAddress({ host: 'localhost', port: 1 }, { signal: controller.signal });
    controller.abort(new Error('no longer wanted'));
    expect(id.closed).toBe(true);
    await expect(resolving).rejects.toThrow('no longer wanted');
  });

  it('counts as under way while the name is looked up', async () => {
    const id = channel().createId();
    const resolving = id.resolveAddress({ host: 'localhost', port: 1 });
    expect(await id.resolveAddress({ host: HOST, port: 2 }).catch(errorCode)).toBe('QUORATE_INVALID_ARGUMENT');
    await resolving;
    expect(id.peerAddress?.port).toBe(1);
  });
});

describe('an operation that is given up', () => {
  it.each(['signal', 'timeoutMs'] as const)('(%s) ends also if the id cannot be closed, and says so', async (how) => {
    const { port } = await listening();
    const id = await client(port);
    const { native } = id;
    native.close = () => {
      throw new Error('the id could not be destroyed');
    };
    const controller = new AbortController();
    const connecting = id.connect(how === 'signal' ? { signal: controller.signal } : { timeoutMs: 1 });
    controller.abort(new Error('no longer wanted'));
    await expect(connecting).rejects.toThrow('could not be destroyed');
    expect(id.closed).toBe(false);
    Reflect.deleteProperty(native, 'close');
  });
});

describe('a name without an address', () => {
  it.each([
    ['resolveAddress', (id: CmId, host: string) => id.resolveAddress({ host, port: 1 })],
    ['bindAddress', (id: CmId, host: string) => id.bindAddress({ host })],
    ['listen', (id: CmId, host: string) => id.listen({ host })],
  ] as const)('is told by %s() with a code', async (_, call) => {
    const name = 'a'.repeat(64); // longer than a label can be: no server has to be asked
    const error = await call(channel().createId(), name).catch((thrown: Error) => thrown);
    expect(errorCode(error)).toBe('QUORATE_CM_UNREACHABLE');
    expect((error as Error).message).toContain(name);
    expect((error as Error).cause).toMatchObject({ syscall: 'getaddrinfo' });
  });
});

describe('the connection manager of RDMA devices', () => {
  const devices = listDevices().filter(({ provider }) => provider === 'ibverbs');
  it.skipIf(devices.length > 0)('says what is missing where there is no device', () => {
    const error = thrownBy(() => CmEventChannel.open());
    expect(['QUORATE_NO_LIBRARY', 'QUORATE_NO_DEVICE']).toContain(error.code);
    expect(error.message).toMatch(/apt-get install librdmacm1|modprobe rdma_ucm/);
  });

  it('is not asked for by mistake', () => {
    for (const options of [{ provider: 'tcp' }, { shmDirectory: '/tmp' }, { device: 'shm' }]) {
      expect(thrownBy(() => CmEventChannel.open(options as never)).code).toBe('QUORATE_INVALID_ARGUMENT');
    }
  });
});

describe('the connection manager of shared memory', () => {
  it('connects only within this host', async () => {
    const error = await channel()
      .createId()
      .resolveAddress({ host: '192.0.2.1', port: 7000 })
      .catch((caught) => caught);
    expect(error).toMatchObject({ code: 'QUORATE_CM_UNREACHABLE', errno: 113 });
    const listener = channel().createId();
    expect(await listener.listen({ host: '192.0.2.1' }).catch(errorCode)).toBe('QUORATE_SYSTEM');
  });

  it('frees a port when the listener closes, and takes over that of a process that was killed', async () => {
    const { id, port } = await listening();
    id.close();
    const script = `
      import { CmEventChannel } from 'quorate/verbs';
      const id = CmEventChannel.open({ provider: 'shm' }).createId();
      await id.listen({ host: '${HOST}', port: ${port} });
      console.log('listening');
      for await (const request of id.requests()) request.close();`;
    const child = spawn(process.execPath, ['--input-type=module', '--eval', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    try {
      await once(child.stdout, 'data');
      const taken = channel().createId();
      expect(await taken.listen({ host: HOST, port }).catch((error) => error)).toMatchObject({ errno: 98 });
    } finally {
      child.kill('SIGKILL');
    }
    await once(child, 'close');
    expect(existsSync(join(directory, `cm-${port}.sock`))).toBe(true); // it left it behind
    const heir = channel().createId();
    await heir.listen({ host: HOST, port });
    const requests = heir.requests();
    const connecting = (await client(port)).connect();
    const request = (await requests.next()).value as CmId;
    queuePairFor(request);
    await Promise.all([connecting, request.accept()]);
  });

  it('tells a side that the other was killed', async () => {
    const { id, port } = await listening();
    const script = `
      import { CmEventChannel, openDevice } from 'quorate/verbs';
      const id = CmEventChannel.open({ provider: 'shm' }).createId();
      await id.resolveAddress({ host: '${HOST}', port: ${port} });
      await id.resolveRoute();
      const context = openDevice(id.deviceName);
      id.createQueuePair(context.allocateProtectionDomain(), { sendCq: context.createCompletionQueue(8) });
      await id.connect();
      await id.disconnected();`;
    const child = spawn(process.execPath, ['--input-type=module', '--eval', script], { stdio: 'inherit' });
    const request = (await id.requests().next()).value as CmId;
    queuePairFor(request);
    await request.accept();
    child.kill('SIGKILL');
    await request.disconnected();
    expect(request.connected).toBe(false);
  });

  it('keeps no socket to a process that is stopped when it has given that up', async () => {
    const port = 20_002;
    const script = `
      import { CmEventChannel } from 'quorate/verbs';
      await CmEventChannel.open({ provider: 'shm' }).createId().listen({ host: '${HOST}', port: ${port} });
      setInterval(() => {}, 1000);
      console.log('listening');`;
    const child = spawn(process.execPath, ['--input-type=module', '--eval', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const sockets = () =>
      readdirSync('/proc/self/fd').filter((number) => {
        try {
          return readlinkSync(`/proc/self/fd/${number}`).startsWith('socket:');
        } catch {
          return false; // that with which the folder is read
        }
      }).length;
    try {
      await once(child.stdout, 'data');
      child.kill('SIGSTOP');
      const calling = await client(port);
      const before = sockets();
      expect(await calling.connect({ timeoutMs: 50 }).catch(errorCode)).toBe('QUORATE_TIMEOUT');
      expect(calling.closed).toBe(true);
      await expect.poll(sockets, { timeout: 20_000 }).toBe(before);
    } finally {
      child.kill('SIGKILL');
    }
    await once(child, 'close');
  });

  it('is not disturbed by strangers that send anything', async () => {
    const { id, port } = await listening();
    const path = join(directory, `cm-${port}.sock`);
    const valid = encodeFrame({ type: FrameType.RTU, reason: 0 });
    for (const bytes of [Buffer.alloc(4), Buffer.from('GET / HTTP/1.1\r\n\r\n'), Buffer.alloc(5000, 0xff), valid]) {
      const socket = connect(path);
      socket.on('error', () => {});
      socket.write(bytes);
      socket.resume();
      await once(socket, 'close'); // the listener hung up
    }
    const requests = id.requests();
    const connecting = (await client(port)).connect();
    const request = (await requests.next()).value as CmId;
    queuePairFor(request);
    await Promise.all([connecting, request.accept()]);
  });

  it('rejects requests beyond the backlog', async () => {
    const { id } = { id: channel().createId() };
    await id.listen({ host: HOST, backlog: 1 });
    const port = id.localAddress?.port ?? 0;
    const first = (await client(port)).connect();
    const second = (await client(port)).connect();
    const outcome = await Promise.race([first, second]).catch(errorCode);
    expect(outcome).toBe('QUORATE_CM_REJECTED');
    const request = (await id.requests().next()).value as CmId;
    queuePairFor(request);
    await request.accept();
    const results = await Promise.allSettled([first, second]);
    expect(results.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
  });

  it('uses no folder that others may write to', async () => {
    const open = join(directory, 'open');
    mkdirSync(open);
    chmodSync(open, 0o777);
    const opened = CmEventChannel.open({ provider: 'shm', shmDirectory: open });
    closers.push(() => opened.close());
    const error = await opened
      .createId()
      .listen({ host: HOST })
      .catch((caught) => caught);
    expect(error).toMatchObject({ code: 'QUORATE_SYSTEM' });
    expect(error.message).toContain('nobody else may write to');
  });

  it('leaves no file behind, nor does a process that exits', async () => {
    const files = () => filesIn(directory).filter((name) => name.startsWith('cm-'));
    const before = files(); // of threads and processes that were killed
    const { id } = await listening();
    expect(files().length).toBe(before.length + 1);
    id.close();
    expect(files()).toEqual(before);
    const script = `
      import { CmEventChannel } from 'quorate/verbs';
      await CmEventChannel.open({ provider: 'shm' }).createId().listen({ host: '${HOST}' });
      process.exit(3);`;
    const child = spawn(process.execPath, ['--input-type=module', '--eval', script], { stdio: 'inherit' });
    expect((await once(child, 'close'))[0]).toBe(3);
    expect(files()).toEqual(before);
  });
});

describe('frames of the connection manager of shared memory', () => {
  const byte = fc.integer({ min: 0, max: 255 });
  const connection = fc.record({
    endpoint: fc.record({
      qpNum: fc.integer({ min: 0, max: 0xffffff }),
      psn: fc.integer({ min: 0, max: 0xffffff }),
      gid: fc.uint8Array({ minLength: 16, maxLength: 16 }).map((raw) =>
        Buffer.from(raw)
          .toString('hex')
          .replace(/....(?!$)/g, '$&:'),
      ),
      lid: fc.constant(0),
      pathMtuBytes: fc.constantFrom(256, 512, 1024, 2048, 4096),
    }),
    source: fc.record({
      host: fc.constantFrom('127.0.0.2', '192.0.2.255', '::1', '::', 'fe80::1:ff', '2001:db8::7'),
      port: fc.integer({ min: 0, max: 65_535 }),
    }),
    parameters: fc.record({
      privateData: fc.uint8Array({ maxLength: 256 }),
      responderResources: byte,
      initiatorDepth: byte,
      flowControl: fc.boolean(),
      retryCount: fc.integer({ min: 0, max: 7 }),
      rnrRetryCount: fc.integer({ min: 0, max: 7 }),
      srq: fc.boolean(),
    }),
  });

  it('are read as they were written, however the stream is cut', () => {
    fc.assert(
      fc.property(connection, fc.integer({ min: 1, max: 400 }), ({ endpoint, source, parameters }, cut) => {
        const full = { endpoint, source, parameters: { ...parameters, qpNum: endpoint.qpNum } };
        const frame = { type: FrameType.REQ, reason: 0, connection: full };
        const bytes = Buffer.concat([encodeFrame(frame), encodeFrame({ type: FrameType.DREQ, reason: 0 })]);
        const reader = new FrameReader();
        const read = [];
        for (let at = 0; at < bytes.length; at += cut) read.push(...reader.push(bytes.subarray(at, at + cut)));
        expect(read).toEqual([frame, { type: FrameType.DREQ, reason: 0 }]);
      }),
      { seed: 20261127 },
    );
  });

  it('are refused when a byte is wrong that the reader can judge, and never read beyond their end', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: MAX_FRAME_BYTES + 8 }), fc.boolean(), (raw, rightLength) => {
        const bytes = Buffer.from(raw);
        if (rightLength && bytes.length >= 4) bytes.writeUInt32LE(bytes.length, 0);
        expect(decodeFrame(bytes)).toBe(undefined); // the chance of the right magic number is one in four billion
      }),
      { seed: 20261127, numRuns: 1000 },
    );
    const bytes = encodeFrame({ type: FrameType.REJ, reason: 28, privateData: new Uint8Array(8) });
    expect(decodeFrame(bytes)).toMatchObject({ reason: 28 });
    expect(decodeFrame(bytes.subarray(0, bytes.length - 1))).toBe(undefined);
    for (const at of [0, 4, 8]) {
      const changed = Buffer.from(bytes);
      changed.writeUInt8((changed[at] as number) ^ 0x40, at); // length, magic, type
      expect(decodeFrame(changed), `byte ${at}`).toBe(undefined);
    }
    expect(() => new FrameReader().push(Buffer.from([255, 255, 255, 255]))).toThrow('a frame of');
  });
});
