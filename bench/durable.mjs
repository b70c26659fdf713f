// npm run bench:durable: what it costs that a command is acknowledged only when it is on the disks of a majority. Three
// replicas, one process each, on shared memory; commands one after the other, each when the one before is acknowledged, in
// memory and durable, beside the bare fdatasync(2) of the same file system in the same run.
//
//   node bench/durable.mjs [--ops N] [--profile fast|balanced|relaxed] [--directory DIR] [--json]
//
// The directories of the replicas are made in DIR, by default that for temporary files, and removed in the end.
import { closeSync, fdatasyncSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { build, decodeFromCompressedBase64 } from 'hdr-histogram-js';
import { endWithSignals } from '../dist/cli/as-program.js';
import { Cluster } from '../dist/cli/demo/cluster.js';
import { Deadline } from '../dist/cli/demo/deadline.js';
import { profileName, readOptions, refuse, wholeNumber } from './support/options.mjs';

const TIMEOUT_MS = 300_000;
const OPEN_TIMEOUT_MS = 60_000;
const PAYLOAD_BYTES = 100;
const SYNC_BYTES = 256;

const values = readOptions(import.meta.url, {
  ops: { type: 'string', default: '2000' },
  profile: { type: 'string', default: 'balanced' },
  directory: { type: 'string', default: tmpdir() },
  json: { type: 'boolean', default: false },
});
const ops = wholeNumber('ops', values.ops, 1, 1_000_000);
const profile = profileName(values.profile);
const folder = makeFolder();
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
endWithSignals();
const deadline = new Deadline(TIMEOUT_MS);
const say = (/** @type {string} */ line) => process.stderr.write(`${line}\n`);

function makeFolder() {
  try {
    return mkdtempSync(join(values.directory, 'quorate-bench-durable-'));
  } catch (error) {
    return refuse(`--directory ${values.directory}: ${/** @type {Error} */ (error).message}`);
  }
}

/** @param {import('hdr-histogram-js').Histogram} histogram of nanoseconds */
function figures(histogram) {
  const us = (/** @type {number} */ percentile) => Math.round(histogram.getValueAtPercentile(percentile) / 100) / 10;
  return { p50: us(50), p99: us(99), max: us(100) };
}

function measureSync() {
  const histogram = build({ lowestDiscernibleValue: 1, highestTrackableValue: 60e9 });
  const file = openSync(join(folder, 'sync'), 'w');
  const bytes = new Uint8Array(SYNC_BYTES).fill(1);
  for (let count = 0; count < ops; count++) {
    const start = performance.now();
    writeSync(file, bytes);
    fdatasyncSync(file);
    histogram.recordValue(Math.round((performance.now() - start) * 1e6));
  }
  closeSync(file);
  return figures(histogram);
}

/** @param {boolean} isDurable */
async function measureCommits(isDurable) {
  const cluster = await Cluster.start({
    replicas: 3,
    devices: ['shm'],
    profile,
    openTimeoutMs: OPEN_TIMEOUT_MS,
    random: Math.random,
    deadline,
    say,
    openWith: (id) => (isDurable ? { durable: { directory: join(folder, `replica-${id}`) } } : {}),
  });
  try {
    const leader = await cluster.waitFor('a leader', () => cluster.leader);
    const order = /** @type {const} */ ({ type: 'measure', warmUp: 200, count: ops, payloadBytes: PAYLOAD_BYTES });
    const { histogram, role } = await cluster.request(leader, order, 'measured');
    if (role !== 'leader') throw new Error('the leader changed while it was measured: run it again');
    return figures(decodeFromCompressedBase64(histogram));
  } finally {
    await cluster.stop();
  }
}

try {
  const fdatasyncUs = measureSync();
  say(`fdatasync of ${SYNC_BYTES} bytes, us: ${JSON.stringify(fdatasyncUs)}`);
  const memoryUs = await measureCommits(false);
  say(`commit in memory, us: ${JSON.stringify(memoryUs)}`);
  const durableUs = await measureCommits(true);
  say(`commit on disk, us: ${JSON.stringify(durableUs)}`);
  const summary = { profile, ops, payloadBytes: PAYLOAD_BYTES, fdatasyncUs, memoryUs, durableUs };
  console.log(values.json ? JSON.stringify(summary) : summary);
} finally {
  deadline.end();
}
