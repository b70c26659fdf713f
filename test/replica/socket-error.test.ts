// What TLS says when two replicas do not have the same key, by the names that the versions of OpenSSL give it: those of the
// Node.js that the other tests run on are tried there for real.
import { describe, expect, it } from 'vitest';
import { dialError, isWrongKey } from '#lib/replica/control/socket-error.js';

const failure = (code: string) => Object.assign(new Error('of OpenSSL'), { code });

describe('an alert of OpenSSL', () => {
  it.each([
    ['ERR_SSL_SSLV3_ALERT_BAD_RECORD_MAC', 'QUORATE_CLUSTER_KEY'], // up to 3.4
    ['ERR_SSL_SSL/TLS_ALERT_BAD_RECORD_MAC', 'QUORATE_CLUSTER_KEY'], // since 3.5
    ['ERR_SSL_TLSV1_ALERT_DECRYPT_ERROR', 'QUORATE_CLUSTER_KEY'],
    ['ERR_SSL_TLSV1_ALERT_ACCESS_DENIED', 'QUORATE_CLUSTER_KEY'],
    ['ERR_SSL_TLSV1_ALERT_UNKNOWN_PSK_IDENTITY', 'QUORATE_VERSION'],
    ['ERR_SSL_SSL/TLS_ALERT_HANDSHAKE_FAILURE', 'QUORATE_PROTOCOL'],
    ['ERR_SSL_WRONG_VERSION_NUMBER', 'QUORATE_PROTOCOL'],
  ])('%s is %s', (code, expected) => {
    expect(dialError(failure(code), 'a:1')).toMatchObject({ code: expected });
  });

  it.each([
    'ERR_SSL_SSLV3_ALERT_BAD_RECORD_MAC',
    'ERR_SSL_SSL/TLS_ALERT_BAD_RECORD_MAC',
    'ERR_SSL_DECRYPTION_FAILED_OR_BAD_RECORD_MAC',
  ])('%s tells a server of another key', (code) => {
    expect(isWrongKey(failure(code))).toBe(true);
    expect(isWrongKey(failure('ERR_SSL_SSL/TLS_ALERT_CLOSE_NOTIFY'))).toBe(false);
  });
});
