// Endpoints on shm, in a folder of each test's own, without replicas around them.
import { mkdtempSync, rmSync } from 'node:fs';
import { afterEach, beforeEach } from 'vitest';
import { LOG_BYTES_MIN } from '#lib/consensus/limits.js';
import { VerbsEndpoint } from '#lib/fabric/verbs-endpoint.js';

let directory = '';
const open: { close(): void }[] = [];

/** To be called where tests are declared: after each of them what it opened is closed, the last one first. */
export function closeAfterEach(): void {
  beforeEach(() => {
    directory = mkdtempSync('/dev/shm/quorate-test-');
  });
  afterEach(() => {
    for (const one of open.splice(0).reverse()) one.close();
    rmSync(directory, { recursive: true });
  });
}

/** Is closed after the test, too. */
export function closeLater(one: { close(): void }): void {
  open.push(one);
}

export function openEndpoint(): VerbsEndpoint {
  const endpoint = VerbsEndpoint.open({ device: 'shm', shmDirectory: directory, logBytes: LOG_BYTES_MIN });
  open.push(endpoint);
  return endpoint;
}
