// One replica of bench/rereplication.mjs. Its state is an array of blocks, of which each command marks one; founders begin
// with all of them, as if they had been loaded. A snapshot hands the blocks out as they lie in memory: one that is to be
// changed before it was taken is copied first. The memory is the replica's, which READs reach, or else the process's own:
// then the state is copied into and out of the memory of the transfer.
import { readFileSync } from 'node:fs';
import { Replica } from '#lib/index.js';
import { monotonicNs } from '#lib/verbs/index.js';

const { id, place, founders, spare, clusterKey, device, profile, stateBytes, replaceAfterMs, logBytes, inPlace } =
  JSON.parse(process.argv[2] ?? '{}');
const BLOCK_BYTES = 64 * 1024;
const COMMAND_BYTES = 64;
const HEADER_BYTES = 8;
/** What the state machine takes at a time from the memory that READs reach. */
const AREA_BYTES = 64 * 1024 * 1024;
/** For blocks that are changed while a snapshot is read: as many as there are commands in a second. */
const SPARE_BLOCKS = 1024;

class Blocks {
  /** @type {Uint8Array[]} */
  blocks = [];
  applied = 0;
  /** What a snapshot that is read holds, and how many bytes from its beginning are not needed any more. */
  /** @type {Uint8Array[] | null} */
  frozen = null;
  takenBytes = 0;
  /** Places for blocks that change while a snapshot is read, and for a state that comes from another replica. */
  /** @type {Uint8Array[]} */
  free = [];

  constructor(/** @type {number} */ bytes) {
    this.bytes = bytes;
  }

  /** All memory that there will be, in place from the start, as that of a store of its size. */
  attachMemory(/** @type {import('#lib/index.js').StateMemory} */ memory) {
    const needed = stateBytes + SPARE_BLOCKS * BLOCK_BYTES;
    for (let left = needed; left > 0; left -= AREA_BYTES) {
      const area = inPlace
        ? memory.allocate(Math.min(left, AREA_BYTES))
        : new Uint8Array(Math.min(left, AREA_BYTES)).fill(1);
      for (let at = 0; at < area.length; at += BLOCK_BYTES) this.free.push(area.subarray(at, at + BLOCK_BYTES));
    }
    this.free.reverse();
    for (let left = this.bytes; left > 0; left -= BLOCK_BYTES) {
      const block = this.take();
      for (let at = 0; at < block.length; at += 8) block[at] = (this.blocks.length * 31 + at * 7) & 0xff;
      this.blocks.push(block);
    }
  }

  take() {
    return this.free.pop() ?? new Uint8Array(BLOCK_BYTES);
  }

  apply() {
    this.applied++;
    if (this.blocks.length === 0) return this.applied;
    const index = (this.applied * 7919) % this.blocks.length;
    let block = /** @type {Uint8Array} */ (this.blocks[index]);
    if (
      this.frozen !== null &&
      block === this.frozen[index] &&
      HEADER_BYTES + (index + 1) * BLOCK_BYTES > this.takenBytes
    ) {
      const copy = this.take();
      copy.set(block);
      this.blocks[index] = copy;
      block = copy;
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
    this.takenBytes = 0;
    const lengthBytes = HEADER_BYTES + frozen.length * BLOCK_BYTES;
    const taken = (/** @type {number} */ bytes) => {
      this.takenBytes = bytes;
      if (bytes >= lengthBytes) end();
    };
    const end = () => {
      if (this.frozen !== frozen) return;
      this.frozen = null;
      for (const [index, block] of frozen.entries()) if (this.blocks[index] !== block) this.free.push(block);
    };
    const give = function* () {
      let isThrough = false;
      try {
        let bytes = HEADER_BYTES;
        yield header;
        for (const block of frozen) {
          if (!inPlace) taken(bytes);
          yield block;
          bytes += block.length;
        }
        isThrough = true;
      } finally {
        // Where blocks are READ in place they are needed until they have been taken.
        if (!inPlace || !isThrough) end();
      }
    };
    return Object.assign(give(), inPlace ? { lengthBytes, taken } : { lengthBytes });
  }

  async restoreChunks(/** @type {AsyncIterable<Uint8Array>} */ chunks) {
    const restoring = this.restoring();
    let place = restoring.next();
    let filled = 0;
    let bytes = 0;
    for await (const chunk of chunks) {
      for (let at = 0; at < chunk.length; ) {
        if (filled === place.length) {
          place = restoring.next();
          filled = 0;
        }
        const part = Math.min(chunk.length - at, place.length - filled);
        place.set(chunk.subarray(at, at + part), filled);
        at += part;
        filled += part;
      }
      bytes += chunk.length;
    }
    return restoring.finish(bytes);
  }

  restoring() {
    const header = new Uint8Array(HEADER_BYTES);
    /** @type {Uint8Array[]} */
    const blocks = [];
    let isBegun = false;
    return {
      next: () => {
        if (!isBegun) {
          isBegun = true;
          return header;
        }
        const block = this.take();
        blocks.push(block);
        return block;
      },
      finish: (/** @type {number} */ bytes) => {
        if (bytes !== HEADER_BYTES + blocks.length * BLOCK_BYTES) throw new Error('the state ends within a block');
        return () => {
          this.free.push(...this.blocks);
          this.blocks = blocks;
          this.applied = /** @type {number} */ (new Float64Array(header.buffer)[0]);
        };
      },
      abort: () => void this.free.push(...blocks),
    };
  }
}

const machine = new Blocks(spare ? 0 : stateBytes);
if (inPlace) Object.assign(machine, { restoreInPlace: () => machine.restoring() });
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
