// State transfers as they happen: a replica that lost its memory, or is new, pulls the state of a follower with one-sided
// READs while commands go on. On shm, all members in this process.
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { ReplicationPlane } from '#lib/consensus/replication-plane.js';
import { MessageFabric } from '#lib/fabric/message-fabric.js';
import { PART_NUMBERS, TransferSink, TransferSource } from '#lib/fabric/transfer-link.js';
import {
  type MemberAddress,
  QuorateError,
  Replica,
  type ReplicaOptions,
  type RestoreInPlace,
  type SnapshotStream,
  type StateMachine,
  type StateMemory,
  type TransferStatus,
} from '#lib/index.js';
import { ControlConnection } from '#lib/replica/control/connection.js';
import { Mailbox } from '#lib/replica/mailbox/mailbox.js';
import { Donor } from '#lib/replica/transfer/donor.js';
import { CHUNK_BYTES, CHUNKS_AHEAD, SLOTS, STALL_TIMEOUT_MS, TAKEN_PARTS } from '#lib/replica/transfer/limits.js';
import { Receiver } from '#lib/replica/transfer/receiver.js';
import { Context } from '#lib/verbs/index.js';
import { members, optionsFor, waitFor } from './fixture.js';

const LOG_BYTES = 128 * 1024;
const BLOCK_BYTES = 64 * 1024;
/** What a transfer holds at either end. */
const STAGING_BYTES = CHUNK_BYTES * SLOTS;
const CHUNK_BLOCKS = CHUNK_BYTES / BLOCK_BYTES;

/** Many blocks, of which a command overwrites one: copied on write while a snapshot is read. Pieces can be held up. */
class Blocks implements StateMachine<number> {
  blocks: Uint8Array[] = [];
  applied = 0;
  /** Pieces that were asked for, and those that were taken in, in bytes. */
  pulledBytes = 0;
  takenBytes = 0;
  streams = 0;
  restores = 0;
  abandoned = 0;
  /** Called before each piece is given or taken; a promise holds it up. */
  beforeGiving: (index: number) => Promise<void> | undefined = () => undefined;
  beforeTaking: (index: number) => Promise<void> | undefined = () => undefined;

  static of(count: number): Blocks {
    const machine = new Blocks();
    machine.blocks = Array.from({ length: count }, (_, index) => new Uint8Array(BLOCK_BYTES).fill(index));
    return machine;
  }

  apply(command: Uint8Array): number {
    const index = command[0] as number;
    const block = new Uint8Array(BLOCK_BYTES).fill(command[1] as number);
    if (index < this.blocks.length) this.blocks[index] = block;
    return ++this.applied;
  }

  snapshot(): Uint8Array {
    return Buffer.concat([this.header(), ...this.blocks]);
  }

  restore(): void {
    throw new Error('not by this way');
  }

  private header(): Uint8Array {
    return new Uint8Array(new Float64Array([this.applied]).buffer);
  }

  snapshotChunks(): SnapshotStream {
    this.streams++;
    const pieces = [this.header(), ...this.blocks];
    return Object.assign(this.give(pieces), { lengthBytes: 8 + this.blocks.length * BLOCK_BYTES });
  }

  private async *give(pieces: Uint8Array[]): AsyncGenerator<Uint8Array> {
    let isDone = false;
    try {
      for (const [index, piece] of pieces.entries()) {
        await this.beforeGiving(index);
        this.pulledBytes += piece.length;
        yield piece;
      }
      isDone = true;
    } finally {
      if (!isDone) this.abandoned++;
    }
  }

  async restoreChunks(chunks: AsyncIterable<Uint8Array>): Promise<() => void> {
    this.restores++;
    const kept: Uint8Array[] = [];
    let index = 0;
    for await (const chunk of chunks) {
      await this.beforeTaking(index++);
      this.takenBytes += chunk.length;
      kept.push(chunk.slice());
    }
    const whole = Buffer.concat(kept);
    return () => {
      this.applied = whole.readDoubleLE(0);
      this.blocks = [];
      for (let at = 8; at < whole.length; at += BLOCK_BYTES) {
        this.blocks.push(Uint8Array.from(whole.subarray(at, at + BLOCK_BYTES)));
      }
    };
  }
}

/** As Blocks, but the blocks lie in memory that READs reach, and a state that is received is put into it by READs. */
class BlocksInPlace extends Blocks {
  areas: Uint8Array[] = [];
  readonly free: Uint8Array[] = [];
  copiedOnWrite = 0;
  /** The stream that is read, and how many of its bytes were taken. */
  private frozen: Uint8Array[] | null = null;
  private takenOfStream = 0;
  aborted: Uint8Array[][] = [];

  constructor(
    readonly capacity: number,
    private readonly count: number,
  ) {
    super();
  }

  attachMemory(memory: StateMemory): void {
    const perArea = 16;
    for (let left = this.capacity; left > 0; left -= perArea) {
      const area = memory.allocate(Math.min(left, perArea) * BLOCK_BYTES);
      this.areas.push(area);
      for (let at = 0; at < area.length; at += BLOCK_BYTES) this.free.unshift(area.subarray(at, at + BLOCK_BYTES));
    }
    this.blocks = Array.from({ length: this.count }, (_, index) => this.take().fill(index));
  }

  private take(): Uint8Array {
    const block = this.free.pop();
    if (block === undefined) throw new Error('the machine has no memory left');
    return block;
  }

  override apply(command: Uint8Array): number {
    const index = command[0] as number;
    let block = this.blocks[index];
    if (block !== undefined) {
      if (block === this.frozen?.[index] && 8 + (index + 1) * BLOCK_BYTES > this.takenOfStream) {
        this.copiedOnWrite++;
        block = this.take();
        this.blocks[index] = block;
      }
      block.fill(command[1] as number);
    }
    return ++this.applied;
  }

  override snapshotChunks(): SnapshotStream {
    const frozen = [...this.blocks];
    this.frozen = frozen;
    this.takenOfStream = 0;
    const lengthBytes = 8 + frozen.length * BLOCK_BYTES;
    const thaw = (): void => {
      if (this.frozen !== frozen) return;
      this.frozen = null;
      for (const [index, block] of frozen.entries()) if (block !== this.blocks[index]) this.free.push(block);
    };
    const taken = (bytes: number): void => {
      this.takenOfStream = bytes;
      this.takenBytes = bytes;
      if (bytes === lengthBytes) thaw();
    };
    const stream = super.snapshotChunks() as AsyncGenerator<Uint8Array>;
    const pieces = (async function* () {
      let isThrough = false;
      try {
        yield* stream;
        isThrough = true;
      } finally {
        if (!isThrough) thaw();
      }
    })();
    return Object.assign(pieces, { lengthBytes, taken });
  }

  restoreInPlace(lengthBytes: number | undefined): RestoreInPlace {
    this.restores++;
    const header = new Uint8Array(8);
    const blocks: Uint8Array[] = [];
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
      finish: (bytes) => {
        expect(bytes).toBe(8 + blocks.length * BLOCK_BYTES);
        expect(lengthBytes).toBe(bytes);
        return () => {
          this.free.push(...this.blocks);
          this.blocks = blocks;
          this.applied = Buffer.from(header).readDoubleLE(0);
        };
      },
      abort: () => {
        this.aborted.push(blocks);
        // Nobody writes here any more.
        for (const block of blocks) block.fill(0xa5);
      },
    };
  }
}

let replicas: Map<number, Replica<number>>;
let machines: Map<number, Blocks>;
let transfers: { at: number; status: TransferStatus }[];
let warnings: string[];
let places: MemberAddress[];

beforeEach(() => {
  replicas = new Map();
  machines = new Map();
  transfers = [];
  warnings = [];
});

afterEach(async () => {
  vi.restoreAllMocks();
  await Promise.all([...replicas.values()].map((replica) => replica.close()));
});

async function open(id: number, machine: Blocks, more: Partial<ReplicaOptions<number>> = {}): Promise<Replica<number>> {
  machines.set(id, machine);
  const replica = await Replica.open<number>(
    optionsFor(id, places, { profile: 'relaxed', logBytes: LOG_BYTES, stateMachine: machine, ...more }),
  );
  replicas.set(id, replica);
  replica.on('transfer', (status) => transfers.push({ at: id, status }));
  replica.on('warning', ({ message }) => warnings.push(message));
  return replica;
}

const leading = () => [...replicas.values()].find((replica) => replica.status().role === 'leader');

/** So many replicas with so many blocks each; resolves with the leader and the ids of its followers. */
async function found(
  count: number,
  blocks: number,
  make: (blocks: number, id: number) => Blocks = Blocks.of,
): Promise<{ leader: Replica<number>; followers: number[] }> {
  places = await members(count);
  await Promise.all(places.map(({ id }) => open(id, make(blocks, id))));
  const leader = await whole();
  return { leader, followers: places.map(({ id }) => id).filter((id) => id !== leader.id) };
}

function whole(): Promise<Replica<number>> {
  return waitFor(() => {
    const leader = leading();
    const peers = leader?.status().peers ?? [];
    return peers.every(({ voter, phase, trusted }) => voter && phase === 'active' && trusted) && leader;
  }, 'a leader with all others active');
}

const write = (replica: Replica<number>, block: number, value: number) =>
  replica.propose(Uint8Array.of(block, value, ...new Uint8Array(100)));

/** Loses the replica with its memory; the log goes on by more than the ring holds. */
async function lose(id: number, leader: Replica<number>): Promise<void> {
  await replicas.get(id)?.close();
  replicas.delete(id);
  for (let index = 0; index < 1.5 * (LOG_BYTES / 192); index++) await write(leader, index % 7, index);
}

function gate(): { readonly opened: Promise<void>; open: () => void } {
  let open = (): void => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open };
}

async function expectEqual(id: number): Promise<void> {
  await expectSame(machines.get(id) as Blocks, await whole());
}

/** The state of this machine comes to be that of the leader. */
async function expectSame(machine: Blocks, leader: Replica<number>): Promise<void> {
  const expected = machines.get(leader.id) as Blocks;
  await waitFor(() => machine.applied === expected.applied, 'all to be applied');
  expect(Buffer.compare(machine.snapshot(), expected.snapshot())).toBe(0);
}

/** The first of these that gives its state stops at block 150 for ever. */
function firstDonor(ids: readonly number[]): { readonly id: number; die: () => Promise<void> } {
  const never = gate();
  let first = -1;
  for (const id of ids) {
    (machines.get(id) as Blocks).beforeGiving = (index) => {
      if (first < 0) first = id;
      return id === first && index === 150 ? never.opened : undefined;
    };
  }
  return {
    get id() {
      return first;
    },
    die: async () => {
      await replicas.get(first)?.close();
      replicas.delete(first);
      never.open();
    },
  };
}

/** Another state, which these replicas have by the end. */
async function changeState(leader: Replica<number>, ids: readonly number[]): Promise<void> {
  for (let index = 0; index < 10; index++) await write(leader, 3, index + 100);
  // Followers apply a moment later; the next donor must have.
  await waitFor(
    () => ids.every((id) => replicas.get(id)?.status().appliedLsn === leader.status().appliedLsn),
    'the other donors to have another state',
  );
}

const received = (id: number) => transfers.filter(({ at, status }) => at === id && status.role === 'receiver');

it('brings a replica that lost its memory up to date from a follower, and tells how far it is', async () => {
  const { leader, followers } = await found(3, 200);
  const [lost, donor] = followers as [number, number];
  await lose(lost, leader);
  await open(lost, Blocks.of(0));
  await expectEqual(lost);
  const told = received(lost).map(({ status }) => status);
  const states = told.map(({ state }) => state).filter((state, index, all) => state !== all[index - 1]);
  // It may be past opening before open() has resolved and anybody can listen.
  if (states[0] === 'opening') states.shift();
  expect(states).toEqual(['reading', 'installing', 'done']);
  const last = told.at(-1) as TransferStatus;
  expect(last).toMatchObject({ receiver: lost, donor, donorsLost: 0 });
  expect(last.bytesDone).toBe(last.bytesTotal);
  expect(last.bytesDone).toBeGreaterThan(200 * BLOCK_BYTES);
  expect(last.bytesPerSecond).toBeGreaterThan(0);
  expect(last.secondsLeft).toBe(0);
  for (const [index, { bytesDone }] of told.entries()) {
    expect(bytesDone).toBeGreaterThanOrEqual(told[index - 1]?.bytesDone ?? 0);
  }
  // The leader did not have to do it, and donor and leader say the same.
  expect(machines.get(leader.id)?.streams).toBe(0);
  const roles = new Map(transfers.map(({ at, status }) => [status.role, at]));
  expect(roles).toEqual(
    new Map([
      ['leader', leader.id],
      ['receiver', lost],
      ['donor', donor],
    ]),
  );
  expect(replicas.get(lost)?.status().transfers).toEqual([]);
  expect(warnings).toEqual([]);
});

it('needs the control channel to order and to link; what goes on is said by messages in registered memory', async () => {
  const { leader, followers } = await found(3, 600);
  const [lost, donor] = followers as [number, number];
  await lose(lost, leader);
  const install = vi.spyOn(MessageFabric.prototype, 'install');
  /** How many replicas have a link for messages to this one, of those that were made from now on. */
  const linksTo = (id: number) => {
    const { calls, results, contexts } = install.mock;
    return new Set(contexts.filter((_, index) => calls[index]?.[0] === id && results[index]?.value === true)).size;
  };
  const held = gate();
  (machines.get(donor) as Blocks).beforeGiving = () => held.opened;
  const said = vi.spyOn(ControlConnection.prototype, 'send');
  const told = vi.spyOn(Mailbox.prototype, 'tell');
  const opening = open(lost, Blocks.of(0));
  await waitFor(() => transfers.some(({ at, status }) => at === donor && status.state === 'reading'), 'a donor');
  await waitFor(() => linksTo(lost) === 2 && linksTo(donor) === 1, 'links for messages with the receiver');
  held.open();
  await opening;
  await expectEqual(lost);
  const types = (calls: readonly (readonly unknown[])[], at: number) =>
    [...new Set(calls.map((call) => call[at] as string))].filter((type) => type.startsWith('transfer')).sort();
  for (const type of ['transferReady', 'transferTaken', 'transferClose']) {
    expect(types(told.mock.calls, 1)).toContain(type);
    expect(types(said.mock.calls, 0)).not.toContain(type);
  }
});

it('takes chunks that the donor announces in places which it was told are free, while the last of those is still being put away', async () => {
  // What the donor has ready, and what it may add when it hears for the first time that some of that has been taken.
  const chunks = SLOTS + SLOTS / TAKEN_PARTS;
  const { leader, followers } = await found(3, (chunks + 2) * CHUNK_BLOCKS);
  const [lost, donor] = followers as [number, number];
  await lose(lost, leader);
  const heard = vi.spyOn(Receiver.prototype, 'ready');
  const announced = () => Math.max(0, ...heard.mock.calls.map(([{ first, parts }]) => first + parts.length));
  const filled = gate();
  const held = gate();
  const machine = Blocks.of(0);
  // The session table comes with the first chunk: the pieces are as many as the chunks.
  const gates = new Map([
    [0, filled],
    [SLOTS / TAKEN_PARTS - 1, held],
  ]);
  machine.beforeTaking = (index) => gates.get(index)?.opened;
  const opening = open(lost, machine);
  // A receiver that has nothing to do says earlier what it took.
  await waitFor(() => announced() === SLOTS, 'the donor to have filled all places');
  filled.open();
  await waitFor(() => announced() === chunks, 'the donor to have announced all that it has places for');
  held.open();
  await opening;
  await expectEqual(lost);
  expect(received(lost).at(-1)?.status).toMatchObject({ donor, donorsLost: 0, state: 'done' });
  expect(warnings).toEqual([]);
});

it('commits on while the state is read, and what is committed meanwhile is not in the snapshot but behind it', async () => {
  const { leader, followers } = await found(3, 2 * CHUNK_BLOCKS);
  const [lost, donor] = followers as [number, number];
  await lose(lost, leader);
  const held = gate();
  (machines.get(donor) as Blocks).beforeGiving = (index) => (index === CHUNK_BLOCKS + 8 ? held.opened : undefined);
  const opening = open(lost, Blocks.of(0));
  const reading = await waitFor(
    () =>
      leader
        .status()
        .transfers.find(({ role, state, bytesDone }) => role === 'leader' && state === 'reading' && bytesDone > 0),
    'the transfer to be on its way',
  );
  for (let index = 0; index < 200; index++) await write(leader, 50, index);
  await write(leader, 63, 77);
  held.open();
  await opening;
  await expectEqual(lost);
  expect(machines.get(lost)?.blocks[63]?.[0]).toBe(77);
  expect(reading).toMatchObject({ role: 'leader', receiver: lost, donor });
  expect(received(lost).at(-1)?.status.lsn).toBe(reading.lsn);
  expect(machines.get(lost)?.restores).toBe(1);
});

it('goes on where it stopped at another donor when the donor dies and the other one has the same state', async () => {
  const { leader, followers } = await found(5, 200);
  const [lost, ...others] = followers as [number, ...number[]];
  await lose(lost, leader);
  await waitFor(
    () => others.every((id) => replicas.get(id)?.status().appliedLsn === leader.status().appliedLsn),
    'all to be applied',
  );
  const donor = firstDonor(others);
  const opening = open(lost, Blocks.of(0));
  const machine = machines.get(lost) as Blocks;
  await waitFor(() => machine.takenBytes > 100 * BLOCK_BYTES, 'a good part of the state');
  await donor.die();
  await opening;
  const told = await waitFor(() => {
    const last = received(lost).at(-1)?.status;
    return last?.state === 'done' && last;
  }, 'the end of the transfer');
  expect(told.donor).not.toBe(donor.id);
  expect(others).toContain(told.donor);
  expect(told.donorsLost).toBe(1);
  expect(machine.restores).toBe(1);
  expect(machine.takenBytes).toBe(8 + 200 * BLOCK_BYTES);
  await expectSame(machine, leader);
});

it('lacks nothing when it goes on at another donor because the first could not be told what was taken', async () => {
  const { leader, followers } = await found(3, 4 * CHUNK_BLOCKS);
  const [lost, donor] = followers as [number, number];
  await lose(lost, leader);
  await waitFor(
    () => replicas.get(donor)?.status().appliedLsn === leader.status().appliedLsn,
    'the donor to have the same state as the leader',
  );
  // By message as over the connection, as if too much waited to be sent already.
  let isRefused = false;
  const refuses = (type: string, body: unknown): boolean => {
    if (type !== 'transferTaken' || isRefused || (body as { count: number }).count < 2) return false;
    isRefused = true;
    return true;
  };
  const { tell } = Mailbox.prototype;
  vi.spyOn(Mailbox.prototype, 'tell').mockImplementation(function (this: Mailbox, peer, type, body) {
    return !refuses(type, body) && tell.call(this, peer, type, body);
  });
  const { send } = ControlConnection.prototype;
  vi.spyOn(ControlConnection.prototype, 'send').mockImplementation(function (this: ControlConnection, type, body) {
    if (refuses(type, body)) throw new QuorateError('QUORATE_BACKPRESSURE', 'too much waits to be sent');
    send.call(this, type, body);
  });
  const machine = Blocks.of(0);
  await open(lost, machine);
  await expectSame(machine, leader);
  expect(received(lost).at(-1)?.status).toMatchObject({ donor: leader.id, donorsLost: 1, state: 'done' });
  expect(machine.restores).toBe(1);
});

it('begins anew at another donor when that has another state by then', async () => {
  const { leader, followers } = await found(5, 200);
  const [lost, ...others] = followers as [number, ...number[]];
  await lose(lost, leader);
  const donor = firstDonor(others);
  const opening = open(lost, Blocks.of(0));
  const machine = machines.get(lost) as Blocks;
  await waitFor(() => machine.takenBytes > 100 * BLOCK_BYTES, 'a good part of the state');
  await changeState(
    leader,
    others.filter((id) => id !== donor.id),
  );
  await donor.die();
  await opening;
  await expectSame(machine, leader);
  expect(machine.restores).toBeGreaterThanOrEqual(2);
});

it('holds no more than the staging memory of either end, however slowly the receiver takes it', async () => {
  const { leader, followers } = await found(3, 900);
  const [lost, donor] = followers as [number, number];
  await lose(lost, leader);
  const held = gate();
  const machine = Blocks.of(0);
  machine.beforeTaking = (index) => (index === 3 ? held.opened : undefined);
  const giver = machines.get(donor) as Blocks;
  const opening = open(lost, machine);
  // The donor comes to a stop by itself: two looks at a pause in between show the same.
  let before = -1;
  await waitFor(() => {
    const isStill = giver.pulledBytes > 0 && giver.pulledBytes === before && machine.takenBytes > 0;
    before = giver.pulledBytes;
    return isStill;
  }, 'the donor to stop');
  for (let index = 0; index < 50; index++) await write(leader, 5, index);
  expect(giver.pulledBytes - machine.takenBytes).toBeLessThanOrEqual(2 * STAGING_BYTES + 2 * BLOCK_BYTES);
  expect(giver.pulledBytes).toBeLessThan(900 * BLOCK_BYTES);
  held.open();
  await opening;
  await expectEqual(lost);
});

it.each([
  ['by its READs', true],
  ['by itself', false],
])('does not use a chunk that is not what the donor announced, as it learns %s', async (_how, checksummedReads) => {
  vi.spyOn(Context.prototype, 'checksummedReads', 'get').mockReturnValue(checksummedReads);
  const { leader, followers } = await found(3, 3 * CHUNK_BLOCKS);
  const [lost] = followers as [number, number];
  await lose(lost, leader);
  let source: TransferSource | undefined;
  const { open: openSource } = TransferSource;
  vi.spyOn(TransferSource, 'open').mockImplementation(async (...parameters) => {
    source = await openSource.apply(TransferSource, parameters);
    return source;
  });
  const { read } = TransferSink.prototype;
  let isTampered = false;
  vi.spyOn(TransferSink.prototype, 'read').mockImplementation(function (this: TransferSink, slot, parts, ...more) {
    if (isTampered || slot !== 2) return read.call(this, slot, parts, ...more);
    isTampered = true;
    const at = (parts[1] as number) + 1000;
    const { bytes } = source as TransferSource;
    bytes[at] = (bytes[at] as number) ^ 1;
    return read.call(this, slot, parts, ...more);
  });
  const machine = Blocks.of(0);
  await open(lost, machine);
  await expectEqual(lost);
  expect(isTampered).toBe(true);
  expect(received(lost).some(({ status }) => status.donorsLost === 1)).toBe(true);
});

it('hears of a donor that fails before the receiver has heard that it may begin', async () => {
  const { leader, followers } = await found(3, 10);
  const [lost, donor] = followers as [number, number];
  await lose(lost, leader);
  let isFailing = true;
  for (const id of [leader.id, donor]) {
    (machines.get(id) as Blocks).beforeGiving = () =>
      isFailing ? Promise.reject(new Error('no state now')) : undefined;
  }
  const failed = vi.spyOn(Receiver.prototype, 'failed');
  const { connect } = TransferSink.prototype;
  let begun = 0;
  vi.spyOn(TransferSink.prototype, 'connect').mockImplementation(async function (this: TransferSink, ...parameters) {
    await connect.apply(this, parameters);
    begun++;
    if (isFailing) await waitFor(() => failed.mock.calls.length === begun, 'the donor to fail');
  });
  const machine = Blocks.of(0);
  const opening = open(lost, machine, { openTimeoutMs: 60_000 });
  opening.catch(() => {});
  const [warning] = await waitFor(() => warnings.length > 0 && warnings, 'the leader to be told');
  isFailing = false;
  expect(warning).toContain(`(replica ${donor}: no state now; replica ${leader.id}: no state now)`);
  await opening;
  await expectEqual(lost);
});

it('is not taken for a transfer of the process before', async () => {
  const asked = vi.spyOn(Donor.prototype, 'open');
  const { leader, followers } = await found(3, 10);
  const [lost] = followers as [number];
  for (const _ of ['one process', 'the next one']) {
    await lose(lost, leader);
    await open(lost, Blocks.of(0));
    await expectEqual(lost);
  }
  const numbers = asked.mock.calls.map(([, request]) => (request as { transfer: number }).transfer);
  expect(numbers.length).toBeGreaterThan(1);
  expect(new Set(numbers).size).toBe(numbers.length);
});

it('lets go of the frozen state when the receiver dies', async () => {
  const { leader, followers } = await found(3, 900);
  const [lost, donor] = followers as [number, number];
  await lose(lost, leader);
  const held = gate();
  const machine = Blocks.of(0);
  machine.beforeTaking = (index) => (index === 3 ? held.opened : undefined);
  const opening = open(lost, machine);
  opening.catch(() => {});
  await waitFor(() => machine.takenBytes > 0, 'the transfer to begin');
  const replica = await waitFor(() => replicas.get(lost), 'the replica to be open');
  await replica.close();
  replicas.delete(lost);
  const giver = machines.get(donor) as Blocks;
  await waitFor(() => giver.abandoned === 1, 'the stream to be abandoned');
  await waitFor(() => replicas.get(donor)?.status().transfers.length === 0, 'the transfer to end at the donor');
  held.open();
});

const inPlace = (blocks: number): BlocksInPlace => new BlocksInPlace(blocks + 64, blocks);

/** What was announced to lie in memory of the donor's state machine, and what in memory that it was copied to. */
function announcements(): () => { inPlaceBytes: number; copiedBytes: number } {
  const heard = vi.spyOn(Receiver.prototype, 'ready');
  return () => {
    let inPlaceBytes = 0;
    let copiedBytes = 0;
    for (const parts of heard.mock.calls.flatMap(([news]) => news.parts)) {
      for (let at = 0; at < parts.length; at += PART_NUMBERS) {
        const length = parts[at + 2] as number;
        if (parts[at] === 0) copiedBytes += length;
        else inPlaceBytes += length;
      }
    }
    return { inPlaceBytes, copiedBytes };
  };
}

/** What landed in memory of this machine by READs, and what landed elsewhere. */
function landings(machine: BlocksInPlace): () => { inPlaceBytes: number; elsewhereBytes: number } {
  const { read } = TransferSink.prototype;
  let inPlaceBytes = 0;
  let elsewhereBytes = 0;
  vi.spyOn(TransferSink.prototype, 'read').mockImplementation(function (this: TransferSink, ...parameters) {
    const views = read.apply(this, parameters);
    for (const view of views ?? []) {
      if (machine.areas.some(({ buffer }) => buffer === view.buffer)) inPlaceBytes += view.length;
      else elsewhereBytes += view.length;
    }
    return views;
  });
  return () => ({ inPlaceBytes, elsewhereBytes });
}

it('READs the state from where the donor keeps it to where the receiver wants it', async () => {
  const { leader, followers } = await found(3, 100, inPlace);
  const [lost] = followers as [number, number];
  await lose(lost, leader);
  const announced = announcements();
  const machine = new BlocksInPlace(100, 0);
  const landed = landings(machine);
  await open(lost, machine);
  await expectEqual(lost);
  const bytes = received(lost).at(-1)?.status.bytesDone as number;
  // All but the header and the table of sessions, which are no state of the machine's memory.
  expect(announced()).toEqual({ inPlaceBytes: 100 * BLOCK_BYTES, copiedBytes: bytes - 100 * BLOCK_BYTES });
  // Less than 4 KiB that a chunk ends or begins with may be copied.
  const { inPlaceBytes, elsewhereBytes } = landed();
  expect(inPlaceBytes + elsewhereBytes).toBe(bytes);
  expect(inPlaceBytes).toBeGreaterThan(99 * BLOCK_BYTES);
  expect(machine.restores).toBe(1);
  expect(machine.takenBytes).toBe(0);
  expect(warnings).toEqual([]);
});

it.each([
  ['lies where it is READ', inPlace, CHUNKS_AHEAD],
  ['has to be copied', Blocks.of, SLOTS],
])(
  'a donor whose state %s is ahead of the receiver by as many chunks as it may, and no more',
  async (_, make, ahead) => {
    const { leader, followers } = await found(3, (CHUNKS_AHEAD + 4) * CHUNK_BLOCKS, make);
    const [lost] = followers as [number, number];
    await lose(lost, leader);
    const { ready } = Receiver.prototype;
    const told = vi.spyOn(Mailbox.prototype, 'tell');
    let announced = 0;
    let most = 0;
    vi.spyOn(Receiver.prototype, 'ready').mockImplementation(function (this: Receiver, news) {
      const acknowledged = told.mock.calls.flatMap(([, type, body]) =>
        type === 'transferTaken' ? (body as { count: number }).count : [],
      );
      announced = news.first + news.parts.length;
      most = Math.max(most, announced - Math.max(0, ...acknowledged));
      ready.call(this, news);
    });
    const held = gate();
    const { connect } = TransferSink.prototype;
    vi.spyOn(TransferSink.prototype, 'connect').mockImplementation(async function (this: TransferSink, ...parameters) {
      await connect.apply(this, parameters);
      await held.opened;
    });
    const opening = open(lost, Blocks.of(0));
    await waitFor(() => announced >= ahead, 'the donor to be ahead');
    held.open();
    await opening;
    await expectEqual(lost);
    expect(most).toBe(ahead);
    expect(received(lost).at(-1)?.status).toMatchObject({ donorsLost: 0, state: 'done' });
    expect(warnings).toEqual([]);
  },
);

it('reads a state in place as it was, whatever commands change while it is read', async () => {
  const { leader, followers } = await found(3, 100, inPlace);
  const [lost, donor] = followers as [number, number];
  await lose(lost, leader);
  const giver = machines.get(donor) as BlocksInPlace;
  const held = gate();
  giver.beforeGiving = (index) => (index === 90 ? held.opened : undefined);
  const opening = open(lost, new BlocksInPlace(100, 0));
  await waitFor(() => giver.takenBytes > 20 * BLOCK_BYTES, 'a part of the state to be taken');
  // Blocks that were taken, that wait to be taken, and that have not been asked for yet.
  for (let index = 0; index < 100; index += 7) await write(leader, index, 200 + (index % 50));
  await waitFor(() => giver.applied === machines.get(leader.id)?.applied, 'the donor to apply the changes');
  expect(giver.copiedOnWrite).toBeGreaterThan(0);
  expect(giver.copiedOnWrite).toBeLessThan(15);
  held.open();
  await opening;
  await expectEqual(lost);
  expect(received(lost).at(-1)?.status).toMatchObject({ donor, donorsLost: 0, state: 'done' });
  // What was frozen for the transfer is free again.
  expect(giver.blocks.length + giver.free.length).toBe(giver.capacity);
});

it('serves machines that know nothing of it, and is served by them', async () => {
  const { leader, followers } = await found(3, 50, (blocks, id) => (id === 2 ? inPlace(blocks) : Blocks.of(blocks)));
  const announced = announcements();
  for (const lost of followers) {
    await lose(lost, leader);
    const machine = lost === 2 ? new BlocksInPlace(50, 0) : Blocks.of(0);
    await open(lost, machine);
    await expectEqual(lost);
    expect(machine.restores).toBe(1);
  }
  // A follower gives the state, so that machine 2 gave its own to machine 1, unless it leads.
  expect(announced().inPlaceBytes).toBe(leader.id === 2 ? 0 : 50 * BLOCK_BYTES);
});

it('goes on in place where it stopped, at a donor that copies', async () => {
  const make = (blocks: number, id: number): Blocks => (id % 2 === 0 ? inPlace(blocks) : Blocks.of(blocks));
  const { leader, followers } = await found(5, 200, make);
  const [lost, ...others] = followers as [number, ...number[]];
  await lose(lost, leader);
  await waitFor(
    () => others.every((id) => replicas.get(id)?.status().appliedLsn === leader.status().appliedLsn),
    'all to be applied',
  );
  const donor = firstDonor(others);
  const machine = new BlocksInPlace(200, 0);
  const opening = open(lost, machine);
  await waitFor(
    () => received(lost).some(({ status }) => status.bytesDone > 100 * BLOCK_BYTES),
    'a good part of the state',
  );
  await donor.die();
  await opening;
  await expectSame(machine, leader);
  expect(received(lost).at(-1)?.status).toMatchObject({ donorsLost: 1, state: 'done' });
  expect(machine.restores).toBe(1);
  expect(machine.aborted).toEqual([]);
});

it('gives the places back when the state of the next donor is another one, and does not write there any more', async () => {
  const { leader, followers } = await found(5, 200, inPlace);
  const [lost, ...others] = followers as [number, ...number[]];
  await lose(lost, leader);
  const donor = firstDonor(others);
  const machine = new BlocksInPlace(450, 0);
  const opening = open(lost, machine);
  await waitFor(
    () => received(lost).some(({ status }) => status.bytesDone > 100 * BLOCK_BYTES),
    'a good part of the state',
  );
  await changeState(
    leader,
    others.filter((id) => id !== donor.id),
  );
  await donor.die();
  await opening;
  await expectSame(machine, leader);
  expect(machine.restores).toBeGreaterThanOrEqual(2);
  expect(machine.aborted.length).toBe(machine.restores - 1);
  const places = machine.aborted.flat();
  expect(places.length).toBeGreaterThan(100);
  expect(places.every((block) => block.every((byte) => byte === 0xa5))).toBe(true);
});

/** The machine has no place for the state that comes, until the leader was told so. */
async function openWithoutRoom(lost: number, machine: BlocksInPlace): Promise<void> {
  const opening = open(lost, machine, { openTimeoutMs: 60_000 });
  opening.catch(() => {});
  await waitFor(
    () => warnings.some((text) => text.includes('the machine has no memory left')),
    'the leader to be told',
  );
  machine.free.push(...Array.from({ length: 100 }, () => new Uint8Array(BLOCK_BYTES)));
  await opening;
  await expectEqual(lost);
}

it('ends a transfer with the error of a machine that has no place for it, and tries again', async () => {
  const { leader, followers } = await found(3, 30, inPlace);
  const [lost] = followers as [number, number];
  await lose(lost, leader);
  const machine = new BlocksInPlace(20, 0);
  await openWithoutRoom(lost, machine);
});

it('gives the places back when the state that came is of no use any more', async () => {
  const { leader, followers } = await found(3, 30, inPlace);
  const [lost] = followers as [number, number];
  await lose(lost, leader);
  // As if the replica had applied as much from the log by then.
  vi.spyOn(ReplicationPlane.prototype, 'isSnapshotNews').mockReturnValueOnce(false);
  const machine = new BlocksInPlace(70, 0);
  await open(lost, machine, { openTimeoutMs: 60_000 });
  await expectEqual(lost);
  expect(machine.restores).toBeGreaterThan(1);
  expect(machine.aborted.map((places) => places.length)).toEqual([30]);
});

it.each([
  [
    'throws',
    (): void => {
      throw new Error('nothing can be given back');
    },
  ],
  ['rejects', (): Promise<void> => Promise.reject(new Error('nothing can be given back'))],
])('tells why a transfer failed, also where the machine that is told so %s', async (_how, abort) => {
  const { leader, followers } = await found(3, 30, inPlace);
  const [lost] = followers as [number, number];
  await lose(lost, leader);
  const machine = new BlocksInPlace(20, 0);
  const restoreInPlace = machine.restoreInPlace.bind(machine);
  machine.restoreInPlace = (lengthBytes) => ({ ...restoreInPlace(lengthBytes), abort });
  await openWithoutRoom(lost, machine);
});

/** Takes the state in places of which every other one is as little as can be. */
class Crumbs extends BlocksInPlace {
  override restoreInPlace(): RestoreInPlace {
    this.restores++;
    const lengths = [4096, 1];
    const places: Uint8Array[] = [];
    const areas = this.areas.map((area) => area.subarray(0));
    return {
      next: () => {
        const length = lengths[places.length % 2] as number;
        if ((areas[0] as Uint8Array).length < length) areas.shift();
        const [area] = areas as [Uint8Array];
        const place = length === 1 ? new Uint8Array(1) : area.subarray(0, length);
        if (length > 1) areas[0] = area.subarray(length);
        places.push(place);
        return place;
      },
      finish: (bytes) => {
        const whole = Buffer.concat(places, bytes);
        return () => {
          this.applied = whole.readDoubleLE(0);
          this.blocks = [];
          for (let at = 8; at < bytes; at += BLOCK_BYTES) this.blocks.push(whole.subarray(at, at + BLOCK_BYTES));
        };
      },
    };
  }
}

it('brings a state into places that are more than READs can be under way', async () => {
  const { leader, followers } = await found(3, 3 * CHUNK_BLOCKS, (blocks) => {
    const machine = inPlace(blocks);
    // No block lies behind the one before, so each is a part of its own.
    const attach = machine.attachMemory.bind(machine);
    machine.attachMemory = (memory) => {
      attach(memory);
      machine.blocks.reverse();
    };
    return machine;
  });
  const [lost] = followers as [number, number];
  await lose(lost, leader);
  const machine = new Crumbs(4 * CHUNK_BLOCKS, 0);
  await open(lost, machine, { openTimeoutMs: 60_000 });
  await expectEqual(lost);
  expect(received(lost).at(-1)?.status).toMatchObject({ donorsLost: 0, state: 'done' });
  expect(warnings).toEqual([]);
});

/** Makes room for a state when it comes. */
class RoomOnDemand extends BlocksInPlace {
  private memory: StateMemory | undefined;
  constructor() {
    super(0, 0);
  }

  override attachMemory(memory: StateMemory): void {
    this.memory = memory;
  }

  override restoreInPlace(lengthBytes: number | undefined): RestoreInPlace {
    const area = (this.memory as StateMemory).allocate((lengthBytes as number) - 8);
    this.areas.push(area);
    for (let at = 0; at < area.length; at += BLOCK_BYTES) this.free.unshift(area.subarray(at, at + BLOCK_BYTES));
    return super.restoreInPlace(lengthBytes);
  }
}

it('READs the state into memory that the receiver allocates when it is told how much there will be', async () => {
  const { leader, followers } = await found(3, 100, inPlace);
  const [lost] = followers as [number, number];
  await lose(lost, leader);
  const machine = new RoomOnDemand();
  const landed = landings(machine);
  await open(lost, machine);
  await expectEqual(lost);
  const { inPlaceBytes } = landed();
  expect(inPlaceBytes).toBeGreaterThan(99 * BLOCK_BYTES);
  expect(warnings).toEqual([]);
});

it('does not take a donor for lost while its own state machine is at work', async () => {
  const looks: (() => void)[] = [];
  const { setInterval } = globalThis;
  vi.spyOn(globalThis, 'setInterval').mockImplementation(((look: () => void, intervalMs?: number) => {
    if (intervalMs === STALL_TIMEOUT_MS / 4) looks.push(look);
    return setInterval(look, intervalMs);
  }) as typeof setInterval);
  const { leader, followers } = await found(3, 3 * CHUNK_BLOCKS);
  const [lost] = followers as [number, number];
  await lose(lost, leader);
  const held = gate();
  const machine = Blocks.of(0);
  let isHeld = false;
  machine.beforeTaking = (index) => {
    if (index !== 2) return undefined;
    isHeld = true;
    return held.opened;
  };
  const opening = open(lost, machine);
  await waitFor(() => isHeld, 'the state machine to be at work');
  const { now } = performance;
  const later = vi.spyOn(performance, 'now').mockImplementation(() => now.call(performance) + STALL_TIMEOUT_MS);
  for (const look of looks) look();
  later.mockRestore();
  held.open();
  await opening;
  await expectEqual(lost);
  expect(looks.length).toBeGreaterThan(0);
  expect(received(lost).at(-1)?.status).toMatchObject({ donorsLost: 0, state: 'done' });
});

it('says what is wrong with memory that is asked for or given back, and leaves it readable behind a replica', async () => {
  const { leader } = await found(1, 2, inPlace);
  const machine = machines.get(leader.id) as BlocksInPlace;
  let memory: StateMemory | undefined;
  const other = Object.assign(inPlace(1), {
    attachMemory: (given: StateMemory) => {
      memory = given;
      expect(() => given.allocate(0)).toThrow(expect.objectContaining({ code: 'QUORATE_OUT_OF_RANGE' }));
      const areas = Array.from({ length: 256 }, () => given.allocate(4096));
      expect(() => given.allocate(4096)).toThrow(expect.objectContaining({ code: 'QUORATE_LIMIT' }));
      for (const foreign of [new Uint8Array(4096), undefined, null]) {
        expect(() => given.release(foreign as Uint8Array)).toThrow(
          expect.objectContaining({ code: 'QUORATE_INVALID_ARGUMENT' }),
        );
      }
      const [first, ...rest] = areas as [Uint8Array, ...Uint8Array[]];
      given.release(first.subarray(100, 200));
      expect(first.length).toBe(0);
      for (const area of rest) given.release(area);
      expect(given.allocate(8192).every((byte) => byte === 0)).toBe(true);
    },
  });
  places = await members(1);
  const replica = await open(0, other);
  expect(memory).toBeDefined();
  await replica.close();
  replicas.delete(0);
  await leader.close();
  expect(machine.blocks[1]?.[5]).toBe(1);
  await expect(open(0, Object.assign(Blocks.of(1), { restoreInPlace: 5 as never }))).rejects.toMatchObject({
    code: 'QUORATE_INVALID_ARGUMENT',
  });
});
