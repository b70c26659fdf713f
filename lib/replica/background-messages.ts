// What the main thread and the background thread of a replica say to each other outside the exchange: the hand-over of
// queue pairs (as tokens, see VerbsObject.share) and rare reports. Never on the path of a commit or a failover.
import type { BackgroundProfile } from '../consensus/background-plane.js';
import type { LeaseSettings } from '../consensus/lease.js';
import type { PermissionStrategy } from '../fabric/permissions.js';
import type { StoredPromise } from './durable/promise-store.js';
import type { BackgroundScheduling } from './replica-options.js';

/** What the background plane of a durable replica keeps on disk, and where. */
export interface DurableVoter {
  readonly directory: string;
  readonly promise: StoredPromise;
  /** For how long this process may promise a lease, by its clock. */
  readonly leaseWait_ns: number;
}

export interface BackgroundWorkerData {
  readonly id: number;
  readonly bootId: number;
  readonly processId: number;
  readonly durable: DurableVoter | null;
  readonly logBytes: number;
  readonly profile: BackgroundProfile;
  readonly lease: LeaseSettings | null;
  readonly strategy: PermissionStrategy;
  readonly rehearses: boolean;
  readonly shmDirectory: string | undefined;
  readonly scheduling: BackgroundScheduling | undefined;
  readonly tokens: {
    readonly logDomain: number;
    readonly logMemory: number;
    readonly statusMemory: number;
    readonly mailboxMemory: number;
    readonly probeMemory: number;
    readonly controlMemory: number;
    readonly backgroundQueue: number;
    readonly incomingQueue: number;
    readonly wakeQueue: number;
    readonly wakeChannel: number | null;
    readonly waiter: number;
    readonly fence: number;
    readonly notifier: number;
  };
  readonly probeKey: number;
}

export type ToBackground =
  | {
      readonly type: 'probe';
      readonly peer: number;
      readonly link: {
        readonly queuePair: number;
        readonly statusAddress: number;
        readonly statusKey: number;
        readonly mailboxAddress: number;
        readonly mailboxKey: number;
        /** The process at the other end, where the host can tell whether it lives. */
        readonly process: number | null;
        readonly processId: number;
      } | null;
    }
  /** The responder's end of the peer's probe link. */
  | { readonly type: 'incomingProbe'; readonly peer: number; readonly queuePair: number }
  /** The control connection to the peer ended. */
  | { readonly type: 'disconnected'; readonly peer: number }
  /** The generation of this replica's log link to the peer, 0 while it has none. */
  | { readonly type: 'outgoingLog'; readonly peer: number; readonly generation: number }
  /** The responder's end of the peer's log link. */
  | { readonly type: 'incomingLog'; readonly peer: number; readonly generation: number; readonly queuePair: number };

export type ToMain =
  /** The thread's code is loaded. */
  | { readonly type: 'started' }
  /** It has rehearsed, and ticks. */
  | { readonly type: 'ready' }
  /** The thread runs, without the scheduling that was asked for. */
  | { readonly type: 'schedulingRefused'; readonly code: string; readonly message: string }
  /** Failovers will be slower; nothing else follows from it. */
  | { readonly type: 'rehearsalFailed'; readonly code: string; readonly message: string }
  | { readonly type: 'probeBroken'; readonly peer: number }
  | { readonly type: 'incomingLogDead'; readonly peer: number; readonly generation: number }
  | { readonly type: 'grantFailed'; readonly peer: number; readonly code: string; readonly message: string }
  /** What the device refused while nobody waited for it. */
  | { readonly type: 'permissionsFailed'; readonly what: string; readonly code: string; readonly message: string };
