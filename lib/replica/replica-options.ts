// What a user of the package passes to Replica.open() and gets back: options, the state machine contract, status.
import type { BackgroundProfile } from '../consensus/background-plane.js';
import type { MemberRole } from '../consensus/configuration.js';
import type { PeerPhase } from '../consensus/follower.js';
import type { ReplacementNews } from '../consensus/replacement.js';
import type { Role } from '../consensus/replication-host.js';
import type { QuorateError } from '../errors.js';
import type { RecoveryStatus } from './recovery/recovery.js';
import type { RegionStatus } from './recovery/region-keeper.js';
import type { TransferStatus } from './transfer/progress.js';

/**
 * The replicated state. Every replica applies the same commands in the same order, so apply() must be deterministic:
 * no clock, no randomness, no I/O. apply(), snapshot(), restore() and attachMemory() must not be async. A command that is invalid for the
 * application is answered by its result; an exception thrown by apply() is a defect of the state machine, and the replica
 * stops rather than diverge.
 */
export interface StateMachine<Result = unknown> {
  /**
   * Applies one committed command and returns its result, which propose() resolves with at the replica that proposed
   * it. `command` is valid during the call only: copy what must be kept.
   */
  apply(command: Uint8Array, lsn: number): Result;
  /** The whole state as bytes, for a replica that is too far behind to be brought up to date from the log. */
  snapshot(): Uint8Array;
  /** Replaces the whole state by what snapshot() of another replica returned. */
  restore(snapshot: Uint8Array): void;
  /**
   * The same bytes as snapshot() would return now, piece by piece, so that a large state is neither copied at once nor
   * in memory twice. The stream is of the moment of this call: it must not see commands that are applied while it is
   * read. Two replicas may be given the state at a time, while a durable replica stores a snapshot besides: each by a stream
   * of its own moment. A piece that does not come within 20 s is not waited for, nor does one follow 65,536 that were empty:
   * the snapshot fails. Each piece is used before the next one is asked for, unless the stream has taken(). If the stream is
   * abandoned its iterator's return() is called. `lengthBytes`, if the stream has it, is the length of all of it: it tells the
   * time that is left, and that it is more than may be kept. Without this method snapshot() is used.
   */
  snapshotChunks?(): SnapshotStream;
  /**
   * As restore(), from pieces of any size, each of which is valid until the next one is asked for. Must leave the
   * present state as it is, which commands may still be applied to, and resolve with a function that puts the new state
   * in its place; that is called when the rest of the replica changes over, or never. Rejects, as the iteration does,
   * when the transfer is given up. Without this method all bytes are collected for restore(), at most 2 GiB of them.
   */
  restoreChunks?(chunks: AsyncIterable<Uint8Array>): Promise<() => void>;
  /**
   * Called by Replica.open(), before anything else: a state machine that keeps its state in memory from here is
   * transferred without copies, by READs from where it lies at the donor, if the stream of snapshotChunks() has taken(), to
   * where it shall be at the receiver, if there is restoreInPlace(). State that a state machine has already is its own to
   * move; Replica.forceNewCluster() does not call this, and transfers of such a replica copy.
   */
  attachMemory?(memory: StateMemory): void;
  /**
   * As restoreChunks(), which it is preferred to, but the state machine says where the bytes go instead of being given
   * them. The present state must be left as it is. `lengthBytes` is the size of the state where that is known.
   */
  restoreInPlace?(lengthBytes: number | undefined): RestoreInPlace;
}

/** Memory that the READs of state transfers reach, of one replica; given to StateMachine.attachMemory(). */
export interface StateMemory {
  /**
   * Memory outside of the JavaScript heap, at the beginning of a page, all zero. At most 256 areas at a time, which may be
   * of any size: few large ones are better than many small ones. On RDMA devices it counts against RLIMIT_MEMLOCK. It
   * stays readable when the replica is closed.
   *
   * @throws QuorateError QUORATE_LIMIT, QUORATE_MEMLOCK, QUORATE_SYSTEM, QUORATE_UNSUPPORTED (longer than an ArrayBuffer can
   * be), QUORATE_CLOSED (the replica is closed); RangeError QUORATE_OUT_OF_RANGE; TypeError QUORATE_INVALID_ARGUMENT
   */
  allocate(lengthBytes: number): Uint8Array;
  /**
   * Gives back what allocate() gave, by any view of it, when no transfer needs it any more. Its views are detached then.
   *
   * @throws TypeError QUORATE_INVALID_ARGUMENT
   */
  release(bytes: Uint8Array): void;
}

/** What restoreInPlace() returns. */
export interface RestoreInPlace {
  /**
   * The place of the next bytes, of any length: views of memory from attachMemory() are filled by READs where they are 4
   * KiB long or longer, everything else by a copy. Called ahead of the bytes, so what came before may not be there yet.
   * Throws if the state machine can take no more: that ends the transfer.
   */
  next(): Uint8Array;
  /**
   * All bytes are in their places, so many of them. Returns, or resolves with, a function that puts the new state in the
   * place of the present one; that is called when the rest of the replica changes over, or never.
   */
  finish(lengthBytes: number): (() => void) | Promise<() => void>;
  /**
   * The transfer is given up, or the state is of no use any more, also after finish() or while that is under way. Nothing is
   * written to the places any more: they are the state machine's again.
   */
  abort?(error: Error): void;
}

/** What snapshotChunks() returns. */
export type SnapshotStream = (Iterable<Uint8Array> | AsyncIterable<Uint8Array>) & {
  /** Bytes of all pieces together. */
  readonly lengthBytes?: number;
  /**
   * With this method, pieces that lie in memory from attachMemory() are READ where they are instead of being copied: each
   * must stay as it is, also when further ones have been asked for, until this tells that so many bytes from the beginning
   * of the stream are not needed any more; no more than 64 MiB and a piece are asked for beyond that. Called in the end with
   * all bytes that the iterator gave, whether the transfer succeeded or not; must not throw, nor be async.
   */
  taken?(lengthBytes: number): void;
};

/** A replica's place in the cluster. */
export interface MemberAddress {
  /** 0 .. 15, unique in the cluster. */
  readonly id: number;
  /** Host name or address of the control channel, at most 255 bytes. */
  readonly host: string;
  /** TCP port of the control channel. */
  readonly port: number;
  /**
   * Election priority, 0 (default) .. 1000: among the voters that can lead the one with the highest priority stands for
   * election, at equal priority the one with the lowest id. A leader is not replaced by one of higher priority.
   */
  readonly priority?: number;
}

/** A member to be added: an id that is not in use, and where its process will listen. */
export type NewMember = MemberAddress;

/** A profile of failure detection by name, see PROFILES. */
export type ProfileName = 'fast' | 'balanced' | 'relaxed';

/**
 * Scheduling of the background thread, which beats, detects failures and grants permission. What the process has no right
 * to is reported by a "warning" (QUORATE_SYSTEM), and the replica runs without it.
 */
export interface BackgroundScheduling {
  /**
   * SCHED_FIFO with this priority, 1 .. 99: the thread then runs as soon as it wakes, whatever else the host does. Takes
   * CAP_SYS_NICE, or RLIMIT_RTPRIO of at least the priority. See sched(7).
   */
  readonly realtimePriority?: number;
  /** Processors that the thread may run on, by number. See sched_setaffinity(2). */
  readonly cpus?: readonly number[];
}

/** See docs/OPERATIONS.md for what to set against what. */
export interface LeaseOptions {
  /**
   * For how long a voter that has heard from the leader lets nobody else lead, microseconds: 100 .. half the profile's
   * takeover timeout. Longer leases bear more jitter before reads have to ask a majority; one that is longer than the
   * profile's detection time delays failovers by the difference, unless the leader's memory can be reached, in which it
   * is taken back, or its process is known to have ended.
   * Default: two ticks less than the detection time; no leases where that is less than 5 ticks, or out of the range.
   * Replicas may have different ones.
   */
  readonly lengthUs?: number;
  /**
   * By how much the rate of a replica's clock (CLOCK_MONOTONIC) may differ from true time, parts per million, 0 ..
   * 500,000; the same at all replicas. Where a clock is worse than that, reads by lease may be stale. Default 1000.
   */
  readonly driftBoundPpm?: number;
}

/** See docs/OPERATIONS.md for what it costs. */
export interface DurableOptions {
  /** Where this replica keeps its log and its state; no other one may use it. Made if it is not there. */
  readonly directory: string;
  /**
   * A snapshot of the state is stored, and the log before it removed, when so many bytes of log were written since the
   * last one; 64 KiB .. 1 TiB, default 64 MiB. More is longer to replay at the next start.
   */
  readonly snapshotAfterBytes?: number;
}

/** What a durable replica's disk holds. */
export interface DurableStatus {
  /** The directory, as an absolute path. */
  readonly directory: string;
  /** Up to here the log is on this replica's disk. */
  readonly syncedLsn: number;
  /** The last snapshot that is on disk stands for this LSN, 0 if there is none. */
  readonly snapshotLsn: number;
  /** Code of the error that ended the use of the disk, undefined while it works. */
  readonly failure: string | undefined;
}

/** Options of Replica.open(). */
export interface ReplicaOptions<Result = unknown> {
  /** This replica's id; must be one of `members`, or, with `join`, the one that it is added with. */
  readonly id: number;
  /** All founding members, this one included; the same list at every replica. Either this or `join`. */
  readonly members?: readonly MemberAddress[];
  /**
   * Joins a cluster that exists instead of founding one: some members to ask, those that are likely to be up. The
   * replica waits until the leader has added it (Replica.addLearner() or addSpare(), before or after this starts), and
   * open() resolves when it follows the leader. A member that was added this way is started this way again.
   */
  readonly join?: readonly MemberAddress[];
  /** With `join`: where this replica's control channel listens; the address that it is added with. */
  readonly address?: {
    /** Name or address on which to listen. */
    readonly host: string;
    /** TCP port. */
    readonly port: number;
  };
  /** Pre-shared key of the cluster: 16 to 1024 bytes, the same at every replica. Authenticates the control channel. */
  readonly clusterKey: Uint8Array | string;
  /** What the committed commands are applied to. */
  readonly stateMachine: StateMachine<Result>;
  /**
   * Device to use: "shm" (processes of one host) or the name of an RDMA device ("rxe0", "mlx5_0").
   * Default: the first RDMA device with an active port, else "shm".
   */
  readonly device?: string;
  /** Port of the RDMA device, default 1. */
  readonly devicePort?: number;
  /** Index of the GID to use; default: the RoCE v2 GID of an IPv4 address, else see chooseGid(). */
  readonly gidIndex?: number;
  /**
   * Directory of the shm provider's segments; the same at every replica of the host. Default: the
   * environment variable QUORATE_SHM_DIR, else /dev/shm/quorate-<uid>.
   */
  readonly shmDirectory?: string;
  /**
   * Size of the log ring in bytes, a power of two from 64 KiB to 1 GiB; the same at every replica (warning
   * QUORATE_CONFIGURATION_MISMATCH, and no links), and for good where it is durable. Default 16 MiB.
   */
  readonly logBytes?: number;
  /** Failure detection: a named profile or explicit values. Default: "balanced" on hardware and shm, "relaxed" on rxe. */
  readonly profile?: ProfileName | BackgroundProfile;
  /**
   * Leases, by which the leader reads without asking a majority (see Replica.leasedRead()); "off" for none. This replica's
   * part as a voter and as the leader. Default: on, with the length that the profile gives.
   */
  readonly lease?: LeaseOptions | 'off';
  /** How the background thread is scheduled. Default: as any other thread, with short time slices. */
  readonly backgroundThread?: BackgroundScheduling;
  /** How the right to write the log is taken away; default: the fastest that the device makes synchronous. */
  readonly permissionStrategy?: 'mr-dereg' | 'qp-flush' | 'qp-flags';
  /**
   * Most proposals that wait for commit at a time, and as many that were forwarded, 1 .. 2^24; beyond it propose() rejects with
   * QUORATE_BACKPRESSURE. Default 65536.
   */
  readonly pendingProposalsMax?: number;
  /**
   * Most calls of readBarrier(), and as many of read() at followers, that wait at a time, 1 .. 2^24; beyond it they reject
   * with QUORATE_BACKPRESSURE. Default 65536.
   */
  readonly pendingReadBarriersMax?: number;
  /**
   * A voter that is gone for so long, in milliseconds, is replaced by a spare without anybody's asking (event
   * "replacement"): gone means that its process is not trusted by the leader, or not linked with it. At least 1000 ms, and
   * ten times the interval at which the profile has the leader look; well above the time that a restart takes. The leader's
   * value counts, so it should be the same everywhere. Default 0: never.
   */
  readonly replaceAfterMs?: number;
  /**
   * Keeps the log on disk: a command is acknowledged when a majority of the voters has synced it, and nothing that was
   * acknowledged is lost when all of them lose power. The same at all replicas. `true`: in the directory
   * `quorate-<id>` of the working directory. Default false. See docs/OPERATIONS.md.
   */
  readonly durable?: boolean | DurableOptions;
  /** How long open() waits until the replica is part of a formed cluster, 1 .. 2^31 - 1, default 30,000 ms. */
  readonly openTimeoutMs?: number;
  /**
   * Ends open(), which then rejects with the signal's reason and leaves nothing behind: at once while it waits for the cluster,
   * else when the step that it is at is over, such as reading what a disk holds. Without effect on a replica that is open.
   */
  readonly signal?: AbortSignal;
  /**
   * False: open() resolves as soon as the replica knows its cluster, and a durable one has all that its disk holds, whether
   * anybody leads or not. For a look at the replicas that are left when a majority is lost, and Replica.forceNewCluster().
   * Default true.
   */
  readonly waitForLeader?: boolean;
  /**
   * Keeps the log and a snapshot of the state in shared memory that outlives this process, so that the next one with this id
   * and cluster key gets most of its state from there and only the rest from others (see `status().recovery`). It costs as
   * much memory as the state has, twice that while a snapshot is written, and stays when the process has ended, until the
   * replica is removed from the cluster or the directory is. Default: not.
   */
  readonly surviveCrash?: boolean | SurviveCrashOptions;
  /**
   * On device "shm": memory and descriptors of this process outlast it for so long, milliseconds 0 .. 1000, when it is
   * killed. Giving them back takes the kernel 10 ms and more of a processor that the failover needs. Default 20; 0 for not
   * at all. It takes a child process that sleeps, "quorate-hold" (ExitHold of quorate/verbs). For so long the
   * process's ports stay bound and its connections open.
   */
  readonly holdAtExitMs?: number;
  /**
   * Has V8 keep what it compiles of functions that do not run for long, which it forgets otherwise: those of a takeover, for
   * example. A setting of the whole process and for good, as `node --no-flush-bytecode`: it is made if one of its replicas
   * does not say false. Costs memory for the code of the application that runs once; and V8 takes code caches of before for
   * those of another V8, so that worker threads that start later take some milliseconds longer. While this replica opens, V8
   * also compiles functions at their first call, as with `node --always-sparkplug`. Default true; without effect where a
   * replica does not rehearse its takeovers.
   */
  readonly keepCompiledCode?: boolean;
  /**
   * Runs some forty takeovers of three small replicas in shared memory when this one opens, so that V8 has compiled what a
   * real one runs: on shm the first failover takes 1 to 2 ms instead of some 10, and opening takes 0.1 to 0.2 s more of
   * each of two threads. False where a start costs more than a slow failover: in tests of a service, say. Default true, but
   * false on a software device with profile `relaxed`.
   */
  readonly rehearseTakeovers?: boolean;
}

/** Where and how much of a replica outlives its process. */
export interface SurviveCrashOptions {
  /** Absolute path of a directory on tmpfs, this user's alone (0700); made if it is not there. Default: as for `shmDirectory`. */
  readonly directory?: string;
  /**
   * Largest snapshot that is kept, in bytes, 0 .. 1 TiB. Default 1 GiB. With a larger state nothing is kept, which is told as a
   * warning (QUORATE_LIMIT); when it has become smaller, it is kept within ten minutes.
   */
  readonly snapshotBytesMax?: number;
}

/**
 * Names a command for exactly-once execution across retries and leader changes. 65,536 sessions are remembered: when another
 * one begins the one that applied a command longest ago is forgotten. Its next command is refused (QUORATE_SESSION_GAP), and
 * its first one, repeated so late, is applied again.
 */
export interface SessionCommand {
  /** Number of the client, chosen once at random (1 .. 2^53 - 1). */
  readonly origin: number;
  /** Number of the command: 1, 2, 3 ... A session applies its commands in this order and each at most once. */
  readonly sequence: number;
}

/** Options of Replica.read(). */
export interface ReadOptions {
  /**
   * How long read() may wait, 1 .. 2^31 - 1, default 5000 ms. At the leader the default is that it waits until the
   * leadership ends, which it does when no majority was seen for a second.
   */
  readonly timeoutMs?: number;
}

/** Options of Replica.propose(). */
export interface ProposeOptions {
  /**
   * Makes it safe to propose the command again: a session applies each number once. propose() does so by itself when
   * leadership changes before the outcome is known, unless `forward` is false.
   */
  readonly session?: SessionCommand;
  /** Where this replica does not lead: has the leader propose it. Default true; false: QUORATE_NOT_LEADER. */
  readonly forward?: boolean;
  /**
   * How long a proposal that is forwarded, or has a session, waits for a leader and its answer, 1 .. 2^31 - 1, default
   * 5000 ms. A leader's own proposals are settled by commit or by the end of its leadership, without a session whatever
   * is given here, and with one if nothing is.
   */
  readonly timeoutMs?: number;
}

/** What propose() resolves with, once the command is committed and applied at the leader. */
export interface ProposeResult<Result = unknown> {
  /** Position of the command in the log. */
  readonly lsn: number;
  /**
   * What StateMachine.apply() returned. Undefined when `duplicate` and the result is not kept: that is done for the last
   * command of each session, if it is null, a boolean, a number, a string of at most 256 characters, or at most 256 bytes.
   */
  readonly result: Result | undefined;
  /** True if the session had applied this sequence number before; then it was not applied again. */
  readonly duplicate: boolean;
}

/** Another replica as this one sees it. */
export interface PeerStatus {
  /** Number of the peer. */
  readonly id: number;
  /** Links to the peer exist. */
  readonly linked: boolean;
  /** The failure detector trusts the peer. */
  readonly trusted: boolean;
  /** The peer is a voter of the configuration in force, in the life that is linked. */
  readonly voter: boolean;
  /** Leader's view of the peer's log, "none" elsewhere. */
  readonly phase: PeerPhase;
}

/**
 * When this replica's last takeover went through its stages: CLOCK_MONOTONIC in nanoseconds, the same clock in all
 * processes of the host, so that stages can be set against what happened elsewhere.
 */
export interface TakeoverStages {
  /** Epoch as "counter.incarnation". */
  readonly epoch: string;
  /** It saw no live leader any more. */
  readonly leaderLostAtNs: number;
  /** It promised itself the epoch and asked for permission. */
  readonly candidateAtNs: number;
  /** A majority of the voters had granted it. */
  readonly majorityAtNs: number;
  /** A majority held its epoch's first entry: from here on it led. */
  readonly activeAtNs: number;
}

/** A member of the configuration in force, as this replica sees it. */
export interface MemberStatus {
  /** Number of the member. */
  readonly id: number;
  /** Voters decide and may lead; learners get the log and count for nothing; spares get no log. */
  readonly role: MemberRole;
  /** Number of the process's present life by the configuration, 0 while none has been seen. */
  readonly bootId: number;
  /** Where its control channel listens. */
  readonly host: string;
  /** TCP port of its control channel. */
  readonly port: number;
  /** Of candidates that hold the whole log, that with the higher one is preferred. */
  readonly priority: number;
  /** A voter that lost its memory: a learner that is promoted by itself once it has caught up. */
  readonly returning: boolean;
  /** A learner that is to take the place of this voter, which is gone. */
  readonly replaces: number | undefined;
  /** Leader's view of the member's log: "active" for itself; "none" elsewhere. */
  readonly phase: PeerPhase;
  /** At the leader: up to where the member holds the leader's log. 0 elsewhere. */
  readonly acknowledgedLsn: number;
}

/** What Replica.status() returns. */
export interface ReplicaStatus {
  /** Number of this replica. */
  readonly id: number;
  /** What it is at present. */
  readonly role: Role;
  /**
   * Id of the leader, or undefined if this replica knows none. One that is gone counts until another replica stands for
   * election: whether it is alive, `trusted` of the peer tells.
   */
  readonly leader: number | undefined;
  /** Promised epoch as "counter.incarnation". */
  readonly epoch: string;
  /** Up to here the log is known to be committed. */
  readonly commitLsn: number;
  /** Up to here the state machine has applied it. */
  readonly appliedLsn: number;
  /** End of the log here. */
  readonly tailLsn: number;
  /** Epoch of the last entry of the log here, as "counter.incarnation"; see bestSurvivor(). */
  readonly tailEpoch: string;
  /** Names the cluster, in hexadecimal digits; undefined until this replica is part of one. */
  readonly clusterId: string | undefined;
  /** This replica is a voter of the configuration in force, in its present life. */
  readonly isVoter: boolean;
  /** Name of the device in use. */
  readonly device: string;
  /** "shm" or "verbs", by the device. */
  readonly fabric: 'shm' | 'verbs';
  /** How the right to write is taken away. */
  readonly permissionStrategy: string;
  /** Name of the profile, or "custom". */
  readonly profile: string;
  /** Ids of the voters. */
  readonly voters: readonly number[];
  /** Counts changes of the configuration. */
  readonly configurationVersion: number;
  /** All members of the configuration in force, by id. */
  readonly members: readonly MemberStatus[];
  /** Replica to which this leader is handing over, undefined if it is not. */
  readonly transferringTo: number | undefined;
  /** Proposals that wait for commit, here or at the leader that they were forwarded to. */
  readonly pendingProposals: number;
  /** Calls of readBarrier(), and of read() at a follower, that wait. */
  readonly pendingReadBarriers: number;
  /** At the leader: for how long its lease holds from now on, microseconds; 0 without one. */
  readonly leaseRemainingUs: number;
  /** The other replicas. */
  readonly peers: readonly PeerStatus[];
  /** State transfers in which this replica takes part now. */
  readonly transfers: readonly TransferStatus[];
  /** How this process got its state back from what an earlier one left; undefined if there was nothing, or no `surviveCrash`. */
  readonly recovery: RecoveryStatus | undefined;
  /** What this process would leave behind if it died now; undefined without `surviveCrash`. */
  readonly region: RegionStatus | undefined;
  /** The last takeover that made this replica the leader, undefined if there was none. */
  readonly lastTakeover: TakeoverStages | undefined;
  /** What this replica's disk holds; undefined if it is not durable. */
  readonly durable: DurableStatus | undefined;
}

/**
 * Events of a Replica: "leader" (this replica or another became leader), "deposed" (this replica stopped leading or
 * failed a takeover), "configuration", "peer" (a peer was reached or lost), "warning" (an Error that needs attention but
 * not action by the program), "fatal" (the replica stopped: an invariant or the state machine failed), "removed" (this
 * replica is no member any more and closes: an Error with code QUORATE_REMOVED), "transfer" (a state transfer in which
 * this replica is leader, receiver or donor begins, goes on, ends: at each change of state and ten times a second),
 * "replacement" (a step of the automatic replacement of a voter is committed, told by every member that learns of it),
 * "recovery" (the return from a crash with `surviveCrash` made a step).
 */
export interface ReplicaEvents {
  /**
   * Leadership changed; undefined: nobody is known to lead, which is told when it has been so for 10 ms. A leader that is gone
   * counts until another replica stands for election.
   */
  leader: [leader: number | undefined, epoch: string];
  /** This replica stopped leading, or failed a takeover. */
  deposed: [epoch: string, reason: string];
  /** Another configuration is in force. */
  configuration: [voters: readonly number[], version: number];
  /**
   * True: this replica has connected to the peer, perhaps again; whether there are links by now, `status().peers` tells.
   * False: the link by which it reads the peer's heartbeat broke, and is made anew.
   */
  peer: [id: number, reached: boolean];
  /** Needs attention, not action by the program. What was found before open() resolved is told right after it has. */
  warning: [error: NodeJS.ErrnoException];
  /** The replica stopped. Without a listener the error is thrown, as an uncaught exception. */
  fatal: [error: NodeJS.ErrnoException];
  /** This replica is no member any more and closes. */
  removed: [error: QuorateError];
  /** A transfer of the state began, went on, or ended. */
  transfer: [transfer: TransferStatus];
  /** A spare takes the place of a voter that is gone. */
  replacement: [news: ReplacementNews];
  /** The return from a crash made a step; the first ones come before open() has resolved, so see also `status().recovery`. */
  recovery: [status: RecoveryStatus];
}
