// What the background plane promises to leaders, and counts as one, on a fabric whose links, memories and moments are the
// test's: what happens between two instructions of a tick, and which of several processes with one id has ended.
import { expect, test } from 'vitest';
import { BackgroundPlane, type DurablePromise } from '#lib/consensus/background-plane.js';
import { makeEpoch } from '#lib/consensus/epoch.js';
import { EXCHANGE_BYTES, Exchange } from '#lib/consensus/exchange.js';
import {
  BACKGROUND_BLOCK_OFFSET_WORDS,
  BACKGROUND_BLOCK_WORDS,
  GRANT_BLOCK_OFFSET_WORDS,
  GRANT_BLOCK_WORDS,
  LOG_BYTES_MIN,
  MAILBOX_MESSAGE_WORDS,
  MAILBOX_SLOT_WORDS,
  MAIN_BLOCK_OFFSET_WORDS,
  MAIN_BLOCK_WORDS,
  MAX_REPLICAS,
  STATUS_WORDS,
} from '#lib/consensus/limits.js';
import { readU53, SealedBlockReader, SealedBlockWriter, writeU53 } from '#lib/consensus/sealed-block.js';
import {
  BackgroundField,
  GrantField,
  MainField,
  REQUEST_KIND_PERMISSION,
  RequestField,
  TO_BACKGROUND_WORDS,
  TO_MAIN_WORDS,
  ToBackgroundField,
  ToMainField,
} from '#lib/consensus/status-layout.js';
import { type BackgroundFabric, FabricStatus, PeerProcessState } from '#lib/fabric/fabric.js';

const MS = 1e6;
const TICK_NS = MS;
const LEASE_NS = 200 * MS;
const LINK_GENERATION = 7;
const STATUS_READ = 1; // the kind of a completion that announces a READ

/** The status of a peer, as that publishes it. */
class Peer {
  readonly words = new Uint32Array(STATUS_WORDS);
  readonly background = new SealedBlockWriter(this.words, BACKGROUND_BLOCK_OFFSET_WORDS, BACKGROUND_BLOCK_WORDS);
  readonly main = new SealedBlockWriter(this.words, MAIN_BLOCK_OFFSET_WORDS, MAIN_BLOCK_WORDS);
  readonly grant = new SealedBlockWriter(this.words, GRANT_BLOCK_OFFSET_WORDS, GRANT_BLOCK_WORDS);
  isConnected = true;

  constructor(
    readonly id: number,
    readonly bootId: number,
  ) {
    writeU53(this.background.body, BackgroundField.bootId, bootId);
    writeU53(this.background.body, BackgroundField.processId, bootId);
    writeU53(this.main.body, MainField.processId, bootId);
    writeU53(this.grant.body, GrantField.bootId, bootId);
    this.beat();
    this.main.publish();
  }
  beat(): void {
    this.background.publish();
  }
}

class MadeUpFabric implements BackgroundFabric {
  readonly ownStatus = new Uint32Array(STATUS_WORDS);
  readonly mailboxWords = new Uint32Array(MAX_REPLICAS * MAILBOX_SLOT_WORDS);
  readonly logWords = new Uint32Array(LOG_BYTES_MIN / 4);
  readonly probeWords = new Uint32Array(MAX_REPLICAS * STATUS_WORDS);
  readonly outboxWords = new Uint32Array(MAX_REPLICAS * MAILBOX_SLOT_WORDS);
  readonly completionPeer = new Int32Array(64);
  readonly completionToken = new Float64Array(64);
  readonly completionStatus = new Int32Array(64);
  readonly peers = new Map<number, Peer>();
  /** READs and WRITEs that were posted; READs bring what is there when they are executed. */
  posted: { peer: number; token: number }[] = [];
  /** The network takes its time: nothing completes. */
  isSlow = false;
  exited = 0;
  readonly exitedProcesses = new Map<number, number>();
  /** Runs as the plane is about to look at the own main block, once. */
  beforeOwnMain: (() => void) | null = null;

  get statusWords(): Uint32Array {
    const { beforeOwnMain } = this;
    this.beforeOwnMain = null;
    beforeOwnMain?.();
    return this.ownStatus;
  }
  queueStatusRead(peer: number, _lengthBytes: number, token: number): void {
    this.posted.push({ peer, token });
  }
  queueMailboxWrite(peer: number, token: number): void {
    this.posted.push({ peer, token });
  }
  queueRecallWrite(peer: number, token: number): void {
    this.posted.push({ peer, token });
  }
  submit(): number {
    if (this.isSlow) return 0;
    const done = this.posted.splice(0);
    for (const [index, { peer, token }] of done.entries()) {
      if (token === STATUS_READ) this.probeWords.set((this.peers.get(peer) as Peer).words, peer * STATUS_WORDS);
      this.completionPeer[index] = peer;
      this.completionToken[index] = token;
      this.completionStatus[index] = FabricStatus.success;
    }
    return done.length;
  }
  probeConnected(peer: number): boolean {
    return this.peers.get(peer)?.isConnected ?? false;
  }
  exitedMask(): number {
    return this.exited;
  }
  exitedProcess(peer: number): number {
    return this.exitedProcesses.get(peer) ?? 0;
  }
  processState(): PeerProcessState {
    return PeerProcessState.unknown;
  }
  raiseFence(): void {}
  revokeLogWriter(): void {}
  enableLogWriter(): number {
    return 0;
  }
  logWriter(): number {
    return -1;
  }
  incomingLogGeneration(): number {
    return LINK_GENERATION;
  }
  outgoingLogGeneration(): number {
    return LINK_GENERATION;
  }
}

/** Replica 0, and peers with these ids; none is a voter before configure(). */
function replica(ids: readonly number[], durable: DurablePromise | null = null) {
  const fabric = new MadeUpFabric();
  for (const id of ids) fabric.peers.set(id, new Peer(id, 1000 + id));
  const exchange = new Exchange(new ArrayBuffer(EXCHANGE_BYTES));
  const ownMain = new SealedBlockWriter(fabric.ownStatus, MAIN_BLOCK_OFFSET_WORDS, MAIN_BLOCK_WORDS);
  ownMain.publish();
  const toBackground = new SealedBlockWriter(exchange.words, exchange.toBackgroundOffset, TO_BACKGROUND_WORDS);
  const plane = new BackgroundPlane(
    {
      id: 0,
      bootId: 1000,
      logBytes: LOG_BYTES_MIN,
      profile: {
        tick_ns: TICK_NS,
        electionTick_ns: TICK_NS,
        takeoverTimeout_ns: 100 * MS,
        scoreMax: 10,
        failBelow: 2,
        recoverAbove: 4,
        stallTimeout_ns: 1000 * MS,
      },
      lease: { length_ns: LEASE_NS, driftBound: 0 },
      durable,
      random: () => 0.5,
      notifyMain: () => {},
    },
    fabric,
    exchange,
  );
  let now_ns = 0;
  const toMain = new SealedBlockReader(TO_MAIN_WORDS);
  return {
    fabric,
    plane,
    ownMain,
    peer: (id: number) => fabric.peers.get(id) as Peer,
    /** The log of this replica has this configuration. */
    configure(version: number, voters: readonly number[]): void {
      const { body } = toBackground;
      body.fill(0, ToBackgroundField.voterBootIds, ToBackgroundField.priorities);
      for (const id of voters) writeU53(body, ToBackgroundField.voterBootIds + id * 2, 1000 + id);
      body[ToBackgroundField.configurationVersion] = version;
      writeU53(body, ToBackgroundField.incarnation, 1);
      body[ToBackgroundField.ready] = 1;
      toBackground.publish();
    },
    ticks(count: number): void {
      for (let tick = 0; tick < count; tick++) {
        for (const peer of fabric.peers.values()) peer.beat();
        now_ns += TICK_NS;
        plane.tick(now_ns);
      }
    },
    now: () => now_ns,
    lease() {
      toMain.read(exchange.words, exchange.toMainOffset);
      return {
        version: toMain.body[ToMainField.leaseConfigurationVersion],
        end_ns: readU53(toMain.body, ToMainField.leaseEnd_ns),
      };
    },
  };
}

type Replica = ReturnType<typeof replica>;

/** The peer asks for permission. */
function ask({ fabric }: Replica, candidate: number, epoch: number): void {
  const request = new SealedBlockWriter(fabric.mailboxWords, candidate * MAILBOX_SLOT_WORDS, MAILBOX_MESSAGE_WORDS);
  request.body[RequestField.kind] = REQUEST_KIND_PERMISSION;
  writeU53(request.body, RequestField.epoch, epoch);
  request.body[RequestField.requestSequence] = 1;
  request.body[RequestField.linkGeneration] = LINK_GENERATION;
  request.publish();
}

/** Replica 0 stands for election, and these grant. */
function elect(one: Replica, granting: readonly number[]): number {
  const { plane, peer, ticks } = one;
  for (let count = 0; plane.promised === 0 && count < 300; count++) ticks(1);
  const epoch = plane.promised;
  expect(epoch).toBeGreaterThan(0);
  for (const id of granting) {
    const { grant, background } = peer(id);
    writeU53(grant.body, GrantField.epoch, epoch);
    grant.body[GrantField.candidate] = 0;
    // Requests are numbered in the order of ids.
    grant.body[GrantField.requestSequence] = id;
    grant.publish();
    writeU53(background.body, BackgroundField.promisedEpoch, epoch);
    background.body[BackgroundField.promisedTo] = 0;
  }
  return epoch;
}

test('a lease is counted by the voters of the log that was taken over, also if this thread stood still meanwhile', () => {
  // The own log ends in a configuration that nobody else knows, one with 4 more than the one before. The log that is taken
  // over has another one of that number: one with 5 more. A majority of the one need not meet a majority of the other.
  const own = [0, 1, 2, 3, 4];
  const adopted = [0, 1, 2, 3, 5];
  const one = replica([1, 2, 3, 4, 5]);
  const { fabric, ownMain, peer, configure, ticks, lease, now } = one;
  configure(9, own);
  const epoch = elect(one, [1, 2, 3, 4, 5]);
  ticks(2);

  // The READs of this tick are on their way for as long as the takeover takes.
  fabric.isSlow = true;
  ticks(1);
  fabric.beforeOwnMain = () => {
    configure(9, adopted);
    writeU53(ownMain.body, MainField.leaderEpoch, epoch);
    ownMain.publish();
    // 3 and 4 have seen that this replica leads, and promise by the counter that they see.
    const counter = fabric.ownStatus[BACKGROUND_BLOCK_OFFSET_WORDS] as number;
    for (const id of [3, 4]) {
      const { background } = peer(id);
      background.body[BackgroundField.leaseCounter] = counter;
      background.body[BackgroundField.leaseLength_us] = LEASE_NS / 1000;
      background.publish();
    }
    fabric.isSlow = false;
  };
  ticks(1);
  // 1, 2 and 5 have promised nothing, and can elect another leader.
  expect(lease().end_ns).toBe(0);

  // With 1 it is a majority of the configuration in force.
  peer(1).background.body[BackgroundField.leaseCounter] = fabric.ownStatus[BACKGROUND_BLOCK_OFFSET_WORDS] as number;
  peer(1).background.body[BackgroundField.leaseLength_us] = LEASE_NS / 1000;
  ticks(3);
  expect(lease().version).toBe(9);
  expect(lease().end_ns).toBeGreaterThan(now());
});

/** Replica 0 has promised the leader, replica 1, that nobody else leads for now; replica 2 would like to. */
function promised() {
  const one = replica([1, 2]);
  const { plane, peer, configure, ticks } = one;
  const epoch = makeEpoch(5, 2);
  configure(1, [0, 1, 2]);
  ask(one, 1, epoch);
  ticks(1);
  expect(plane.promised).toBe(epoch);
  writeU53(peer(1).main.body, MainField.leaderEpoch, epoch);
  peer(1).main.publish();
  writeU53(peer(1).background.body, BackgroundField.promisedEpoch, epoch);
  ticks(20);
  const later = makeEpoch(6, 3);
  ask(one, 2, later);
  ticks(2);
  expect(plane.promised).toBe(epoch); // the leader lives
  peer(1).isConnected = false;
  return { ...one, epoch, later };
}

test('the end of the process that leads ends what was promised to it', () => {
  const { fabric, plane, ticks, later } = promised();
  fabric.exitedProcesses.set(1, 1001);
  fabric.exited = 1 << 1;
  ticks(1);
  expect(plane.promised).toBe(later);
});

test('the end of another process with the id of the leader does not: the leader may read by its lease', () => {
  const { fabric, plane, ticks, epoch, later } = promised();
  // Started by mistake, or in the place of one that seemed to be gone; the link led to it last.
  fabric.exitedProcesses.set(1, 4711);
  fabric.exited = 1 << 1;
  ticks(LEASE_NS / TICK_NS - 2);
  expect(plane.promised).toBe(epoch);
  ticks(3);
  expect(plane.promised).toBe(later);
});

test('a voter that is started again keeps what it promised, also if what it reads first of the leader is torn', () => {
  const epoch = makeEpoch(5, 2);
  const one = replica([1, 2], { epoch, to: 1, leaseWait_ns: LEASE_NS, record: () => {} });
  const { plane, peer, configure, ticks } = one;
  configure(1, [0, 1, 2]);
  // The leader is writing its main block, now and whenever it is read.
  writeU53(peer(1).main.body, MainField.leaderEpoch, epoch);
  peer(1).main.publish();
  (peer(1).words[MAIN_BLOCK_OFFSET_WORDS + MainField.commitLsn] as number)++;
  writeU53(peer(1).background.body, BackgroundField.promisedEpoch, epoch);
  const later = makeEpoch(6, 3);
  ask(one, 2, later);
  ticks(3); // the leader is not trusted yet, so that nothing but the promise protects it
  expect(plane.promised).toBe(epoch);
  peer(1).isConnected = false;
  ticks(LEASE_NS / TICK_NS - 4);
  expect(plane.promised).toBe(epoch);
  ticks(3);
  expect(plane.promised).toBe(later);
});

test('however long a voter says that its promise is, a leader that stands still lets in another one before long', () => {
  const one = replica([1, 2]);
  const { fabric, plane, ownMain, peer, configure, ticks, lease, now } = one;
  configure(1, [0, 1, 2]);
  const epoch = elect(one, [1, 2]);
  ticks(2);
  writeU53(ownMain.body, MainField.leaderEpoch, epoch);
  ownMain.publish();
  ticks(1);
  const { background } = peer(1);
  background.body[BackgroundField.leaseCounter] = fabric.ownStatus[BACKGROUND_BLOCK_OFFSET_WORDS] as number;
  background.body[BackgroundField.leaseLength_us] = 0xffffffff;
  ticks(3);
  expect(lease().end_ns).toBeGreaterThan(now());
  // Its event loop is blocked.
  ticks(1100);
  const later = makeEpoch(6, 3);
  ask(one, 2, later);
  ticks(2);
  expect(plane.promised).toBe(later);
});
