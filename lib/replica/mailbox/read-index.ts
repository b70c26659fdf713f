// A follower's question for the read index, as a promise.
import { QuorateError } from '../../errors.js';
import type { ReadIndex } from '../follower-reads.js';
import type { Mailbox } from './mailbox.js';
import { MessageKind } from './messages.js';

/**
 * Asks the leader. Rejects with what it refused with (QUORATE_NOT_LEADER, QUORATE_LEADERSHIP_ENDED, QUORATE_NOT_A_MEMBER),
 * QUORATE_PEER_CLOSED if it is another process by now, QUORATE_DISCONNECTED, QUORATE_TIMEOUT, QUORATE_BACKPRESSURE. Nothing
 * depends on it: ask again.
 */
export function askReadIndex(mailbox: Mailbox, leader: number, timeoutMs: number): Promise<ReadIndex> {
  return new Promise((resolve, reject) => {
    if (!mailbox.fabric.isKnown(leader)) {
      const text = `there is no link for messages to replica ${leader} yet; nothing was done: read again`;
      reject(new QuorateError('QUORATE_DISCONNECTED', text));
      return;
    }
    const question = mailbox.readIndex(leader, (answer) => {
      clearTimeout(timer);
      if (answer === null) {
        reject(new QuorateError('QUORATE_PEER_CLOSED', `replica ${leader} ended before it told its read index`));
      } else if (answer.kind === MessageKind.readIndexIs) {
        resolve({ epoch: answer.epoch, lsn: answer.lsn });
      } else if (answer.kind === MessageKind.failed) {
        reject(new QuorateError(answer.code, answer.text));
      } else {
        reject(new QuorateError('QUORATE_PROTOCOL', `replica ${leader} answered a read index with something else`));
      }
    });
    if (question === null) {
      const text = `too much waits to be sent to replica ${leader} already; nothing was done: slow down and read again`;
      reject(new QuorateError('QUORATE_BACKPRESSURE', text));
      return;
    }
    const timer = setTimeout(() => {
      if (!mailbox.withdraw(question)) mailbox.forget(question);
      const text = `replica ${leader} did not tell its read index within ${timeoutMs} ms: read again`;
      reject(new QuorateError('QUORATE_TIMEOUT', text));
    }, timeoutMs);
  });
}
