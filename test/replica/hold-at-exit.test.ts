// The option holdAtExitMs: a replica on shm has a keeper for the end of its process, unless that is not wanted.
import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { openCluster } from './fixture.js';

/** Keepers of this process that live. */
function keepers(): number {
  return readdirSync('/proc').filter((name) => {
    if (!/^[0-9]+$/.test(name)) return false;
    try {
      const [, comm, state, parent] = /\((.*)\) (\S) (\d+)/s.exec(readFileSync(`/proc/${name}/stat`, 'utf8')) ?? [];
      return comm === 'quorate-hold' && state !== 'Z' && Number(parent) === process.pid;
    } catch {
      return false; // it ended just now
    }
  }).length;
}

describe('a replica on shared memory', () => {
  it('has its process held after its end, by one keeper for all replicas, until it is closed', async () => {
    const cluster = await openCluster(3);
    try {
      expect(keepers()).toBe(1);
    } finally {
      await cluster.close();
    }
    expect(keepers()).toBe(0);
  });

  it('does without if it is told so', async () => {
    const cluster = await openCluster(1, { holdAtExitMs: 0 });
    try {
      expect(keepers()).toBe(0);
    } finally {
      await cluster.close();
    }
  });
});
