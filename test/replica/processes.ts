// Replicas in processes of their own, for tests that kill them: starts them, asks them, and ends them all with the test.
import { type ChildProcess, fork } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { MemberAddress, RecoveryStatus, ReplicaOptions, ReplicaStatus } from '#lib/index.js';

const PROGRAM = fileURLToPath(new URL('./fixtures/surviving-replica.mjs', import.meta.url));

/** What a replica says of itself. */
export type Report = ReplicaStatus & {
  readonly digest: string;
  readonly size: number;
  readonly warnings: readonly { code: string; message: string }[];
  readonly transfers: readonly { role: string; state: string; bytesDone: number }[];
  readonly recoveries: readonly RecoveryStatus[];
};

interface Answer {
  readonly number: number;
  readonly result?: unknown;
  readonly error?: { code: string; message: string };
}

class ReplicaProcess {
  private readonly child: ChildProcess;
  private readonly waiting = new Map<number, (answer: Answer) => void>();
  private next = 0;
  readonly opened: Promise<void>;
  readonly ended: Promise<void>;

  constructor(
    readonly id: number,
    options: object,
  ) {
    this.child = fork(PROGRAM, [JSON.stringify({ options })]);
    this.ended = new Promise((resolve) => this.child.once('exit', () => resolve()));
    this.child.on('message', (message) => {
      const answer = message as Answer;
      this.waiting.get(answer.number)?.(answer);
      this.waiting.delete(answer.number);
    });
    this.opened = this.answer(this.next++).then(() => {});
    this.opened.catch(() => {});
  }

  private answer(number: number): Promise<unknown> {
    return new Promise((resolve, reject) => {
      this.waiting.set(number, ({ result, error }) => {
        if (error === undefined) resolve(result);
        else reject(Object.assign(new Error(error.message), { code: error.code }));
      });
      void this.ended.then(() => reject(new Error(`the process of replica ${this.id} ended`)));
    });
  }

  ask(action: string, body?: unknown): Promise<unknown> {
    const number = this.next++;
    const answer = this.answer(number);
    this.child.send({ number, action, body });
    return answer;
  }

  signal(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }

  /** No thread of it runs: they stop one after the other, and until then one of them may grant. */
  get isStopped(): boolean {
    const tasks = `/proc/${this.child.pid}/task`;
    return readdirSync(tasks).every((task) =>
      / T /.test(readFileSync(join(tasks, task, 'stat'), 'latin1').slice(0, 60)),
    );
  }

  async kill(): Promise<void> {
    this.signal('SIGKILL');
    await this.ended;
  }
}

export class Processes {
  readonly clusterKey = randomBytes(16).toString('hex');
  /** Regions of these replicas, and nobody else's. */
  readonly directory = mkdtempSync('/dev/shm/quorate-test-');
  private readonly running = new Map<number, ReplicaProcess>();

  constructor(private readonly more: Partial<ReplicaOptions<never>> = {}) {}

  /** Starts a process; resolves when its replica is open. */
  async start(id: number, place: Partial<ReplicaOptions<never>>): Promise<void> {
    const process = new ReplicaProcess(id, { id, clusterKey: this.clusterKey, device: 'shm', ...this.more, ...place });
    this.running.set(id, process);
    await process.opened;
  }

  async found(places: readonly MemberAddress[], more: Partial<ReplicaOptions<never>> = {}): Promise<void> {
    await Promise.all(places.map(({ id }) => this.start(id, { members: places, ...more })));
  }

  get ids(): number[] {
    return [...this.running.keys()];
  }

  private process(id: number): ReplicaProcess {
    const process = this.running.get(id);
    if (process === undefined) throw new Error(`replica ${id} is not running`);
    return process;
  }

  async kill(id: number): Promise<void> {
    const process = this.process(id);
    this.running.delete(id);
    await process.kill();
  }

  async stop(id: number): Promise<void> {
    const process = this.process(id);
    process.signal('SIGSTOP');
    await this.until(async () => process.isStopped, `replica ${id} to stop`);
  }

  continue(id: number): void {
    this.process(id).signal('SIGCONT');
  }

  ask(id: number, action: string, body?: unknown): Promise<unknown> {
    return this.process(id).ask(action, body);
  }

  call(id: number, method: string, ...parameters: unknown[]): Promise<unknown> {
    return this.ask(id, 'call', { method, parameters });
  }

  /** Sets keys at whoever leads; setting them again, after a change of leader, makes no difference. */
  async fill(body: { from: number; count: number; round: number }): Promise<void> {
    const isPassing = (code: string): boolean => ['QUORATE_NOT_LEADER', 'QUORATE_OUTCOME_UNKNOWN'].includes(code);
    await this.until(async () => {
      const leader = (await this.reports()).find(({ role }) => role === 'leader');
      if (leader === undefined) return undefined;
      try {
        await this.ask(leader.id, 'fill', body);
        return true;
      } catch (error) {
        if (isPassing((error as { code: string }).code)) return false;
        throw error;
      }
    }, 'the keys to be set');
  }

  report(id: number): Promise<Report> {
    return this.ask(id, 'status') as Promise<Report>;
  }

  reports(): Promise<Report[]> {
    return Promise.all(this.ids.map((id) => this.report(id)));
  }

  /** Asks until it is so; fails after a bound that only a defect reaches. */
  async until<Value>(probe: () => Promise<Value | undefined | false>, what: string, limitMs = 60_000): Promise<Value> {
    for (const end = Date.now() + limitMs; Date.now() < end; await new Promise((resolve) => setTimeout(resolve, 20))) {
      const value = await probe();
      if (value !== undefined && value !== false) return value;
    }
    throw new Error(`waited ${limitMs} ms in vain for ${what}`);
  }

  /** The leader, once so many voters at least are active. */
  leader(voters: number): Promise<Report> {
    return this.until(async () => {
      const leader = (await this.reports()).find(({ role }) => role === 'leader');
      if (leader === undefined) return undefined;
      const active = leader.members.filter(({ role, phase }) => role === 'voter' && phase === 'active').length;
      return active >= voters && leader.members.every(({ returning }) => !returning) && leader;
    }, `a leader with ${voters} active voters`);
  }

  /** All hold the same state; resolves with one report of each. */
  alike(): Promise<Report[]> {
    return this.until(async () => {
      const all = await this.reports();
      return (
        all.every(({ appliedLsn, digest }) => appliedLsn === all[0]?.appliedLsn && digest === all[0]?.digest) && all
      );
    }, 'all to have the same state');
  }

  /** Makes it the only voter of a new cluster; asks until the failure detector has noticed what was killed. */
  force(id: number): Promise<unknown> {
    const isEarly = (code: string): boolean => ['QUORATE_LEADER_EXISTS', 'QUORATE_QUORUM_REACHABLE'].includes(code);
    return this.until(async () => {
      try {
        await this.ask(id, 'forceNewCluster', { iUnderstandThatAcknowledgedCommandsMayBeLost: true });
        return true;
      } catch (error) {
        if (isEarly((error as { code: string }).code)) return false;
        throw error;
      }
    }, 'the survivor to be alone');
  }

  /** Adds new members at the leader, one after the other, and makes voters of them. */
  async grow(
    leader: number,
    places: readonly MemberAddress[],
    more: Partial<ReplicaOptions<never>> = {},
    timeoutMs = 30_000,
  ): Promise<void> {
    const join = [(await this.report(leader)).members.find(({ id }) => id === leader) as MemberAddress].map(
      ({ id, host, port }) => ({ id, host, port }),
    );
    for (const { id, host, port } of places) {
      await this.call(leader, 'addLearner', { id, host, port });
      await this.start(id, { join, address: { host, port }, ...more });
      await this.call(leader, 'promote', id, { timeoutMs });
    }
  }

  async close(): Promise<void> {
    await Promise.all(this.ids.map((id) => this.kill(id)));
    rmSync(this.directory, { recursive: true, force: true });
  }
}
