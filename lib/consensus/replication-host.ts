// What a replication plane and the replica that it runs in say to each other: what the plane is made with, and what it
// tells of the log. The plane knows nothing else of its host, so that a replica, the simulator and a rehearsal can each be
// one; who only feeds a state machine from a log, as recovery does, needs this file and not the plane.
import type { Configuration } from './configuration.js';
import type { DurableLog } from './durable-log.js';
import type { ChainPosition } from './entry.js';

/** What a replica is at present. */
export type Role = 'follower' | 'takingOver' | 'leader';

/** Points in time on the background plane's clock, nanoseconds. */
export interface CandidacyStages {
  /** It saw no live leader any more. */
  readonly leaderLostAt_ns: number;
  /** It promised itself its epoch and asked for permission. */
  readonly candidateAt_ns: number;
  /** A majority had granted it. */
  readonly majorityAt_ns: number;
}

/** Where commands go that come out of a log. */
export interface CommandSink {
  /**
   * A committed command, in log order, exactly once per LSN. The payload lies in `bytes` and is valid during the call
   * only. Must be deterministic and must not throw.
   */
  applyCommand(
    lsn: number,
    origin: number,
    sequence: number,
    bytes: Uint8Array,
    payloadOffset: number,
    payloadBytes: number,
  ): void;
}

/** What the plane tells its host. Calls come from inside poll(), flush() and propose(). */
export interface ReplicationHost extends CommandSink {
  /** This replica is the active leader of `epoch`: its noop is committed. */
  onLeader(epoch: number): void;
  /** Leadership or takeover of `epoch` ended; the fate of unfinished proposals is unknown to this replica. */
  onDeposed(epoch: number, reason: string): void;
  /** A configuration is in force here (latest in the log, committed or not). */
  onConfiguration(configuration: Configuration): void;
  /** A configuration was applied, and so is committed; its entry ends at `endLsn`. Not called for a snapshot's. */
  onConfigurationApplied(configuration: Configuration, endLsn: number): void;
  /** Leadership was not handed over, for this reason, and this replica goes on leading. */
  onTransferEnded(reason: string): void;
  /** The log link to the peer failed and must be replaced by a fresh one. */
  onPeerBroken(peer: number): void;
  /** The peer's log is too far behind the ring to be repaired from it; it needs a snapshot from this leader. */
  onSnapshotNeeded(peer: number): void;
  /**
   * The read barriers of this round, and of all before it, are passed: the state machine reflects, now and from now on,
   * every command that was acknowledged, by whichever leader, before they were asked for.
   */
  onReadBarrier(round: number): void;
}

export interface ReplicationOptions {
  readonly id: number;
  readonly bootId: number;
  /** Size of the log ring, a power of two. */
  readonly logBytes: number;
  /** First configuration; also seeds the hash chain, so that logs of different clusters never match. */
  readonly genesis: Configuration;
  /** How long one submit may spin for completions before the host waits for an event instead. */
  readonly spin_ns: number;
  /**
   * For so long flush() waits for as many followers as a commit takes before it WRITEs to the others, too. If those answer, the
   * others get theirs with the next flush or poll. For devices on which a WRITE takes its time in the call that posts it;
   * 0, the default: all are written at once. Without effect in durable mode.
   */
  readonly majorityFirst_ns?: number;
  /**
   * A leader's patience: a follower that blocks recycling of the ring for so long is dropped, and a leader that does not see
   * a majority of the voters for so long leads no more.
   */
  readonly lagTimeout_ns: number;
  /** A voter that is gone for so long is replaced by a spare (replacement.ts); 0, the default: never. */
  readonly replaceAfter_ns?: number;
  /** Most entries that are applied in one go, before the host gets its turn. Default 4096. */
  readonly applyEntriesMax?: number;
  /** Names this process; a durable life has one after the other. Default: the life's only one. */
  readonly processId?: number;
  /**
   * Durable mode: an entry is committed when a majority of the voters has it on disk. The host calls durableProgress()
   * when the log says that more is.
   */
  readonly durableLog?: DurableLog | null;
  /** What an earlier process of this life left behind; its log stands in the ring from `applied` on. */
  readonly recovered?: RecoveredState | null;
}

export interface RecoveredState {
  /** Up to here the state machine has been fed. */
  readonly applied: Readonly<ChainPosition>;
  /** The latest configuration up to there. */
  readonly configuration: Configuration;
  /** Below this LSN the ring does not hold the log. */
  readonly foreignBelowLsn: number;
}
