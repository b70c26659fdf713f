// npm run test:rxe: runs the tests of test/rxe, or the named test files, where there are RDMA devices in software, in
// one boot. What takes long in an emulated machine is in test/rxe/long and runs when it is named, and so does what needs
// both virtual processors on one core, test/rxe/one-core. Options in front of the files are those of `npm run rxe`, e.g.
// `npm run test:rxe -- --pin test/rxe/one-core`.
import { rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { buildAll } from './build.mjs';
import { rxe, rxeOptions } from './rxe-vm.mjs';
import { setup } from './setup.mjs';
import { fail } from './tools/child.mjs';
import { readVitestCounts, VITEST } from './tools/vitest.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
export const RXE_RESULTS = join(root, 'out/results/rxe');
export const RXE_RESULTS_FILE = 'vitest.json';

/**
 * Options for `npm run rxe` and test files, told apart.
 * @param {string[]} args
 */
function splitArguments(args) {
  const { tokens } = parseArgs({ args, options: rxeOptions, allowPositionals: true, tokens: true });
  const first = tokens.find((token) => token.kind !== 'option')?.index ?? args.length;
  return { options: args.slice(0, first), files: args.slice(first).filter((arg) => arg !== '--') };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    const { options, files } = splitArguments(process.argv.slice(2));
    await setup(['build']);
    await buildAll();
    rmSync(join(RXE_RESULTS, RXE_RESULTS_FILE), { force: true });
    // The folder of results has another name inside the machine, hence the shell.
    const script = `exec "$@" --outputFile.json="$QUORATE_RESULTS/${RXE_RESULTS_FILE}"`;
    const tests = files.length > 0 ? files : ['test/rxe', '--exclude=test/rxe/{long,one-core}/**'];
    const command = ['sh', '-c', script, 'sh', process.execPath, ...VITEST, ...tests];
    const code = await rxe([...options, '--results', RXE_RESULTS, '--', ...command]);
    const { passed, failed, skipped } = readVitestCounts(RXE_RESULTS, RXE_RESULTS_FILE, code);
    console.log(`rxe: ${passed} passed, ${failed} failed, ${skipped} skipped`);
    process.exitCode = failed > 0 || passed === 0 ? 1 : 0;
  } catch (error) {
    fail(error);
  }
}
