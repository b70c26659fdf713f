// How the scripts run vitest, and how they count what it did.
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

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
 */

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
  if (!existsSync(path)) return { passed: 0, failed: 1, skipped: 0 };
  const results = JSON.parse(readFileSync(path, 'utf8'));
  const brokenFiles = results.testResults.filter(
    (file) => file.status === 'failed' && !file.assertionResults.some((test) => test.status === 'failed'),
  ).length;
  const failed = results.numFailedTests + brokenFiles;
  return {
    passed: results.numPassedTests,
    failed: failed === 0 && exitCode !== 0 ? 1 : failed,
    skipped: results.numPendingTests + results.numTodoTests,
  };
}
