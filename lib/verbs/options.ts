// Checks of what calls are given before they take it apart: destructuring null, and a signal that is none, would give
// errors without a code.
import { invalidArgument } from '../errors.js';

/** @internal */
export function checkObject(name: string, value: object): void {
  if (typeof value !== 'object' || value === null) throw invalidArgument(`${name} must be an object`);
}

/** @internal Options of a call that ends when their signal aborts. */
export function checkAbortable(options: { signal?: AbortSignal }): void {
  checkObject('options', options);
  const { signal } = options;
  // As Node.js itself tells, which takes those of other realms and of libraries, too.
  if (signal !== undefined && (typeof signal !== 'object' || signal === null || !('aborted' in signal))) {
    throw invalidArgument('signal must be an AbortSignal');
  }
}
