// The error of the whole project. quorate/verbs reports wrong arguments as Node.js itself does it, with a TypeError or
// RangeError that carries a `code`; everything else that fails, wrong options of a replica included, is a QuorateError.

/** What {@link QuorateError} can carry besides code and message. */
export interface QuorateErrorDetails {
  /** Error number of the system call, positive as in errno(3). */
  errno?: number;
  /** The system call or verb that failed: "ibv_modify_qp", "mmap". */
  syscall?: string;
  /** The error behind this one. */
  cause?: unknown;
}

/**
 * An operation failed. `code` is stable and meant for programs; the message says what happened, to what, and what to
 * do about it.
 */
export class QuorateError extends Error {
  /** Stable, machine-readable: "QUORATE_CLOSED", "QUORATE_MEMLOCK", ... */
  readonly code: string;
  /** Error number of the system call, positive as in errno(3); absent where no system call was involved. */
  declare readonly errno?: number;
  /** The system call or verb that failed. */
  declare readonly syscall?: string;

  constructor(code: string, message: string, details: QuorateErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    if (details.errno !== undefined) this.errno = details.errno;
    if (details.syscall !== undefined) this.syscall = details.syscall;
  }

  /** "QuorateError [QUORATE_CLOSED]": the code is part of what a stack trace prints. */
  override get name(): string {
    return `QuorateError [${this.code}]`;
  }
}

/** A wrong argument: type, combination or meaning. A TypeError with code QUORATE_INVALID_ARGUMENT. */
export function invalidArgument(message: string): TypeError & { code: string } {
  return Object.assign(new TypeError(message), { code: 'QUORATE_INVALID_ARGUMENT' });
}

/** A number outside its range. A RangeError with code QUORATE_OUT_OF_RANGE. */
export function outOfRange(message: string): RangeError & { code: string } {
  return Object.assign(new RangeError(message), { code: 'QUORATE_OUT_OF_RANGE' });
}

/** All members that an object may have; the compiler sees to it that none is left out. */
export type Members<Value> = { readonly [Name in keyof Value]-?: true };

/** What is wrong with an object that has another member than these: a misspelt option would be one that is left out. */
export function unknownMember<Value extends object>(
  what: string,
  value: Value,
  members: Members<Value>,
): string | undefined {
  // Makes no array: the options of proposals come by here.
  for (const name in value) {
    if (Object.hasOwn(members, name)) continue;
    return `${what} has no member '${name.slice(0, 100)}'; there are: ${Object.keys(members).join(', ')}`;
  }
  return undefined;
}

/** The `code` of an error of this project (of any class), undefined for anything else. */
export function errorCode(error: unknown): string | undefined {
  if (!(error instanceof Error)) return undefined;
  const { code } = error as { code?: unknown };
  return typeof code === 'string' && code.startsWith('QUORATE_') ? code : undefined;
}
