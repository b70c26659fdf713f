// What clients saw of two clusters, the second of which was forked off the first when that had lost its majority. Commands
// that were acknowledged by the first may be gone, so there is no one order that explains all answers: each cluster has to
// explain those of its own time; the second one has to explain also what it kept of the first.
import { EntryType } from '../consensus/entry.js';
import type { HistoryOperation } from './checkers/linearizability.js';
import type { LogNode } from './log-tree.js';
import { isSessionless, SimStateMachine, type StateSnapshot } from './sim-state-machine.js';

/** What there is to explain, and where each command took effect, by "origin:sequence". */
export interface ExplainedHistory {
  readonly history: readonly HistoryOperation[];
  readonly effects: ReadonlyMap<string, number>;
}

export class ForkHistory {
  /** Where each command of the old cluster took effect that is part of the new one's state, by "origin:sequence". */
  readonly kept = new Map<string, number>();

  constructor(
    /** The last entry of the old log that is part of that state. */
    tip: LogNode | null,
    state: StateSnapshot,
    /** When clients turned to the new cluster. */
    private readonly at_ns: number,
    /** Where commands took effect in the old cluster. */
    private readonly effectsBefore: ReadonlyMap<string, number>,
  ) {
    const machine = new SimStateMachine(state.registers.length);
    machine.restore(state);
    const path: LogNode[] = [];
    for (let node = tip; node !== null; node = node.parent) path.push(node);
    for (const { type, origin, sequence, startLsn } of path.reverse()) {
      if (type !== EntryType.command) continue;
      const key = `${origin}:${sequence}`;
      const tookEffect = isSessionless(origin) || machine.lastSequence(origin) >= sequence;
      if (tookEffect && !this.kept.has(key)) this.kept.set(key, startLsn);
    }
  }

  /** What was asked of the old cluster. What it had not answered by its end may have taken effect, or not. */
  before(all: readonly HistoryOperation[]): ExplainedHistory {
    const history = all
      .filter(({ invoked_ns }) => invoked_ns < this.at_ns)
      .map((one) => (one.returned_ns <= this.at_ns ? one : { ...one, returned_ns: Number.POSITIVE_INFINITY }));
    return { history, effects: this.effectsBefore };
  }

  /**
   * What the new cluster answered, or may yet do, and what it goes on from: the commands of the old one that it has. Those that
   * took effect at the same place in the old one had been answered from a log that both have, so what is lost has no part in
   * their answers. Of a command that was proposed twice the survivor may have an earlier copy, of which nothing had come: then
   * what was answered is lost with the other copy, and the new cluster has executed the command, with a result of its own.
   */
  after(all: readonly HistoryOperation[], effects: ReadonlyMap<string, number>): ExplainedHistory {
    const history: HistoryOperation[] = [];
    for (const one of all) {
      const keptAt = one.session === undefined ? undefined : this.kept.get(one.session);
      if (one.returned_ns > this.at_ns) history.push(one);
      else if (keptAt === undefined) continue;
      else if (keptAt === this.effectsBefore.get(one.session as string)) history.push(one);
      else history.push({ ...one, returned_ns: Number.POSITIVE_INFINITY });
    }
    return { history, effects };
  }
}
