// What the background plane says of itself to the thread that it runs in, on a fabric whose links are told by the test.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { BackgroundPlane } from '#lib/consensus/background-plane.js';
import { epochIncarnation, makeEpoch } from '#lib/consensus/epoch.js';
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
import { SealedBlockWriter, writeU53 } from '#lib/consensus/sealed-block.js';
import {
  BackgroundField,
  REQUEST_KIND_PERMISSION,
  RequestField,
  TO_BACKGROUND_WORDS,
  ToBackgroundField,
} from '#lib/consensus/status-layout.js';
import { type BackgroundFabric, FabricStatus, PeerProcessState } from '#lib/fabric/fabric.js';

const MS = 1e6;
const CANDIDATE = 1;
const EPOCH = makeEpoch(5, 2);
const LINK_GENERATION = 7;

/** Nobody's process ends, and whatever is asked of the device is done. */
const UNEVENTFUL = {
  exitedMask: () => 0,
  exitedProcess: () => 0,
  processState: () => PeerProcessState.unknown,
  raiseFence: () => {},
  revokeLogWriter: () => {},
  enableLogWriter: () => 0,
  logWriter: () => -1,
};

function optionsFor(takeoverTimeout_ns: number) {
  return {
    id: 0,
    bootId: 1000,
    logBytes: LOG_BYTES_MIN,
    profile: {
      tick_ns: MS,
      electionTick_ns: MS,
      takeoverTimeout_ns,
      scoreMax: 10,
      failBelow: 2,
      recoverAbove: 4,
      stallTimeout_ns: 1000 * MS,
    },
    lease: null,
    random: () => 0.5,
    notifyMain: () => {},
  };
}

/** A voter whose mailbox holds a request, and the generation of the candidate's log link to it, 0 for none. */
function asked(permissions: Partial<BackgroundFabric> = {}) {
  const link = { generation: 0 };
  const mailboxWords = new Uint32Array(MAX_REPLICAS * MAILBOX_SLOT_WORDS);
  const statusWords = new Uint32Array(STATUS_WORDS);
  const fabric: BackgroundFabric = {
    statusWords,
    mailboxWords,
    probeWords: new Uint32Array(MAX_REPLICAS * STATUS_WORDS),
    logWords: new Uint32Array(LOG_BYTES_MIN / 4),
    outboxWords: new Uint32Array(MAX_REPLICAS * MAILBOX_SLOT_WORDS),
    ...UNEVENTFUL,
    ...permissions,
    completionPeer: new Int32Array(1),
    completionToken: new Float64Array(1),
    completionStatus: new Int32Array(1),
    queueStatusRead: () => {},
    queueMailboxWrite: () => {},
    queueRecallWrite: () => {},
    submit: () => 0,
    probeConnected: () => false,
    incomingLogGeneration: (peer) => (peer === CANDIDATE ? link.generation : 0),
    outgoingLogGeneration: () => 0,
  };
  new SealedBlockWriter(statusWords, MAIN_BLOCK_OFFSET_WORDS, MAIN_BLOCK_WORDS).publish();
  const request = new SealedBlockWriter(mailboxWords, CANDIDATE * MAILBOX_SLOT_WORDS, MAILBOX_MESSAGE_WORDS);
  request.body[RequestField.kind] = REQUEST_KIND_PERMISSION;
  writeU53(request.body, RequestField.epoch, EPOCH);
  request.body[RequestField.requestSequence] = 1;
  request.body[RequestField.linkGeneration] = LINK_GENERATION;
  request.publish();
  const plane = new BackgroundPlane(optionsFor(100 * MS), fabric, new Exchange(new ArrayBuffer(EXCHANGE_BYTES)));
  return { plane, link };
}

test('a voter that is asked over a link that has ended says that a fresh one is awaited, and grants over that', () => {
  const { plane, link } = asked();
  plane.tick(MS);
  expect(plane.isLinkAwaited).toBe(true);
  expect(plane.promised).toBe(0);
  link.generation = LINK_GENERATION;
  plane.tick(2 * MS);
  expect(plane.isLinkAwaited).toBe(false);
  expect(plane.promised).toBe(EPOCH);
  expect(plane.writer).toBe(CANDIDATE);
});

test('a voter that may have let a candidate in by a grant that failed takes that back before it grants again', () => {
  const calls: string[] = [];
  let writer = -1;
  const { plane, link } = asked({
    enableLogWriter: (peer) => {
      calls.push(`enable ${peer}`);
      writer = peer;
      if (calls.length === 1) throw new Error('the device does not answer');
      return 0;
    },
    revokeLogWriter: (peer) => {
      calls.push(`revoke ${peer}`);
      writer = -1;
    },
    logWriter: () => writer,
  });
  link.generation = LINK_GENERATION;
  plane.tick(MS);
  expect(plane.writer).toBe(CANDIDATE);
  plane.tick(2 * MS);
  expect(calls).toEqual([`enable ${CANDIDATE}`, `revoke ${CANDIDATE}`, `enable ${CANDIDATE}`]);
});

test('a voter that has promised a later epoch, or this one already, awaits nothing', () => {
  const { plane, link } = asked();
  link.generation = LINK_GENERATION;
  plane.tick(MS);
  link.generation = 0;
  plane.tick(2 * MS);
  expect(plane.isLinkAwaited).toBe(false);
});

const OWN_INCARNATION = 1;

/** The only voter, and a peer that is linked with it, whose status and mailbox slot the test fills. */
function linked() {
  const statusWords = new Uint32Array(STATUS_WORDS);
  const probeWords = new Uint32Array(MAX_REPLICAS * STATUS_WORDS);
  const mailboxWords = new Uint32Array(MAX_REPLICAS * MAILBOX_SLOT_WORDS);
  const tokens: number[] = [];
  const failures: unknown[] = [];
  const fabric: BackgroundFabric = {
    statusWords,
    mailboxWords,
    probeWords,
    logWords: new Uint32Array(LOG_BYTES_MIN / 4),
    outboxWords: new Uint32Array(MAX_REPLICAS * MAILBOX_SLOT_WORDS),
    ...UNEVENTFUL,
    completionPeer: new Int32Array(64).fill(CANDIDATE),
    completionToken: new Float64Array(64),
    completionStatus: new Int32Array(64).fill(FabricStatus.success),
    queueStatusRead: (_peer, _lengthBytes, token) => tokens.push(token),
    queueMailboxWrite: (_peer, token) => tokens.push(token),
    queueRecallWrite: (_peer, token) => tokens.push(token),
    submit: () => {
      const done = tokens.splice(0);
      fabric.completionToken.set(done);
      return done.length;
    },
    probeConnected: (peer) => peer === CANDIDATE,
    incomingLogGeneration: () => LINK_GENERATION,
    outgoingLogGeneration: () => LINK_GENERATION,
  };
  new SealedBlockWriter(statusWords, MAIN_BLOCK_OFFSET_WORDS, MAIN_BLOCK_WORDS).publish();
  const exchange = new Exchange(new ArrayBuffer(EXCHANGE_BYTES));
  const toBackground = new SealedBlockWriter(exchange.words, exchange.toBackgroundOffset, TO_BACKGROUND_WORDS);
  writeU53(toBackground.body, ToBackgroundField.incarnation, OWN_INCARNATION);
  writeU53(toBackground.body, ToBackgroundField.voterBootIds, 1000);
  toBackground.body[ToBackgroundField.ready] = 1;
  toBackground.publish();
  const at = CANDIDATE * STATUS_WORDS;
  const peer = {
    background: new SealedBlockWriter(probeWords, at + BACKGROUND_BLOCK_OFFSET_WORDS, BACKGROUND_BLOCK_WORDS),
    main: new SealedBlockWriter(probeWords, at + MAIN_BLOCK_OFFSET_WORDS, MAIN_BLOCK_WORDS),
    grant: new SealedBlockWriter(probeWords, at + GRANT_BLOCK_OFFSET_WORDS, GRANT_BLOCK_WORDS),
    mailbox: new SealedBlockWriter(mailboxWords, CANDIDATE * MAILBOX_SLOT_WORDS, MAILBOX_MESSAGE_WORDS),
  };
  const plane = new BackgroundPlane(
    { ...optionsFor(4 * MS), onGrantFailure: (_peer, error) => failures.push(error) },
    fabric,
    exchange,
  );
  let now_ns = 0;
  const ticks = (count: number): void => {
    for (let tick = 0; tick < count; tick++) {
      now_ns += MS;
      peer.background.publish();
      plane.tick(now_ns);
    }
  };
  return { plane, peer, failures, ticks };
}

test('a promise of a peer that no epoch can be is none, and is not outbid', () => {
  for (const promised of [2 ** 53, 2 ** 60, 2 ** 64 - 2 ** 32]) {
    const { plane, peer, ticks } = linked();
    writeU53(peer.background.body, BackgroundField.promisedEpoch, promised);
    ticks(10);
    expect(epochIncarnation(plane.promised)).toBe(OWN_INCARNATION);
    expect(plane.promised).toBeLessThan(2 ** 40);
  }
});

test('a voter that cannot form an epoch above those promised says so, and does not stand for election', () => {
  const { plane, peer, failures, ticks } = linked();
  writeU53(peer.background.body, BackgroundField.promisedEpoch, Number.MAX_SAFE_INTEGER);
  ticks(50);
  expect(plane.promised).toBe(makeEpoch(1, OWN_INCARNATION)); // it stood before it had read that
  expect(new Set(failures).size).toBe(1);
  expect(failures[0]).toMatchObject({ code: 'QUORATE_EPOCHS_EXHAUSTED' });
});

test('whatever whole blocks a peer publishes and writes, a voter goes on, and its promise grows', () => {
  const word = fc.oneof(fc.constantFrom(0, 1, 2, 0xffffffff, 0x001fffff, 0x00200000), fc.nat(64), fc.nat(0xffffffff));
  const words = (count: number) => fc.array(word, { minLength: count - 3, maxLength: count - 3 });
  const blocks = fc.record({
    background: words(BACKGROUND_BLOCK_WORDS),
    main: words(MAIN_BLOCK_WORDS),
    grant: words(GRANT_BLOCK_WORDS),
    mailbox: words(MAILBOX_MESSAGE_WORDS),
  });
  fc.assert(
    fc.property(fc.array(blocks, { minLength: 1, maxLength: 6 }), (rounds) => {
      const { plane, peer, ticks } = linked();
      let promised = 0;
      for (const round of rounds) {
        for (const name of ['background', 'main', 'grant', 'mailbox'] as const) {
          peer[name].body.set(round[name], 1);
          peer[name].publish();
        }
        peer.mailbox.body[RequestField.kind] = REQUEST_KIND_PERMISSION;
        peer.mailbox.body[RequestField.linkGeneration] = LINK_GENERATION;
        peer.mailbox.publish();
        ticks(8);
        expect(Number.isSafeInteger(plane.promised)).toBe(true);
        expect(plane.promised).toBeGreaterThanOrEqual(promised);
        promised = plane.promised;
      }
    }),
  );
});
