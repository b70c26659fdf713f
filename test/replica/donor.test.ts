// The donor of a state transfer whose state machine gives no more of its state: nobody who asks for it later is turned away
// for that, and nobody takes what there was until then for all of it.
import { EventEmitter } from 'node:events';
import { afterEach, expect, it, vi } from 'vitest';
import { chainBeginning } from '#lib/consensus/entry.js';
import { QuorateError } from '#lib/errors.js';
import { TransferSource } from '#lib/fabric/transfer-link.js';
import type { ControlConnection } from '#lib/replica/control-channel.js';
import { Donor, type DonorHost } from '#lib/replica/transfer/donor.js';
import { DONATIONS_MAX, OPEN_TIMEOUT_MS } from '#lib/replica/transfer/limits.js';
import { SnapshotSource } from '#lib/replica/transfer/snapshot-stream.js';
import { CommandLog, SilentLog, waitFor } from './fixture.js';

afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

it('waits no longer for the bytes behind which a transfer is to go on than its receiver waits for an answer', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  const link = { bytes: new Uint8Array(4 * 1024 * 1024), close: vi.fn(), views: () => [] };
  vi.spyOn(TransferSource, 'open').mockResolvedValue(link as unknown as TransferSource);
  const position = chainBeginning(7);
  const closed = vi.spyOn(SnapshotSource.prototype, 'close');
  const donor = new Donor({
    id: 1,
    endpoint: { isSoftware: true },
    appliedLsn: () => 0,
    freeze: () => ({
      position,
      sessionsBytes: 0,
      source: new SnapshotSource(new SilentLog() as never, new Uint8Array(0)),
    }),
  } as unknown as DonorHost);
  const connection = { isClosed: false } as ControlConnection;
  const queuePair = { qpNum: 1, psn: 0, gid: '', lid: 1, mtuBytes: 1024 };
  const resume = { position, bytes: 1_000, checksum: 5 };
  for (let transfer = 1; transfer <= DONATIONS_MAX + 1; transfer++) {
    const opened = donor.open(connection, { transfer, minLsn: 0, queuePair, resume, logAfter: null });
    const refused = opened.catch((error: Error) => error);
    await vi.advanceTimersByTimeAsync(OPEN_TIMEOUT_MS);
    const error = await Promise.race([refused, new Promise((resolve) => setImmediate(resolve, 'nothing yet'))]);
    expect(error).toMatchObject({ code: 'QUORATE_TIMEOUT', message: expect.stringContaining('snapshotChunks()') });
    expect(link.close).toHaveBeenCalledTimes(transfer);
    expect(closed).toHaveBeenCalledTimes(transfer);
  }
});

/** A piece, and then nothing until the stream is abandoned: then it is at its end, as that of a queue is which somebody closes. */
class WaitingLog extends CommandLog {
  isWaiting = false;
  snapshotChunks(): AsyncIterable<Uint8Array> {
    let count = 0;
    let end = (_step: IteratorReturnResult<undefined>): void => {};
    const done = { done: true, value: undefined } as const;
    const iterator: AsyncIterator<Uint8Array> = {
      next: () => {
        if (count++ === 0) return Promise.resolve({ done: false, value: new Uint8Array(4 * 1024 * 1024) });
        this.isWaiting = true;
        return new Promise((resolve) => {
          end = resolve;
        });
      },
      return: () => {
        end(done);
        return Promise.resolve(done);
      },
    };
    return { [Symbol.asyncIterator]: () => iterator };
  }
}

/** A donor whose state machine is this one, on a device that nothing is asked of. */
function donorOf(machine: object, host: Partial<DonorHost> = {}): Donor {
  return new Donor({
    id: 1,
    endpoint: { isSoftware: true },
    appliedLsn: () => 0,
    freeze: () => ({
      position: chainBeginning(7),
      sessionsBytes: 0,
      source: new SnapshotSource(machine as never, new Uint8Array(0)),
    }),
    tell: () => {},
    onProgress: () => {},
    ...host,
  } as unknown as DonorHost);
}

/** What a receiver asks for. */
const queuePair = { qpNum: 1, psn: 0, gid: '', lid: 1, mtuBytes: 1024 };
const REQUEST = { transfer: 1, minLsn: 0, queuePair, resume: null, logAfter: null };

/** The control connection of a receiver. */
function connectionOf(id: number) {
  return Object.assign(new EventEmitter(), { isClosed: false, peer: { id } });
}

/** Links to receivers are made at once, of staging memory that nobody READs. */
function linkAtOnce(close = (): void => {}): void {
  const link = {
    bytes: new Uint8Array(4 * 1024 * 1024),
    close,
    views: () => [],
    state: { indexOf: () => -1 },
  };
  vi.spyOn(TransferSource, 'open').mockResolvedValue(link as unknown as TransferSource);
}

it('does not tell that a state is complete whose stream ended because the transfer did', async () => {
  linkAtOnce();
  const machine = new WaitingLog();
  const told: { type: string; isEnd?: boolean }[] = [];
  const states: string[] = [];
  const donor = donorOf(machine, {
    tell: (_connection: ControlConnection, type: string, body: unknown) =>
      void told.push({ type, ...(body as { isEnd?: boolean }) }),
    onProgress: ({ state }) => void states.push(state),
  });
  const connection = connectionOf(2);
  await donor.open(connection as unknown as ControlConnection, REQUEST);
  // The receiver takes all that it is told of, until the state machine gives no more.
  await waitFor(() => {
    const ready = told.filter(({ type }) => type === 'transferReady') as unknown as { first: number; parts: [] }[];
    const count = Math.max(0, ...ready.map(({ first, parts }) => first + parts.length));
    donor.tookAt(2, { transfer: 1, count });
    return machine.isWaiting;
  }, 'the donor to wait for a piece');
  connection.isClosed = true;
  connection.emit('close');
  expect(states.at(-1)).toBe('failed');
  await new Promise((resolve) => setImmediate(resolve));
  expect(told.filter(({ isEnd }) => isEnd)).toEqual([]);
});

it('does not begin a transfer twice that it is asked for twice before it has answered', async () => {
  let connected = (_link: TransferSource): void => {};
  const link = { bytes: new Uint8Array(4 * 1024 * 1024), close: vi.fn(), views: () => [], areas: [] };
  const connecting = new Promise<TransferSource>((resolve) => {
    connected = resolve;
  });
  vi.spyOn(TransferSource, 'open').mockReturnValue(connecting);
  const closed = vi.spyOn(SnapshotSource.prototype, 'close');
  const donor = donorOf(new SilentLog());
  const connection = connectionOf(2);
  const asked = [1, 2].map(() => donor.open(connection as unknown as ControlConnection, REQUEST));
  connected(link as unknown as TransferSource);
  const answers = await Promise.allSettled(asked);
  expect(answers.map(({ status }) => status)).toEqual(['fulfilled', 'rejected']);
  expect(answers[1]).toMatchObject({ reason: { code: 'QUORATE_PROTOCOL' } });
  connection.isClosed = true;
  connection.emit('close');
  expect(new Set(closed.mock.contexts).size).toBe(2);
});

it('is not told that chunks were taken which it has not announced yet', async () => {
  linkAtOnce();
  let given = 0;
  const taken: number[] = [];
  const machine = Object.assign(new CommandLog(), {
    snapshotChunks: () =>
      Object.assign(
        (async function* () {
          for (; given < 2; given++) yield new Uint8Array(64 * 1024);
          await new Promise(() => {});
        })(),
        { taken: (bytes: number) => void taken.push(bytes) },
      ),
  });
  const told: { type: string; first: number; parts: []; message: string }[] = [];
  const donor = donorOf(machine, {
    tell: (_connection: ControlConnection, type: string, body: unknown) =>
      void told.push({ type, ...(body as { first: number; parts: []; message: string }) }),
  });
  const connection = connectionOf(2);
  await donor.open(connection as unknown as ControlConnection, REQUEST);
  await waitFor(() => given === 2, 'the donor to have filled two chunks');
  expect(told.map(({ type, first, parts }) => [type, first, parts.length])).toEqual([['transferReady', 0, 1]]);
  donor.tookAt(2, { transfer: 1, count: 2 });
  expect(told.at(-1)).toMatchObject({
    type: 'transferFailed',
    code: 'QUORATE_PROTOCOL',
    message: 'chunk 2 was acknowledged; 1 were announced',
  });
});

it('ends every transfer of a connection that is lost, and warns of links that cannot be taken down', async () => {
  linkAtOnce(() => {
    throw new QuorateError('QUORATE_SYSTEM', 'the device is gone');
  });
  const ended: number[] = [];
  const warnings: Error[] = [];
  const donor = donorOf(new SilentLog(), {
    onProgress: ({ state, receiver }) => void (state === 'failed' && ended.push(receiver)),
    onWarning: (error) => void warnings.push(error),
  });
  const connection = connectionOf(2);
  for (const transfer of [1, 2]) await donor.open(connection as unknown as ControlConnection, { ...REQUEST, transfer });
  connection.isClosed = true;
  connection.emit('close');
  expect(ended).toEqual([2, 2]);
  expect(donor.statuses).toEqual([]);
  expect(warnings).toMatchObject([{ code: 'QUORATE_SYSTEM' }, { code: 'QUORATE_SYSTEM' }]);
});

it.each(['over its connection', 'by message'])(
  'does not begin a transfer that its receiver gave up %s before there was an answer',
  async (how) => {
    let made = (_link: TransferSource): void => {};
    vi.spyOn(TransferSource, 'open').mockReturnValue(
      new Promise((resolve) => {
        made = resolve;
      }),
    );
    const link = { bytes: new Uint8Array(4 * 1024 * 1024), close: vi.fn(), state: { indexOf: () => -1 } };
    const freed = vi.spyOn(SnapshotSource.prototype, 'close');
    const donor = donorOf(new SilentLog());
    const connection = connectionOf(2) as unknown as ControlConnection;
    const opened = donor.open(connection, REQUEST).catch((error: Error) => error);
    const closed = { transfer: 1, code: 'QUORATE_TIMEOUT', message: 'it did not answer' };
    if (how === 'by message') donor.closedAt(2, closed);
    else donor.closed(connection, closed);
    made(link as unknown as TransferSource);
    expect(await opened).toMatchObject({ code: 'QUORATE_CANCELLED' });
    expect(donor.statuses).toEqual([]);
    expect(link.close).toHaveBeenCalledTimes(1);
    expect(freed).toHaveBeenCalled();
  },
);

it.each([
  ['at once', { [Symbol.iterator]: () => ({ next: () => ({ done: false, value: new Uint8Array(0) }) }) }],
  ['later', { [Symbol.asyncIterator]: () => ({ next: async () => ({ done: false, value: new Uint8Array(0) }) }) }],
])('ends a transfer whose state machine gives empty pieces without end, each of them %s', async (_, stream) => {
  linkAtOnce();
  const told: object[] = [];
  const donor = donorOf(Object.assign(new CommandLog(), { snapshotChunks: () => stream }), {
    tell: (_connection: ControlConnection, type: string, body: unknown) =>
      void told.push({ type, ...(body as object) }),
  });
  await donor.open(connectionOf(2) as unknown as ControlConnection, REQUEST);
  await waitFor(() => told.length > 0, 'the receiver to be told');
  expect(told).toMatchObject([
    {
      type: 'transferFailed',
      code: 'QUORATE_INVALID_ARGUMENT',
      message: expect.stringMatching(/^snapshotChunks\(\) of the state machine yields more than \d+ empty pieces/),
    },
  ]);
});
