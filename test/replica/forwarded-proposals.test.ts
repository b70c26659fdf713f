// Which replica a forwarded command is sent to when the one that was asked refuses it.
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { ForwardedProposals } from '#lib/replica/mailbox/forwarded-proposals.js';
import { FORWARD_RETRY_MS } from '#lib/replica/mailbox/limits.js';
import type { Answer, Question } from '#lib/replica/mailbox/mailbox.js';
import { MessageKind } from '#lib/replica/mailbox/messages.js';
import { NotLeaderError } from '#lib/replica/not-leader-error.js';

const ID = 2;
const LEADER = 0;
const NEXT = 1;

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

/** A follower that knows who leads; what it sends stays unanswered until the test answers. */
function follower() {
  const sent: { to: number; answer: (answer: Answer | null) => void }[] = [];
  const known = { leader: LEADER as number | undefined };
  const forwarded = new ForwardedProposals({
    id: ID,
    leaderId: () => known.leader,
    trusts: () => true,
    proposeHere: () => Promise.reject(new NotLeaderError(undefined)),
    send: (to, _command, _session, answer) => {
      sent.push({ to, answer });
      return {} as Question;
    },
    withdraw: () => false,
    forget: () => {},
    notLeader: (leader) => new NotLeaderError(leader),
  });
  const outcome = new Promise((resolve, reject) => {
    forwarded.add({ command: Uint8Array.of(1), session: undefined, timeoutMs: 5_000, resolve, reject });
  });
  return { forwarded, sent, known, outcome };
}

function refusal(code: string): Answer {
  return { kind: MessageKind.failed, tag: { asker: 1, number: 1 }, code, text: 'refused' } as Answer;
}

function done(lsn: number): Answer {
  const tag = { asker: 1, number: 1 };
  return { kind: MessageKind.proposed, tag, lsn, duplicate: false, result: lsn } as Answer;
}

it('asks a leader again that did not lead yet', async () => {
  const { sent, outcome } = follower();
  sent[0]?.answer(refusal('QUORATE_NOT_LEADER'));
  vi.advanceTimersByTime(FORWARD_RETRY_MS);
  expect(sent.map(({ to }) => to)).toEqual([LEADER, LEADER]);
  sent[1]?.answer(done(64));
  expect(await outcome).toMatchObject({ lsn: 64 });
});

it.each(['QUORATE_CLOSED', 'QUORATE_REMOVED'])(
  'asks one that ended no more, which would take the command with it (%s)',
  async (code) => {
    const { forwarded, sent, known, outcome } = follower();
    sent[0]?.answer(refusal(code));
    vi.advanceTimersByTime(100 * FORWARD_RETRY_MS);
    forwarded.noticeLeader();
    expect(sent.map(({ to }) => to)).toEqual([LEADER]);
    known.leader = NEXT;
    forwarded.noticeLeader();
    expect(sent.map(({ to }) => to)).toEqual([LEADER, NEXT]);
    sent[1]?.answer(done(128));
    expect(await outcome).toMatchObject({ lsn: 128 });
  },
);

it('asks the next process that leads under the same id', async () => {
  const { forwarded, sent, outcome } = follower();
  sent[0]?.answer(refusal('QUORATE_CLOSED'));
  vi.advanceTimersByTime(100 * FORWARD_RETRY_MS);
  forwarded.streamEnded(NEXT);
  expect(sent.map(({ to }) => to)).toEqual([LEADER]);
  forwarded.streamEnded(LEADER);
  expect(sent.map(({ to }) => to)).toEqual([LEADER, LEADER]);
  sent[1]?.answer(done(192));
  expect(await outcome).toMatchObject({ lsn: 192 });
});
