// The checking thread as the run sees it: takes operations as they come, hands over what belongs to keys that are no
// longer used, and collects verdicts. Memory is bounded by what the keys in use and the sample that is kept hold.
import { Worker } from 'node:worker_threads';
import { type Deadline, DemoError } from '../demo/deadline.js';
import { MEANS_NAMES, Means, type OperationRecord, Outcome, packOperations, unpackOperations } from './history.js';
import type { FromChecker, KeyVerdict, ToChecker } from './messages.js';

/** Verdicts that are kept; one violation is enough to fail a run. */
const VERDICTS_MAX = 10;

export class Judge {
  operations = 0;
  failed = 0;
  unknown = 0;
  keys = 0;
  readonly stateReads = new Map<string, number>();
  /** Commands that were proposed at a replica that did not lead. */
  forwarded = 0;
  violations = 0;
  undecided = 0;
  readonly verdicts: KeyVerdict[] = [];
  private readonly worker: Worker;
  /** Operations by the generation of their key. */
  private readonly open = new Map<number, OperationRecord[]>();
  private onAnswer: (message: FromChecker) => void = () => {};

  constructor(
    private readonly keysPerGeneration: number,
    seed: number,
    private readonly deadline: Deadline,
    private readonly onViolation: () => void,
  ) {
    this.worker = new Worker(new URL('../nemesis-checker.js', import.meta.url), { workerData: { seed } });
    this.worker.on('error', (error) => deadline.fail(new DemoError(`the checking thread failed: ${error.stack}`)));
    this.worker.on('message', (message: FromChecker) => this.hear(message));
  }

  add(operations: readonly OperationRecord[]): void {
    for (const operation of operations) {
      if (operation.outcome === Outcome.ok) this.countExecuted(operation);
      else if (operation.outcome === Outcome.failed) this.failed++;
      else this.unknown++;
      const generation = Math.floor(operation.key / this.keysPerGeneration);
      const known = this.open.get(generation);
      if (known === undefined) this.open.set(generation, [operation]);
      else known.push(operation);
    }
  }

  private countExecuted({ by }: OperationRecord): void {
    this.operations++;
    if (by === Means.log) return;
    if (by === Means.forwarded) {
      this.forwarded++;
      return;
    }
    const name = MEANS_NAMES[by] as string;
    this.stateReads.set(name, (this.stateReads.get(name) ?? 0) + 1);
  }

  /** Everything below this generation is complete. */
  close(generation: number): void {
    for (const [number, operations] of this.open) {
      if (number >= generation) continue;
      this.open.delete(number);
      this.tell({ type: 'check', rows: packOperations(operations) });
    }
  }

  private tell(message: ToChecker): void {
    this.worker.postMessage(message);
  }

  private hear(message: FromChecker): void {
    if (message.type === 'checked') {
      this.keys += message.keys;
    }
    if (message.type === 'checked' || message.type === 'finished') this.note(message.verdicts);
    this.onAnswer(message);
  }

  private note(verdicts: readonly KeyVerdict[]): void {
    for (const verdict of verdicts) {
      if (verdict.kind === 'violation') this.violations++;
      else this.undecided++;
      if (this.verdicts.length < VERDICTS_MAX) this.verdicts.push(verdict);
    }
    if (verdicts.some(({ kind }) => kind === 'violation')) this.onViolation();
  }

  private answered<Type extends FromChecker['type']>(
    what: string,
    type: Type,
  ): Promise<Extract<FromChecker, { type: Type }>> {
    const answer = new Promise<Extract<FromChecker, { type: Type }>>((resolve) => {
      this.onAnswer = (message) => {
        if (message.type === type) resolve(message as Extract<FromChecker, { type: Type }>);
      };
    });
    return this.deadline.until(what, answer);
  }

  /** Judges what is left, then which keys are kept for a last read. */
  async keptKeys(): Promise<readonly number[]> {
    this.close(Number.POSITIVE_INFINITY);
    const answer = this.answered('the check of the history', 'kept');
    this.tell({ type: 'kept' });
    return (await answer).keys;
  }

  /** Judges the kept keys with their last reads; returns all that is known of them. */
  async finish(reads: readonly OperationRecord[]): Promise<OperationRecord[]> {
    this.operations += reads.length;
    const answer = this.answered('the check of the last reads', 'finished');
    this.tell({ type: 'finish', rows: packOperations(reads) });
    return unpackOperations((await answer).rows);
  }

  async end(): Promise<void> {
    await this.worker.terminate();
  }
}
