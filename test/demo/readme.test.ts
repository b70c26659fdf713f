// The program that the README shows first, as it stands there but for its ports: three processes of it are a cluster.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { afterEach, expect, it } from 'vitest';
import { freePorts } from '../replica/fixture.js';
import { useShmDirectory } from '../verbs/support/shm-directory.js';

useShmDirectory();
const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const PORTS = '[7101, 7102, 7103]';
const LINES_MAX = 15;
const running: ChildProcess[] = [];
let folder: string | undefined;

afterEach(async () => {
  for (const child of running.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue;
    child.kill('SIGKILL');
    await once(child, 'exit');
  }
  if (folder !== undefined) rmSync(folder, { recursive: true });
});

it(`the README's example has at most ${LINES_MAX} lines, and does what it says`, async () => {
  const readme = readFileSync(join(ROOT, 'README.md'), 'utf8');
  const example = /^```js\n(import [^`]*?)^```$/m.exec(readme)?.[1] ?? '';
  expect(example).toContain(PORTS);
  expect(example.trimEnd().split('\n').length).toBeLessThanOrEqual(LINES_MAX);

  // Within the package, which so finds itself by its name.
  mkdirSync(join(ROOT, 'out'), { recursive: true });
  folder = mkdtempSync(join(ROOT, 'out', 'readme-'));
  const program = join(folder, 'service.mjs');
  writeFileSync(program, example.replace(PORTS, JSON.stringify(await freePorts(3))));

  const printed = [0, 1, 2].map(async (id) => {
    const env = { ...process.env, CLUSTER_KEY: 'sixteen bytes at least' };
    const child = spawn(process.execPath, [program, String(id)], { env, stdio: ['ignore', 'pipe', 'pipe'] });
    running.push(child);
    let errors = '';
    child.stderr.on('data', (chunk) => {
      errors += chunk;
    });
    const ended = once(child, 'close').then(() => Promise.reject(new Error(`replica ${id} ended: ${errors}`)));
    ended.catch(() => {});
    const lines = createInterface({ input: child.stdout });
    return await Promise.race([once(lines, 'line').then(([line]) => line as string), ended]);
  });
  // One key, whichever replica sets it first. On a busy host the first leader may not last: then what was proposed is
  // proposed again, as the README says, and may be found executed already.
  const lines = await Promise.all(printed);
  const lsns = lines.map((line) => /^\{ lsn: (\d+), result: 1, duplicate: (?:false|true) \}$/.exec(line)?.[1]);
  expect(lsns, lines.join('\n')).not.toContain(undefined);
  expect(new Set(lsns).size).toBe(lines.length);
});
