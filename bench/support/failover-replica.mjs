// One replica of bench/failover.mjs: nothing but a replica and a state machine that counts. When it becomes leader it
// proposes a command at once and tells when that was committed; under --load it goes on proposing.
import { constants, PerformanceObserver } from 'node:perf_hooks';
import { Replica } from '#lib/index.js';
import { monotonicNs } from '#lib/verbs/index.js';

const { id, members, clusterKey, device, profile, realtimePriority, leaseUs, load, forgetCode } = JSON.parse(
  process.argv[2] ?? '{}',
);
const PAYLOAD = new Uint8Array(64);
/** So large that it is not collected with the young objects. */
const GARBAGE_BYTES = 8_000_000;

let applied = 0;
const replica = await Replica.open({
  id,
  members,
  clusterKey,
  device,
  profile,
  openTimeoutMs: 60_000,
  keepCompiledCode: !forgetCode,
  ...(leaseUs === null ? {} : { lease: leaseUs === 0 ? 'off' : { lengthUs: leaseUs } }),
  ...(realtimePriority === null ? {} : { backgroundThread: { realtimePriority } }),
  stateMachine: {
    apply: () => ++applied,
    snapshot: () => new Uint8Array(0),
    restore: () => {},
  },
});
const warnings = [];
replica.on('warning', ({ code, message }) => warnings.push(`${code}: ${message}`));

async function lead() {
  try {
    await replica.propose(PAYLOAD);
    const firstCommitAtNs = monotonicNs();
    if (replica.status().role !== 'leader') return; // it was forwarded
    process.send?.({ type: 'leads', id, firstCommitAtNs, stages: replica.status().lastTakeover, warnings });
    while (load && replica.status().role === 'leader') await replica.propose(PAYLOAD);
  } catch {
    // Deposed: whoever leads now says so itself.
  }
}

/** @param {number | undefined} leader */
const heed = (leader) => {
  if (leader === id) void lead();
};
replica.on('leader', heed);

/**
 * Makes garbage until the whole heap was collected so often. By that V8 knows code that has not run for long, and forgets it.
 * @param {number} collections
 */
async function growOld(collections) {
  let left = collections;
  const observer = new PerformanceObserver((list) => {
    for (const { detail } of list.getEntries()) {
      if (/** @type {any} */ (detail).kind === constants.NODE_PERFORMANCE_GC_MAJOR) left--;
    }
  });
  observer.observe({ entryTypes: ['gc'] });
  while (left > 0) {
    new ArrayBuffer(GARBAGE_BYTES);
    await new Promise((resolve) => setImmediate(resolve));
  }
  observer.disconnect();
  process.send?.({ type: 'old', id });
}

process.on('message', ({ type, collections }) => {
  if (type === 'grow old') {
    void growOld(collections);
    return;
  }
  const { role, peers, profile: name, device: deviceName, permissionStrategy } = replica.status();
  const isWhole = role === 'leader' && peers.every(({ phase, voter }) => voter && phase === 'active');
  process.send?.({ type: 'status', id, isWhole, profile: name, device: deviceName, permissionStrategy });
});
process.on('disconnect', () => process.exit(0));
// A service has proposed something, and heard of a leader, before it comes to lead.
const { leader } = replica.status();
heed(leader);
if (leader !== id) void lead();
process.send?.({ type: 'open', id });
