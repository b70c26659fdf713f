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

it('makes its state anew ever more seldom for a replica that does not take it, until that is connected again', async () => {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  let made = 0;
  let connection = {};
  const fresh = () => ({ sendBlob: () => Promise.reject(new QuorateError('QUORATE_LIMIT', 'more than it restores')) });
  const plane = { role: 'leader', beginSnapshot: () => 0, snapshotDonors: () => [1] };
  const sender = new SnapshotSender({
    plane: () => plane,
    connectionTo: () => connection,
    isMember: () => true,
    isClosed: () => false,
    order: () => Promise.reject(new QuorateError('QUORATE_LIMIT', 'no memory for READs')),
    encode: () => {
      made++;
      return new Uint8Array(1);
    },
    onEnded: () => setImmediate(() => sender.needed(PEER)),
    onWarning: () => {},
  } as unknown as SnapshotSenderHost);
  connection = fresh();
  sender.needed(PEER);
  await vi.advanceTimersByTimeAsync(60_000);
  expect(made).toBe(11); // 0.2 s behind the first one, then 0.4 and so on, at most 10
  connection = fresh();
  await vi.advanceTimersByTimeAsync(10_500);
  expect(made).toBe(11 + 6); // 2.6 s later, when the last pause is over, and from there on as before
});
