// A transfer may bring a voter the state of a later leader than the one it has promised, and that state may end between
// entries of an *earlier* epoch than this one's: a suffix that the later leader found and adopted. Nothing in the place
// tells of the later leader then. A candidate that did not see the suffix must give up, and not take it for a broken rule.
//
//   replicas 0 1        hold the suffix of epoch 1, which 0 wrote when it was cut off from the others
//   replica 2           the candidate, with the permission of 3 5 6, and a noop or two in front that nobody else has
//   replicas 0 1 3 5    elect the later leader, which adopts the suffix
//   replica 4           has promised nothing lately, and gets a snapshot of what 3 has applied of the suffix
import { describe, expect, test } from 'vitest';
import type { LeaderView } from '#lib/consensus/membership.js';
import type { ReplicationHost } from '#lib/consensus/replication-host.js';
import { ScriptedCluster } from '#lib/testing/scripted-cluster.js';
import type { SimLife } from '#lib/testing/sim-life.js';
import { snapshotsUnbelievable, under } from '../support/mutants.js';

const MS = 1e6;
/** Of the suffix: where it begins, and the size of its entries. */
const SUFFIX_LSN = 192;
const ENTRY_BYTES = 128;

function hostOf(life: SimLife): ReplicationHost {
  return (life.replication as unknown as { host: ReplicationHost }).host;
}

class Story {
  readonly script = new ScriptedCluster({
    replicas: 7,
    adjust: (options) => ({ ...options, applyEntriesMax: 1, applyTimeMax_ns: 2 * MS }),
  });
  readonly candidate: SimLife;

  constructor() {
    const { script } = this;
    script.cluster.startAll();
    script.runUntilLeader(0);
    script.propose(0, 'x=1');
    script.runUntilAnswered();
    script.run(50 * MS);
    this.candidate = script.life(2);
    expect(this.candidate.replication.tailLsn).toBe(SUFFIX_LSN);
  }

  private cutBoth(some: readonly number[], others: readonly number[]): void {
    for (const one of some) {
      for (const other of others) {
        this.script.cut(one, other);
        this.script.cut(other, one);
      }
    }
  }

  /** Replicas 2 3 4 5 6 without 0 and 1; 3, 5 and 6 hear of replica 2 alone, so that nobody else can lead. */
  private divide(): void {
    this.script.heal();
    this.cutBoth([0, 1], [2, 3, 4, 5, 6]);
    this.cutBoth([3], [5, 6]);
    this.cutBoth([5], [6]);
  }

  private reachesItsVoters(): boolean {
    const { trustedMask, operationsInFlight, view } = this.candidate.replication as unknown as {
      trustedMask: number;
      operationsInFlight: number;
      view: LeaderView;
    };
    const reaches = (id: number): boolean => (trustedMask & (1 << id)) !== 0 && view.linkedLife(id) !== 0;
    return operationsInFlight === 0 && [3, 5, 6].every(reaches);
  }

  /** Replica 2 has the permission of 3, 5 and 6, and its main thread stands still before it hears of it. */
  private stand(): void {
    const { script, candidate } = this;
    this.divide();
    script.runUntil('replica 2 to reach its voters', () => this.reachesItsVoters());
    script.hold(2, 'main stalled');
    const before = candidate.background.promised;
    script.runUntil('replica 2 to have permission', () => {
      const { promised } = candidate.background;
      return promised > before && [3, 5, 6].every((id) => script.life(id).background.promised === promised);
    });
    script.run(0.03 * MS);
  }

  /** Returns what came of it at replica 2. */
  tell(ownNoops: number, snapshotLsn: number): string {
    const { script, candidate } = this;
    script.hold(4, 'background stalled');
    this.cutBoth([0, 1], [2, 3, 4, 5, 6]);
    for (let count = 0; count < 30; count++) script.propose(0, 'y=1');
    script.run(5 * MS);
    for (let count = 0; count < ownNoops; count++) {
      this.stand();
      for (const id of [3, 5, 6]) script.cut(2, id); // its noop gets nowhere
      script.release(2);
      script.runUntil('replica 2 to take over', () => candidate.replication.role === 'takingOver');
      script.runUntil('replica 2 to give up', () => candidate.replication.role === 'follower');
    }
    this.stand();

    const receiver = script.life(4);
    let isGiven = false;
    const donor = this.script.life(3);
    const donorHost = hostOf(donor);
    const { applyCommand } = donorHost;
    donorHost.applyCommand = (...entry) => {
      applyCommand.apply(donorHost, entry);
      const { position, configuration } = donor.replication.snapshotPlace;
      if (position.lsn !== snapshotLsn) return;
      isGiven = true;
      expect(position.epoch).toBeLessThan(candidate.background.promised);
      const state = donor.state.snapshot();
      receiver.postToMain(() => receiver.installSnapshot(position, configuration, state));
    };
    script.heal();
    this.cutBoth([2], [0, 1, 3, 5]);
    this.cutBoth([0, 1, 5], [4, 6]);
    script.runUntil('replica 3 to apply a part of the suffix', () => isGiven);
    script.run(0.1 * MS);
    script.release(4);
    script.runUntil(
      'replica 4 to let replica 2 write',
      () => receiver.background.promised === candidate.background.promised,
    );
    script.run(3 * MS);

    let deposed = '';
    const host = hostOf(candidate);
    const { onDeposed } = host;
    host.onDeposed = (epoch, reason) => {
      deposed ||= reason;
      onDeposed.call(host, epoch, reason);
    };
    script.release(2);
    try {
      script.run(10 * MS);
    } catch (error) {
      return String(error);
    }
    script.heal();
    script.runUntilConverged();
    return deposed;
  }
}

describe('a candidate gives up that meets a snapshot of a later leader between entries of an earlier epoch', () => {
  test('behind the end of its log', () => {
    const lsn = SUFFIX_LSN + 3 * ENTRY_BYTES;
    expect(new Story().tell(1, lsn)).toBe(`replica 4 has a snapshot up to LSN ${lsn}, where this log does not lead`);
    expect(under(snapshotsUnbelievable, () => new Story().tell(1, lsn))).toContain('leader completeness');
  });

  test('at the very end of its log', () => {
    const lsn = SUFFIX_LSN + ENTRY_BYTES;
    expect(new Story().tell(2, lsn)).toBe(`replica 4 has a snapshot up to LSN ${lsn}, where this log does not lead`);
    expect(under(snapshotsUnbelievable, () => new Story().tell(2, lsn))).toContain('log matching');
  });
});
