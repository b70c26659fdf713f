// What tests of Replica share: free ports, a small state machine, and clusters of replicas inside the test's process,
// which close with the test.
import { connect } from 'node:net';
import { vi } from 'vitest';
import { freePorts as freePortsOf } from '#lib/cli/demo/ports.js';
import { type MemberAddress, Replica, type ReplicaOptions, type StateMachine } from '#lib/index.js';
import { PIECE_TIMEOUT_MS } from '#lib/replica/transfer/limits.js';

export const CLUSTER_KEY = 'a cluster key for tests only';

/** Remembers the commands it applied, in order. */
export class CommandLog implements StateMachine<number> {
  commands: string[] = [];
  apply(command: Uint8Array): number {
    this.commands.push(Buffer.from(command).toString());
    return this.commands.length;
  }
  snapshot(): Uint8Array {
    return Buffer.from(JSON.stringify(this.commands));
  }
  restore(snapshot: Uint8Array): void {
    this.commands = JSON.parse(Buffer.from(snapshot).toString()) as string[];
  }
}

/** A state machine that gives a piece of its state, and then no more of it until it is told to. */
export class SilentLog extends CommandLog {
  isSilent = true;
  async *snapshotChunks(): AsyncGenerator<Uint8Array> {
    const whole = this.snapshot();
    yield whole.subarray(0, 1);
    if (this.isSilent) await new Promise(() => {});
    yield whole.subarray(1);
  }
}

/** Nobody waits for a piece of a state longer than 50 ms, until `vi.restoreAllMocks()`. */
export function waitForPiecesBriefly(): void {
  const { setTimeout } = globalThis;
  const brief = (call: () => void, timeoutMs?: number, ...more: []) =>
    setTimeout(call, timeoutMs === PIECE_TIMEOUT_MS ? 50 : timeoutMs, ...more);
  vi.spyOn(globalThis, 'setTimeout').mockImplementation(brief as typeof setTimeout);
}

/** Test files that run at the same time take their ports from different parts of the range. */
const POOLS = 4;

/** Given in this process: whoever has one may not listen on it at the moment, or not yet. */
const given = new Set<number>();

/** Ports that were free a moment ago, and that the kernel gives to no outgoing connection while nobody listens on them. */
export async function freePorts(count: number): Promise<number[]> {
  const pool = Number(process.env['VITEST_POOL_ID'] ?? 1) % POOLS;
  const ports: number[] = [];
  while (ports.length < count) {
    for (const port of await freePortsOf(count - ports.length, () => (pool + Math.random()) / POOLS)) {
      if (!given.has(port)) ports.push(port);
      given.add(port);
    }
  }
  return ports;
}

export async function members(count: number): Promise<MemberAddress[]> {
  return (await freePorts(count)).map((port, id) => ({ id, host: '127.0.0.1', port }));
}

export interface TestCluster {
  readonly members: readonly MemberAddress[];
  readonly replicas: Replica<number>[];
  readonly machines: CommandLog[];
  /** The replica that leads now; waits for one. */
  leader(): Promise<Replica<number>>;
  close(): Promise<void>;
}

export function optionsFor(
  id: number,
  list: readonly MemberAddress[],
  more: Partial<ReplicaOptions<number>> = {},
): ReplicaOptions<number> {
  return {
    id,
    members: list,
    clusterKey: CLUSTER_KEY,
    stateMachine: new CommandLog(),
    device: 'shm',
    logBytes: 1024 * 1024,
    // A third of what it takes to open one; test/replica/rehearsal.test.ts is about it.
    rehearseTakeovers: false,
    ...more,
  };
}

/** A cluster on shm in this process; several replicas share one thread here, so detection is relaxed. */
export async function openCluster(count: number, more: Partial<ReplicaOptions<number>> = {}): Promise<TestCluster> {
  const list = await members(count);
  const machines = list.map(() => new CommandLog());
  const replicas = await Promise.all(
    list.map(({ id }) =>
      Replica.open(optionsFor(id, list, { profile: 'relaxed', stateMachine: machines[id] as CommandLog, ...more })),
    ),
  );
  return {
    members: list,
    replicas,
    machines,
    leader: () => waitFor(() => replicas.find((replica) => replica.status().role === 'leader'), 'a leader'),
    close: async () => {
      await Promise.all(replicas.map((replica) => replica.close()));
    },
  };
}

/** Polls a condition until it holds; fails with what was waited for after a bound that only a defect reaches. */
export async function waitFor<Value>(probe: () => Value | undefined | false, what: string): Promise<Value> {
  const deadline = Date.now() + 30_000;
  for (;;) {
    const value = probe();
    if (value !== undefined && value !== false) return value;
    if (Date.now() > deadline) throw new Error(`waited 30 s in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** The next warning with that code; under load there may be others before. */
export function warningOf(replica: Replica<number>, code: string): Promise<Error> {
  return new Promise((resolve) => {
    const listen = (warning: NodeJS.ErrnoException): void => {
      if (warning.code !== code) return;
      replica.off('warning', listen);
      resolve(warning);
    };
    replica.on('warning', listen);
  });
}

/** Whether somebody listens there. */
export function answers(host: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, host, () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}
