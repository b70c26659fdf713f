// The error codes of the verbs API.
export { errorCode, QuorateError, type QuorateErrorDetails } from '../errors.js';

/** Every `code` that calls of `quorate/verbs` can throw, with its meaning. */
export const VERBS_ERROR_CODES = {
  /** Wrong type, or no sense; a TypeError. */
  QUORATE_INVALID_ARGUMENT: 'an argument has the wrong type or makes no sense (TypeError)',
  /** A number outside its range; a RangeError. */
  QUORATE_OUT_OF_RANGE: 'a number is outside its range (RangeError)',
  /** The object, or its parent, was closed. */
  QUORATE_CLOSED: 'the object was closed, by itself or with its parent',
  /** The native addon could not be loaded; the message lists what to do. */
  QUORATE_ADDON: 'the native addon could not be loaded',
  /** libibverbs is missing. */
  QUORATE_NO_LIBRARY: 'libibverbs, or for connections librdmacm, is not installed; only the shm device can be used',
  /** No device of that name; the message lists those there are. */
  QUORATE_NO_DEVICE: 'there is no device of that name',
  /** No GID can be used; the message shows the table. */
  QUORATE_NO_GID: 'the port has no GID that can be used',
  /** The device, the provider or the runtime lacks it. */
  QUORATE_UNSUPPORTED: 'the device, the provider or the JavaScript runtime lacks the capability',
  /** RLIMIT_MEMLOCK is too small; see `ulimit -l`. */
  QUORATE_MEMLOCK: 'the limit on locked memory (RLIMIT_MEMLOCK) is too small',
  /** A table or queue is full. */
  QUORATE_LIMIT: 'a table or queue of stated size is full',
  /** The transition or its attributes are not allowed; the message says which. */
  QUORATE_QP_STATE: 'the queue pair does not go from its state to the one asked for with these attributes',
  /** Take the right as still valid. */
  QUORATE_REVOKE_FAILED: 'a right could not be proven revoked: it must be taken as still valid',
  /** The peer refused the connection, or nobody listens there. */
  QUORATE_CM_REJECTED: 'the peer, or the host at which nobody listens, refused the connection',
  /** No address, no path, or no answer. */
  QUORATE_CM_UNREACHABLE: "the peer's address or a path to it was not found, or it did not answer",
  /** The connection ended before it was there. */
  QUORATE_CM_FAILED: 'the connection ended while it was being made',
  /** It took too long. */
  QUORATE_TIMEOUT: 'an operation took longer than its timeoutMs',
  /** A system call or verb failed, see `errno` and `syscall`. */
  QUORATE_SYSTEM: 'a system call failed; see errno and syscall',
} as const;

/** One of the keys of {@link VERBS_ERROR_CODES}. */
export type VerbsErrorCode = keyof typeof VERBS_ERROR_CODES;
