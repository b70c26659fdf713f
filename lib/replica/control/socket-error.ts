// What the operating system and OpenSSL say, in the terms of this project: is the peer not up, gone, holding another
// cluster key, or something else entirely?
import { QuorateError, type QuorateErrorDetails } from '../../errors.js';

interface SystemError extends Error {
  readonly code?: string;
  readonly errno?: number;
  readonly syscall?: string;
}

/** errno is positive as in errno(3); Node's own numbers beyond those of the kernel are left out. */
export function systemDetails(error: Error): QuorateErrorDetails {
  const { errno, syscall } = error as SystemError;
  const number = typeof errno === 'number' ? Math.abs(errno) : 0;
  return {
    cause: error,
    ...(number > 0 && number < 4096 ? { errno: number } : {}),
    ...(typeof syscall === 'string' ? { syscall } : {}),
  };
}

/** How OpenSSL names an alert: up to version 3.4 by the protocol version that introduced it, since then some by none. */
const ALERT = /^ERR_SSL_(?:SSLV3|TLSV1|TLSV13|SSL\/TLS)_ALERT_/;
const ALERT_PREFIX = 'alert ';

/** The TLS alerts and failures by which a wrong key shows, depending on which end and which record notices first. */
const WRONG_KEY_REASONS: ReadonlySet<string> = new Set([
  `${ALERT_PREFIX}BAD_RECORD_MAC`,
  `${ALERT_PREFIX}DECRYPT_ERROR`,
  `${ALERT_PREFIX}DECRYPTION_FAILED`,
  'ERR_SSL_DECRYPTION_FAILED_OR_BAD_RECORD_MAC',
  'ERR_SSL_BAD_RECORD_MAC',
  'ERR_SSL_DIGEST_CHECK_FAILED',
]);
/** The peer derives its key in another way than this version. */
const OTHER_DERIVATION_REASONS: ReadonlySet<string> = new Set([
  `${ALERT_PREFIX}UNKNOWN_PSK_IDENTITY`,
  'ERR_SSL_PSK_IDENTITY_NOT_FOUND',
]);
/** What this project's server without a key answers to TLS (see server.ts). */
const NO_KEY_REASON = `${ALERT_PREFIX}ACCESS_DENIED`;

/** An alert by its own name, whatever the version of OpenSSL; else the error's code. */
function reasonOf(error: Error): string {
  return ((error as SystemError).code ?? '').replace(ALERT, ALERT_PREFIX);
}

export function isWrongKey(error: Error): boolean {
  return WRONG_KEY_REASONS.has(reasonOf(error));
}

/** Why a connection to `target` ("replica 2 at 10.0.0.2:7000") could not be made. */
export function dialError(error: Error, target: string): QuorateError {
  const code = (error as SystemError).code ?? '';
  const details = systemDetails(error);
  if (error instanceof QuorateError) return error;
  if (isWrongKey(error)) {
    const message = `the peer at ${target} has another cluster key; configure the same key at every replica`;
    return new QuorateError('QUORATE_CLUSTER_KEY', message, details);
  }
  if (reasonOf(error) === NO_KEY_REASON) {
    const message = `the peer at ${target} runs without a cluster key; configure the same key at every replica`;
    return new QuorateError('QUORATE_CLUSTER_KEY', message, details);
  }
  if (OTHER_DERIVATION_REASONS.has(reasonOf(error))) {
    const message = `the peer at ${target} runs an incompatible version of quorate (it does not know this key identity)`;
    return new QuorateError('QUORATE_VERSION', message, details);
  }
  if (code === 'ECONNREFUSED') {
    const message = `nothing listens at ${target} (yet); is the replica running, are host and port right?`;
    return new QuorateError('QUORATE_CONNECTION_REFUSED', message, details);
  }
  if (code.startsWith('ERR_SSL_') || code.startsWith('ERR_TLS_')) {
    const message = `what listens at ${target} does not speak the control protocol over TLS with a cluster key (${code}); is it another service?`;
    return new QuorateError('QUORATE_PROTOCOL', message, details);
  }
  if (code === 'ECONNRESET' || code === 'EPIPE') {
    const message = `the peer at ${target} ended the connection before both sides had accepted each other`;
    return new QuorateError('QUORATE_DISCONNECTED', message, details);
  }
  const message = `${target} cannot be reached: ${error.message || code}; check host, network and firewall`;
  return new QuorateError('QUORATE_UNREACHABLE', message, details);
}

/** Why a connection that worked has ended. */
export function lostError(error: Error, target: string): QuorateError {
  if (error instanceof QuorateError) return error;
  const message = `the connection to ${target} broke: ${error.message.split('\n', 1)[0]}`;
  return new QuorateError('QUORATE_DISCONNECTED', message, systemDetails(error));
}
