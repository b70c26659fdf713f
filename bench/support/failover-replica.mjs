// One replica of bench/failover.mjs: nothing but a replica and a state machine that counts. When it becomes leader it
// proposes a command at once and tells when that was committed; under --load it goes on proposing.
import { growOld } from '#lib/cli/garbage.js';
import { Replica } from '#lib/index.js';
import { monotonicNs } from '#lib/verbs/index.js';

const { id, members, clusterKey, device, profile, realtimePriority, leaseUs, load, forgetCode } = JSON.parse(
  process.argv[2] ?? '{}',
);
const PAYLOAD = new Uint8Array(64);

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
process.on('message', ({ type, collections }) => {
  if (type === 'grow old') {
    void growOld(collections).then(() => process.send?.({ type: 'old', id }));
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
