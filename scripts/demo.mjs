// npm run demo: makes sure that everything is installed and built, then hands over to the demo itself (lib/cli/demo.ts)
// with the arguments, the terminal and the exit code.
import { spawn } from 'node:child_process';
import { constants } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildAll } from './build.mjs';
import { setup } from './setup.mjs';
import { fail } from './tools/child.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

try {
  await setup(['build']);
  await buildAll();
  // In this process's group, so that the terminal's Ctrl-C reaches the demo, which ends in its own orderly way.
  const demo = spawn(process.execPath, [join(root, 'dist/cli/demo.js'), ...process.argv.slice(2)], {
    stdio: 'inherit',
  });
  process.removeAllListeners('SIGINT').on('SIGINT', () => {});
  process.removeAllListeners('SIGTERM').on('SIGTERM', () => demo.kill('SIGTERM'));
  demo.on('error', fail);
  demo.on('exit', (code, signal) => {
    process.exitCode = code ?? 128 + constants.signals[signal ?? 'SIGKILL'];
  });
} catch (error) {
  fail(error);
}
