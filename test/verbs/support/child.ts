// Child processes of tests: started from test/verbs/fixtures, spoken to over the IPC channel, ended by their pid.
import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';

export interface ChildEnd {
  readonly process: ChildProcess;
  /** Next message of this type. Rejects when the child exits before, or after the time limit. */
  message<T = Record<string, unknown>>(type: string): Promise<T>;
  send(message: object): void;
  /** Exit code and signal; after the time limit the child is killed and the promise rejects. */
  exited(): Promise<{ code: number | null; signal: string | null; stderr: string; stdout: string }>;
  kill(signal?: NodeJS.Signals): void;
}

const TIMEOUT_MS = 60_000;

export function startChild(
  fixture: string,
  args: string[] = [],
  execArgv: string[] = [],
  variables: Record<string, string> = {},
): ChildEnd {
  const child = fork(fileURLToPath(new URL(`../fixtures/${fixture}`, import.meta.url)), args, {
    execArgv,
    env: { ...process.env, ...variables },
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
  });
  const waiting: { type: string; resolve: (message: never) => void; reject: (error: Error) => void }[] = [];
  const arrived: { type: string }[] = [];
  let stderr = '';
  let stdout = '';
  let outcome: { code: number | null; signal: string | null } | undefined;
  child.stderr?.on('data', (chunk) => {
    stderr += chunk;
  });
  child.stdout?.on('data', (chunk) => {
    stdout += chunk;
  });
  child.on('message', (message: { type: string }) => {
    const index = waiting.findIndex((entry) => entry.type === message.type);
    const entry = index >= 0 ? waiting.splice(index, 1)[0] : undefined;
    if (entry === undefined) arrived.push(message);
    else entry.resolve(message as never);
  });
  const closed = new Promise<void>((resolve) => {
    child.on('close', (code, signal) => {
      outcome = { code, signal };
      for (const entry of waiting.splice(0)) {
        entry.reject(new Error(`${fixture} ended (${code ?? signal}) before it sent ${entry.type}: ${stderr}`));
      }
      resolve();
    });
  });
  function limited<T>(what: string, promise: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        child.kill('SIGKILL');
        reject(new Error(`${fixture}: no ${what} within ${TIMEOUT_MS} ms: ${stderr}`));
      }, TIMEOUT_MS);
      promise.then(resolve, reject).finally(() => clearTimeout(timer));
    });
  }
  return {
    process: child,
    message<T>(type: string) {
      const index = arrived.findIndex((message) => message.type === type);
      if (index >= 0) return Promise.resolve(arrived.splice(index, 1)[0] as T);
      if (outcome !== undefined) return Promise.reject(new Error(`${fixture} has ended: ${stderr}`));
      return limited<T>(type, new Promise((resolve, reject) => waiting.push({ type, resolve, reject })));
    },
    send(message) {
      child.send(message);
    },
    async exited() {
      await limited('exit', closed);
      return { ...(outcome as { code: number | null; signal: string | null }), stderr, stdout };
    },
    kill(signal = 'SIGKILL') {
      child.kill(signal);
    },
  };
}
