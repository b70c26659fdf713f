// What the replicas tell each other about their links, when the control connections between two of them are down in that
// moment. On shm, all members in this process, those two behind gates.
import type { EventEmitter } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, expect, it, onTestFinished, vi } from 'vitest';
import type { LinkRequest } from '#lib/fabric/link-parameters.js';
import { type MemberAddress, QuorateError, Replica } from '#lib/index.js';
import type { ToBackground, ToMain } from '#lib/replica/background-messages.js';
import { BackgroundThread } from '#lib/replica/background-thread.js';
import { type ControlConnection, Dialer } from '#lib/replica/control-channel.js';
import { LinkManager, type LinkManagerOptions } from '#lib/replica/link-manager.js';
import { turn } from '#lib/replica/turn.js';
import { addon } from '#lib/verbs/load-addon.js';
import { pidfds } from '../support/pidfds.js';
import { rejection } from './control-fixture.js';
import { CommandLog, members, openCluster, optionsFor, waitFor } from './fixture.js';

/** Passes TCP connections on to a port while it is open; closing it cuts those that there are. */
class Gate {
  private readonly sockets = new Set<Socket>();
  private readonly server: Server;
  private isOpen = true;

  private constructor(private readonly to: number) {
    this.server = createServer((socket) => this.pass(socket));
  }

  static async make(to: number): Promise<Gate> {
    const gate = new Gate(to);
    await new Promise<void>((resolve) => gate.server.listen(0, '127.0.0.1', resolve));
    return gate;
  }

  get port(): number {
    return (this.server.address() as { port: number }).port;
  }

  private pass(from: Socket): void {
    if (!this.isOpen) {
      from.destroy();
      return;
    }
    const onward = connect(this.to, '127.0.0.1');
    for (const [one, other] of [
      [from, onward],
      [onward, from],
    ] as const) {
      this.sockets.add(one);
      one.on('error', () => {});
      one.on('close', () => {
        this.sockets.delete(one);
        other.destroy();
      });
      one.pipe(other);
    }
  }

  open(): void {
    this.isOpen = true;
  }

  shut(): void {
    this.isOpen = false;
    for (const socket of this.sockets) socket.destroy();
  }

  async close(): Promise<void> {
    this.shut();
    await new Promise((resolve) => this.server.close(resolve));
  }
}

const closing: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

/** Replica 1 stands for election after both others only, so that leadership goes where it is sent, however busy the host is. */
async function openBehindGates(): Promise<{ replicas: Replica<number>[]; machines: CommandLog[]; gates: Gate[] }> {
  const list = (await members(3)).map((member) => ({ ...member, priority: member.id === 1 ? 0 : 1 }));
  const toOne = await Gate.make(list[1]?.port as number);
  closing.push(() => toOne.close());
  const toZero = await Gate.make(list[0]?.port as number);
  closing.push(() => toZero.close());
  const seenBy = (id: number): MemberAddress[] =>
    list.map((member) => {
      if (id === 0 && member.id === 1) return { ...member, port: toOne.port };
      if (id === 1 && member.id === 0) return { ...member, port: toZero.port };
      return member;
    });
  const machines = list.map(() => new CommandLog());
  const replicas = await Promise.all(
    list.map(({ id }) =>
      Replica.open(optionsFor(id, seenBy(id), { profile: 'relaxed', stateMachine: machines[id] as CommandLog })),
    ),
  );
  closing.push(() => Promise.all(replicas.map((replica) => replica.close())));
  return { replicas, machines, gates: [toOne, toZero] };
}

it('a follower that was cut off from its leader when that lost its leadership follows it again', async () => {
  const { replicas, machines, gates } = await openBehindGates();
  const lead = async (to: number, command: string): Promise<void> => {
    const leader = await waitFor(() => replicas.find((replica) => replica.status().role === 'leader'), 'a leader');
    if (leader.id !== to) await leader.transferLeadership(to);
    await replicas[to]?.propose(Buffer.from(command));
  };
  const hasApplied = (command: string) =>
    waitFor(() => machines[1]?.commands.includes(command), `replica 1 to apply "${command}"`);

  await lead(0, 'first');
  await hasApplied('first');
  for (const gate of gates) gate.shut();
  await lead(2, 'second');
  await hasApplied('second');
  // Replica 0 has its log link to replica 1 still, which ended there when replica 2 was granted.
  await lead(0, 'third');
  for (const gate of gates) gate.open();
  await hasApplied('third');
  expect(machines[1]?.commands).toEqual(['first', 'second', 'third']);
}, 60_000);

/** A cluster of three, and what has the last of them end and come back. */
async function openWithReturning(): Promise<() => Promise<void>> {
  const cluster = await openCluster(3, { profile: 'balanced' });
  const replicas = [...cluster.replicas];
  closing.push(() => Promise.all(replicas.map((replica) => replica.close())));
  const isWhole = () =>
    replicas.every((replica) => replica.status().isVoter && replica.status().peers.every(({ linked }) => linked));
  await waitFor(isWhole, 'all links of the beginning');
  return async () => {
    await replicas[2]?.close();
    replicas[2] = await Replica.open(optionsFor(2, cluster.members, { profile: 'balanced' }));
    await waitFor(isWhole, 'the replica to be back');
  };
}

it('links to a peer that comes back leave nothing behind of those before', async () => {
  const comeBack = await openWithReturning();
  const { sharedTokens } = addon.diagnostics();
  for (let count = 0; count < 3; count++) await comeBack();
  await waitFor(() => addon.diagnostics().sharedTokens <= sharedTokens, 'what the links had to be closed');
});

it('a peer that comes back again and again takes no more descriptors each time', async () => {
  const comeBack = await openWithReturning();
  const returns = 4;
  const before = pidfds();
  for (let count = 0; count < returns; count++) await comeBack();
  // Each of the two others may not have come to the process before the last.
  expect(pidfds()).toBeLessThanOrEqual(before + 2);
});

it('what a background thread is told of a peer, and has not come to when it ends, is closed with its replica', async () => {
  const { sharedTokens } = addon.diagnostics();
  const send = vi.spyOn(BackgroundThread.prototype, 'send').mockImplementation(() => {});
  onTestFinished(() => send.mockRestore());
  const stop = new AbortController();
  const list = await members(2);
  const opened = Promise.allSettled(list.map(({ id }) => Replica.open(optionsFor(id, list, { signal: stop.signal }))));
  await waitFor(() => send.mock.calls.filter(([{ type }]) => type === 'probe').length >= 2, 'links for probes');
  stop.abort();
  await opened;
  expect(addon.diagnostics().sharedTokens).toBe(sharedTokens);
});

it('replicas that do not find the memory of each other, as in containers of their own, are told so', async () => {
  const list = await members(2);
  const opened = list.map(({ id }) => {
    const shmDirectory = mkdtempSync(join(tmpdir(), 'quorate-apart-'));
    closing.push(async () => rmSync(shmDirectory, { recursive: true }));
    return Replica.open(optionsFor(id, list, { shmDirectory, openTimeoutMs: 3000 }));
  });
  for (const [id, result] of (await Promise.allSettled(opened)).entries()) {
    expect(result).toMatchObject({
      reason: {
        code: 'QUORATE_OPEN_TIMEOUT',
        message: expect.stringContaining(`memory of replica ${1 - id} is not where this one looks for it`),
      },
    });
  }
});

it('a peer that was started again is dialed at once by those that it has dialed', async () => {
  const cluster = await openCluster(3, { profile: 'balanced' });
  const replicas = [...cluster.replicas];
  closing.push(() => Promise.all(replicas.map((replica) => replica.close())));
  await replicas[2]?.close();
  const hurry = vi.spyOn(Dialer.prototype, 'hurry');
  onTestFinished(() => hurry.mockRestore());
  replicas[2] = await Replica.open(optionsFor(2, cluster.members, { profile: 'balanced' }));
  const dialed = () => hurry.mock.contexts.filter((dialer) => (dialer as Dialer).peerId === 2).length;
  await waitFor(() => dialed() >= 2, 'both others to dial it');
});

it('a peer that makes links is asked for those that it was not ready for before, at once', async () => {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  const initiate = () => ({ request: {}, queuePair: { close: () => {} } });
  const shareUntilThreadEnds = () => ({});
  const manager = new LinkManager({
    clusterId: 5,
    endpoint: { initiate, accept: async () => ({ queuePair: { shareUntilThreadEnds }, reply: {} }) },
    messages: { initiate, restart: () => {} },
    background: { send: () => {} },
  } as unknown as LinkManagerOptions);
  let asked = 0;
  const notReady = () => {
    asked++;
    return Promise.reject(new QuorateError('QUORATE_NOT_READY', 'it is not formed yet'));
  };
  const connection = { peer: { bootId: 1, processId: 1 }, request: notReady } as unknown as ControlConnection;
  manager.connected(1, connection);
  await vi.advanceTimersByTimeAsync(5_000);
  const before = asked;
  const gid = 'fe80:0000:0000:0000:0000:0000:0000:0001';
  const queuePair = { qpNum: 1, psn: 1, gid, lid: 0, mtuBytes: 1024 };
  await manager.accept(1, { kind: 'probe', generation: 1, queuePair, logBytes: 65536, stream: 1, clusterId: 5 });
  await vi.advanceTimersByTimeAsync(0);
  expect([asked - before, vi.getTimerCount()]).toEqual([3, 3]); // of as many links
  await vi.advanceTimersToNextTimerAsync();
  expect([asked - before, vi.getTimerCount()]).toEqual([6, 3]);
  manager.close();
});

it('a peer that cannot be linked with is not asked any sooner because it asks: two such would do nothing else', async () => {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  const mismatch = () =>
    Promise.reject(new QuorateError('QUORATE_CONFIGURATION_MISMATCH', 'logBytes must be the same'));
  const initiate = () => ({ request: {}, queuePair: { close: () => {} } });
  const manager = new LinkManager({
    clusterId: 5,
    endpoint: { initiate, accept: mismatch },
    messages: { initiate, accept: mismatch, restart: () => {} },
    background: { send: () => {} },
    onWarning: () => {},
  } as unknown as LinkManagerOptions);
  let asked = 0;
  const request = () => {
    asked++;
    return mismatch();
  };
  manager.connected(1, { peer: { bootId: 1, processId: 1 }, request } as unknown as ControlConnection);
  await vi.advanceTimersByTimeAsync(5_000);
  const before = asked;
  const gid = 'fe80:0000:0000:0000:0000:0000:0000:0001';
  const queuePair = { qpNum: 1, psn: 1, gid, lid: 0, mtuBytes: 1024 };
  for (const kind of ['probe', 'log', 'message']) {
    const link = { kind, generation: 1, queuePair, logBytes: 65536, stream: 1, clusterId: 5 };
    expect(await rejection(manager.accept(1, link))).toMatchObject({ code: 'QUORATE_CONFIGURATION_MISMATCH' });
  }
  await vi.advanceTimersByTimeAsync(0);
  expect(asked - before).toBe(0);
  manager.close();
});

it('a probe link that the background thread could not be given is made again', async () => {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  const address = { qpNum: 1, psn: 1, gid: 'fe80:0000:0000:0000:0000:0000:0000:0001', lid: 0, mtuBytes: 1024 };
  const range = { address: 4096, rkey: 1 };
  const reply = { queuePair: address, readable: range, writable: range, position: null };
  let made = 0;
  const shareUntilThreadEnds = () => {
    made++;
    if (made === 1) throw new QuorateError('QUORATE_LIMIT', 'all tokens of shared objects are in use');
    return made;
  };
  const sent: ToBackground[] = [];
  const warnings: Error[] = [];
  const manager = new LinkManager({
    clusterId: 5,
    endpoint: {
      initiate: (kind: string, generation: number) => {
        if (kind !== 'probe') throw new QuorateError('QUORATE_NOT_READY', 'nothing but a probe link is made here');
        return { kind, request: { generation }, queuePair: { shareUntilThreadEnds, close: () => {} } };
      },
      finds: () => true,
      complete: async () => {},
      peerProcess: () => null,
    },
    messages: {
      initiate: () => {
        throw new QuorateError('QUORATE_NOT_READY', 'nothing but a probe link is made here');
      },
      restart: () => {},
    },
    background: { send: (message: ToBackground) => sent.push(message) },
    onWarning: (error: Error) => warnings.push(error),
  } as unknown as LinkManagerOptions);
  manager.connected(1, {
    peer: { bootId: 1, processId: 1 },
    request: async () => reply,
  } as unknown as ControlConnection);
  await vi.advanceTimersByTimeAsync(1_000);
  manager.close();
  expect(warnings).toMatchObject([{ code: 'QUORATE_LIMIT' }]);
  expect(sent).toMatchObject([{ type: 'probe', peer: 1, link: { queuePair: 2 } }]);
});

it.each(['probe', 'log'] as const)(
  'the %s link that a peer asked for last is the one that stays, though one that it asked for before takes longer to make',
  async (kind) => {
    const queuePairOf = (generation: number) => ({ shareUntilThreadEnds: () => generation, close: vi.fn() });
    const accepted = [1, 2].map((generation) => ({ queuePair: queuePairOf(generation), reply: {} }));
    const made: (() => void)[] = [];
    const accept = (_: number, { generation }: LinkRequest) =>
      new Promise((resolve) => made.push(() => resolve(accepted[generation - 1])));
    const sent: ToBackground[] = [];
    const manager = new LinkManager({
      clusterId: 5,
      endpoint: { accept },
      background: { send: (message: ToBackground) => sent.push(message) },
    } as unknown as LinkManagerOptions);
    const gid = 'fe80:0000:0000:0000:0000:0000:0000:0001';
    const queuePair = { qpNum: 1, psn: 1, gid, lid: 0, mtuBytes: 1024 };
    const ask = (generation: number) =>
      manager.accept(1, { kind, generation, queuePair, logBytes: 65536, stream: 1, clusterId: 5 });
    // The connection was lost while the first one was made, or the peer is another process by now.
    const earlier = rejection(ask(1));
    const later = ask(2);
    for (const done of made.reverse()) done();
    expect(await later).toBe(accepted[1]?.reply);
    expect(await earlier).toMatchObject({ code: 'QUORATE_CLOSED' });
    expect(sent).toMatchObject([{ peer: 1, queuePair: 2 }]);
    expect(accepted.map(({ queuePair: { close } }) => close.mock.calls.length)).toEqual([1, 0]);
    manager.close();
  },
);

it.each(['probe', 'log'])(
  'the end of a %s link that the background thread could not be given is released',
  async (kind) => {
    const close = vi.fn();
    const shareUntilThreadEnds = () => {
      throw new QuorateError('QUORATE_LIMIT', 'all tokens of shared objects are in use');
    };
    const manager = new LinkManager({
      clusterId: 5,
      endpoint: { accept: async () => ({ queuePair: { shareUntilThreadEnds, close }, reply: {} }) },
      background: { send: () => {} },
    } as unknown as LinkManagerOptions);
    const gid = 'fe80:0000:0000:0000:0000:0000:0000:0001';
    const queuePair = { qpNum: 1, psn: 1, gid, lid: 0, mtuBytes: 1024 };
    const accepted = manager.accept(1, { kind, generation: 1, queuePair, logBytes: 65536, stream: 1, clusterId: 5 });
    expect(await rejection(accepted)).toMatchObject({ code: 'QUORATE_LIMIT' });
    expect(close).toHaveBeenCalledTimes(1);
    manager.close();
  },
);

it('a peer that is connected again, and not ready still, is asked for each link by one chain of retries', async () => {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  const initiate = () => ({ request: {}, queuePair: { close: () => {} } });
  const manager = new LinkManager({
    clusterId: 5,
    endpoint: { initiate },
    messages: { initiate, restart: () => {} },
    background: { send: () => {} },
  } as unknown as LinkManagerOptions);
  let asked = 0;
  const connect = async () => {
    manager.connected(1, {
      peer: { bootId: 1, processId: 1 },
      request: () => {
        asked++;
        return Promise.reject(new QuorateError('QUORATE_NOT_READY', 'it is not formed yet'));
      },
    } as unknown as ControlConnection);
    await vi.advanceTimersByTimeAsync(0);
  };
  await connect();
  expect([asked, vi.getTimerCount()]).toEqual([3, 3]); // of as many links
  for (let count = 0; count < 5; count++) {
    manager.disconnected(1);
    await connect();
  }
  expect([asked, vi.getTimerCount()]).toEqual([18, 3]);
  await vi.advanceTimersToNextTimerAsync();
  expect([asked, vi.getTimerCount()]).toEqual([21, 3]);
  manager.close();
  expect(vi.getTimerCount()).toBe(0);
});

it('a voter that cannot take a permission back, and tries at every tick, warns of it rarely', async () => {
  const replica = await Replica.open(optionsFor(0, await members(1)));
  closing.push(() => replica.close());
  const code = 'QUORATE_REVOKE_FAILED';
  const warnings: Error[] = [];
  replica.on('warning', (warning) => {
    if (warning.code === code) warnings.push(warning);
  });
  await turn(); // until then warnings are kept, each once
  // What its background thread reports then.
  const { worker } = (replica as unknown as { background: { worker: EventEmitter<{ message: [ToMain] }> } }).background;
  for (let tick = 0; tick < 100; tick++) {
    worker.emit('message', { type: 'grantFailed', peer: 1, code, message: 'no memory to move the log to' });
  }
  expect(warnings).toMatchObject([{ code, message: 'granting replica 1: no memory to move the log to' }]);
});
