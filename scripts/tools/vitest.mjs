// How the scripts run vitest, and how they count what it did.
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';
import { run } from './child.mjs';

const MINUTE_MS = 60_000;

/** Arguments that select the tests on this machine. */
export const TESTS_HERE = ['--exclude=test/rxe/**', '--exclude=test/*/long/**'];

/** Arguments for Node.js that run vitest once; `--outputFile.json=PATH` says where its results go. */
export const VITEST = [
  'node_modules/vitest/vitest.mjs',
  'run',
  '--configLoader=native',
  '--reporter=default',
  '--reporter=json',
];

/**
 * @typedef {object} Counts
 * @property {number} passed
 * @property {number} failed
 * @property {number} skipped
 * @property {string[]} failures each failed test with its file and what it says, in several lines
 */

/** A change of colour on a terminal. */
export const ESCAPE_SEQUENCE = new RegExp(`${String.fromCharCode(27)}\\[[0-9;]*m`, 'g');

const STACK_FRAME = /^ {4}at /;

/** Of a failure's message: what fast-check says of a property, with its seed and counterexample, fits. */
const MESSAGE_LINES_MAX = 12;
const LINE_LENGTH_MAX = 300;

function cutOff(line) {
  return line.length > LINE_LENGTH_MAX ? `${line.slice(0, LINE_LENGTH_MAX)} …` : line;
}

/** A failure: its test, then what it says, without the stack. */
function failureText(file, test, message) {
  const name = [relative(process.cwd(), file), ...test].join(' > ');
  const lines = message.replace(ESCAPE_SEQUENCE, '').trimEnd().split('\n');
  const stackAt = lines.findIndex((line) => STACK_FRAME.test(line));
  const said = stackAt < 0 ? lines : lines.slice(0, stackAt);
  const [first = '', ...rest] = said.slice(0, MESSAGE_LINES_MAX).map(cutOff);
  if (said.length > MESSAGE_LINES_MAX) rest.push(`… ${said.length - MESSAGE_LINES_MAX} more lines`);
  return [first === '' ? name : `${name}: ${first}`, ...rest.map((line) => `    ${line}`.trimEnd())].join('\n');
}

/**
 * Counts from vitest's JSON. A file that fails outside its tests (at import, in a hook) is one failure, and so is a
 * run that failed in no test and no file, by an unhandled error or a crash.
 * @param {string} folder
 * @param {string} name
 * @param {number} exitCode
 * @returns {Counts}
 */
export function readVitestCounts(folder, name, exitCode) {
  const path = join(folder, name);
  if (!existsSync(path)) return { passed: 0, failed: 1, skipped: 0, failures: ['vitest ended without results'] };
  const results = JSON.parse(readFileSync(path, 'utf8'));
  const failures = results.testResults.flatMap(({ name, status, message, assertionResults }) => {
    const failedTests = assertionResults.filter((test) => test.status === 'failed');
    if (status === 'failed' && failedTests.length === 0) return failureText(name, [], message ?? '');
    return failedTests.map((test) =>
      failureText(name, [...test.ancestorTitles, test.title], test.failureMessages[0] ?? ''),
    );
  });
  if (failures.length === 0 && exitCode !== 0) failures.push(`no test failed, and vitest ended with ${exitCode}`);
  return {
    passed: results.numPassedTests,
    failed: failures.length,
    skipped: results.numPendingTests + results.numTodoTests,
    failures,
  };
}

/**
 * Runs tests for a limited time, and counts them.
 * @param {string} node the program that runs them
 * @param {string} folder where the file of results goes
 * @param {string} name of that file
 * @param {string[]} selection
 * @param {{ cwd: string, minutesMax: number, env?: Record<string, string> }} options
 * @returns {Promise<Counts>}
 */
export async function runVitest(node, folder, name, selection, { cwd, minutesMax, env = {} }) {
  const path = join(folder, name);
  rmSync(path, { force: true });
  const args = [...VITEST, `--outputFile.json=${path}`, ...selection];
  const { code, timedOut } = await run(node, args, { cwd, env, timeoutMs: minutesMax * MINUTE_MS });
  if (timedOut) console.log(`stopped after ${minutesMax} minutes`);
  return readVitestCounts(folder, name, code);
}
