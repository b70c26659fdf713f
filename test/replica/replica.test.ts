// Replica as a service uses it, on shm, all members in this process: what a cluster owes its users.
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import workerThreads from 'node:worker_threads';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { type MemberAddress, Replica } from '#lib/index.js';
import { WARNING_INTERVAL_MS } from '#lib/replica/control/limits.js';
import { Mailbox } from '#lib/replica/mailbox/mailbox.js';
import { Context, Fence, unshare } from '#lib/verbs/index.js';
import { addon } from '#lib/verbs/load-addon.js';
import { answers, CommandLog, members, openCluster, optionsFor, type TestCluster, waitFor } from './fixture.js';

let cluster: TestCluster;
afterEach(async () => {
  await cluster?.close();
});

const bytes = (text: string) => new Uint8Array(Buffer.from(text));

it('runs in a program that comes by standard input, or from the command line', async () => {
  const program = `
    import { Replica } from '#lib/index.js';
    const stateMachine = { apply: () => 5, snapshot: () => new Uint8Array(0), restore() {} };
    const members = ${JSON.stringify(await members(1))};
    const replica = await Replica.open({ id: 0, members, clusterKey: 'a cluster key for tests', stateMachine, device: 'shm' });
    console.log((await replica.propose(new Uint8Array(1))).result);
    await replica.close();
  `;
  const run = (args: string[], input: string) =>
    execFileSync(process.execPath, ['--input-type=module', ...args], { input, timeout: 25_000 }).toString();
  expect(run([], program)).toBe('5\n');
  expect(run(['--eval', program], '')).toBe('5\n');
});

it('says so, and leaves nothing behind, when Node.js starts no background thread', async () => {
  const { sharedTokens } = addon.diagnostics();
  // As when the process, or its user, has as many threads as it may have.
  function startNone(): never {
    throw Object.assign(new Error('Worker initialization failure: EAGAIN'), { code: 'ERR_WORKER_INIT_FAILED' });
  }
  const none = vi.spyOn(workerThreads, 'Worker').mockImplementation(startNone);
  syncBuiltinESMExports();
  try {
    await expect(Replica.open(optionsFor(0, await members(1)))).rejects.toMatchObject({
      code: 'QUORATE_BACKGROUND_THREAD',
      message: expect.stringContaining('Worker initialization failure: EAGAIN'),
    });
  } finally {
    none.mockRestore();
    syncBuiltinESMExports();
  }
  expect(addon.diagnostics().sharedTokens).toBe(sharedTokens);
});

it('says so, and leaves nothing behind, when threads of the process share as many objects as they may', async () => {
  const tokens: number[] = [];
  const shareAnother = (): void => void tokens.push(new Fence().share());
  expect(() => {
    for (;;) shareAnother();
  }).toThrow(expect.objectContaining({ code: 'QUORATE_LIMIT' }));
  try {
    for (const token of tokens.splice(-11)) unshare(token); // one fewer than it shares with its background thread
    const { sharedTokens } = addon.diagnostics();
    await expect(Replica.open(optionsFor(0, await members(1)))).rejects.toMatchObject({ code: 'QUORATE_LIMIT' });
    expect(addon.diagnostics().sharedTokens).toBe(sharedTokens);
  } finally {
    for (const token of tokens) unshare(token);
  }
});

it('is closed but for what cannot be closed, and says so', async () => {
  const cluster = await openCluster(1);
  const failure = new Error('the device does not answer');
  const { close } = Mailbox.prototype;
  const closing = vi.spyOn(Mailbox.prototype, 'close').mockImplementation(function (this: Mailbox) {
    close.call(this);
    throw failure;
  });
  const context = vi.spyOn(Context.prototype, 'close');
  try {
    await expect(cluster.close()).rejects.toBe(failure);
    expect(context).toHaveBeenCalledTimes(1);
  } finally {
    closing.mockRestore();
    context.mockRestore();
  }
});

describe('while open() is under way', () => {
  it('keeps warnings for who listens when it has resolved', async () => {
    const list = await members(2);
    const backgroundThread = { cpus: [1023] }; // nowhere
    const codes: (string | undefined)[] = [];
    const opened = Replica.open(optionsFor(0, list, { backgroundThread })).then((replica) =>
      replica.on('warning', ({ code }) => codes.push(code)),
    );
    const replicas = await Promise.all([opened, Replica.open(optionsFor(1, list))]);
    await waitFor(() => codes.includes('QUORATE_SYSTEM'), 'the warning');
    await Promise.all(replicas.map((replica) => replica.close()));
  });

  it('gives up when the signal aborts, and leaves nothing behind', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'quorate-abort-'));
    try {
      const list = await members(2);
      const optionsOf = (id: number) =>
        optionsFor(id, list, {
          shmDirectory: join(folder, 'shm'),
          durable: { directory: join(folder, `disk-${id}`) },
        });
      const stop = new AbortController();
      const reason = new Error('the service is told to stop');
      const opened = Replica.open({ ...optionsOf(0), signal: stop.signal });
      opened.catch(() => {});
      // Whoever can be reached waits for the other member of its cluster.
      const { host, port } = list[0] as MemberAddress;
      await expect.poll(() => answers(host, port), { timeout: 25_000 }).toBe(true);
      stop.abort(reason);
      await expect(opened).rejects.toBe(reason);
      expect(await answers(host, port)).toBe(false);
      expect(readdirSync(join(folder, 'shm'))).toEqual([]);
      // Nothing stands in the way of those that are started then, and a signal means nothing to those that are open.
      const later = new AbortController();
      const replicas = await Promise.all([0, 1].map((id) => Replica.open({ ...optionsOf(id), signal: later.signal })));
      later.abort(reason);
      expect((await (replicas[0] as Replica<number>).propose(bytes('on'))).lsn).toBeGreaterThan(0);
      await Promise.all(replicas.map((replica) => replica.close()));
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it('does nothing at all when the signal has aborted before', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'quorate-abort-'));
    try {
      const options = { durable: { directory: join(folder, 'disk') }, shmDirectory: join(folder, 'shm') };
      const reason = new Error('too late');
      const opened = Replica.open(optionsFor(0, await members(1), { ...options, signal: AbortSignal.abort(reason) }));
      await expect(opened).rejects.toBe(reason);
      expect(readdirSync(folder)).toEqual([]);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it('says why there are no links when its time is over', async () => {
    const list = await members(3);
    const open = (id: number, logBytes: number, openTimeoutMs: number) =>
      Replica.open(optionsFor(id, list, { logBytes, openTimeoutMs, profile: 'relaxed' }));
    const warnings: Error[] = [];
    const begun_ms = performance.now();
    const first = open(0, 1024 * 1024, 30_000).then((replica) =>
      replica.on('warning', (warning) => {
        if (warning.code === 'QUORATE_CONFIGURATION_MISMATCH') warnings.push(warning);
      }),
    );
    const others = Promise.all([first, open(1, 1024 * 1024, 30_000)]);
    await expect(open(2, 512 * 1024, 4_000)).rejects.toMatchObject({
      code: 'QUORATE_OPEN_TIMEOUT',
      message: expect.stringContaining('logBytes must be the same at every replica'),
    });
    // At the others the links are tried again and again; that they fail is told once, and then rarely.
    await waitFor(() => warnings.length > 0, 'the warning at a replica that is open');
    expect(warnings.length).toBeLessThanOrEqual(1 + (performance.now() - begun_ms) / WARNING_INTERVAL_MS);
    await Promise.all((await others).map((replica) => replica.close()));
  });

  it('throws nothing besides when the state machine fails, soon or a moment later', async () => {
    cluster = await openCluster(3);
    const leader = await cluster.leader();
    const follower = cluster.replicas.find((replica) => replica !== leader) as Replica<number>;
    await follower.close();
    await leader.propose(bytes('one'));
    const stateMachine = new CommandLog();
    stateMachine.apply = () => {
      throw new Error('a state machine that fails');
    };
    // Whether the leader is known before its log has come is a matter of timing; what is thrown besides fails the run.
    const failure = Replica.open(optionsFor(follower.id, cluster.members, { stateMachine, profile: 'relaxed' })).then(
      async (replica) => (await once(replica, 'fatal'))[0],
      (error: unknown) => error,
    );
    expect(await failure).toMatchObject({ message: 'a state machine that fails' });
  });
});

describe('a cluster of three', () => {
  it('applies a proposal at the leader and then at every follower, the last one included', async () => {
    cluster = await openCluster(3);
    const leader = await cluster.leader();
    const first = await leader.propose(bytes('one'));
    const second = await leader.propose(bytes('two'));
    expect(first).toMatchObject({ result: 1, duplicate: false });
    expect(second.lsn).toBeGreaterThan(first.lsn);
    for (const machine of cluster.machines) {
      await waitFor(() => machine.commands.length === 2, 'followers to apply');
      expect(machine.commands).toEqual(['one', 'two']);
    }
  });

  it('keeps the order of proposals made in one turn and gives each its own result', async () => {
    cluster = await openCluster(3);
    const leader = await cluster.leader();
    const results = await Promise.all(Array.from({ length: 500 }, (_, index) => leader.propose(bytes(`c${index}`))));
    expect(results.map(({ result }) => result)).toEqual(Array.from({ length: 500 }, (_, index) => index + 1));
  });

  it('refuses proposals at a follower that are not to be forwarded, by an error that names the leader', async () => {
    cluster = await openCluster(3);
    const leader = await cluster.leader();
    const follower = cluster.replicas.find((replica) => replica !== leader) as Replica<number>;
    await waitFor(() => follower.status().leader === leader.id, 'the follower to know the leader');
    const refused = follower.propose(bytes('x'), { forward: false });
    await expect(refused).rejects.toMatchObject({ code: 'QUORATE_NOT_LEADER', leader: leader.id });
  });

  it('applies a repeated session command once and says that it is a duplicate', async () => {
    cluster = await openCluster(3);
    const leader = await cluster.leader();
    const session = { origin: 77, sequence: 1 };
    const once = await leader.propose(bytes('once'), { session });
    const again = await leader.propose(bytes('once'), { session });
    expect(once).toMatchObject({ result: 1, duplicate: false });
    expect(again).toMatchObject({ result: 1, duplicate: true });
    await expect(leader.propose(bytes('x'), { session: { origin: 77, sequence: 3 } })).rejects.toMatchObject({
      code: 'QUORATE_SESSION_GAP',
    });
  });

  it('carries on through many laps of a small ring', async () => {
    cluster = await openCluster(3, { logBytes: 64 * 1024 });
    const leader = await cluster.leader();
    const payload = new Uint8Array(1000);
    for (let round = 0; round < 40; round++) {
      await Promise.all(Array.from({ length: 20 }, () => leader.propose(payload)));
    }
    expect(leader.status().commitLsn).toBeGreaterThan(10 * 64 * 1024);
    for (const machine of cluster.machines) await waitFor(() => machine.commands.length === 800, 'all to apply');
  });

  it('elects another leader when the leader closes, and commits on', async () => {
    cluster = await openCluster(3);
    const leader = await cluster.leader();
    await leader.propose(bytes('before'));
    await leader.close();
    const next = await waitFor(
      () => cluster.replicas.find((replica) => replica !== leader && replica.status().role === 'leader'),
      'a new leader',
    );
    await next.propose(bytes('after'));
    expect(cluster.machines[next.id]?.commands).toEqual(['before', 'after']);
    await expect(leader.propose(bytes('x'))).rejects.toMatchObject({ code: 'QUORATE_CLOSED' });
  });

  it('takes a member that comes back with empty memory in again, by snapshot, as a voter in a new life', async () => {
    cluster = await openCluster(3, { logBytes: 64 * 1024 });
    const leader = await cluster.leader();
    const victim = cluster.replicas.find((replica) => replica !== leader) as Replica<number>;
    await victim.close();
    for (let round = 0; round < 20; round++) {
      await Promise.all(
        Array.from({ length: 20 }, (_, index) => leader.propose(bytes(`${round}.${index}`.padEnd(500)))),
      );
    }
    const machine = new CommandLog();
    const back = await Replica.open(
      optionsFor(victim.id, cluster.members, { profile: 'relaxed', stateMachine: machine, logBytes: 64 * 1024 }),
    );
    try {
      await waitFor(() => back.status().isVoter, 'the new life to become a voter');
      await leader.propose(bytes('last'));
      await waitFor(() => machine.commands.length === 401, 'the new life to apply everything');
      expect(machine.commands).toEqual(cluster.machines[leader.id]?.commands);
      expect(leader.status().voters).toEqual([0, 1, 2]);
    } finally {
      await back.close();
    }
  });
});

it('keeps neither a command nor its result when it is settled', async () => {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  const stateMachine = Object.assign(new CommandLog(), { apply: () => ({ a: 'result' }) }) as never;
  const replica = await Replica.open(optionsFor(0, await members(1), { stateMachine }));
  const settled: WeakRef<object>[] = [];
  const propose = async (sequence: number) => {
    const command = new Uint8Array(1024);
    const { result } = await replica.propose(command, { session: { origin: 5, sequence } });
    settled.push(new WeakRef(command), new WeakRef(result as unknown as object));
  };
  for (let sequence = 1; sequence <= 8; sequence++) await propose(sequence);
  await replica.propose(new Uint8Array(0)); // what was proposed last is kept
  await new Promise((resolve) => setImmediate(resolve));
  collect();
  expect(settled.filter((one) => one.deref() !== undefined)).toEqual([]);
  await replica.close();
});

it('has a leader, and another one when that closes, whatever ids its members have', async () => {
  const list = (await members(3)).map((member, index) => ({ ...member, id: [2, 9, 15][index] as number }));
  const open = ({ id }: MemberAddress) => Replica.open(optionsFor(id, list, { profile: 'relaxed' }));
  const replicas = await Promise.all(list.map(open));
  try {
    const leading = () => replicas.find((replica) => replica.status().role === 'leader');
    const first = await waitFor(leading, 'a leader');
    expect((await first.propose(bytes('x'))).result).toBe(1);
    await first.close();
    replicas.splice(replicas.indexOf(first), 1);
    const second = await waitFor(leading, 'another leader');
    expect((await second.propose(bytes('y'))).result).toBe(2);
  } finally {
    await Promise.all(replicas.map((replica) => replica.close()));
  }
});

describe('clusters of other sizes', () => {
  it('applies each command under the number it was proposed with, though its owner counts on in the same object', async () => {
    cluster = await openCluster(1, { logBytes: 64 * 1024 });
    const leader = await cluster.leader();
    const session = { origin: 77, sequence: 0 };
    // More than the log has room for at a time: some of them wait.
    const answers = Array.from({ length: 20 }, () => {
      session.sequence++;
      return leader.propose(new Uint8Array(leader.payloadBytesMax), { session });
    });
    const results = (await Promise.all(answers)).map(({ result }) => result);
    expect(results).toEqual(answers.map((_, index) => index + 1));
  });

  it('answers all that was proposed in one turn without a pause, however much that is', async () => {
    cluster = await openCluster(1);
    const leader = await cluster.leader();
    const command = bytes('x');
    const most: number[] = [];
    for (let round = 0; round < 5; round++) {
      let turns = 0;
      let isAnswered = false;
      const count = () => {
        turns++;
        if (!isAnswered) setImmediate(count);
      };
      const answers = Array.from({ length: 6000 }, () => leader.propose(command)); // 4,096 are applied in one go
      await answers[0];
      count();
      await Promise.all(answers);
      isAnswered = true;
      most.push(turns);
    }
    // Otherwise the rest would wait for whatever wakes the replica next.
    expect(Math.max(...most)).toBeLessThan(20);
  });

  it.each([1, 2, 5])('a cluster of %i commits', async (count) => {
    cluster = await openCluster(count);
    const leader = await cluster.leader();
    expect(await leader.propose(bytes('x'))).toMatchObject({ result: 1 });
  });
});
