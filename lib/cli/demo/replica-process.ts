// A replica in a process of its own, under the orders of a parent (Cluster): opens the replica it is told to, reports
// status and leadership, and ends when its parent does, whatever the reason: the IPC channel closes. What it replicates
// and what else it does on order is the program's, demo-replica.ts or nemesis-replica.ts.
import { Replica } from '../../replica/replica.js';
import type { StateMachine } from '../../replica/replica-options.js';
import { describeError } from './answers.js';
import { type FromReplica, type LeaderMessage, monotonic_ns, type OpenMessage, type ToReplica } from './messages.js';

/** How often the status is looked at, and sent if it changed. */
const STATUS_INTERVAL_MS = 20;
/** A status that does not change is sent after so many intervals all the same. */
const STATUS_QUIET_INTERVALS = 25;
const CLOSE_TIMEOUT_MS = 10_000;

/** What a program does with its open replica. */
export interface Role {
  /** An order other than to open and to close. */
  handle(message: ToReplica): void | Promise<void>;
  /** Ends what the program opened besides the replica. */
  close(): void;
}

export interface ReplicaProgram<Result> {
  /** Who starts it, for whoever tries to do so by hand. */
  readonly startedBy: string;
  /** A command without effect, under the session number that it is to have; see ServingMessage. */
  readonly probe: (origin: number, sequence: number) => Uint8Array;
  readonly stateMachine: StateMachine<Result>;
  readonly begin: (replica: Replica<Result>, options: OpenMessage) => Role | Promise<Role>;
}

export function send(message: FromReplica): void {
  // The parent may be gone this instant; "disconnect" then ends the process.
  if (process.connected) process.send?.(message, () => {});
}

/** Sends what ends this process: the channel is closed when it is out. */
function sendLast(message: FromReplica): void {
  process.exitCode = 1;
  if (!process.connected) return;
  process.send?.(message, () => {
    if (process.connected) process.disconnect();
  });
}

class HostedReplica<Result> {
  private role: Role | undefined;
  private statusTimer: NodeJS.Timeout | undefined;
  private probeSequence = 1;
  private lastStatus = '';
  private quietIntervals = 0;
  private leads = false;
  private untold: LeaderMessage | undefined;

  private constructor(
    private readonly program: ReplicaProgram<Result>,
    private readonly replica: Replica<Result>,
    private readonly options: OpenMessage,
  ) {
    const { id } = options;
    replica.on('leader', (leader, epoch) => {
      if (leader === id) void this.onLeader(epoch);
      else this.leads = false;
    });
    replica.on('deposed', (epoch, reason) => {
      this.leads = false;
      this.tellLeader();
      send({ type: 'deposed', epoch, reason, at_ns: monotonic_ns() });
    });
    replica.on('warning', (warning) => send({ type: 'warning', ...describeError(warning) }));
    replica.on('fatal', (error) => {
      this.role?.close(); // nothing may keep a process alive whose replica is not
      sendLast({ type: 'failed', during: 'run', ...describeError(error) });
    });
  }

  static async open<Result>(program: ReplicaProgram<Result>, options: OpenMessage): Promise<HostedReplica<Result>> {
    const { device, profile, logBytes, permissionStrategy, regionDirectory: directory, durable } = options;
    const replica = await Replica.open<Result>({
      id: options.id,
      members: options.members,
      clusterKey: options.clusterKey,
      stateMachine: program.stateMachine,
      openTimeoutMs: options.openTimeoutMs,
      ...(device === undefined ? {} : { device }),
      ...(profile === undefined ? {} : { profile }),
      ...(logBytes === undefined ? {} : { logBytes }),
      ...(permissionStrategy === undefined ? {} : { permissionStrategy }),
      ...(directory === undefined ? {} : { surviveCrash: { directory } }),
      ...(durable === undefined ? {} : { durable }),
    });
    const hosted = new HostedReplica(program, replica, options);
    hosted.role = await program.begin(replica, options);
    hosted.report();
    return hosted;
  }

  private report(): void {
    this.reportStatusEvery(STATUS_INTERVAL_MS);
    send({ type: 'opened', at_ns: monotonic_ns() });
    const status = this.replica.status();
    if (status.role === 'leader') void this.onLeader(status.epoch); // it was elected before it could be listened to
    this.sendStatus();
  }

  /** A new leader proposes a command of its own at once; see ServingMessage. */
  private async onLeader(epoch: string): Promise<void> {
    if (this.leads) return;
    this.leads = true;
    const leaderAt_ns = monotonic_ns();
    // Told after the command was proposed, which it would delay, and before all that comes of it.
    this.untold = { type: 'leader', epoch, at_ns: leaderAt_ns };
    setImmediate(() => this.tellLeader());
    const { probeOrigin: origin } = this.options;
    // A probe whose fate stayed unknown is proposed again under its number: the session takes no other next.
    const sequence = this.probeSequence;
    try {
      const probe = this.program.probe(origin, sequence);
      await this.replica.propose(probe, { session: { origin, sequence }, forward: false });
      const at_ns = monotonic_ns();
      this.tellLeader();
      send({ type: 'serving', epoch, commitLsn: this.replica.status().commitLsn, leaderAt_ns, at_ns });
      this.probeSequence = sequence + 1;
    } catch (error) {
      // Deposed before the first commit: the next leader says when it serves.
      send({ type: 'warning', ...describeError(error) });
    }
  }

  private tellLeader(): void {
    if (this.untold !== undefined) send(this.untold);
    this.untold = undefined;
  }

  private reportStatusEvery(intervalMs: number): void {
    clearInterval(this.statusTimer);
    this.statusTimer = setInterval(() => this.sendStatus(), intervalMs);
  }

  private sendStatus(): void {
    const status = this.replica.status();
    const text = JSON.stringify(status);
    this.quietIntervals++;
    if (text === this.lastStatus && this.quietIntervals < STATUS_QUIET_INTERVALS) return;
    this.lastStatus = text;
    this.quietIntervals = 0;
    send({ type: 'status', at_ns: monotonic_ns(), status });
  }

  handle(message: ToReplica): void | Promise<void> {
    if (message.type === 'statusInterval') {
      this.reportStatusEvery(message.intervalMs);
      return;
    }
    return this.role?.handle(message);
  }

  async close(): Promise<void> {
    clearInterval(this.statusTimer);
    this.role?.close();
    await this.replica.close();
  }
}

/** Runs this process as a replica of the program. */
export function runReplicaProcess<Result>(program: ReplicaProgram<Result>): void {
  if (!process.connected) {
    process.stderr.write(`this program is started by ${program.startedBy}, not by hand\n`);
    process.exit(2);
  }
  let opening: Promise<HostedReplica<Result> | undefined> = Promise.resolve(undefined);
  let isOpening = false;
  let ending = false;

  /** Closes the replica; the process then ends by itself, since nothing is left that holds it open. */
  const end = async (): Promise<void> => {
    if (ending) return;
    ending = true;
    if (isOpening) process.exit(); // waiting for peers that may never come
    setTimeout(() => {
      process.stderr.write(`still running ${CLOSE_TIMEOUT_MS} ms after the order to close; ending\n`);
      process.exit(3);
    }, CLOSE_TIMEOUT_MS).unref();
    try {
      await (await opening)?.close();
    } catch (error) {
      process.exitCode = 1;
      const { code, message } = describeError(error);
      process.stderr.write(`closing failed: ${code}: ${message}\n`);
    }
    if (process.connected) process.disconnect();
  };

  process.on('disconnect', () => void end());
  // The terminal sends these to the parent too, which decides what they mean.
  process.on('SIGINT', () => {});
  process.on('SIGHUP', () => {});

  process.on('message', async (message: ToReplica) => {
    if (message.type === 'close') {
      void end();
      return;
    }
    if (message.type === 'open') {
      isOpening = true;
      opening = HostedReplica.open(program, message)
        .catch((error: unknown) => {
          sendLast({ type: 'failed', during: 'open', ...describeError(error) });
          return undefined;
        })
        .finally(() => {
          isOpening = false;
        });
      return;
    }
    await (await opening)?.handle(message);
  });
}
