// Warnings of a replica. Until open() has resolved nobody can listen, so they are kept, each once, and told right after; if
// it does not resolve, its error names them. From then on they are told at once.

/** Warnings that are kept. */
const EARLY_WARNINGS_MAX = 32;

export class EarlyWarnings {
  /** Null when they have been told. */
  private kept: Error[] | null = [];

  /** `tell` reaches whoever listens. */
  constructor(private readonly tell: (warning: Error) => void) {}

  /** Of those that nobody was told yet. */
  get messages(): readonly string[] {
    return this.kept?.map(({ message }) => message) ?? [];
  }

  warn(error: Error): void {
    const { kept } = this;
    if (kept === null) this.tell(error);
    else if (kept.length < EARLY_WARNINGS_MAX && !kept.some((one) => one.message === error.message)) kept.push(error);
  }

  /** open() is about to resolve: who listens from then on hears of what was found before. */
  tellSoon(): void {
    setImmediate(() => {
      const warnings = this.kept ?? [];
      this.kept = null;
      for (const warning of warnings) this.tell(warning);
    });
  }
}
