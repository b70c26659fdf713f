// The snapshot beside the log of a replica that survives crashes, of a state machine that begins to give its state and then
// gives no more of it: nobody waits for that without end.
import { expect, test, vi } from 'vitest';
import type { Region } from '#lib/replica/recovery/region.js';
import { RegionKeeper } from '#lib/replica/recovery/region-keeper.js';
import type { DonorState } from '#lib/replica/transfer/donor.js';
import { SnapshotSource } from '#lib/replica/transfer/snapshot-stream.js';

const FILE = 'snapshot-1';

const eventually = (check: () => void): Promise<void> => vi.waitFor(check, { timeout: 20_000 });

/** A keeper whose state machine gives a piece, and then none. */
function keeperOfSilentState(pieceTimeoutMs?: number) {
  const events: string[] = [];
  const warnings: Error[] = [];
  const region = {
    path: '/dev/shm/made-up',
    anchor: null,
    createSnapshot: async () => ({
      file: FILE,
      handle: {
        write: async (piece: Uint8Array) => ({ bytesWritten: piece.length }),
        close: async () => void events.push('closed'),
      },
    }),
    dropSnapshot: (file: string) => void events.push(`dropped ${file}`),
    putAnchor: () => void events.push('kept'),
  };
  async function* chunks() {
    yield new Uint8Array(100);
    events.push('silent');
    await new Promise(() => {});
  }
  const stateMachine = {
    apply: () => undefined as never,
    snapshot: () => new Uint8Array(0),
    restore: () => {},
    snapshotChunks: chunks,
  };
  const freeze = (): DonorState => {
    events.push('frozen');
    const source = new SnapshotSource(stateMachine, new Uint8Array(8));
    return { source, sessionsBytes: 8 } as unknown as DonorState;
  };
  const keeper = new RegionKeeper({
    region: region as unknown as Region,
    logBytes: 65536,
    snapshotBytesMax: 2 ** 20,
    appliedLsn: () => 64,
    ringBeginLsn: () => 0,
    freeze,
    isGiving: () => false,
    onWarning: (error) => void warnings.push(error),
    ...(pieceTimeoutMs === undefined ? {} : { pieceTimeoutMs }),
  });
  return { keeper, events, warnings };
}

test('a snapshot of a state that gives no more pieces makes way for a transfer at once, and is begun again', async () => {
  const { keeper, events, warnings } = keeperOfSilentState();
  keeper.look();
  await eventually(() => expect(events).toContain('silent'));
  keeper.makeWay();
  await eventually(() => expect(events).toEqual(['frozen', 'silent', 'closed', `dropped ${FILE}`]));
  await eventually(() => {
    keeper.look();
    expect(events.filter((event) => event === 'frozen').length).toBe(2);
  });
  expect(warnings).toEqual([]);
  await keeper.close();
});

test('a state machine that gives no piece for too long is not waited for, and the warning says which method of it', async () => {
  const { keeper, events, warnings } = keeperOfSilentState(50);
  keeper.look();
  await eventually(() => expect(events).toEqual(['frozen', 'silent', 'closed', `dropped ${FILE}`]));
  await eventually(() => expect(warnings.length).toBe(1));
  const [warning] = warnings;
  expect(warning).toMatchObject({ code: 'QUORATE_TIMEOUT' });
  expect(warning?.message).toContain('/dev/shm/made-up');
  expect(warning?.message).toContain(
    'snapshotChunks() of the state machine gave neither a piece nor its end for 50 ms',
  );
  await keeper.close();
});
