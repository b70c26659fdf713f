// The end of a module that is a program when Node.js is started with it, and a library for the tests otherwise.
import { constants } from 'node:os';
import { fileURLToPath } from 'node:url';

/** Ends this program without a word when its output is not read any more, as when it is piped into head(1). */
export function endWithReader(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
    process.exit(128 + constants.signals.SIGPIPE);
  });
}

/** Ends this program when it is asked to, as process.exit() does: its handlers end the children and heal the network. */
export function endWithSignals(): void {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => process.exit(128 + constants.signals[signal]));
  }
}

/** Runs `main` if the module at `moduleUrl` is the program; its result is the exit code. */
export async function runAsProgram(moduleUrl: string, main: (argv: string[]) => Promise<number>): Promise<void> {
  if (process.argv[1] === undefined || process.argv[1] !== fileURLToPath(moduleUrl)) return;
  endWithSignals();
  endWithReader();
  process.exitCode = await main(process.argv.slice(2));
}
