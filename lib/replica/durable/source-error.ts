// Whose fault it is that a snapshot could not be stored: the state machine's, which gives it, or the disk's, which takes it.

/** The state machine failed to give its state, not the store to take it. */
export class SourceError extends Error {}

export async function fromSource<Value>(give: () => Value | Promise<Value>): Promise<Value> {
  try {
    return await give();
  } catch (error) {
    throw new SourceError((error as Error).message, { cause: error });
  }
}
