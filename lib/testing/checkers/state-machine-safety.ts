// Invariant 5: no two replicas apply different entries at an LSN, and what is applied has no gaps. Every position that
// any replica reaches must lie on one line of the tree of all entries, and from one position to the next a replica must
// apply each command on that line.
import { EntryType } from '../../consensus/entry.js';
import { ancestorAt, type LogNode } from '../log-tree.js';
import type { SimLife } from '../sim-life.js';
import type { CheckContext, Checker } from './checker.js';

export class StateMachineSafetyChecker implements Checker {
  readonly invariant = 'state machine safety';
  /** The furthest position that any replica applied. */
  tip: LogNode | null = null;
  private readonly positions = new Map<SimLife, LogNode | null>();

  constructor(private readonly context: CheckContext) {}

  onStarted(life: SimLife): void {
    this.positions.set(life, null);
  }

  onCrashed(life: SimLife): void {
    this.positions.delete(life);
  }

  onApplied(life: SimLife, lsn: number, origin: number, sequence: number): void {
    const node = this.reached(life);
    if (node === null) return;
    if (node.startLsn !== lsn || node.type !== EntryType.command) {
      this.fail(life, `applied LSN ${lsn} as a command, the log has an entry of type ${node.type} at ${node.startLsn}`);
    } else if (node.origin !== origin || node.sequence !== sequence) {
      this.fail(
        life,
        `applied command ${origin}:${sequence} at LSN ${lsn}, appended was ${node.origin}:${node.sequence}`,
      );
    }
    this.moved(life, node, true);
  }

  onSnapshotInstalled(life: SimLife): void {
    const node = this.reached(life);
    if (node === null) return;
    if (this.onLine(life, node)) this.positions.set(life, node);
  }

  afterMain(life: SimLife): void {
    const { commitLsn } = life.replication;
    // Half an entry is never committed, or whatever takes its place under a later leader would be, too.
    if (!this.context.tree.hasBoundary(commitLsn))
      this.fail(life, `holds LSN ${commitLsn}, inside an entry, committed`);
    if (life.replication.appliedLsn === (this.positions.get(life)?.endLsn ?? 0)) return;
    const node = this.reached(life);
    if (node !== null) this.moved(life, node, false);
  }

  /** The entry at whose end the replica says it is. */
  private reached(life: SimLife): LogNode | null {
    const position = life.replication.appliedPosition;
    const node = this.context.tree.find(position.lsn, position.hashLow, position.hashHigh);
    if (node !== undefined) return node;
    this.fail(life, `applied up to LSN ${position.lsn}, with a chain hash that no leader's log has there`);
    return null;
  }

  private moved(life: SimLife, node: LogNode, isCommand: boolean): void {
    const before = this.positions.get(life) ?? null;
    // Back from the new position to the one before: nothing but the last may be a command.
    let current: LogNode | null = isCommand ? node.parent : node;
    while (current !== null && current.endLsn > (before?.endLsn ?? 0)) {
      if (current.type === EntryType.command) {
        this.fail(life, `skipped the command at LSN ${current.startLsn} on its way to ${node.endLsn}`);
        return;
      }
      current = current.parent;
    }
    if (current !== before) {
      this.fail(life, `went from LSN ${before?.endLsn ?? 0} to ${node.endLsn}, which does not continue it`);
      return;
    }
    if (this.onLine(life, node)) this.positions.set(life, node);
  }

  private onLine(life: SimLife, node: LogNode): boolean {
    const { tip } = this;
    if (tip === null || node.endLsn >= tip.endLsn) {
      if (ancestorAt(node, tip?.endLsn ?? 0) !== tip) {
        this.fail(
          life,
          `applied LSN ${node.startLsn} of epoch ${node.epoch}, off the line others applied up to ${tip?.endLsn}`,
        );
        return false;
      }
      this.tip = node;
      return true;
    }
    if (ancestorAt(tip, node.endLsn) !== node) {
      this.fail(life, `applied another entry at LSN ${node.startLsn} than others did`);
      return false;
    }
    return true;
  }

  private fail(life: SimLife, text: string): void {
    this.context.world.fail(this.invariant, `${life.name} ${text}`);
  }
}
