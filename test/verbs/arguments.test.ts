// Nothing that JavaScript passes can crash the process: every wrong argument gives a coded error, and the call has no
// effect. First each argument of each call with each kind of wrong value, then random calls with random values on open
// and closed objects in a child process, which must survive.
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import {
  addWord,
  adopt,
  asyncEvents,
  CmEventChannel,
  CompletionEvents,
  Context,
  errorCode,
  Fence,
  formatGidTable,
  listDevices,
  Notifier,
  nextRkey,
  normalizeGid,
  openDevice,
  PostList,
  QuorateError,
  setSchedulingSlice,
  setTimerSlack,
  unshare,
  WAITER_PEERS_MAX,
  Waiter,
  waitWord,
  wakeWord,
  wcStatusName,
} from '#lib/verbs/index.js';
import { addon } from '../../dist/verbs/load-addon.js';
import { startChild } from './support/child.js';
import { End, thrownBy } from './support/ends.js';
import { useShmDirectory } from './support/shm-directory.js';

useShmDirectory();

const ARGUMENT_ERRORS = ['QUORATE_INVALID_ARGUMENT', 'QUORATE_OUT_OF_RANGE'];
const NOT_OBJECTS = [undefined, null, 1, 'text', true, Symbol('s'), 1n, () => 0];
const NOT_INTEGERS = [undefined, null, 'text', {}, [], true, 1n, NaN, -1, 0.5, Infinity, -Infinity, 2 ** 53, 1e300];
const NOT_STRINGS = [undefined, null, 1, {}, [], true];
const NOT_HANDLES = [undefined, 1, 'text', {}, [], new Fence(), Object.create(Fence.prototype), new Proxy({}, {})];

describe('wrong arguments', () => {
  let end: End;
  let list: PostList;
  beforeAll(() => {
    end = new End('shm');
    list = new PostList(end.queue, { maxWorkRequests: 4, maxCompletions: 8 });
  });
  afterAll(() => {
    end.close();
  });

  function refused(call: (value: never) => unknown, values: readonly unknown[]) {
    for (const value of values) {
      const error = thrownBy(() => call(value as never));
      const shown = typeof value === 'object' ? JSON.stringify(value) : String(value);
      const label = `${call.toString()} with ${typeof value} ${shown}`;
      expect(ARGUMENT_ERRORS, `${label}: ${error.stack}`).toContain(error.code);
      expect(
        error.code === 'QUORATE_OUT_OF_RANGE' ? error instanceof RangeError : error instanceof TypeError,
        label,
      ).toBe(true);
    }
  }

  it('of waiters', () => {
    const waiter = new Waiter();
    const channel = end.context.createCompletionChannel();
    refused((value) => waiter.watchQueue(value), [...NOT_HANDLES.slice(1), channel]);
    refused((value) => waiter.watchQueue(end.queue, value), [...NOT_HANDLES.slice(1), end.queue]);
    refused((value) => waiter.watchPeer(0, value), [...NOT_HANDLES.slice(1), end.queue]);
    refused((value) => waiter.watchPeer(value, null), [...NOT_INTEGERS, WAITER_PEERS_MAX]);
    refused((value) => waiter.wait(value), NOT_INTEGERS);
    waiter.watchQueue(null);
    waiter.watchPeer(0, null);
    waiter.close();
  });

  it('of completion events', () => {
    const [channel, other] = [end.context.createCompletionChannel(), end.context.createCompletionChannel()];
    const queue = end.context.createCompletionQueue(4, channel);
    const events = new CompletionEvents(channel);
    const handler = () => {};
    refused((value) => events.watch(value, handler), [...NOT_OBJECTS, {}, channel]);
    refused((value) => events.watch(queue, value), [undefined, null, 1, 'text', {}]);
    refused((value) => events.watch(queue, handler, { batch: value }), [null, 'text', NaN, 0, 0.5, 65_537]);
    // Nothing would ever tell of their completions.
    refused((value) => events.watch(value, handler), [end.context.createCompletionQueue(4, other)]);
    events.watch(queue, handler);
    events.close();
  });

  it('of devices and contexts', () => {
    refused((value) => openDevice(value), NOT_STRINGS);
    refused(
      (value) => openDevice('shm', value),
      [null, 1, 'text', { shmDirectory: 5 }, { shmDirectory: '' }, { dir: 'x' }],
    );
    refused((value) => listDevices(value), [null, 1, 'text', { what: 1 }]);
    refused(
      (value) => end.context.queryPort(value),
      NOT_INTEGERS.filter((value) => value !== undefined).concat(0, 256),
    );
    refused((value) => end.context.allocateMemory(value), NOT_OBJECTS);
    refused((value) => end.context.allocateMemory({ lengthBytes: value }), [...NOT_INTEGERS, 0]);
    refused(
      (value) => end.context.allocateMemory({ lengthBytes: 4096, ...(value as object) }),
      [
        { shared: 1 },
        { shared: true },
        { sharedPath: '/dev/shm/x' },
        { shared: true, sharedPath: 5 },
        { shared: true, sharedPath: 'a\0b' },
        { hugePages: 'yes' },
        { hugepages: true },
      ],
    );
    refused((value) => end.context.createCompletionQueue(value), [...NOT_INTEGERS, 0, 2 ** 31]);
    refused((value) => end.context.createCompletionQueue(8, { native: value } as never), NOT_HANDLES.slice(1));
    // Options without a channel in front of them, above all.
    refused((value) => end.context.createCompletionQueue(8, value), [1, 'x', true, {}, { timestamps: 'raw' }, []]);
  });

  it('of memory regions and queue pairs', () => {
    const { domain, memory, queuePair } = end;
    refused((value) => domain.registerMemory(value, 0, 8, 1), NOT_HANDLES);
    refused((value) => domain.registerMemory(memory, value, 8, 1), NOT_INTEGERS);
    refused((value) => domain.registerMemory(memory, 0, value, 1), [...NOT_INTEGERS, 0, memory.length + 1]);
    refused((value) => domain.registerMemory(memory, memory.length, value, 1), [1]);
    refused((value) => domain.registerMemory(memory, 0, 8, value), [...NOT_INTEGERS, 2 ** 21]);
    refused((value) => domain.createQueuePair({ sendCq: value }), NOT_HANDLES);
    refused((value) => domain.createQueuePair({ sendCq: end.queue, recvCq: value }), NOT_HANDLES.slice(1));
    refused((value) => domain.createQueuePair({ sendCq: end.queue, type: value }), [1, 5, 'RC']);
    refused(
      (value) => domain.createQueuePair({ sendCq: end.queue, cap: value }),
      [1, 'x', { maxSendWr: -1 }, { maxWr: 1 }],
    );
    refused(
      (value) => domain.createQueuePair({ sendCq: end.queue, ...(value as object) }),
      [{ signalAll: 1 }, { srq: 1 }],
    );
    refused((value) => queuePair.modify(value), NOT_OBJECTS);
    const attributes: [string, unknown[]][] = [
      ['state', [7, -1, 'INIT', 1.5]],
      ['accessFlags', [32, -1, {}]],
      ['pkeyIndex', [65_536]],
      ['portNum', [256]],
      ['pathMtuBytes', [0, 128, 1000, 8192]],
      ['timeout', [32]],
      ['retryCnt', [8]],
      ['rnrRetry', [8]],
      ['rqPsn', [2 ** 24]],
      ['sqPsn', [2 ** 24]],
      ['maxRdAtomic', [256]],
      ['maxDestRdAtomic', [256]],
      ['minRnrTimer', [32]],
      ['destQpNum', [2 ** 32]],
      [
        'av',
        [1, 'x', null, { dgid: 'fe80::1' }, { dgid: 5 }, { portNum: 0 }, { sl: 16 }, { flowLabel: 2 ** 20 }, { x: 1 }],
      ],
      ['retryCount', [1]],
    ];
    for (const [name, values] of attributes) refused((value) => queuePair.modify({ [name]: value }), values);
    expect(queuePair.query().state).toBe(0);
  });

  it('of work requests', () => {
    const { queuePair } = end;
    refused((value) => queuePair.postSend(value), [undefined, null, {}, 'x', 1]);
    refused((value) => queuePair.postSend([value]), [undefined, null, 1, 'x', {}, { opcode: 10 }, { opcode: '0' }]);
    const fields: [string, unknown[]][] = [
      ['wrId', NOT_INTEGERS],
      ['sendFlags', [...NOT_INTEGERS, 16]],
      ['localAddress', NOT_INTEGERS],
      ['length', [...NOT_INTEGERS, 2 ** 32]],
      ['lkey', [...NOT_INTEGERS, 2 ** 32]],
      ['remoteAddress', NOT_INTEGERS],
      ['rkey', [...NOT_INTEGERS, 2 ** 32]],
      ['immData', [...NOT_INTEGERS, 2 ** 32]],
      ['compareAdd', [-1n, 2n ** 64n, -1, 1.5, NaN, 'x']],
      ['swap', [-1n, 2n ** 64n, 'x']],
      ['remoteKey', [1]],
    ];
    for (const [name, values] of fields) {
      refused(
        (value) => queuePair.postSend([{ opcode: 0, [name]: value } as never]),
        values.filter((v) => v !== undefined),
      );
    }
    refused((value) => queuePair.postReceive([{ [value as string]: -1 }]), ['wrId', 'localAddress', 'length', 'lkey']);
    refused((value) => queuePair.postSend(new Array(value).fill({ opcode: 0 })), [65_537]);
    refused((value) => end.queue.poll(value), NOT_INTEGERS.filter((value) => value !== undefined).concat(0, 65_537));
    refused((value) => end.queue.requestNotify(value), [null, 1, 'x']);
  });

  it('of calls that take options, endpoints, signals and lists', async () => {
    const { context, domain, queuePair } = end;
    const memoryWindow = domain.allocateMemoryWindow(1);
    const remote = queuePair.endpoint();
    const NOT_OPTIONS = NOT_OBJECTS.filter((value) => value !== undefined);
    const NOT_SIGNALS = [null, 1, 'text', {}, () => 0];
    refused((value) => domain.createQueuePair(value), NOT_OBJECTS);
    refused((value) => queuePair.endpoint(value), NOT_OPTIONS);
    refused((value) => queuePair.initAttributes(value), NOT_OPTIONS);
    refused((value) => queuePair.toInit(value), NOT_OPTIONS);
    refused((value) => queuePair.toReadyToReceive(value), NOT_OBJECTS);
    refused((value) => queuePair.toReadyToReceive(remote, value), NOT_OPTIONS);
    refused((value) => queuePair.toReadyToSend(value), NOT_OPTIONS);
    refused((value) => queuePair.toDatagrams(value), NOT_OBJECTS);
    refused((value) => context.addressVectorFor(value), NOT_OBJECTS);
    refused((value) => queuePair.postSend([value, { opcode: 2, addressHandle: value }]), NOT_OBJECTS);
    refused((value) => queuePair.postSend([{ opcode: 2, addressHandle: value }]), [null, 1, 'x', {}, end.region]);
    // Taken for none, it would unbind the window.
    refused((value) => queuePair.bindMemoryWindow(memoryWindow, { region: value }), [1, 'x', {}, end.memory]);
    refused((value) => new CompletionEvents(value), [...NOT_HANDLES, end.queue]);
    refused((value) => new Waiter(value as never), [null, 1, 'text', {}, []]);
    refused((value) => list.setWorkRequest(0, value), NOT_OBJECTS);
    refused((value) => adopt(context.share(), value), [null, 1, 'x', {}, () => 0]);
    refused((value) => formatGidTable(value), [...NOT_OBJECTS, {}, [null], [1], [{}]]);
    expect(queuePair.query().state).toBe(0);

    const channel = context.createCompletionChannel();
    const queue = context.createCompletionQueue(4, channel);
    const events = new CompletionEvents(channel);
    refused((value) => events.watch(queue, () => {}, value), NOT_OPTIONS);
    events.close();
    const connections = CmEventChannel.open({ provider: 'shm' });
    const id = connections.createId();
    const destination = { host: '127.0.0.1', port: 1 };
    refused((value) => id.events(value), NOT_OPTIONS);
    refused((value) => id.events({ signal: value }), NOT_SIGNALS);
    const later: [(value: never) => Promise<unknown>, readonly unknown[]][] = [
      [(value) => asyncEvents(value).next(), [...NOT_OBJECTS, {}, end.domain]],
    ];
    for (const call of [
      (options: never) => asyncEvents(context, options).next(),
      (options: never) => queue.completions(options).next(),
      (options: never) => id.requests(options).next(),
      (options: never) => id.resolveAddress(destination, options),
      (options: never) => id.resolveRoute(options),
      (options: never) => id.connect(options),
      (options: never) => id.disconnected(options),
      (options: never) => id.disconnect(options),
    ]) {
      later.push([call, NOT_OPTIONS], [(value) => call({ signal: value } as never), NOT_SIGNALS]);
    }
    for (const [call, values] of later) {
      for (const value of values) {
        const label = `${call.toString()} with ${typeof value} ${String(value)}`;
        await expect(call(value as never), label).rejects.toMatchObject({ code: 'QUORATE_INVALID_ARGUMENT' });
      }
    }
    connections.close();
    memoryWindow.close();
  });

  // A misspelt option that is ignored is a wish that is not met, without a word.
  it('of options with a member that there is not: it is named, with those that there are', async () => {
    const { context, domain, region, queue, queuePair } = end;
    const remote = queuePair.endpoint();
    const channel = context.createCompletionChannel();
    const watchedQueue = context.createCompletionQueue(4, channel);
    const events = new CompletionEvents(channel);
    const memoryWindow = domain.allocateMemoryWindow(1);
    const connections = CmEventChannel.open({ provider: 'shm' });
    const id = connections.createId();
    const host = { host: '127.0.0.1', port: 1 };
    const bind = { memoryWindow, rkey: 1 };
    // The call, and a member that its options have.
    const calls: [(options: never) => unknown, string][] = [
      [(options) => listDevices(options), 'shmDirectory'],
      [(options) => openDevice('shm', options), 'shmDirectory'],
      [(options) => context.allocateMemory(options), 'hugePages'],
      [(options) => context.createCompletionQueue(4, null, options), 'timestamps'],
      [(options) => domain.createQueuePair({ sendCq: queue, ...(options as object) }), 'recvCq'],
      [(cap) => domain.createQueuePair({ sendCq: queue, cap }), 'maxSendWr'],
      [(options) => domain.createAddressHandle(options), 'trafficClass'],
      [(options) => region.reregister(options), 'protectionDomain'],
      [(options) => new PostList(queue, options), 'maxCompletions'],
      [(options) => queuePair.modify(options), 'pkeyIndex'],
      [(options) => queuePair.modifyAsync(options), 'pkeyIndex'],
      [(options) => queuePair.endpoint(options), 'sgidIndex'],
      [(options) => queuePair.initAttributes(options), 'accessFlags'],
      [(options) => queuePair.toInit(options), 'accessFlags'],
      [(options) => queuePair.readyToReceiveAttributes(remote, options), 'sgidIndex'],
      [(options) => queuePair.toReadyToReceive(remote, options), 'hopLimit'],
      [(options) => queuePair.toReadyToReceiveAsync(remote, options), 'hopLimit'],
      [(options) => queuePair.readyToSendAttributes(options), 'retryCnt'],
      [(options) => queuePair.toReadyToSend(options), 'retryCnt'],
      [(options) => queuePair.toDatagrams({ qkey: 1, ...(options as object) }), 'pkeyIndex'],
      [(options) => queuePair.postSend([{ opcode: 0, ...(options as object) }]), 'sendFlags'],
      [(element) => queuePair.postSend([{ opcode: 0, sges: [element] }]), 'lkey'],
      [(options) => queuePair.postSend([{ opcode: 8, bind: { ...bind, ...(options as object) } }]), 'access'],
      [(options) => queuePair.postReceive([options]), 'localAddress'],
      [(options) => queuePair.bindMemoryWindow(memoryWindow, options), 'sendFlags'],
      [(options) => events.watch(watchedQueue, () => {}, options), 'solicitedOnly'],
      [(options) => watchedQueue.completions(options).next(), 'solicitedOnly'],
      [(options) => asyncEvents(context, options).next(), 'ref'],
      [(options) => CmEventChannel.open(options), 'provider'],
      [(destination) => id.resolveAddress(destination), 'host'],
      [(options) => id.resolveAddress(host, options), 'source'],
      [(source) => id.resolveAddress(host, { source }), 'host'],
      [(options) => id.resolveRoute(options), 'timeoutMs'],
      [(options) => id.useQueuePair(queuePair, options), 'accessFlags'],
      [(options) => id.connect(options), 'retryCount'],
      [(options) => id.accept(options), 'rnrRetryCount'],
      [(options) => id.bindAddress(options), 'host'],
      [(options) => id.listen(options), 'backlog'],
      [(options) => id.requests(options).next(), 'signal'],
      [(options) => id.events(options).next(), 'signal'],
      [(options) => id.disconnected(options), 'timeoutMs'],
      [(options) => id.disconnect(options), 'timeoutMs'],
    ];
    for (const [call, member] of calls) {
      const refusal = expect.objectContaining({
        code: 'QUORATE_INVALID_ARGUMENT',
        message: expect.stringMatching(new RegExp(` has no member 'mispelt'; there are: .*\\b${member}\\b`)),
      });
      const outcome = await (async () => call({ mispelt: 1 } as never))().catch((error: unknown) => error);
      expect(outcome, call.toString()).toEqual(refusal);
    }
    expect(queuePair.query().state).toBe(0);
    events.close();
    connections.close();
    memoryWindow.close();
    channel.close();
  });

  it('of numbers by their type, and by their range only if they are numbers', async () => {
    const { context } = end;
    const channel = context.createCompletionChannel();
    const queue = context.createCompletionQueue(4, channel);
    const events = new CompletionEvents(channel);
    const calls: ((value: never) => unknown)[] = [
      (max) => queue.poll(max),
      (batch) => queue.completions({ batch }).next(),
      (batch) => events.watch(queue, () => {}, { batch }),
      (index) => list.setWorkRequest(index, {}),
      (index) => list.completion(index),
    ];
    const outcome = (call: (value: never) => unknown, value: unknown) =>
      (async () => call(value as never))().catch((error: unknown) => error);
    for (const call of calls) {
      for (const value of ['1', null, {}, 1n, [1]]) {
        expect(await outcome(call, value), call.toString()).toMatchObject({ code: 'QUORATE_INVALID_ARGUMENT' });
      }
      for (const value of [-1, 0.5, NaN, 65_537]) {
        expect(await outcome(call, value), call.toString()).toMatchObject({ code: 'QUORATE_OUT_OF_RANGE' });
      }
    }
    events.close();
    channel.close();
  });

  it('of memory windows, re-registration and several elements', () => {
    refused(nextRkey, ['7', ...NOT_INTEGERS, 2 ** 32]);
    const { context, domain, memory, queuePair, queue, region } = end;
    const NOT_LISTS = [
      null,
      {},
      'x',
      1,
      [1],
      [null],
      [{}],
      [{ address: -1, length: 1 }],
      [{ address: 0, length: 2 ** 32 }],
    ];
    refused((value) => queuePair.postSend([{ opcode: 0, sges: value }]), [...NOT_LISTS, new Array(257).fill({})]);
    refused((value) => queuePair.postReceive([{ sges: value }]), NOT_LISTS);
    refused(
      (value) => queuePair.postSend([{ opcode: 0, sges: [], ...(value as object) }]),
      [{ length: 1 }, { localAddress: 1 }, { lkey: 1 }],
    );
    const huge = { address: 0, length: 2 ** 32 - 1, lkey: 1 };
    refused((value) => queuePair.postSend([{ opcode: 0, sges: value }]), [[huge, huge]]);
    refused((value) => domain.allocateMemoryWindow(value), [...NOT_INTEGERS, 0, 3]);
    const window = domain.allocateMemoryWindow(2);
    refused((value) => queuePair.bindMemoryWindow(value), NOT_HANDLES);
    refused(
      (value) => queuePair.bindMemoryWindow(window, value),
      [null, 1, 'x', { wrId: -1 }, { where: 1 }, { length: 8 }],
    );
    refused((value) => queuePair.postSend([{ opcode: 7, invalidateRkey: value }]), [-1, 2 ** 32, 'x', 0.5]);
    const bind = { memoryWindow: window, rkey: 1, region, address: 0, length: 8, access: 0 };
    refused((value) => queuePair.postSend([{ opcode: 8, bind: value }]), NOT_OBJECTS);
    refused(
      (value) => queuePair.postSend([{ opcode: 8, bind: { ...bind, ...(value as object) } }]),
      [
        { memoryWindow: 1 },
        { memoryWindow: region },
        { rkey: undefined },
        { region: window },
        { address: -1 },
        { x: 1 },
      ],
    );
    refused((value) => queuePair.postSend([{ opcode: value, bind }]), [0, 7, 9]);
    refused(
      (value) => region.reregister(value),
      [undefined, null, 1, 'x', {}, { offset: 0 }, { rights: 1 }, { access: -1 }],
    );
    refused((value) => region.reregister({ protectionDomain: value }), [1, {}, region, null]);
    refused((value) => region.reregister({ memory: value, offset: 0, length: 8 }), [1, {}, region, null]);
    refused((value) => region.reregister({ memory, offset: value, length: 8 }), [...NOT_INTEGERS, memory.length]);
    refused((value) => queue.resize(value), [...NOT_INTEGERS, 0, 2 ** 31]);
    refused(
      (value) => context.queryPkey(1, value),
      NOT_INTEGERS.filter((value) => value !== undefined).concat(1, 65_536),
    );
    refused(
      (value) => domain.createSharedReceiveQueue(4, value),
      NOT_INTEGERS.filter((v) => v !== undefined).concat(0, 100),
    );
    window.close();
  });

  it('of memory whose buffer somebody tried to hand away, or that is closed, and of lists alike', () => {
    const { context, domain, queue, queuePair } = end;
    const handAway = (buffer: ArrayBuffer) => {
      try {
        structuredClone(buffer, { transfer: [buffer] }); // Node.js copies memory that it does not own, or refuses
      } catch (error) {
        expect((error as Error).name).toBe('DataCloneError');
      }
    };
    const memory = context.allocateMemory({ lengthBytes: 4096 });
    const bytes = new Uint8Array(memory.buffer);
    const region = domain.registerMemory(memory, 0, 4096, 15);
    handAway(memory.buffer);
    expect(memory.address).toBeGreaterThan(0);
    const other = new PostList(queue, { maxWorkRequests: 4, maxCompletions: 8 });
    handAway(other.workRequests.buffer as ArrayBuffer);
    handAway(other.completions.buffer as ArrayBuffer);
    expect(other.submit(4, 0, 0)).toBe(4); // four requests to an empty slot
    memory.close();
    expect(bytes.length).toBe(0);
    expect(thrownBy(() => memory.buffer).code).toBe('QUORATE_CLOSED');
    expect(thrownBy(() => domain.registerMemory(memory, 0, 4096, 0)).code).toBe('QUORATE_CLOSED');
    expect(thrownBy(() => region.reregister({ memory, offset: 0, length: 64 })).code).toBe('QUORATE_CLOSED');
    queuePair.toInit();
    expect(queuePair.postReceive([{ localAddress: region.address, length: 64, lkey: region.lkey }]).accepted).toBe(1);
    other.close();
    expect(thrownBy(() => other.submit(0, 0, 0)).code).toBe('QUORATE_CLOSED');
  });

  it('of PostList, Fence, Notifier, tokens and words', () => {
    const { memory } = end;
    refused((value) => new PostList(value, { maxWorkRequests: 1, maxCompletions: 1 }), NOT_HANDLES);
    refused((value) => new PostList(end.queue, value), NOT_OBJECTS);
    refused(
      (value) => new PostList(end.queue, { maxWorkRequests: value, maxCompletions: 8 }),
      [...NOT_INTEGERS, 0, 65_537],
    );
    refused(
      (value) => new PostList(end.queue, { maxWorkRequests: 8, maxCompletions: value }),
      [...NOT_INTEGERS, 7, 65_537],
    );
    for (const bind of ['bindQueuePair', 'bindFence', 'bindMemory'] as const) {
      refused((value) => list[bind](value, null), [...NOT_INTEGERS, 64]);
      refused((value) => list[bind](0, value), [undefined, 1, 'x', {}, end.region, end.context]);
    }
    refused((value) => list.submit(value, 0, 0), [...NOT_INTEGERS, 5, 1.5]);
    refused((value) => list.submit(0, value, 0), [...NOT_INTEGERS, 10_000_000_001]);
    refused((value) => list.submit(0, 0, value), [...NOT_INTEGERS, 9, 1.5]);
    refused((value) => list.setWorkRequest(value, {}), [-1, 4, 0.5, NaN]);
    refused((value) => list.setWorkRequest(0, value), [{ opcode: 1 }]);
    const fence = new Fence();
    refused((value) => fence.raise(value), NOT_INTEGERS);
    fence.raise(5);
    refused((value) => fence.raise(value), [4]);
    expect(fence.epoch).toBe(5);
    refused((value) => new Notifier(value), [undefined, 1, 'x', null]);
    refused((value) => adopt(value), [...NOT_INTEGERS, 0, 123_456_789]);
    refused((value) => unshare(value), [...NOT_INTEGERS, 0]);
    refused((value) => adopt(value, Context), [fence.share()]);
    refused((value) => waitWord(value, 0, 0, 0), NOT_HANDLES);
    refused((value) => waitWord(memory, value, 0, 0), [...NOT_INTEGERS, 1, 2, memory.length, memory.length - 2]);
    refused((value) => waitWord(memory, 0, value, 0), [...NOT_INTEGERS, 2 ** 32]);
    refused((value) => waitWord(memory, 0, 0, value), [...NOT_INTEGERS, 60_000_000_001]);
    refused((value) => wakeWord(memory, value), [...NOT_INTEGERS, 3, memory.length]);
    refused((value) => addWord(memory, 0, value), [undefined, null, 'x', {}, NaN, 0.5, 2 ** 32, -(2 ** 31) - 1]);
    refused((value) => setTimerSlack(value), [...NOT_INTEGERS, 1_000_000_001]);
    refused((value) => setSchedulingSlice(value), [...NOT_INTEGERS, 99_999, 100_000_001]);
    refused((value) => wcStatusName(value), NOT_INTEGERS);
    refused(
      (value) => normalizeGid(value),
      [undefined, 1, '', 'x', 'fe80', '::1%eth0', '1:2:3:4:5:6:7:8:9', '256.1.1.1'],
    );
    fence.close();
  });

  it('of the receiver: methods and getters of one class do not work on another', () => {
    const foreign = [{}, end.region.native, end.memory.native, Object.create(end.queue.native)];
    for (const receiver of foreign) {
      const prototype = Object.getPrototypeOf(end.queuePair.native);
      for (const name of Object.getOwnPropertyNames(prototype)) {
        if (name === 'constructor') continue;
        const { value, get } = Object.getOwnPropertyDescriptor(prototype, name) as PropertyDescriptor;
        expect(
          thrownBy(() => Reflect.apply(value ?? get, receiver, [{}])),
          name,
        ).toBeInstanceOf(TypeError);
      }
    }
    const prototype = Object.getPrototypeOf(end.queuePair.native) as { constructor: new () => unknown };
    expect(thrownBy(() => new prototype.constructor()).code).toBe('QUORATE_INVALID_ARGUMENT');
    expect(thrownBy(() => (addon.Fence as unknown as () => void)())).toBeInstanceOf(TypeError);
  });

  it('show the JavaScript stack and what they are about', () => {
    const error = thrownBy(() => end.context.queryPort(200));
    expect(error.stack).toContain('arguments.test');
    const missing = thrownBy(() => openDevice('absent'));
    expect(missing).toBeInstanceOf(QuorateError);
    expect(errorCode(missing)).toBe('QUORATE_NO_DEVICE');
    expect(missing.stack).toContain('arguments.test');
    expect(String(missing)).toContain('QUORATE_NO_DEVICE');
  });
});

describe('random calls with random arguments', () => {
  it.each([1, 2, 3])('leave the process alive and throw only coded errors (seed %i)', async (seed) => {
    const child = startChild('random-calls.mjs', [String(seed), '4000'], ['--expose-gc']);
    const { code, signal, stdout, stderr } = await child.exited();
    expect(stderr).toBe('');
    expect({ code, signal }).toEqual({ code: 0, signal: null });
    const { calls, succeeded, codes } = JSON.parse(stdout);
    expect(calls).toBe(4000);
    expect(succeeded).toBeGreaterThan(500); // it is no test of argument errors alone
    expect(Object.keys(codes).every((name) => name.startsWith('QUORATE_'))).toBe(true);
  });
});
