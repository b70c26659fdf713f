// The grant guard: a voter that trusts a live leader does not help anybody else to depose it. Looks at the grants as they
// happen, with what the voter itself knew and published at that moment.

import { formatEpoch } from '../../consensus/epoch.js';
import {
  BACKGROUND_BLOCK_OFFSET_WORDS,
  BACKGROUND_BLOCK_WORDS,
  MAIN_BLOCK_OFFSET_WORDS,
  MAIN_BLOCK_WORDS,
  MAX_REPLICAS,
} from '../../consensus/limits.js';
import { readU53, SealedBlockReader } from '../../consensus/sealed-block.js';
import { BackgroundField, MainField } from '../../consensus/status-layout.js';
import type { SimNode } from '../../fabric/sim/sim-node.js';
import type { SimLife } from '../sim-life.js';
import type { CheckContext, Checker } from './checker.js';

export class GrantGuardChecker implements Checker {
  readonly invariant = 'grant guard';
  /** What each replica has promised, and what it had promised before. */
  private readonly promises = new Map<SimNode, { before: number; now: number }>();
  private readonly background = new SealedBlockReader(BACKGROUND_BLOCK_WORDS);
  private readonly peerBackground = new SealedBlockReader(BACKGROUND_BLOCK_WORDS);
  private readonly main = new SealedBlockReader(MAIN_BLOCK_WORDS);

  constructor(private readonly context: CheckContext) {}

  /** The first step of every grant. */
  onFenceRaised(node: SimNode, epoch: number): void {
    this.promises.set(node, { before: this.promises.get(node)?.now ?? 0, now: epoch });
  }

  onCrashed(life: SimLife): void {
    this.promises.delete(life.node);
  }

  onEnabled(node: SimNode, candidate: number): void {
    const life = this.context.cluster().lives[node.id];
    if (life?.node !== node) return;
    const { before, now: epoch } = this.promises.get(node) ?? { before: 0, now: 0 };
    if (epoch === before) return; // the same candidate again, over a fresh link
    this.background.read(life.backgroundFabric.statusWords, 0);
    const trusted = this.background.body[BackgroundField.trustedMask] as number;
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      if (peer === candidate || peer === life.id || (trusted & (1 << peer)) === 0) continue;
      const view = life.exchange.peerViewOffset(peer) + MAIN_BLOCK_OFFSET_WORDS;
      this.main.reset();
      if (!this.main.read(life.exchange.words, view)) continue;
      const leaderEpoch = readU53(this.main.body, MainField.leaderEpoch);
      if (leaderEpoch === 0 || leaderEpoch < before) continue;
      // A leader whose replication plane stands still does not ask to be spared.
      this.peerBackground.reset();
      const isKnown = this.peerBackground.read(
        life.exchange.words,
        life.exchange.peerViewOffset(peer) + BACKGROUND_BLOCK_OFFSET_WORDS,
      );
      if (isKnown && readU53(this.peerBackground.body, BackgroundField.stalledEpoch) === leaderEpoch) continue;
      this.context.world.fail(
        this.invariant,
        `${life.name} granted epoch ${formatEpoch(epoch)} to replica ${candidate} while it trusted replica ${peer}, ` +
          `the leader of epoch ${formatEpoch(leaderEpoch)}`,
      );
    }
  }
}
