// What waits for its turn to change the membership, at a plane that the test plays.
import { expect, it } from 'vitest';
import type { ReplicationPlane } from '#lib/consensus/replication-plane.js';
import { QuorateError } from '#lib/errors.js';
import { MembershipRequests } from '#lib/replica/membership-requests.js';
import { turn } from '#lib/replica/turn.js';

it('lets everything else go on while changes wait for room in the log, without which there would never be any', async () => {
  const END_LSN = 128;
  let isFull = true;
  let refusals = 0;
  const plane = {
    role: 'leader',
    appliedConfiguration: { version: 1 },
    changeMembership: () => {
      if (!isFull) return END_LSN;
      refusals++;
      return { code: 'QUORATE_BACKPRESSURE', message: 'the log is full' };
    },
  };
  const requests = new MembershipRequests({
    plane: plane as unknown as ReplicationPlane,
    now_ns: () => 0,
    onBegun: () => requests.applied(END_LSN),
    notLeader: () => new QuorateError('QUORATE_NOT_LEADER', 'not expected'),
  });
  const codeOf = ({ code }: QuorateError) => code;
  const promotions = Promise.all([2, 3].map((id) => requests.promote(id, 2_000).then(() => 'promoted', codeOf)));
  // Followers apply, and the leader learns of it, in later turns of the event loop.
  await turn();
  await turn();
  expect(refusals).toBe(2);
  isFull = false;
  requests.look();
  expect(await promotions).toEqual(['promoted', 'promoted']);
});
