// What lies between the replicas: how long a packet takes, which directions are cut, and how the device behaves where
// devices differ. Faults change it while the simulation runs.
import { MAX_REPLICAS } from '../../consensus/limits.js';
import type { Random } from './random.js';

/** How a responder takes a permission away: those of a device, see ReplicaOptions.permissionStrategy. */
export type SimPermissionStrategy = 'mr-dereg' | 'qp-flush' | 'qp-flags';

/** The simulated transport. Probabilities are from 0 to 1. */
export interface SimNetworkOptions {
  /** How permissions are given and revoked. */
  readonly strategy: SimPermissionStrategy;
  /** One-way time of a packet: uniform between the two, now and then up to `latencySpike_ns`. */
  readonly latencyMin_ns: number;
  /** Longest one-way time of most packets. */
  readonly latencyMax_ns: number;
  /** Longest one-way time of the others. */
  readonly latencySpike_ns: number;
  /** How often a packet is one of the others. */
  readonly latencySpikeProbability: number;
  /** A packet is lost and sent again after `retransmit_ns`. */
  readonly lossProbability: number;
  /** Time after which a lost packet is sent again. */
  readonly retransmit_ns: number;
  /** Time without an answer after which the transport gives up, uniform between the two. */
  readonly giveUpMin_ns: number;
  /** Longest time without an answer. */
  readonly giveUpMax_ns: number;
  /** A message is placed in several pieces. */
  readonly tearProbability: number;
  /** The pieces are placed in any order, not by address. */
  readonly tearOutOfOrder: boolean;
  /** Time between two pieces, at most. */
  readonly tearGapMax_ns: number;
  /** A completion is late by up to this, now and then. */
  readonly lateCompletionMax_ns: number;
  /** How often a completion is late. */
  readonly lateCompletionProbability: number;
  /**
   * How often a WRITE that has completed is not seen by the responder's processor yet; a READ behind it makes it seen. Only
   * what the protocol cannot tell by the bytes alone: WRITEs on probe links that wake nobody.
   */
  readonly lateVisibilityProbability: number;
  /** How long it is not seen, at most. */
  readonly lateVisibilityMax_ns: number;
  /** Bytes of a WRITE are read from the initiator's memory when it is posted; otherwise when they are placed. */
  readonly gatherAtPost: boolean;
  /** After the transport gave up, or the initiator died, packets still on their way are placed after all. */
  readonly strayProbability: number;
  /** All run on one host, which sees whether a process is stopped. */
  readonly hostSeesProcesses: boolean;
  /**
   * How often a call by which a permission is given or taken fails, be it that it took effect all the same; and how often the
   * proof that one is gone is late.
   */
  readonly permissionFailureProbability: number;
}

export class SimNetwork {
  /** Bit `to` of word `from`: nothing gets through in that direction. */
  private readonly cut = new Int32Array(MAX_REPLICAS);
  latencyFactor = 1;
  /** Calls by which a permission is given or taken that failed, and proofs that were late. */
  permissionFailures = 0;
  private failsPermissions = true;
  private nodes = 0;

  constructor(
    readonly options: SimNetworkOptions,
    private readonly random: Random,
  ) {}

  connected(from: number, to: number): boolean {
    return ((this.cut[from] as number) & (1 << to)) === 0;
  }

  setCut(from: number, to: number, isCut: boolean): void {
    const mask = this.cut[from] as number;
    this.cut[from] = isCut ? mask | (1 << to) : mask & ~(1 << to);
  }

  healAll(): void {
    this.cut.fill(0);
    this.latencyFactor = 1;
    this.failsPermissions = false;
  }

  /** The first node is 1. */
  nextNodeNumber(): number {
    return ++this.nodes;
  }

  drawPermissionFailure(random: Random): boolean {
    if (!this.failsPermissions || !random.chance(this.options.permissionFailureProbability)) return false;
    this.permissionFailures++;
    return true;
  }

  latency_ns(): number {
    const { options, random } = this;
    let latency = random.between(options.latencyMin_ns, options.latencyMax_ns);
    if (random.chance(options.latencySpikeProbability)) latency = random.between(latency, options.latencySpike_ns);
    while (random.chance(options.lossProbability)) latency += options.retransmit_ns;
    return Math.ceil(latency * this.latencyFactor);
  }
}
