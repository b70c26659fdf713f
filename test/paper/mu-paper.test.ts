// The claims of the Mu paper (Aguilera et al., Microsecond Consensus for Microsecond Applications, OSDI'20), one by one,
// on simulated clusters that a script leads. Each claim is followed by ways to break it in the code, under which it must
// fail: a test that cannot fail shows nothing. Sections are the paper's; where quorate differs from Mu on purpose the
// comment says how, and docs/PROTOCOL.md why.
import { describe, expect, test } from 'vitest';
import { EntryType, entryEpoch, entryType } from '#lib/consensus/entry.js';
import { FailureDetector } from '#lib/consensus/failure-detector.js';
import { SimLink } from '#lib/fabric/sim/sim-link.js';
import type { SimNode } from '#lib/fabric/sim/sim-node.js';
import { replace } from '#lib/testing/mutations.js';
import { SCRIPT_LATENCY_NS, ScriptedCluster, type ScriptedClusterRequest } from '#lib/testing/scripted-cluster.js';
import type { SimClusterObserver } from '#lib/testing/sim-cluster.js';
import type { SimLife } from '#lib/testing/sim-life.js';
import {
  applyUncommitted,
  commitByAll,
  commitByEntriesOnly,
  commitWhenApplied,
  detectorIsBlind,
  type Mutant,
  mutation,
  neverDropped,
  oneThreshold,
  slowMeansDead,
  stallUnnoticed,
  twoWritesPerEntry,
} from '../support/mutants.js';

const MS = 1e6;
/** What one packet and its answer take. */
const ROUND_TRIP_NS = 2 * SCRIPT_LATENCY_NS;

/** A claim, and what must make it fail, with the words in which it then fails. */
function claim(text: string, scenario: () => void, ...brokenBy: readonly (readonly [Mutant, RegExp])[]): void {
  test(text, scenario);
  test.each(brokenBy.map(([mutant, message]) => ({ mutant, message, name: mutant.name })))(
    `${text}: fails with $name`,
    ({ mutant, message }) => {
      const mend = mutant.install();
      try {
        expect(scenario).toThrow(message);
      } finally {
        mend();
      }
    },
  );
}

/** A cluster whose replica 0 leads and all others follow. */
function led(
  replicas: number,
  observer: Partial<SimClusterObserver> = {},
  adjust?: ScriptedClusterRequest['adjust'],
): ScriptedCluster {
  const script = new ScriptedCluster({ replicas, observers: [observer], ...(adjust && { adjust }) });
  script.cluster.startAll();
  script.runUntilLeader(0);
  script.runUntilConverged();
  script.run(200 * MS); // scores of the detector at their maximum
  expect(script.cluster.leader()?.id, 'replica 0 leads').toBe(0);
  return script;
}

/** Replicas that may write this log now. */
function writersOf(life: SimLife): number[] {
  return life.node.granted === null ? [] : [life.node.granted.peer];
}

interface Entry {
  readonly lsn: number;
  readonly type: number;
  readonly epoch: number;
}

/** Entries in a log from its beginning to an LSN. The ring must not have been recycled. */
function entriesOf(life: SimLife, endLsn: number): Entry[] {
  const words = new Uint32Array(life.node.log.buffer);
  const entries: Entry[] = [];
  for (let lsn = 0; lsn < endLsn; ) {
    const at = lsn / 4;
    entries.push({ lsn, type: entryType(words, at), epoch: entryEpoch(words, at) });
    lsn += Math.ceil((56 + (words[at + 4] as number)) / 64) * 64;
  }
  return entries;
}

function logBytesOf(life: SimLife, endLsn: number): string {
  return Buffer.from(life.node.log.subarray(0, endLsn)).toString('hex');
}

describe('4.1 and 5.2: one replica at a time may write a log', () => {
  claim(
    'a log is writable by its leader only, and by nobody between two leaders',
    () => {
      const writers = new Map<SimNode, number>();
      const timeline: string[] = [];
      const script = led(3, {
        onEnabled(node, peer) {
          expect(writers.get(node), `replica ${peer} is let in while nobody else may write`).toBeUndefined();
          writers.set(node, peer);
          if (node.id === 2) timeline.push(`let ${peer} in`);
        },
        onRevoked(node, peer) {
          expect(writers.get(node)).toBe(peer);
          writers.delete(node);
          if (node.id === 2) timeline.push(`shut ${peer} out`);
        },
      });
      // The followers' logs belong to the leader; nobody may write the leader's own.
      expect(script.cluster.lives.map((life) => writersOf(life as SimLife))).toEqual([[], [0], [0]]);
      const { node } = script.life(2);
      const before = node.granted;
      if (before === null) throw new Error('replica 2 let nobody in');
      expect(node.mayWrite(before.link, before.key)).toBe(true);

      script.hold(0, 'paused');
      script.runUntilLeader(1);
      expect(writersOf(script.life(1))).toEqual([]);
      expect(writersOf(script.life(2))).toEqual([1]);
      expect(node.mayWrite(before.link, before.key), 'the old leader may write no more').toBe(false);
      expect(timeline.slice(-2)).toEqual(['shut 0 out', 'let 1 in']);
    },
    [mutation('writer-not-revoked'), /is let in while nobody else may write|VIOLATION of single writer/],
    [mutation('promise-not-recorded'), /VIOLATION of promises never decrease/],
  );

  // Mu switches the queue pair's access flags and falls back to a restart of the queue pair. quorate takes the way that
  // the device makes synchronous (docs/PROTOCOL.md, "what drained means"), and always waits until nothing can land.
  claim(
    'once a permission is taken away no byte of an earlier WRITE lands',
    () => {
      let late = 0;
      let refused = 0;
      // Whether what is under way lands at the last moment, or is refused, is left to chance.
      for (const silenceMs of [50, 52, 54, 56, 58, 60]) {
        const revoked = new Set<number>();
        const script = led(3, {
          onRevoked: (node, peer) => void (peer === 0 && revoked.add(node.id)),
          onPlaced: (node, initiator) => void (initiator.id === 0 && revoked.has(node.id) && late++),
          onRefused: (node, initiator) => void (initiator.id === 0 && revoked.has(node.id) && refused++),
        });
        script.hold(0, 'background stalled'); // goes on writing, and does not learn that it was replaced
        script.run(silenceMs * MS);
        // A WRITE to each sets out while replica 0 still leads, and is on its way for 40 ms, over the change of leaders: it
        // lands before the revocation, or never.
        script.slowDown(4000);
        script.propose(0, 'x=9');
        script.run(0.1 * MS);
        script.slowDown(1);
        expect(writersOf(script.life(2))).toEqual([0]);
        script.run(200 * MS);
        expect(writersOf(script.life(2))).toEqual([1]);
      }
      expect(late).toBe(0);
      expect(refused, 'a WRITE arrived, and was refused').toBeGreaterThanOrEqual(1);
    },
    [mutation('grant-without-drain'), /VIOLATION of single writer/],
    [mutation('writer-not-revoked'), /VIOLATION of single writer/],
  );
});

describe("4.1: a stale leader's write", () => {
  claim(
    'fails, changes nothing, and ends its leadership',
    () => {
      const refused: number[] = [];
      const placed: number[] = [];
      const script = led(3, {
        onRefused: (node, initiator) => void (initiator.id === 0 && refused.push(node.id)),
        onPlaced: (node, initiator) => void (initiator.id === 0 && placed.push(node.id)),
      });
      // Its background plane stands still: no heartbeat, and no grant that could tell it of the other leader.
      script.hold(0, 'background stalled');
      script.runUntilLeader(1);
      const old = script.life(0).replication;
      expect(old.role).toBe('leader');
      const logs = [1, 2].map((id) => logBytesOf(script.life(id), 4096));
      placed.length = 0;
      const proposal = script.propose(0, 'x=9');
      script.run(5 * MS);
      expect(refused.sort(), 'both followers refused').toEqual([1, 2]);
      expect(placed).toEqual([]);
      expect([1, 2].map((id) => logBytesOf(script.life(id), 4096))).toEqual(logs);
      expect(old.role).toBe('follower');
      // It may still be in some log, for all that this replica knows.
      expect(proposal.outcome).toEqual({ kind: 'unknown' });

      const second = script.propose(1, 'x=1');
      script.runUntilAnswered();
      expect(second.outcome?.kind).toBe('applied');
      script.release(0);
      script.runUntilConverged();
      expect([0, 1, 2].map((id) => script.valueAt(id, 'x'))).toEqual([1, 1, 1]);
    },
    [mutation('writer-not-revoked'), /both followers refused|VIOLATION of single writer/],
    [mutation('skip-tail-repair'), /converge|VIOLATION|log matching/],
  );

  // In Mu the leader's own log is in its hands. Here it is fenced like any other: its replica grants it away, too.
  claim('does not reach its own log either, once that was granted to another', () => {
    let appendsAfter = 0;
    let isGranted = false;
    const script = led(3, {
      onEnabled: (node, peer) => {
        if (node.id === 0 && peer === 1) isGranted = true;
      },
      onAppended: (node) => {
        if (node.id === 0 && isGranted) appendsAfter++;
      },
    });
    script.hold(0, 'paused');
    script.runUntilLeader(1);
    const proposal = script.propose(0, 'x=9'); // waits in the socket
    script.release(0);
    script.hold(0, 'main stalled');
    script.runUntil('replica 0 grants its log to replica 1', () => isGranted);
    expect(script.life(0).replication.role, 'still believes to lead').toBe('leader');
    script.release(0);
    script.run(100 * MS);
    expect(appendsAfter).toBe(0);
    expect(proposal.outcome).toEqual({ kind: 'unknown' });
    script.runUntilConverged();
    expect(script.valueAt(0, 'x')).toBe(0);
  }, [mutation('append-not-fenced'), /VIOLATION of single writer|to be \+0/]);
});

describe('4.1: a takeover', () => {
  claim("takes the permission of a majority before it touches anybody's log", () => {
    let touched = 0;
    const script = led(5, {
      onAppended: (node) => void (node.id === 1 && touched++),
      onPlaced: (_, initiator) => void (initiator.id === 1 && touched++),
    });
    // Two voters that do not answer; for the detector of the candidate they live for a while yet.
    script.cluster.crash(0);
    script.runUntil('replica 1 stands for election', () => script.life(1).background.promised % 2 ** 20 === 2);
    script.hold(3, 'background stalled');
    script.hold(4, 'background stalled');
    script.runUntil('replica 2 grants', () => writersOf(script.life(2))[0] === 1);
    script.run(20 * MS);
    expect(touched, 'two of five are no majority').toBe(0);
    expect(script.life(1).replication.role).toBe('follower');
    script.release(3);
    script.runUntilLeader(1);
    expect(touched).toBeGreaterThan(0);
    expect([1, 2, 3].filter((id) => id === 1 || writersOf(script.life(id))[0] === 1)).toEqual([1, 2, 3]);
    // (differs from Mu) The majority suffices at every step: replica 4, which is stopped, was not waited for.
    expect(writersOf(script.life(4))).not.toEqual([1]);
  }, [mutation('elect-on-minority'), /two of five are no majority|VIOLATION of leader completeness/]);

  claim(
    'catches up to the best log of that majority before it proposes',
    () => {
      const script = led(3);
      script.cut(0, 1); // what follows reaches replica 2 only, which is not the one that will lead
      const proposal = script.propose(0, 'x=1');
      script.runUntil('the answer', () => proposal.outcome !== null);
      expect(proposal.outcome?.kind).toBe('applied');
      const wanted = script.life(0).replication.commitLsn;
      script.cluster.crash(0);
      expect(script.life(1).replication.tailLsn).toBeLessThan(wanted);
      const leader = script.runUntilLeader(1);
      expect(leader.replication.appliedLsn).toBeGreaterThanOrEqual(wanted);
      expect(script.valueAt(1, 'x'), 'what was answered is there').toBe(1);
    },
    [mutation('best-log-not-adopted'), /leader completeness|what was answered is there|VIOLATION/],
    [mutation('tail-not-published'), /leader completeness|what was answered is there|VIOLATION/],
  );

  // The check of Mu that a log's proposal number must be raised before values are adopted is here the noop of the new
  // epoch: entries of earlier epochs are never committed by themselves.
  claim('commits with an entry of its own epoch, which a majority holds', () => {
    let holders: number[] = [];
    const script = led(5, {
      onLeader(life, epoch) {
        if (life.id !== 1) return;
        const at = (life.replication.tailLsn - 64) / 4;
        holders = [1, 2, 3, 4].filter((id) => {
          const words = new Uint32Array(script.life(id).node.log.buffer);
          return entryEpoch(words, at) === epoch && entryType(words, at) === EntryType.noop;
        });
      },
    });
    script.propose(0, 'x=1');
    script.run(SCRIPT_LATENCY_NS * 1.5); // in all logs, and nobody knows
    script.cluster.crash(0);
    const candidate = script.life(1).replication;
    script.runUntil('replica 1 stands for election', () => script.life(1).background.promised % 2 ** 20 === 2);
    script.hold(4, 'background stalled');
    script.runUntil('the takeover to begin', () => candidate.role === 'takingOver');
    script.cut(1, 3); // the noop does not get there
    script.run(1 * MS);
    expect(candidate.role, 'all hold x=1, two of five the noop').toBe('takingOver');
    expect(script.valueAt(1, 'x')).toBe(0);
    script.release(4); // grants, and gets the noop
    const leader = script.runUntilLeader(1);
    expect(holders, 'replicas that hold the noop when it is committed').toEqual([1, 2, 4]);
    const entries = entriesOf(leader, leader.replication.tailLsn);
    expect(entries.at(-1)).toMatchObject({ type: EntryType.noop, epoch: leader.replication.leaderEpoch });
    expect(new Set(entries.map(({ epoch }) => epoch)).size, 'entries of both epochs').toBe(2);
    expect(script.valueAt(1, 'x')).toBe(1);
  }, [mutation('count-old-epoch-entries'), /VIOLATION of leader completeness|replicas that hold the noop/]);
});

describe('4.1 and 4.2: updating followers', () => {
  claim('a follower that missed entries gets them, byte by byte', () => {
    const script = led(3);
    script.partition([0, 1], [2]);
    for (let count = 1; count <= 10; count++) script.propose(0, `x+=${count}`);
    script.runUntilAnswered();
    script.run(200 * MS);
    expect(script.life(2).replication.tailLsn).toBeLessThan(script.life(0).replication.tailLsn);
    script.heal();
    script.runUntilConverged();
    const { tailLsn } = script.life(0).replication;
    expect(logBytesOf(script.life(2), tailLsn)).toBe(logBytesOf(script.life(0), tailLsn));
    expect(script.valueAt(2, 'x')).toBe(55);
  }, [mutation('broken-link-not-reported'), /converge/]);

  claim("the tail of a deposed leader is overwritten by the new leader's", () => {
    const script = led(3);
    script.partition([0], [1, 2]);
    const lost = script.propose(0, 'x=9');
    script.run(1 * MS);
    const { tailLsn } = script.life(0).replication;
    const stale = logBytesOf(script.life(0), tailLsn);
    script.runUntilLeader(1);
    script.propose(1, 'y=1');
    script.propose(1, 'y=2');
    script.runUntil('answers', () => script.valueAt(1, 'y') === 2);
    script.heal();
    script.runUntilConverged();
    expect(lost.outcome).toEqual({ kind: 'unknown' });
    expect(logBytesOf(script.life(0), tailLsn), 'the entry of the old leader is gone').not.toBe(stale);
    expect(logBytesOf(script.life(0), tailLsn)).toBe(logBytesOf(script.life(1), tailLsn));
    expect([0, 1, 2].map((id) => script.valueAt(id, 'x'))).toEqual([0, 0, 0]);
    expect(script.valueAt(0, 'y')).toBe(2);
  }, [mutation('skip-tail-repair'), /converge|VIOLATION/]);
});

describe('4.1: followers', () => {
  claim(
    'apply nothing that is not committed, though it is in their logs',
    () => {
      const script = led(3);
      const { appliedLsn } = script.life(1).replication;
      // WRITEs get through, their acknowledgements do not: the leader cannot know that a majority holds the entry.
      script.cut(1, 0);
      script.cut(2, 0);
      const proposal = script.propose(0, 'x=1');
      script.run(20 * MS);
      for (const id of [1, 2]) {
        const { replication } = script.life(id);
        expect(replication.tailLsn, 'the entry is in the log').toBeGreaterThan(appliedLsn);
        expect(replication.appliedLsn, `replica ${id} applied nothing`).toBe(appliedLsn);
        expect(script.valueAt(id, 'x')).toBe(0);
      }
      expect(proposal.outcome).toBeNull();
      expect(script.life(0).replication.appliedLsn).toBe(appliedLsn);
      // A majority holds it, so the next leader must keep it; what the old one told its client was: unknown.
      script.runUntilLeader(1);
      script.heal();
      script.runUntilConverged();
      expect(proposal.outcome).toEqual({ kind: 'unknown' });
      expect([0, 1, 2].map((id) => script.valueAt(id, 'x'))).toEqual([1, 1, 1]);
    },
    [applyUncommitted, /applied nothing|VIOLATION/],
    [mutation('answer-before-commit'), /applied|VIOLATION|null/],
    [mutation('commit-on-minority'), /applied|VIOLATION|null/],
  );

  // Mu marks the end of an entry with a canary byte, which needs bytes that are placed in order, and zeroes what it
  // recycles. Here a hash over the entry and all before it does both, in whatever order bytes are placed.
  claim('take no entry that is not there as a whole, whatever order its bytes are placed in, over several laps', () => {
    const lives = new Map<SimNode, SimLife>();
    const tails = new Map<SimLife, number>();
    const script = led(
      3,
      {
        onStarted: (life) => void lives.set(life.node, life),
        // Each piece that lands makes the follower look at once.
        onPlaced: (node) => lives.get(node)?.postToMain(() => {}),
        afterMain: (life) => void tails.set(life, life.replication.tailLsn),
      },
      (options) => ({
        ...options,
        network: { ...options.network, tearProbability: 1, tearOutOfOrder: true, tearGapMax_ns: 0.5 * MS },
      }),
    );
    let sum = 0;
    for (let count = 1; count <= 60; count++) {
      script.propose(0, `x+=${count}`, 4000);
      sum += count;
      script.run(0.2 * MS);
      const { tailLsn } = script.life(0).replication;
      for (const id of [1, 2]) {
        const mine = Buffer.from(script.life(id).node.log.buffer);
        const leaders = Buffer.from(script.life(0).node.log.buffer);
        const isWhole = mine.equals(leaders);
        if (!isWhole) expect(tails.get(script.life(id)), 'half an entry is none').toBeLessThan(tailLsn);
      }
      script.run(30 * MS);
      expect(script.proposals.at(-1)?.outcome?.kind).toBe('applied');
    }
    script.runUntilConverged();
    expect(script.life(0).replication.tailLsn).toBeGreaterThan(3 * script.options.logBytes);
    expect([0, 1, 2].map((id) => script.valueAt(id, 'x'))).toEqual([sum, sum, sum]);
  }, [mutation('ignore-chain-hash'), /half an entry is none|VIOLATION/]);

  // (differs from Mu) There a follower commits an entry when the next one arrives. Here it also READs how far the leader
  // has committed.
  claim('apply the last entry without waiting for another', () => {
    const script = led(3);
    const proposal = script.propose(0, 'x=7');
    script.runUntilAnswered();
    const { tailLsn } = script.life(0).replication;
    script.runUntil(
      'followers to apply the last entry',
      () => [1, 2].every((id) => script.valueAt(id, 'x') === 7),
      1e9,
    );
    expect(proposal.outcome?.kind).toBe('applied');
    expect(script.life(0).replication.tailLsn, 'nothing was appended meanwhile').toBe(tailLsn);
  }, [commitByEntriesOnly, /followers to apply the last entry|a leader|converge/]);
});

describe('4.2 and 7: the common case', () => {
  /** Counts what is posted on log links while `run` runs. */
  function countPosted(run: () => void): { writes: string[]; reads: string[] } {
    const writes: string[] = [];
    const reads: string[] = [];
    const mends = [
      replace(
        SimLink.prototype,
        'postWrite',
        (original) =>
          function (...parameters: unknown[]) {
            if (this.kind === 'log')
              writes.push(`${this.initiator.id} to ${this.responder.id}: ${parameters[5]} bytes`);
            return original.apply(this, parameters);
          },
      ),
      replace(
        SimLink.prototype,
        'postRead',
        (original) =>
          function (...parameters: unknown[]) {
            if (this.kind === 'log') reads.push(`${this.initiator.id} to ${this.responder.id}`);
            return original.apply(this, parameters);
          },
      ),
    ];
    try {
      run();
    } finally {
      for (const mend of mends) mend();
    }
    return { writes: writes.sort(), reads };
  }

  claim(
    'an entry costs one WRITE per follower, no READ, and one round trip (no prepare phase)',
    () => {
      const script = led(5);
      for (let count = 0; count < 3; count++) {
        const { writes, reads } = countPosted(() => {
          const proposal = script.propose(0, `x=${count}`);
          script.runUntilAnswered();
          expect(proposal.outcome?.kind).toBe('applied');
          expect(proposal.settled_ns - proposal.proposed_ns).toBe(ROUND_TRIP_NS);
          script.run(50 * MS);
        });
        expect(writes).toEqual(['0 to 1: 128 bytes', '0 to 2: 128 bytes', '0 to 3: 128 bytes', '0 to 4: 128 bytes']);
        expect(reads).toEqual([]);
      }
    },
    [twoWritesPerEntry, /to deeply equal/],
    [commitWhenApplied, /answers to all proposals/],
  );

  claim('entries that are proposed together share the WRITE', () => {
    const script = led(3);
    const { writes } = countPosted(() => {
      for (let count = 0; count < 8; count++) script.propose(0, `x=${count}`);
      script.runUntilAnswered();
    });
    expect(writes).toEqual([`0 to 1: ${8 * 128} bytes`, `0 to 2: ${8 * 128} bytes`]);
  }, [twoWritesPerEntry, /to deeply equal/]);

  claim('a commit takes no step of any follower: they may all be stopped', () => {
    const script = led(3);
    script.hold(1, 'paused');
    script.hold(2, 'paused');
    const proposal = script.propose(0, 'x=1');
    script.runUntil('the answer', () => proposal.outcome !== null, 30 * MS);
    expect(proposal.outcome?.kind).toBe('applied');
    expect(proposal.settled_ns - proposal.proposed_ns).toBe(ROUND_TRIP_NS);
    expect(script.valueAt(1, 'x'), 'nothing ran there').toBe(0);
    script.release(1);
    script.release(2);
    script.runUntilConverged();
    expect(script.valueAt(1, 'x')).toBe(1);
  }, [commitWhenApplied, /the answer/]);

  claim('a commit does not wait for a follower that a majority can do without', () => {
    const script = led(3);
    script.cut(0, 2);
    const proposal = script.propose(0, 'x=1');
    script.runUntilAnswered();
    expect(proposal.outcome?.kind).toBe('applied');
    expect(proposal.settled_ns - proposal.proposed_ns).toBe(ROUND_TRIP_NS);
  }, [commitByAll, /answers to all proposals|to be/]);
});

describe('5.1: the failure detector', () => {
  const MU = { scoreMax: 15, failBelow: 2, recoverAbove: 6 };

  // The thresholds of the paper are the defaults; a counter that is two ahead earns two points here, since ticks are not
  // READs (see failure-detector.ts).
  test('scores are bounded, and two thresholds give hysteresis', () => {
    const detector = new FailureDetector(MU, 2);
    let counter = 0;
    let beats = 0;
    while (!detector.trusts(1)) {
      detector.observe(1, ++counter);
      beats++;
    }
    expect(beats).toBe(MU.recoverAbove + 1);
    for (let count = 0; count < 100; count++) detector.observe(1, ++counter);
    let misses = 0;
    while (detector.trusts(1)) {
      detector.observe(1, counter);
      misses++;
    }
    expect(misses, 'from the maximum to below the threshold').toBe(MU.scoreMax - MU.failBelow + 1);
    for (let count = 0; count < MU.recoverAbove - (MU.failBelow - 1); count++) {
      detector.observe(1, ++counter);
      expect(detector.trusts(1)).toBe(false);
    }
    detector.observe(1, ++counter);
    expect(detector.trusts(1)).toBe(true);
  });

  claim('a replica that misses a few beats is not replaced', () => {
    const script = led(3);
    script.hold(0, 'paused');
    script.run(50 * MS); // ten beats of fourteen
    script.release(0);
    script.run(500 * MS);
    expect(script.cluster.leader()?.id, 'the leader stayed').toBe(0);
    expect(script.life(1).background.promised, 'no other epoch began').toBe(script.life(0).replication.leaderEpoch);
  }, [oneThreshold, /the leader stayed|no other epoch began/]);

  claim('a slow network is not taken for a failure, since counters go on', () => {
    const script = led(3);
    script.cluster.network.latencyFactor = 300; // a READ takes longer than a beat
    script.run(2000 * MS);
    script.cluster.network.latencyFactor = 1;
    script.run(100 * MS);
    expect(script.cluster.leader()?.id, 'the leader stayed').toBe(0);
    expect(script.life(1).background.promised, 'no other epoch began').toBe(script.life(0).replication.leaderEpoch);
  }, [slowMeansDead, /the leader stayed|no other epoch began|to be/]);

  claim('a stopped process is detected, though its memory can be read all the time', () => {
    const script = led(3);
    script.hold(0, 'paused');
    const link = script.life(1).backgroundFabric.probeTo(0);
    script.runUntilLeader(1);
    expect(script.life(1).backgroundFabric.probeTo(0), 'no READ failed').toBe(link);
    expect(script.life(1).replication.trustedMask & 1).toBe(0);
    expect(script.propose(1, 'x=1').outcome).toBeNull();
    script.run(10 * MS);
    expect(script.proposals[0]?.outcome?.kind).toBe('applied');
  }, [detectorIsBlind, /replica 1 leads/]);

  // (differs from Mu) In Mu the live replica with the lowest id leads, so one that comes back takes over again. Here
  // leadership is sticky, and a voter does not help to depose a leader that it trusts.
  claim('a replica with a lower id that comes back does not depose the leader', () => {
    const script = led(3);
    script.hold(0, 'paused');
    const { leaderEpoch } = script.runUntilLeader(1).replication;
    script.release(0);
    script.runUntilConverged();
    script.run(1000 * MS);
    expect(script.cluster.leader()?.id, 'the leader stayed').toBe(1);
    expect(script.life(1).replication.leaderEpoch).toBe(leaderEpoch);
  }, [mutation('no-grant-guard'), /the leader stayed|VIOLATION of grant guard/]);

  // (differs from Mu) Mu's leader stops its heartbeat when its replication thread is stuck, so that both share one fate (5.1).
  // Here the heartbeat goes on, since the replica still votes, and says that the leader is stuck.
  claim('a leader whose replication plane is stuck is replaced, and finds itself deposed when it goes on', () => {
    const script = led(3);
    script.hold(0, 'main stalled');
    const { leaderEpoch } = script.runUntilLeader(1).replication;
    expect(script.life(1).replication.trustedMask & 1, 'its heartbeat goes on').toBe(1);
    expect(script.life(0).background.promised, 'it votes').toBe(leaderEpoch);
    script.release(0);
    script.runUntilConverged();
    expect(script.life(0).replication.role).toBe('follower');
    expect(script.cluster.leader()?.id).toBe(1);
  }, [stallUnnoticed, /replica 1 leads/]);
});

describe('5.3: recycling of the log', () => {
  claim(
    'never reuses what a replica that is being written has not applied; the proposer is told to wait',
    () => {
      const overwritten: string[] = [];
      const lives = new Map<SimNode, SimLife>();
      const script = led(3, {
        onStarted: (life) => void lives.set(life.node, life),
        onPlaced(node, _initiator, offset, lengthBytes) {
          const life = lives.get(node) as SimLife;
          const words = new Uint32Array(node.log.buffer);
          const lsn = (words[offset / 4 + 1] as number) * 2 ** 32 + (words[offset / 4] as number);
          if (lsn + lengthBytes - node.log.length > life.replication.appliedLsn) {
            overwritten.push(`replica ${node.id}: LSN ${lsn} over what follows ${life.replication.appliedLsn}`);
          }
        },
      });
      const { logBytes } = script.options;
      let isRefused = false;
      for (let lap = 0; lap < 4; lap++) {
        script.hold(2, 'main stalled'); // its log is written, and it applies nothing
        for (let count = 0; count < 40; count++) {
          const proposal = script.propose(0, `x+=1`, 2000);
          script.run(5 * MS);
          if (proposal.outcome?.kind === 'full') isRefused = true;
        }
        expect(overwritten).toEqual([]);
        script.release(2);
        script.run(100 * MS);
      }
      expect(isRefused, 'somebody was told that the log is full').toBe(true);
      expect(script.life(0).replication.tailLsn).toBeGreaterThan(3 * logBytes);
      script.runUntilConverged();
      expect(script.valueAt(2, 'x')).toBe(script.proposals.filter(({ outcome }) => outcome?.kind === 'applied').length);
    },
    [mutation('recycle-too-early'), /ring recycling|assertion/],
    [mutation('recycle-unchecked'), /over what follows|VIOLATION/],
  );

  // (differs from Mu) There recycling waits for the slowest of the live followers. Here one that blocks it for long is
  // left behind, if the rest is a majority, and comes back with a snapshot.
  claim('goes on without a follower that blocks it for long, which comes back with a snapshot', () => {
    let snapshots = 0;
    const script = led(3, { onSnapshotInstalled: () => void snapshots++ });
    script.hold(2, 'main stalled');
    for (let count = 0; count < 120; count++) {
      script.propose(0, 'x+=1', 2000);
      script.run(10 * MS);
    }
    expect(script.life(0).replication.peerPhase(2)).not.toBe('active');
    expect(script.life(0).replication.tailLsn).toBeGreaterThan(
      script.options.logBytes + script.life(2).replication.appliedLsn,
    );
    expect(snapshots).toBe(0);
    script.release(2);
    script.runUntilConverged();
    expect(snapshots, 'snapshots installed').toBeGreaterThan(0);
    expect(script.valueAt(2, 'x')).toBe(script.valueAt(0, 'x'));
  }, [neverDropped, /not to be 'active'/]);
});

describe('5.4: replicas that come and go', () => {
  // (differs from Mu) A process that lost its memory is not the replica that it was, whatever its id.
  claim('a replica that lost its memory does not vote as the one it was', () => {
    const script = led(3);
    script.cut(0, 1);
    script.propose(0, 'x=1'); // held by replicas 0 and 2 alone
    script.run(1 * MS);
    expect(script.proposals[0]?.outcome?.kind).toBe('applied');
    script.cluster.crash(2);
    script.cut(1, 0);
    script.cut(0, 2);
    script.cut(2, 0);
    script.cluster.start(2);
    script.run(3000 * MS);
    // Two of three processes run and see each other, and hold nothing of what was answered.
    expect(
      script.cluster.lives.map((life) => life?.replication.role),
      'nobody takes over',
    ).not.toContain('takingOver');
    expect([1, 2].map((id) => script.life(id).replication.role)).toEqual(['follower', 'follower']);
    script.heal();
    script.runUntilConverged();
    expect([0, 1, 2].map((id) => script.valueAt(id, 'x'))).toEqual([1, 1, 1]);
    const { voters, version } = script.life(0).replication.configuration;
    expect(version).toBe(3); // without the old life, then with the new one
    expect(voters.map(({ id, incarnation }) => [id, incarnation])).toEqual([
      [0, 1],
      [1, 2],
      [2, 4],
    ]);
  }, [mutation('old-life-counts'), /nobody takes over|VIOLATION|follower/]);
});
