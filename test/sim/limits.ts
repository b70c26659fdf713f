// Limits of the tests in this folder.

/** Simulations may have to run in the processor time that another suite leaves, and it is no failure of theirs if that is little. */
export const SIMULATION_TIMEOUT_MS = 600_000;
