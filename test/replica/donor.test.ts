// The donor of a state transfer whose state machine gives no more of its state: nobody who asks for it later is turned away
// for that.
import { afterEach, expect, it, vi } from 'vitest';
import { chainBeginning } from '#lib/consensus/entry.js';
import { TransferSource } from '#lib/fabric/transfer-link.js';
import type { ControlConnection } from '#lib/replica/control-channel.js';
import { Donor, type DonorHost } from '#lib/replica/transfer/donor.js';
import { DONATIONS_MAX, OPEN_TIMEOUT_MS } from '#lib/replica/transfer/limits.js';
import { SnapshotSource } from '#lib/replica/transfer/snapshot-stream.js';
import { SilentLog } from './fixture.js';

afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

it('waits no longer for the bytes behind which a transfer is to go on than its receiver waits for an answer', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  const link = { bytes: new Uint8Array(4 * 1024 * 1024), close: vi.fn(), views: () => [] };
  vi.spyOn(TransferSource, 'open').mockResolvedValue(link as unknown as TransferSource);
  const position = chainBeginning(7);
  const closed = vi.spyOn(SnapshotSource.prototype, 'close');
  const donor = new Donor({
    id: 1,
    endpoint: { isSoftware: true },
    appliedLsn: () => 0,
    freeze: () => ({
      position,
      sessionsBytes: 0,
      source: new SnapshotSource(new SilentLog() as never, new Uint8Array(0)),
    }),
  } as unknown as DonorHost);
  const connection = { isClosed: false } as ControlConnection;
  const queuePair = { qpNum: 1, psn: 0, gid: '', lid: 1, mtuBytes: 1024 };
  const resume = { position, bytes: 1_000, checksum: 5 };
  for (let transfer = 1; transfer <= DONATIONS_MAX + 1; transfer++) {
    const opened = donor.open(connection, { transfer, minLsn: 0, queuePair, resume, logAfter: null });
    const refused = opened.catch((error: Error) => error);
    await vi.advanceTimersByTimeAsync(OPEN_TIMEOUT_MS);
    const error = await Promise.race([refused, new Promise((resolve) => setImmediate(resolve, 'nothing yet'))]);
    expect(error).toMatchObject({ code: 'QUORATE_TIMEOUT', message: expect.stringContaining('snapshotChunks()') });
    expect(link.close).toHaveBeenCalledTimes(transfer);
    expect(closed).toHaveBeenCalledTimes(transfer);
  }
});
