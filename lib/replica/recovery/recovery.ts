// Coming back from a crash in two stages, so that as few bytes as possible come from others. Stage 1: the state of the
// snapshot that the life before left in its region, and the log behind it in its ring. Stage 2: the log from there on, by
// READs, from a replica that has applied it. The bytes of stage 1 count only up to a place that stage 2 continues: what the
// other replica gives must chain from that place to what it has applied. Until then nothing has had an effect, and if it does
// not come to that this replica begins with nothing, as after the loss of its memory, and gets the whole state.
//
// It is a new life all the same, without a promise or an acknowledgement to its name: nothing here makes it a voter again.
import type { Configuration } from '../../consensus/configuration.js';
import type { ChainPosition } from '../../consensus/entry.js';
import type { CommandSink } from '../../consensus/replication-host.js';
import { LogReplay, LogStretch, type LogTail, SurvivingLog } from '../../consensus/surviving-log.js';
import { errorCode, QuorateError } from '../../errors.js';
import type { StateMachine } from '../replica-options.js';
import type { ReceivedLog } from '../transfer/receiver.js';
import { SnapshotSink } from '../transfer/snapshot-stream.js';
import { turn } from '../turn.js';
import { DONOR_PAUSE_MS, DONOR_ROUNDS_MAX, ENTRIES_PER_TURN_MAX } from './limits.js';
import type { Anchor, Predecessor, Region } from './region.js';

/**
 * `local`: the own region is read. `remote`: what is missing comes from another replica. `applying`: both are put together.
 * `done`: this replica goes on from there. `full`: the region was of no use; the whole state comes from others.
 */
export type RecoveryStage = 'local' | 'remote' | 'applying' | 'done' | 'full';

/** How a replica that was started again got its state back. */
export interface RecoveryStatus {
  /** How far it is. */
  readonly stage: RecoveryStage;
  /** Bytes of state and log that came out of the own region, and are used. */
  readonly localBytes: number;
  /**
   * Bytes that were READ from other replicas: of the log that was missing, or, in stage `full`, of the whole state. What the
   * leader writes into the log afterwards, as to any follower, is not in it.
   */
  readonly remoteBytes: number;
  /** Place in the log up to which the own region was used. */
  readonly localLsn: number;
  /** Place in the log from which this replica went on. */
  readonly lsn: number;
  /** Who gave what was missing; undefined until then. */
  readonly donor: number | undefined;
  /** In stage `full`: why the region was of no use. */
  readonly reason: string | undefined;
}

export interface RecoveryHost {
  readonly id: number;
  readonly region: Region;
  readonly logBytes: number;
  readonly stateMachine: StateMachine<never>;
  /** Replicas that can be asked now, by preference. */
  donors(): readonly number[];
  readLog(
    donor: number,
    after: ChainPosition,
    bytesMax: number,
    onBytes: (bytes: number) => void,
  ): Promise<ReceivedLog>;
  /** Puts the session table of the snapshot in place. */
  restoreSessions(sessions: Uint8Array): void;
  readonly replay: CommandSink;
  readonly onStatus: (status: RecoveryStatus) => void;
  readonly onWarning: (error: Error) => void;
  isClosed(): boolean;
}

/** Where this replica goes on. */
export interface Recovered {
  readonly position: ChainPosition;
  readonly configuration: Configuration;
}

/** Errors of a donor that asking it again, or later, may mend. */
const PASSING: readonly string[] = [
  'QUORATE_NOT_READY',
  'QUORATE_NOT_A_MEMBER',
  'QUORATE_BUSY',
  'QUORATE_BEHIND',
  'QUORATE_CLOSED',
  'QUORATE_DISCONNECTED',
  'QUORATE_PEER_CLOSED',
  'QUORATE_LINK_DEAD',
];

interface LocalState {
  readonly bytes: number;
  /** Null where the state is the one that a replica begins with. */
  readonly sessions: Uint8Array | null;
  readonly put: () => void;
  /** It will not be put in place. */
  readonly abort: (error: Error) => void;
}

export class Recovery {
  private status_: RecoveryStatus = {
    stage: 'local',
    localBytes: 0,
    remoteBytes: 0,
    localLsn: 0,
    lsn: 0,
    donor: undefined,
    reason: undefined,
  };
  /** Until here nothing has had an effect. */
  private isPutting = false;
  /** What the state of the own region goes to. */
  private sink: SnapshotSink | null = null;

  constructor(private readonly host: RecoveryHost) {}

  get status(): RecoveryStatus {
    return this.status_;
  }

  private change(news: Partial<RecoveryStatus>): void {
    this.status_ = { ...this.status_, ...news };
    this.host.onStatus(this.status_);
  }

  /** A state transfer to this replica goes on: its bytes count here while there is no other way. */
  noteTransfer(bytesDone: number, isDone: boolean, lsn: number): void {
    if (this.status_.stage !== 'full') return;
    this.change({ remoteBytes: bytesDone, ...(isDone ? { lsn } : {}) });
  }

  /**
   * Takes what there is, or why it is of no use. Resolves with where to go on; null if the region is of no use, which was told as a warning. Rejects if something failed
   * when the state machine had taken the state already: then its replica cannot go on.
   */
  async run(genesis: Configuration, predecessor: Predecessor | Error): Promise<Recovered | null> {
    try {
      return await this.recover(genesis, predecessor);
    } catch (error) {
      if (this.isPutting || this.host.isClosed()) throw error;
      const reason = (error as Error).message;
      this.change({ stage: 'full', localBytes: 0, localLsn: 0, reason });
      this.host.onWarning(
        new QuorateError(
          'QUORATE_REGION_UNUSABLE',
          `what the process before left in ${this.host.region.path} cannot be used (${reason}); replica ${this.host.id} ` +
            'gets the whole state from others',
          { cause: error },
        ),
      );
      return null;
    }
  }

  private async recover(genesis: Configuration, predecessor: Predecessor | Error): Promise<Recovered> {
    const { host } = this;
    this.change({ stage: 'local' });
    if (predecessor instanceof Error) throw predecessor;
    const { anchor, ring } = predecessor;
    if (anchor.clusterId !== genesis.clusterId) {
      const [mine, theirs] = [anchor.clusterId.toString(16), genesis.clusterId.toString(16)];
      throw new Error(`it is of cluster ${mine}, and this cluster is ${theirs}`);
    }
    const log = new SurvivingLog(ring, anchor.position);
    while (log.scan(ENTRIES_PER_TURN_MAX)) await turn();
    const local = await this.readState(anchor);
    this.change({ stage: 'remote', localBytes: local.bytes });
    const { from, tail, configuration, donor } = await this.continueFrom(log).catch((error: Error) => {
      local.abort(error);
      throw error;
    });
    const localBytes = local.bytes + (from.lsn - anchor.position.lsn);
    this.change({ stage: 'applying', localBytes, localLsn: from.lsn, donor });
    this.isPutting = true;
    local.put();
    if (local.sessions !== null) host.restoreSessions(local.sessions);
    const replay = new LogReplay(anchor.position, anchor.configuration, host.replay);
    while (replay.advance(log.ring, from, ENTRIES_PER_TURN_MAX)) await this.nextTurn();
    const missing = LogStretch.ofPiece(tail.words, from.lsn);
    while (replay.advance(missing, tail.end, ENTRIES_PER_TURN_MAX)) await this.nextTurn();
    if (replay.configuration.version !== configuration.version) {
      const found = replay.configuration.version;
      throw new Error(`the log leads to configuration ${found}, replica ${donor} has applied ${configuration.version}`);
    }
    this.change({ stage: 'done', lsn: tail.end.lsn });
    return { position: { ...tail.end }, configuration: replay.configuration };
  }

  /** The replica was closed: a state machine that has not come to an end with the state of the region is not waited for. */
  close(error: Error): void {
    this.sink?.interrupt(error);
  }

  private async nextTurn(): Promise<void> {
    await turn();
    if (this.host.isClosed()) throw new QuorateError('QUORATE_CLOSED', 'the replica was closed');
  }

  /** The state of the snapshot, aside: nothing has changed until `put` is called. */
  private async readState({ snapshot }: Anchor): Promise<LocalState> {
    const { host } = this;
    if (snapshot === null) return { bytes: 0, sessions: null, put: () => {}, abort: () => {} };
    const sink = new SnapshotSink(host.stateMachine, snapshot.sessionsBytes, snapshot.bytes - snapshot.sessionsBytes);
    this.sink = sink;
    try {
      for await (const piece of host.region.readSnapshot(snapshot)) {
        if (host.isClosed()) throw new QuorateError('QUORATE_CLOSED', 'the replica was closed');
        await sink.write(piece);
      }
      return { bytes: snapshot.bytes, ...(await sink.finish()), abort: (error) => sink.abort(error, host.onWarning) };
    } catch (error) {
      sink.abort(error as Error, host.onWarning);
      throw error;
    }
  }

  /** Stage 2, and the comparison: the furthest place in the own log that another replica's log continues. */
  private async continueFrom(
    log: SurvivingLog,
  ): Promise<{ from: ChainPosition; tail: LogTail; configuration: Configuration; donor: number }> {
    const { host } = this;
    const reasons = new Set<string>();
    /** Those that stood still: each of them costs as long as an answer is waited for. */
    const silent = new Set<number>();
    for (let round = 0; round < DONOR_ROUNDS_MAX; round++) {
      if (round > 0) await new Promise((resolve) => setTimeout(resolve, DONOR_PAUSE_MS));
      if (host.isClosed()) throw new QuorateError('QUORATE_CLOSED', 'the replica was closed');
      const donors = host.donors();
      let isPassing = donors.length === 0;
      for (const from of log.candidates) {
        for (const donor of donors) {
          if (silent.has(donor)) continue;
          if (host.isClosed()) throw new QuorateError('QUORATE_CLOSED', 'the replica was closed');
          try {
            const received = await this.read(donor, from);
            const tail = log.continuation(from, received);
            if (tail !== null) return { from, tail, configuration: received.configuration, donor };
            reasons.add(`the log of replica ${donor} does not continue it at LSN ${from.lsn}`);
          } catch (error) {
            const code = errorCode(error) ?? '';
            if (code === 'QUORATE_TIMEOUT') silent.add(donor);
            isPassing ||= PASSING.includes(code);
            reasons.add(`replica ${donor}: ${(error as Error).message}`);
          }
        }
      }
      if (!isPassing) break;
    }
    const why = reasons.size === 0 ? 'nobody could be asked' : [...reasons].slice(-4).join('; ');
    throw new Error(`it could not be compared with the log of the cluster: ${why}`);
  }

  private read(donor: number, from: ChainPosition): Promise<ReceivedLog> {
    const before = this.status_.remoteBytes;
    return this.host.readLog(donor, from, this.host.logBytes, (bytes) => {
      this.status_ = { ...this.status_, remoteBytes: before + bytes };
    });
  }
}
