// What a replica does when the code of its user fails: it stops rather than diverge, and everybody who waits is told.
import { once } from 'node:events';
import { afterEach, expect, it } from 'vitest';
import { Replica } from '#lib/index.js';
import { CommandLog, members, optionsFor } from './fixture.js';

const open: Replica<number>[] = [];
afterEach(async () => {
  await Promise.all(open.splice(0).map((replica) => replica.close()));
});

const bytes = (text: string) => new Uint8Array(Buffer.from(text));

it.each([undefined, { origin: 5, sequence: 1 }])(
  'settles the proposal of the command that apply() throws on, with session %j',
  async (session) => {
    const machine = new CommandLog();
    machine.apply = () => {
      throw new Error('a command too much');
    };
    const replica = await Replica.open(optionsFor(0, await members(1), { stateMachine: machine }));
    open.push(replica);
    const fatal = once(replica, 'fatal');
    const proposal = replica.propose(bytes('x'), session === undefined ? undefined : { session });
    await expect(proposal).rejects.toMatchObject({
      code: 'QUORATE_OUTCOME_UNKNOWN',
      message: expect.stringContaining('a command too much'),
    });
    expect((await fatal)[0]).toMatchObject({ message: 'a command too much' });
  },
);

it('proposes nothing again once it closes', async () => {
  const replica = await Replica.open(optionsFor(0, await members(1)));
  open.push(replica);
  const settled = replica.propose(bytes('x'), { session: { origin: 5, sequence: 1 } }).catch((error: Error) => error);
  const { tailLsn } = replica.status();
  await replica.close();
  expect(await settled).toMatchObject({
    code: 'QUORATE_OUTCOME_UNKNOWN',
    message: expect.stringContaining('replica 0 was closed'),
  });
  expect(replica.status()).toMatchObject({ tailLsn, pendingProposals: 0 });
});
