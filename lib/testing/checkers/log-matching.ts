// Invariant 3: the same LSN and epoch at two replicas implies the same bytes up to there. Every entry is recorded as its
// leader appended it (log-tree.ts); here whatever a replica's log holds and validates must be one of those, behind the
// same predecessor. Looked at where it matters most: when a replica has just granted, and when one has just been elected,
// and for all replicas now and then.

import { type ChainPosition, entryEpoch, validateEntry, validHashHigh, validHashLow } from '../../consensus/entry.js';
import type { SimNode } from '../../fabric/sim/sim-node.js';
import type { LogNode } from '../log-tree.js';
import type { SimLife } from '../sim-life.js';
import type { CheckContext, Checker } from './checker.js';

/** Main runs of a replica between two looks at its whole log. */
const LOOK_EVERY = 64;

export class LogMatchingChecker implements Checker {
  readonly invariant = 'log matching';
  private readonly runs = new Map<SimLife, number>();

  constructor(private readonly context: CheckContext) {}

  onAppended(node: SimNode, epoch: number, logOffset: number, lengthBytes: number): void {
    const words = new Uint32Array(node.log.buffer);
    const result = this.context.tree.appended(words, logOffset, lengthBytes, epoch);
    if (typeof result === 'string') this.context.world.fail(this.invariant, `replica ${node.id}: ${result}`);
  }

  onEnabled(node: SimNode): void {
    const life = this.context.cluster().lives[node.id];
    if (life?.node === node) this.look(life);
  }

  onLeader(life: SimLife): void {
    this.look(life);
  }

  onCrashed(life: SimLife): void {
    this.runs.delete(life);
  }

  afterMain(life: SimLife): void {
    const runs = (this.runs.get(life) ?? 0) + 1;
    this.runs.set(life, runs);
    if (runs % LOOK_EVERY === 0) this.look(life);
  }

  /** Everything behind the applied position that validates must have been appended by a leader. */
  look(life: SimLife): void {
    const { tree, world } = this.context;
    const words = life.replicationFabric.logWords;
    const capacityBytes = words.length * 4;
    const position = life.replication.appliedPosition;
    const walk: ChainPosition = { ...position };
    const limitLsn = position.lsn + capacityBytes;
    // Where the walk stands in the tree; undefined if it does not know.
    let at: LogNode | null | undefined =
      position.lsn === 0 ? null : tree.find(position.lsn, position.hashLow, position.hashHigh);
    while (walk.lsn < limitLsn) {
      const offset = walk.lsn % capacityBytes;
      // An entry that is word for word what a leader appended behind the same predecessor needs no hashing.
      const same = at === undefined ? null : tree.follower(words, offset >>> 2, at);
      if (same !== null && offset + same.endLsn - same.startLsn <= capacityBytes) {
        at = same;
        walk.lsn = same.endLsn;
        walk.epoch = same.epoch;
        walk.hashLow = same.hashLow;
        walk.hashHigh = same.hashHigh;
        continue;
      }
      const size = validateEntry(words, offset >>> 2, capacityBytes - offset, walk);
      if (size === 0) return;
      const lsn = walk.lsn;
      walk.epoch = entryEpoch(words, offset >>> 2);
      walk.lsn += size;
      walk.hashLow = validHashLow;
      walk.hashHigh = validHashHigh;
      const node = tree.find(walk.lsn, walk.hashLow, walk.hashHigh);
      if (node === undefined || node.epoch !== walk.epoch || node.startLsn !== lsn) {
        world.fail(this.invariant, `${life.name} holds a valid entry at LSN ${lsn} that no leader appended`);
        return;
      }
      at = node;
    }
  }
}
