// What npm packs, as those who install it find it.
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { posix } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';

const root = fileURLToPath(new URL('../..', import.meta.url));

it('the package has every document that its README refers to', { timeout: 60_000 }, () => {
  const args = ['pack', '--dry-run', '--json', '--ignore-scripts'];
  const [{ files }] = JSON.parse(execFileSync('npm', args, { cwd: root, encoding: 'utf8' })) as [
    { files: { path: string }[] },
  ];
  const packed = new Set(files.map(({ path }) => path));
  const readme = readFileSync(`${root}/README.md`, 'utf8');
  const links = [...readme.matchAll(/\]\((?!https?:)([^)#]+)/g)].map(([, path]) => posix.normalize(path as string));
  expect(links).toContain('docs/OPERATIONS.md');
  expect(links.filter((path) => !packed.has(path))).toEqual([]);
});
