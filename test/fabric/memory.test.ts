// What the fabric takes of a device is given back when not all of it is to be had.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { LOG_BYTES_MIN } from '#lib/consensus/limits.js';
import { TransferSink } from '#lib/fabric/transfer-link.js';
import { VerbsEndpoint } from '#lib/fabric/verbs-endpoint.js';
import { Memory } from '#lib/verbs/index.js';

let directory = '';
let endpoint: VerbsEndpoint;

beforeEach(() => {
  directory = mkdtempSync('/dev/shm/quorate-test-');
  endpoint = VerbsEndpoint.open({ device: 'shm', shmDirectory: directory, logBytes: LOG_BYTES_MIN });
});
afterEach(() => {
  vi.restoreAllMocks();
  endpoint.close();
  rmSync(directory, { recursive: true });
});

it('memory for state that is longer than an ArrayBuffer can be is given back', () => {
  const memories = vi.spyOn(endpoint.context, 'allocateMemory');
  const regions = vi.spyOn(endpoint.stateMemory.domain, 'registerMemory');
  const failure = new Error('this JavaScript runtime has no array buffers as long as that');
  vi.spyOn(Memory.prototype, 'buffer', 'get').mockImplementation(() => {
    throw failure;
  });
  expect(() => endpoint.stateMemory.allocate(4096)).toThrow(failure);
  expect(memories.mock.results.map(({ value }) => value.closed)).toEqual([true]);
  expect(regions.mock.results.filter(({ value }) => !value.closed)).toEqual([]);
});

it('a transfer for which there is no queue pair keeps no channel and no queue', () => {
  const before = readdirSync(directory);
  const failure = new Error('all queue pairs are in use');
  const queues = vi.spyOn(endpoint.context, 'createCompletionQueue');
  vi.spyOn(endpoint.stateMemory.domain, 'createQueuePair').mockImplementation(() => {
    throw failure;
  });
  expect(() => new TransferSink(endpoint)).toThrow(failure);
  expect(readdirSync(directory)).toEqual(before);
  expect(queues.mock.results.map(({ value }) => value.closed)).toEqual([true]);
});
