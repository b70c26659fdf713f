// A pause of long work in the main thread.

/** Lets the event loop turn: there is a log to be applied, and whoever needs an answer. */
export const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
