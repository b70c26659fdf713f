// A client process's connections to the replicas, one each, made when they are needed and again after they failed. The
// outcome of a request says what can be known: an answer; that it was certainly not sent; or nothing.
import { createConnection, type Socket } from 'node:net';
import { type ClientAnswer, type ClientRequest, onLines, sendLine } from './lines.js';

/** Code of a request that no replica got. */
export const NOT_SENT = 'NOT_SENT';
/** Code of a request whose connection broke, or whose answer did not come in time. */
export const NO_ANSWER = 'NO_ANSWER';

interface Waiting {
  readonly settle: (answer: ClientAnswer) => void;
  readonly timer: NodeJS.Timeout;
}

class Connection {
  readonly waiting = new Map<number, Waiting>();
  isOpen = false;

  constructor(
    readonly socket: Socket,
    onClose: () => void,
  ) {
    socket.on('connect', () => {
      this.isOpen = true;
    });
    socket.on('error', () => {}); // "close" follows
    socket.on('close', () => {
      this.isOpen = false;
      onClose();
      for (const [id, { settle, timer }] of this.waiting) {
        clearTimeout(timer);
        settle({ id, code: NO_ANSWER });
      }
      this.waiting.clear();
    });
    onLines<ClientAnswer>(socket, (answer) => {
      const waiting = this.waiting.get(answer.id);
      if (waiting === undefined) return; // given up
      this.waiting.delete(answer.id);
      clearTimeout(waiting.timer);
      waiting.settle(answer);
    });
  }
}

export class Connections {
  private readonly connections = new Map<number, Connection>();
  private nextId = 1;

  constructor(
    private readonly paths: readonly string[],
    private readonly timeoutMs: number,
  ) {}

  request(replica: number, request: Omit<ClientRequest, 'id'>): Promise<ClientAnswer> {
    const id = this.nextId++;
    let connection = this.connections.get(replica);
    if (connection === undefined) {
      const fresh = new Connection(createConnection(this.paths[replica] as string), () => {
        if (this.connections.get(replica) === fresh) this.connections.delete(replica);
      });
      connection = fresh;
      this.connections.set(replica, fresh);
    }
    const { isOpen, socket, waiting } = connection;
    if (!isOpen) return Promise.resolve({ id, code: NOT_SENT }); // it is being made; the caller tries again
    return new Promise((settle) => {
      const timer = setTimeout(() => {
        waiting.delete(id);
        settle({ id, code: NO_ANSWER });
      }, this.timeoutMs);
      waiting.set(id, { settle, timer });
      sendLine(socket, { ...request, id });
    });
  }

  close(): void {
    for (const { socket } of this.connections.values()) socket.destroy();
  }
}
