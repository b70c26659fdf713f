// What the nemesis tells its client processes and its checking thread, and hears from them.

export interface ClientStart {
  readonly type: 'start';
  /** Number of this process; clients, sessions and values are unique by it. */
  readonly process: number;
  readonly clients: number;
  /** Unix sockets of the replicas, by id. */
  readonly sockets: readonly string[];
  readonly seed: number;
  readonly keys: KeyPlan;
  /** Longest pause of a client between two operations. */
  readonly thinkMsMax: number;
  /** An attempt without an answer for so long is given up; the operation is tried again or has an unknown outcome. */
  readonly attemptTimeoutMs: number;
  /** An operation is given up after so long. */
  readonly operationTimeoutMs: number;
  /** Longest filler behind a command, so that the log's ring turns. */
  readonly fillerBytesMax: number;
}

/**
 * Keys live for a while and are then left for others, so that each has a history that can be judged by itself while the
 * run goes on: generation g has the keys g * perGeneration .. (g + 1) * perGeneration - 1.
 */
export interface KeyPlan {
  readonly start_ns: number;
  readonly lifetime_ns: number;
  readonly perGeneration: number;
}

export type ToClients =
  | ClientStart
  /** Ends what is under way, begins nothing more. */
  | { readonly type: 'stop' }
  /** Reads each of these keys once, whatever it takes; answered by "read". */
  | { readonly type: 'read'; readonly keys: readonly number[] };

export type FromClients =
  | {
      readonly type: 'operations';
      readonly rows: Float64Array;
      /** No operation on keys of an earlier generation is under way or will begin. */
      readonly openGeneration: number;
      /** Errors that have no place in normal operation, by code. */
      readonly strange: readonly string[];
    }
  | { readonly type: 'stopped' }
  | { readonly type: 'read'; readonly rows: Float64Array };

export type ToChecker =
  | { readonly type: 'check'; readonly rows: Float64Array }
  /** Which keys are kept for a last read? */
  | { readonly type: 'kept' }
  /** Judges the kept keys again with their last reads; the answer holds all kept operations. */
  | { readonly type: 'finish'; readonly rows: Float64Array };

export interface KeyVerdict {
  readonly key: number;
  readonly kind: 'violation' | 'undecided';
  readonly rows: Float64Array;
}

export type FromChecker =
  | { readonly type: 'checked'; readonly keys: number; readonly verdicts: readonly KeyVerdict[] }
  | { readonly type: 'kept'; readonly keys: readonly number[] }
  | { readonly type: 'finished'; readonly verdicts: readonly KeyVerdict[]; readonly rows: Float64Array };
