// A state machine whose state lies in memory that READs reach: a replica that lost its memory gets it without a copy, from
// where it lies at the donor to where it shall lie. Three replicas in one process; run it with
//   node examples/counters-in-place.mjs [PORT PORT PORT]
import { Replica } from 'quorate';

const COUNTERS = 2 ** 20;
const PAGE_BYTES = 256 * 1024;
const PAGES = (COUNTERS * 8) / PAGE_BYTES;

/** 2^20 counters in pages of 2^15. A page that a snapshot still needs is not changed: its counters move to a free one. */
class Counters {
  free = [];
  pages = [];
  frozen = null; // the pages of a snapshot that is being read,
  takenBytes = 0; // and how many of its bytes are not needed any more

  attachMemory(memory) {
    const area = memory.allocate(2 * PAGES * PAGE_BYTES); // the state, and as much for one that arrives or is frozen
    for (let at = area.length - PAGE_BYTES; at >= 0; at -= PAGE_BYTES) {
      this.free.push(area.subarray(at, at + PAGE_BYTES));
    }
    this.pages = Array.from({ length: PAGES }, () => this.free.pop());
  }

  apply(command) {
    const { buffer, byteOffset } = command;
    const [index, amount] = new Uint32Array(buffer.slice(byteOffset, byteOffset + 8));
    const number = Math.floor((index * 8) / PAGE_BYTES);
    let page = this.pages[number];
    if (this.frozen?.[number] === page && (number + 1) * PAGE_BYTES > this.takenBytes) {
      const copy = this.free.pop();
      copy.set(page);
      this.pages[number] = page = copy;
    }
    const counter = new Float64Array(page.buffer, page.byteOffset + ((index * 8) % PAGE_BYTES), 1);
    counter[0] += amount;
    return counter[0];
  }

  snapshotChunks() {
    // Two replicas may get the state at a time: the other one gets a copy of it.
    if (this.frozen !== null) return Object.assign([this.snapshot()], { lengthBytes: PAGES * PAGE_BYTES });
    const frozen = [...this.pages];
    this.frozen = frozen;
    this.takenBytes = 0;
    const taken = (bytes) => {
      this.takenBytes = bytes;
      if (bytes < PAGES * PAGE_BYTES || this.frozen !== frozen) return;
      this.frozen = null;
      this.free.push(...frozen.filter((page, number) => page !== this.pages[number]));
    };
    const give = function* () {
      let given = 0;
      try {
        for (; given < PAGES; given++) yield frozen[given];
      } finally {
        if (given < PAGES) taken(PAGES * PAGE_BYTES); // nobody wants the rest
      }
    };
    return Object.assign(give(), { lengthBytes: PAGES * PAGE_BYTES, taken });
  }

  restoreInPlace() {
    const pages = [];
    return {
      next: () => {
        if (pages.length === PAGES) throw new Error('a state of these counters has no more pages');
        pages.push(this.free.pop());
        return pages.at(-1);
      },
      finish: () => () => {
        this.free.push(...this.pages);
        this.pages = pages;
      },
      abort: () => this.free.push(...pages),
    };
  }

  // Where there is no memory for READs the state is sent as a whole.
  snapshot() {
    return Buffer.concat(this.pages);
  }

  restore(bytes) {
    for (const [number, page] of this.pages.entries()) page.set(bytes.subarray(number * PAGE_BYTES));
  }
}

const add = (index, amount) => new Uint8Array(Uint32Array.of(index, amount).buffer);
const ports = process.argv.length === 5 ? process.argv.slice(2).map(Number) : [7710, 7711, 7712];
const members = ports.map((port, id) => ({ id, host: '127.0.0.1', port }));
const common = { members, clusterKey: 'at least sixteen bytes, and secret', logBytes: 128 * 1024 };
const open = (id, stateMachine) => Replica.open({ ...common, id, stateMachine });
const replicas = await Promise.all(members.map(({ id }) => open(id, new Counters())));

const leader = replicas[replicas[0].status().leader ?? 0];
const lost = replicas.findLast(({ id }) => id !== leader.id);
await lost.close(); // and its memory is gone
for (let index = 0; index < 3000; index++) await leader.propose(add(index * 349, index)); // more than the log holds
const counters = new Counters();
const donor = replicas.find(({ id }) => id !== leader.id && id !== lost.id);
const transfer = new Promise((resolve) => {
  donor.on('transfer', (status) => status.state === 'done' && resolve(status));
});
const back = await open(lost.id, counters);
const { bytesDone, bytesPerSecond } = await transfer;
console.log(`replica ${back.id} READ ${bytesDone} bytes where they lie, ${Math.round(bytesPerSecond / 1e6)} MB/s`);
await back.read(() => {
  const index = 2999 * 349;
  const [value] = new Float64Array(
    counters.pages[Math.floor((index * 8) / PAGE_BYTES)].slice((index * 8) % PAGE_BYTES).buffer,
    0,
    1,
  );
  console.log(`counter ${index} is ${value} at replica ${back.id}`);
});
await Promise.all([back, ...replicas.filter((replica) => replica !== lost)].map((replica) => replica.close()));
