// Worker threads of tests, see fixtures/thread.mjs.
import { Worker } from 'node:worker_threads';

export interface Thread {
  run<T = Record<string, unknown>>(step: string, args?: object): Promise<T>;
  end(): Promise<number>;
  readonly worker: Worker;
}

export function startThread(): Thread {
  const worker = new Worker(new URL('../fixtures/thread.mjs', import.meta.url));
  let nextId = 1;
  const waiting = new Map<number, { resolve: (value: never) => void; reject: (error: Error) => void }>();
  worker.on('message', ({ id, error, ...result }) => {
    const entry = waiting.get(id);
    waiting.delete(id);
    if (error) entry?.reject(Object.assign(new Error(error.stack), { code: error.code }));
    else entry?.resolve(result as never);
  });
  const fail = (error: Error) => {
    for (const entry of waiting.values()) entry.reject(error);
    waiting.clear();
  };
  worker.on('error', fail);
  worker.on('exit', (code) => fail(new Error(`the thread ended with ${code}`)));
  return {
    worker,
    run<T>(step: string, args = {}) {
      const id = nextId++;
      return new Promise<T>((resolve, reject) => {
        waiting.set(id, { resolve, reject });
        worker.postMessage({ step, id, ...args });
      });
    },
    end: () => worker.terminate(),
  };
}
