// Invariant 12: what forcing a new cluster from a survivor promises. It loses only what no survivor held: whatever any of them held of what
// was committed in the old cluster is in the new one, which takes all of its survivor's log. And the two cannot be confused:
// another id, and epochs above all that were ever promised in the old one.
import type { ChainPosition } from '../../consensus/entry.js';
import { EPOCH_NONE, formatEpoch } from '../../consensus/epoch.js';
import type { SimNode } from '../../fabric/sim/sim-node.js';
import { ancestorAt, type LogNode } from '../log-tree.js';
import type { SimFork } from '../sim-cluster.js';
import type { SimLife } from '../sim-life.js';
import type { CheckContext, Checker } from './checker.js';

/** What a survivor's log held when it was asked. */
export interface HeldLog {
  readonly name: string;
  readonly tip: LogNode | null;
}

export class NewClusterChecker implements Checker {
  readonly invariant = 'new cluster';
  private highestEpoch = 0;

  constructor(
    private readonly context: CheckContext,
    /** That of the cluster that this one is forked off. */
    private readonly old: NewClusterChecker | null,
  ) {}

  private fail(text: string): void {
    this.context.world.fail(this.invariant, text);
  }

  onFenceRaised(_node: SimNode, epoch: number): void {
    this.highestEpoch = Math.max(this.highestEpoch, epoch);
  }

  /** What the old cluster's voters promised is no vote in this one. */
  onStarted(life: SimLife): void {
    const { promised } = life.background;
    if (this.old === null || promised === EPOCH_NONE || promised > this.old.highestEpoch) return;
    this.fail(
      `${life.name} starts with a promise of epoch ${formatEpoch(promised)}, which was made in the old cluster`,
    );
  }

  onLeader(life: SimLife, epoch: number): void {
    const { old } = this;
    if (old === null || epoch > old.highestEpoch) return;
    this.fail(
      `${life.name} leads the new cluster in epoch ${formatEpoch(epoch)}, and ${formatEpoch(old.highestEpoch)} was promised in the old one`,
    );
  }

  /** The last entry that the log of a replica holds; null if it holds none. */
  held(life: SimLife): HeldLog {
    const { tree } = this.context;
    const { lsn, hashLow, hashHigh } = life.replication.appliedPosition;
    const applied = lsn === 0 ? null : (tree.find(lsn, hashLow, hashHigh) ?? null);
    const { logWords } = life.replicationFabric;
    return { name: life.name, tip: tree.walk(logWords, logWords.length * 4, applied).at(-1) ?? applied };
  }

  /**
   * The new cluster begins where the old log ended at `end`, that of the survivor which was chosen of all. `committed`: the
   * last entry that any replica had applied before. Returns the last entry of the old log that the new cluster has.
   */
  check(
    fork: SimFork,
    end: ChainPosition,
    chosen: HeldLog,
    survivors: readonly HeldLog[],
    committed: LogNode | null,
  ): LogNode | null {
    const { tree, cluster } = this.context;
    const tip = tree.find(end.lsn, end.hashLow, end.hashHigh);
    if (tip === undefined) {
      this.fail(`the new cluster begins at LSN ${end.lsn}, with a chain hash that no leader's log has there`);
      return null;
    }
    if (fork.genesis.clusterId === cluster().genesis.clusterId) this.fail('the new cluster has the id of the old one');
    if (ancestorAt(tip, chosen.tip?.endLsn ?? 0) !== chosen.tip) {
      this.fail(
        `the log of ${chosen.name} went to LSN ${chosen.tip?.endLsn}; the new cluster has it up to ${tip.endLsn}`,
      );
    }
    for (const { name, tip: held } of survivors) {
      const kept = lastShared(held, committed);
      if (kept === null || ancestorAt(tip, kept.endLsn) === kept) continue;
      this.fail(
        `${name} held LSN ${kept.startLsn}, which was committed; the new cluster, up to ${tip.endLsn}, does not`,
      );
    }
    return tip;
  }
}

/** The last entry of the first log that is in the second one, too. */
function lastShared(one: LogNode | null, other: LogNode | null): LogNode | null {
  let node = ancestorAt(one, other?.endLsn ?? 0);
  while (node !== null && ancestorAt(other, node.endLsn) !== node) node = node.parent;
  return node;
}
