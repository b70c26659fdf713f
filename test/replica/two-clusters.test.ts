// A process that is part of no cluster yet may be connected to members of two: of one that was forced from a survivor, say, and
// of the old one, a majority of which was alive after all. It joins one of them, and must take no part in the other then. On
// shm, all members in this process.
import { afterEach, expect, it } from 'vitest';
import { Replica } from '#lib/index.js';
import { CommandLog, members, optionsFor, waitFor } from './fixture.js';

const closing: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

it('who joins one cluster takes no part in another one, whose member it was connected to before', async () => {
  const [place0, place1, place2] = (await members(3)) as [never, never, never];
  // Alone, and has a place for replica 2.
  const one = await Replica.open(optionsFor(1, [place1], { stateMachine: new CommandLog() }));
  closing.push(() => one.close());
  await one.propose(Buffer.from('of the first cluster'));
  await one.addLearner(place2);
  // It asks replica 0 alone, which is not there yet.
  const { members: _, ...rest } = optionsFor(2, [], {});
  const machine = new CommandLog();
  const connected = new Promise<void>((resolve) => {
    one.on('peer', (peer, isThere) => {
      if (peer === 2 && isThere) resolve();
    });
  });
  const opening = Replica.open({
    ...rest,
    stateMachine: machine,
    join: [place0],
    address: place2,
    waitForLeader: false,
  });
  closing.push(async () => (await opening).close());
  await connected;
  const warnings: string[] = [];
  one.on('warning', (error) => warnings.push((error as { code?: string }).code ?? ''));
  const zero = await Replica.open(optionsFor(0, [place0], { stateMachine: new CommandLog() }));
  closing.push(() => zero.close());
  const joined = await opening;
  expect(joined.status().clusterId).toBe(zero.status().clusterId);
  const isRefused = () => warnings.includes('QUORATE_CLUSTER_MISMATCH');
  const isTakenIn = () => one.status().members.some(({ id, phase }) => id === 2 && phase !== 'none');
  await waitFor(() => isRefused() || isTakenIn(), 'the first cluster to take it for a member, or to be told');
  expect(isTakenIn()).toBe(false);
  // Nobody counts on what it cannot have.
  await expect(one.promote(2)).rejects.toMatchObject({ code: 'QUORATE_NOT_CAUGHT_UP' });
  // The cluster that it has joined may add it.
  await zero.propose(Buffer.from('of the second cluster'));
  await zero.addLearner(place2);
  await waitFor(() => machine.commands.length > 0, 'the state of the cluster that it has joined');
  expect(machine.commands).toEqual(['of the second cluster']);
});
