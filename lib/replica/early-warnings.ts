// Warnings of a replica. Until open() has resolved nobody can listen, so they are kept, each once, and told right after; if
// it does not resolve, its error names them. From then on they are told at once. There is room for some; that others were
// left out is told, too.
import { QuorateError } from '../errors.js';

/** Warnings that are kept. */
const EARLY_WARNINGS_MAX = 32;

export class EarlyWarnings {
  /** Null when they have been told. */
  private kept: Error[] | null = [];
  private leftOut = 0;

  /** `tell` reaches whoever listens. */
  constructor(private readonly tell: (warning: Error) => void) {}

  /** Of those that nobody was told yet. */
  get messages(): readonly string[] {
    return this.untold.map(({ message }) => message);
  }

  private get untold(): readonly Error[] {
    const { kept, leftOut } = this;
    if (kept === null) return [];
    if (leftOut === 0) return kept;
    const text = `warnings that came before open() had resolved and are left out: ${leftOut}, behind ${kept.length} others`;
    return [...kept, new QuorateError('QUORATE_WARNINGS_LEFT_OUT', text)];
  }

  warn(error: Error): void {
    const { kept } = this;
    if (kept === null) this.tell(error);
    else if (kept.some((one) => one.message === error.message)) return;
    else if (kept.length < EARLY_WARNINGS_MAX) kept.push(error);
    else this.leftOut++;
  }

  /** open() is about to resolve: who listens from then on hears of what was found before. */
  tellSoon(): void {
    setImmediate(() => {
      const warnings = this.untold;
      this.kept = null;
      for (const warning of warnings) this.tell(warning);
    });
  }
}
