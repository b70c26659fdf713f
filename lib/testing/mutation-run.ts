// Runs simulations with a mutation installed until one of them notices, or the mutation's seeds are used up.
import type { Violation } from '../fabric/sim/sim-world.js';
import { checkMutationRequest } from './check-request.js';
import type { Mutation } from './mutations.js';
import { runSimulation } from './simulation.js';

/** Whether a mutation was noticed. */
export interface MutationVerdict {
  /** The mutation's name. */
  readonly name: string;
  /** A checker noticed. */
  readonly caught: boolean;
  /** Seeds that were run, the last of which noticed. */
  readonly seeds: number;
  /** The last seed that was run. */
  readonly seed: number;
  /** What was noticed; null if nothing was. */
  readonly violation: Violation | null;
}

/** Which simulations are run with a mutation. */
export interface MutationRequest {
  /** The first seed; the others follow it. */
  readonly firstSeed: number;
  /** Length of each run, at least. */
  readonly virtualSeconds: number;
  /** Fewer seeds than the mutation's own limit, to save time. */
  readonly seedsMax?: number;
}

/**
 * Breaks the protocol, simulates until a checker notices or the seeds are used up, and mends it. Throws
 * QUORATE_INVALID_ARGUMENT for a mutation or a request that is none.
 */
export function tryMutation(mutation: Mutation, request: MutationRequest): MutationVerdict {
  checkMutationRequest(mutation, request);
  const seedsMax = Math.min(mutation.seedsMax, request.seedsMax ?? Number.POSITIVE_INFINITY);
  const { name, replicas, adjust } = mutation;
  const mend = mutation.install();
  try {
    for (let seeds = 1; seeds <= seedsMax; seeds++) {
      const seed = request.firstSeed + seeds - 1;
      const { violation } = runSimulation({
        seed,
        replicas,
        virtualSeconds: request.virtualSeconds,
        ...(adjust === undefined ? {} : { adjust }),
      });
      if (violation !== null) return { name, caught: true, seeds, seed, violation };
    }
    return { name, caught: false, seeds: seedsMax, seed: request.firstSeed + seedsMax - 1, violation: null };
  } finally {
    mend();
  }
}
