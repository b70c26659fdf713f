// Taking a lease back. A voter that wants to grant to another candidate need not wait out what it promised to the leader if
// that leader's memory can be written: it changes a word there, and reads something back behind that. The leader, if it
// goes on, finds the word changed before it answers another read by the lease. So a leader that stands still, while its
// memory does not, holds up nobody. See "Leases" in docs/PROTOCOL.md for the proof.
import { MAILBOX_MESSAGE_WORDS, MAILBOX_RECALL_WORDS, MAILBOX_SLOT_WORDS, MAX_REPLICAS } from './limits.js';

const TWO_32 = 4294967296;

/** Index of the recall words of the peer's slot. */
function recallOffset(peer: number): number {
  return peer * MAILBOX_SLOT_WORDS + MAILBOX_MESSAGE_WORDS;
}

/**
 * Puts what was never there into the words that are about to be written to the peer. Random: the words at the peer are
 * compared with what they were, and a WRITE of long ago, given up and late, may still land on them, in part too.
 */
export function drawRecall(outboxWords: Uint32Array, peer: number, random: () => number): void {
  const at = recallOffset(peer);
  for (let index = 0; index < MAILBOX_RECALL_WORDS; index++) outboxWords[at + index] = Math.floor(random() * TWO_32);
}

/** What a leader sees of its voters' recalls: words of its mailboxes that nobody writes for anything else. */
export class LeaseRecalls {
  private readonly noted = new Uint32Array(MAX_REPLICAS * MAILBOX_RECALL_WORDS);
  private voterIds: readonly number[] = [];

  constructor(private readonly mailboxWords: Uint32Array) {}

  /** Whose promises make the lease, and so whose recalls end it: the voters of the configuration in force. */
  watch(voterIds: readonly number[]): void {
    this.voterIds = voterIds;
  }

  /** Called before this replica says that it leads: nobody recalls the lease of an epoch before that. */
  note(): void {
    const { mailboxWords, noted } = this;
    for (let peer = 0; peer < MAX_REPLICAS; peer++) {
      const at = recallOffset(peer);
      for (let index = 0; index < MAILBOX_RECALL_WORDS; index++) {
        noted[peer * MAILBOX_RECALL_WORDS + index] = mailboxWords[at + index] as number;
      }
    }
  }

  /**
   * Somebody took back what it had promised to this leader. Looked at after whatever the answer is needed for: the caller
   * has looked at the clock in between, by a native call across which neither V8 nor, for its fences, a processor moves
   * these loads.
   */
  get isRecalled(): boolean {
    const { mailboxWords, noted, voterIds } = this;
    for (let voter = 0; voter < voterIds.length; voter++) {
      const peer = voterIds[voter] as number;
      const at = recallOffset(peer);
      const from = peer * MAILBOX_RECALL_WORDS;
      for (let index = 0; index < MAILBOX_RECALL_WORDS; index++) {
        if (mailboxWords[at + index] !== noted[from + index]) return true;
      }
    }
    return false;
  }
}
