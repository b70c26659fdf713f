// Checks of a request for a simulation, which may come from JavaScript: a seed names a run only together with the rest.
import { MAX_REPLICAS } from '../consensus/limits.js';
import { type Members, QuorateError } from '../errors.js';
import type { MutationRequest } from './mutation-run.js';
import type { Mutation } from './mutations.js';
import { JOINERS_MAX, LEAVE_OUT, PACE_MAX } from './sim-options.js';
import type { SimulationRequest } from './simulation.js';

const SEED_MAX = Math.floor(Number.MAX_SAFE_INTEGER / 4);
export const VIRTUAL_SECONDS_MAX = 86_400;

/** Every member of a request. */
const MEMBERS: Members<SimulationRequest> = {
  seed: true,
  replicas: true,
  virtualSeconds: true,
  pace: true,
  traceLines: true,
  without: true,
  adjust: true,
};

const MUTATION_MEMBERS: Members<MutationRequest> = { firstSeed: true, virtualSeconds: true, seedsMax: true };

function invalid(message: string): never {
  throw new QuorateError('QUORATE_INVALID_ARGUMENT', `the request for a simulation: ${message}`);
}

function show(value: unknown): string {
  return typeof value === 'string' ? `'${value}'` : String(value);
}

function checkNumber(value: unknown, name: string, min: number, max: number, isInteger: boolean): void {
  const isIn = typeof value === 'number' && value >= min && value <= max && (!isInteger || Number.isInteger(value));
  if (isIn) return;
  const kind = isInteger ? 'an integer' : 'a number';
  invalid(
    value === undefined ? `${name} is missing, ${kind}` : `${name} ${show(value)} is not ${kind} in ${min}..${max}`,
  );
}

function checkMembers(request: object, members: object): void {
  const unknown = Object.keys(request).find((name) => !Object.hasOwn(members, name));
  if (unknown !== undefined) invalid(`there is no member '${unknown}'; there are: ${Object.keys(members).join(', ')}`);
}

/** Throws QUORATE_INVALID_ARGUMENT, which names the member. */
export function checkRequest(request: SimulationRequest): void {
  if (typeof request !== 'object' || request === null)
    invalid('it must be an object with seed, replicas, virtualSeconds');
  checkMembers(request, MEMBERS);
  const { seed, replicas, virtualSeconds, pace, traceLines, without, adjust } = request;
  checkNumber(seed, 'seed', 0, SEED_MAX, true);
  checkNumber(replicas, 'replicas', 1, MAX_REPLICAS - JOINERS_MAX, true);
  checkNumber(virtualSeconds, 'virtualSeconds', 0, VIRTUAL_SECONDS_MAX, false);
  if (pace !== undefined) checkNumber(pace, 'pace', 1, PACE_MAX, false);
  if (traceLines !== undefined) checkNumber(traceLines, 'traceLines', 0, Number.MAX_SAFE_INTEGER, true);
  if (adjust !== undefined && typeof adjust !== 'function') invalid('adjust is not a function');
  if (without === undefined) return;
  if (!Array.isArray(without)) invalid(`without is not an array of ${LEAVE_OUT.join(', ')}`);
  const gremlin = without.find((name) => !(LEAVE_OUT as readonly unknown[]).includes(name));
  if (gremlin !== undefined || without.includes(undefined as unknown as string)) {
    invalid(`without has ${show(gremlin)}, which cannot be left out; known are ${LEAVE_OUT.join(', ')}`);
  }
}

/** The same for simulations with a mutation. */
export function checkMutationRequest(mutation: Mutation, request: MutationRequest): void {
  if (typeof mutation?.install !== 'function') invalid('the mutation has no function install()');
  checkNumber(mutation.seedsMax, "the mutation's seedsMax", 1, Number.MAX_SAFE_INTEGER, true);
  if (typeof request !== 'object' || request === null) invalid('it must be an object with firstSeed, virtualSeconds');
  checkMembers(request, MUTATION_MEMBERS);
  const { firstSeed, virtualSeconds, seedsMax } = request;
  checkNumber(firstSeed, 'firstSeed', 0, SEED_MAX, true);
  checkNumber(virtualSeconds, 'virtualSeconds', 0, VIRTUAL_SECONDS_MAX, false);
  if (seedsMax !== undefined) checkNumber(seedsMax, 'seedsMax', 1, Number.MAX_SAFE_INTEGER, true);
}
