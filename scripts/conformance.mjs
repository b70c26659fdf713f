// npm run conformance -- --provider shm|DEVICE[,DEVICE] [--json]: runs the conformance suite of the verbs API
// (test/verbs/conformance-all.ts) on a device: "shm"; an RDMA device of this machine; or one of those that `npm run rxe`
// has (b0, b1, rxe0), there. With two devices the ends of each connection are on different ones. What the suite prints
// goes through; with --json the last line is {"provider","passed","failed","skipped"}.
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { buildAll } from './build.mjs';
import { rxe } from './rxe-vm.mjs';
import { setup } from './setup.mjs';
import { fail, run } from './tools/child.mjs';
import { readVitestCounts, VITEST } from './tools/vitest.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const RESULTS = join(root, 'out/results/conformance');
const TIMEOUT_MS = 15 * 60_000;
const USAGE = `usage: npm run conformance -- --provider shm|DEVICE[,DEVICE] [--json]

Devices are those of this machine, or b0, b1, b2 and rxe0 of "npm run rxe". Default: shm.
`;

/**
 * Runs the suite here and returns its exit code.
 * @param {string} file of tests
 * @param {Record<string, string>} env
 * @param {string} results
 */
async function runHere(file, env, results) {
  const args = [...VITEST, `--outputFile.json=${join(RESULTS, results)}`, file];
  return (await run(process.execPath, args, { cwd: root, env, timeoutMs: TIMEOUT_MS })).code;
}

/**
 * Runs the suite where SoftRoCE devices are, and returns its exit code.
 * @param {string} devices
 * @param {string} results
 */
async function runOnRxe(devices, results) {
  // The folder of results has another name inside the machine, hence the shell.
  const script = `export QUORATE_RDMA_DEVICES="$0"; exec "$@" --outputFile.json="$QUORATE_RESULTS/${results}"`;
  const command = ['sh', '-c', script, devices, process.execPath, ...VITEST, 'test/rxe/verbs.test.ts'];
  return await rxe(['--results', RESULTS, '--timeout', String(TIMEOUT_MS / 1000), '--', ...command]);
}

async function main() {
  const { values } = parseArgs({
    options: {
      provider: { type: 'string', default: 'shm' },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return;
  }
  const provider = values.provider;
  const devices = provider.split(',');
  if (devices.length > 2 || devices.some((name) => !/^[A-Za-z0-9_.-]+$/.test(name))) {
    throw new Error(`--provider is "${provider}"; it must name one or two devices\n\n${USAGE}`);
  }
  if (devices.length === 2 && devices.includes('shm')) throw new Error('shm connects to nothing but shm');
  await setup(['build', 'test']);
  await buildAll();
  const results = `${devices.join('-')}.json`;
  mkdirSync(RESULTS, { recursive: true });
  rmSync(join(RESULTS, results), { force: true });
  let code;
  if (provider === 'shm') {
    code = await runHere('test/verbs/conformance.test.ts', {}, results);
  } else if (devices.every((name) => existsSync(`/sys/class/infiniband/${name}`))) {
    code = await runHere('test/rxe/verbs.test.ts', { QUORATE_RDMA_DEVICES: provider }, results);
  } else {
    code = await runOnRxe(provider, results);
  }
  const counts = readVitestCounts(RESULTS, results, code);
  if (values.json) console.log(JSON.stringify({ provider, ...counts }));
  else console.log(`${provider}: ${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
  process.exitCode = counts.failed > 0 || counts.passed === 0 ? 1 : 0;
}

main().catch(fail);
