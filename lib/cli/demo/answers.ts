// What became of proposed commands, collected during one turn of the event loop and sent to the parent as one message:
// the IPC channel costs far more per message than a commit does.
import type { FromReplica } from './messages.js';

/** Code and text of anything that was thrown. */
export function describeError(error: unknown): { code: string; message: string } {
  if (!(error instanceof Error)) return { code: 'UNKNOWN', message: String(error) };
  const code = (error as { code?: unknown }).code;
  // An error without a code is a defect: its stack is worth more than its message.
  return typeof code === 'string' ? { code, message: error.message } : { code: 'UNKNOWN', message: `${error.stack}` };
}

export class Answers {
  private acknowledged: { generation: number; sequence: number; latency_ns: number }[] = [];
  private refused: { generation: number; sequence: number }[] = [];
  private duplicates = 0;
  private refusal: unknown;
  private scheduled = false;

  constructor(
    private readonly origin: number,
    private readonly send: (message: FromReplica) => void,
  ) {}

  acknowledge(generation: number, sequence: number, latency_ns: number, duplicate: boolean): void {
    this.acknowledged.push({ generation, sequence, latency_ns });
    if (duplicate) this.duplicates++;
    this.schedule();
  }

  refuse(generation: number, sequence: number, error: unknown): void {
    this.refused.push({ generation, sequence });
    this.refusal = error;
    this.schedule();
  }

  private schedule(): void {
    if (this.scheduled) return;
    this.scheduled = true;
    setImmediate(() => {
      this.scheduled = false;
      this.flush();
    });
  }

  private flush(): void {
    const { acknowledged, refused, duplicates, origin } = this;
    this.acknowledged = [];
    this.refused = [];
    this.duplicates = 0;
    if (acknowledged.length > 0) {
      this.send({
        type: 'acknowledged',
        origin,
        generations: Uint32Array.from(acknowledged, (answer) => answer.generation),
        sequences: Uint32Array.from(acknowledged, (answer) => answer.sequence),
        latency_ns: Float64Array.from(acknowledged, (answer) => answer.latency_ns),
        duplicates,
      });
    }
    if (refused.length > 0) {
      this.send({
        type: 'refused',
        origin,
        generations: Uint32Array.from(refused, (answer) => answer.generation),
        sequences: Uint32Array.from(refused, (answer) => answer.sequence),
        ...describeError(this.refusal),
      });
    }
  }
}
