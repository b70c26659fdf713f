// A reliable connection from one replica's memory to another's, as RDMA devices make it. What is modelled, because
// the protocol must bear it:
//  * requests of one link take effect in order and complete in order, but a request that completed with an error, or
//    never got an answer, may have taken effect in part or in full;
//  * a message is placed in pieces over time, in any order of its bytes where the device has no placement order;
//  * a WRITE that completed may be in the responder's memory, for its processor, only later, unless a READ came behind it;
//  * an answer that is lost is asked for again; a peer that does not answer is given up only after tens of
//    milliseconds; then, or when a request is refused, the link fails and all that follows on it;
//  * packets that were on their way when the initiator gave up or died may be placed later all the same, as long as
//    the responder's end stands and the permission holds.

import { FabricStatus } from '../fabric.js';
import type { SimNode } from './sim-node.js';

export type SimLinkKind = 'probe' | 'log' | 'message';

const PIECES_MAX = 6;
/** Where the message that is being cut is cut. */
const cuts = new Float64Array(PIECES_MAX);

/** Messages that are placed in one piece, by their length; nearly all have one of few lengths. */
const WHOLE_PIECES_MAX = 1024;
const wholePieces: (readonly number[] | undefined)[] = new Array(WHOLE_PIECES_MAX).fill(undefined);

function wholePiece(lengthBytes: number): readonly number[] {
  if (lengthBytes >= WHOLE_PIECES_MAX) return [0, lengthBytes];
  const known = wholePieces[lengthBytes];
  if (known !== undefined) return known;
  const made = [0, lengthBytes];
  wholePieces[lengthBytes] = made;
  return made;
}

function exchange(numbers: number[], one: number, other: number): void {
  const kept = numbers[one] as number;
  numbers[one] = numbers[other] as number;
  numbers[other] = kept;
}

/** Below this a loop is faster than a view and its set(). */
const COPY_BY_LOOP_MAX_BYTES = 192;

function copyBytes(from: Uint8Array, fromOffset: number, to: Uint8Array, toOffset: number, lengthBytes: number): void {
  if (lengthBytes > COPY_BY_LOOP_MAX_BYTES) {
    to.set(from.subarray(fromOffset, fromOffset + lengthBytes), toOffset);
    return;
  }
  for (let index = 0; index < lengthBytes; index++) to[toOffset + index] = from[fromOffset + index] as number;
}

const NO_MEMORY = new Uint8Array(0);

class WorkRequest {
  arrivesAt_ns = 0;
  completesAt_ns = Number.POSITIVE_INFINITY;
  status: number = FabricStatus.success;
  isPlaced = false;
  /** Copy made when the request was posted, or null: the bytes are read from memory when they are placed. */
  gathered: Uint8Array | null = null;
  /** Start and end of each piece, in the order of placement; null while undecided. */
  pieces: readonly number[] | null = null;
  nextPiece = 0;
  /** The responder is woken when it has landed. */
  wakesResponder = false;

  constructor(
    readonly isWrite: boolean,
    readonly token: number,
    readonly local: Uint8Array,
    readonly localOffset: number,
    readonly remote: Uint8Array,
    readonly remoteOffset: number,
    readonly lengthBytes: number,
    readonly key: number,
  ) {}
}

export class SimLink {
  /** The initiator's end failed: what is posted completes as failed. */
  failed = false;
  /** The responder's end is in the error state or destroyed: nothing arrives through it any more. */
  responderClosed = false;
  /** Message link: the responder's memory that is written. */
  remoteMessages: Uint8Array = NO_MEMORY;
  /** A WRITE that wakes the responder has landed; by default its background plane is woken. */
  onLanded: () => void = () => this.responder.wakeBackground();
  /** Posted and not yet handed to the initiator, oldest first. */
  private readonly requests: WorkRequest[] = [];
  /** How many of those were placed, and how many of those were acknowledged. */
  private placed = 0;
  private acknowledged = 0;
  private lastArrival_ns = 0;
  private lastCompletion_ns = 0;
  /** WRITEs that were placed and acknowledged, and that the responder's processor does not see yet. */
  private readonly unseen: WorkRequest[] = [];
  private stalledSince_ns = -1;
  private giveUpAfter_ns = 0;
  private progressAt_ns = Number.POSITIVE_INFINITY;

  constructor(
    readonly kind: SimLinkKind,
    readonly generation: number,
    readonly initiator: SimNode,
    readonly responder: SimNode,
  ) {
    initiator.outgoing.add(this);
  }

  // -- initiator ---------------------------------------------------------------------------------------------------

  postWrite(
    token: number,
    local: Uint8Array,
    localOffset: number,
    remote: Uint8Array,
    remoteOffset: number,
    lengthBytes: number,
    key: number,
    wakesResponder = false,
  ): void {
    const request = new WorkRequest(true, token, local, localOffset, remote, remoteOffset, lengthBytes, key);
    request.wakesResponder = wakesResponder;
    if (this.initiator.network.options.gatherAtPost) {
      request.gathered = local.slice(localOffset, localOffset + lengthBytes);
    }
    this.post(request);
  }

  postRead(
    token: number,
    local: Uint8Array,
    localOffset: number,
    remote: Uint8Array,
    remoteOffset: number,
    lengthBytes: number,
  ): void {
    this.post(new WorkRequest(false, token, local, localOffset, remote, remoteOffset, lengthBytes, 0));
  }

  private post(request: WorkRequest): void {
    const { world, network } = this.initiator;
    if (
      request.localOffset + request.lengthBytes > request.local.length ||
      request.remoteOffset + request.lengthBytes > request.remote.length ||
      request.lengthBytes <= 0
    ) {
      throw new RangeError(`request of ${request.lengthBytes} bytes exceeds its memory region`);
    }
    this.requests.push(request);
    if (this.failed) {
      request.status = FabricStatus.failed;
      request.completesAt_ns = world.now_ns;
      this.lastCompletion_ns = world.now_ns;
      this.wake(world.now_ns);
      return;
    }
    this.lastArrival_ns = Math.max(this.lastArrival_ns, world.now_ns + network.latency_ns());
    request.arrivesAt_ns = this.lastArrival_ns;
    this.scheduleProgress(request.arrivesAt_ns);
  }

  get outstanding(): number {
    return this.requests.length;
  }

  /** Hands out the oldest request if it has completed by now. */
  takeCompleted(now_ns: number): { token: number; status: number } | null {
    const request = this.requests[0];
    if (request === undefined || request.completesAt_ns > now_ns) return null;
    this.requests.shift();
    if (this.placed > 0) this.placed--;
    if (this.acknowledged > 0) this.acknowledged--;
    return request;
  }

  /** The initiator destroys its end: everything outstanding is reported as failed, whatever became of it. */
  closeInitiator(deliver: (token: number, status: number) => void): void {
    this.leaveStrays();
    this.failed = true;
    this.initiator.outgoing.delete(this);
    for (const request of this.requests.splice(0)) deliver(request.token, FabricStatus.failed);
    this.placed = 0;
    this.acknowledged = 0;
  }

  initiatorDied(): void {
    this.leaveStrays();
    this.failed = true;
    this.requests.length = 0;
    this.placed = 0;
    this.acknowledged = 0;
  }

  /** A device or link fault: both ends go to the error state. */
  break(): void {
    this.responderClosed = true;
    if (!this.failed) this.fail(FabricStatus.failed);
  }

  // -- progress ----------------------------------------------------------------------------------------------------

  private scheduleProgress(at_ns: number): void {
    const { world } = this.initiator;
    const due_ns = Math.max(at_ns, world.now_ns);
    if (due_ns >= this.progressAt_ns) return;
    this.progressAt_ns = due_ns;
    world.at(due_ns, this.onProgressDue);
  }

  /** One function for all events of the link: most events of a simulation are these. */
  private readonly onProgressDue = (): void => {
    if (this.progressAt_ns !== this.initiator.world.now_ns) return; // an earlier one was scheduled since
    this.progressAt_ns = Number.POSITIVE_INFINITY;
    if (!this.failed) this.progress();
  };

  private progress(): void {
    const { initiator, responder } = this;
    const { world, network } = initiator;
    if (this.acknowledged < this.placed) {
      // Placed, but the answer did not get through; it is asked for again.
      if (this.pathIsOpen() && network.connected(responder.id, initiator.id)) {
        this.stalledSince_ns = -1;
        while (this.acknowledged < this.placed) this.acknowledge(this.requests[this.acknowledged] as WorkRequest);
      } else if (this.stall()) {
        return;
      }
    }
    const request = this.requests[this.placed];
    if (request === undefined) return;
    if (world.now_ns < request.arrivesAt_ns) {
      this.scheduleProgress(request.arrivesAt_ns);
      return;
    }
    if (!this.pathIsOpen()) {
      this.stall();
      return;
    }
    if (request.isWrite && this.kind === 'log' && !responder.mayWrite(this, request.key)) {
      responder.observer.onRefused?.(responder, initiator, request.remoteOffset, request.lengthBytes);
      this.responderClosed = true; // refused: both ends are in the error state
      this.fail(FabricStatus.failed);
      return;
    }
    if (request.pieces === null && this.isSeenLate(request)) {
      this.keepUnseen(request);
    } else {
      if (request.pieces === null) {
        this.showUnseen();
        request.pieces = this.cutIntoPieces(request.lengthBytes);
      }
      this.placePiece(request);
      if (request.nextPiece < request.pieces.length) {
        this.scheduleProgress(world.now_ns + world.random.integer(network.options.tearGapMax_ns + 1));
        return;
      }
    }
    this.finishPlacing(request);
    const next = this.requests[this.placed];
    if (next !== undefined) this.scheduleProgress(next.arrivesAt_ns);
  }

  private pathIsOpen(): boolean {
    const { initiator, responder } = this;
    return responder.alive && !this.responderClosed && initiator.network.connected(initiator.id, responder.id);
  }

  /** No answer: tries again until the transport gives up. Returns true if it just did. */
  private stall(): boolean {
    const { world, network } = this.initiator;
    const { giveUpMin_ns, giveUpMax_ns, retransmit_ns } = network.options;
    if (this.stalledSince_ns < 0) {
      this.stalledSince_ns = world.now_ns;
      this.giveUpAfter_ns = world.random.between(giveUpMin_ns, giveUpMax_ns);
    }
    const giveUpAt_ns = this.stalledSince_ns + this.giveUpAfter_ns;
    if (world.now_ns >= giveUpAt_ns) {
      this.leaveStrays();
      this.fail(FabricStatus.unreachable);
      return true;
    }
    this.scheduleProgress(Math.min(giveUpAt_ns, world.now_ns + retransmit_ns));
    return false;
  }

  private cutIntoPieces(lengthBytes: number): readonly number[] {
    const { world, network } = this.initiator;
    const { random } = world;
    if (lengthBytes < 2 || !random.chance(network.options.tearProbability)) return wholePiece(lengthBytes);
    const count = 1 + random.integer(PIECES_MAX - 1);
    // Insertion into ascending order: there are few.
    for (let index = 0; index < count; index++) {
      const at = random.integer(lengthBytes);
      let place = index;
      while (place > 0 && (cuts[place - 1] as number) > at) {
        cuts[place] = cuts[place - 1] as number;
        place--;
      }
      cuts[place] = at;
    }
    const pieces: number[] = [];
    let start = 0;
    for (let index = 0; index <= count; index++) {
      const end = index === count ? lengthBytes : (cuts[index] as number);
      if (end > start) pieces.push(start, end);
      start = end;
    }
    if (network.options.tearOutOfOrder) {
      for (let index = pieces.length / 2 - 1; index > 0; index--) {
        const other = random.integer(index + 1);
        exchange(pieces, index * 2, other * 2);
        exchange(pieces, index * 2 + 1, other * 2 + 1);
      }
    }
    return pieces;
  }

  private isSeenLate(request: WorkRequest): boolean {
    const { world, network } = this.initiator;
    if (this.kind !== 'probe' || !request.isWrite || request.wakesResponder) return false;
    return world.random.chance(network.options.lateVisibilityProbability);
  }

  /** The device has the bytes, and shows them to the processor when it gets round to it. */
  private keepUnseen(request: WorkRequest): void {
    const { world, network } = this.initiator;
    request.gathered ??= request.local.slice(request.localOffset, request.localOffset + request.lengthBytes);
    request.pieces = wholePiece(request.lengthBytes);
    this.unseen.push(request);
    world.schedule(world.random.integer(network.options.lateVisibilityMax_ns + 1), () => {
      if (this.unseen.includes(request)) this.showUnseen();
    });
  }

  /** In the order in which they came; a request that comes behind them is not served before. */
  private showUnseen(): void {
    for (const request of this.unseen.splice(0)) this.placePiece(request);
  }

  private placePiece(request: WorkRequest): void {
    const pieces = request.pieces as readonly number[];
    const start = pieces[request.nextPiece] as number;
    const end = pieces[request.nextPiece + 1] as number;
    request.nextPiece += 2;
    const { local, localOffset, remote, remoteOffset, gathered } = request;
    if (!request.isWrite) {
      copyBytes(remote, remoteOffset + start, local, localOffset + start, end - start);
      return;
    }
    if (gathered === null) copyBytes(local, localOffset + start, remote, remoteOffset + start, end - start);
    else copyBytes(gathered, start, remote, remoteOffset + start, end - start);
    if (this.kind === 'log') {
      const { responder } = this;
      responder.observer.onPlaced(responder, this.initiator, remoteOffset + start, end - start);
    }
  }

  private finishPlacing(request: WorkRequest): void {
    const { initiator, responder } = this;
    request.isPlaced = true;
    this.placed++;
    if (request.wakesResponder && responder.alive) this.onLanded();
    if (this.acknowledged === this.placed - 1 && initiator.network.connected(responder.id, initiator.id)) {
      this.stalledSince_ns = -1;
      this.acknowledge(request);
    } else if (!this.failed) {
      this.scheduleProgress(initiator.world.now_ns + initiator.network.options.retransmit_ns);
    }
  }

  private acknowledge(request: WorkRequest): void {
    const { world, network } = this.initiator;
    const { random } = world;
    let at_ns = world.now_ns + network.latency_ns();
    if (random.chance(network.options.lateCompletionProbability)) {
      at_ns += random.integer(network.options.lateCompletionMax_ns);
    }
    this.lastCompletion_ns = Math.max(this.lastCompletion_ns, at_ns);
    request.completesAt_ns = this.lastCompletion_ns;
    this.acknowledged++;
    this.wake(this.lastCompletion_ns);
  }

  /** The initiator's end fails: the oldest request without an answer with `status`, all behind it are flushed. */
  private fail(status: number): void {
    const { world } = this.initiator;
    this.failed = true;
    let next = status;
    this.lastCompletion_ns = Math.max(this.lastCompletion_ns, world.now_ns);
    for (let index = this.acknowledged; index < this.requests.length; index++) {
      const request = this.requests[index] as WorkRequest;
      request.status = next;
      request.completesAt_ns = this.lastCompletion_ns;
      next = FabricStatus.failed;
    }
    if (this.requests.length > 0) this.wake(this.lastCompletion_ns);
  }

  private wake(at_ns: number): void {
    if (this.kind !== 'probe') this.initiator.wakeMain(at_ns);
  }

  // -- responder ---------------------------------------------------------------------------------------------------

  closeResponder(): void {
    this.responderClosed = true;
  }

  /** The responder revokes the permission now: decides what of the WRITEs on their way still lands before that. */
  drain(): void {
    const { world } = this.initiator;
    if (this.failed || this.kind !== 'log') return;
    for (;;) {
      const request = this.requests[this.placed];
      if (request === undefined || !request.isWrite || !this.pathIsOpen()) return;
      if (!this.responder.mayWrite(this, request.key)) return;
      if (request.pieces === null) {
        if (world.random.chance(0.5)) return;
        request.pieces = this.cutIntoPieces(request.lengthBytes);
      }
      while (request.nextPiece < request.pieces.length) {
        if (world.random.chance(0.3)) return;
        this.placePiece(request);
      }
      this.finishPlacing(request);
    }
  }

  /** Packets of the oldest WRITE that was not placed may be on their way still: they land later, or some of them. */
  private leaveStrays(): void {
    const { initiator, responder } = this;
    const { world, network } = initiator;
    if (this.failed || this.kind === 'probe') return;
    const request = this.requests[this.placed];
    if (request === undefined || !request.isWrite || !world.random.chance(network.options.strayProbability)) return;
    request.pieces ??= this.cutIntoPieces(request.lengthBytes);
    request.gathered ??= request.local.slice(request.localOffset, request.localOffset + request.lengthBytes);
    const step = (): void => {
      if (!responder.alive || this.responderClosed) return;
      if (this.kind === 'log' && !responder.mayWrite(this, request.key)) return;
      if (!network.connected(initiator.id, responder.id)) return;
      if (request.nextPiece >= (request.pieces as readonly number[]).length) return;
      this.placePiece(request);
      if (world.random.chance(0.8)) world.schedule(world.random.integer(network.options.tearGapMax_ns + 1), step);
    };
    world.schedule(world.random.integer(network.options.giveUpMin_ns), step);
  }
}
