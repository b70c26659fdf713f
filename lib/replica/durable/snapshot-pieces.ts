// How the pieces of a snapshot get from the state machine into the store, and whose fault it is if they do not: the state
// machine's, which gives them, or the disk's, which takes them.
import type { PieceReader } from '../transfer/snapshot-stream.js';
import type { StateStore, StoredSnapshot } from './state-store.js';

/** The state machine failed to give its state, not the store to take it. */
export class SourceError extends Error {}

export async function fromSource<Value>(give: () => Value | Promise<Value>): Promise<Value> {
  try {
    return await give();
  } catch (error) {
    throw new SourceError((error as Error).message, { cause: error });
  }
}

/**
 * Puts the pieces into the store, under a name of their own, beside those of the snapshot in force. They mean nothing until a
 * record names them. Rejects with SourceError, or with what the store says.
 */
export async function writePieces(
  state: StateStore,
  inForce: StoredSnapshot | null,
  pieces: PieceReader,
): Promise<Pick<StoredSnapshot, 'name' | 'pieces' | 'bytes' | 'sum'>> {
  const before = inForce?.name ?? 0;
  await state.sweep(before); // what an attempt before this one left behind
  const name = before + 1;
  return { name, ...(await state.write(name, () => fromSource(() => pieces.pull()))) };
}
