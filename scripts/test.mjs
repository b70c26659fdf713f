// npm test: sets up, builds, and runs every suite, one after the other, whatever an earlier one gave; but while a virtual
// machine runs, so do those that time does not matter to. It ends with what failed and how, and with the sum:
// `N passed, N failed, N skipped`. The exit code is 0 only when nothing failed and every suite ran a test.
//
//   node scripts/test.mjs [--only NAME[,NAME]] [--skip NAME[,NAME]]
import { mkdirSync, rmSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { buildAll, buildVariant, variantFolder } from './build.mjs';
import { setup } from './setup.mjs';
import { RXE_RESULTS, RXE_RESULTS_FILE } from './test-rxe.mjs';
import { fail, run, runOrThrow } from './tools/child.mjs';
import { ESCAPE_SEQUENCE, readVitestCounts, runVitest, TESTS_HERE } from './tools/vitest.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const RESULTS = join(root, 'out/results');
const MINUTE_MS = 60_000;
const NICENESS_MAX = 19;
/** Of a virtual machine: twice what its tests take on two processors. */
const RXE_SECONDS_MAX = 900;
/** Of a program. */
const MINUTES_MAX = 5;
/** Of tests of vitest. */
const VITEST_MINUTES_MAX = 15;
/** Of one that takes what another suite leaves of the processors. */
const MINUTES_BESIDE_MAX = 14;
/** What starts a program beside another suite: the virtual machine leaves some time to whoever can wait for it. */
const BESIDE = ['nice', '-n', `${NICENESS_MAX}`];

/**
 * @typedef {import('./tools/vitest.mjs').Counts} Counts
 *
 * @typedef {object} Beside how a suite runs beside another one
 * @property {string[]} printed what they print is kept here
 */

/** @type {Map<string, Promise<string>>} */
const builds = new Map();

/** Builds these variants one after the other, in the processor time that the suites before leave. */
async function buildMeanwhile(variants) {
  for (const variant of variants) {
    await built(variant, NICENESS_MAX).catch(() => {}); // whoever needs it is told
  }
}

/** The program or addon of a variant, which is being built already or is from now on. */
function built(variant, niceness = 0) {
  const build = builds.get(variant) ?? buildVariant(variant, niceness);
  builds.set(variant, build);
  return build;
}

/**
 * Runs a program of a suite, for a limited time.
 * @param {string[]} command
 * @param {Beside} [beside]
 * @param {Record<string, string>} [env]
 */
async function runProgram(command, beside, env = {}) {
  const [program = '', ...args] = [...(beside ? BESIDE : []), ...command];
  const minutes = beside === undefined ? MINUTES_MAX : MINUTES_BESIDE_MAX;
  const options = { cwd: root, env, timeoutMs: minutes * MINUTE_MS };
  const { code, timedOut, output } = await run(program, args, { ...options, output: beside ? 'capture' : 'tee' });
  beside?.printed.push(output);
  if (timedOut) {
    const text = `stopped after ${minutes} minutes: ${command.join(' ')}`;
    if (beside) beside.printed.push(`${text}\n`);
    else console.log(text);
  }
  return { code, output };
}

/**
 * A suite of one test: some programs that must all succeed.
 * @param {string[][]} programs arguments for Node.js
 * @param {Beside} [beside]
 * @returns {Promise<Counts>}
 */
async function onePass(programs, beside) {
  const failures = [];
  for (const args of programs) {
    const { code } = await runProgram([process.execPath, ...args], beside);
    if (code !== 0) failures.push(`${args.join(' ')}: ended with ${code}`);
  }
  const failed = Math.min(failures.length, 1);
  return { passed: 1 - failed, failed, skipped: 0, failures };
}

/**
 * The names of doctest's test cases that failed, from what it printed.
 * @param {string} output
 * @returns {string[]}
 */
function failedTestCases(output) {
  const sections = output.replace(ESCAPE_SEQUENCE, '').split(/^={20,}$/m);
  const failed = sections.filter((section) => /^\S+: (FATAL )?ERROR:/m.test(section));
  return [...new Set(failed.map((section) => /^TEST CASE:\s*(.*)$/m.exec(section)?.[1] ?? section.trim()))];
}

/**
 * The result of a suite that could not be run to its end.
 * @param {string} why
 * @returns {Counts}
 */
function failedOnce(why) {
  return { passed: 0, failed: 1, skipped: 0, failures: [why] };
}

/**
 * The C++ tests in one of their variants.
 * @param {string} variant
 * @param {Beside} [beside]
 * @returns {Promise<Counts>}
 */
async function nativeTests(variant, beside) {
  const { code, output } = await runProgram([await built(variant)], beside, {
    ASAN_OPTIONS: 'detect_leaks=1:check_initialization_order=1:strict_init_order=1:detect_stack_use_after_return=1',
    UBSAN_OPTIONS: 'print_stacktrace=1',
    TSAN_OPTIONS: 'halt_on_error=0:second_deadlock_stack=1',
  });
  const counts = /test cases:\s*(\d+) \|\s*(\d+) passed \|\s*(\d+) failed \|\s*(\d+) skipped/.exec(output);
  if (counts === null) return failedOnce(`ended with ${code} before its summary`);
  const failed = Number(counts[3]);
  const failures = failedTestCases(output);
  // A sanitizer's report at the end gives an exit code and no failed test.
  const broken = failed === 0 && code !== 0;
  if (broken) failures.push(`no test failed, and the program ended with ${code}`);
  return { passed: Number(counts[2]), failed: broken ? 1 : failed, skipped: Number(counts[4]), failures };
}

/**
 * Tests of vitest on this machine.
 * @param {string} name names the file of results
 * @param {string[]} selection
 * @param {Record<string, string>} env
 * @returns {Promise<Counts>}
 */
async function vitestTests(name, selection, env = {}) {
  const options = { cwd: root, env, minutesMax: VITEST_MINUTES_MAX };
  return await runVitest(process.execPath, RESULTS, `${name}.json`, selection, options);
}

async function libraryPath(name) {
  const { output } = await runOrThrow('g++', [`-print-file-name=${name}`], { timeoutMs: MINUTE_MS, output: 'capture' });
  return output.trim();
}

/**
 * Tests of the addon with its sanitizer build. Node.js itself is not instrumented, so the sanitizer's library is loaded
 * in front of it, and the C++ library with it, in which it must find what it wraps (exceptions). Leaks are looked for in
 * the C++ tests, not here: the heap of V8 hides pointers from the leak checker, which then reports hundreds of blocks of
 * an empty program, and a stack of ours always ends in Node.js, so suppressing that would suppress everything.
 */
async function addonTests() {
  await built('addon-address');
  // The race is run by the C++ tests under the same sanitizer.
  return await vitestTests('addon-asan', ['test/verbs', '--exclude=test/verbs/{long/**,revocation-race.test.ts}'], {
    LD_PRELOAD: `${await libraryPath('libasan.so')} ${await libraryPath('libstdc++.so')}`,
    ASAN_OPTIONS: 'detect_leaks=0:abort_on_error=1:alloc_dealloc_mismatch=0',
    UBSAN_OPTIONS: 'print_stacktrace=1',
    QUORATE_PREBUILD: variantFolder('addon-address'),
  });
}

/**
 * Tests on RDMA devices, in a boot of their own.
 * @param {string[]} args for scripts/test-rxe.mjs
 * @returns {Promise<Counts>}
 */
async function rxeTests(...args) {
  rmSync(join(RXE_RESULTS, RXE_RESULTS_FILE), { force: true });
  // The machine ends by itself, and says what it was at, before it is ended from here.
  const command = ['scripts/test-rxe.mjs', '--timeout', String(RXE_SECONDS_MAX), ...args];
  const { code, timedOut } = await run(process.execPath, command, {
    cwd: root,
    timeoutMs: RXE_SECONDS_MAX * 1000 + MINUTE_MS,
  });
  if (timedOut) console.log(`stopped a minute after ${RXE_SECONDS_MAX} s`);
  return readVitestCounts(RXE_RESULTS, RXE_RESULTS_FILE, code);
}

/**
 * In the order in which they run. `variant` is what scripts/build.mjs builds for a suite, while others run. A suite runs
 * beside that one which it names, if this machine has other cores and that suite is run; else in its turn. On a slow machine
 * one with `leftOutAfterMs` is left out when the others have taken so long, which is said and counted.
 * @type {{ name: string, title: string, needs: 'nothing' | 'build', variant?: string, onRequest?: true, leftOutAfterMs?: number,
 *   beside?: 'rxe', run: (beside?: Beside) => Promise<Counts> }[]}
 */
const SUITES = [
  {
    name: 'lint',
    title: 'lint and format (biome), and the API reference: nothing public is undocumented (typedoc)',
    needs: 'nothing',
    beside: 'rxe',
    run: (beside) =>
      onePass(
        [
          ['node_modules/@biomejs/biome/bin/biome', 'check', '--error-on-warnings', '.'],
          ['node_modules/typedoc/bin/typedoc', '--emit', 'none'],
        ],
        beside,
      ),
  },
  {
    name: 'types',
    title: 'types of tests, benchmarks, examples and scripts',
    needs: 'build',
    beside: 'rxe',
    run: (beside) =>
      onePass(
        ['tsconfig.test.json', 'scripts/tsconfig.json'].map((path) => ['node_modules/typescript/bin/tsc', '-p', path]),
        beside,
      ),
  },
  {
    name: 'unit',
    title: 'tests on this machine',
    needs: 'build',
    run: () => vitestTests('unit', TESTS_HERE),
  },
  {
    name: 'native',
    title: 'C++ tests',
    needs: 'nothing',
    variant: 'native',
    run: () => nativeTests('native'),
  },
  {
    name: 'native-asan',
    title: 'C++ tests, address and undefined-behaviour sanitizers',
    needs: 'nothing',
    variant: 'native-address',
    beside: 'rxe',
    run: (beside) => nativeTests('native-address', beside),
  },
  {
    name: 'native-tsan',
    title: 'C++ tests, thread sanitizer',
    needs: 'nothing',
    onRequest: true,
    variant: 'native-thread',
    run: () => nativeTests('native-thread'),
  },
  {
    name: 'addon-asan',
    title: 'addon tests, address sanitizer',
    needs: 'build',
    variant: 'addon-address',
    run: addonTests,
  },
  { name: 'rxe', title: 'tests on RDMA devices (SoftRoCE)', needs: 'build', run: () => rxeTests() },
  {
    name: 'rxe-one-core',
    title: 'the revocation race on RDMA devices, both virtual processors on one core',
    needs: 'build',
    leftOutAfterMs: 18 * MINUTE_MS, // the race on two cores has run by then
    run: () => rxeTests('--pin', 'test/rxe/one-core'),
  },
];

/** The suites that the command line selects. */
function selectSuites() {
  const { values } = parseArgs({ options: { only: { type: 'string' }, skip: { type: 'string', default: '' } } });
  const names = (list) => list.split(',').filter((name) => name !== '');
  for (const name of names(`${values.only ?? ''},${values.skip}`)) {
    if (SUITES.some((suite) => suite.name === name)) continue;
    throw new Error(`there is no suite "${name}"; there are: ${SUITES.map((suite) => suite.name).join(', ')}`);
  }
  const chosen = values.only === undefined ? undefined : names(values.only);
  return SUITES.filter(
    ({ name, onRequest }) =>
      !names(values.skip).includes(name) && (chosen === undefined ? onRequest !== true : chosen.includes(name)),
  );
}

/** @type {Counts} */
const total = { passed: 0, failed: 0, skipped: 0, failures: [] };

function header(text) {
  console.log(`\n=== ${text}`);
}

/** Runs suites beside another one, one after the other. The result prints and counts them. */
async function runBeside(suites) {
  /** @type {(() => Promise<void>)[]} */
  const ends = [];
  for (const suite of suites) {
    const startedMs = Date.now();
    /** @type {string[]} */
    const printed = [];
    const [outcome] = await Promise.allSettled([suite.run({ printed })]);
    const tookMs = Date.now() - startedMs;
    ends.push(async () => {
      header(`${suite.name}: ${suite.title} (beside ${suite.beside})`);
      process.stdout.write(printed.join(''));
      const step = () => (outcome.status === 'fulfilled' ? outcome.value : Promise.reject(outcome.reason));
      await count(suite.name, step, tookMs);
    });
  }
  return async () => {
    for (const end of ends) await end();
  };
}

/** Runs one step, prints its counts and adds them to the total. A step that throws has failed once. */
async function count(name, step, tookMs = 0) {
  const startedMs = Date.now() - tookMs;
  /** @type {Counts} */
  let counts;
  try {
    counts = await step();
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    console.log(text);
    counts = failedOnce(text.split('\n', 1)[0] ?? text);
  }
  if (counts.passed + counts.failed === 0) {
    console.log('this suite ran no test, which is a failure');
    counts = failedOnce('ran no test');
  }
  const { passed, failed, skipped, failures } = counts;
  total.passed += passed;
  total.failed += failed;
  total.skipped += skipped;
  total.failures.push(...failures.map((failure) => `${name}: ${failure}`));
  const took = `${((Date.now() - startedMs) / 1000).toFixed(0)} s`;
  console.log(`--- ${name}: ${passed} passed, ${failed} failed, ${skipped} skipped (${took})`);
  return failed === 0;
}

async function main() {
  const suites = selectSuites();
  const names = suites.map(({ name }) => name);
  const startedMs = Date.now();
  mkdirSync(RESULTS, { recursive: true });

  header('setup');
  const usesRdma = names.some((name) => name.startsWith('rxe'));
  await setup(['build', 'test', 'model', ...(usesRdma ? /** @type {const} */ (['rxe']) : [])]);
  console.log('what the tests need is installed');

  let isBuilt = true;
  if (suites.some(({ needs }) => needs === 'build')) {
    header('build');
    try {
      await buildAll();
      console.log('dist/ and the addon are up to date');
    } catch (error) {
      isBuilt = await count('build', () => Promise.reject(error));
    }
  }
  void buildMeanwhile(suites.flatMap(({ variant }) => variant ?? []));
  const besides = suites.filter(({ beside }) => isBuilt && availableParallelism() > 1 && names.includes(`${beside}`));
  for (const suite of suites.filter((one) => !besides.includes(one))) {
    header(`${suite.name}: ${suite.title}`);
    if (suite.needs === 'build' && !isBuilt) {
      console.log('not run, because the build failed');
      continue;
    }
    if (suites.length > 1 && Date.now() - startedMs > (suite.leftOutAfterMs ?? Number.POSITIVE_INFINITY)) {
      console.log(`left out, since this machine is slow: node scripts/test.mjs --only ${suite.name}`);
      total.skipped++;
      continue;
    }
    const others = runBeside(besides.filter(({ beside }) => beside === suite.name));
    await count(suite.name, () => suite.run());
    await (await others)();
  }
  // Once more at the end, because whoever reads the log of a long run reads its end.
  if (total.failures.length > 0) console.log(`\n=== failed\n${total.failures.join('\n')}`);
  console.log(`\nall suites: ${((Date.now() - startedMs) / MINUTE_MS).toFixed(1)} minutes`);
  console.log(`${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`);
  process.exitCode = total.failed > 0 || total.passed === 0 ? 1 : 0;
}

main().catch(fail);
