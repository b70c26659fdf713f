// What the scripts say at the end of a run about tests that failed: enough to find out why and to try again, and no more.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, expect, it } from 'vitest';
import { readVitestCounts } from '../../scripts/tools/vitest.mjs';

const folder = mkdtempSync(join(tmpdir(), 'quorate-failure-summary-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** What is said of a test that failed with this message, as vitest writes that. */
function saidOf(message: string): string {
  const assertionResults = [
    { status: 'failed', ancestorTitles: ['a group'], title: 'a test', failureMessages: [message] },
    { status: 'passed', ancestorTitles: [], title: 'another', failureMessages: [] },
  ];
  const testResults = [
    { name: join(process.cwd(), 'test/some.test.ts'), status: 'failed', message: '', assertionResults },
  ];
  const results = { numPassedTests: 1, numPendingTests: 0, numTodoTests: 0, testResults };
  writeFileSync(join(folder, 'results.json'), JSON.stringify(results));
  const { failures, ...counts } = readVitestCounts(folder, 'results.json', 1);
  expect(counts).toEqual({ passed: 1, failed: 1, skipped: 0 });
  expect(failures).toHaveLength(1);
  return failures[0] as string;
}

it('tells the seed and the counterexample of a property, and not where it was thrown', () => {
  let thrown = '';
  try {
    fc.assert(
      fc.property(fc.nat(), (number) => number < 1000),
      { seed: 42 },
    );
  } catch (error) {
    thrown = (error as Error).stack as string;
  }
  const [first, ...rest] = saidOf(thrown).split('\n');
  expect(first).toMatch(/^test\/some\.test\.ts > a group > a test: Error: Property failed after \d+ tests$/);
  expect(rest.every((line) => line === '' || line.startsWith('    '))).toBe(true);
  expect(rest.join('\n')).toMatch(/ {4}\{ seed: 42, path: "[\d:]+".*\n {4}Counterexample: \[1000\]\n/);
  expect(rest.join('\n')).not.toMatch(/^ +at /m);
});

it('is limited in lines and in their length, and has no colours', () => {
  const lines = saidOf(`\u001b[31mError: ${'x'.repeat(10_000)}\u001b[39m${'\ny'.repeat(1000)}`).split('\n');
  expect(lines).toHaveLength(13);
  expect(lines[0]).toBe(`test/some.test.ts > a group > a test: Error: ${'x'.repeat(293)} …`);
  expect(lines.slice(1, 12)).toEqual(Array(11).fill('    y'));
  expect(lines[12]).toBe('    … 989 more lines');
});

it('is one line where the message is one', () => {
  expect(saidOf('Error: no\n    at file.ts:1:2')).toBe('test/some.test.ts > a group > a test: Error: no');
  expect(saidOf('')).toBe('test/some.test.ts > a group > a test');
});
