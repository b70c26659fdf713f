// Bad input to Replica.open() and its calls gets a clear, coded error at the boundary.
import { mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { genesisConfiguration } from '#lib/consensus/configuration.js';
import { type MemberAddress, PROFILES, QuorateError, Replica, type ReplicaOptions } from '#lib/index.js';
import { ControlServer } from '#lib/replica/control-channel.js';
import { CLUSTER_KEY, members, openCluster, optionsFor, waitFor } from './fixture.js';

async function failure(promise: Promise<unknown>): Promise<{ code?: string; message: string }> {
  try {
    await promise;
  } catch (error) {
    return error as { code?: string; message: string };
  }
  throw new Error('it was accepted');
}

describe('Replica.open() refuses', () => {
  const cases: [string, (list: Awaited<ReturnType<typeof members>>) => object, string, RegExp][] = [
    ['a missing cluster key', () => ({ clusterKey: undefined }), 'QUORATE_CLUSTER_KEY', /key/],
    ['a cluster key that is too short', () => ({ clusterKey: 'short' }), 'QUORATE_CLUSTER_KEY', /16/],
    ['a device that is not there', () => ({ device: 'nosuch0' }), 'QUORATE_NO_DEVICE', /nosuch0/],
    [
      'a member list without itself',
      (list) => ({ members: list.slice(1) }),
      'QUORATE_INVALID_ARGUMENT',
      /id 0 is not in members/,
    ],
    ['an id that is listed twice', (list) => ({ members: [...list, list[0]] }), 'QUORATE_INVALID_ARGUMENT', /twice/],
    [
      'an address that is listed twice',
      (list) => ({ members: [...list, { ...list[0], id: 7 }] }),
      'QUORATE_INVALID_ARGUMENT',
      /members lists 127\.0\.0\.1:[0-9]+ twice, for replicas 0 and 7/,
    ],
    ['an empty member list', () => ({ members: [] }), 'QUORATE_INVALID_ARGUMENT', /members/],
    ['a ring that is no power of two', () => ({ logBytes: 100_000 }), 'QUORATE_INVALID_ARGUMENT', /power of two/],
    ['a ring that is too small', () => ({ logBytes: 1024 }), 'QUORATE_INVALID_ARGUMENT', /logBytes 1024/],
    [
      'a state machine without restore()',
      () => ({ stateMachine: { apply() {}, snapshot() {} } }),
      'QUORATE_INVALID_ARGUMENT',
      /restore/,
    ],
    [
      'a state machine whose apply() is async',
      () => ({ stateMachine: { async apply() {}, snapshot() {}, restore() {} } }),
      'QUORATE_INVALID_ARGUMENT',
      /stateMachine.apply is an async function/,
    ],
    [
      'a state machine whose snapshot() is async',
      () => ({ stateMachine: { apply() {}, async snapshot() {}, restore() {} } }),
      'QUORATE_INVALID_ARGUMENT',
      /stateMachine.snapshot is an async function/,
    ],
    [
      'a state machine whose restore() is async',
      () => ({ stateMachine: { apply() {}, snapshot() {}, async restore() {} } }),
      'QUORATE_INVALID_ARGUMENT',
      /stateMachine.restore is an async function/,
    ],
    [
      'an option that is misspelt',
      () => ({ durabel: true }),
      'QUORATE_INVALID_ARGUMENT',
      /no member 'durabel'.*durable/,
    ],
    ['one of `durable`', () => ({ durable: { dir: '/tmp/x' } }), 'QUORATE_INVALID_ARGUMENT', /no member 'dir'/],
    [
      'one of `lease`',
      () => ({ lease: { lengthMs: 5 } }),
      'QUORATE_INVALID_ARGUMENT',
      /lease has no member 'lengthMs'/,
    ],
    [
      'one of `backgroundThread`',
      () => ({ backgroundThread: { priority: 5 } }),
      'QUORATE_INVALID_ARGUMENT',
      /backgroundThread has no member 'priority'/,
    ],
    [
      'one of `surviveCrash`',
      () => ({ surviveCrash: { dir: '/x' } }),
      'QUORATE_INVALID_ARGUMENT',
      /surviveCrash has no/,
    ],
    [
      'one of `members`',
      (list) => ({ members: list.map((member) => ({ ...member, prio: 3 })) }),
      'QUORATE_INVALID_ARGUMENT',
      /members has no member 'prio'.*priority/,
    ],
    [
      'a region in no directory',
      () => ({ surviveCrash: true, shmDirectory: '' }),
      'QUORATE_INVALID_ARGUMENT',
      /shmDirectory is not/,
    ],
    [
      'a region in a directory that is a number',
      () => ({ surviveCrash: true, shmDirectory: 5 }),
      'QUORATE_INVALID_ARGUMENT',
      /shmDirectory is not/,
    ],
    ['a cluster key that is none', () => ({ clusterKey: null, surviveCrash: true }), 'QUORATE_CLUSTER_KEY', /neither/],
    ['a profile that is none', () => ({ profile: null }), 'QUORATE_INVALID_ARGUMENT', /profile is neither/],
    ['a profile that every object has', () => ({ profile: 'constructor' }), 'QUORATE_INVALID_ARGUMENT', /constructor/],
    [
      'a profile whose times are digits',
      () => ({ profile: { ...PROFILES.relaxed, takeoverTimeout_ns: '3000000000' } }),
      'QUORATE_INVALID_ARGUMENT',
      /takeoverTimeout_ns 3000000000 is not a finite number/,
    ],
    [
      'a profile whose elections never end',
      () => ({ profile: { ...PROFILES.relaxed, takeoverTimeout_ns: Number.POSITIVE_INFINITY } }),
      'QUORATE_INVALID_ARGUMENT',
      /takeoverTimeout_ns Infinity/,
    ],
    [
      'a profile by which a replica in an election looks dead',
      () => ({ profile: { ...PROFILES.fast, electionTick_ns: 1_000_000 } }),
      'QUORATE_INVALID_ARGUMENT',
      /electionTick_ns 1000000 is more than tick_ns, 100000/,
    ],
    ['a region that is none', () => ({ surviveCrash: null }), 'QUORATE_INVALID_ARGUMENT', /surviveCrash/],
    [
      'an address that is none',
      (list) => ({ members: undefined, join: list.slice(1), address: null }),
      'QUORATE_INVALID_ARGUMENT',
      /address must be an object/,
    ],
    ['an unknown profile', () => ({ profile: 'turbo' }), 'QUORATE_INVALID_ARGUMENT', /turbo/],
    ['an unknown permission strategy', () => ({ permissionStrategy: 'hope' }), 'QUORATE_INVALID_ARGUMENT', /hope/],
    [
      'a hold after the end that is too long',
      () => ({ holdAtExitMs: 1001 }),
      'QUORATE_INVALID_ARGUMENT',
      /holdAtExitMs 1001/,
    ],
    [
      'a controller instead of its signal',
      () => ({ signal: new AbortController() }),
      'QUORATE_INVALID_ARGUMENT',
      /signal is no AbortSignal/,
    ],
    ['an id in digits', () => ({ id: '0' }), 'QUORATE_INVALID_ARGUMENT', /id "0" is not an integer in 0\.\.15/],
    [
      'an id that is no value',
      () => ({ id: Object.create(null) }),
      'QUORATE_INVALID_ARGUMENT',
      /id \[Object: null prototype\] \{\} is/,
    ],
    [
      'a cluster key that only looks like bytes',
      () => ({ clusterKey: new Proxy(new Uint8Array(32), {}) }),
      'QUORATE_CLUSTER_KEY',
      /neither a string nor a Uint8Array/,
    ],
    [
      'a directory for a durable replica that no path can name',
      () => ({ durable: { directory: '/tmp/a\0b' } }),
      'QUORATE_INVALID_ARGUMENT',
      /durable.directory has a NUL character/,
    ],
    [
      'a region in a directory that no path can name',
      () => ({ surviveCrash: { directory: '/tmp/a\0b' } }),
      'QUORATE_INVALID_ARGUMENT',
      /surviveCrash.directory has a NUL character/,
    ],
    [
      'a state machine that is not attached yet when attachMemory() returns',
      () => ({
        stateMachine: {
          apply() {},
          snapshot() {},
          restore() {},
          async attachMemory() {
            throw new Error('not today');
          },
        },
      }),
      'QUORATE_INVALID_ARGUMENT',
      /attachMemory\(\) of the state machine returned a promise/,
    ],
    ['a device that is a number', () => ({ device: 5 }), 'QUORATE_INVALID_ARGUMENT', /device 5 is not/],
    [
      "a device's port in digits",
      () => ({ devicePort: '1' }),
      'QUORATE_INVALID_ARGUMENT',
      /devicePort "1" is not an integer in 1\.\.255/,
    ],
    [
      'a port that no device has',
      () => ({ devicePort: 256 }),
      'QUORATE_INVALID_ARGUMENT',
      /devicePort 256 is not an integer/,
    ],
    ['a port that this device has not', () => ({ devicePort: 2 }), 'QUORATE_OUT_OF_RANGE', /no port 2/],
    ['a GID in digits', () => ({ gidIndex: '0' }), 'QUORATE_INVALID_ARGUMENT', /gidIndex "0" is not an integer/],
    ['a GID that is not there', () => ({ gidIndex: 9 }), 'QUORATE_NO_GID', /index 9/],
    [
      'a port out of range',
      (list) => ({ members: [{ ...list[0], port: 70_000 }] }),
      'QUORATE_INVALID_ARGUMENT',
      /70000/,
    ],
  ];
  it.each(cases)('%s', async (_name, change, code, text) => {
    const list = await members(3);
    const error = await failure(Replica.open({ ...optionsFor(0, list), ...change(list) } as never));
    expect(error.code).toBe(code);
    expect(error.message).toMatch(text);
  });

  it.each([
    ...['logBytes', 'openTimeoutMs', 'pendingProposalsMax', 'pendingReadBarriersMax', 'replaceAfterMs', 'holdAtExitMs'],
    ...[
      'device',
      'devicePort',
      'gidIndex',
      'shmDirectory',
      'permissionStrategy',
      'profile',
      'backgroundThread',
      'durable',
    ],
    ...['surviveCrash', 'lease', 'lease.lengthUs', 'lease.driftBoundPpm', 'surviveCrash.snapshotBytesMax'],
    ...['waitForLeader', 'keepCompiledCode', 'rehearseTakeovers'],
  ])('%s that is null, which is not left out', async (option) => {
    const [name, member] = option.split('.') as [string, string | undefined];
    const value = member === undefined ? null : { [member]: null };
    const error = await failure(Replica.open({ ...optionsFor(0, await members(1)), [name]: value } as never));
    expect(error).toMatchObject({ code: expect.stringMatching(/^QUORATE_(INVALID_ARGUMENT|NO_GID)$/) });
  });

  it('a second process with the same id and address', async () => {
    const cluster = await openCluster(1);
    try {
      const error = await failure(Replica.open(optionsFor(0, cluster.members)));
      expect(error.code).toBe('QUORATE_ADDRESS_IN_USE');
    } finally {
      await cluster.close();
    }
  });

  it('a second process with the same id at another address', async () => {
    const cluster = await openCluster(3);
    try {
      const [other] = await members(1);
      const list = cluster.members.map((member) => (member.id === 2 ? { ...member, port: other?.port ?? 0 } : member));
      const error = await failure(Replica.open(optionsFor(2, list, { openTimeoutMs: 20_000 })));
      expect(error.code).toBe('QUORATE_DUPLICATE_ID');
    } finally {
      await cluster.close();
    }
  });

  it('another cluster key than its peers have, naming the key, not only a timeout', async () => {
    const list = await members(2);
    const wrong = Replica.open(optionsFor(0, list, { clusterKey: `${CLUSTER_KEY}!`, openTimeoutMs: 3_000 }));
    const right = Replica.open(optionsFor(1, list, { openTimeoutMs: 3_000 }));
    const errors = await Promise.all([failure(wrong), failure(right)]);
    for (const error of errors) expect(`${error.code} ${error.message}`).toMatch(/cluster key/);
  });

  it('the key of a peer that has given up meanwhile, naming the key all the same', async () => {
    const list = await members(2);
    const wrong = Replica.open(optionsFor(0, list, { clusterKey: `${CLUSTER_KEY}!`, openTimeoutMs: 1_500 }));
    const right = Replica.open(optionsFor(1, list, { openTimeoutMs: 5_000 }));
    const errors = await Promise.all([failure(wrong), failure(right)]);
    for (const error of errors) expect(`${error.code} ${error.message}`).toMatch(/cluster key/);
  });

  it('to wait for ever for members that do not come, and names them', async () => {
    const list = await members(3);
    const error = await failure(Replica.open(optionsFor(0, list, { openTimeoutMs: 300 })));
    expect(error.code).toBe('QUORATE_OPEN_TIMEOUT');
    expect(error.message).toMatch(/replicas 1, 2 could not be reached/);
  });

  it('to wait for ever for a cluster to join, and does not say that all of its members are needed', async () => {
    const [self, ...list] = (await members(3)) as [MemberAddress, ...MemberAddress[]];
    const { host, port } = self;
    const options = {
      ...optionsFor(0, undefined as never, { openTimeoutMs: 300 }),
      join: list,
      address: { host, port },
    };
    const error = await failure(Replica.open(options));
    expect(error.code).toBe('QUORATE_OPEN_TIMEOUT');
    expect(error.message).toMatch(
      /no member that it was told to ask has told it of a cluster; replicas 1, 2 could not be reached/,
    );
    expect(error.message).not.toMatch(/all members/);
  });

  it.each([
    ['what is no answer', () => 'garbage', /replica 1 .*formation reply without a bootId/],
    ['a number that no life has', () => ({ bootId: 2 ** 48, genesis: null }), /replica 1 .*without a bootId/],
    ['no cluster', () => ({ bootId: 5, genesis: 'garbage' }), /replica 1 .*invalid configuration: not an object/],
    [
      'two clusters',
      () => {
        const founders = [0, 1].map((id) => ({ id, bootId: 70 + id, host: '127.0.0.1', port: 5000 + id }));
        return { bootId: 5, genesis: genesisConfiguration(8, founders), current: genesisConfiguration(9, founders) };
      },
      /replica 1 .*configurations of two clusters/,
    ],
    [
      'a failure',
      () => {
        throw new QuorateError('QUORATE_NOT_READY', 'a bad day');
      },
      /replica 1 .*a bad day/,
    ],
  ])('to wait for ever for a member that answers with %s, and says so', async (_, answer, reason) => {
    const list = await members(2);
    const hello = () => ({ id: 1, bootId: 77, clusterId: null });
    const server = new ControlServer({ clusterKey: CLUSTER_KEY, memberIds: [0, 1], hello });
    server.on('connection', (connection) => connection.onRequest('formation', answer));
    await server.listen('127.0.0.1', list[1]?.port ?? 0);
    try {
      const error = await failure(Replica.open(optionsFor(0, list, { openTimeoutMs: 1_000 })));
      expect(error.code).toBe('QUORATE_OPEN_TIMEOUT');
      expect(error.message).toMatch(/all members were reached but did not agree/);
      expect(error.message).toMatch(reason);
    } finally {
      await server.close();
    }
  });

  it('a segment directory that others may read', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'quorate-test-'));
    const { chmodSync } = await import('node:fs');
    chmodSync(directory, 0o755);
    const list = await members(1);
    const error = await failure(Replica.open(optionsFor(0, list, { shmDirectory: directory })));
    expect(error.message).toMatch(/0700|mode/);
  });
});

describe('propose() refuses', () => {
  it('what is no bytes, is too large, or names no valid session', async () => {
    const cluster = await openCluster(1);
    try {
      const [replica] = cluster.replicas as [Replica<number>];
      for (const command of ['text', new Proxy(new Uint8Array(1), {}), Object.create(Uint8Array.prototype)]) {
        expect((await failure(replica.propose(command as never))).code).toBe('QUORATE_INVALID_ARGUMENT');
      }
      const limit = replica.payloadBytesMax;
      const error = await failure(replica.propose(new Uint8Array(limit + 1)));
      expect(error.code).toBe('QUORATE_PAYLOAD_TOO_LARGE');
      expect(error.message).toContain(`${limit} bytes`);
      await replica.propose(new Uint8Array(limit));
      const session = { origin: 0, sequence: 1 };
      for (const one of [session, null as never]) {
        const refused = replica.propose(new Uint8Array(1), { session: one });
        expect((await failure(refused)).code).toBe('QUORATE_INVALID_ARGUMENT');
      }
      expect((await failure(replica.changeAddress(0, undefined as never))).code).toBe('QUORATE_INVALID_ARGUMENT');
      const misspelt = { id: 1, host: '127.0.0.1', port: 1, prio: 3 };
      for (const change of [replica.addLearner(misspelt), replica.addSpare(misspelt), replica.replace(0, misspelt)]) {
        expect((await failure(change)).message).toMatch(/no member 'prio'.*priority/);
      }
      expect(replica.status().members).toHaveLength(1);
    } finally {
      await cluster.close();
    }
  });
});

it('leasedRead() refuses what is no function, at the leader and elsewhere', async () => {
  const cluster = await openCluster(1);
  try {
    const [replica] = cluster.replicas as [Replica<number>];
    const refused = expect.objectContaining({ code: 'QUORATE_INVALID_ARGUMENT' });
    await waitFor(() => replica.status().leaseRemainingUs > 0, 'a lease');
    expect(() => replica.leasedRead(5 as never)).toThrow(refused);
    await replica.close();
    expect(() => replica.leasedRead(5 as never)).toThrow(refused);
  } finally {
    await cluster.close();
  }
});

describe('options of a call', () => {
  const calls: [string, (replica: Replica<number>, options: never) => Promise<unknown>][] = [
    ['propose', (replica, options) => replica.propose(new Uint8Array(1), options)],
    ['read', (replica, options) => replica.read(() => 1, options)],
    ['promote', (replica, options) => replica.promote(1, options)],
    ['replace', (replica, options) => replica.replace(0, { id: 1, host: '127.0.0.1', port: 1 }, options)],
    ['transferLeadership', (replica, options) => replica.transferLeadership(undefined, options)],
  ];

  it('that are no object, or misspelt, are refused, and nothing is done', async () => {
    const cluster = await openCluster(1);
    try {
      const [replica] = cluster.replicas as [Replica<number>];
      await replica.propose(new Uint8Array(1));
      const { tailLsn } = replica.status();
      for (const [name, call] of calls) {
        for (const options of [null, 5, 'x', true, { timeoutMS: 5 }]) {
          const refused = call(replica, options as never);
          await expect(refused, `${name}() with ${options}`).rejects.toMatchObject({
            code: 'QUORATE_INVALID_ARGUMENT',
            message: expect.stringContaining(`${name}()`),
          });
        }
        await expect(call(replica, { timeoutMs: null } as never), `${name}()`).rejects.toMatchObject({
          code: 'QUORATE_INVALID_ARGUMENT',
          message: expect.stringContaining('timeoutMs null'),
        });
      }
      const unsafe = { iUnderstandThatAcknowledgedCommandsMayBeLost: true, evenIfNoVoter: true } as const;
      await expect(Replica.forceNewCluster(replica, unsafe as never)).rejects.toMatchObject({
        message: expect.stringMatching(/no member 'evenIfNoVoter'.*evenIfNotVoter/),
      });
      // Would be proposed twice if it is proposed again.
      await expect(
        replica.propose(new Uint8Array(1), { sesion: { origin: 1, sequence: 1 } } as never),
      ).rejects.toMatchObject({ message: expect.stringMatching(/no member 'sesion'.*session/) });
      await expect(replica.propose(new Uint8Array(1), { forward: 'no' } as never)).rejects.toMatchObject({
        message: 'forward is not a boolean',
      });
      expect(replica.status()).toMatchObject({ tailLsn, role: 'leader' });
    } finally {
      await cluster.close();
    }
  });
});

describe('Replica.open() takes options', () => {
  /** One whose options are computed, as a class of settings has them. */
  class Settings {
    readonly #options: ReplicaOptions<number>;
    constructor(options: ReplicaOptions<number>) {
      this.#options = options;
    }
    get id() {
      return this.#options.id;
    }
    get members() {
      return this.#options.members;
    }
    get clusterKey() {
      return this.#options.clusterKey;
    }
    get stateMachine() {
      return this.#options.stateMachine;
    }
    get device() {
      return 'shm';
    }
    get rehearseTakeovers() {
      return false;
    }
  }

  it.each<[string, (options: ReplicaOptions<number>) => object]>([
    ['that are inherited', (options) => Object.create(options) as object],
    ['that are computed by a class', (options) => new Settings(options)],
  ])('%s', async (_, given) => {
    const replica = await Replica.open(given(optionsFor(0, await members(1))) as ReplicaOptions<number>);
    try {
      expect(await replica.propose(new Uint8Array(1))).toMatchObject({ result: 1 });
    } finally {
      await replica.close();
    }
  });

  it('whose list of members goes on growing behind its back', async () => {
    const list = await members(3);
    const founders = list.slice(0, 2);
    const opening = [0, 1].map((id) => Replica.open(optionsFor(id, founders, { openTimeoutMs: 10_000 })));
    founders.push(list[2] as MemberAddress);
    const replicas = await Promise.all(opening);
    try {
      expect(replicas.map((replica) => replica.status().voters)).toEqual([
        [0, 1],
        [0, 1],
      ]);
    } finally {
      await Promise.all(replicas.map((replica) => replica.close()));
    }
  });
});
