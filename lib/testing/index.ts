// quorate/testing: whole clusters of the consensus core on a simulated fabric under virtual time, with faults from a
// seed, and checkers for what must hold. A seed names a run; the same seed and options give the same run everywhere.
export {
  checkLinearizability,
  formatHistory,
  type HistoryOperation,
  type Verdict,
} from './checkers/linearizability.js';
export { type InteractionResult, runInteraction } from './interaction.js';
export { minimize } from './minimize.js';
export { type MutationRequest, type MutationVerdict, tryMutation } from './mutation-run.js';
export { MUTATIONS, type Mutation } from './mutations.js';
export { Proposal, ScriptedCluster, type ScriptedClusterRequest } from './scripted-cluster.js';
export { LEAVE_OUT, type SimOptions } from './sim-options.js';
export { runSimulation, type SimulationRequest, type SimulationResult } from './simulation.js';
