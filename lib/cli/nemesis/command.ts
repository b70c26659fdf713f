// Runs a program of the system's administration, and waits for it: mounting and the like, which nothing goes on beside.
import { spawnSync } from 'node:child_process';
import { DemoError } from '../demo/deadline.js';

const COMMAND_TIMEOUT_MS = 20_000;
/** Administrators' programs are not in everyone's path. */
const ENVIRONMENT = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin` };

/** Whether there is such a program. */
export function hasCommand(program: string): boolean {
  return (
    spawnSync('sh', ['-c', `command -v ${program}`], { env: ENVIRONMENT, timeout: COMMAND_TIMEOUT_MS }).status === 0
  );
}

/** Throws a DemoError if it ends with a code above `statusMax`. */
export function runCommand(program: string, args: readonly string[], statusMax = 0): void {
  const options = { timeout: COMMAND_TIMEOUT_MS, encoding: 'utf8', env: ENVIRONMENT } as const;
  const { status, stderr, error } = spawnSync(program, args, options);
  if (status === null || status > statusMax) {
    throw new DemoError(`${program} ${args.join(' ')} failed: ${stderr || error?.message}`);
  }
}
