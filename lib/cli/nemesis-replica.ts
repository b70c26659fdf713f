// One replica of the nemesis, in a process of its own: it serves client processes on a Unix socket, and does to itself
// on order what cannot be done from outside: blocks its event loop, breaks its queue pairs, changes the membership.
import { rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { NotLeaderError } from '../replica/not-leader-error.js';
import type { Replica } from '../replica/replica.js';
import type { MemberAddress } from '../replica/replica-options.js';
import { ProtectionDomain, QpState, type QueuePair } from '../verbs/index.js';
import { describeError } from './demo/answers.js';
import {
  type BlockMessage,
  type BreakLinksMessage,
  monotonic_ns,
  type OperateMessage,
  type OperatorWish,
  type ToReplica,
} from './demo/messages.js';
import { type Role, runReplicaProcess, send } from './demo/replica-process.js';
import { Means } from './nemesis/history.js';
import { type ClientRequest, onLines, sendLine } from './nemesis/lines.js';
import { encodeRegisterCommand, PROBE, RegisterStore } from './nemesis/register-store.js';

/**
 * Every queue pair that this process made and has not closed: both ends of links, for log and probes. The library hands
 * them to nobody, and should not for a test's sake, so their making is watched.
 */
const queuePairs = new Set<QueuePair>();
const { createQueuePair } = ProtectionDomain.prototype;
ProtectionDomain.prototype.createQueuePair = function (...args) {
  const queuePair = createQueuePair.apply(this, args);
  for (const old of queuePairs) if (old.closed) queuePairs.delete(old);
  queuePairs.add(queuePair);
  return queuePair;
};

class NemesisReplica implements Role {
  private readonly sockets = new Set<Socket>();

  private constructor(
    private readonly replica: Replica<number>,
    private readonly state: RegisterStore,
    private readonly server: Server,
    private readonly members: readonly MemberAddress[],
  ) {
    server.on('connection', (socket) => {
      this.sockets.add(socket);
      socket.on('error', () => {}); // a client that gave up; "close" follows
      socket.on('close', () => this.sockets.delete(socket));
      onLines<ClientRequest>(socket, (request) => void this.serve(socket, request));
    });
  }

  static async begin(
    replica: Replica<number>,
    state: RegisterStore,
    path: string,
    members: readonly MemberAddress[],
  ): Promise<NemesisReplica> {
    rmSync(path, { force: true }); // of an earlier life
    const server = createServer();
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(path, resolve);
    });
    return new NemesisReplica(replica, state, server, members);
  }

  private async serve(socket: Socket, request: ClientRequest): Promise<void> {
    const { id, origin, sequence, fillerBytes, isStateRead, forwardMs = 0, key } = request;
    const payload = encodeRegisterCommand(request, fillerBytes);
    try {
      if (isStateRead === true) {
        sendLine(socket, { id, ...(await this.readState(key)) });
        return;
      }
      const by = this.replica.status().role === 'leader' ? Means.log : Means.forwarded;
      const { result } = await this.replica.propose(payload, {
        ...(origin === 0 ? {} : { session: { origin, sequence } }),
        ...(forwardMs === 0 ? { forward: false } : { timeoutMs: forwardMs }),
      });
      sendLine(socket, result === undefined ? { id, code: 'RESULT_UNKNOWN' } : { id, result, by });
    } catch (error) {
      const { code, message } = describeError(error);
      if (code === 'UNKNOWN') send({ type: 'warning', code, message });
      const leader = error instanceof NotLeaderError ? error.leader : undefined;
      sendLine(socket, leader === undefined ? { id, code } : { id, code, leader });
    }
  }

  /** Whatever this replica is: by lease, behind a barrier, or as a follower. */
  private async readState(key: number): Promise<{ result: number; by: Means }> {
    const read = () => this.state.valueOf(key);
    const leased = this.replica.leasedRead(read);
    if (leased !== undefined) return { result: leased, by: Means.lease };
    const by = this.replica.status().role === 'leader' ? Means.barrier : Means.follower;
    return { result: await this.replica.read(read), by };
  }

  handle(message: ToReplica): void {
    if (message.type === 'block') this.block(message);
    else if (message.type === 'breakLinks') this.breakLinks(message);
    else if (message.type === 'operate') void this.operate(message);
    else if (message.type === 'digest') {
      const { id } = this.replica;
      const { appliedLsn } = this.replica.status();
      send({ type: 'digest', id, appliedLsn, digest: this.state.digest() });
    }
  }

  private async operate({ number, wish }: OperateMessage): Promise<void> {
    let code: string | undefined;
    try {
      await this.fulfil(wish);
    } catch (error) {
      code = describeError(error).code;
    }
    send({ type: 'operated', number, code });
  }

  private async fulfil(wish: OperatorWish): Promise<void> {
    const { replica } = this;
    switch (wish.kind) {
      case 'transfer':
        await replica.transferLeadership(wish.to, { timeoutMs: wish.timeoutMs });
        break;
      case 'setPriority':
        await replica.setPriority(wish.id, wish.priority);
        break;
      case 'remove':
        await replica.remove(wish.id);
        break;
      case 'addLearner':
        await replica.addLearner(this.members[wish.id] as MemberAddress);
        break;
      case 'promote':
        await replica.promote(wish.id, { timeoutMs: wish.timeoutMs });
        break;
    }
  }

  private block({ durationMs }: BlockMessage): void {
    for (const until_ns = monotonic_ns() + durationMs * 1e6; monotonic_ns() < until_ns; );
  }

  private breakLinks({ choices }: BreakLinksMessage): void {
    let count = 0;
    for (const choice of choices) {
      const live = [...queuePairs].filter((queuePair) => !queuePair.closed);
      const queuePair = live[Math.floor(choice * live.length)];
      if (queuePair === undefined) break;
      try {
        queuePair.modify({ state: QpState.ERR });
        count++;
      } catch {
        // The background plane has just closed it.
      }
    }
    send({ type: 'linksBroken', count });
  }

  close(): void {
    this.server.close();
    for (const socket of this.sockets) socket.destroy();
  }
}

const state = new RegisterStore();
runReplicaProcess<number>({
  startedBy: 'the nemesis (quorate/dist/cli/nemesis.js)',
  probe: () => PROBE,
  stateMachine: state,
  begin: (replica, { clientSocket, members }) => {
    if (clientSocket === undefined) throw new Error('the order to open names no socket for clients');
    return NemesisReplica.begin(replica, state, clientSocket, members);
  },
});
