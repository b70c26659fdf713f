// The processes of one run: starts one per replica, keeps what each of them said last, signals them, starts them
// again, and ends every one of them by its process id, whatever happens to the run.
import { type ChildProcess, fork, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { fileURLToPath } from 'node:url';
import type { RecoveryStatus } from '../../replica/recovery/recovery.js';
import type { MemberAddress, ProfileName, ReplicaStatus } from '../../replica/replica-options.js';
import { type Deadline, DemoError } from './deadline.js';
import { type FromReplica, monotonic_ns, type OpenMessage, type ToReplica } from './messages.js';
import { freePorts } from './ports.js';

/** Of a replica's standard error, kept for the message when it ends unexpectedly. */
const STDERR_BYTES_KEPT = 4096;
/** How often a cluster is started again because somebody else took one of its ports in between. */
const START_TRIES_MAX = 5;
/** Between the order to close and SIGKILL. Longer than the replica's own limit, which says more. */
const CLOSE_TIMEOUT_MS = 15_000;

export interface ClusterOptions {
  readonly replicas: number;
  /** Name of the program of a replica's process, in the folder above this one; default demo-replica.js. */
  readonly program?: string;
  /** Part of the order to open, for the replica with this id; nothing by default. */
  readonly openWith?: (
    id: number,
  ) => Partial<Pick<OpenMessage, 'logBytes' | 'permissionStrategy' | 'regionDirectory' | 'clientSocket' | 'durable'>>;
  /** One for all, one for each, or none: then each replica picks its own. */
  readonly devices: readonly string[];
  readonly profile: ProfileName | undefined;
  readonly openTimeoutMs: number;
  /** Uniform in [0, 1). */
  readonly random: () => number;
  readonly deadline: Deadline;
  /** Lines that are worth telling: what replicas wrote to standard error, warnings. */
  readonly say: (line: string) => void;
}

/** One life of one replica. */
export interface ReplicaProcess {
  readonly id: number;
  readonly pid: number;
  readonly child: ChildProcess;
  state: 'starting' | 'open' | 'stopped' | 'ended';
  /** It is to end, or to stop: its end is no surprise. */
  endExpected: boolean;
  /** Epoch in which it leads as far as it said. */
  leaderEpoch: string | undefined;
  status: ReplicaStatus | undefined;
  statusAt_ns: number;
  exitCode: number | null;
  exitSignal: NodeJS.Signals | null;
  stderr: string;
}

export interface ClusterEvents {
  message: [replica: ReplicaProcess, message: FromReplica];
  /** Any process said anything or ended: conditions that are waited for are looked at again. */
  change: [];
}

export interface Failure {
  readonly code: string;
  readonly message: string;
}

/** Orders epochs, written "counter.incarnation". */
export function compareEpochs(a: string, b: string): number {
  const [aCounter = 0, aIncarnation = 0] = a.split('.').map(Number);
  const [bCounter = 0, bIncarnation = 0] = b.split('.').map(Number);
  return aCounter - bCounter || aIncarnation - bIncarnation;
}

/** Of a process that ended without having said why. */
const ENDED_WITHOUT_CODE = 'ENDED';

export class Cluster extends EventEmitter<ClusterEvents> {
  /** By replica id: the life that is on. */
  readonly replicas: ReplicaProcess[] = [];
  private readonly everyLife: ReplicaProcess[] = [];
  private readonly clusterKey = randomBytes(32);
  private readonly firstProbeOrigin: number;
  private members: MemberAddress[] = [];
  private highestEpoch = '0.0';
  private guards = new Map<number, ChildProcess>();

  private constructor(private readonly options: ClusterOptions) {
    super();
    this.setMaxListeners(0);
    // 31 bits, and room for all lives above it within 32.
    this.firstProbeOrigin = 1 + Math.floor(options.random() * 2 ** 31);
  }

  /** Starts all replicas and waits until each of them is part of the cluster. */
  static async start(options: ClusterOptions): Promise<Cluster> {
    const cluster = new Cluster(options);
    try {
      for (let attempt = 1; ; attempt++) {
        process.prependListener('exit', cluster.killAll); // before others remove what the replicas write to
        const ports = await freePorts(options.replicas, options.random);
        cluster.members = ports.map((port, id) => ({ id, host: '127.0.0.1', port }));
        const failure = await cluster.startAll();
        if (failure === undefined) return cluster;
        await cluster.stop();
        if (failure.code !== 'QUORATE_ADDRESS_IN_USE' || attempt === START_TRIES_MAX) {
          throw new DemoError(`the cluster did not start: ${failure.code}: ${failure.message}`);
        }
      }
    } catch (error) {
      cluster.killAll();
      throw error;
    }
  }

  /** Returns the first error with which a replica failed to open. */
  private async startAll(): Promise<Failure | undefined> {
    const opening = this.members.map((member) => this.opened(this.launch(member.id)));
    const firstFailure = new Promise<Failure>((resolve) => {
      for (const promise of opening) {
        void promise.then((failure) => {
          if (failure !== undefined) resolve(failure);
        });
      }
    });
    const all = Promise.all(opening).then(() => undefined);
    const missing = () => this.replicas.filter((replica) => replica.state === 'starting').map(({ id }) => id);
    const what = () => `the cluster to form (replica ${missing().join(', ')} to open)`;
    return this.options.deadline.until(what, Promise.race([firstFailure, all]));
  }

  /** Resolves when the process is part of the cluster, or with the error that kept it from that. */
  /** How processes came back from what earlier ones had left, as far as they said so. */
  get recoveries(): readonly RecoveryStatus[] {
    return this.everyLife.flatMap(({ status }) => (status?.recovery === undefined ? [] : [status.recovery]));
  }

  private opened(replica: ReplicaProcess): Promise<Failure | undefined> {
    return new Promise((resolve) => {
      const done = (failure?: Failure) => {
        this.off('message', onMessage);
        this.off('change', onChange);
        resolve(failure);
      };
      const onMessage = (from: ReplicaProcess, message: FromReplica) => {
        if (from !== replica) return;
        if (message.type === 'opened') done();
        if (message.type === 'failed') done({ code: message.code, message: message.message });
      };
      const onChange = () => {
        if (replica.state === 'ended') done({ code: ENDED_WITHOUT_CODE, message: describeEnd(replica) });
      };
      this.on('message', onMessage);
      this.on('change', onChange);
    });
  }

  /** `wrapper`: a program and its arguments that becomes Node.js with what follows (it must exec, not fork). */
  private launch(id: number, wrapper: readonly string[] = []): ReplicaProcess {
    const { options } = this;
    const program = new URL(`../${options.program ?? 'demo-replica.js'}`, import.meta.url);
    const nodeArguments = process.execArgv.filter((argument) => !argument.startsWith('--inspect'));
    const [execPath = process.execPath, ...execArgv] = [...wrapper, process.execPath, ...nodeArguments];
    const child = fork(fileURLToPath(program), [], {
      serialization: 'advanced',
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      execPath,
      execArgv,
    });
    if (child.pid === undefined) throw new DemoError(`the process of replica ${id} could not be started`);
    const replica: ReplicaProcess = {
      id,
      pid: child.pid,
      child,
      state: 'starting',
      endExpected: false,
      leaderEpoch: undefined,
      status: undefined,
      statusAt_ns: 0,
      exitCode: null,
      exitSignal: null,
      stderr: '',
    };
    this.replicas[id] = replica;
    this.everyLife.push(replica);
    child.stderr?.setEncoding('utf8');
    child.stderr?.on('data', (text: string) => {
      replica.stderr = (replica.stderr + text).slice(-STDERR_BYTES_KEPT);
      for (const line of text.trimEnd().split('\n')) options.say(`[replica ${id}] ${line}`);
    });
    child.on('message', (message) => this.onMessage(replica, message as FromReplica));
    // A send to a process that has just ended; its end is reported by "exit".
    child.on('error', (error) => options.say(`[replica ${id}] ${error.message}`));
    child.on('exit', (code, signal) => this.onExit(replica, code, signal));
    this.send(replica, {
      type: 'open',
      id,
      members: this.members,
      clusterKey: this.clusterKey,
      device: options.devices.length > 1 ? options.devices[id] : options.devices[0],
      profile: options.profile,
      openTimeoutMs: options.openTimeoutMs,
      probeOrigin: this.firstProbeOrigin + this.everyLife.length,
      logBytes: undefined,
      permissionStrategy: undefined,
      regionDirectory: undefined,
      clientSocket: undefined,
      durable: undefined,
      ...options.openWith?.(id),
    });
    return replica;
  }

  private onMessage(replica: ReplicaProcess, message: FromReplica): void {
    switch (message.type) {
      case 'opened':
        if (replica.state === 'starting') replica.state = 'open';
        break;
      case 'status':
        replica.status = message.status;
        replica.statusAt_ns = message.at_ns;
        break;
      case 'leader':
        replica.leaderEpoch = message.epoch;
        if (compareEpochs(message.epoch, this.highestEpoch) > 0) this.highestEpoch = message.epoch;
        break;
      case 'deposed':
        if (replica.leaderEpoch === message.epoch) replica.leaderEpoch = undefined;
        break;
      case 'warning':
        this.options.say(`[replica ${replica.id}] ${message.code}: ${message.message}`);
        break;
      case 'failed':
        replica.endExpected = true; // it says why, here
        if (message.during !== 'open') {
          this.options.deadline.fail(
            new DemoError(`replica ${replica.id} failed: ${message.code}: ${message.message}`),
          );
        }
        break;
      default:
        break;
    }
    this.emit('message', replica, message);
    this.emit('change');
  }

  private onExit(replica: ReplicaProcess, code: number | null, signal: NodeJS.Signals | null): void {
    replica.state = 'ended';
    replica.leaderEpoch = undefined;
    replica.exitCode = code;
    replica.exitSignal = signal;
    if (!replica.endExpected) this.options.deadline.fail(new DemoError(describeEnd(replica)));
    this.emit('change');
  }

  /** The highest epoch that any led in, as far as they said so. */
  get epoch(): string {
    return this.highestEpoch;
  }

  /** The replica that leads in the highest epoch that any led in; one that was stopped may still think that it does. */
  get leader(): ReplicaProcess | undefined {
    return this.replicas.find(({ leaderEpoch }) => leaderEpoch === this.highestEpoch);
  }

  /** One line for each replica: what it said last. For the message of a run that got stuck. */
  describe(): string[] {
    const now_ns = monotonic_ns();
    return this.replicas.map(({ id, pid, state, status, statusAt_ns, leaderEpoch }) => {
      const head = `replica ${id} (process ${pid}, ${state}${leaderEpoch === undefined ? '' : `, leads ${leaderEpoch}`})`;
      if (status === undefined) return `${head}: no status`;
      const { role, leader, epoch, commitLsn, appliedLsn, tailLsn, isVoter, voters, configurationVersion } = status;
      const peers = status.peers.map(
        (peer) =>
          `${peer.id}:${peer.linked ? 'linked' : 'unlinked'},${peer.trusted ? 'trusted' : 'suspected'},` +
          `${peer.voter ? 'voter' : 'no voter'},${peer.phase}`,
      );
      return (
        `${head}: ${Math.round((now_ns - statusAt_ns) / 1e6)} ms ago ${role}, leader ${leader ?? 'unknown'}, epoch ${epoch}, ` +
        `commit ${commitLsn}, applied ${appliedLsn}, tail ${tailLsn}, ${isVoter ? 'voter' : 'no voter'}, voters ` +
        `${voters.join(' ')} (version ${configurationVersion}), pending ${status.pendingProposals}, peers ${peers.join(' ')}`
      );
    });
  }

  send(replica: ReplicaProcess, message: ToReplica): void {
    if (replica.child.connected) replica.child.send(message, () => {});
  }

  /** Resolves with the first defined value that `condition` returns; it is asked now and at every change. */
  waitFor<T>(what: string, condition: () => T | undefined): Promise<T> {
    const now = condition();
    if (now !== undefined) return Promise.resolve(now);
    let listener: () => void = () => {};
    const found = new Promise<T>((resolve) => {
      listener = () => {
        const value = condition();
        if (value !== undefined) resolve(value);
      };
      this.on('change', listener);
    });
    return this.options.deadline.until(what, found).finally(() => this.off('change', listener));
  }

  /** Resolves with the next message of this kind from the replica. */
  async request<Type extends FromReplica['type']>(
    replica: ReplicaProcess,
    message: ToReplica,
    type: Type,
  ): Promise<Extract<FromReplica, { type: Type }>> {
    let listener: (from: ReplicaProcess, answer: FromReplica) => void = () => {};
    const answered = new Promise<Extract<FromReplica, { type: Type }>>((resolve) => {
      listener = (from, answer) => {
        if (from === replica && answer.type === type) resolve(answer as Extract<FromReplica, { type: Type }>);
      };
      this.on('message', listener);
    });
    this.send(replica, message);
    try {
      return await this.options.deadline.until(`"${type}" from replica ${replica.id}`, answered);
    } finally {
      this.off('message', listener);
    }
  }

  /** Sends SIGKILL or SIGSTOP. Returns when it was sent, taken just before. */
  strike(replica: ReplicaProcess, signal: 'SIGKILL' | 'SIGSTOP'): number {
    if (signal === 'SIGKILL') {
      replica.endExpected = true;
    } else {
      replica.state = 'stopped';
      this.guard(replica);
    }
    const at_ns = monotonic_ns();
    process.kill(replica.pid, signal);
    return at_ns;
  }

  /** Continues a replica that was stopped. Returns when, taken just before. */
  continue(replica: ReplicaProcess): number {
    const at_ns = monotonic_ns();
    if (replica.state === 'stopped') {
      process.kill(replica.pid, 'SIGCONT');
      replica.state = 'open';
    }
    this.guards.get(replica.pid)?.stdin?.end('continued\n');
    this.guards.delete(replica.pid);
    return at_ns;
  }

  /**
   * A stopped process does not notice that its parent died, and would stay behind for ever. While one is stopped, a
   * shell waits for a line from this process; if it gets the end of the pipe instead, it kills the stopped one.
   */
  private guard(replica: ReplicaProcess): void {
    const guard = spawn('/bin/sh', ['-c', `read line || kill -s KILL ${replica.pid}`], {
      stdio: ['pipe', 'ignore', 'ignore'],
      detached: true, // Ctrl-C in the terminal must not end it first
    });
    guard.on('error', (error) => this.options.say(`no guard for stopped replica ${replica.id}: ${error.message}`));
    guard.stdin?.on('error', () => {});
    this.guards.set(replica.pid, guard);
  }

  /** Starts a replica that has ended again, as a new life, and waits until it is part of the cluster. */
  async restart(id: number): Promise<ReplicaProcess> {
    const { replica, failure } = await this.tryRestart(id);
    if (failure !== undefined) {
      throw new DemoError(`replica ${id} could not be started again: ${failure.code}: ${failure.message}`);
    }
    return replica;
  }

  /** The same, for a start that may fail: says why, when its process has ended. `wrapper`: see launch(). */
  async tryRestart(
    id: number,
    wrapper?: readonly string[],
  ): Promise<{ replica: ReplicaProcess; failure: Failure | undefined }> {
    const replica = this.launch(id, wrapper);
    const { deadline } = this.options;
    const failure = await deadline.until(`replica ${id} to open again`, this.opened(replica));
    if (failure !== undefined) {
      await this.waitFor(`replica ${id}, which could not open, to end`, () =>
        replica.state === 'ended' ? true : undefined,
      );
    }
    return { replica, failure };
  }

  /** Resolves with the applied LSN when all replicas have applied everything that is in the leader's log. */
  quiet(): Promise<number> {
    const since_ns = monotonic_ns();
    return this.waitFor('all replicas to have applied the same LSN', () => {
      const lsn = this.leader?.status?.tailLsn;
      const isQuiet = this.replicas.every(
        ({ status, statusAt_ns }) => statusAt_ns > since_ns && status?.appliedLsn === lsn && status?.commitLsn === lsn,
      );
      return isQuiet ? lsn : undefined;
    });
  }

  /** Orders all replicas to close and waits until they have ended. Returns what did not go as it should. */
  async stop(): Promise<string[]> {
    const problems: string[] = [];
    const live = this.everyLife.filter((replica) => replica.state !== 'ended');
    for (const replica of live) {
      replica.endExpected = true;
      if (replica.state === 'stopped') this.continue(replica);
      this.send(replica, { type: 'close' });
    }
    const ended = live.map(
      (replica) =>
        new Promise<void>((resolve) => {
          if (replica.state === 'ended') resolve();
          else replica.child.once('exit', () => resolve());
        }),
    );
    const timer = setTimeout(() => {
      for (const replica of live) {
        if (replica.state === 'ended') continue;
        problems.push(`replica ${replica.id} did not end within ${CLOSE_TIMEOUT_MS} ms and was killed`);
        replica.child.kill('SIGKILL');
      }
    }, CLOSE_TIMEOUT_MS);
    await Promise.all(ended);
    clearTimeout(timer);
    for (const replica of live) {
      const killed = replica.exitSignal === 'SIGKILL';
      if (replica.exitCode !== 0 && !killed) problems.push(describeEnd(replica));
    }
    process.off('exit', this.killAll);
    return problems;
  }

  /** Ends every process of the run at once. */
  readonly killAll = (): void => {
    for (const replica of this.everyLife) {
      replica.endExpected = true;
      if (replica.state !== 'ended') replica.child.kill('SIGKILL');
    }
    for (const guard of this.guards.values()) guard.kill('SIGKILL');
    this.guards.clear();
  };
}

function describeEnd(replica: ReplicaProcess): string {
  const how = replica.exitSignal === null ? `with exit code ${replica.exitCode}` : `by ${replica.exitSignal}`;
  const last = replica.stderr.trim().split('\n').slice(-3).join(' | ');
  return `the process of replica ${replica.id} ended ${how}${last === '' ? '' : `: ${last}`}`;
}
