// The error codes of the verbs API.
export { errorCode, QuorateError, type QuorateErrorDetails } from '../errors.js';

/** Every `code` that calls of `quorate/verbs` can throw, with its meaning. */
export const VERBS_ERROR_CODES = {
  QUORATE_INVALID_ARGUMENT: 'an argument has the wrong type or makes no sense (TypeError)',
  QUORATE_OUT_OF_RANGE: 'a number is outside its range (RangeError)',
  QUORATE_CLOSED: 'the object was closed, by itself or with its parent',
  QUORATE_ADDON: 'the native addon could not be loaded',
  QUORATE_NO_LIBRARY: 'libibverbs, or for connections librdmacm, is not installed; only the shm device can be used',
  QUORATE_NO_DEVICE: 'there is no device of that name',
  QUORATE_NO_GID: 'the port has no GID that can be used',
  QUORATE_UNSUPPORTED: 'the device, the provider or the JavaScript runtime lacks the capability',
  QUORATE_MEMLOCK: 'the limit on locked memory (RLIMIT_MEMLOCK) is too small',
  QUORATE_LIMIT: 'a table or queue of stated size is full',
  QUORATE_QP_STATE: 'the queue pair does not go from its state to the one asked for with these attributes',
  QUORATE_REVOKE_FAILED: 'a right could not be proven revoked: it must be taken as still valid',
  QUORATE_CM_REJECTED: 'the peer, or the host at which nobody listens, refused the connection',
  QUORATE_CM_UNREACHABLE: "the peer's address or a path to it was not found, or it did not answer",
  QUORATE_CM_FAILED: 'the connection ended while it was being made',
  QUORATE_TIMEOUT: 'an operation took longer than its timeoutMs',
  QUORATE_SYSTEM: 'a system call failed; see errno and syscall',
} as const;

export type VerbsErrorCode = keyof typeof VERBS_ERROR_CODES;
