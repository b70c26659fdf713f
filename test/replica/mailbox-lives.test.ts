// Questions and answers across the end of a process: a replica that came back counts its questions from the beginning, and
// what its peers answer the process before must not pass for an answer to this one (docs/bugs/answer-to-the-life-before.md).
import { expect, it, vi } from 'vitest';
import { OutgoingMessage } from '#lib/consensus/message-port.js';
import { type Answer, Mailbox } from '#lib/replica/mailbox/mailbox.js';
import type { ProposeResult } from '#lib/replica/replica-options.js';

interface Wire {
  readonly host: { onMessage(peer: number, bytes: Uint8Array): void };
  readonly sent: Uint8Array[];
}
const wires: Wire[] = vi.hoisted(() => []);
vi.mock('#lib/fabric/message-fabric.js', () => ({
  MessageFabric: class implements Wire {
    readonly sent: Uint8Array[] = [];
    constructor(
      _: unknown,
      readonly host: Wire['host'],
    ) {
      wires.push(this);
    }
    send(_: number, bytes: Uint8Array): OutgoingMessage {
      this.sent.push(bytes);
      return new OutgoingMessage(bytes);
    }
    queuedBytes(): number {
      return 0;
    }
  },
}));

const FOLLOWER = 1;
const LEADER = 0;

function open(id: number, proposeHere: () => Promise<ProposeResult<unknown>>): { mailbox: Mailbox; wire: Wire } {
  const mailbox = new Mailbox({
    id,
    endpoint: null as never,
    isMember: () => true,
    proposeHere,
    readIndex: () => ({ epoch: 0, lsn: 0 }),
    onTold: () => {},
    onBroken: () => {},
    onWarning: (error) => {
      throw error;
    },
  });
  return { mailbox, wire: wires.at(-1) as Wire };
}

it('an answer to the process before is not taken for an answer to this one', async () => {
  const results: ((result: ProposeResult<unknown>) => void)[] = [];
  const leader = open(LEADER, () => new Promise((resolve) => results.push(resolve)));
  const nothing = () => Promise.reject(new Error('it does not lead'));
  const ask = (life: { mailbox: Mailbox; wire: Wire }, answers: (Answer | null)[]) => {
    life.mailbox.propose(LEADER, Uint8Array.of(1), undefined, (answer) => answers.push(answer));
    leader.wire.host.onMessage(FOLLOWER, life.wire.sent[0] as Uint8Array);
  };
  const before: (Answer | null)[] = [];
  ask(open(FOLLOWER, nothing), before);
  const now: (Answer | null)[] = [];
  const second = open(FOLLOWER, nothing);
  ask(second, now);

  results[0]?.({ lsn: 64, result: 'of the process before', duplicate: false });
  await vi.waitFor(() => expect(leader.wire.sent).toHaveLength(1));
  second.wire.host.onMessage(LEADER, leader.wire.sent[0] as Uint8Array);
  expect(now).toEqual([]);

  results[1]?.({ lsn: 128, result: 'of this one', duplicate: false });
  await vi.waitFor(() => expect(leader.wire.sent).toHaveLength(2));
  second.wire.host.onMessage(LEADER, leader.wire.sent[1] as Uint8Array);
  expect(now).toMatchObject([{ lsn: 128, result: 'of this one' }]);
  expect(before).toEqual([]);
});
