// What the background plane says of itself to the thread that it runs in, on a fabric whose links are told by the test.
import { expect, test } from 'vitest';
import { BackgroundPlane } from '#lib/consensus/background-plane.js';
import { makeEpoch } from '#lib/consensus/epoch.js';
import { EXCHANGE_BYTES, Exchange } from '#lib/consensus/exchange.js';
import {
  LOG_BYTES_MIN,
  MAILBOX_MESSAGE_WORDS,
  MAILBOX_SLOT_WORDS,
  MAIN_BLOCK_OFFSET_WORDS,
  MAIN_BLOCK_WORDS,
  MAX_REPLICAS,
  STATUS_WORDS,
} from '#lib/consensus/limits.js';
import { SealedBlockWriter, writeU53 } from '#lib/consensus/sealed-block.js';
import { REQUEST_KIND_PERMISSION, RequestField } from '#lib/consensus/status-layout.js';
import { type BackgroundFabric, PeerProcessState } from '#lib/fabric/fabric.js';

const MS = 1e6;
const CANDIDATE = 1;
const EPOCH = makeEpoch(5, 2);
const LINK_GENERATION = 7;

/** A voter whose mailbox holds a request, and the generation of the candidate's log link to it, 0 for none. */
function asked() {
  const link = { generation: 0 };
  const mailboxWords = new Uint32Array(MAX_REPLICAS * MAILBOX_SLOT_WORDS);
  const statusWords = new Uint32Array(STATUS_WORDS);
  const fabric: BackgroundFabric = {
    statusWords,
    mailboxWords,
    logWords: new Uint32Array(LOG_BYTES_MIN / 4),
    probeWords: new Uint32Array(MAX_REPLICAS * STATUS_WORDS),
    outboxWords: new Uint32Array(MAX_REPLICAS * MAILBOX_SLOT_WORDS),
    completionPeer: new Int32Array(1),
    completionToken: new Float64Array(1),
    completionStatus: new Int32Array(1),
    queueStatusRead: () => {},
    queueMailboxWrite: () => {},
    queueRecallWrite: () => {},
    submit: () => 0,
    probeConnected: () => false,
    exitedMask: () => 0,
    exitedProcess: () => 0,
    processState: () => PeerProcessState.unknown,
    raiseFence: () => {},
    revokeLogWriter: () => {},
    enableLogWriter: () => 0,
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
  const plane = new BackgroundPlane(
    {
      id: 0,
      bootId: 1000,
      logBytes: LOG_BYTES_MIN,
      profile: {
        tick_ns: MS,
        electionTick_ns: MS,
        takeoverTimeout_ns: 100 * MS,
        scoreMax: 10,
        failBelow: 2,
        recoverAbove: 4,
        stallTimeout_ns: 1000 * MS,
      },
      lease: null,
      random: () => 0.5,
      notifyMain: () => {},
    },
    fabric,
    new Exchange(new ArrayBuffer(EXCHANGE_BYTES)),
  );
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

test('a voter that has promised a later epoch, or this one already, awaits nothing', () => {
  const { plane, link } = asked();
  link.generation = LINK_GENERATION;
  plane.tick(MS);
  link.generation = 0;
  plane.tick(2 * MS);
  expect(plane.isLinkAwaited).toBe(false);
});
