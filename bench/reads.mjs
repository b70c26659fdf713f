// npm run bench:reads: what a linearizable read costs: by lease at the leader, by read index there, and at a follower. Three
// replicas of one host, each in a process of its own; prints percentiles. Nothing here passes or fails by time.
//
//   node bench/reads.mjs [--device shm|NAME] [--profile fast|balanced|relaxed] [--reads N] [--json]
//
// A read by lease is shorter than a look at the clock is exact, so those are timed in batches, and the percentiles are of
// the batches' means. The others are made one after another, each when the one before has been answered. How many of the
// reads found no lease is printed, too.
import { fork } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { release } from 'node:os';
import { fileURLToPath } from 'node:url';
import { freePorts } from '#lib/cli/demo/ports.js';
import { readOptions, wholeNumber } from './support/options.mjs';

const REPLICAS = 3;
const PROGRAM = fileURLToPath(new URL('support/reads-replica.mjs', import.meta.url));
const MS_MAX = 10 * 60_000;

const options = readOptions(import.meta.url, {
  device: { type: 'string', default: 'shm' },
  profile: { type: 'string' },
  reads: { type: 'string', default: '20000' },
  json: { type: 'boolean', default: false },
});
const reads = wholeNumber('reads', options.reads, 100, 10_000_000);

/** @param {string} line */
const say = (line) => void (options.json ? process.stderr : process.stdout).write(`${line}\n`);

const ports = await freePorts(REPLICAS, Math.random);
const members = ports.map((port, id) => ({ id, host: '127.0.0.1', port }));
const clusterKey = randomBytes(32).toString('hex');
const children = members.map(() => fork(PROGRAM, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] }));
const deadline = setTimeout(() => {
  process.stderr.write(`the bench did not end within ${MS_MAX} ms\n`);
  for (const child of children) child.kill('SIGKILL');
  process.exitCode = 1;
}, MS_MAX);

/** @type {Promise<Record<string, any>>[]} */
const results = children.map(
  (child, id) =>
    new Promise((resolve, reject) => {
      child.on('message', (/** @type {Record<string, any>} */ message) => {
        if (message['type'] === 'result') resolve(message);
      });
      child.once('exit', (code) => reject(new Error(`replica ${id} ended with exit code ${code}`)));
      child.send({ id, members, clusterKey, device: options.device, profile: options.profile, reads });
    }),
);
try {
  const all = await Promise.all(results);
  const leader = all.find(({ role }) => role === 'leader');
  const follower = all.find(({ role }) => role === 'follower');
  if (leader === undefined || follower === undefined)
    throw new Error('the leader changed during the measurement: run it again');
  const figures = {
    device: options.device,
    profile: leader['profile'],
    reads,
    kernel: release(),
    node: process.version,
    leasedReadUs: leader['leasedUs'],
    withoutLease: leader['withoutLease'],
    readIndexUs: leader['readIndexUs'],
    followerReadUs: follower['followerUs'],
  };
  /** @param {Record<string, number>} us */
  const text = (us) =>
    Object.entries(us)
      .map(([name, value]) => `${name} ${value.toFixed(2)} us`)
      .join(', ');
  say(`device ${options.device}, profile ${figures.profile}, ${reads} reads of each kind, one at a time`);
  say(`by lease, at the leader:      ${text(figures.leasedReadUs)} (${figures.withoutLease} found no lease)`);
  say(`by read index, at the leader: ${text(figures.readIndexUs)}`);
  say(`at a follower:                ${text(figures.followerReadUs)}`);
  if (options.json) process.stdout.write(`${JSON.stringify(figures)}\n`);
} finally {
  clearTimeout(deadline);
  for (const child of children) {
    child.removeAllListeners('exit');
    if (child.connected) child.send({ type: 'end' });
  }
}
