// The examples on RDMA devices; on shared memory they are in test/verbs/examples.test.ts.
import { expect, test } from 'vitest';
import { expectMovedBytes, expectSequence, runExample } from '../../verbs/support/examples.js';
import { rdmaDevices } from '../devices.js';

const devices = rdmaDevices();
/** An emulated machine takes seconds to start a process. */
const TIMEOUT_MS = 180_000;

test('examples/move-bytes.mjs moves bytes when it is told the device', { timeout: TIMEOUT_MS }, async () => {
  expect(devices.length).toBeGreaterThan(0);
  expectMovedBytes(await runExample('move-bytes.mjs', [devices[0] as string], TIMEOUT_MS));
});

test('examples/sequencer.mjs gives each number once to clients on other devices', { timeout: TIMEOUT_MS }, async () => {
  const args = ['--device', devices.join(), '--clients', '2', '--window', '8', '--requests', '300'];
  expectSequence(await runExample('sequencer.mjs', args, TIMEOUT_MS), 2, 300);
});
