// What replicas say by message, and what becomes of a forwarded proposal: by its rules, without a cluster. A result is told
// only when it is known, a command without a session is never sent twice, and the order is kept.
import fc from 'fast-check';
import { describe, expect, it, vi } from 'vitest';
import { OutgoingMessage } from '#lib/consensus/message-port.js';
import { QuorateError } from '#lib/errors.js';
import { ForwardedProposals } from '#lib/replica/mailbox/forwarded-proposals.js';
import { FORWARD_RETRY_MS } from '#lib/replica/mailbox/limits.js';
import { type Answer, Question } from '#lib/replica/mailbox/mailbox.js';
import {
  decodeMessage,
  encodeFailed,
  encodePropose,
  encodeProposed,
  encodeReadIndex,
  encodeReadIndexIs,
  encodeTold,
  MessageKind,
} from '#lib/replica/mailbox/messages.js';
import { NotLeaderError } from '#lib/replica/not-leader-error.js';
import { OutcomeUnknownError } from '#lib/replica/pending-proposals.js';

const tag = { asker: 2 ** 47 + 1, number: 7 };

describe('messages', () => {
  it('are read as they were written', () => {
    const command = Uint8Array.of(1, 2, 3);
    expect(decodeMessage(encodePropose(tag, 5, 9, command))).toEqual({
      kind: MessageKind.propose,
      ...{ tag, origin: 5, sequence: 9, command },
    });
    expect(decodeMessage(encodeReadIndex(tag))).toEqual({ kind: MessageKind.readIndex, tag });
    expect(decodeMessage(encodeReadIndexIs(tag, 3, 640))).toEqual({
      kind: MessageKind.readIndexIs,
      ...{ tag, epoch: 3, lsn: 640 },
    });
    for (const result of [undefined, null, 5, 'text', [1, { a: true }]]) {
      expect(decodeMessage(encodeProposed(tag, 64, true, result))).toEqual({
        kind: MessageKind.proposed,
        ...{ tag, lsn: 64, duplicate: true, result },
      });
    }
    expect(decodeMessage(encodeFailed(tag, new NotLeaderError(4)))).toMatchObject({
      kind: MessageKind.failed,
      ...{ tag, code: 'QUORATE_NOT_LEADER', leader: 4 },
    });
    expect(decodeMessage(encodeTold('news', { a: [1] }))).toMatchObject({ type: 'news', body: { a: [1] } });
  });

  it('of any other bytes are refused by code, whatever these are', () => {
    const encoded = [
      encodePropose(tag, 1, 1, new Uint8Array(8)),
      encodeProposed(tag, 64, false, [1, 'a']),
      encodeReadIndexIs(tag, 2, 64),
      encodeFailed(tag, new NotLeaderError(1)),
      encodeTold('news', { a: 1 }),
    ];
    const garbage = fc.oneof(
      fc.uint8Array({ maxLength: 64 }),
      fc.tuple(fc.constantFrom(...encoded), fc.nat(), fc.nat(255), fc.nat()).map(([bytes, at, value, cut]) => {
        const changed = Uint8Array.from(bytes.subarray(0, 1 + (cut % bytes.length)));
        changed[at % changed.length] = value;
        return changed;
      }),
    );
    fc.assert(
      fc.property(garbage, (bytes) => {
        try {
          decodeMessage(bytes);
        } catch (error) {
          expect(error).toMatchObject({ code: 'QUORATE_PROTOCOL' });
        }
      }),
      { numRuns: 2000 },
    );
    const halfASession = encodePropose(tag, 1, 1, new Uint8Array(0));
    new DataView(halfASession.buffer).setFloat64(24, 0, true);
    expect(() => decodeMessage(halfASession)).toThrow(/sequence 0/);
  });
});

interface Sent {
  readonly to: number;
  readonly text: string;
  readonly question: Question;
}

/** Replica 0, which forwards; a test plays the leaders. */
function forwarding(proposeHere: () => Promise<never> = () => Promise.reject(new NotLeaderError(undefined))) {
  const sent: Sent[] = [];
  const withdrawable = new Set<Question>();
  const state = { leader: 1 as number | undefined, trusted: new Set([1, 2]) };
  let number = 0;
  const proposals = new ForwardedProposals({
    id: 0,
    leaderId: () => state.leader,
    trusts: (peer) => state.trusted.has(peer),
    proposeHere,
    send: (leader, command, _session, settle) => {
      const question = new Question(leader, ++number, new OutgoingMessage(command), settle);
      sent.push({ to: leader, text: Buffer.from(command).toString(), question });
      return question;
    },
    withdraw: (question) => withdrawable.has(question),
    forget: () => {},
    notLeader: (leader) => new NotLeaderError(leader),
  });
  const propose = (text: string, origin = 0, sequence = 0, timeoutMs = 60_000) => {
    const promise = new Promise((resolve, reject) => {
      const session = origin === 0 ? undefined : { origin, sequence };
      proposals.add({ command: Buffer.from(text), session, timeoutMs, resolve, reject });
    });
    return promise.then(
      (result) => result as { lsn: number },
      (error: QuorateError) => error,
    );
  };
  const answer = (index: number, answered: Answer | null) => sent[index]?.question.settle(answered);
  const done = (lsn: number): Answer => ({
    kind: MessageKind.proposed,
    ...{ tag: { asker: 1, number: 0 }, lsn, duplicate: false, result: lsn },
  });
  const failed = (code: string): Answer => ({
    kind: MessageKind.failed,
    ...{ tag: { asker: 1, number: 0 }, code, text: 'said the leader', leader: undefined },
  });
  const change = (leader: number | undefined, trusted: number[]) => {
    state.leader = leader;
    state.trusted = new Set(trusted);
    proposals.noticeLeader();
  };
  const texts = () => sent.map(({ to, text }) => `${text}@${to}`);
  return { proposals, sent, withdrawable, propose, answer, done, failed, change, texts };
}

describe('a forwarded proposal', () => {
  it('without a session, once it has left, is not sent again when its leader is gone: its outcome is unknown', async () => {
    const f = forwarding();
    const proposed = f.propose('a');
    f.change(undefined, [2]);
    f.change(2, [2]);
    expect(await proposed).toMatchObject({ code: 'QUORATE_OUTCOME_UNKNOWN', outcome: 'unknown' });
    expect(f.texts()).toEqual(['a@1']);
    expect(f.proposals.size).toBe(0);
  });

  it('without a session waits for the answer of a leader that was deposed and lives', async () => {
    const f = forwarding();
    const proposed = f.propose('a');
    f.change(2, [1, 2]);
    f.answer(0, f.done(64));
    expect(await proposed).toMatchObject({ lsn: 64 });
    expect(f.texts()).toEqual(['a@1']);
  });

  it('that never left goes to the next leader, without a session, too', async () => {
    const f = forwarding();
    const proposed = f.propose('a');
    f.withdrawable.add((f.sent[0] as Sent).question);
    f.change(2, [2]);
    f.answer(1, f.done(64));
    expect(await proposed).toMatchObject({ lsn: 64 });
    expect(f.texts()).toEqual(['a@1', 'a@2']);
  });

  it('with a session goes to the next leader in the order of its making, before later ones', async () => {
    const f = forwarding();
    const first = [f.propose('a', 9, 1), f.propose('b', 9, 2), f.propose('c', 9, 3)];
    f.answer(0, f.done(64));
    f.change(undefined, [2]);
    const later = f.propose('d', 9, 4);
    expect(f.texts()).toEqual(['a@1', 'b@1', 'c@1']);
    f.change(2, [2]);
    expect(f.texts().slice(3)).toEqual(['b@2', 'c@2', 'd@2']);
    for (let index = 3; index < 6; index++) f.answer(index, f.done(index * 64));
    expect(await Promise.all([...first, later])).toMatchObject([{ lsn: 64 }, { lsn: 192 }, { lsn: 256 }, { lsn: 320 }]);
  });

  it('refused by one that does not lead is sent again after a moment, with all behind it', async () => {
    vi.useFakeTimers();
    try {
      const f = forwarding();
      const both = [f.propose('a', 9, 1), f.propose('b', 9, 2)];
      f.answer(0, f.failed('QUORATE_NOT_LEADER'));
      // Its leader has taken over between the two.
      f.answer(1, f.failed('QUORATE_SESSION_GAP'));
      expect(f.texts()).toEqual(['a@1', 'b@1']);
      await vi.advanceTimersByTimeAsync(FORWARD_RETRY_MS);
      expect(f.texts().slice(2)).toEqual(['a@1', 'b@1']);
      f.answer(2, f.done(64));
      f.answer(3, f.done(128));
      expect(await Promise.all(both)).toMatchObject([{ lsn: 64 }, { lsn: 128 }]);
    } finally {
      vi.useRealTimers();
    }
  });

  it('that is refused for good is told so, unless an earlier attempt may have been applied', async () => {
    const f = forwarding();
    const fresh = f.propose('a', 9, 1);
    f.answer(0, f.failed('QUORATE_BACKPRESSURE'));
    expect(await fresh).toMatchObject({ code: 'QUORATE_BACKPRESSURE' });
    const again = f.propose('b', 9, 1);
    f.change(2, [2]);
    f.answer(2, f.failed('QUORATE_BACKPRESSURE'));
    expect(await again).toMatchObject({ code: 'QUORATE_OUTCOME_UNKNOWN' });
  });

  it('whose time is over was not proposed if it never left, else nobody knows', async () => {
    vi.useFakeTimers();
    try {
      const f = forwarding();
      const [left, stayed] = [f.propose('a', 0, 0, 50), f.propose('b', 0, 0, 50)];
      f.withdrawable.add((f.sent[1] as Sent).question);
      await vi.advanceTimersByTimeAsync(50);
      expect(await left).toMatchObject({ code: 'QUORATE_OUTCOME_UNKNOWN' });
      expect(await stayed).toMatchObject({ code: 'QUORATE_TIMEOUT', message: expect.stringMatching(/not proposed/) });
      f.change(undefined, [2]);
      const waiting = f.propose('c', 0, 0, 50);
      await vi.advanceTimersByTimeAsync(50);
      expect(await waiting).toMatchObject({ code: 'QUORATE_NOT_LEADER' });
      expect(f.texts()).toEqual(['a@1', 'b@1']);
    } finally {
      vi.useRealTimers();
    }
  });

  it('whose leader has ended and come back in another life is not taken for done', async () => {
    const f = forwarding();
    const [without, withSession] = [f.propose('a'), f.propose('b', 9, 1)];
    f.answer(0, null);
    f.answer(1, null);
    expect(await without).toMatchObject({ code: 'QUORATE_OUTCOME_UNKNOWN' });
    f.change(2, [2]);
    expect(f.texts().slice(2)).toEqual(['b@2']);
    f.answer(2, f.done(64));
    expect(await withSession).toMatchObject({ lsn: 64 });
  });

  it.each([
    ['another leads', new NotLeaderError(undefined), 0],
    ['nobody knows what became of it', new OutcomeUnknownError('leadership ended'), 9],
  ])('is sent at once when one here, whose time was over, has ended because %s', async (_why, end, origin) => {
    let endHere: (error: Error) => void = () => {};
    const f = forwarding(() => new Promise((_resolve, reject) => (endHere = reject)));
    f.change(0, [1, 2]);
    expect(await f.propose('a', origin, Math.min(origin, 1), 1)).toMatchObject({ code: 'QUORATE_OUTCOME_UNKNOWN' });
    endHere(end);
    await new Promise(setImmediate);
    f.change(1, [1, 2]);
    const next = f.propose('b');
    expect(f.texts()).toEqual(['b@1']);
    f.answer(0, f.done(64));
    expect(await next).toMatchObject({ lsn: 64 });
  });

  it('that is left when its replica closes is unknown if it has left', async () => {
    const f = forwarding();
    const left = f.propose('a');
    f.change(undefined, [2]);
    const stayed = f.propose('b');
    f.proposals.close(() => new QuorateError('QUORATE_CLOSED', 'closed'));
    expect(await left).toMatchObject({ code: 'QUORATE_OUTCOME_UNKNOWN' });
    expect(await stayed).toMatchObject({ code: 'QUORATE_CLOSED' });
  });
});
