// The table of warnings in docs/OPERATIONS.md: what operators look up has to be there, and has to be said by somebody.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';

const root = fileURLToPath(new URL('../..', import.meta.url));
const sources = readdirSync(join(root, 'lib'), { recursive: true, encoding: 'utf8' })
  .filter((path) => path.endsWith('.ts') && !/^(?:cli|testing)\//.test(path))
  .map((path) => readFileSync(join(root, 'lib', path), 'utf8'))
  .join('\n');

/** A warning that names its code where it is given; most others carry the code of an error that is passed on. */
const WARNING =
  /(?:\b(?:warn|warnSeldom|onWarning|onFault)\(|'warning',)\s*(?:new QuorateError\(\s*)?'(QUORATE_[A-Z_]+)'/g;

function documented(): string[] {
  const text = readFileSync(join(root, 'docs/OPERATIONS.md'), 'utf8');
  const [, table = ''] = /\| warning \| meaning \|\n\|[-|]+\n((?:\|.*\n)+)/.exec(text) ?? [];
  return table.split('\n').flatMap((row) => row.split('|')[1]?.match(/QUORATE_[A-Z_]+/g) ?? []);
}

it('every warning that is named in the code is in the table of warnings', () => {
  const given = new Set([...sources.matchAll(WARNING)].map(([, code]) => code as string));
  expect(given).toContain('QUORATE_ADDRESS_CHANGE');
  const known = documented();
  expect([...given].filter((code) => !known.includes(code))).toEqual([]);
});

it('every code in the table of warnings is one of the library', () => {
  const known = documented();
  expect(known).toContain('QUORATE_VERSION');
  expect(known.filter((code) => !sources.includes(`'${code}'`))).toEqual([]);
});
