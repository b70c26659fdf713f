// quorate/testing: whole clusters of the consensus core on a simulated fabric under virtual time, with faults from a
// seed, and checkers for what must hold. A seed names a run; the same seed and options give the same run everywhere.
export type { BackgroundProfile } from '../consensus/background-plane.js';
export type { LeaseSettings } from '../consensus/lease.js';
export type { SimNetworkOptions, SimPermissionStrategy } from '../fabric/sim/sim-network.js';
export type { Violation } from '../fabric/sim/sim-world.js';
export {
  checkLinearizability,
  formatHistory,
  type HistoryOperation,
  type LinearizableVerdict,
  type UndecidedVerdict,
  type Verdict,
  type ViolationVerdict,
} from './checkers/linearizability.js';
export { type InteractionResult, runInteraction } from './interaction.js';
export { type Minimized, minimize } from './minimize.js';
export { type MutationRequest, type MutationVerdict, tryMutation } from './mutation-run.js';
export { MUTATIONS, type Mutation } from './mutations.js';
export type { SimDiskOptions } from './sim-disk.js';
export type { ReadMeans } from './sim-life.js';
export {
  type FaultRates,
  LEAVE_OUT,
  type MajorityLossOptions,
  type SimOptions,
  type SimRequest,
} from './sim-options.js';
export { type Command, Operation } from './sim-state-machine.js';
export { runSimulation, type SimulationRequest, type SimulationResult } from './simulation.js';
