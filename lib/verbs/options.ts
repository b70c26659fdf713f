// Checks of what calls are given before they take it apart: destructuring null, and a signal that is none, would give
// errors without a code.
import { invalidArgument } from '../errors.js';

/** @internal */
export function checkObject(name: string, value: object): void {
  if (typeof value !== 'object' || value === null) throw invalidArgument(`${name} must be an object`);
}

/** @internal All members that options have; the compiler sees to it that none is left out. */
export type Members<Options> = { readonly [Name in keyof Options]-?: true };

/** @internal A misspelt option must not be ignored. As the addon does with what it reads itself (arguments.cc). */
export function checkOptions<Options extends object>(name: string, value: Options, members: Members<Options>): void {
  checkObject(name, value);
  for (const member of Object.keys(value)) {
    if (Object.hasOwn(members, member)) continue;
    const there = Object.keys(members).join(', ');
    throw invalidArgument(`${name} has no member '${member.slice(0, 100)}'; there are: ${there}`);
  }
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
