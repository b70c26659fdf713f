// The benchmarks of the verbs, run for a moment on shared memory: that they measure what they say and report it, not how
// fast anything is. And that the tables in the documentation are those of the published data.
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { section, tables } from '../../bench/support/permission-figures.mjs';
import { useShmDirectory } from './support/shm-directory.js';

useShmDirectory();

async function runBench(name: string, args: readonly string[]) {
  const { stdout } = await promisify(execFile)(process.execPath, [`bench/${name}`, ...args, '--json'], {
    timeout: 60_000,
  });
  return JSON.parse(stdout);
}

describe('bench/permissions.mjs', () => {
  it('gives and takes the right by each mechanism', async () => {
    const args = ['--parts', 'latency', '--iterations', '5', '--max-mib', '1'];
    const { provider, latency, leftOut } = await runBench('permissions.mjs', args);
    expect(provider).toBe('shm');
    const revokers: Record<string, string> = {
      'qp-flags': 'REM_INV_REQ_ERR',
      'qp-error': 'RETRY_EXC_ERR',
      'qp-flush': 'RETRY_EXC_ERR',
      'qp-close': 'RETRY_EXC_ERR',
      'mr-dereg': 'REM_ACCESS_ERR',
      'mw-1': 'REM_ACCESS_ERR',
      'mw-2': 'REM_ACCESS_ERR',
    };
    for (const [mechanism, status] of Object.entries(revokers)) {
      const one = latency.find((entry: { mechanism: string }) => entry.mechanism === mechanism);
      expect(one, mechanism).toMatchObject({ iterations: 5, statuses: { [status]: 5 } });
      for (const { p50, p99 } of [one.revokeUs, one.grantUs]) {
        expect(p50).toBeGreaterThan(0);
        expect(p99).toBeGreaterThanOrEqual(p50);
      }
    }
    // What was not measured is named, with the reason.
    const tooLarge = leftOut.filter((entry: { mechanism: string }) => entry.mechanism === 'mr-dereg');
    expect(tooLarge.map(({ sizeBytes }: { sizeBytes: number }) => sizeBytes / 2 ** 20)).toEqual([16, 64, 256, 1024]);
    expect(tooLarge[0].why).toBe('memory was limited to 1 MiB');
  });

  it('runs the race test on a mechanism', async () => {
    const { race } = await runBench('permissions.mjs', ['--parts=race', '--mechanisms=mr-dereg,mw-2', '--trials=3']);
    expect(race).toMatchObject([
      { mechanism: 'mr-dereg', trials: 3, late: 0 },
      { mechanism: 'mw-2', trials: 3, late: 0 },
    ]);
  });

  it.each(['shm', 'rxe'])('has its data of %s in the tables of docs/PERMISSIONS.md', (name) => {
    const data = JSON.parse(readFileSync(`docs/figures/permissions-${name}.json`, 'utf8'));
    const { inside } = section(readFileSync('docs/PERMISSIONS.md', 'utf8'), name);
    expect(inside).toBe(`\n${tables(data)}\n`);
  });
});

it('bench/transport.mjs compares each variant with the first of its question', async () => {
  const { results } = await runBench('transport.mjs', ['--milliseconds', '1', '--rounds', '2']);
  expect(results.map(({ name }: { name: string }) => name)).toEqual([
    'inline-16',
    'inline-64',
    'inline-256',
    'doorbells',
    'signaling',
    'write-transport',
    'send-transport',
    'verb',
    'outstanding',
  ]);
  for (const { name, variants } of results) {
    expect(variants.length, name).toBeGreaterThan(1);
    expect(variants[0].ratio, name).toBe(1);
    for (const { bestNs, ratio } of variants) {
      expect(bestNs, name).toBeGreaterThan(0);
      // Both times are printed in tenths of a nanosecond, and the ratio in hundredths.
      const ofTimes = bestNs / variants[0].bestNs;
      const rounding = 0.006 + ofTimes * (0.06 / bestNs + 0.06 / variants[0].bestNs);
      expect(Math.abs(ratio - ofTimes), `${name}: ${ratio} for ${ofTimes}`).toBeLessThan(rounding);
    }
  }
});

it('bench/verbs-overhead.mjs measures calls and operations', async () => {
  const { provider, results, comparisons, met } = await runBench('verbs-overhead.mjs', [
    '--milliseconds=2',
    '--pairs=0',
  ]);
  expect(provider).toBe('shm');
  expect(Object.keys(results)).toContain('WRITE of 64 bytes, posted and completed');
  for (const [name, { best, median }] of Object.entries<{ best: number; median: number }>(results)) {
    expect(best, name).toBeGreaterThan(0);
    expect(median, name).toBeGreaterThanOrEqual(best);
  }
  expect(comparisons).toEqual([]);
  expect(met).toBeNull(); // nothing was compared, so nothing was met
});
