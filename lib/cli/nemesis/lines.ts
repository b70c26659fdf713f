// Messages between client processes and replicas: one JSON object a line on a Unix socket.
import type { Socket } from 'node:net';

/** Longest line; nothing that is sent comes near it. */
const LINE_LENGTH_MAX = 64 * 1024;

/** A command for the replica to propose, or a read of its state. */
export interface ClientRequest {
  readonly id: number;
  /** 0: no session. */
  readonly origin: number;
  readonly sequence: number;
  readonly operation: number;
  readonly key: number;
  readonly value: number;
  readonly expected: number;
  readonly fillerBytes: number;
  /** A read that is answered from the replica's state, whoever leads, and no command. */
  readonly isStateRead?: boolean;
  /** A replica that does not lead has the leader propose the command, for so long; 0: it refuses. */
  readonly forwardMs?: number;
}

/** What became of it: a result, or the code of an error and who leads instead. */
export interface ClientAnswer {
  readonly id: number;
  readonly result?: number;
  /** How it was answered, one of Means; the log if it is left out. */
  readonly by?: number;
  readonly code?: string;
  readonly leader?: number;
}

export function sendLine(socket: Socket, message: ClientRequest | ClientAnswer): void {
  if (socket.writable) socket.write(`${JSON.stringify(message)}\n`);
}

/** Calls back for each message that arrives. */
export function onLines<Message>(socket: Socket, callback: (message: Message) => void): void {
  let rest = '';
  socket.setEncoding('utf8');
  socket.on('data', (text: string) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop() as string;
    if (rest.length > LINE_LENGTH_MAX) {
      socket.destroy(new Error(`a line is longer than ${LINE_LENGTH_MAX} characters`));
      return;
    }
    for (const line of lines) callback(JSON.parse(line) as Message);
  });
}
