// A map of strings that can be frozen: whoever froze it iterates over it as it was, however long that takes, while others
// go on changing it. Changes are put aside into a second map as long as it is frozen, and moved over afterwards, a few
// with each further change, so that no single one takes long. In all states the order of the entries is that of one
// plain Map, as replicas that were frozen at different times must write the same bytes for the same state.

/** Moved over with each change after the thaw; more than one, so that it ends. */
const MOVES_PER_CHANGE = 16;

export interface Values {
  readonly size: number;
  get(key: string): string | undefined;
  has(key: string): boolean;
  set(key: string, value: string): void;
  /** The key must be there. */
  delete(key: string): void;
  entries(): Iterable<[key: string, value: string]>;
  /** The entries of this moment; null if it is frozen already. To be released once. */
  freeze(): Frozen | null;
}

export interface Frozen {
  entries(): Iterable<[key: string, value: string]>;
  release(): void;
}

/** What happened to a key since the freeze: it has a new value, in its old place or at the end; or it is gone. */
interface Change {
  value: string | null;
  /** It was deleted, and has come back at the end. */
  isMoved: boolean;
}

export class ChangesAside implements Values {
  /** In the order of the last insertion of new keys; null while everything is in `base`. */
  private changes: Map<string, Change> | null = null;
  private isFrozen = false;
  private size_: number;

  constructor(private readonly base = new Map<string, string>()) {
    this.size_ = base.size;
  }

  get size(): number {
    return this.size_;
  }

  get(key: string): string | undefined {
    if (this.changes === null) return this.base.get(key);
    const change = this.changes.get(key);
    return change === undefined ? this.base.get(key) : (change.value ?? undefined);
  }

  has(key: string): boolean {
    return this.get(key) !== undefined;
  }

  set(key: string, value: string): void {
    const { base, changes } = this;
    if (changes === null) {
      base.set(key, value);
      this.size_ = base.size;
      return;
    }
    const change = changes.get(key);
    if (change === undefined) {
      if (!base.has(key)) this.size_++;
      changes.set(key, { value, isMoved: false });
    } else if (change.value === null) {
      changes.delete(key);
      changes.set(key, { value, isMoved: true });
      this.size_++;
    } else {
      change.value = value;
    }
    this.moveSome();
  }

  delete(key: string): void {
    const { base, changes } = this;
    if (changes === null) {
      base.delete(key);
      this.size_ = base.size;
      return;
    }
    this.size_--;
    if (!base.has(key)) changes.delete(key);
    else changes.set(key, { value: null, isMoved: false });
    this.moveSome();
  }

  *entries(): Generator<[key: string, value: string]> {
    const { base, changes } = this;
    if (changes === null) {
      yield* base;
      return;
    }
    for (const entry of base) {
      const change = changes.get(entry[0]);
      if (change === undefined) yield entry;
      else if (change.value !== null && !change.isMoved) yield [entry[0], change.value];
    }
    for (const [key, { value, isMoved }] of changes) {
      if (value !== null && (isMoved || !base.has(key))) yield [key, value];
    }
  }

  freeze(): Frozen | null {
    if (this.isFrozen) return null;
    this.move(Number.POSITIVE_INFINITY);
    this.isFrozen = true;
    this.changes = new Map();
    let isReleased = false;
    return {
      entries: () => this.base,
      release: () => {
        if (isReleased) return;
        isReleased = true;
        this.isFrozen = false;
        if (this.changes?.size === 0) this.changes = null;
      },
    };
  }

  private moveSome(): void {
    if (!this.isFrozen) this.move(MOVES_PER_CHANGE);
  }

  /** The oldest changes first: what base and changes are together stays the same with each. */
  private move(most: number): void {
    const { base, changes } = this;
    if (changes === null) return;
    let count = 0;
    for (const [key, { value, isMoved }] of changes) {
      if (count++ === most) return;
      if (value === null || isMoved) base.delete(key);
      if (value !== null) base.set(key, value);
      changes.delete(key);
    }
    this.changes = null;
  }
}
