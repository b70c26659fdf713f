// What a snapshot is of: the state machine's state, the sessions and the place in the log that both stand for. They are
// read in one moment and change over in one moment, so that none of them ever stands for another place than the others.
import type { Configuration } from '../consensus/configuration.js';
import type { ChainPosition } from '../consensus/entry.js';
import type { ReplicationPlane } from '../consensus/replication-plane.js';
import { QuorateError } from '../errors.js';
import { SessionTable } from '../rsm/session-table.js';
import type { logAfter } from './recovery/log-source.js';
import type { StateMachine } from './replica-options.js';
import { decodeSnapshot, encodeSnapshot } from './snapshot-transfer.js';
import type { DonorHost } from './transfer/donor.js';
import { SnapshotSource } from './transfer/snapshot-stream.js';
import { callUserAtOnce } from './user-code.js';

export interface ReplicatedStateHost {
  readonly id: number;
  readonly stateMachine: StateMachine<never>;
  readonly sessions: SessionTable;
  /** The bytes of the own log. */
  ring(): Uint8Array;
  /** The own log, while there is one. */
  plane(): ReplicationPlane | undefined;
  isClosed(): boolean;
  /** What a call ends with that comes too late. */
  closedError(): QuorateError;
  /** Ends the replica if the action throws. */
  guard(action: () => void): void;
  /** All has changed over to a state of this configuration. */
  onInstalled(configuration: Configuration): void;
}

export class ReplicatedState {
  constructor(private readonly host: ReplicatedStateHost) {}

  private get plane(): ReplicationPlane {
    const plane = this.host.plane();
    if (plane === undefined) throw new QuorateError('QUORATE_NOT_READY', `replica ${this.host.id} has no log yet`);
    return plane;
  }

  /** The state of this moment, for a replica that pulls it. */
  freeze(): ReturnType<DonorHost['freeze']> {
    const { plane } = this;
    const sessions = this.host.sessions.snapshot();
    const source = new SnapshotSource(this.host.stateMachine, sessions);
    return { ...plane.snapshotPlace, sessionsBytes: sessions.length, source };
  }

  /** The state of this moment, as a whole. */
  encode(plane: ReplicationPlane): Uint8Array {
    const { sessions, stateMachine } = this.host;
    const state = callUserAtOnce('snapshot() of the state machine', () => stateMachine.snapshot());
    return encodeSnapshot({ ...plane.snapshotPlace, sessions: sessions.snapshot(), state });
  }

  /** The log that leads to it. */
  logHolder(): Parameters<typeof logAfter>[0] {
    const { plane, host } = this;
    return { id: host.id, ring: host.ring(), ringBeginLsn: plane.ringBeginLsn, place: plane.snapshotPlace };
  }

  /** Takes a snapshot that the leader sent as a whole. */
  install(peer: number, bytes: Uint8Array): void {
    const { plane } = this;
    const { id, stateMachine } = this.host;
    const { position, configuration, sessions, state } = decodeSnapshot(bytes);
    if (plane.role !== 'follower') {
      throw new QuorateError('QUORATE_NOT_FOLLOWER', `replica ${id} leads and takes no snapshot from replica ${peer}`);
    }
    this.put(position, configuration, sessions, () =>
      callUserAtOnce('restore() of the state machine', () => stateMachine.restore(state)),
    );
  }

  /** State, sessions and place in the log change over together. False, without effect, if this replica has applied as much by now. */
  put(position: ChainPosition, configuration: Configuration, sessions: Uint8Array, putState: () => void): boolean {
    const { host } = this;
    const plane = host.plane();
    if (plane === undefined || host.isClosed()) throw host.closedError();
    if (configuration.clusterId !== plane.configuration.clusterId) {
      throw new QuorateError('QUORATE_SNAPSHOT_INVALID', 'the snapshot is of another cluster');
    }
    if (!plane.isSnapshotNews(position)) return false;
    const table = new SessionTable();
    table.restore(sessions); // refused before anything has changed
    host.guard(() => {
      putState();
      host.sessions.restore(sessions);
      plane.installSnapshot(position, configuration);
      host.onInstalled(configuration);
    });
    return true;
  }
}
