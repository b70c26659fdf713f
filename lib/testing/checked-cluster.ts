// A simulated cluster that every safety checker watches, and whoever else wants to: random simulations and scripts are
// held to the same invariants.
import type { SimWorld } from '../fabric/sim/sim-world.js';
import { AtMostOnceChecker } from './checkers/at-most-once.js';
import type { CheckContext, Checker } from './checkers/checker.js';
import { ConfigurationChecker } from './checkers/configurations.js';
import { DurabilityChecker } from './checkers/durability.js';
import { GrantGuardChecker } from './checkers/grant-guard.js';
import { LeaderCompletenessChecker } from './checkers/leader-completeness.js';
import { LeaseExclusivityChecker } from './checkers/lease-exclusivity.js';
import { LogMatchingChecker } from './checkers/log-matching.js';
import { MessageOrderChecker } from './checkers/message-order.js';
import { NewClusterChecker } from './checkers/new-cluster.js';
import { PromiseChecker } from './checkers/promises.js';
import { SingleWriterChecker } from './checkers/single-writer.js';
import { StateMachineSafetyChecker } from './checkers/state-machine-safety.js';
import { LogTree } from './log-tree.js';
import { SimCluster, type SimClusterObserver, type SimFork } from './sim-cluster.js';
import type { SimOptions } from './sim-options.js';

const EVENT_NAMES = [
  'onPlaced',
  'onRefused',
  'onAppended',
  'onFenceRaised',
  'onRevoked',
  'onEnabled',
  'onMessageTaken',
  'onApplied',
  'onSnapshotInstalled',
  'onLeader',
  'onDeposed',
  'afterMain',
  'afterBackground',
  'onStarted',
  'onCrashed',
  'onRemoved',
  'onTransferEnded',
] as const;

/** One observer that passes every event to those who want it, in their order. */
export function combineObservers(observers: readonly Partial<SimClusterObserver>[]): SimClusterObserver {
  const combined: Record<string, Notify> = {};
  for (const name of EVENT_NAMES) {
    const wanting: Notify[] = [];
    for (const observer of observers) {
      if (observer[name] !== undefined) wanting.push((observer[name] as Notify).bind(observer));
    }
    combined[name] = wanting.length === 1 ? (wanting[0] as Notify) : notifyAll(wanting);
  }
  return combined as unknown as SimClusterObserver;
}

/** No event has more to tell than this; rest parameters would be an array for each. */
type Notify = (first: unknown, second: unknown, third: unknown, fourth: unknown, fifth: unknown) => void;

function notifyAll(wanting: readonly Notify[]): Notify {
  return (first, second, third, fourth, fifth) => {
    for (let index = 0; index < wanting.length; index++) {
      (wanting[index] as Notify)(first, second, third, fourth, fifth);
    }
  };
}

export interface CheckedCluster {
  readonly cluster: SimCluster;
  readonly atMostOnce: AtMostOnceChecker;
  readonly safety: StateMachineSafetyChecker;
  readonly newCluster: NewClusterChecker;
  /** Nobody is told of anything any more. */
  silence(): void;
}

/**
 * The cluster, not started yet. `observers` are told of each event before the checkers are. `origin`: the cluster that this
 * one is forked off, and how.
 */
export function createCheckedCluster(
  world: SimWorld,
  options: SimOptions,
  observers: readonly (Checker | Partial<SimClusterObserver>)[],
  origin: { readonly from: CheckedCluster; readonly fork: SimFork } | null = null,
): CheckedCluster {
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
  const safety = new StateMachineSafetyChecker(context);
  const newCluster = new NewClusterChecker(context, origin?.from.newCluster ?? null);
  const observer = combineObservers([
    ...observers,
    new SingleWriterChecker(context),
    new PromiseChecker(context),
    new GrantGuardChecker(context),
    new LeaseExclusivityChecker(context),
    new LogMatchingChecker(context), // before those that look entries up
    new ConfigurationChecker(context),
    new LeaderCompletenessChecker(context),
    safety,
    new DurabilityChecker(context),
    new MessageOrderChecker(context),
    newCluster,
    atMostOnce,
  ]);
  cluster = new SimCluster(world, options, observer, origin?.fork ?? null);
  tree = new LogTree(cluster.genesis.clusterId);
  if (origin !== null) tree.plant(origin.fork.position);
  const silence = (): void => {
    Object.assign(observer, combineObservers([]));
  };
  return { cluster, atMostOnce, safety, newCluster, silence };
}
