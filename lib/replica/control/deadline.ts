// A time limit that is fair to the other side. A process that was stopped, or whose event loop was blocked, finds its
// timers due before it reads what has arrived in the meantime; so when the time is up, the loop gets one more turn of
// input before the limit counts as exceeded. A deadline never keeps the process alive: the socket it watches does.

export class Deadline {
  private timer: NodeJS.Timeout | undefined;
  private readonly onExpired: () => void;

  constructor(timeoutMs: number, onExpired: () => void) {
    this.onExpired = onExpired;
    this.timer = setTimeout(() => setImmediate(() => this.expire()), timeoutMs).unref();
  }

  private expire(): void {
    if (this.timer === undefined) return;
    this.clear();
    this.onExpired();
  }

  /** Ends it; onExpired will not be called any more. */
  clear(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
  }
}
