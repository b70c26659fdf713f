// A simulated cluster that every safety checker watches, and whoever else wants to: random simulations and scripts are
// held to the same invariants.
import type { SimWorld } from '../fabric/sim/sim-world.js';
import { AtMostOnceChecker } from './checkers/at-most-once.js';
import type { CheckContext, Checker } from './checkers/checker.js';
import { DurabilityChecker } from './checkers/durability.js';
import { GrantGuardChecker } from './checkers/grant-guard.js';
import { LeaderCompletenessChecker } from './checkers/leader-completeness.js';
import { LogMatchingChecker } from './checkers/log-matching.js';
import { PromiseChecker } from './checkers/promises.js';
import { SingleWriterChecker } from './checkers/single-writer.js';
import { StateMachineSafetyChecker } from './checkers/state-machine-safety.js';
import { LogTree } from './log-tree.js';
import { SimCluster, type SimClusterObserver } from './sim-cluster.js';
import type { SimOptions } from './sim-options.js';

const EVENT_NAMES = [
  'onPlaced',
  'onRefused',
  'onAppended',
  'onFenceRaised',
  'onRevoked',
  'onEnabled',
  'onApplied',
  'onSnapshotInstalled',
  'onLeader',
  'onDeposed',
  'afterMain',
  'afterBackground',
  'onStarted',
  'onCrashed',
] as const;

/** One observer that passes every event to those who want it, in their order. */
export function combineObservers(observers: readonly Partial<SimClusterObserver>[]): SimClusterObserver {
  const combined: Record<string, (...event: unknown[]) => void> = {};
  for (const name of EVENT_NAMES) {
    const wanting = observers.filter((observer) => observer[name] !== undefined) as unknown as Record<
      string,
      (...event: unknown[]) => void
    >[];
    combined[name] = (...event) => {
      for (const observer of wanting) (observer[name] as (...event: unknown[]) => void).apply(observer, event);
    };
  }
  return combined as unknown as SimClusterObserver;
}

/** The cluster, not started yet. `observers` are told of each event before the checkers are. */
export function createCheckedCluster(
  world: SimWorld,
  options: SimOptions,
  observers: readonly (Checker | Partial<SimClusterObserver>)[],
): { cluster: SimCluster; atMostOnce: AtMostOnceChecker } {
  let cluster: SimCluster | undefined;
  // The cluster draws its id first, and the tree of entries is rooted in that.
  let tree: LogTree | undefined;
  const context: CheckContext = {
    world,
    get tree() {
      return tree as LogTree;
    },
    cluster: () => cluster as SimCluster,
  };
  const atMostOnce = new AtMostOnceChecker(context);
  cluster = new SimCluster(
    world,
    options,
    combineObservers([
      ...observers,
      new SingleWriterChecker(context),
      new PromiseChecker(context),
      new GrantGuardChecker(context),
      new LogMatchingChecker(context), // before those that look entries up
      new LeaderCompletenessChecker(context),
      new StateMachineSafetyChecker(context),
      new DurabilityChecker(context),
      atMostOnce,
    ]),
  );
  tree = new LogTree(cluster.genesis.clusterId);
  return { cluster, atMostOnce };
}
