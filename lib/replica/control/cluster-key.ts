// What the cluster key becomes on the wire: TLS 1.2 with a pre-shared key (RFC 4279, RFC 7905). Both ends prove that
// they hold the key, nothing else (no certificate, no name) is trusted, and the ephemeral key exchange keeps recorded
// traffic secret also from someone who learns the key later. TLS 1.3 is left out on purpose: there a server may
// answer an offered pre-shared key with a certificate, while with the one PSK suite allowed here nothing but the key
// can authenticate. HKDF separates this use of the key from others; it does not make a guessable key strong, so a
// cluster key should be 32 random bytes rather than a phrase.
import { constants, hkdfSync } from 'node:crypto';
import type { ConnectionOptions, TLSSocket, TlsOptions } from 'node:tls';
import { types } from 'node:util';
import { QuorateError } from '../../errors.js';
import { CLUSTER_KEY_BYTES_MAX, CLUSTER_KEY_BYTES_MIN } from './limits.js';

/** Names the key and the way it is derived; a later derivation gets another identity. */
const PSK_IDENTITY = 'quorate/1';
const PSK_INFO = 'quorate control channel, TLS-PSK, version 1';
const PSK_BYTES = 32;
const TLS_VERSION = 'TLSv1.2';
/** Forward secret and authenticated encryption; of the ECDHE-PSK suites in OpenSSL the only one that is not CBC. */
const CIPHER_SUITE = 'ECDHE-PSK-CHACHA20-POLY1305';

const COMMON_OPTIONS = {
  ciphers: CIPHER_SUITE,
  minVersion: TLS_VERSION,
  maxVersion: TLS_VERSION,
  ecdhCurve: 'X25519:P-256',
  secureOptions: constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION,
  // No certificate is ever checked; an empty list saves reading the public authorities.
  ca: [] as string[],
} as const;

/** Throws QUORATE_CLUSTER_KEY if the key is unusable. */
export function checkClusterKey(clusterKey: Uint8Array | string): Uint8Array {
  if (typeof clusterKey !== 'string' && !types.isUint8Array(clusterKey)) {
    throw new QuorateError('QUORATE_CLUSTER_KEY', 'the cluster key is neither a string nor a Uint8Array');
  }
  const bytes = typeof clusterKey === 'string' ? Buffer.from(clusterKey, 'utf8') : clusterKey;
  if (bytes.length < CLUSTER_KEY_BYTES_MIN || bytes.length > CLUSTER_KEY_BYTES_MAX) {
    throw new QuorateError(
      'QUORATE_CLUSTER_KEY',
      `the cluster key has ${bytes.length} bytes; it must have ${CLUSTER_KEY_BYTES_MIN} to ${CLUSTER_KEY_BYTES_MAX}, ` +
        'best 32 random ones, the same at every replica',
    );
  }
  return bytes;
}

/** The key of the transport, derived from the cluster key. Throws QUORATE_CLUSTER_KEY if that is unusable. */
export function deriveTransportKey(clusterKey: Uint8Array | string): Buffer {
  const bytes = checkClusterKey(clusterKey);
  return Buffer.from(hkdfSync('sha256', bytes, new Uint8Array(0), PSK_INFO, PSK_BYTES));
}

export function serverTlsOptions(transportKey: Buffer): TlsOptions {
  return {
    ...COMMON_OPTIONS,
    pskCallback: (_socket, identity) => (identity === PSK_IDENTITY ? transportKey : null),
  };
}

export function clientTlsOptions(transportKey: Buffer): ConnectionOptions {
  return {
    ...COMMON_OPTIONS,
    pskCallback: () => ({ psk: transportKey, identity: PSK_IDENTITY }),
    // There is no certificate that could carry a name: the key is the identity.
    checkServerIdentity: () => undefined,
  };
}

/** Throws unless the connection is what the options above allow: the library must never fall back to anything else. */
export function assertPreSharedKey(socket: TLSSocket): void {
  const suite = socket.getCipher().name;
  const version = socket.getProtocol();
  if (suite !== CIPHER_SUITE || version !== TLS_VERSION) {
    throw new QuorateError(
      'QUORATE_CLUSTER_KEY',
      `TLS settled on ${version} ${suite}, which does not prove the cluster key`,
    );
  }
}
