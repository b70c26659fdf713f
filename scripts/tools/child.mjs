// Child processes for the scripts: every child has a time limit, leads a process group of its own, and is ended by
// the id of that group and by nothing else. Interrupting a script (Ctrl-C, SIGTERM) ends the children it started.
import { spawn } from 'node:child_process';
import { constants } from 'node:os';

/** Time between asking a child to end (SIGTERM) and ending it (SIGKILL). */
const GRACE_MS = 5_000;

/** Groups that run now, by the process id of their leader. */
const running = new Set();
let interruptible = false;

function killGroup(pid, signal) {
  try {
    process.kill(-pid, signal);
  } catch (error) {
    if (/** @type {NodeJS.ErrnoException} */ (error).code !== 'ESRCH') throw error;
  }
}

function endOnInterrupt() {
  if (interruptible) return;
  interruptible = true;
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.on(signal, () => {
      for (const pid of running) killGroup(pid, 'SIGKILL');
      process.exit(128 + constants.signals[signal]);
    });
  }
}

/**
 * @typedef {object} RunOptions
 * @property {string} [cwd]
 * @property {Record<string, string | undefined>} [env] added to this process's environment; undefined removes a name
 * @property {number} timeoutMs the child's group is ended after this time
 * @property {'inherit' | 'capture' | 'tee'} [output] print what the child prints, keep it, or both; default inherit
 * @property {'ignore' | 'inherit'} [input] default ignore
 * @property {AbortSignal} [signal] ends the child's group at once when aborted
 *
 * @typedef {object} RunResult
 * @property {number} code exit code; 128 + signal number when a signal ended the child; 127 when it did not start
 * @property {boolean} timedOut
 * @property {string} output standard output and error together, when captured
 * @property {number} durationMs
 */

/**
 * Runs a program to its end.
 * @param {string} command
 * @param {string[]} args
 * @param {RunOptions} options
 * @returns {Promise<RunResult>}
 */
export function run(command, args, { cwd, env = {}, timeoutMs, output = 'inherit', input = 'ignore', signal }) {
  endOnInterrupt();
  const startedMs = Date.now();
  const stream = output === 'inherit' ? 'inherit' : 'pipe';
  const child = spawn(command, args, {
    cwd,
    env: { ...process.env, ...env },
    stdio: [input, stream, stream],
    detached: true,
  });
  const { pid } = child;
  if (pid !== undefined) running.add(pid);

  let text = '';
  const collect = (source, sink) => {
    source?.setEncoding('utf8');
    source?.on('data', (chunk) => {
      text += chunk;
      if (output === 'tee') sink.write(chunk);
    });
  };
  collect(child.stdout, process.stdout);
  collect(child.stderr, process.stderr);

  return new Promise((resolve) => {
    let timedOut = false;
    let killTimer;
    const timer = setTimeout(() => {
      timedOut = true;
      killGroup(pid, 'SIGTERM');
      killTimer = setTimeout(() => killGroup(pid, 'SIGKILL'), GRACE_MS);
    }, timeoutMs);
    const onAbort = () => killGroup(pid, 'SIGKILL');
    signal?.addEventListener('abort', onAbort);
    const finish = (code) => {
      signal?.removeEventListener('abort', onAbort);
      clearTimeout(timer);
      clearTimeout(killTimer);
      if (pid !== undefined) {
        running.delete(pid);
        killGroup(pid, 'SIGKILL'); // what the child itself left running
      }
      resolve({ code, timedOut, output: text, durationMs: Date.now() - startedMs });
    };
    child.on('error', (error) => {
      text += `${command} did not start: ${error.message}\n`;
      if (output !== 'capture') process.stderr.write(`${command} did not start: ${error.message}\n`);
      finish(127);
    });
    // 'exit', not 'close': a grandchild that keeps the pipe open must not hold us. What is left in the pipe follows
    // before the group is ended.
    child.on('exit', (code, endedBy) => {
      const status = code ?? 128 + constants.signals[endedBy ?? 'SIGKILL'];
      if (stream === 'inherit') finish(status);
      else {
        const drained = setTimeout(() => finish(status), 1_000);
        child.on('close', () => {
          clearTimeout(drained);
          finish(status);
        });
      }
    });
  });
}

/**
 * Runs a program that must succeed; throws with its output otherwise.
 * @param {string} command
 * @param {string[]} args
 * @param {RunOptions} options
 */
export async function runOrThrow(command, args, options) {
  const result = await run(command, args, options);
  if (result.code === 0) return result;
  const how = result.timedOut ? `did not end within ${options.timeoutMs / 1000} s` : `ended with code ${result.code}`;
  throw new Error(`${[command, ...args].join(' ')} ${how}${result.output ? `:\n${result.output.trimEnd()}` : ''}`);
}

/** Prints an error of ours without its stack, sets the exit code, and nothing more: for the end of a script. */
export function fail(error) {
  process.stderr.write(`error: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
