// Invariant 4: an entry committed in an epoch is in the log of every later leader. A commit is what a leader declares;
// a later leader's log is what it had appended when it wrote the first entry of its own epoch. Both directions are
// looked at, since an old leader may learn late that it had committed. And what makes it hold is looked at, too: a leader
// commits up to an entry of its own epoch, never earlier ones by themselves.
import { formatEpoch } from '../../consensus/epoch.js';
import type { SimNode } from '../../fabric/sim/sim-node.js';
import { ancestorAt, type LogNode } from '../log-tree.js';
import type { SimLife } from '../sim-life.js';
import type { CheckContext, Checker } from './checker.js';

export class LeaderCompletenessChecker implements Checker {
  readonly invariant = 'leader completeness';
  /** Furthest entry that the leader of an epoch declared committed. */
  private readonly committed = new Map<number, LogNode>();
  /** First entry that a leader appended in its epoch. */
  private readonly beginnings = new Map<number, LogNode>();

  constructor(private readonly context: CheckContext) {}

  onAppended(node: SimNode, epoch: number, logOffset: number): void {
    if (this.beginnings.has(epoch)) return;
    // The record of this append was made by the log matching checker, which is told first.
    const words = new Uint32Array(node.log.buffer);
    const at = logOffset >>> 2;
    const entryEpoch = (words[at + 3] as number) * 4294967296 + (words[at + 2] as number);
    if (entryEpoch !== epoch) return; // adopted from another log: the takeover is not complete
    const lsn = (words[at + 1] as number) * 4294967296 + (words[at] as number);
    const sizeBytes = Math.ceil((56 + (words[at + 4] as number)) / 64) * 64;
    const first = this.context.tree.find(lsn + sizeBytes, words[at + 8] as number, words[at + 9] as number);
    if (first === undefined) return; // reported there
    this.beginnings.set(epoch, first);
    for (const [earlier, commit] of this.committed) {
      if (earlier < epoch) this.compare(commit, earlier, first, epoch);
    }
  }

  afterMain(life: SimLife): void {
    const epoch = life.replication.leaderEpoch;
    if (epoch === 0) return;
    const { commitLsn } = life.replication;
    if (!this.context.tree.hasBoundaryOf(commitLsn, epoch)) {
      const text = `${life.name} leads in epoch ${formatEpoch(epoch)} and committed up to LSN ${commitLsn}`;
      this.context.world.fail(this.invariant, `${text}, where no entry of its epoch ends`);
    }
    const position = life.replication.appliedPosition;
    const known = this.committed.get(epoch);
    if (known !== undefined && known.endLsn >= position.lsn) return;
    const commit = this.context.tree.find(position.lsn, position.hashLow, position.hashHigh);
    if (commit === undefined) return; // reported by the state machine safety checker
    this.committed.set(epoch, commit);
    for (const [later, first] of this.beginnings) {
      if (later > epoch) this.compare(commit, epoch, first, later);
    }
  }

  private compare(commit: LogNode, epoch: number, first: LogNode, later: number): void {
    if (ancestorAt(first, commit.endLsn) === commit) return;
    this.context.world.fail(
      this.invariant,
      `LSN ${commit.startLsn} was committed in epoch ${formatEpoch(epoch)}; the log of the leader of epoch ` +
        `${formatEpoch(later)}, which begins at ${first.startLsn}, does not hold it`,
    );
  }
}
