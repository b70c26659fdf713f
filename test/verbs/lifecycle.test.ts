// Nothing is left behind: threads that end in the middle of operations, and devices that are opened and closed over and
// over. The long form of the latter is `node --expose-gc test/verbs/fixtures/open-close.mjs --rounds 10000`.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { startChild } from './support/child.js';

const THREADS = 50;
const AT_A_TIME = 10;
const ROUNDS = 300;

function ownDirectory(): string {
  return mkdtempSync('/dev/shm/quorate-test-');
}

describe('the process', () => {
  it(`outlives ${THREADS} threads that open a device, use it and end in the middle of operations`, async () => {
    const directory = ownDirectory();
    const child = startChild('many-threads.mjs', [String(THREADS), String(AT_A_TIME), 'shm'], [], {
      QUORATE_SHM_DIR: directory,
    });
    const { code, signal, stdout, stderr } = await child.exited();
    expect(stderr).toBe('');
    expect({ code, signal }).toEqual({ code: 0, signal: null });
    const { ways, diagnostics, files } = JSON.parse(stdout);
    expect(Object.values(ways).reduce((sum: number, count) => sum + (count as number), 0)).toBe(THREADS);
    expect(Object.keys(ways)).toHaveLength(7);
    expect(diagnostics).toEqual({ wrappers: 0, buffers: 0, sharedTokens: 0, environments: 1 });
    expect(files).toEqual([]);
    rmSync(directory, { recursive: true });
  });

  it(`holds no more after ${ROUNDS} rounds of opening and closing than before`, async () => {
    const directory = ownDirectory();
    const child = startChild('open-close.mjs', ['--rounds', String(ROUNDS)], ['--expose-gc'], {
      QUORATE_SHM_DIR: directory,
    });
    const { code, stdout, stderr } = await child.exited();
    expect(stderr).toBe('');
    const { leaks, before, after } = JSON.parse(stdout);
    expect(leaks, stdout).toEqual([]);
    expect(code).toBe(0);
    expect(after.descriptors).toBeLessThanOrEqual(before.descriptors);
    expect(readdirSync(directory)).toEqual([]);
    rmSync(directory, { recursive: true });
  });

  it('keeps no objects that were closed by another one, by another thread, or while they were watched', async () => {
    const directory = ownDirectory();
    const child = startChild('closed-by-others.mjs', [String(ROUNDS)], ['--expose-gc'], { QUORATE_SHM_DIR: directory });
    const { code, stdout, stderr } = await child.exited();
    expect(stderr).toBe('');
    expect(code).toBe(0);
    const { before, ...after } = JSON.parse(stdout);
    expect(Object.keys(after)).toEqual(['queue', 'channel', 'sharedReceiveQueue', 'watchedQueue', 'thread']);
    // The context and the domain look for closed ones only when they have some dozens.
    for (const [way, wrappers] of Object.entries(after)) expect(wrappers, way).toBeLessThan(before + ROUNDS / 3);
    rmSync(directory, { recursive: true });
  });
});
