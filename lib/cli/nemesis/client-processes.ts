// The client processes of a run: starts them, hands on what they record, and ends them with the run.
import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { type Deadline, DemoError } from '../demo/deadline.js';
import { type OperationRecord, unpackOperations } from './history.js';
import type { ClientStart, FromClients, ToClients } from './messages.js';

export interface ClientProcessesOptions {
  readonly processes: number;
  readonly start: Omit<ClientStart, 'type' | 'process' | 'seed'>;
  readonly seed: () => number;
  readonly deadline: Deadline;
  readonly onOperations: (operations: OperationRecord[]) => void;
  /** No operation on keys of an earlier generation is under way or will begin. */
  readonly onOpenGeneration: (generation: number) => void;
}

export class ClientProcesses {
  /** Errors that have no place in normal operation. */
  readonly strange = new Set<string>();
  private readonly children: ChildProcess[] = [];
  private readonly openGenerations: number[] = [];
  private readonly listeners = new Set<(from: ChildProcess, message: FromClients) => void>();
  private isEnding = false;

  constructor(private readonly options: ClientProcessesOptions) {
    process.on('exit', this.end);
    for (let index = 0; index < options.processes; index++) {
      const child = fork(fileURLToPath(new URL('../nemesis-client.js', import.meta.url)), [], {
        serialization: 'advanced',
        execArgv: process.execArgv.filter((argument) => !argument.startsWith('--inspect')),
      });
      this.children.push(child);
      this.openGenerations.push(0);
      child.on('message', (message) => this.onMessage(index, message as FromClients));
      child.on('error', (error) => options.deadline.fail(new DemoError(`client process ${index}: ${error.message}`)));
      child.on('exit', (code, signal) => {
        if (!this.isEnding) {
          options.deadline.fail(new DemoError(`client process ${index} ended (${signal ?? `exit code ${code}`})`));
        }
      });
      this.send(child, { ...options.start, type: 'start', process: index, seed: options.seed() });
    }
  }

  private send(child: ChildProcess, message: ToClients): void {
    if (child.connected) child.send(message, () => {});
  }

  private onMessage(index: number, message: FromClients): void {
    const { options, openGenerations } = this;
    if (message.type === 'operations') {
      for (const code of message.strange) this.strange.add(code);
      options.onOperations(unpackOperations(message.rows));
      openGenerations[index] = message.openGeneration;
      options.onOpenGeneration(Math.min(...openGenerations));
    }
    for (const listener of this.listeners) listener(this.children[index] as ChildProcess, message);
  }

  private next<Type extends FromClients['type']>(
    child: ChildProcess,
    type: Type,
  ): Promise<Extract<FromClients, { type: Type }>> {
    return new Promise((resolve) => {
      const listener = (from: ChildProcess, message: FromClients): void => {
        if (from !== child || message.type !== type) return;
        this.listeners.delete(listener);
        resolve(message as Extract<FromClients, { type: Type }>);
      };
      this.listeners.add(listener);
    });
  }

  /** Lets what is under way end. */
  async stop(): Promise<void> {
    const stopped = this.children.map((child) => this.next(child, 'stopped'));
    for (const child of this.children) this.send(child, { type: 'stop' });
    await this.options.deadline.until('the clients to end what is under way', Promise.all(stopped));
  }

  /** One read of each key. */
  async read(keys: readonly number[]): Promise<OperationRecord[]> {
    const child = this.children[0] as ChildProcess;
    const answer = this.next(child, 'read');
    this.send(child, { type: 'read', keys });
    return unpackOperations((await this.options.deadline.until('the last reads', answer)).rows);
  }

  readonly end = (): void => {
    this.isEnding = true;
    process.off('exit', this.end);
    for (const child of this.children) child.kill('SIGKILL');
  };
}
