// What a replica does when the code of its user fails: it stops rather than diverge, and everybody who waits is told.
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { afterEach, expect, it } from 'vitest';
import { type MemberAddress, QuorateError, Replica } from '#lib/index.js';
import { ControlClient } from '#lib/replica/control-channel.js';
import { ForwardedProposals } from '#lib/replica/mailbox/forwarded-proposals.js';
import { encodePropose } from '#lib/replica/mailbox/messages.js';
import { CLUSTER_KEY, CommandLog, members, openCluster, optionsFor, waitFor } from './fixture.js';

const open: Replica<number>[] = [];
const folders: string[] = [];
afterEach(async () => {
  await Promise.all(open.splice(0).map((replica) => replica.close()));
  for (const path of folders.splice(0)) rmSync(path, { recursive: true, force: true });
});

function folder(): string {
  const path = mkdtempSync(join(tmpdir(), 'quorate-user-errors-'));
  folders.push(path);
  return path;
}

/** What is thrown at nobody while `action` runs. */
async function uncaughtBy(action: () => Promise<void>): Promise<unknown[]> {
  const uncaught: unknown[] = [];
  const catchIt = (error: unknown) => uncaught.push(error);
  // Vitest listens, too, and would fail the test without saying why.
  const listeners = process.rawListeners('uncaughtException') as NodeJS.UncaughtExceptionListener[];
  process.removeAllListeners('uncaughtException');
  process.on('uncaughtException', catchIt);
  try {
    await action();
  } finally {
    process.off('uncaughtException', catchIt);
    for (const listener of listeners) process.on('uncaughtException', listener);
  }
  return uncaught;
}

const bytes = (text: string) => new Uint8Array(Buffer.from(text));

/** A cluster of one, whose state machine applies commands so, and what ends it. */
async function applying(apply: () => number): Promise<{ replica: Replica<number>; fatal: Promise<unknown[]> }> {
  const stateMachine = Object.assign(new CommandLog(), { apply });
  const replica = await Replica.open(optionsFor(0, await members(1), { stateMachine }));
  open.push(replica);
  return { replica, fatal: once(replica, 'fatal') };
}

it.each([undefined, { origin: 5, sequence: 1 }])(
  'settles the proposal of the command that apply() throws on, with session %j',
  async (session) => {
    const { replica, fatal } = await applying(() => {
      throw new Error('a command too much');
    });
    const proposal = replica.propose(bytes('x'), session === undefined ? undefined : { session });
    await expect(proposal).rejects.toMatchObject({
      code: 'QUORATE_OUTCOME_UNKNOWN',
      message: expect.stringContaining('a command too much'),
    });
    expect((await fatal)[0]).toMatchObject({ message: 'a command too much' });
  },
);

it.each(['a text', undefined, Object.create(null)])('tells of what apply() throws as an Error, %#', async (thrown) => {
  const { replica, fatal } = await applying(() => {
    throw thrown;
  });
  await expect(replica.propose(bytes('x'))).rejects.toMatchObject({
    code: 'QUORATE_OUTCOME_UNKNOWN',
    message: expect.stringContaining('apply() of the state machine threw'),
  });
  const [error] = (await fatal) as [QuorateError];
  expect(error).toBeInstanceOf(QuorateError);
  expect(error).toMatchObject({
    code: 'QUORATE_INVALID_ARGUMENT',
    message: expect.stringMatching(/apply\(\) of the state machine threw .*, which is no Error/),
  });
  expect(error.cause).toBe(thrown);
});

it('stops at the first command when apply() returns a promise', async () => {
  const { replica, fatal } = await applying(() => Promise.resolve(1) as never);
  await expect(replica.propose(bytes('x'))).rejects.toMatchObject({
    code: 'QUORATE_OUTCOME_UNKNOWN',
    message: expect.stringContaining('apply() of the state machine returned a promise'),
  });
  expect((await fatal)[0]).toMatchObject({ code: 'QUORATE_INVALID_ARGUMENT' });
});

it.each([new Error('no property'), 'a text', undefined])(
  'stops, and says why, when what apply() returns throws when it is asked whether it is a promise, %#',
  async (thrown) => {
    const { replica, fatal } = await applying(() => {
      const get = () => {
        throw thrown;
      };
      return Object.defineProperty({}, 'then', { get }) as never;
    });
    await expect(replica.propose(bytes('x'))).rejects.toMatchObject({ code: 'QUORATE_OUTCOME_UNKNOWN' });
    const [error] = (await fatal) as [Error];
    expect(error).toBeInstanceOf(Error);
    expect(thrown instanceof Error ? error : error.cause).toBe(thrown);
  },
);

/** To open a durable replica again, with this state machine, that has left a snapshot. */
async function leftSnapshot(stateMachine: CommandLog) {
  const durable = { directory: folder(), snapshotAfterBytes: 64 * 1024 };
  const list = await members(1);
  const first = await Replica.open(optionsFor(0, list, { durable }));
  open.push(first);
  while (first.status().durable?.snapshotLsn === 0) await first.propose(new Uint8Array(10_000));
  await first.close();
  return optionsFor(0, list, { durable, stateMachine });
}

it.each([
  ['restore() of the state machine', { restore: () => Promise.resolve() }],
  ['what puts the state of a snapshot in place', { restoreChunks: async () => () => Promise.resolve() }],
])('is not opened when %s returns a promise', async (what, later) => {
  const stateMachine = Object.assign(new CommandLog(), later);
  await expect(Replica.open(await leftSnapshot(stateMachine))).rejects.toMatchObject({
    code: 'QUORATE_INVALID_ARGUMENT',
    message: `${what} returned a promise: it must have done all when it returns`,
  });
});

const THROWN = [['a text'], [undefined], [Object.create(null)]];

/** State machines whose snapshot throws so. */
const failingSnapshots = (thrown: unknown): [string, object][] => [
  [
    'snapshot',
    {
      snapshot: () => {
        throw thrown;
      },
    },
  ],
  [
    'snapshotChunks',
    { snapshotChunks: () => ({ [Symbol.asyncIterator]: () => ({ next: () => Promise.reject(thrown) }) }) },
  ],
];

it.each(
  [
    ['QUORATE_SNAPSHOT_FAILED', (directory: string) => ({ durable: { directory, snapshotAfterBytes: 64 * 1024 } })],
    ['QUORATE_INVALID_ARGUMENT', (directory: string) => ({ surviveCrash: { directory } })],
  ].flatMap(([code, options]) =>
    THROWN.flatMap(([thrown]) =>
      failingSnapshots(thrown).map(([method, machine]) => ({ code, options, method, machine, thrown })),
    ),
  ),
)(
  'goes on and warns, $code, of what $method() throws that is no Error, %#',
  async ({ code, options, method, machine, thrown }) => {
    const stateMachine = Object.assign(new CommandLog(), machine);
    const more = { ...(options as (directory: string) => object)(folder()), stateMachine, logBytes: 64 * 1024 };
    const replica = await Replica.open(optionsFor(0, await members(1), more));
    open.push(replica);
    const warned = once(replica, 'warning');
    const fatal: unknown[] = [];
    replica.on('fatal', (error) => fatal.push(error));
    for (let count = 0; count < 100; count++) await replica.propose(new Uint8Array(1000));
    const [warning] = (await warned) as [QuorateError];
    expect(warning).toMatchObject({
      code,
      message: expect.stringContaining(`${method}() of the state machine threw ${inspect(thrown)}, which is no Error`),
    });
    expect((warning.cause as Error).cause).toBe(thrown);
    expect(await replica.propose(bytes('x'))).toMatchObject({ result: 101 });
    expect(fatal).toEqual([]);
  },
);

it.each(
  THROWN.flatMap(([thrown]) => {
    const fails = () => {
      throw thrown;
    };
    return [
      { what: 'restore() of the state machine', thrown, machine: { restore: fails } },
      {
        what: 'restoreChunks() of the state machine',
        thrown,
        machine: { restoreChunks: () => Promise.reject(thrown) },
      },
      { what: 'what puts the state of a snapshot in place', thrown, machine: { restoreChunks: async () => fails } },
      { what: 'restoreInPlace() of the state machine', thrown, machine: { restoreInPlace: fails } },
    ];
  }),
)('is not opened, and says why, when $what throws what is no Error, %#', async ({ what, machine, thrown }) => {
  const stateMachine = Object.assign(new CommandLog(), machine);
  const error = await Replica.open(await leftSnapshot(stateMachine)).catch((reason: unknown) => reason);
  expect(error).toMatchObject({
    code: 'QUORATE_INVALID_ARGUMENT',
    message: expect.stringContaining(`${what} threw ${inspect(thrown)}, which is no Error`),
  });
  expect((error as Error).cause).toBe(thrown);
});

it.each(THROWN)('is not opened, and says why, when attachMemory() throws what is no Error, %#', async (thrown) => {
  const attachMemory = () => {
    throw thrown;
  };
  const stateMachine = Object.assign(new CommandLog(), { attachMemory });
  const options = optionsFor(0, await members(1), { stateMachine });
  const error = await Replica.open(options).catch((reason: unknown) => reason);
  expect(error).toMatchObject({
    code: 'QUORATE_INVALID_ARGUMENT',
    message: expect.stringContaining(`attachMemory() of the state machine threw ${inspect(thrown)}, which is no Error`),
  });
  expect((error as Error).cause).toBe(thrown);
});

const LATE = /returned a promise: it must have done all when it returns/;
const later = () => Promise.reject(new Error('too late'));

it.each([
  ['snapshot() of the state machine', { snapshot: later }],
  ['snapshotChunks() of the state machine', { snapshotChunks: later }],
  [
    'taken() of what snapshotChunks() returned',
    { snapshotChunks: () => Object.assign([new Uint8Array(10), new Uint8Array(10)], { taken: later }) },
  ],
])('goes on and warns when %s returns a promise, and nobody has to wait for that', async (what, machine) => {
  const stateMachine = Object.assign(new CommandLog(), machine) as never;
  const durable = { directory: folder(), snapshotAfterBytes: 64 * 1024 };
  const replica = await Replica.open(optionsFor(0, await members(1), { durable, stateMachine, logBytes: 64 * 1024 }));
  open.push(replica);
  const warned = once(replica, 'warning');
  for (let count = 0; count < 100; count++) await replica.propose(new Uint8Array(1000));
  const [warning] = (await warned) as [QuorateError];
  expect(warning).toMatchObject({ code: 'QUORATE_SNAPSHOT_FAILED', message: expect.stringMatching(LATE) });
  expect(warning.message).toContain(what);
  expect(await replica.propose(bytes('x'))).toMatchObject({ result: 101 });
});

it.each([
  ['restoreInPlace() of the state machine', later],
  ['next() of what restoreInPlace() of the state machine returned', () => ({ next: later, finish: () => () => {} })],
])('is not opened when %s returns a promise, and nobody has to wait for that', async (what, restoreInPlace) => {
  const stateMachine = Object.assign(new CommandLog(), { restoreInPlace }) as never;
  const error = await Replica.open(await leftSnapshot(stateMachine)).catch((reason: unknown) => reason);
  expect(error).toMatchObject({ code: 'QUORATE_INVALID_ARGUMENT', message: expect.stringMatching(LATE) });
  expect((error as Error).message).toContain(what);
});

it('proposes nothing again once it closes', async () => {
  const replica = await Replica.open(optionsFor(0, await members(1)));
  open.push(replica);
  const settled = replica.propose(bytes('x'), { session: { origin: 5, sequence: 1 } }).catch((error: Error) => error);
  const { tailLsn } = replica.status();
  await replica.close();
  expect(await settled).toMatchObject({
    code: 'QUORATE_OUTCOME_UNKNOWN',
    message: expect.stringContaining('replica 0 was closed'),
  });
  expect(replica.status()).toMatchObject({ tailLsn, pendingProposals: 0 });
});

it('tells the leader, too, when the time of a command with a session is over, which may still be applied, once', async () => {
  const replica = await Replica.open(optionsFor(0, await members(1)));
  open.push(replica);
  const session = { origin: 5, sequence: 1 };
  // It leads, and nothing is committed, as while the disk of a durable replica does not answer.
  Object.assign(replica, { poll: () => {}, flush: () => {} });
  await expect(replica.propose(bytes('x'), { session, timeoutMs: 20 })).rejects.toMatchObject({
    code: 'QUORATE_OUTCOME_UNKNOWN',
    message: expect.stringContaining('within 20 ms'),
  });
  expect(replica.status()).toMatchObject({ role: 'leader', pendingProposals: 1 });
  for (const name of ['poll', 'flush']) delete (replica as unknown as Record<string, unknown>)[name];
  expect(await replica.propose(bytes('x'), { session, timeoutMs: 60_000 })).toMatchObject({
    duplicate: true,
    result: 1,
  });
});

const give = (command: Uint8Array<ArrayBuffer>) => void structuredClone(command.buffer, { transfer: [command.buffer] });

it('refuses a command whose buffer has gone elsewhere, before propose() or while it waited, and goes on', async () => {
  const cluster = await openCluster(3);
  open.push(...cluster.replicas);
  const leader = await cluster.leader();
  const refusal = { code: 'QUORATE_INVALID_ARGUMENT', message: expect.stringContaining('transferred') };
  for (const replica of cluster.replicas) {
    await waitFor(() => replica.status().leader === leader.id, 'all to know the leader');
    const gone = bytes('gone');
    give(gone);
    await expect(replica.propose(gone)).rejects.toMatchObject(refusal);
  }
  // The log has no room for all of these, which settle when followers have applied, in later turns.
  const others = Promise.all(Array.from({ length: 32 }, () => leader.propose(new Uint8Array(64 * 1024))));
  const waiting = bytes('waiting');
  const refused = leader.propose(waiting).catch((error: Error) => error);
  give(waiting);
  expect(await refused).toMatchObject(refusal);
  expect((await others).length).toBe(32);
  expect(await leader.propose(bytes('next'))).toMatchObject({ result: 33 });
});

it.each([2 * 1024 * 1024, 50])(
  'refuses a command of 100 bytes whose buffer has %i of them when there is room for it, and takes those behind it',
  async (lengthBytes) => {
    const cluster = await openCluster(3);
    open.push(...cluster.replicas);
    const leader = await cluster.leader();
    const others = Promise.all(Array.from({ length: 32 }, () => leader.propose(new Uint8Array(64 * 1024))));
    // TypeScript's library does not have it yet, which Node.js 20 has.
    const Resizable = ArrayBuffer as unknown as new (
      lengthBytes: number,
      options: { maxByteLength: number },
    ) => ArrayBuffer & { resize(lengthBytes: number): void };
    const buffer = new Resizable(100, { maxByteLength: 4 * 1024 * 1024 });
    const refused = leader.propose(new Uint8Array(buffer)).catch((error: Error) => error);
    const behind = leader.propose(bytes('behind'));
    buffer.resize(lengthBytes);
    expect((await others).length).toBe(32);
    expect(await behind).toMatchObject({ result: 33 });
    expect(await refused).toMatchObject({
      code: 'QUORATE_INVALID_ARGUMENT',
      message: expect.stringContaining('has shrunk or grown'),
    });
  },
);

it('refuses a command whose buffer has gone elsewhere while it waited for a leader', async () => {
  let leader: number | undefined;
  const proposals = new ForwardedProposals({
    id: 0,
    leaderId: () => leader,
    trusts: () => true,
    proposeHere: () => Promise.reject(new Error('not expected')),
    send: (_leader, command) => {
      encodePropose({ asker: 1, number: 1 }, 0, 0, command);
      return null;
    },
    withdraw: () => false,
    forget: () => {},
    notLeader: () => new QuorateError('QUORATE_NOT_LEADER', 'not expected'),
  });
  const command = bytes('parked');
  const refused = new Promise((resolve, reject) => {
    proposals.add({ command, session: undefined, timeoutMs: 20_000, resolve: reject, reject: resolve });
  });
  give(command);
  leader = 1;
  proposals.noticeLeader();
  expect(await refused).toMatchObject({ code: 'QUORATE_INVALID_ARGUMENT' });
  expect(proposals.size).toBe(0);
});

it('gives nobody a state that is not bytes, and says whose fault that is', async () => {
  const cluster = await openCluster(3, { logBytes: 64 * 1024, profile: 'balanced' });
  const leader = await cluster.leader();
  open.push(...cluster.replicas);
  for (const machine of cluster.machines) machine.snapshot = () => JSON.stringify(machine.commands) as never;
  const returning = cluster.replicas.find((replica) => replica !== leader) as Replica<number>;
  await returning.close();
  for (let count = 0; count < 100; count++) await leader.propose(new Uint8Array(1000));
  const warned = once(leader, 'warning');
  const back = await Replica.open(optionsFor(returning.id, cluster.members, { logBytes: 64 * 1024 }));
  open.push(back);
  const [warning] = await warned;
  expect(warning).toMatchObject({ message: expect.stringMatching(/snapshot\(\) .* something else than a Uint8Array/) });
  expect(back.status().isVoter).toBe(false);
});

it('gives nobody a state that is said to be larger than any that can be given, and says how large that is', async () => {
  const cluster = await openCluster(3, { logBytes: 64 * 1024, profile: 'balanced' });
  const leader = await cluster.leader();
  open.push(...cluster.replicas);
  for (const machine of cluster.machines) {
    Object.assign(machine, { snapshotChunks: () => Object.assign([machine.snapshot()], { lengthBytes: 2 ** 40 + 1 }) });
  }
  const returning = cluster.replicas.find((replica) => replica !== leader) as Replica<number>;
  await returning.close();
  for (let count = 0; count < 100; count++) await leader.propose(new Uint8Array(1000));
  const warned = once(leader, 'warning');
  open.push(await Replica.open(optionsFor(returning.id, cluster.members, { logBytes: 64 * 1024 })));
  const [warning] = await warned;
  expect(warning).toMatchObject({
    message: expect.stringMatching(
      /snapshotChunks\(\) says that its state has 10995116\d+ bytes; no more than 1099511627776 are given/,
    ),
  });
});

it.each([
  [
    'durable',
    'QUORATE_SNAPSHOT_FAILED',
    (directory: string) => ({ durable: { directory, snapshotAfterBytes: 64 * 1024 } }),
  ],
  ['surviving', 'QUORATE_INVALID_ARGUMENT', (directory: string) => ({ surviveCrash: { directory } })],
])('goes on, a %s replica, and warns, when its state machine gives empty pieces without end', async (_, code, kind) => {
  const snapshotChunks = function* () {
    for (;;) yield new Uint8Array(0);
  };
  const more = { ...kind(folder()), stateMachine: Object.assign(new CommandLog(), { snapshotChunks }) };
  const replica = await Replica.open(optionsFor(0, await members(1), { ...more, logBytes: 64 * 1024 }));
  open.push(replica);
  const warned = once(replica, 'warning');
  for (let count = 0; count < 100; count++) await replica.propose(new Uint8Array(1000));
  expect(await warned).toMatchObject([{ code, message: expect.stringMatching(/more than \d+ empty pieces/) }]);
  expect(await replica.propose(bytes('x'))).toMatchObject({ result: 101 });
});

it('does not store a snapshot that its state machine could not restore, keeps the log, and says what is missing', async () => {
  const directory = folder();
  const machine = { snapshotChunks: () => Object.assign([new Uint8Array(1)], { lengthBytes: 2 ** 31 + 1 }) };
  const addresses = await members(1);
  const durable = { directory, snapshotAfterBytes: 64 * 1024 };
  const openWith = async (stateMachine: CommandLog) => {
    const replica = await Replica.open(optionsFor(0, addresses, { durable, stateMachine, logBytes: 64 * 1024 }));
    open.push(replica);
    return replica;
  };
  const replica = await openWith(Object.assign(new CommandLog(), machine));
  const warned = once(replica, 'warning');
  for (let count = 0; count < 100; count++) await replica.propose(new Uint8Array(1000));
  expect(await warned).toMatchObject([
    { code: 'QUORATE_SNAPSHOT_FAILED', message: expect.stringContaining('give the state machine restoreChunks()') },
  ]);
  await replica.close();
  expect(await (await openWith(new CommandLog())).propose(bytes('x'))).toMatchObject({ result: 101 });
});

/** Its snapshots begin and never end. */
class EndlessSnapshot extends CommandLog {
  private begun = (): void => {};
  /** A snapshot waits for a piece that does not come. */
  readonly waits = new Promise<void>((resolve) => {
    this.begun = resolve;
  });
  async *snapshotChunks(): AsyncGenerator<Uint8Array> {
    yield bytes('a piece');
    this.begun();
    await new Promise(() => {});
  }
  async restoreChunks(): Promise<() => void> {
    return () => {};
  }
}

it.each([
  ['durable', (directory: string) => ({ durable: { directory, snapshotAfterBytes: 64 * 1024 } })],
  ['surviving', (directory: string) => ({ surviveCrash: { directory } })],
])('closes a %s replica whose state machine does not end its snapshot', async (_kind, options) => {
  const machine = new EndlessSnapshot();
  const more = { ...options(folder()), stateMachine: machine, logBytes: 64 * 1024 };
  const replica = await Replica.open(optionsFor(0, await members(1), more));
  open.push(replica);
  for (let count = 0; count < 100; count++) await replica.propose(new Uint8Array(1000));
  await machine.waits;
  await replica.close();
});

it('rejects open(), and throws at nobody, when the background thread fails before', async () => {
  const directory = folder();
  const durable = { directory, snapshotAfterBytes: 64 * 1024 };
  const list = await members(1);
  const first = await Replica.open(optionsFor(0, list, { durable }));
  open.push(first);
  while (first.status().durable?.snapshotLsn === 0) await first.propose(new Uint8Array(10_000));
  await first.close();

  const uncaught = await uncaughtBy(async () => {
    const machine = new CommandLog();
    // When the state is brought back the store of the promises is closed, and the thread that uses it does not run yet.
    machine.restore = () => {
      rmSync(join(directory, 'promise'), { recursive: true, force: true });
      rmSync(join(directory, 'promise-lock'), { force: true });
      writeFileSync(join(directory, 'promise'), 'no store');
    };
    const failed = Replica.open(optionsFor(0, list, { durable, stateMachine: machine }));
    await expect(failed).rejects.toMatchObject({
      code: 'QUORATE_DISK_FAILED',
      message: expect.stringContaining(directory),
    });
  });
  expect(uncaught).toEqual([]);
});

it('goes on, with elections and transfers, when listeners throw', async () => {
  const more = { logBytes: 64 * 1024, profile: 'balanced' } as const;
  const cluster = await openCluster(3, more);
  const leader = await cluster.leader();
  open.push(...cluster.replicas);
  const [returning, donor] = cluster.replicas.filter((replica) => replica !== leader) as [
    Replica<number>,
    Replica<number>,
  ];
  const thrown = { leader: new Error('of leader'), transfer: new Error('of transfer') };
  donor.on('transfer', ({ role, state }) => {
    if (role === 'donor' && state === 'done') throw thrown.transfer;
  });
  let heardOf: number | undefined;
  donor.on('leader', (id) => {
    heardOf = id;
    throw thrown.leader;
  });
  const uncaught = await uncaughtBy(async () => {
    await returning.close();
    for (let count = 0; count < 100; count++) await leader.propose(new Uint8Array(1000));
    const back = await Replica.open(optionsFor(returning.id, cluster.members, more));
    open.push(back);
    await waitFor(() => back.status().isVoter, 'the state to be transferred');
    await waitFor(() => donor.status().transfers.length === 0, 'the transfer to have ended at the donor');
    // Which of the two others leads next is not for this test to say: on a slow machine it is either of them.
    await leader.close();
    const next = () => [donor, back].find((replica) => replica.status().role === 'leader');
    await waitFor(() => heardOf !== undefined && heardOf === next()?.id, 'the next leader to be told');
  });
  expect(new Set(uncaught)).toEqual(new Set(Object.values(thrown)));
  expect(await donor.read(() => 'it can be read')).toBe('it can be read');
});

it('tells nothing any more once it closes', async () => {
  const cluster = await openCluster(3, { profile: 'balanced' });
  open.push(...cluster.replicas);
  const [closing, other] = cluster.replicas as [Replica<number>, Replica<number>];
  const news: unknown[] = [];
  closing.on('peer', (...event) => news.push(event));
  // A member that does not answer its farewell holds up the end, so that there is time for news of the other replica.
  const { host, port } = cluster.members[0] as MemberAddress;
  const hello = () => ({ id: 9, bootId: 77, clusterId: null });
  const client = new ControlClient({ clusterKey: CLUSTER_KEY, memberIds: [0, 9], hello });
  const silent = await client.dial({ host, port });
  await new Promise((resolve) => setImmediate(resolve)); // it begins to read in the next turn
  (silent as unknown as { transport: { pause(): void } }).transport.pause();
  const closed = closing.close();
  await other.close();
  await closed;
  silent.destroy();
  expect(news).toEqual([]);
});
