// One replica of bench/rereplication.mjs. Its state is an array of blocks, of which each command marks one; founders begin
// with all of them, as if they had been loaded. A snapshot hands the blocks out as they lie in memory: one that is to be
// changed before it was handed out is copied first.
import { readFileSync } from 'node:fs';
import { Replica } from '#lib/index.js';
import { monotonicNs } from '#lib/verbs/index.js';

const { id, place, founders, spare, clusterKey, device, profile, stateBytes, replaceAfterMs, logBytes } = JSON.parse(
  process.argv[2] ?? '{}',
);
const BLOCK_BYTES = 64 * 1024;
const COMMAND_BYTES = 64;

class Blocks {
  /** @type {Uint8Array[]} */
  blocks = [];
  applied = 0;
  /** Blocks before this one are handed out already; beyond all of them while nobody reads. */
  handedOut = Number.POSITIVE_INFINITY;
  /** @type {Uint8Array[]} */
  frozen = [];

  constructor(/** @type {number} */ bytes) {
    for (let left = bytes; left > 0; left -= BLOCK_BYTES) {
      const block = new Uint8Array(Math.min(left, BLOCK_BYTES));
      for (let at = 0; at < block.length; at += 8) block[at] = (this.blocks.length * 31 + at * 7) & 0xff;
      this.blocks.push(block);
    }
  }

  apply() {
    this.applied++;
    if (this.blocks.length === 0) return this.applied;
    const index = (this.applied * 7919) % this.blocks.length;
    let block = /** @type {Uint8Array} */ (this.blocks[index]);
    if (index >= this.handedOut && block === this.frozen[index]) {
      block = block.slice();
      this.blocks[index] = block;
    }
    block[this.applied % block.length] = this.applied & 0xff;
    return this.applied;
  }

  snapshot() {
    return Buffer.concat([this.header(), ...this.blocks]);
  }

  restore() {
    throw new Error('the state comes in chunks');
  }

  header() {
    return new Uint8Array(new Float64Array([this.applied]).buffer);
  }

  snapshotChunks() {
    const header = this.header();
    const frozen = [...this.blocks];
    this.frozen = frozen;
    this.handedOut = 0;
    const give = function* (/** @type {Blocks} */ self) {
      try {
        yield header;
        for (const [index, block] of frozen.entries()) {
          yield block;
          self.handedOut = index + 1;
        }
      } finally {
        self.handedOut = Number.POSITIVE_INFINITY;
        self.frozen = [];
      }
    };
    const lengthBytes = header.length + frozen.reduce((sum, block) => sum + block.length, 0);
    return Object.assign(give(this), { lengthBytes });
  }

  async restoreChunks(/** @type {AsyncIterable<Uint8Array>} */ chunks) {
    const header = new Uint8Array(8);
    let headerFilled = 0;
    /** @type {Uint8Array[]} */
    const blocks = [];
    let filled = BLOCK_BYTES;
    for await (const chunk of chunks) {
      let at = 0;
      if (headerFilled < 8) {
        at = Math.min(8 - headerFilled, chunk.length);
        header.set(chunk.subarray(0, at), headerFilled);
        headerFilled += at;
      }
      while (at < chunk.length) {
        if (filled === BLOCK_BYTES) {
          blocks.push(arena.pop() ?? new Uint8Array(Buffer.allocUnsafeSlow(BLOCK_BYTES).buffer));
          filled = 0;
        }
        const part = Math.min(chunk.length - at, BLOCK_BYTES - filled);
        /** @type {Uint8Array} */ (blocks.at(-1)).set(chunk.subarray(at, at + part), filled);
        at += part;
        filled += part;
      }
    }
    if (blocks.length > 0) blocks.push(/** @type {Uint8Array} */ (blocks.pop()).subarray(0, filled));
    return () => {
      this.blocks = blocks;
      this.applied = /** @type {number} */ (new Float64Array(header.buffer)[0]);
    };
  }
}

/** What a spare will need, taken from the system before: as a store that has its memory from the start. */
const arena = spare
  ? Array.from({ length: Math.ceil(stateBytes / BLOCK_BYTES) }, () => new Uint8Array(BLOCK_BYTES).fill(1))
  : [];
const machine = new Blocks(spare ? 0 : stateBytes);
const where = spare ? { join: founders, address: { host: place.host, port: place.port } } : { members: founders };
const replica = await Replica.open({
  id,
  ...where,
  clusterKey,
  device,
  profile,
  replaceAfterMs,
  logBytes,
  openTimeoutMs: 120_000,
  stateMachine: machine,
});
/** What the main thread used so far; the background thread goes on as ever. See proc_pid_schedstat(5). */
const processorNs = () => Number(readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'utf8').split(' ')[0]);
const tell = (/** @type {object} */ message) => process.send?.({ id, atNs: monotonicNs(), ...message });
replica.on('warning', ({ message }) => tell({ type: 'warning', message }));
replica.on('transfer', (status) => {
  tell({ type: 'transfer', status, processorNs: processorNs() });
});
replica.on('replacement', (news) => tell({ type: 'replacement', news }));
replica.on('leader', (leader) => tell({ type: 'leader', leader }));

const command = new Uint8Array(COMMAND_BYTES);
const FILLER = new Uint8Array(64 * 1024);
/** @type {number[] | null} */
let latencies = null;

/** Commits one command a millisecond and takes the time of each: the load that a service puts on its leader. */
async function load() {
  latencies = [];
  while (latencies !== null) {
    const from = monotonicNs();
    await replica.propose(command);
    latencies?.push(monotonicNs() - from);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

const actions = {
  /** Puts more into the log than the ring holds: nobody can be brought up to date from the log alone. */
  fill: async () => {
    for (let bytes = 0; bytes < 1.5 * logBytes; bytes += FILLER.length) await replica.propose(FILLER);
  },
  addSpare: async (/** @type {any} */ { member }) => await replica.addSpare(member),
  load: async () => void load().catch((/** @type {Error} */ { message }) => tell({ type: 'warning', message })),
  latencies: async () => {
    const taken = latencies ?? [];
    latencies = [];
    return taken;
  },
  unload: async () => {
    latencies = null;
  },
  status: async () => {
    const { role, peers, members, voters, commitLsn, appliedLsn } = replica.status();
    const of = (/** @type {number} */ other) => peers.find((peer) => peer.id === other);
    const active = voters.filter((voter) => voter === id || (of(voter)?.phase === 'active' && of(voter)?.trusted));
    return { role, voters, active, members, isSettled: commitLsn === appliedLsn, applied: machine.applied };
  },
};
process.on('message', async (/** @type {any} */ { action, number, ...rest }) => {
  try {
    const result = await actions[/** @type {keyof typeof actions} */ (action)](rest);
    tell({ type: 'answer', number, result });
  } catch (error) {
    tell({ type: 'answer', number, error: String(error) });
  }
});
process.on('disconnect', () => process.exit(0));
tell({ type: 'open' });
