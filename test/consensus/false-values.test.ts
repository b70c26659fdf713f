// Whole blocks and entries with values that cannot be true, as a process or memory that is at fault may hold them: nobody who
// reads them counts with them, or ends by them, and when they are gone all is as it was.
import { expect, test } from 'vitest';
import { BackgroundPlane } from '#lib/consensus/background-plane.js';
import { hashHigh, hashLow, hashWords } from '#lib/consensus/hash.js';
import {
  GRANT_BLOCK_OFFSET_WORDS,
  GRANT_BLOCK_WORDS,
  MAIN_BLOCK_OFFSET_WORDS,
  MAIN_BLOCK_WORDS,
  STATUS_WORDS,
} from '#lib/consensus/limits.js';
import { ReplicationPlane } from '#lib/consensus/replication-plane.js';
import { readU53, SealedBlockReader, writeU53 } from '#lib/consensus/sealed-block.js';
import { GrantField, MainField } from '#lib/consensus/status-layout.js';
import { replace } from '#lib/testing/replace-method.js';
import { ScriptedCluster } from '#lib/testing/scripted-cluster.js';

const MS = 1e6;
const MAIN = { offset: MAIN_BLOCK_OFFSET_WORDS, size: MAIN_BLOCK_WORDS };
const GRANT = { offset: GRANT_BLOCK_OFFSET_WORDS, size: GRANT_BLOCK_WORDS };
type Block = typeof MAIN;
type Falsify = (body: Uint32Array) => void;

/** Whoever reads replica 0's block finds this in it, sealed; the function returned ends that. */
function falsified({ offset, size }: Block, falsify: Falsify): () => void {
  return replace(
    BackgroundPlane.prototype,
    'takeStatus',
    (original) =>
      function (peer: number, watch: unknown) {
        const words: Uint32Array = this.fabric.probeWords;
        const at = peer * STATUS_WORDS + offset;
        const reader = new SealedBlockReader(size);
        if (peer === 0 && reader.read(words, at)) {
          const body = reader.body.slice();
          falsify(body);
          hashWords(body, 0, size - 2, -2, 0, 0);
          body[size - 2] = hashLow;
          body[size - 1] = hashHigh;
          words.set(body, at);
        }
        original.call(this, peer, watch);
      },
  );
}

/** Replica 0 leads three. */
function led(): ScriptedCluster {
  const script = new ScriptedCluster({ replicas: 3 });
  script.cluster.startAll();
  script.runUntilLeader(0);
  script.runUntilConverged();
  return script;
}

/** Replica 0 stands still, another one takes over, and the old leader follows it. */
function failOver(script: ScriptedCluster): void {
  script.hold(0, 'paused');
  script.runUntil('another leader', () => (script.cluster.leader()?.id ?? 0) !== 0);
  script.release(0);
  script.runUntilConverged();
}

const FALSE_LSNS: [string, (lsn: number) => number][] = [
  ['too large by a part of an entry', (lsn) => lsn + 8],
  ['beyond the end of its log', (lsn) => lsn + 640_000],
  ['beyond all logs', () => 2 ** 53 - 64],
  ['no safe integer', () => 2 ** 60],
];

test.each(FALSE_LSNS)('no follower takes a commit LSN for true that is %s', (_, makeFalse) => {
  const script = led();
  const mend = falsified(MAIN, (body) =>
    writeU53(body, MainField.commitLsn, makeFalse(readU53(body, MainField.commitLsn))),
  );
  try {
    for (let count = 0; count < 5; count++) {
      script.propose(0, 'x+=1', 500);
      script.run(10 * MS);
    }
    for (const id of [1, 2]) {
      const { replication } = script.life(id);
      expect(replication.commitLsn).toBeLessThanOrEqual(script.life(0).replication.commitLsn);
    }
  } finally {
    mend();
  }
  failOver(script);
  expect([0, 1, 2].map((id) => script.valueAt(id, 'x'))).toEqual([5, 5, 5]);
});

test.each(FALSE_LSNS)('no follower takes the commit LSN of an entry for true that is %s', (_, makeFalse) => {
  const script = led();
  const mend = replace(
    ReplicationPlane.prototype,
    'stage',
    (original) =>
      function (...parameters) {
        const { commitLsn_ } = this;
        this.commitLsn_ = makeFalse(this.tail.lsn);
        try {
          return original.apply(this, parameters);
        } finally {
          this.commitLsn_ = commitLsn_;
        }
      },
  );
  try {
    script.propose(0, 'x=1');
    script.runUntilAnswered();
    script.run(50 * MS);
  } finally {
    mend();
  }
  failOver(script);
  expect([0, 1, 2].map((id) => script.valueAt(id, 'x'))).toEqual([1, 1, 1]);
});

test('no follower takes a read index for a commit LSN where no entry can end', () => {
  const script = led();
  const { replication } = script.life(1);
  const { commitLsn, promisedEpoch } = replication;
  for (const [, makeFalse] of FALSE_LSNS) {
    if (makeFalse(commitLsn) % 64 === 0 && Number.isSafeInteger(makeFalse(commitLsn))) continue;
    replication.noteCommit(promisedEpoch, makeFalse(commitLsn));
    expect(replication.commitLsn).toBe(commitLsn);
  }
});

test.each<[string, Falsify]>([
  ['more applied than the log has', (body) => writeU53(body, GrantField.appliedLsn, 640_000)],
  ['applied between entries of its first epoch', (body) => add(body, GrantField.appliedLsn, 64)],
  ['applied where no entry can end', (body) => add(body, GrantField.appliedLsn, 8)],
  ['an end where no entry can end', (body) => add(body, GrantField.tailLsn, 8)],
  ['no end', (body) => writeU53(body, GrantField.tailLsn, 2 ** 60)],
  ['an end beyond its ring', (body) => add(body, GrantField.tailLsn, 2 ** 30)],
  ['a later epoch than its last run', (body) => add(body, GrantField.tailEpoch, 1)],
  ['the name of another life', (body) => add(body, GrantField.bootId, 1)],
  ['the name of another process', (body) => add(body, GrantField.processId, 1)],
  ['more runs than fit', (body) => body.fill(0xffffffff, GrantField.runCount, GrantField.runCount + 1)],
])('a grant with %s is none, and is taken when it is true', (_, falsify) => {
  const script = led();
  script.propose(0, 'x=1');
  script.run(50 * MS);
  // A suffix that nobody else has, of which the old leader's grant tells.
  script.partition([0], [1, 2]);
  for (let count = 0; count < 3; count++) script.propose(0, 'y=1', 1000);
  script.run(20 * MS);
  const mend = falsified(GRANT, falsify);
  let isCounted = false;
  try {
    script.runUntil('another leader', () => (script.cluster.leader()?.id ?? 0) !== 0);
    script.heal();
    const leader = script.runUntilLeader(1).replication;
    script.runUntil('replica 0 to grant', () => script.life(0).background.writer === 1);
    for (let count = 0; count < 3; count++) {
      script.propose(1, 'x+=1', 1000);
      script.run(100 * MS);
      isCounted ||= leader.peerPhase(0) === 'active';
    }
  } finally {
    mend();
  }
  expect(isCounted).toBe(false);
  script.runUntilConverged();
  expect([0, 1, 2].map((id) => [script.valueAt(id, 'x'), script.valueAt(id, 'y')])).toEqual([
    [4, 0],
    [4, 0],
    [4, 0],
  ]);
});

function add(body: Uint32Array, index: number, value: number): void {
  writeU53(body, index, readU53(body, index) + value);
}
