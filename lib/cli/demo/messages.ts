// What the parent process of a demo or nemesis run and its replica processes tell each other over Node's IPC channel
// (serialization "advanced", so typed arrays travel as such). Stamps are CLOCK_MONOTONIC, which all processes of a host
// share.
import type {
  DurableOptions,
  MemberAddress,
  ProfileName,
  ReplicaOptions,
  ReplicaStatus,
} from '../../replica/replica-options.js';

/** CLOCK_MONOTONIC in nanoseconds, exact for the first 104 days of uptime. */
export function monotonic_ns(): number {
  return Number(process.hrtime.bigint());
}

export interface OpenMessage {
  readonly type: 'open';
  readonly id: number;
  readonly members: readonly MemberAddress[];
  readonly clusterKey: Uint8Array;
  readonly device: string | undefined;
  readonly profile: ProfileName | undefined;
  readonly openTimeoutMs: number;
  /** Origin of the commands that this process proposes on its own; see ServingMessage. */
  readonly probeOrigin: number;
  /** Undefined: the library's default. */
  readonly logBytes: number | undefined;
  /** Undefined: the library's default. */
  readonly permissionStrategy: PermissionStrategy | undefined;
  /** Where its log and a snapshot of its state outlive the process; undefined: they do not. */
  readonly regionDirectory: string | undefined;
  /** Unix socket on which client processes are served; undefined where there are none. */
  readonly clientSocket: string | undefined;
  /** Directory and snapshots of a durable replica; undefined for one that is not. */
  readonly durable: DurableOptions | undefined;
}

export type PermissionStrategy = NonNullable<ReplicaOptions['permissionStrategy']>;

/** Commands to propose, in this order. */
export interface ProposeMessage {
  readonly type: 'propose';
  readonly origin: number;
  /** Comes back with every answer, so that the parent can tell answers to a command that it sent more than once. */
  readonly generation: number;
  readonly sequences: Uint32Array;
  readonly payloadBytes: Uint32Array;
  /** The payloads one after the other. */
  readonly payloads: Uint8Array;
}

/** Asks for the state, for the comparison at the end. */
export interface ReportRequest {
  readonly type: 'report';
  readonly origin: number;
}

/** Asks a replica to propose commands one at a time and to measure each; see MeasuredMessage. */
export interface MeasureRequest {
  readonly type: 'measure';
  readonly warmUp: number;
  readonly count: number;
  readonly payloadBytes: number;
}

/** Asks a replica to look at its status less often, or more often again: each look and report takes processor time. */
export interface StatusIntervalMessage {
  readonly type: 'statusInterval';
  readonly intervalMs: number;
}

export interface CloseMessage {
  readonly type: 'close';
}

/** A fault: keeps the main thread busy, so that its event loop does not turn. */
export interface BlockMessage {
  readonly type: 'block';
  readonly durationMs: number;
}

/** A fault: moves queue pairs of this process to the error state, as a device does when it gives a connection up. */
export interface BreakLinksMessage {
  readonly type: 'breakLinks';
  /** Which of the live queue pairs, in the order of their making: one number in [0, 1) for each to be broken. */
  readonly choices: readonly number[];
}

/** A wish of the cluster's operator, which only a leader fulfils. */
export type OperatorWish =
  /** Leadership goes to another voter, by default to the one that would be elected. */
  | { readonly kind: 'transfer'; readonly to: number | undefined; readonly timeoutMs: number }
  | { readonly kind: 'setPriority'; readonly id: number; readonly priority: number }
  | { readonly kind: 'remove'; readonly id: number }
  | { readonly kind: 'addLearner'; readonly id: number }
  | { readonly kind: 'promote'; readonly id: number; readonly timeoutMs: number };

/** Asks the leader for it; see OperatedMessage. */
export interface OperateMessage {
  readonly type: 'operate';
  /** Comes back with the answer. */
  readonly number: number;
  readonly wish: OperatorWish;
}

/** Asks for a digest of the state. */
export interface DigestRequest {
  readonly type: 'digest';
}

export type ToReplica =
  | OpenMessage
  | ProposeMessage
  | ReportRequest
  | MeasureRequest
  | StatusIntervalMessage
  | CloseMessage
  | BlockMessage
  | BreakLinksMessage
  | OperateMessage
  | DigestRequest;

/** The replica is part of a formed cluster. */
export interface OpenedMessage {
  readonly type: 'opened';
  readonly at_ns: number;
}

/** Sent while anything changes, and after a quiet time. */
export interface StatusMessage {
  readonly type: 'status';
  readonly at_ns: number;
  readonly status: ReplicaStatus;
}

/** This replica became leader. */
export interface LeaderMessage {
  readonly type: 'leader';
  readonly epoch: string;
  readonly at_ns: number;
}

/**
 * The first command that this replica proposed as leader of the epoch was acknowledged (committed and applied). Every
 * new leader proposes one at once, so that the time of it is the leader's own and not that of messages to the parent.
 */
export interface ServingMessage {
  readonly type: 'serving';
  readonly epoch: string;
  /** The command lies below this LSN. */
  readonly commitLsn: number;
  readonly leaderAt_ns: number;
  readonly at_ns: number;
}

export interface DeposedMessage {
  readonly type: 'deposed';
  readonly epoch: string;
  readonly reason: string;
  readonly at_ns: number;
}

/** Commands that were committed and applied. */
export interface AcknowledgedMessage {
  readonly type: 'acknowledged';
  readonly origin: number;
  readonly generations: Uint32Array;
  readonly sequences: Uint32Array;
  /** From the call of propose() until its promise settled. */
  readonly latency_ns: Float64Array;
  /** How many of them the session table recognised as applied before. */
  readonly duplicates: number;
}

/** Commands that were not, or whose fate is unknown to this replica. */
export interface RefusedMessage {
  readonly type: 'refused';
  readonly origin: number;
  readonly generations: Uint32Array;
  readonly sequences: Uint32Array;
  /** Code of the last error; QUORATE_NOT_LEADER and the like are part of normal operation. */
  readonly code: string;
  readonly message: string;
}

/** State of a replica, taken in one piece. */
export interface ReportMessage {
  readonly type: 'report';
  readonly id: number;
  readonly appliedLsn: number;
  /** Of the key-value state. */
  readonly digest: string;
  readonly keys: number;
  /** Of the record of what was applied. */
  readonly auditDigest: string;
  /** How often sequence n + 1 of the origin asked for was applied; saturates at 255. */
  readonly applications: Uint8Array;
  /** Commands that were applied when their predecessor in the session had not been. */
  readonly outOfOrder: number;
}

/** Digest of a replica's state and the LSN it stands for, taken in one piece. */
export interface DigestMessage {
  readonly type: 'digest';
  readonly id: number;
  readonly appliedLsn: number;
  readonly digest: string;
}

/** What came of a wish. */
export interface OperatedMessage {
  readonly type: 'operated';
  readonly number: number;
  /** Code of the error with which it was refused or given up; undefined if it was fulfilled. */
  readonly code: string | undefined;
}

/** How many queue pairs were broken by order. */
export interface LinksBrokenMessage {
  readonly type: 'linksBroken';
  readonly count: number;
}

export interface MeasuredMessage {
  readonly type: 'measured';
  /** HDR histogram in nanoseconds, compressed, base64. */
  readonly histogram: string;
  readonly count: number;
  readonly wall_ns: number;
  /** What the replica was from the first of them to the last, in one epoch; null if that changed in between. */
  readonly role: ReplicaStatus['role'] | null;
}

/** An Error that needs attention but not action. */
export interface WarningMessage {
  readonly type: 'warning';
  readonly code: string;
  readonly message: string;
}

/** The replica could not open, or stopped. */
export interface FailedMessage {
  readonly type: 'failed';
  readonly during: 'open' | 'run' | 'measure' | 'close';
  readonly code: string;
  readonly message: string;
}

export type FromReplica =
  | OpenedMessage
  | StatusMessage
  | LeaderMessage
  | ServingMessage
  | DeposedMessage
  | AcknowledgedMessage
  | RefusedMessage
  | ReportMessage
  | DigestMessage
  | LinksBrokenMessage
  | OperatedMessage
  | MeasuredMessage
  | WarningMessage
  | FailedMessage;
