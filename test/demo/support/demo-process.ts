// Runs the demo (or the nemesis) as a user does, as a program, and ends it by its process id whatever a test does.
import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect, onTestFinished } from 'vitest';

const PROGRAMS = new URL('../../../dist/cli/', import.meta.url);

export interface ProgramOptions {
  /** Default demo.js. */
  program?: 'demo.js' | 'nemesis.js' | 'power-loss.js';
  input?: string;
  /** Besides those of this process. */
  env?: Record<string, string>;
  timeoutMs: number;
}

export interface DemoProcess {
  readonly child: ChildProcess;
  readonly pid: number;
  /** Standard output so far. */
  output(): string;
  /** Standard error so far. */
  errors(): string;
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null; output: string; errors: string }>;
  /** Waits until a text is in standard output or standard error. */
  printed(text: string | RegExp, timeoutMs: number): Promise<void>;
}

export function startDemo(args: readonly string[], options: ProgramOptions): DemoProcess {
  const child = spawn(process.execPath, [fileURLToPath(new URL(options.program ?? 'demo.js', PROGRAMS)), ...args], {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { ...process.env, ...options.env },
  });
  const timer = setTimeout(() => child.kill('SIGTERM'), options.timeoutMs);
  onTestFinished(() => {
    clearTimeout(timer);
    // It ends its own children on the way out.
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGTERM');
  });
  let output = '';
  let errors = '';
  const listeners = new Set<() => void>();
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text;
    for (const listener of listeners) listener();
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors += text;
    for (const listener of listeners) listener();
  });
  child.stdin.on('error', () => {}); // a demo that refuses its options does not read its input
  child.stdin.end(options.input ?? '');
  const ended = new Promise<Awaited<DemoProcess['ended']>>((resolve) => {
    child.on('close', (code, signal) => resolve({ code, signal, output, errors }));
  });
  const printed = (text: string | RegExp, timeoutMs: number) =>
    new Promise<void>((resolve, reject) => {
      const isThere = () => (typeof text === 'string' ? (output + errors).includes(text) : text.test(output + errors));
      const finish = (error?: Error) => {
        clearTimeout(limit);
        listeners.delete(look);
        if (error === undefined) resolve();
        else reject(error);
      };
      const look = () => {
        if (isThere()) finish();
      };
      const limit = setTimeout(
        () => finish(new Error(`no ${text} within ${timeoutMs} ms:\n${output}${errors}`)),
        timeoutMs,
      );
      child.on('exit', (code) => finish(new Error(`the demo ended (${code}) before ${text}:\n${output}${errors}`)));
      listeners.add(look);
      look();
    });
  return { child, pid: child.pid as number, output: () => output, errors: () => errors, ended, printed };
}

/** Runs the demo with --json to its end; its last line, parsed. */
export async function runDemo(args: readonly string[], options: ProgramOptions) {
  const demo = startDemo([...args, '--json'], options);
  const { code, signal, output, errors } = await demo.ended;
  const last = output.trimEnd().split('\n').at(-1) ?? '';
  let summary: Record<string, unknown> | undefined;
  try {
    summary = JSON.parse(last) as Record<string, unknown>;
  } catch {
    summary = undefined;
  }
  return { code, signal, output, errors, summary };
}

/** Process ids of the children that a process has now, of theirs, and so on. */
export function descendantsOf(pid: number): number[] {
  return childrenOf(pid).flatMap((child) => [child, ...descendantsOf(child)]);
}

/** Process ids of the children that a process has now. */
export function childrenOf(pid: number): number[] {
  const children: number[] = [];
  for (const task of readdirSync(`/proc/${pid}/task`)) {
    const text = readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8').trim();
    if (text !== '') children.push(...text.split(' ').map(Number));
  }
  return children;
}

/** Whether a process is there; one that has ended and was not waited for is not. */
export function isRunning(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

/** Waits until none of these processes is there. */
export async function expectGone(pids: readonly number[], timeoutMs: number): Promise<void> {
  await expect.poll(() => pids.filter(isRunning), { timeout: timeoutMs }).toEqual([]);
}
