// What every safety checker is: an observer of a simulated cluster that reports the first breach of its invariant to
// the world, which ends the run. Checkers only look: they draw no randomness and change nothing, so that a run is the
// same with and without them.
import type { SimWorld } from '../../fabric/sim/sim-world.js';
import type { LogTree } from '../log-tree.js';
import type { SimCluster, SimClusterObserver } from '../sim-cluster.js';

export interface CheckContext {
  readonly world: SimWorld;
  readonly tree: LogTree;
  readonly cluster: () => SimCluster;
}

export interface Checker extends Partial<SimClusterObserver> {
  readonly invariant: string;
}
