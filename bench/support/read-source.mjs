// The other end of the bare READ loop of bench/rereplication.mjs: memory that may be read, and a queue pair.
import { Access, openDevice } from '#lib/verbs/index.js';

const { device, lengthBytes } = JSON.parse(process.argv[2] ?? '{}');
const context = openDevice(device);
const domain = context.allocateProtectionDomain();
const memory = context.allocateMemory({ lengthBytes });
new Uint8Array(memory.buffer).fill(7);
const region = domain.registerMemory(memory, 0, lengthBytes, Access.REMOTE_READ);
const queuePair = domain.createQueuePair({ sendCq: context.createCompletionQueue(4) });
queuePair.toInit({ accessFlags: Access.REMOTE_READ });
process.on('message', async (/** @type {any} */ remote) => {
  await queuePair.toReadyToReceiveAsync(remote);
  queuePair.toReadyToSend();
  process.send?.({ ready: true });
});
process.on('disconnect', () => process.exit(0));
process.send?.({ endpoint: queuePair.endpoint(), address: region.address, rkey: region.rkey });
