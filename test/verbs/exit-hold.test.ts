// ExitHold: what a killed process had stays for a moment. A process of its own is killed; what of it is still there is
// seen from outside, by its keeper and by the pipe that both hold open.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { afterEach, describe, expect, it } from 'vitest';
import { ExitHold, monotonicNs } from '#lib/verbs/index.js';

const VERBS = new URL('../../dist/verbs/index.js', import.meta.url).href;
const LONG_NS = 1e9;
const PATIENCE = { timeout: 20_000, interval: 10 };
const children: ChildProcess[] = [];

afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL');
});

/** A process that runs `code`, with ExitHold at hand, says the keeper's id, and stays until something ends it. */
async function holder(code: string): Promise<{ child: ChildProcess; keeperId: number }> {
  const program = `const { ExitHold } = await import(${JSON.stringify(VERBS)}); setInterval(() => {}, 1000); ${code}`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  children.push(child);
  const lines = createInterface({ input: child.stdout as NodeJS.ReadableStream });
  const [line] = (await once(lines, 'line')) as [string];
  return { child, keeperId: Number(line) };
}

function isThere(id: number): boolean {
  try {
    // A process that has ended and waits for being collected has nothing any more.
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${id}/status`, 'utf8'));
  } catch {
    return false;
  }
}

/**
 * Kills the process. Resolves when its keeper and what that held are gone, with the times from before the kill until each
 * was seen to be: a hold is no shorter than it was asked for, and whoever looks late sees its end later, never earlier.
 */
async function endAfterKill({ child, keeperId }: { child: ChildProcess; keeperId: number }) {
  const before = monotonicNs();
  const since = { pipeEnded_ns: 0, keeperGone_ns: 0 };
  child.stdout?.once('close', () => {
    since.pipeEnded_ns = monotonicNs() - before;
  });
  child.kill('SIGKILL');
  await expect.poll(() => since.pipeEnded_ns > 0 && !isThere(keeperId), PATIENCE).toBe(true);
  since.keeperGone_ns = monotonicNs() - before;
  return since;
}

describe('a process with an ExitHold', () => {
  it('leaves a keeper that holds its descriptors for a while when it is killed, and then nothing', async () => {
    const one = await holder(`console.log(new ExitHold(${LONG_NS}).keeperId);`);
    const name = () => readFileSync(`/proc/${one.keeperId}/comm`, 'utf8').trim();
    await expect.poll(name, PATIENCE).toBe('quorate-hold'); // it gives itself that
    const { pipeEnded_ns, keeperGone_ns } = await endAfterKill(one);
    expect(pipeEnded_ns).toBeGreaterThanOrEqual(LONG_NS);
    expect(keeperGone_ns).toBeGreaterThanOrEqual(LONG_NS);
  });

  it('has none any more when it is closed, so its descriptors end with it', async () => {
    const code = `const one = new ExitHold(${LONG_NS}); const { keeperId } = one; one.close(); console.log(keeperId);`;
    const { keeperId } = await holder(code);
    expect(isThere(keeperId)).toBe(false);
  });

  it('is left without a keeper when it exits by itself', async () => {
    const code = `console.log(new ExitHold(${LONG_NS}).keeperId); setTimeout(() => process.exit(0), 1);`;
    const { child, keeperId } = await holder(code);
    if (child.exitCode === null) await once(child, 'exit');
    expect(isThere(keeperId)).toBe(false);
  });

  it('keeps it when its keeper is asked to end in its stead', async () => {
    const one = await holder(`console.log(new ExitHold(${LONG_NS}).keeperId);`);
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.kill(one.keeperId, signal);
    expect((await endAfterKill(one)).pipeEnded_ns).toBeGreaterThanOrEqual(LONG_NS);
  });

  it('goes on when its keeper is killed', async () => {
    const { child, keeperId } = await holder(`console.log(new ExitHold(${LONG_NS}).keeperId);`);
    process.kill(keeperId, 'SIGKILL');
    await expect.poll(() => isThere(keeperId), PATIENCE).toBe(false);
    expect(child.exitCode).toBe(null);
    expect(child.signalCode).toBe(null);
  });
});

describe('the holds of one process', () => {
  it('share a keeper, which stays until the last is closed', () => {
    using last = new ExitHold(1_000_000);
    const first = new ExitHold(2_000_000);
    const { keeperId } = first;
    expect(last.keeperId).toBe(keeperId);
    first.close();
    first.close();
    expect(isThere(keeperId)).toBe(true);
    last.close();
    expect(isThere(keeperId)).toBe(false);
    using next = new ExitHold(1);
    expect(isThere(next.keeperId)).toBe(true);
  });

  it.each([0, -1, 1e9 + 1, 1.5, Number.NaN])('are not made for %s ns', (holdNs) => {
    expect(() => new ExitHold(holdNs)).toThrow(/holdNs/);
  });
});
