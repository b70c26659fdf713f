// Loaded into every process of a nemesis run (NODE_OPTIONS=--import): before a replica of it opens, its disk loses the end of
// what it had synced, or all of its log. No replica can know; what clients were answered before must give it away. Or it never
// answers again.
import { existsSync, readdirSync, rmSync, statSync, truncateSync } from 'node:fs';
import { join } from 'node:path';

const LOST_BYTES_MAX = 16 * 1024;
/** More than what clients have not been answered yet. */
const LOST_BYTES_MIN = 4 * 1024;
const LOST_PART = 0.25;
/** A log that is shorter, since the machine is slow, loses nothing: to have lost most of it is found out without the clients. */
const LOG_BYTES_MIN = 3 * LOST_BYTES_MIN;

/** Of the newest segments, until so many bytes are gone. */
function cutEnd(folder) {
  const bytes = readdirSync(folder).reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);
  const lost = Math.min(Math.max(Math.floor(bytes * LOST_PART), LOST_BYTES_MIN), LOST_BYTES_MAX);
  let left = bytes < LOG_BYTES_MIN ? 0 : lost;
  for (const name of readdirSync(folder).sort().reverse()) {
    if (left <= 0) return;
    const path = join(folder, name);
    const { size } = statSync(path);
    if (size > left) truncateSync(path, size - left);
    else rmSync(path);
    left -= size;
  }
}

function lie({ durable }) {
  if (process.env['DISKS_LOSE'] === 'patience') {
    const forever = new Int32Array(new SharedArrayBuffer(4));
    if (existsSync(durable.directory)) Atomics.wait(forever, 0, 0);
  } else if (process.env['DISKS_LOSE'] === 'all') rmSync(durable.directory, { recursive: true, force: true });
  else {
    try {
      cutEnd(join(durable.directory, 'log'));
    } catch (error) {
      if (error.code !== 'ENOENT') throw error; // its first start
    }
  }
}

if (process.argv[1]?.endsWith('nemesis-replica.js')) {
  // Before the replica's own listener, and not earlier: messages are taken from the channel as soon as anybody listens.
  process.on('newListener', function first(event) {
    if (event !== 'message') return;
    process.off('newListener', first);
    process.on('message', (message) => {
      if (message.type === 'open') lie(message);
    });
  });
}
