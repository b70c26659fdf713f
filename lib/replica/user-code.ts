// Calls into code of users, the state machine's above all: whatever that throws or returns, callers get a result or an Error.
// A file of its own, and not one of the options' checks, since background threads need it, and do not check options.
import { inspect, types } from 'node:util';
import { QuorateError } from '../errors.js';

/**
 * What a state machine does after it has returned would be done to a state that is another one by then, or be taken for done;
 * and what is read from it then may be stale. open() notices functions that are declared async; of others, compiled for older
 * engines, say, what they return tells.
 */
export function checkNoPromise(returned: unknown, what: string): void {
  if (typeof returned !== 'object' || returned === null) return;
  try {
    const { then } = returned as { then?: unknown };
    if (typeof then !== 'function') return;
    then.call(returned, undefined, () => {}); // what it rejects with nobody waits for
  } catch (error) {
    throw thrownError(error, `then of what ${what} returned`);
  }
  const text = `${what} returned a promise: it must have done all when it returns`;
  throw new QuorateError('QUORATE_INVALID_ARGUMENT', text);
}

/** What code of users throws, as an Error (perhaps of another realm), which whoever is told of it can go by. */
export function thrownError(thrown: unknown, what: string): Error {
  if (thrown instanceof Error || types.isNativeError(thrown)) return thrown;
  const text = `${what} threw ${inspect(thrown)}, which is no Error: throw one, which has a message and a stack`;
  return new QuorateError('QUORATE_INVALID_ARGUMENT', text, { cause: thrown });
}

/** Calls code of users. What it throws, or what a promise that it returns rejects with, is an Error then. */
export function callUser<Returned>(what: string, call: () => Returned): Returned {
  try {
    const returned = call();
    if (!(returned instanceof Promise)) return returned;
    return returned.catch((error: unknown) => {
      throw thrownError(error, what);
    }) as Returned;
  } catch (error) {
    throw thrownError(error, what);
  }
}

/** The same for code that must have done all when it returns. */
export function callUserAtOnce<Returned>(what: string, call: () => Returned): Returned {
  const returned = callUser(what, call);
  checkNoPromise(returned, what);
  return returned;
}

/** Of what a function of users has read from the state. */
export function checkRead(value: unknown): void {
  checkNoPromise(value, 'the function that reads the state');
}
