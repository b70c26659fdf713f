// A replica that a service opens in a worker thread, where another part of the process uses quorate, too: the thread may end at
// any moment without closing it, and the process goes on.
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { MemberAddress } from '#lib/index.js';
import { addon } from '#lib/verbs/load-addon.js';
import { answers, members, optionsFor } from './fixture.js';

let shmDirectory: string;
beforeEach(() => {
  shmDirectory = mkdtempSync('/dev/shm/quorate-test-');
});
afterEach(() => {
  rmSync(shmDirectory, { recursive: true });
});

/** What the process holds of replicas. */
function held() {
  const { sharedTokens, environments } = addon.diagnostics();
  return { files: readdirSync(shmDirectory), sharedTokens, environments };
}

function start(list: readonly MemberAddress[], end: string): Worker {
  const { stateMachine: _, ...options } = optionsFor(0, list, { shmDirectory });
  return new Worker(new URL('./fixtures/replica-in-thread.mjs', import.meta.url), { workerData: { options, end } });
}

describe('a thread that ends and has not closed its replica leaves nothing of it behind', () => {
  it('when it is terminated while it proposes', async () => {
    const before = held();
    const thread = start(await members(1), 'none');
    await once(thread, 'message');
    await thread.terminate();
    expect(held()).toEqual(before);
  });

  it('when it is terminated while open() waits for other members', async () => {
    const before = held();
    const list = await members(2);
    const { host, port } = list[0] as MemberAddress;
    const thread = start(list, 'none');
    await expect.poll(() => answers(host, port), { timeout: 25_000 }).toBe(true);
    await thread.terminate();
    expect(held()).toEqual(before);
    expect(await answers(host, port)).toBe(false);
  });

  it.each(['process.exit()', 'uncaught exception'])('by %s', async (end) => {
    const before = held();
    const thread = start(await members(1), end);
    thread.on('error', () => {});
    await new Promise((resolve) => thread.once('exit', resolve));
    expect(held()).toEqual(before);
  });
});
