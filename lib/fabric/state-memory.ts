// Memory in which a state machine keeps its state, registered so that the READs of a state transfer reach it where it lies:
// at the donor they fetch from it, at the receiver they put into it, and nobody copies. All of it lies in one protection
// domain, together with what transfers make for themselves; a link that carries state reaches neither log nor status.
import { invalidArgument, QuorateError } from '../errors.js';
import { Access, type Context, type Memory, type MemoryRegion, type ProtectionDomain } from '../verbs/objects.js';

/** Areas of one replica: a transfer names each of them to its receiver. */
export const STATE_AREAS_MAX = 256;

/** One area, as the device knows it. */
export interface StateArea {
  readonly buffer: ArrayBuffer;
  readonly address: number;
  readonly lengthBytes: number;
  readonly lkey: number;
  readonly rkey: number;
}

class Area implements StateArea {
  /** Transfers that name it to their peers. */
  users = 0;
  readonly address: number;
  readonly lengthBytes: number;
  readonly lkey: number;
  readonly rkey: number;

  constructor(
    private readonly memory: Memory,
    readonly buffer: ArrayBuffer,
    private readonly region: MemoryRegion,
  ) {
    this.address = region.address;
    this.lengthBytes = memory.length;
    this.lkey = region.lkey;
    this.rkey = region.rkey;
  }

  /** Peers reach it no more, and its views are detached. */
  close(): void {
    this.region.close();
    this.memory.close();
  }
}

/** The areas that there were when a transfer began, which stay registered until it lets go. */
export class HeldStateAreas {
  private readonly numbers = new Map<ArrayBufferLike, number>();

  constructor(
    readonly areas: readonly StateArea[],
    /** The transfer needs them no more. */
    readonly close: () => void,
  ) {
    for (const [index, { buffer }] of areas.entries()) this.numbers.set(buffer, index);
  }

  /** Index in `areas` of the one that this buffer is; -1 if it is none of them. */
  indexOf(buffer: ArrayBufferLike): number {
    return this.numbers.get(buffer) ?? -1;
  }
}

export class StateMemoryAreas {
  readonly domain: ProtectionDomain;
  private readonly areas = new Map<ArrayBufferLike, Area>();

  constructor(private readonly context: Context) {
    this.domain = context.allocateProtectionDomain();
  }

  /** Throws QUORATE_LIMIT, QUORATE_MEMLOCK, QUORATE_OUT_OF_RANGE, QUORATE_SYSTEM, QUORATE_UNSUPPORTED. */
  allocate(lengthBytes: number): Uint8Array {
    if (this.areas.size >= STATE_AREAS_MAX) {
      throw new QuorateError(
        'QUORATE_LIMIT',
        `the state machine has ${STATE_AREAS_MAX} areas of memory already; allocate fewer, larger ones`,
      );
    }
    const memory = this.context.allocateMemory({ lengthBytes });
    let area: Area;
    try {
      const { buffer } = memory; // which one that is very long does not have
      // Peers only READ; the device itself writes here what it READs from them.
      const region = this.domain.registerMemory(memory, 0, lengthBytes, Access.LOCAL_WRITE | Access.REMOTE_READ);
      area = new Area(memory, buffer, region);
    } catch (error) {
      memory.close();
      throw error;
    }
    this.areas.set(area.buffer, area);
    return new Uint8Array(area.buffer);
  }

  /** Throws QUORATE_INVALID_ARGUMENT. Memory that a transfer is reading or filling is given back when that ends. */
  release(bytes: Uint8Array): void {
    const buffer = bytes?.buffer; // of a state machine, which may pass anything
    const area = this.areas.get(buffer);
    if (area === undefined) {
      throw invalidArgument('the bytes to be released are not a view of memory that allocate() gave, or were released');
    }
    this.areas.delete(buffer);
    if (area.users === 0) area.close();
  }

  /** Whether this buffer is one that allocate() gave, and was not released. */
  has(buffer: ArrayBufferLike): boolean {
    return this.areas.has(buffer);
  }

  /** What there is now, for a transfer. */
  hold(): HeldStateAreas {
    const held = [...this.areas.values()];
    for (const area of held) area.users++;
    return new HeldStateAreas(held, () => {
      for (const area of held) {
        area.users--;
        if (area.users === 0 && !this.areas.has(area.buffer)) area.close();
      }
    });
  }
}
