// The snapshot beside the log of a replica that survives crashes, of a state machine that begins to give its state and then
// gives no more of it: nobody waits for that without end.
import { expect, onTestFinished, test, vi } from 'vitest';
import type { SnapshotStream } from '#lib/index.js';
import { SNAPSHOT_RETRY_MS } from '#lib/replica/recovery/limits.js';
import type { Region } from '#lib/replica/recovery/region.js';
import { RegionKeeper } from '#lib/replica/recovery/region-keeper.js';
import type { DonorState } from '#lib/replica/transfer/donor.js';
import { SnapshotSource } from '#lib/replica/transfer/snapshot-stream.js';
import { turn } from '#lib/replica/turn.js';

const FILE = 'snapshot-1';
const SNAPSHOT_BYTES_MAX = 2 ** 20;

const eventually = (check: () => void): Promise<void> => vi.waitFor(check, { timeout: 20_000 });

/** A keeper whose state machine gives a piece, and then none. */
function keeperOfSilentState(pieceTimeoutMs?: number) {
  async function* chunks(events: string[]) {
    yield new Uint8Array(100);
    events.push('silent');
    await new Promise(() => {});
  }
  return keeperOf(chunks, pieceTimeoutMs);
}

function keeperOf(chunks: (events: string[]) => SnapshotStream, pieceTimeoutMs?: number) {
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
  const stateMachine = {
    apply: () => undefined as never,
    snapshot: () => new Uint8Array(0),
    restore: () => {},
    snapshotChunks: () => chunks(events),
  };
  const freeze = (): DonorState => {
    events.push('frozen');
    const source = new SnapshotSource(stateMachine, new Uint8Array(8));
    return { source, sessionsBytes: 8, configuration: { clusterId: 5 } } as unknown as DonorState;
  };
  const keeper = new RegionKeeper({
    region: region as unknown as Region,
    logBytes: 65536,
    snapshotBytesMax: SNAPSHOT_BYTES_MAX,
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

/** State of so many bytes. */
function* stateOf(lengthBytes: number, events: string[]) {
  const pieceBytes = 64 * 1024;
  for (let left = lengthBytes; left > 0; left -= pieceBytes) yield new Uint8Array(Math.min(left, pieceBytes));
  events.push('collected');
}

test('a state that says that it is too large to be kept is not collected', async () => {
  const { keeper, events, warnings } = keeperOf(
    (told) => Object.assign(stateOf(SNAPSHOT_BYTES_MAX, told), { lengthBytes: SNAPSHOT_BYTES_MAX }), // sessions not included
  );
  keeper.look();
  await eventually(() => expect(warnings.length).toBe(1));
  expect(warnings[0]).toMatchObject({ code: 'QUORATE_LIMIT', message: expect.stringContaining('snapshotBytesMax') });
  expect(events).toEqual(['frozen']);
  await keeper.close();
});

test('a state that is too large to be kept is collected ever more rarely, until it is smaller', async () => {
  let now_ms = 0;
  vi.spyOn(performance, 'now').mockImplementation(() => now_ms);
  onTestFinished(() => void vi.restoreAllMocks());
  let stateBytes = SNAPSHOT_BYTES_MAX + 100;
  const { keeper, events, warnings } = keeperOf((told) => stateOf(stateBytes, told));
  const ends = () => events.filter((event) => event.startsWith('dropped') || event === 'kept').length;
  /** How often it is collected in so many times what is waited for after a failure. */
  const attempts = async (count: number): Promise<number> => {
    const before = ends();
    for (let time = 0; time < count; time++, now_ms += SNAPSHOT_RETRY_MS) {
      keeper.look();
      const begun = events.filter((event) => event === 'frozen').length;
      do await turn();
      while (ends() < begun); // and then one to note how it went
      await turn();
    }
    return ends() - before;
  };
  expect(await attempts(100)).toBeLessThan(10);
  expect(warnings.length).toBe(1);
  stateBytes = 100;
  await attempts(100);
  expect(events.at(-1)).toBe('kept');
  // From there on as before.
  stateBytes = SNAPSHOT_BYTES_MAX + 100;
  expect(await attempts(2)).toBe(2);
  await keeper.close();
});
