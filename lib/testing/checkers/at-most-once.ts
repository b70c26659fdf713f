// Invariant 7: one command is applied at most once per session sequence number. Told of every command that took effect,
// by LSN; a second LSN for the same session and sequence is a command applied twice, on whatever replica.
import type { SimLife } from '../sim-life.js';
import type { CheckContext, Checker } from './checker.js';

export class AtMostOnceChecker implements Checker {
  readonly invariant = 'at most once';
  /** Where each command took effect, by "origin:sequence". */
  readonly effects = new Map<string, number>();

  constructor(private readonly context: CheckContext) {}

  onApplied(life: SimLife, lsn: number, origin: number, sequence: number, tookEffect: boolean): void {
    if (!tookEffect) return;
    const key = `${origin}:${sequence}`;
    const known = this.effects.get(key);
    if (known === undefined) this.effects.set(key, lsn);
    else if (known !== lsn) {
      const text = `command ${key} took effect at LSN ${known} and, at ${life.name}, at LSN ${lsn}`;
      this.context.world.fail(this.invariant, text);
    }
  }
}
