// Makes a failing run simpler: leaves out one kind of fault after the other, and shortens the run, as long as it still
// breaks the same invariant. Leaving something out changes everything that is drawn afterwards, so not every step
// succeeds; what is left is what the failure needs under this seed.
import { QuorateError } from '../errors.js';
import { LEAVE_OUT } from './sim-options.js';
import { runSimulation, type SimulationRequest, type SimulationResult } from './simulation.js';

const SHORTENINGS = [0.25, 0.5, 0.75];
const VIRTUAL_SECONDS_MIN = 3;

/** A failing request, and its result. */
export interface Minimized {
  /** The simplest request that was found to fail in the same way. */
  readonly request: SimulationRequest;
  /** What it results in. */
  readonly result: SimulationResult;
}

/** Makes a failing request simpler. Throws QUORATE_INVALID_ARGUMENT if it does not fail, or is none. */
export function minimize(request: SimulationRequest): Minimized {
  let best = request;
  let result = runSimulation(best);
  const invariant = result.violation?.invariant;
  // A shorter run would draw another pace.
  if (result.options.pace !== 1) best = { ...best, pace: result.options.pace };
  if (invariant === undefined) {
    const text = `seed ${request.seed} does not fail, there is nothing to minimize`;
    throw new QuorateError('QUORATE_INVALID_ARGUMENT', text);
  }
  const attempt = (candidate: SimulationRequest): boolean => {
    const outcome = runSimulation(candidate);
    if (outcome.violation?.invariant !== invariant) return false;
    best = candidate;
    result = outcome;
    return true;
  };
  for (const fraction of SHORTENINGS) {
    const virtualSeconds = Math.max(VIRTUAL_SECONDS_MIN, Math.ceil(best.virtualSeconds * fraction));
    if (virtualSeconds < best.virtualSeconds && attempt({ ...best, virtualSeconds })) break;
  }
  for (const name of LEAVE_OUT) attempt({ ...best, without: [...(best.without ?? []), name] });
  return { request: best, result };
}
