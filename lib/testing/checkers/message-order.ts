// A message is taken once and in order, whatever becomes of links: told of every message that is taken, with how many its
// sender had sent to that peer before. Messages may be missing, where a life ended or was forgotten; none comes twice, or
// after one that was sent later.
import type { SimNode } from '../../fabric/sim/sim-node.js';
import type { CheckContext, Checker } from './checker.js';

export class MessageOrderChecker implements Checker {
  readonly invariant = 'message order';
  private readonly last = new WeakMap<SimNode, WeakMap<SimNode, number>>();

  constructor(private readonly context: CheckContext) {}

  onMessageTaken(node: SimNode, from: SimNode, count: number): void {
    let ofNode = this.last.get(node);
    if (ofNode === undefined) {
      ofNode = new WeakMap();
      this.last.set(node, ofNode);
    }
    const before = ofNode.get(from) ?? -1;
    if (!(count > before)) {
      const text = `replica ${node.id} took message ${count} of replica ${from.id} after message ${before}`;
      this.context.world.fail(this.invariant, text);
    }
    ofNode.set(from, count);
  }
}
