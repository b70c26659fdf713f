import { expect, it, vi } from 'vitest';
import { OutgoingMessage } from '#lib/consensus/message-port.js';
import { type Answer, Mailbox } from '#lib/replica/mailbox/mailbox.js';
import type { ProposeResult } from '#lib/replica/replica-options.js';
import { closeAfterEach, closeLater, openEndpoint } from './endpoints.js';

/** What the fabric of a mailbox was to send, and its way to say that something came. There is no peer to link to. */
interface Wire {
  readonly host: { onMessage(peer: number, bytes: Uint8Array): void };
  readonly sent: Uint8Array[];
}

const FOLLOWER = 1;
const LEADER = 0;

closeAfterEach();

function openMailbox(
  id: number,
  proposeHere: () => Promise<ProposeResult<unknown>>,
  onWarning = (error: Error): void => {
    throw error;
  },
): { mailbox: Mailbox; wire: Wire } {
  const endpoint = openEndpoint();
  const mailbox = new Mailbox({
    id,
    endpoint,
    isMember: () => true,
    proposeHere,
    readIndex: () => ({ epoch: 0, lsn: 0 }),
    onTold: () => {},
    onBroken: () => {},
    onStreamEnded: () => {},
    onWarning,
  });
  const { fabric } = mailbox;
  closeLater(fabric);
  const sent: Uint8Array[] = [];
  vi.spyOn(fabric, 'queuedBytes').mockReturnValue(0);
  vi.spyOn(fabric, 'send').mockImplementation((_, bytes) => {
    sent.push(bytes);
    return new OutgoingMessage(bytes);
  });
  return { mailbox, wire: { host: (fabric as unknown as Wire).host, sent } };
}

it('an answer to the process before is not taken for an answer to this one', async () => {
  const results: ((result: ProposeResult<unknown>) => void)[] = [];
  const leader = openMailbox(LEADER, () => new Promise((resolve) => results.push(resolve)));
  const nothing = () => Promise.reject(new Error('it does not lead'));
  const ask = (life: { mailbox: Mailbox; wire: Wire }, answers: (Answer | null)[]) => {
    life.mailbox.propose(LEADER, Uint8Array.of(1), undefined, (answer) => answers.push(answer));
    leader.wire.host.onMessage(FOLLOWER, life.wire.sent[0] as Uint8Array);
  };
  const before: (Answer | null)[] = [];
  ask(openMailbox(FOLLOWER, nothing), before);
  const now: (Answer | null)[] = [];
  const second = openMailbox(FOLLOWER, nothing);
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

it('what a peer says that makes no sense is a warning once, however often it is said, and for each peer', () => {
  const warnings: string[] = [];
  const nothing = () => Promise.reject(new Error('nobody proposes'));
  const { wire } = openMailbox(LEADER, nothing, ({ message }) => void warnings.push(message));
  for (const peer of [1, 2]) {
    for (let count = 0; count < 100; count++) wire.host.onMessage(peer, Uint8Array.of(255));
  }
  expect(warnings).toEqual([expect.stringMatching(/^replica 1: /), expect.stringMatching(/^replica 2: /)]);
});
