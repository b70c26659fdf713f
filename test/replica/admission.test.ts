// Who is admitted under an id that several processes have: newcomers to a server of the control channel, one of which has
// stopped answering.
import { expect, it } from 'vitest';
import { Admission, answerPings } from '#lib/replica/admission.js';
import { dial, identity, rejection, startServer, until } from './control-fixture.js';

it('of two processes that come with the id of one that does not answer any more, admits one', async () => {
  const { port, connections } = await startServer();
  const processes = [];
  for (const bootId of [1, 2, 3]) processes.push(await dial(port, identity(1, { bootId })));
  await until(() => connections.length === 3);
  const admission = new Admission();
  for (const connection of connections) admission.serve(connection);
  const [gone, one, other] = connections as [(typeof connections)[0], (typeof connections)[0], (typeof connections)[0]];
  await admission.admit(gone);
  // One that was stopped is connected still, and says nothing.
  processes[0]?.onRequest('ping', () => new Promise(() => {}));
  for (const newcomer of processes.slice(1)) answerPings(newcomer);

  const first = admission.admit(one);
  const second = rejection(admission.admit(other));
  await first;
  expect(await second).toMatchObject({ code: 'QUORATE_DUPLICATE_ID' });
  // It is the same with every question that they ask from then on.
  await admission.admit(one);
  expect(await rejection(admission.admit(other))).toMatchObject({ code: 'QUORATE_DUPLICATE_ID' });
});
