// The read barriers of this leader that are not passed yet. All that wait for one round of the replication plane share a
// promise; at most two rounds are known at a time, the one under way and the one that follows it.

interface Waiting {
  readonly round: number;
  readonly promise: Promise<void>;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
  callers: number;
}

export class ReadBarriers {
  private waiting: Waiting[] = [];
  private callers = 0;

  /** Calls that wait. */
  get size(): number {
    return this.callers;
  }

  /** Rounds are asked for in ascending order. */
  join(round: number): Promise<void> {
    let last = this.waiting[this.waiting.length - 1];
    if (last === undefined || last.round !== round) {
      last = makeWaiting(round);
      this.waiting.push(last);
    }
    last.callers++;
    this.callers++;
    return last.promise;
  }

  /** All rounds up to this one are passed. */
  passed(round: number): void {
    for (let first = this.waiting[0]; first !== undefined && first.round <= round; first = this.waiting[0]) {
      this.waiting.shift();
      this.callers -= first.callers;
      first.resolve();
    }
  }

  rejectAll(error: () => Error): void {
    const rest = this.waiting;
    this.waiting = [];
    this.callers = 0;
    for (const { reject } of rest) reject(error());
  }
}

function makeWaiting(round: number): Waiting {
  let resolve: () => void = () => {};
  let reject: (error: Error) => void = () => {};
  const promise = new Promise<void>((resolved, rejected) => {
    resolve = resolved;
    reject = rejected;
  });
  return { round, promise, resolve, reject, callers: 0 };
}
