// The clients of a simulated cluster. Each has a session (origin, sequence) and one operation under way; it retries an
// operation of unknown outcome under the same sequence number, with whichever replica seems to lead, and now and then
// gives one up and goes on with a new session. What they asked and were answered is the history that is checked.
import type { Random } from '../fabric/sim/random.js';
import type { SimWorld } from '../fabric/sim/sim-world.js';
import type { HistoryOperation } from './checkers/linearizability.js';
import type { SimCluster } from './sim-cluster.js';
import type { ProposalOutcome, ReadMeans } from './sim-life.js';
import type { SimOptions } from './sim-options.js';
import { COMMAND_BYTES, encodeCommand, isSessionless, Operation, sessionless } from './sim-state-machine.js';

/** A client gives an operation of unknown outcome up after an attempt with this probability. */
const GIVE_UP_PROBABILITY = 0.05;

// Times at pace 1.
const CLIENT_LATENCY_MAX_NS = 2e6;
const RETRY_MIN_NS = 5e6;
const RETRY_MORE_MAX_NS = 20e6;
const READER_THINK_MIN_NS = 1e6;
const READER_THINK_MAX_NS = 30e6;
/** A reader asks elsewhere after this time, between the two. */
const READER_TIMEOUT_MIN_NS = 20e6;
const READER_TIMEOUT_MAX_NS = 300e6;

export class SimClients {
  readonly history: HistoryOperation[] = [];
  /** Sessions and sequence numbers of operations that were answered. */
  readonly acknowledged: { origin: number; sequence: number }[] = [];
  /** Reads that were answered from the state of a replica, by how it was made sure that it is current. */
  readonly reads: Record<ReadMeans, number> = { barrier: 0, lease: 0, follower: 0 };
  readonly random: Random;
  private open = 0;
  private isStopped = false;
  private nextOrigin = 1;
  private nextValue = 1;

  constructor(
    private readonly world: SimWorld,
    /** The one that they use now. */
    public cluster: SimCluster,
    private readonly options: SimOptions,
  ) {
    this.random = world.random.fork();
    for (let process = 0; process < options.clients; process++) {
      const client = new SimClient(process, this, world, options);
      world.schedule(this.random.integer(options.thinkMax_ns), () => client.next());
    }
    for (let count = 0; count < options.readers; count++) {
      const reader = new SimReader(options.clients + count, this, world, options);
      world.schedule(this.random.integer(READER_THINK_MAX_NS * options.pace), () => reader.next());
    }
  }

  /** They use another cluster from now on, and hear nothing any more of the one before. */
  moveTo(cluster: SimCluster): void {
    this.cluster = cluster;
  }

  get stopped(): boolean {
    return this.isStopped;
  }

  /** Operations under way. */
  get underWay(): number {
    return this.open;
  }

  /** No new operations; those under way go on. */
  stop(): void {
    this.isStopped = true;
  }

  newOrigin(): number {
    return this.nextOrigin++;
  }

  /** The next operation, without a payload if it is a read behind a barrier: that one is no command, and has no session. */
  begin(process: number, session: string): { operation: HistoryOperation; payload: Uint8Array | null } | null {
    if (this.isStopped) return null;
    const { random, options } = this;
    const kind = random.pick([
      Operation.write,
      Operation.write,
      Operation.read,
      Operation.read,
      Operation.compareAndSet,
      Operation.add,
    ]);
    const value = this.nextValue++;
    const command = {
      operation: kind,
      key: random.integer(options.keys),
      value,
      expected: Math.max(0, value - 1 - random.integer(4)),
    };
    const asked = { process, command, invoked_ns: this.world.now_ns, returned_ns: Infinity, result: 0 };
    const isBarrierRead = kind === Operation.read && random.chance(options.barrierReads);
    const operation: HistoryOperation = isBarrierRead ? asked : { ...asked, session };
    this.history.push(operation);
    this.open++;
    if (isBarrierRead) return { operation, payload: null };
    const fillerBytesMax = options.payloadBytesMax - COMMAND_BYTES;
    const fillerBytes = options.payloadsAreMostlySmall
      ? Math.floor(random.logBetween(1, fillerBytesMax + 2)) - 1
      : random.integer(fillerBytesMax + 1);
    return { operation, payload: encodeCommand(command, fillerBytes) };
  }

  end(): void {
    this.open--;
  }
}

class SimClient {
  private origin: number;
  private sequence = 0;
  private target: number;
  private attempt = 0;

  constructor(
    private readonly process: number,
    private readonly clients: SimClients,
    private readonly world: SimWorld,
    private readonly options: SimOptions,
  ) {
    this.origin = clients.newOrigin();
    this.target = clients.random.integer(options.replicas);
  }

  next(): void {
    const { clients, options } = this;
    // An operation without a session is the only one of its origin.
    const hasNone = options.sessionless > 0 && clients.random.chance(options.sessionless);
    if (hasNone || isSessionless(this.origin)) {
      this.origin = hasNone ? sessionless(clients.newOrigin()) : clients.newOrigin();
      this.sequence = 0;
    }
    if (options.forwarding > 0) this.target = clients.random.integer(options.replicas);
    const begun = clients.begin(this.process, `${this.origin}:${this.sequence + 1}`);
    if (begun === null) return;
    if (begun.payload !== null) this.sequence++;
    this.try(begun.operation, begun.payload);
  }

  private delay_ns(): number {
    return this.clients.random.integer(CLIENT_LATENCY_MAX_NS * this.options.pace);
  }

  private try(operation: HistoryOperation, payload: Uint8Array | null): void {
    const { world, options } = this;
    const attempt = ++this.attempt;
    const settle = (outcome: ProposalOutcome): void => {
      if (attempt !== this.attempt) return; // an answer to an attempt that was given up
      this.attempt++;
      this.settled(operation, payload, outcome);
    };
    world.schedule(this.delay_ns(), () => {
      const { cluster } = this.clients;
      const life = cluster.lives[this.target];
      if (!life) {
        settle({ kind: 'notLeader', leader: -1 });
        return;
      }
      world.schedule(options.attemptTimeout_ns, () => settle({ kind: 'unknown' }));
      const answer = (outcome: ProposalOutcome): void => {
        world.schedule(this.delay_ns(), () => {
          if (cluster === this.clients.cluster) settle(outcome);
        });
      };
      if (payload === null) life.read(operation.command.key, answer);
      else life.propose(this.origin, this.sequence, payload, answer);
    });
  }

  private settled(operation: HistoryOperation, payload: Uint8Array | null, outcome: ProposalOutcome): void {
    const { clients, world, options } = this;
    if (outcome.kind === 'applied' || outcome.kind === 'read') {
      operation.returned_ns = world.now_ns;
      operation.result = outcome.result;
      if (outcome.kind === 'read') {
        operation.readLsn = outcome.lsn;
        clients.reads[outcome.by]++;
      } else {
        clients.acknowledged.push({ origin: this.origin, sequence: this.sequence });
      }
      clients.end();
      world.schedule(clients.random.integer(options.thinkMax_ns), () => this.next());
      return;
    }
    if (outcome.kind === 'notLeader' && outcome.leader >= 0) this.target = outcome.leader;
    else if (outcome.kind !== 'full') this.target = clients.random.integer(options.replicas);
    const hasSession = !isSessionless(this.origin) || payload === null;
    if (outcome.kind === 'unknown' && (!hasSession || clients.random.chance(GIVE_UP_PROBABILITY))) {
      // The session is left behind: its last command may still take effect, and no later one can come from it.
      this.origin = clients.newOrigin();
      this.sequence = 0;
      clients.end();
      world.schedule(clients.random.integer(options.thinkMax_ns), () => this.next());
      return;
    }
    const delay_ns = RETRY_MIN_NS * options.pace + clients.random.integer(RETRY_MORE_MAX_NS * options.pace);
    world.schedule(delay_ns, () => this.try(operation, payload));
  }
}

/**
 * A client that has heard of no leader and asks anybody, again and again, for a register: it finds the replica that does
 * not know yet that it leads no more. Only what is answered in time is part of the history: a read that is not answered
 * constrains nothing.
 */
class SimReader {
  private attempt = 0;

  constructor(
    private readonly process: number,
    private readonly clients: SimClients,
    private readonly world: SimWorld,
    private readonly options: SimOptions,
  ) {}

  next(): void {
    const { clients, world, options } = this;
    if (clients.stopped) return;
    const { random } = clients;
    const key = random.integer(options.keys);
    const invoked_ns = world.now_ns;
    const attempt = ++this.attempt;
    const settle = (outcome: ProposalOutcome | null): void => {
      if (attempt !== this.attempt) return;
      this.attempt++;
      if (outcome?.kind === 'read') {
        const command = { operation: Operation.read, key, value: 0, expected: 0 };
        const { result, lsn: readLsn } = outcome;
        clients.history.push({
          process: this.process,
          command,
          invoked_ns,
          returned_ns: world.now_ns,
          result,
          readLsn,
        });
        clients.reads[outcome.by]++;
      }
      const think_ns = random.between(READER_THINK_MIN_NS, READER_THINK_MAX_NS) * options.pace;
      world.schedule(think_ns, () => this.next());
    };
    const latencyMax_ns = CLIENT_LATENCY_MAX_NS * options.pace;
    world.schedule(random.between(READER_TIMEOUT_MIN_NS, READER_TIMEOUT_MAX_NS) * options.pace, () => settle(null));
    world.schedule(random.integer(latencyMax_ns), () => {
      const { cluster } = clients;
      const life = cluster.lives[random.integer(options.replicas)];
      if (!life) {
        settle(null);
        return;
      }
      life.read(key, (outcome) => {
        world.schedule(random.integer(latencyMax_ns), () => settle(cluster === clients.cluster ? outcome : null));
      });
    });
  }
}
