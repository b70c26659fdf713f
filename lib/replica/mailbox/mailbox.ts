// Questions and answers between replicas, over messages in registered memory: a follower forwards proposals to the leader
// and asks it for the read index. Every question is answered by a peer that lives, with what it knows; what becomes of a
// question that a peer took with it when it ended, the one who asked has to decide.
import { randomInt } from 'node:crypto';
import { MESSAGE_QUEUE_WITH_NOTES_BYTES_MAX } from '../../consensus/limits.js';
import type { OutgoingMessage } from '../../consensus/message-port.js';
import { QuorateError } from '../../errors.js';
import { MessageFabric } from '../../fabric/message-fabric.js';
import type { VerbsEndpoint } from '../../fabric/verbs-endpoint.js';
import { WarningLimit } from '../control-channel.js';
import type { ReadIndex } from '../follower-reads.js';
import type { ProposeResult, SessionCommand } from '../replica-options.js';
import { ANSWERS_QUEUED_BYTES_MAX } from './limits.js';
import {
  decodeMessage,
  encodeFailed,
  encodePropose,
  encodeProposed,
  encodeReadIndex,
  encodeReadIndexIs,
  encodeTold,
  type Message,
  MessageKind,
  type Tag,
} from './messages.js';

/** What a question was answered with. */
export type Answer = Extract<Message, { readonly kind: 3 | 4 | 5 }>;

export interface MailboxHost {
  readonly id: number;
  readonly endpoint: VerbsEndpoint;
  /** Members deal with members only. */
  isMember(id: number): boolean;
  /** Proposes the command here and nowhere else. */
  proposeHere(command: Uint8Array, session: SessionCommand | undefined): Promise<ProposeResult<unknown>>;
  readIndex(): ReadIndex | Promise<ReadIndex>;
  /** The peer told something. Throws if it makes no sense. */
  onTold(peer: number, type: string, body: unknown): void;
  onBroken(peer: number): void;
  /** Another process stands for the peer than the one that was asked before. */
  onStreamEnded(peer: number): void;
  onWarning(error: Error): void;
}

/** A question under way. */
export class Question {
  constructor(
    readonly peer: number,
    readonly number: number,
    readonly message: OutgoingMessage,
    readonly settle: (answer: Answer | null) => void,
  ) {}
}

const NUMBER_END = 2 ** 32;
const ASKER_END = 2 ** 48 - 1;

export class Mailbox {
  readonly fabric: MessageFabric;
  private readonly questions = new Map<number, Question>();
  /** Of this process: an answer to the one before must not pass for an answer to this one. */
  private readonly asker = randomInt(1, ASKER_END);
  private lastNumber = 0;
  /** A peer decides how often it says what makes no sense. */
  private readonly warningLimit = new WarningLimit();

  constructor(private readonly host: MailboxHost) {
    this.fabric = new MessageFabric(host.endpoint, {
      onMessage: (peer, bytes) => this.hear(peer, bytes),
      onStreamEnded: (peer) => this.streamEnded(peer),
      onBroken: (peer) => host.onBroken(peer),
      onFault: (error) => host.onWarning(error),
    });
  }

  // -- asking ------------------------------------------------------------------------------------------------------

  /**
   * Forwards a proposal. `settle` is called with the answer, or with null when nobody will know what became of it, unless
   * withdraw() or forget() come first. Null, and nothing was sent, if too much waits for this peer already.
   */
  propose(
    peer: number,
    command: Uint8Array,
    session: SessionCommand | undefined,
    settle: (answer: Answer | null) => void,
  ): Question | null {
    const tag = this.nextTag();
    return this.ask(peer, tag, encodePropose(tag, session?.origin ?? 0, session?.sequence ?? 0, command), settle);
  }

  /** Asks for the read index. As propose(). */
  readIndex(peer: number, settle: (answer: Answer | null) => void): Question | null {
    const tag = this.nextTag();
    return this.ask(peer, tag, encodeReadIndex(tag), settle);
  }

  private nextTag(): Tag {
    do this.lastNumber = (this.lastNumber + 1) % NUMBER_END;
    while (this.questions.has(this.lastNumber));
    return { asker: this.asker, number: this.lastNumber };
  }

  private ask(
    peer: number,
    { number }: Tag,
    bytes: Uint8Array,
    settle: (answer: Answer | null) => void,
  ): Question | null {
    const message = this.fabric.send(peer, bytes);
    if (message === null) return null;
    const question = new Question(peer, number, message, settle);
    this.questions.set(number, question);
    return question;
  }

  /** Tells the peer something, which it does not answer. False, and nothing was sent, if too much waits already. */
  tell(peer: number, type: string, body: unknown): boolean {
    return this.fabric.send(peer, encodeTold(type, body)) !== null;
  }

  /** Takes the question back; false if it left this replica, and may be answered. */
  withdraw(question: Question): boolean {
    if (!this.fabric.withdraw(question.peer, question.message)) return false;
    this.questions.delete(question.number);
    return true;
  }

  /** The answer is not wanted any more. */
  forget(question: Question): void {
    this.questions.delete(question.number);
  }

  private streamEnded(peer: number): void {
    for (const question of [...this.questions.values()]) {
      if (question.peer !== peer || !question.message.isWritten) continue;
      this.questions.delete(question.number);
      question.settle(null);
    }
    this.host.onStreamEnded(peer);
  }

  // -- hearing -----------------------------------------------------------------------------------------------------

  /** What a peer says may be wrong: that is a warning, and nothing else follows. */
  private guarded<Value>(peer: number, action: () => Value): Value | undefined {
    try {
      return action();
    } catch (error) {
      const before = this.warningLimit.admit(`replica ${peer}`);
      if (before === undefined) return undefined;
      const text = `replica ${peer}: ${(error as Error).message}${before}`;
      this.host.onWarning(new QuorateError('QUORATE_PROTOCOL', text, { cause: error }));
      return undefined;
    }
  }

  private hear(peer: number, bytes: Uint8Array): void {
    const message = this.guarded(peer, () => decodeMessage(bytes));
    if (message === undefined) return;
    switch (message.kind) {
      case MessageKind.propose:
        this.serve(peer, message.tag, () => this.servePropose(peer, message));
        break;
      case MessageKind.readIndex:
        this.serve(peer, message.tag, async () => {
          const { epoch, lsn } = await this.host.readIndex();
          return encodeReadIndexIs(message.tag, epoch, lsn);
        });
        break;
      case MessageKind.told:
        this.guarded(peer, () => this.host.onTold(peer, message.type, message.body));
        break;
      default: {
        const { asker, number } = message.tag;
        const question = this.questions.get(number);
        if (asker !== this.asker || question === undefined || question.peer !== peer) return; // given up
        this.questions.delete(number);
        question.settle(message);
      }
    }
  }

  private async servePropose(
    peer: number,
    { tag, origin, sequence, command }: Extract<Message, { readonly kind: typeof MessageKind.propose }>,
  ): Promise<Uint8Array> {
    if (this.fabric.queuedBytes(peer) > ANSWERS_QUEUED_BYTES_MAX) {
      throw new QuorateError(
        'QUORATE_BACKPRESSURE',
        `replica ${peer} does not take the answers that it gets; the command was not proposed: slow down and try again`,
      );
    }
    const session = origin === 0 ? undefined : { origin, sequence };
    const { lsn, result, duplicate } = await this.host.proposeHere(command, session);
    return encodeProposed(tag, lsn, duplicate, result);
  }

  private serve(peer: number, tag: Tag, answer: () => Promise<Uint8Array>): void {
    if (!this.host.isMember(peer)) {
      const text = `replica ${peer} is no member as far as replica ${this.host.id} knows`;
      this.sendNote(peer, encodeFailed(tag, new QuorateError('QUORATE_NOT_A_MEMBER', text)));
      return;
    }
    void answer()
      .catch((error: Error) => encodeFailed(tag, error))
      .then((bytes) => {
        if (this.fabric.send(peer, bytes) === null) this.sendWithoutResult(peer, bytes);
      });
  }

  /** Whoever is not told waits until its time is over, and does not know then what became of its command. */
  private sendNote(peer: number, bytes: Uint8Array): void {
    this.fabric.send(peer, bytes, MESSAGE_QUEUE_WITH_NOTES_BYTES_MAX);
  }

  /** The answer does not fit. Its result may be what is large; where that much does not fit, the peer gives up by itself. */
  private sendWithoutResult(peer: number, bytes: Uint8Array): void {
    const message = decodeMessage(bytes);
    if (message.kind !== MessageKind.proposed) {
      this.sendNote(peer, bytes);
      return;
    }
    const text =
      `the command was applied at LSN ${message.lsn}, but its result is not sent: too much waits to be sent to replica ${peer} ` +
      'already; propose fewer such commands at a time';
    this.sendNote(peer, encodeFailed(message.tag, new QuorateError('QUORATE_RESULT_NOT_SENDABLE', text)));
  }

  // -- links -------------------------------------------------------------------------------------------------------

  /** Nobody is asked or answered any more. */
  close(): void {
    for (const question of [...this.questions.values()]) {
      this.questions.delete(question.number);
      question.settle(null);
    }
    this.fabric.close();
  }
}
