// What the scripts of the programs in lib/cli have in common: everything is installed and built, then the program takes
// over with the arguments, the terminal and the exit code.
import { spawn } from 'node:child_process';
import { constants } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildAll } from '../build.mjs';
import { setup } from '../setup.mjs';
import { fail } from './child.mjs';

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/**
 * @param {string} program path in the checkout
 */
export async function handOver(program) {
  try {
    await setup(['build']);
    await buildAll();
    // In this process's group, so that the terminal's Ctrl-C reaches the program, which ends in its own orderly way.
    const child = spawn(process.execPath, [join(root, program), ...process.argv.slice(2)], { stdio: 'inherit' });
    process.removeAllListeners('SIGINT').on('SIGINT', () => {});
    process.removeAllListeners('SIGTERM').on('SIGTERM', () => child.kill('SIGTERM'));
    child.on('error', fail);
    child.on('exit', (code, signal) => {
      process.exitCode = code ?? 128 + constants.signals[signal ?? 'SIGKILL'];
    });
  } catch (error) {
    fail(error);
  }
}
