// Simulated replicas whose log and a snapshot of whose state outlive their process, and the return of the next process from
// them in two stages. The bytes and the decisions are those of the code under test (surviving-log.ts); what a host does
// around them, asking others and waiting for what they give, takes its time here as everything else does.
import type { Configuration } from '../consensus/configuration.js';
import { type ChainPosition, chainBeginning } from '../consensus/entry.js';
import { LogReplay, LogStretch, type LogTail, SurvivingLog, tailBytes } from '../consensus/surviving-log.js';
import type { Random } from '../fabric/sim/random.js';
import type { SimLife } from './sim-life.js';
import { decodeCommand, type StateSnapshot } from './sim-state-machine.js';

/** A state and its place in the log. */
export interface SimAnchor {
  readonly position: ChainPosition;
  readonly configuration: Configuration;
  readonly state: StateSnapshot;
}

export interface SimRegion {
  readonly words: Uint32Array;
  readonly anchor: SimAnchor;
}

/** A new anchor is taken when the log behind the last one takes this part of the ring. */
const ANCHOR_DUE_FRACTION = 1 / 4;
const SCRIBBLE_PROBABILITY = 0.2;
const SCRIBBLE_BYTES_MAX = 4096;
const ENTRIES_MAX = 4096;

export function firstAnchor(genesis: Configuration, state: StateSnapshot): SimAnchor {
  return { position: chainBeginning(genesis.clusterId), configuration: genesis, state };
}

/** The anchor that this life would leave behind now: the one before, while the log reaches back to it and is short. */
export function nextAnchor(life: SimLife, anchor: SimAnchor): SimAnchor {
  const { replication, node } = life;
  const { lsn } = anchor.position;
  const isShort = replication.appliedLsn - lsn < node.log.length * ANCHOR_DUE_FRACTION;
  if (replication.appliedLsn === 0 || (isShort && lsn >= replication.ringBeginLsn && lsn <= replication.appliedLsn)) {
    return anchor;
  }
  const { position, configuration } = replication.snapshotPlace;
  return { position, configuration, state: life.state.snapshot() };
}

/** What a life leaves behind at its end; now and then somebody has scribbled over it. */
export function leaveBehind(life: SimLife, random: Random): SimRegion {
  const bytes = life.node.log.slice();
  if (random.chance(SCRIBBLE_PROBABILITY)) {
    const begin = random.integer(bytes.length);
    bytes.fill(random.integer(256), begin, begin + random.integer(SCRIBBLE_BYTES_MAX));
    life.trace(`its region is scribbled over from byte ${begin} on`);
  }
  return { words: new Uint32Array(bytes.buffer), anchor: life.anchor };
}

/** What the cluster does for a life that returns. */
export interface ReturnHost {
  /** Others that could give their log, in some order. */
  donors(): SimLife[];
  controlIsOpen(one: number, other: number): boolean;
  latency_ns(): number;
  /** How long the READs of a log take. */
  transfer_ns(): number;
  /** An attempt of which nothing was heard for so long is given up. */
  readonly giveUp_ns: number;
  /** The state is in place, as far as `position`; or there was no way, and the life begins with nothing. */
  over(life: SimLife, position: ChainPosition | null): void;
}

/** Brings the life back by what the one before left. Nothing has an effect until another's log has been found to go on. */
export class SimReturn {
  private readonly log: SurvivingLog;
  private readonly attempts: { from: ChainPosition; donor: SimLife }[] = [];

  constructor(
    private readonly life: SimLife,
    private readonly region: SimRegion,
    private readonly host: ReturnHost,
  ) {
    this.log = new SurvivingLog(region.words, region.anchor.position);
  }

  /** Main plane of the life. */
  begin(): void {
    const { log, life, host } = this;
    while (log.scan(ENTRIES_MAX)) {
      // As far as it goes.
    }
    life.trace(`finds a log from LSN ${log.anchor.lsn} to ${log.end.lsn}, committed to ${log.committed.lsn}`);
    const donors = host.donors();
    for (const from of log.candidates) for (const donor of donors) this.attempts.push({ from, donor });
    this.next();
  }

  private next(): void {
    const { life, host } = this;
    if (!life.isReturning) return;
    const attempt = this.attempts.shift();
    if (attempt === undefined) {
      life.trace('cannot use what was left behind');
      host.over(life, null);
      return;
    }
    const { from, donor } = attempt;
    const again = (): void => life.postToMain(() => this.next());
    const isReachable = (): boolean => donor.alive && host.controlIsOpen(life.id, donor.id);
    if (!isReachable()) {
      again();
      return;
    }
    life.world.schedule(host.latency_ns(), () => {
      if (!isReachable()) {
        again();
        return;
      }
      donor.postToMain(() => {
        const { replication } = donor;
        const { position: end } = replication.snapshotPlace;
        const isHeld = from.lsn >= replication.ringBeginLsn || from.lsn === end.lsn;
        const lengthBytes = tailBytes(from.lsn, end.lsn, donor.node.log.length);
        if (!isHeld || lengthBytes < 0) {
          life.world.schedule(host.latency_ns(), again);
          return;
        }
        // The bytes are read later than they are offered: by then others may stand there.
        life.world.schedule(host.latency_ns() + host.transfer_ns(), () => {
          if (!isReachable()) {
            again();
            return;
          }
          const words = copyOfRing(donor.node.log, from.lsn, lengthBytes);
          life.postToMain(() => this.received(from, { words, end }, donor));
        });
      });
    });
    // A donor that dies with the question, or stops, is given up.
    const count = this.attempts.length;
    life.world.schedule(host.giveUp_ns, () => {
      if (life.alive && life.isReturning && this.attempts.length === count) again();
    });
  }

  private received(from: ChainPosition, tail: LogTail, donor: SimLife): void {
    const { log, life, region, host } = this;
    if (!life.isReturning) return; // given up, and got elsewhere since
    const following = log.continuation(from, tail);
    if (following === null) {
      life.trace(`the log of ${donor.name} does not go on from LSN ${from.lsn}`);
      this.next();
      return;
    }
    const { anchor } = region;
    if (!life.replication.isSnapshotNews(following.end)) {
      // A snapshot that was meant for the life before has come first, or nobody has applied anything yet.
      host.over(life, life.replication.appliedPosition);
      return;
    }
    life.state.restore(anchor.state);
    const replay = new LogReplay(anchor.position, anchor.configuration, {
      applyCommand: (_lsn, origin, sequence, bytes, offset, lengthBytes) => {
        life.state.apply(origin, sequence, decodeCommand(bytes, offset, lengthBytes));
      },
    });
    replay.advance(log.ring, from, Number.POSITIVE_INFINITY);
    replay.advance(LogStretch.ofPiece(following.words, from.lsn), following.end, Number.POSITIVE_INFINITY);
    const local = from.lsn - anchor.position.lsn;
    life.trace(`comes back with ${local} bytes of its own log and ${following.words.length * 4} of ${donor.name}'s`);
    life.install(replay.position, replay.configuration);
    host.over(life, replay.position);
  }
}

function copyOfRing(ring: Uint8Array, fromLsn: number, lengthBytes: number): Uint32Array {
  const copy = new Uint8Array(lengthBytes);
  const offset = fromLsn % ring.length;
  const first = Math.min(lengthBytes, ring.length - offset);
  copy.set(ring.subarray(offset, offset + first));
  copy.set(ring.subarray(0, lengthBytes - first), first);
  return new Uint32Array(copy.buffer);
}
