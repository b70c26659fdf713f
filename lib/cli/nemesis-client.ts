// A client process of the nemesis: several clients that use the registers at the same time, on the keys of the hour.
// It ends when its parent does: the IPC channel closes.
import { Random } from '../fabric/sim/random.js';
import { monotonic_ns } from './demo/messages.js';
import { Connections } from './nemesis/connections.js';
import { type OperationRecord, Outcome, packOperations } from './nemesis/history.js';
import { type ClientHost, LogicalClient } from './nemesis/logical-client.js';
import type { ClientStart, FromClients, ToClients } from './nemesis/messages.js';
import { clientValue } from './nemesis/values.js';

/** How often what was recorded is sent. */
const REPORT_INTERVAL_MS = 50;
/** Between operations of a client, now and then, so that there is not always the same load. */
const REST_PROBABILITY = 0.002;
const REST_MS_MAX = 400;
/** A last read waits for the cluster as long as the run does: the parent has the limit. */
const LAST_READ_TIMEOUT_MS = 3_600_000;

function send(message: FromClients): void {
  if (process.connected) process.send?.(message, () => {});
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

class ClientProcess {
  private records: OperationRecord[] = [];
  private readonly strange = new Set<string>();
  private readonly random: Random;
  private readonly clients: LogicalClient[];
  /** Generation of the keys of what is under way, by client. */
  private readonly under = new Map<LogicalClient, number>();
  private readonly running: Promise<void>[];
  private readonly timer: NodeJS.Timeout;
  private isStopped = false;

  constructor(private readonly start: ClientStart) {
    this.random = new Random(start.seed);
    let values = 0;
    const host: ClientHost = {
      start,
      connections: new Connections(start.sockets, start.attemptTimeoutMs),
      nextValue: () => clientValue(start.process, ++values),
      lastSeen: new Map(),
      strange: (code) => this.strange.add(code),
    };
    this.clients = Array.from(
      { length: start.clients },
      (_, index) => new LogicalClient(start.process * start.clients + index, host, this.random.fork()),
    );
    this.running = this.clients.map((client) => this.drive(client, this.random.fork(), host));
    this.timer = setInterval(() => this.report(), REPORT_INTERVAL_MS);
  }

  private generation(): number {
    const { start_ns, lifetime_ns } = this.start.keys;
    return Math.max(0, Math.floor((monotonic_ns() - start_ns) / lifetime_ns));
  }

  private async drive(client: LogicalClient, random: Random, host: ClientHost): Promise<void> {
    const { perGeneration } = this.start.keys;
    while (!this.isStopped) {
      const generation = this.generation();
      this.under.set(client, generation);
      const key = generation * perGeneration + random.integer(perGeneration);
      const record = await client.operate(key);
      this.records.push(record); // not in one line: report() replaces the array during the wait
      this.under.delete(client);
      host.lastSeen.delete(key - 4 * perGeneration); // of keys that nobody uses any more
      await sleep(
        random.chance(REST_PROBABILITY) ? random.between(0, REST_MS_MAX) : random.between(0, this.start.thinkMsMax),
      );
    }
  }

  private report(): void {
    const openGeneration = Math.min(this.generation(), ...this.under.values());
    const { records } = this;
    this.records = [];
    send({ type: 'operations', rows: packOperations(records), openGeneration, strange: [...this.strange] });
  }

  async stop(): Promise<void> {
    this.isStopped = true;
    await Promise.all(this.running);
    clearInterval(this.timer);
    this.report();
    send({ type: 'stopped' });
  }

  async read(keys: readonly number[]): Promise<void> {
    const records: OperationRecord[] = [];
    for (const key of keys) {
      const client = this.clients[0] as LogicalClient;
      let record: OperationRecord;
      do record = await client.read(key, LAST_READ_TIMEOUT_MS);
      while (record.outcome !== Outcome.ok);
      records.push(record);
    }
    send({ type: 'read', rows: packOperations(records) });
  }
}

let running: ClientProcess | undefined;
process.on('disconnect', () => process.exit());
// The terminal sends these to the parent too, which decides what they mean.
process.on('SIGINT', () => {});
process.on('SIGHUP', () => {});
process.on('message', (message: ToClients) => {
  if (message.type === 'start') running = new ClientProcess(message);
  else if (message.type === 'stop') void running?.stop();
  else void running?.read(message.keys);
});

if (!process.connected) {
  process.stderr.write('this program is started by the nemesis (quorate/dist/cli/nemesis.js), not by hand\n');
  process.exit(2);
}
