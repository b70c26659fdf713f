// Refusal of what only the leader does, with the way to it.
import { QuorateError } from '../errors.js';

/**
 * This replica does not lead: nothing was proposed or changed, or no read is current here. `leader` is the id of the one
 * that does, if it is known.
 */
export class NotLeaderError extends QuorateError {
  constructor(
    /** Id of the leader, if it is known. */
    readonly leader: number | undefined,
    what: 'propose' | 'read' | 'change' = 'propose',
  ) {
    const [consequence, remedy] = {
      propose: ['the command was not proposed', 'propose it'],
      read: ['its state may be stale', 'read'],
      change: ['nothing was changed', 'ask'],
    }[what] as [string, string];
    super(
      'QUORATE_NOT_LEADER',
      leader === undefined
        ? `this replica is not the leader and knows none; ${consequence}: try again or elsewhere`
        : `this replica is not the leader; ${consequence}: ${remedy} at replica ${leader}`,
    );
  }
}
