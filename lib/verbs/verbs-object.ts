// What all objects of the verbs API have in common: the native object behind them, closing, and sharing with other
// threads. A parent keeps its children until they are closed: a memory region of which a program keeps only the rkey
// must not be deregistered by the garbage collector. When nothing refers to a whole family any more, it is collected.
import { invalidArgument } from '../errors.js';
import type { NativeKind, NativeObject, NativeSharedObject } from './native.js';

/** So many children, at least, are kept before those that are closed are looked for. */
const CHILDREN_UNSEEN = 32;

const faces = new WeakMap<NativeObject, VerbsObject>();

/** Base class of all objects that are made by a device, of Fence and of Notifier. */
export abstract class VerbsObject<Native extends NativeSharedObject = NativeSharedObject> {
  /** @internal */
  readonly native: Native;
  #parent: VerbsObject | undefined;
  readonly #children = new Set<VerbsObject>();
  #childrenUnseen = CHILDREN_UNSEEN;
  readonly #closeListeners = new Set<() => void>();

  /** @internal Objects are made by openDevice(), by methods of their parent, and by adopt(). */
  constructor(native: Native, parent?: VerbsObject) {
    if (native?.kind === undefined) throw invalidArgument(`${new.target.name} is made from no such thing`);
    this.native = native;
    this.#parent = parent;
    faces.set(native, this);
    // The native object prints nothing but its prototype; keep it out of console.log and util.inspect.
    Object.defineProperty(this, 'native', { enumerable: false });
  }

  /** "Context", "QueuePair", ... */
  get kind(): NativeKind {
    return this.native.kind;
  }

  /** True once the object was closed, by close() in any thread or together with its parent. */
  get closed(): boolean {
    return this.native.closed;
  }

  /**
   * Ends the object, its children first. Idempotent. Waits until no other thread is inside a call on it; every later
   * call fails with QUORATE_CLOSED.
   *
   * @throws QuorateError QUORATE_REVOKE_FAILED if the device did not confirm that a right is revoked (MemoryRegion,
   * QueuePair); the object then stays open. QUORATE_SYSTEM if the device refused otherwise.
   */
  close(): void {
    try {
      this.native.close();
    } finally {
      this.announceClosed(); // of children also where the object itself could not be closed
    }
  }

  /** The same as close(), for `using` declarations. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** The same as close(), for `await using` declarations. Rejects where close() throws. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }

  /** @internal Calls back when this object is closed in this thread, alone or with a parent; returns what undoes it. */
  onceClosed(listener: () => void): () => void {
    this.#closeListeners.add(listener);
    return () => this.#closeListeners.delete(listener);
  }

  /** @internal Tells whoever waits for that what is closed of this object and of those that went with it. */
  announceClosed(): void {
    for (const child of [...this.#children]) child.announceClosed();
    if (!this.closed) return;
    this.#parent?.release(this);
    const listeners = [...this.#closeListeners];
    this.#closeListeners.clear();
    for (const listener of listeners) listener();
  }

  /**
   * A number that stands for this object in the whole process: another thread gets its own JavaScript object on the
   * same native object with adopt(). The object then lives until it is closed, or unshare() was called and nobody
   * holds it any more. Sharing again gives the same number.
   *
   * @throws QuorateError QUORATE_CLOSED; QUORATE_LIMIT above 65,536 shared objects
   */
  share(): number {
    return this.native.share();
  }

  /** @internal As share(), but the number is withdrawn when the calling thread ends, which may be terminated at any moment. */
  shareUntilThreadEnds(): number {
    return this.native.share(true);
  }

  /** @internal What was made from this object and has not been closed by itself. */
  protected children(): VerbsObject[] {
    return [...this.#children];
  }

  /** @internal */
  retain<Child extends VerbsObject>(child: Child): Child {
    if (this.#children.size >= this.#childrenUnseen) this.#releaseClosed();
    this.#children.add(child);
    return child;
  }

  /** Nobody tells of a child that another thread closed, or another object that it needs, such as its completion queue. */
  #releaseClosed(): void {
    for (const child of [...this.#children]) if (child.closed) child.announceClosed();
    this.#childrenUnseen = Math.max(CHILDREN_UNSEEN, 2 * this.#children.size);
  }

  /** @internal Another parent keeps it from now on. */
  moveTo(parent: VerbsObject): void {
    this.#parent?.release(this);
    this.#parent = parent;
    parent.retain(this);
  }

  /** @internal */
  release(child: VerbsObject): void {
    this.#children.delete(child);
  }
}

/** @internal The object that stands for a native one, if there is one. */
export function existingFace(native: NativeObject): VerbsObject | undefined {
  return faces.get(native);
}

/** @internal The native object behind an argument; null for none. What is no object of the class is not taken for none. */
export function nativeOrNull<Native extends NativeSharedObject>(
  object: VerbsObject<Native> | null | undefined,
  expected: { readonly prototype: VerbsObject<Native>; readonly name: string },
  name: string,
): Native | null {
  if (object === null || object === undefined) return null;
  if (!Object.prototype.isPrototypeOf.call(expected.prototype, object)) {
    throw invalidArgument(`${name} must be a ${expected.name} or null`);
  }
  return object.native;
}
