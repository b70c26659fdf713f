// Leases: while a replica could answer a read by its lease, nobody leads in a later epoch. Looked at whenever a leader
// becomes active, and whenever a leader's background plane, which extends the lease, has run.
import { formatEpoch } from '../../consensus/epoch.js';
import type { SimLife } from '../sim-life.js';
import type { CheckContext, Checker } from './checker.js';

export class LeaseExclusivityChecker implements Checker {
  readonly invariant = 'lease exclusivity';

  constructor(private readonly context: CheckContext) {}

  onLeader(): void {
    for (const life of this.context.cluster().lives) if (life !== null) this.check(life);
  }

  afterBackground(life: SimLife): void {
    this.check(life);
  }

  private check(life: SimLife): void {
    const { leaderEpoch } = life.replication;
    if (leaderEpoch === 0 || !life.replication.holdsLease(life.clock_ns())) return;
    for (const other of this.context.cluster().lives) {
      if (other === null || other.replication.leaderEpoch <= leaderEpoch) continue;
      this.context.world.fail(
        this.invariant,
        `${life.name} holds a lease of epoch ${formatEpoch(leaderEpoch)} while ${other.name} leads in epoch ` +
          formatEpoch(other.replication.leaderEpoch),
      );
    }
  }
}
