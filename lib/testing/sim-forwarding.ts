// What a simulated replica does with messages: it forwards proposals that are made where it does not lead, serves those
// that are forwarded to it, and asks for and tells the read index. The host's part, with the rules of the real one
// (lib/replica/mailbox): a proposal that may have left is sent again only if it has a session.
import type { OutgoingMessage } from '../consensus/message-port.js';
import type { SimMessageFabric } from '../fabric/sim/sim-message-fabric.js';
import type { ProposalOutcome, ReadIndex, SimLife } from './sim-life.js';
import { isSessionless } from './sim-state-machine.js';

const Kind = { propose: 1, outcome: 2, readIndex: 3, readIndexIs: 4 } as const;
const OUTCOMES = ['applied', 'notLeader', 'full', 'unknown'] as const;
const HEADER_BYTES = 40;

/** Kind, number of the question and who asks, and two numbers by kind. */
function encode(
  kind: number,
  number: number,
  asker: number,
  first: number,
  second: number,
  payload?: Uint8Array,
): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES + (payload?.length ?? 0));
  const view = new DataView(bytes.buffer);
  [kind, number, asker, first, second].forEach((value, index) => {
    view.setFloat64(index * 8, value, true);
  });
  if (payload !== undefined) bytes.set(payload, HEADER_BYTES);
  return bytes;
}

interface Question {
  readonly leader: number;
  readonly message: OutgoingMessage;
  readonly origin: number;
  readonly sequence: number;
  readonly payload: Uint8Array;
  readonly answer: (outcome: ProposalOutcome) => void;
}

export class SimForwarding {
  private readonly questions = new Map<number, Question>();
  private readonly indexQuestions = new Map<number, (index: ReadIndex) => void>();
  private lastNumber = 0;

  constructor(
    private readonly life: SimLife,
    private readonly messages: SimMessageFabric,
    /** Unique to this process. */
    private readonly asker: number,
  ) {}

  /** Main plane. */
  forward(
    leader: number,
    origin: number,
    sequence: number,
    payload: Uint8Array,
    answer: (outcome: ProposalOutcome) => void,
  ): void {
    const number = ++this.lastNumber;
    const message = this.messages.send(leader, encode(Kind.propose, number, this.asker, origin, sequence, payload));
    if (message === null) answer({ kind: 'full' });
    else this.questions.set(number, { leader, message, origin, sequence, payload, answer });
  }

  /** Main plane. An answer that never comes is asked for again by the client. */
  askReadIndex(leader: number, answer: (index: ReadIndex) => void): void {
    const number = ++this.lastNumber;
    this.indexQuestions.set(number, answer);
    this.messages.send(leader, encode(Kind.readIndex, number, this.asker, 0, 0));
  }

  hear(peer: number, bytes: Uint8Array): void {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const [kind, number, asker, first, second] = [0, 8, 16, 24, 32].map((at) => view.getFloat64(at, true)) as [
      number,
      number,
      number,
      number,
      number,
    ];
    if (kind === Kind.propose) {
      const payload = bytes.slice(HEADER_BYTES);
      this.life.proposeHere(first, second, payload, (outcome) => {
        const result = outcome.kind === 'applied' ? outcome.result : outcome.kind === 'notLeader' ? outcome.leader : 0;
        const index = OUTCOMES.indexOf(outcome.kind as (typeof OUTCOMES)[number]);
        this.life.postToMain(() => void this.messages.send(peer, encode(Kind.outcome, number, asker, index, result)));
      });
    } else if (kind === Kind.readIndex) {
      this.life.serveReadIndex(({ epoch, lsn }) => {
        this.messages.send(peer, encode(Kind.readIndexIs, number, asker, epoch, lsn));
      });
    } else if (!this.isOwn(asker)) {
      // An answer to the life before.
    } else if (kind === Kind.readIndexIs) {
      this.indexQuestions.get(number)?.({ epoch: first, lsn: second });
      this.indexQuestions.delete(number);
    } else {
      this.answered(number, OUTCOMES[first] as (typeof OUTCOMES)[number], second);
    }
  }

  private isOwn(asker: number): boolean {
    return asker === this.asker;
  }

  private answered(number: number, kind: (typeof OUTCOMES)[number], result: number): void {
    const question = this.questions.get(number);
    if (question === undefined) return;
    this.questions.delete(number);
    if (kind === 'applied') question.answer({ kind, result });
    else if (kind === 'notLeader') question.answer({ kind, leader: result });
    else question.answer({ kind });
  }

  /** The leader that was asked is another process by now, or was. */
  streamEnded(peer: number): void {
    for (const [number, question] of this.questions) {
      if (question.leader !== peer || !question.message.isWritten) continue;
      this.questions.delete(number);
      this.unknown(question);
    }
  }

  /** Main plane: another one may lead than those that were asked. */
  look(): void {
    if (this.questions.size === 0) return;
    const { leader } = this.life.replication;
    if (leader < 0) return;
    for (const [number, question] of this.questions) {
      if (question.leader === leader) continue;
      this.questions.delete(number);
      if (this.messages.withdraw(question.leader, question.message)) question.answer({ kind: 'notLeader', leader });
      else this.unknown(question);
    }
  }

  /** Nobody will tell what became of it. */
  private unknown(question: Question): void {
    const { leader } = this.life.replication;
    const { origin, sequence, payload, answer } = question;
    if (leader < 0 || leader === this.life.id || !this.maySendAgain(origin)) answer({ kind: 'unknown' });
    else this.forward(leader, origin, sequence, payload, answer);
  }

  private maySendAgain(origin: number): boolean {
    return !isSessionless(origin);
  }
}
