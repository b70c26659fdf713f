// The public face of the package: replicas and the replicated data types. The verbs binding is `quorate/verbs`.
export type { BackgroundProfile } from './consensus/background-plane.js';
export type { MemberRole } from './consensus/configuration.js';
export type { PeerPhase } from './consensus/follower.js';
export type { ReplacementNews } from './consensus/replacement.js';
export type { Role } from './consensus/replication-host.js';
export { QuorateError } from './errors.js';
export { bestSurvivor, type ForceNewClusterOptions } from './replica/force-new-cluster.js';
export { NotLeaderError } from './replica/not-leader-error.js';
export { OutcomeUnknownError } from './replica/pending-proposals.js';
export { PROFILES } from './replica/profiles.js';
export type { RecoveryStage, RecoveryStatus } from './replica/recovery/recovery.js';
export type { RegionStatus } from './replica/recovery/region-keeper.js';
export { Replica } from './replica/replica.js';
export type {
  BackgroundScheduling,
  DurableOptions,
  DurableStatus,
  LeaseOptions,
  MemberAddress,
  MemberStatus,
  NewMember,
  PeerStatus,
  ProfileName,
  ProposeOptions,
  ProposeResult,
  ReadOptions,
  ReplicaEvents,
  ReplicaOptions,
  ReplicaStatus,
  RestoreInPlace,
  SessionCommand,
  SnapshotStream,
  StateMachine,
  StateMemory,
  SurviveCrashOptions,
  TakeoverStages,
} from './replica/replica-options.js';
export type { TransferState, TransferStatus } from './replica/transfer/progress.js';
export {
  decodeCommand,
  encodeDelete,
  encodeSet,
  type KeyValueCommand,
  type KeyValueResult,
  KeyValueStore,
  type KeyValueStoreOptions,
  type Text,
} from './rsm/key-value-store.js';
