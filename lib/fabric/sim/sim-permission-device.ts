// What a device has to do with the right to write a log, simulated at the responder, for LogPermissions to drive: queue
// pairs with access flags, memory regions with keys, flush markers. Who can write is decided here and nowhere else. What
// switches a permission may fail, before or after it took effect, take its time, and flush markers may come too late.
import { Access, QpState } from '../../verbs/rights.js';
import type { PermissionQueuePair, PermissionRegion } from '../permissions.js';
import { Random } from './random.js';
import type { SimLink } from './sim-link.js';
import type { SimNode } from './sim-node.js';

/** A failing call takes up to this time; a flush marker that is late may come after LogPermissions has given it up. */
const FAILING_CALL_MAX_NS = 80e6;
const LATE_MARKER_MIN_NS = 1e6;
const LATE_MARKER_MAX_NS = 4e9;
/** Time between two looks for a flush marker that is not there. */
const POLL_NS = 20e6;
/** Half of the calls that fail take their time. */
const SLOW_FAILURE_PROBABILITY = 0.5;

/** The device did not do what it was asked for, or says so. */
export class SimDeviceError extends Error {}

/** The responder's end of a log link. */
export class SimLogQueuePair implements PermissionQueuePair {
  isMarked = false;
  /** It is to fail, and goes on placing what is on its way until it has. */
  isFlushing = false;
  isLate = false;

  constructor(
    private readonly device: SimPermissionDevice,
    readonly link: SimLink,
    readonly number: number,
    private accessFlags: number,
  ) {}

  get mayBeWritten(): boolean {
    return (this.accessFlags & Access.REMOTE_WRITE) !== 0;
  }

  get hasFailed(): boolean {
    return this.link.responderClosed;
  }

  setAccessFlags(accessFlags: number): void {
    this.device.call('setAccessFlags', () => {
      if (this.hasFailed || this.isFlushing) throw new SimDeviceError(`queue pair ${this.number} has failed`);
      if ((accessFlags & Access.REMOTE_WRITE) === 0) this.device.drain([this]);
      this.accessFlags = accessFlags;
    });
  }

  modify({ state }: { readonly state: QpState }): void {
    if (state !== QpState.ERR) throw new RangeError(`no queue pair of a log is moved to state ${state}`);
    this.device.call('modify', () => {
      if (this.hasFailed) return;
      this.isFlushing = true;
      if (!this.device.flushes) this.fail();
      else if (!this.isLate) this.device.delay(this);
    });
  }

  query(): { readonly state: QpState } {
    let state: QpState = QpState.RTS;
    this.device.call('query', () => {
      if (this.hasFailed || this.isFlushing) state = QpState.ERR;
    });
    return { state };
  }

  /** Nothing of the peer is placed any more. */
  fail(): void {
    if (!this.hasFailed) this.device.drain([this]);
    this.link.closeResponder();
    this.isFlushing = false;
  }

  close(): void {
    this.device.call('destroy', () => {
      this.device.mark();
      this.link.closeResponder();
      this.device.queuePairs.delete(this);
    });
  }
}

class SimLogRegion implements PermissionRegion {
  /** Drawn when it is asked for: nobody can use it before. */
  private key = 0;
  /** Who was told. */
  peer = -1;

  constructor(private readonly device: SimPermissionDevice) {}

  get rkey(): number {
    if (this.key === 0) {
      this.key = 1 + this.device.node.world.random.integer(2 ** 32 - 2);
      this.peer = this.device.grantee;
    }
    return this.key;
  }

  isOpenedBy(key: number): boolean {
    return key !== 0 && key === this.key;
  }

  close(): void {
    this.device.call('close', () => {
      if (!this.device.regions.has(this)) return;
      this.device.drain(this.device.queuePairs);
      this.device.regions.delete(this);
    });
  }
}

/** Serves as domain and as completion queue as well. */
export class SimPermissionDevice {
  /** In the order in which they were made. */
  readonly queuePairs = new Set<SimLogQueuePair>();
  readonly regions = new Set<SimLogRegion>();
  /** Peer that is being let in. */
  grantee = -1;
  /** There was no marker, and nothing else was asked for since. */
  private hasLooked = false;
  private markers: { readonly qpNum: number }[] = [];
  /** Time that passed for who waits here, but not in the world, which suspends calls only so deep inside each other. */
  private skipped_ns = 0;
  /** Its own, so that nothing else is drawn differently where calls fail. */
  private readonly random: Random;

  constructor(
    readonly node: SimNode,
    nodeNumber: number,
  ) {
    this.random = new Random(node.world.seed + nodeNumber * 2 ** 32);
  }

  /** Whether a queue pair that is moved to the error state stops only some time later, and says so by a marker. */
  get flushes(): boolean {
    return this.node.network.options.strategy === 'qp-flush';
  }

  now_ns(): number {
    return this.node.world.now_ns + this.skipped_ns;
  }

  connect(link: SimLink, accessFlags: number): SimLogQueuePair {
    // Devices give numbers out again.
    let number = 1;
    const taken = new Set([...this.queuePairs].map((queuePair) => queuePair.number));
    while (taken.has(number)) number++;
    const queuePair = new SimLogQueuePair(this, link, number, accessFlags);
    this.queuePairs.add(queuePair);
    return queuePair;
  }

  registerMemory(): SimLogRegion {
    const region = new SimLogRegion(this);
    const register = () => {
      this.regions.add(region);
    };
    // A replica whose first region is refused is not opened.
    if (this.regions.size === 0 && this.queuePairs.size === 0) register();
    else this.call('registerMemory', register);
    return region;
  }

  /** Whether a WRITE with this key that arrives over the link is let through to the log. */
  permits(link: SimLink, key: number): boolean {
    if (this.node.network.options.strategy === 'mr-dereg') {
      for (const region of this.regions) if (region.isOpenedBy(key)) return true;
      return false;
    }
    for (const queuePair of this.queuePairs) if (queuePair.link === link) return queuePair.mayBeWritten;
    return false;
  }

  /** Peers that could write the log now, if they knew. */
  writers(): Set<number> {
    const writers = new Set<number>();
    for (const { peer } of this.regions) if (peer >= 0) writers.add(peer);
    if (this.node.network.options.strategy === 'mr-dereg') return writers;
    for (const { mayBeWritten, hasFailed, link } of this.queuePairs) {
      if (mayBeWritten && !hasFailed) writers.add(link.initiator.id);
    }
    return writers;
  }

  /** What is on its way through these lands now, in part or in full, or never. */
  drain(queuePairs: Iterable<SimLogQueuePair>): void {
    this.node.drainWrites([...queuePairs].map(({ link }) => link));
  }

  poll(completionsMax: number): readonly { readonly qpNum: number }[] {
    for (const queuePair of this.queuePairs) if (queuePair.isFlushing && !queuePair.isLate) queuePair.fail();
    this.mark();
    const taken = this.markers.splice(0, completionsMax);
    // Who looks once more waits.
    if (taken.length === 0 && this.hasLooked) {
      this.pass(POLL_NS);
      this.node.mustLive();
    }
    this.hasLooked = taken.length === 0;
    return taken;
  }

  /** Queue pairs that have failed, and have not said so yet, do. */
  mark(): void {
    if (!this.flushes) return;
    for (const queuePair of this.queuePairs) {
      if (!queuePair.hasFailed || queuePair.isMarked) continue;
      queuePair.isMarked = true;
      this.markers.push({ qpNum: queuePair.number });
    }
  }

  /** Its marker may take its time. */
  delay(queuePair: SimLogQueuePair): void {
    if (!this.node.network.drawPermissionFailure(this.random)) return;
    queuePair.isLate = true;
    const delay_ns = this.random.logBetween(LATE_MARKER_MIN_NS, LATE_MARKER_MAX_NS);
    this.node.trace(`the flush marker of queue pair ${queuePair.number} will take ${(delay_ns / 1e6).toFixed(1)} ms`);
    this.node.world.schedule(delay_ns, () => queuePair.fail());
  }

  call(name: string, effect: () => void): void {
    const { random, node } = this;
    this.hasLooked = false;
    if (!node.network.drawPermissionFailure(random)) {
      effect();
      return;
    }
    const takesEffect = random.chance(0.5);
    node.trace(`${name} of its device fails${takesEffect ? ', and takes effect' : ''}`);
    if (takesEffect) effect();
    if (random.chance(SLOW_FAILURE_PROBABILITY)) this.pass(random.logBetween(1e3, FAILING_CALL_MAX_NS));
    throw new SimDeviceError(`${name}: the device says that it failed`);
  }

  private pass(duration_ns: number): void {
    const { world } = this.node;
    const until_ns = this.now_ns() + duration_ns;
    world.interleave(duration_ns);
    this.skipped_ns += Math.max(0, until_ns - this.now_ns());
  }
}
