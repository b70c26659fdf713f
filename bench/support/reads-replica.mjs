// One replica of bench/reads.mjs. The leader measures its reads; then a follower measures its own while the leader idles.

import { percentile } from '#lib/cli/demo/figures.js';
import { Replica } from '#lib/index.js';
import { monotonicNs } from '#lib/verbs/index.js';

const LEASED_BATCH = 100;
const WARM_UP_READS = 2_000;
const SETTLE_MS = 1_000;

/** @param {number} ms */
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

let value = 0;
const stateMachine = {
  /** @param {Uint8Array} command */
  apply: (command) => {
    value = command.length;
    return value;
  },
  snapshot: () => new Uint8Array([value]),
  /** @param {Uint8Array} bytes */
  restore: (bytes) => {
    value = bytes[0] ?? 0;
  },
};
const look = () => value;

/** @param {number[]} us */
function figures(us) {
  us.sort((a, b) => a - b);
  return { p50: percentile(us, 50) ?? 0, p99: percentile(us, 99) ?? 0, max: us[us.length - 1] ?? 0 };
}

/**
 * @param {number} count
 * @param {() => Promise<unknown>} read
 */
async function timeEach(count, read) {
  for (let index = 0; index < WARM_UP_READS; index++) await read();
  const us = [];
  for (let index = 0; index < count; index++) {
    const begin_ns = monotonicNs();
    await read();
    us.push((monotonicNs() - begin_ns) / 1e3);
  }
  return figures(us);
}

/**
 * @param {Replica<number>} replica
 * @param {number} count
 */
async function timeLeased(replica, count) {
  const us = [];
  let withoutLease = 0;
  for (let done = -WARM_UP_READS; done < count; done += LEASED_BATCH) {
    let missed = 0;
    const begin_ns = monotonicNs();
    for (let index = 0; index < LEASED_BATCH; index++) if (replica.leasedRead(look) === undefined) missed++;
    const spent_us = (monotonicNs() - begin_ns) / 1e3;
    if (done >= 0) {
      us.push(spent_us / LEASED_BATCH);
      withoutLease += missed;
    }
    await new Promise((resolve) => setImmediate(resolve));
  }
  return { leasedUs: figures(us), withoutLease };
}

process.on('message', async (/** @type {Record<string, any>} */ order) => {
  if (order['type'] === 'end') process.exit();
  const { id, members, clusterKey, device, profile, reads } = /** @type {any} */ (order);
  const replica = await Replica.open({
    id,
    members,
    clusterKey,
    device,
    stateMachine,
    ...(profile === undefined ? {} : { profile }),
  });
  await sleep(SETTLE_MS);
  const { role, profile: profileName } = replica.status();
  // A replica whose role or epoch changed meanwhile has measured something else.
  const { epoch } = replica.status();
  /** @param {object} figures */
  const report = (figures) => {
    const isSame = replica.status().role === role && replica.status().epoch === epoch;
    process.send?.({ type: 'result', role: isSame ? role : 'changed', ...figures });
  };
  if (role === 'leader') {
    await replica.propose(new Uint8Array(8));
    const { leasedUs, withoutLease } = await timeLeased(replica, reads);
    const readIndexUs = await timeEach(reads, () => replica.readBarrier().then(look));
    report({ profile: profileName, leasedUs, withoutLease, readIndexUs });
    return;
  }
  // One of the two followers measures, while the leader has nothing else to do.
  const others = members.filter((/** @type {{ id: number }} */ member) => member.id !== replica.status().leader);
  if (id !== Math.min(...others.map((/** @type {{ id: number }} */ member) => member.id))) {
    process.send?.({ type: 'result', role: 'idle' });
    return;
  }
  await sleep(SETTLE_MS * 3);
  const followerUs = await timeEach(Math.min(reads, 20_000), () => replica.read(look));
  report({ profile: profileName, followerUs });
});
