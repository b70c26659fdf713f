// Running an example as its reader would, and what its output must say; shared by the tests on shm and on rxe.
import { execFile } from 'node:child_process';
import { expect } from 'vitest';

export interface Ended {
  readonly code: number;
  readonly output: string;
}

/** Runs examples/`name` to its end; what it wrote, both streams together. */
export function runExample(name: string, args: readonly string[], timeoutMs = 60_000): Promise<Ended> {
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      [`examples/${name}`, ...args],
      { timeout: timeoutMs, killSignal: 'SIGKILL' },
      (error, out, err) => resolve({ code: error === null ? 0 : Number(error.code ?? -1), output: out + err }),
    );
  });
}

/** The other process reported the bytes, and nothing else was said. */
export function expectMovedBytes({ code, output }: Ended): void {
  expect(output).toMatch(/^process \d+ has "bytes from another process"\n$/);
  expect(code).toBe(0);
}

/** Every client got all its numbers; a lost datagram may leave gaps but cannot give a number twice. */
export function expectSequence({ code, output }: Ended, clients: number, requests: number): void {
  const [, given, below, gaps] =
    /^(\d+) numbers to \d+ clients, each once, below (\d+); (\d+) gaps; \d+ per second/.exec(output) ?? [];
  expect(Number(given), output).toBe(clients * requests);
  expect(Number(below) - Number(given)).toBe(Number(gaps));
  expect(code, output).toBe(0);
}
