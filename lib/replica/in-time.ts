// A limit on how long a promise is waited for.

/** Settles as the promise does, but rejects with `late()` after `limitMs`. The timer keeps no process alive. */
export function inTime<Value>(promise: Promise<Value>, limitMs: number, late: () => Error): Promise<Value> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(late()), limitMs).unref();
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
