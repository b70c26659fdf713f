// What the nemesis counts as a change of leader, and what it takes a failover to have lasted.
import { EventEmitter } from 'node:events';
import { beforeEach, describe, expect, it } from 'vitest';
import type { ClusterEvents, ReplicaProcess } from '#lib/cli/demo/cluster.js';
import { LeaderLog } from '#lib/cli/nemesis/leader-log.js';

/** A cluster of which is only heard what its leaders say. */
class Heard extends EventEmitter<ClusterEvents> {
  readonly epoch = '3.7';

  serving(epoch: string, leaderAt_ns: number, at_ns: number): void {
    const nobody = {} as ReplicaProcess;
    this.emit('message', nobody, { type: 'serving', epoch, commitLsn: 0, leaderAt_ns, at_ns });
  }
}

let cluster: Heard;
let leaders: LeaderLog;

beforeEach(() => {
  cluster = new Heard();
  leaders = new LeaderLog(cluster);
});

describe('a change of leader', () => {
  it('is none when the leader with which the run began is heard of late', () => {
    cluster.serving('3.7', 100, 200);
    cluster.serving('2.9', 100, 200);
    expect(leaders.changes).toBe(0);
  });

  it('counts once for each epoch that served, also the first one after the beginning', () => {
    cluster.serving('4.1', 100, 200);
    cluster.serving('4.1', 100, 200);
    cluster.serving('4.2', 300, 400);
    expect(leaders.changes).toBe(2);
  });
});

describe('a failover', () => {
  it('lasts from the blow to the first command of a leader of a higher epoch', () => {
    leaders.struck('kill', '3.7', 1_000);
    cluster.serving('3.7', 500, 1_500);
    expect(leaders.failovers).toEqual([]);
    cluster.serving('4.1', 2_000, 4_000);
    cluster.serving('5.1', 6_000, 7_000);
    expect(leaders.failovers).toEqual([{ kind: 'kill', us: 3 }]);
  });

  it('is none of a leader that was elected before the blow, or after what was struck had healed', () => {
    leaders.struck('pause', '3.7', 1_000);
    cluster.serving('4.1', 900, 1_200);
    const healed = leaders.struck('pause', '4.1', 2_000);
    healed(3_000);
    cluster.serving('5.1', 3_500, 4_000);
    expect(leaders.failovers).toEqual([]);
  });

  it('is none when all replicas were struck', () => {
    leaders.struck('kill', '3.7', 1_000);
    leaders.forgetStrikes();
    cluster.serving('4.1', 2_000, 3_000);
    expect(leaders.failovers).toEqual([]);
    expect(leaders.changes).toBe(1);
  });
});
