// Code that does not run for long, as that of a takeover, is there when it is needed: V8 keeps what it compiled of it.
import { execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { Replica } from '#lib/index.js';
import { freePorts, members, optionsFor } from './fixture.ts';

const TIERS = new URL('fixtures/tiers.mjs', import.meta.url).pathname;
const TERMINATED = new URL('fixtures/rehearsal-terminated.mjs', import.meta.url).pathname;
const PROGRAM = new URL('fixtures/growing-old.mjs', import.meta.url).pathname;

const run = promisify(execFile);

/** What has V8 tell of code that it throws away: the option got another name in Node.js 22. */
const TRACE = ['--trace-flush-code', '--trace-flush-bytecode'].find((option) =>
  execFileSync(process.execPath, ['--v8-options'], { encoding: 'utf8' }).includes(`${option} `),
) as string;

/** What V8's second compiler made of these is kept anyway: which ones are forgotten differs from run to run. */
const TAKEOVER = ['adopt', 'beginTakeover', 'finishRecall', 'recallLease', 'removeWriteAccess', 'resume', 'standBack'];

/** Runs once, in open(), so that only the first compiler sees it. */
const ONCE = 'checkDurable';

/** The functions among these that V8 throws the compiled form away of while garbage is collected. */
async function forgotten(keepCompiledCode: boolean): Promise<string[]> {
  const args = [TRACE, PROGRAM, `${keepCompiledCode}`, `${(await freePorts(1))[0]}`];
  // Into a file: what V8 prints faster than a pipe takes it is lost.
  const folder = mkdtempSync(join(tmpdir(), 'quorate-compiled-code-'));
  const path = join(folder, 'trace');
  const file = openSync(path, 'w');
  const child = spawn(process.execPath, args, { stdio: ['ignore', file, 'inherit'], timeout: 25_000 });
  closeSync(file);
  const [code] = await once(child, 'exit');
  const trace = readFileSync(path, 'utf8');
  rmSync(folder, { recursive: true });
  expect(code).toBe(0);
  const names = [...trace.matchAll(/discarding compiled metadata for .* (\S+)>/g)].map(([, name]) => name as string);
  return [...TAKEOVER, ONCE].filter((name) => names.includes(name));
}

test('the code of a takeover outlasts the collection of garbage', async () => {
  expect(await forgotten(true)).toEqual([]);
});

test('unless the user does not want that', async () => {
  expect(await forgotten(false)).toContain(ONCE);
});

/** Methods of the planes that have run, and are interpreted. Of a process that compiles as before in the end. */
async function interpreted(keepCompiledCode: boolean): Promise<string[]> {
  const port = `${(await freePorts(1))[0]}`;
  const { stdout } = await run(process.execPath, ['--allow-natives-syntax', TIERS, `${keepCompiledCode}`, port], {
    timeout: 25_000,
  });
  return JSON.parse(stdout);
}

test('after the rehearsal nothing of a takeover is interpreted', async () => {
  expect(await interpreted(true)).toEqual([]);
});

test('but what is short is, if V8 is to be left alone', async () => {
  expect(await interpreted(false)).toEqual(expect.arrayContaining(['recallLease', 'removeWriteAccess']));
});

test('a thread that is terminated while its replica rehearses has V8 interpret again', async () => {
  const args = ['--allow-natives-syntax', TERMINATED, `${(await freePorts(1))[0]}`];
  const { stdout } = await run(process.execPath, args, { timeout: 25_000 });
  expect(stdout).toBe('interpreted');
});

test('the option is a boolean', async () => {
  const options = optionsFor(0, await members(1), { keepCompiledCode: 'no' as never });
  await expect(Replica.open(options)).rejects.toMatchObject({
    code: 'QUORATE_INVALID_ARGUMENT',
    message: expect.stringContaining('keepCompiledCode'),
  });
});
