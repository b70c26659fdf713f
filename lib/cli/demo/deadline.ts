// The one time limit of a run. Everything that is waited for is waited for here, by name, so that a run that does not
// get on says what it was waiting for.
export class DemoError extends Error {
  override readonly name = 'DemoError';
}

export class Deadline {
  private readonly timer: NodeJS.Timeout;
  private readonly waiting = new Map<(error: Error) => void, string | (() => string)>();
  private error: Error | undefined;

  constructor(private readonly timeoutMs: number) {
    this.timer = setTimeout(() => this.expire(), timeoutMs);
  }

  /** Waits for `promise`; rejects when the time is up or the run has failed. */
  async until<T>(what: string | (() => string), promise: Promise<T>): Promise<T> {
    if (this.error !== undefined) throw this.error;
    let give: (error: Error) => void = () => {};
    const failed = new Promise<never>((_, reject) => {
      give = reject;
    });
    this.waiting.set(give, what);
    try {
      return await Promise.race([promise, failed]);
    } finally {
      this.waiting.delete(give);
    }
  }

  /** Ends every wait, present and future, with this error. The first one counts. */
  fail(error: Error): void {
    if (this.error !== undefined) return;
    this.error = error;
    for (const give of this.waiting.keys()) give(error);
  }

  /** Stops the clock. */
  end(): void {
    clearTimeout(this.timer);
  }

  private expire(): void {
    const names = [...this.waiting.values()].map((what) => (typeof what === 'string' ? what : what()));
    const what = names.join('; ') || 'nothing in particular';
    this.fail(new DemoError(`time limit of ${this.timeoutMs / 1000} s reached while waiting for: ${what} (--timeout)`));
  }
}
