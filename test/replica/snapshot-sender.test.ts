// What a leader tells of a replica that gets no snapshot, however often it tries. The plane and the transfers are the test's.
import { expect, it, onTestFinished, vi } from 'vitest';
import { QuorateError } from '#lib/errors.js';
import { SnapshotSender, type SnapshotSenderHost } from '#lib/replica/snapshot-sender.js';

const PEER = 2;

it('warns rarely of a replica that takes no snapshot, and goes on trying', async () => {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  let orders = 0;
  const warnings: string[] = [];
  const plane = { role: 'leader', beginSnapshot: () => 0, snapshotDonors: () => [1] };
  const sender = new SnapshotSender({
    plane: () => plane,
    connectionTo: () => ({}),
    isMember: () => true,
    isClosed: () => false,
    order: () => {
      orders++;
      return Promise.reject(new QuorateError('QUORATE_INTERNAL', 'its state machine has no room'));
    },
    // It is granted again, and its log is still too far behind.
    onEnded: () => setImmediate(() => sender.needed(PEER)),
    onWarning: ({ message }: Error) => void warnings.push(message),
  } as unknown as SnapshotSenderHost);
  sender.needed(PEER);
  await vi.advanceTimersByTimeAsync(9_000);
  expect(orders).toBeGreaterThan(10);
  expect(warnings).toEqual(['its state machine has no room']);
  await vi.advanceTimersByTimeAsync(9_000);
  expect(warnings).toEqual([
    'its state machine has no room',
    expect.stringMatching(/^its state machine has no room \(and [0-9]+ more of this kind since the last report\)$/),
  ]);
});
