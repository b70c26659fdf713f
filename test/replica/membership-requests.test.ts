// What waits for its turn to change the membership, at a plane that the test plays.
import { expect, it } from 'vitest';
import { genesisConfiguration, withMember } from '#lib/consensus/configuration.js';
import { type ConfigurationLog, MembershipChanges } from '#lib/consensus/membership-changes.js';
import { Replacement } from '#lib/consensus/replacement.js';
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

it.each(['voter', 'learner'])(
  'takes no %s that is somewhere else for the new member of a replacement',
  async (role) => {
    const place = { host: '10.0.0.1', port: 7000 };
    const members = [
      { id: 0, role: 'voter', ...place },
      { id: 1, role, ...place, port: 7001 },
      { id: 2, role: 'voter', ...place, port: 7002 },
    ];
    const changes: unknown[] = [];
    const plane = {
      role: 'leader',
      configuration: { version: 1, members },
      appliedConfiguration: { version: 1 },
      changeMembership: (change: unknown) => {
        changes.push(change);
        return { code: 'QUORATE_QUORUM_AT_RISK', message: 'nothing is done here' };
      },
    };
    const requests = new MembershipRequests({
      plane: plane as unknown as ReplicationPlane,
      now_ns: () => 0,
      onBegun: () => {},
      notLeader: () => new QuorateError('QUORATE_NOT_LEADER', 'not expected'),
    });
    await expect(requests.replace(2, { id: 1, host: '10.0.0.9', port: 7001 }, 1_000)).rejects.toMatchObject({
      code: 'QUORATE_MEMBER_EXISTS',
      message: expect.stringContaining('10.0.0.1:7001'),
    });
    expect(changes).toEqual([]);
  },
);

it('does not take a replacement for done whose last step somebody else has begun, and which is not committed', async () => {
  const place = { host: '10.0.0.1', port: 7000 };
  const plane = {
    role: 'leader',
    configuration: { version: 2, members: [{ id: 0, role: 'voter', ...place }] },
    appliedConfiguration: { version: 1 },
    changeMembership: () => ({ code: 'QUORATE_CHANGE_IN_PROGRESS', message: 'version 2 is not committed' }),
  };
  const requests = new MembershipRequests({
    plane: plane as unknown as ReplicationPlane,
    now_ns: () => 0,
    onBegun: () => {},
    notLeader: () => new QuorateError('QUORATE_NOT_LEADER', 'it leads no more'),
  });
  const outcomes: string[] = [];
  const asked = () =>
    requests.replace(1, { id: 0, ...place }, 60_000).then(
      () => outcomes.push('replaced'),
      ({ code }: QuorateError) => outcomes.push(code),
    );
  const first = asked();
  await turn();
  requests.look();
  await turn();
  expect(outcomes).toEqual([]);
  plane.appliedConfiguration = { version: 2 };
  plane.role = 'follower'; // it steps down for this very change
  requests.look();
  await first;
  expect(outcomes).toEqual(['replaced']);
  plane.role = 'leader';
  plane.configuration.version = 3;
  const second = asked();
  await turn();
  plane.role = 'follower';
  requests.look();
  await second;
  expect(outcomes).toEqual(['replaced', 'QUORATE_NOT_LEADER']);
});

it('lets everything else go on while it waits for a spare to become a learner, also if that holds the whole log', async () => {
  const founded = genesisConfiguration(1, [{ id: 0, bootId: 10, host: '10.0.0.1', port: 7000 }]);
  // It was called up and gone for a while, but its memory was not: what is written there is acknowledged still.
  const configuration = withMember(founded, {
    id: 1,
    incarnation: 2,
    bootId: 11,
    role: 'spare',
    priority: 0,
    host: '10.0.0.1',
    port: 7001,
    returning: false,
  });
  const log = { role: 'leader', configuration, isConfigurationApplied: true, transferringTo: -1, isVoter: true };
  const view = {
    id: 0,
    linkedLife: () => 11,
    isActive: () => true,
    lagBytes: () => 0,
    lagBytesMax: 1024,
    trusts: () => true,
  };
  const changes = new MembershipChanges(log as unknown as ConfigurationLog, view, new Replacement(0));
  const plane = {
    role: 'leader',
    appliedConfiguration: configuration,
    changeMembership: changes.change.bind(changes),
    isCaughtUp: changes.isCaughtUp.bind(changes),
  };
  const requests = new MembershipRequests({
    plane: plane as unknown as ReplicationPlane,
    now_ns: () => 0,
    onBegun: () => {},
    notLeader: () => new QuorateError('QUORATE_NOT_LEADER', 'not expected'),
  });
  const happened: string[] = [];
  const promotion = requests.promote(1, 200).catch(({ code }: QuorateError) => happened.push(code));
  await turn();
  happened.push('the event loop has turned');
  await promotion;
  expect(happened).toEqual(['the event loop has turned', 'QUORATE_NOT_CAUGHT_UP']);
});
