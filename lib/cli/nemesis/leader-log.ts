// Who led when, by the leaders' own words, and how long the cluster was without one after its leader was struck.
import type { EventEmitter } from 'node:events';
import { type ClusterEvents, compareEpochs } from '../demo/cluster.js';
import type { FaultKind } from './swarm.js';

interface Strike {
  readonly kind: FaultKind;
  readonly epoch: string;
  readonly at_ns: number;
  healedAt_ns: number;
}

export interface Failover {
  readonly kind: FaultKind;
  readonly us: number;
}

export class LeaderLog {
  /** Epochs after the first in which a leader committed a command of its own. */
  private readonly served = new Set<string>();
  private open: Strike[] = [];
  readonly failovers: Failover[] = [];

  constructor(cluster: EventEmitter<ClusterEvents> & { readonly epoch: string }) {
    // What the leader under which the run begins commits first may have been heard of before.
    const firstEpoch = cluster.epoch;
    cluster.on('message', (_, message) => {
      if (message.type !== 'serving') return;
      if (compareEpochs(message.epoch, firstEpoch) > 0) this.served.add(message.epoch);
      this.open = this.open.filter((strike) => {
        if (compareEpochs(message.epoch, strike.epoch) <= 0) return true;
        // A leader elected before the blow or after its end was not elected because of it.
        if (message.leaderAt_ns > strike.at_ns && message.leaderAt_ns < strike.healedAt_ns) {
          this.failovers.push({ kind: strike.kind, us: (message.at_ns - strike.at_ns) / 1000 });
        }
        return false;
      });
    });
  }

  /** All replicas were struck: who leads next does so because of that. */
  forgetStrikes(): void {
    this.open = [];
  }

  get changes(): number {
    return this.served.size;
  }

  /** The leader of `epoch` was struck; call what is returned when it was healed. */
  struck(kind: FaultKind, epoch: string, at_ns: number): (healedAt_ns: number) => void {
    const strike: Strike = { kind, epoch, at_ns, healedAt_ns: Number.POSITIVE_INFINITY };
    this.open.push(strike);
    return (healedAt_ns) => {
      strike.healedAt_ns = healedAt_ns;
    };
  }
}
