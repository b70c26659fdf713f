// Who is at the other end of the control connections that peers made. Of every id one process at a time is admitted: a
// second one is refused while the first is alive, which is one that answers.
import { QuorateError } from '../errors.js';
import type { ControlConnection } from './control-channel.js';

/** A process that does not answer for so long is not taken for alive when another one comes with its id. */
const PING_TIMEOUT_MS = 1_000;

export class Admission {
  private readonly admitted = new Map<number, ControlConnection>();

  /** A connection that the peer made; it is admitted later, if ever. */
  serve(connection: ControlConnection): void {
    const { id: peer } = connection.peer;
    connection.on('close', () => {
      if (this.admitted.get(peer) === connection) this.admitted.delete(peer);
    });
  }

  /** Rejects with QUORATE_DUPLICATE_ID if another process with this id is alive. */
  async admit(connection: ControlConnection): Promise<void> {
    const { id: peer, processId } = connection.peer;
    for (;;) {
      const current = this.admitted.get(peer);
      if (current === undefined || current.peer.processId === processId || current.isClosed) break;
      const answers = await current.request('ping', null, PING_TIMEOUT_MS).then(
        () => true,
        () => false,
      );
      if (answers) {
        throw new QuorateError(
          'QUORATE_DUPLICATE_ID',
          `another process with id ${peer} is alive in this cluster; ids must be unique: stop one of the two`,
        );
      }
      if (this.admitted.get(peer) === current) break; // else a third one was admitted meanwhile, and may be alive
    }
    if (!connection.isClosed) this.admitted.set(peer, connection);
  }

  /** Replicas whose processes answer, whatever the failure detector says. */
  async answering(): Promise<ReadonlySet<number>> {
    const answers = [...this.admitted].map(async ([id, connection]) => {
      await connection.request('ping', null, PING_TIMEOUT_MS);
      return id;
    });
    const settled = await Promise.allSettled(answers);
    return new Set(settled.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : [])));
  }
}

/** The other end of the same question, at a connection that this replica made. */
export function answerPings(connection: ControlConnection): void {
  connection.onRequest('ping', () => null);
}
