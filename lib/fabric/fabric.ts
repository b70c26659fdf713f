// What the consensus core needs from a fabric: one-sided operations on the memory of other replicas, a fence around
// appends to the own log, and the granting and revoking of write permission on it. Two implementations exist: the
// verbs fabric (lib/fabric/verbs-fabric.ts, on both verbs providers) and the simulated one (lib/fabric/sim), which
// models what RDMA does to memory under virtual time. The core never sees anything else of the outside.
//
// Replicas are addressed by id (0 .. MAX_REPLICAS - 1). Each pair of replicas has, per direction, two links: a *probe
// link* (background plane: READ of status, WRITE into the own mailbox slot) and a *log link* (replication plane: WRITE
// and READ of the log). A link has an initiator, which posts, and a responder, whose memory is reached. Links that
// failed are never reused; a fresh one has a new generation number. Every queued operation yields exactly one
// completion: when a link is replaced or closed, what was outstanding on it completes as `failed` before anything that
// is queued on its successor.

/** A completion's status as the core sees it. */
export const FabricStatus = {
  /** The operation took effect. */
  success: 0,
  /** The local fence refused an append, or a request behind it: this replica's epoch has passed. */
  fenced: 1,
  /** The operation failed or was flushed, and the link with it. It may have taken effect, in part or in full. */
  failed: 2,
  /** The peer did not answer at all within the transport's retries (dead process, unreachable host). */
  unreachable: 3,
} as const;

/** Completions of one submit(), in parallel arrays that are overwritten by the next submit(). */
export interface Completions {
  /** Peer the operation went to; the own id for local appends. */
  readonly completionPeer: Int32Array;
  /** Token that was passed when the operation was queued. */
  readonly completionToken: Float64Array;
  /** One of FabricStatus. */
  readonly completionStatus: Int32Array;
}

/** The replication plane's side: log memory of this replica and of its peers. */
export interface ReplicationFabric extends Completions {
  /** The own log ring, as words and as bytes. Peers with permission write here at any time. */
  readonly logWords: Uint32Array;
  readonly logBytes: Uint8Array;
  /** Where entries are built before the fenced append, and where READs of other logs land. Private to this plane. */
  readonly workspaceWords: Uint32Array;
  readonly workspaceBytes: Uint8Array;

  /**
   * Queues a copy of workspace bytes into the own log, executed under the fence, and only while the fence is at
   * `epoch`. If it is not, this and everything queued behind it in the same submit() completes with `fenced`. An append
   * of 0 bytes copies nothing, and tells where the fence stands all the same.
   */
  queueAppend(epoch: number, workspaceOffset: number, logOffset: number, lengthBytes: number, token: number): void;
  /** Queues a WRITE of own log bytes to the same offset of the peer's log. */
  queueWrite(peer: number, logOffset: number, lengthBytes: number, token: number): void;
  /**
   * Queues a WRITE of LSN_BYTES to the peer's log: `lsn`, low word first, as an entry begins with it. It carries what
   * was given here, whatever happens to the own log before it is on the wire.
   */
  queueLsnWrite(peer: number, logOffset: number, lsn: number, token: number): void;
  /** Queues a READ of the peer's log into the workspace. */
  queueRead(peer: number, logOffset: number, lengthBytes: number, workspaceOffset: number, token: number): void;
  /**
   * Posts what was queued, in order, then polls for completions until `wanted` arrived, not counting those of appends, which
   * complete at once, or `spin_ns` passed. Returns how many completions the arrays hold; the core calls again until it gets 0
   * when it must see all.
   */
  submit(spin_ns: number, wanted: number): number;
  /** Whether there is a log link to the peer on which operations can be posted. */
  logConnected(peer: number): boolean;
  /** Takes over the remote key that the peer's grant named for writing to its log (0 where the device needs none). */
  setLogWriteKey(peer: number, key: number): void;
}

/** What the host can tell of a peer's process. */
export const PeerProcessState = {
  /** Nothing: it runs on another host, say. */
  unknown: 0,
  /** It is not stopped. That it makes progress is not said. */
  running: 1,
  /** It is stopped, and makes no progress. */
  stopped: 2,
} as const;
export type PeerProcessState = (typeof PeerProcessState)[keyof typeof PeerProcessState];

/** The background plane's side: status and mailboxes, and permission on the own log. */
export interface BackgroundFabric extends Completions {
  /** The own status region (STATUS_WORDS), remotely readable. */
  readonly statusWords: Uint32Array;
  /** The own mailboxes (MAX_REPLICAS slots of MAILBOX_SLOT_WORDS); each peer may write its slot at any time. */
  readonly mailboxWords: Uint32Array;
  /** The own log ring. */
  readonly logWords: Uint32Array;
  /** Where status READs land: STATUS_WORDS per peer. Private to this plane. */
  readonly probeWords: Uint32Array;
  /** What goes into the peers' mailboxes: MAILBOX_SLOT_WORDS per peer. Private to this plane. */
  readonly outboxWords: Uint32Array;

  /** Queues a READ of the first `lengthBytes` of the peer's status region into its place in probeWords. */
  queueStatusRead(peer: number, lengthBytes: number, token: number): void;
  /**
   * Queues a WRITE of the message in the peer's outbox slot into the own slot of the peer's mailboxes. With `wake` the
   * peer's background plane is woken when it has landed, instead of finding it at its next tick. A peer that stands still
   * can be woken a limited number of times before the link fails, so this is for what is new.
   */
  queueMailboxWrite(peer: number, token: number, wake: boolean): void;
  /** The same for the words of the slot that recall a lease (lease-recall.ts). Wakes nobody. */
  queueRecallWrite(peer: number, token: number): void;
  /**
   * Bit per replica whose process is known to have ended since its probe link was made. Only where the host can tell;
   * 0 means nothing.
   */
  exitedMask(): number;
  /** Which process of the replica that is: more than one may have been started under its id. */
  exitedProcess(peer: number): number;
  /** What this host sees of the process at the other end of the probe link, at this instant. */
  processState(peer: number): PeerProcessState;
  submit(spin_ns: number, wanted: number): number;
  probeConnected(peer: number): boolean;

  /** Refuses, when it returns, every append to the own log of a lower epoch (see queueAppend). */
  raiseFence(epoch: number): void;
  /**
   * Takes away the peer's permission to write the own log. Synchronous: when it returns no byte of any earlier WRITE
   * of this peer can still land. Throws if that cannot be proven; then nobody may be granted.
   */
  revokeLogWriter(peer: number): void;
  /**
   * Lets the peer write the own log from now on; returns the key it needs (0 where the device needs none). Throws if its
   * link turns out to be dead; then nobody can write, and incomingLogGeneration() is 0 until there is a fresh one. Throws,
   * too, if the device fails; then it may be that the peer can write: logWriter() tells.
   */
  enableLogWriter(peer: number): number;
  /** Peer that can write the own log, or may be able to; -1 if it is proven that nobody can. */
  logWriter(): number;
  /** Generation of the peer's current log link towards this replica (the peer initiates), 0 where there is none. */
  incomingLogGeneration(peer: number): number;
  /** Generation of this replica's current log link to the peer, as the peer knows it; 0 where there is none. */
  outgoingLogGeneration(peer: number): number;
}
