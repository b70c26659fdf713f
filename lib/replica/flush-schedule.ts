// Gathers what one turn of the event loop brings into one flush, which runs right after the current callback.

/** Flushes in a row before the event loop gets its turn. */
const FLUSHES_PER_TURN_MAX = 256;
const RESOLVED = Promise.resolve();

export class FlushSchedule {
  private isDue = false;
  private flushesThisTurn = 0;

  constructor(private readonly flush: () => void) {}

  soon(): void {
    if (this.isDue) return;
    this.isDue = true;
    // On shm a proposal settles within its own turn, so a loop that awaits one after another would never let the event
    // loop run: now and then it gets its turn.
    if (++this.flushesThisTurn < FLUSHES_PER_TURN_MAX) {
      void RESOLVED.then(this.flushNow); // cheaper than queueMicrotask, which makes an async resource
    } else {
      setImmediate(this.flushNow);
      this.flushesThisTurn = 0;
    }
  }

  private readonly flushNow = (): void => {
    this.isDue = false;
    this.flush();
  };
}
