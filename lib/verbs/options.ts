// Checks of what calls are given before they take it apart: destructuring null, and a signal that is none, would give
// errors without a code.
import { invalidArgument, type Members, outOfRange, unknownMember } from '../errors.js';

export type { Members } from '../errors.js';

/** @internal */
export function checkObject(name: string, value: object): void {
  if (typeof value !== 'object' || value === null) throw invalidArgument(`${name} must be an object`);
}

/** @internal A misspelt option must not be ignored. As the addon does with what it reads itself (arguments.cc). */
export function checkOptions<Options extends object>(name: string, value: Options, members: Members<Options>): void {
  checkObject(name, value);
  const problem = unknownMember(name, value, members);
  if (problem !== undefined) throw invalidArgument(problem);
}

/** @internal Options of a call that ends when their signal aborts. */
export function checkAbortable<Options extends { signal?: AbortSignal }>(
  options: Options,
  members: Members<Options>,
): void {
  checkOptions('options', options, members);
  const { signal } = options;
  // As Node.js itself tells, which takes those of other realms and of libraries, too.
  if (signal !== undefined && (typeof signal !== 'object' || signal === null || !('aborted' in signal))) {
    throw invalidArgument('signal must be an AbortSignal');
  }
}

/** @internal As the addon tells of integers that it reads itself (arguments.cc): a wrong type is no number out of range. */
export function checkInteger(name: string, value: number, least: number, most: number): number {
  if (typeof value !== 'number') throw invalidArgument(`${name} must be a number`);
  if (!Number.isInteger(value) || value < least || value > most) {
    throw outOfRange(`${name} must be an integer from ${least} to ${most}, got ${value}`);
  }
  return value;
}
