// Code that does not run for long, as that of a takeover, is there when it is needed: V8 keeps what it compiled of it.
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { Replica } from '#lib/index.js';
import { freePorts, members, optionsFor } from './fixture.ts';

const PROGRAM = new URL('fixtures/growing-old.mjs', import.meta.url).pathname;

const TAKEOVER = ['adopt', 'beginTakeover', 'finishRecall', 'recallLease', 'removeWriteAccess', 'resume', 'standBack'];

/** The functions of a takeover that V8 throws the compiled form away of while garbage is collected. */
async function forgotten(keepCompiledCode: boolean): Promise<string[]> {
  const args = ['--trace-flush-bytecode', PROGRAM, `${keepCompiledCode}`, `${(await freePorts(1))[0]}`];
  const { stdout } = await promisify(execFile)(process.execPath, args, { timeout: 25_000, maxBuffer: 2 ** 24 });
  const names = [...stdout.matchAll(/discarding compiled metadata for .* (\S+)>/g)].map(([, name]) => name as string);
  return TAKEOVER.filter((name) => names.includes(name));
}

test('the code of a takeover outlasts the collection of garbage', async () => {
  expect(await forgotten(true)).toEqual([]);
});

test('unless the user does not want that', async () => {
  expect(await forgotten(false)).not.toEqual([]);
});

test('the option is a boolean', async () => {
  const options = optionsFor(0, await members(1), { keepCompiledCode: 'no' as never });
  await expect(Replica.open(options)).rejects.toMatchObject({
    code: 'QUORATE_INVALID_ARGUMENT',
    message: expect.stringContaining('keepCompiledCode'),
  });
});
