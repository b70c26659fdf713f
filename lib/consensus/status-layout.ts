// Word indexes of the fields inside the sealed blocks: the three of a replica's status region and the mailbox message
// (memory that other replicas read or write by RDMA), and the two of the exchange between the planes of one process.
// Index 0 of each block is its sequence number and the last two words its checksum (sealed-block.ts).
import {
  BACKGROUND_BLOCK_WORDS,
  EPOCH_RUNS_MAX,
  GRANT_BLOCK_WORDS,
  MAILBOX_MESSAGE_WORDS,
  MAIN_BLOCK_WORDS,
  MAX_REPLICAS,
} from './limits.js';

/** Written every tick by the background plane; its sequence number is the heartbeat counter. */
export const BackgroundField = {
  promisedEpoch: 1,
  promisedTo: 3,
  incarnation: 4,
  bootId: 6,
  /** 1 while this replica is a voter that may become leader and does not stand back after a failed candidacy. */
  eligible: 8,
  trustedMask: 9,
  /** Epoch that this replica leads while its replication plane makes no progress, else 0: nobody has to spare it. */
  stalledEpoch: 10,
  /**
   * Heartbeat counter of the replica that the epoch was promised to, for which this one promised besides that nobody else
   * shall write its log for a while, and how long that is; 0 for no such promise (lease.ts).
   */
  leaseCounter: 12,
  leaseLength_us: 13,
  /** Process that writes the block; a life that is durable outlives its processes. */
  processId: 14,
} as const;

/** Written by the replication plane whenever something in it changes. */
export const MainField = {
  /** Epoch in which this replica is the active leader, 0 if it is not (also after it ceded). */
  leaderEpoch: 1,
  commitLsn: 3,
  appliedLsn: 5,
  appliedHashLow: 7,
  appliedHashHigh: 8,
  appliedEpoch: 9,
  /** End of the log as far as it was validated. */
  tailLsn: 11,
  configurationVersion: 13,
  /** Counts snapshots installed: the applied position may then have jumped over a gap in the log. */
  installs: 14,
  /** Process that wrote the block, so that a successor's peers never take old positions for new ones. */
  processId: 15,
  /**
   * Below this LSN the ring does not hold the log, as far as is known: a snapshot was installed, or a log that reached
   * further, and was truncated, recycled it.
   */
  foreignBelowLsn: 17,
  /** Latest epoch whose leadership this replica gave up of its own accord: nobody waits for it any more. */
  cededEpoch: 19,
  /** Replica that shall lead after that epoch, NOBODY if any may. */
  cededTo: 21,
  /**
   * Durable mode: the log of this replica's disk ends at `syncedLsn` with an entry of `syncedEpoch`, and so holds that
   * epoch's leader's log up to there (durable-log.ts).
   */
  syncedLsn: 22,
  syncedEpoch: 24,
} as const;
/** In a field that names a replica: none. */
export const NOBODY = 0xffffffff;

/** The voter's answer to a permission request: the state of its log when nobody could write it. */
export const GrantField = {
  epoch: 1,
  candidate: 3,
  requestSequence: 4,
  /** Which life of the voter answers: a grant counts only if the configuration lists it. */
  bootId: 5,
  appliedLsn: 7,
  tailLsn: 9,
  tailEpoch: 11,
  tailHashLow: 13,
  tailHashHigh: 14,
  writeKey: 15,
  appliedHashLow: 16,
  appliedHashHigh: 17,
  runCount: 18,
  /** Process of the voter whose memory this is about. */
  processId: 19,
  /** Four words per run: epoch, first LSN. */
  runs: 21,
  /** 1 if what is applied is the state of a snapshot, and nothing was applied since. */
  isSnapshot: 21 + EPOCH_RUNS_MAX * 4,
} as const;

/** A candidate's request in the voter's mailbox. */
export const RequestField = {
  kind: 1,
  epoch: 2,
  requestSequence: 4,
  /** Generation of the log link on which the candidate will write. */
  linkGeneration: 5,
} as const;
export const REQUEST_KIND_NONE = 0;
export const REQUEST_KIND_PERMISSION = 1;

/** From the background plane to the replication plane of the same replica. */
export const ToMainField = {
  promisedEpoch: 1,
  promisedTo: 3,
  /** Counts grants made by this replica; a change means: validate the log again from the applied LSN. */
  grants: 4,
  /** Epoch for which a majority granted this replica permission, so that takeover shall begin; 0 if none. */
  takeoverEpoch: 5,
  trustedMask: 7,
  /** Counts grants received for the current epoch. */
  grantsReceived: 8,
  /** When the candidacy for takeoverEpoch went through its stages, on the background plane's clock, nanoseconds. */
  leaderLostAt_ns: 9,
  candidateAt_ns: 11,
  majorityAt_ns: 13,
  /** Until when the majority of this configuration's voters lets nobody else lead than this leader, on the own clock. */
  leaseEnd_ns: 15,
  leaseEpoch: 17,
  leaseConfigurationVersion: 19,
} as const;
export const TO_MAIN_WORDS = 32;

/** From the replication plane to the background plane of the same replica. */
export const ToBackgroundField = {
  /** Own incarnation as a voter by the configuration in force, 0 if it is none. */
  incarnation: 1,
  /** Latest epoch whose takeover or leadership ended here. */
  endedEpoch: 3,
  /** 1 while the replication plane is able to lead. */
  ready: 5,
  /** One word per replica: counts the times that the leader's replication plane needs a fresh grant of this peer. */
  regrants: 6,
  /** Two words per replica: its bootId as voter by the configuration in force, 0 if it is none. */
  voterBootIds: 6 + MAX_REPLICAS,
  /** One word per replica: its election priority by the configuration in force. */
  priorities: 6 + MAX_REPLICAS * 3,
  /** Replicas that the configuration in force names as spares: their logs are not written. */
  spareMask: 6 + MAX_REPLICAS * 4,
  /** Version of the configuration in force, which is where the voters come from. */
  configurationVersion: 7 + MAX_REPLICAS * 4,
} as const;
export const TO_BACKGROUND_WORDS = 6 + MAX_REPLICAS * 4 + 10;

function assertFits(name: string, endIndex: number, words: number): void {
  if (endIndex > words - 2) throw new Error(`${name} block overflows: ${endIndex} > ${words - 2} words`);
}
assertFits('background', BackgroundField.processId + 2, BACKGROUND_BLOCK_WORDS);
assertFits('main', MainField.syncedEpoch + 2, MAIN_BLOCK_WORDS);
assertFits('mailbox message', RequestField.linkGeneration + 1, MAILBOX_MESSAGE_WORDS);
assertFits('grant', GrantField.isSnapshot + 1, GRANT_BLOCK_WORDS);
assertFits('to-main', ToMainField.leaseConfigurationVersion + 1, TO_MAIN_WORDS);
assertFits('to-background', ToBackgroundField.configurationVersion + 1, TO_BACKGROUND_WORDS);
