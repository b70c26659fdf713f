// Moves bytes into the memory of another process: node examples/move-bytes.mjs [DEVICE]
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { setImmediate } from 'node:timers/promises';
import { Access, openDevice, WrOpcode, wcStatusName } from 'quorate/verbs';

const device = process.argv[2] ?? 'shm'; // or an RDMA device: 'mlx5_0', 'rxe0'
const child = process.send === undefined ? fork(import.meta.filename, [device]) : undefined;
const peer = child ?? process; // the other process, to which IPC carries where everything is

const context = openDevice(device);
const domain = context.allocateProtectionDomain();
const memory = context.allocateMemory({ lengthBytes: 4096 });
const region = domain.registerMemory(memory, 0, memory.length, Access.LOCAL_WRITE | Access.REMOTE_WRITE);
const queue = context.createCompletionQueue(16);
const queuePair = domain.createQueuePair({ sendCq: queue });
queuePair.toInit({ accessFlags: Access.REMOTE_WRITE });
queuePair.postReceive([{ wrId: 1 }]); // the immediate data of a WRITE takes one
const own = { endpoint: queuePair.endpoint(), address: memory.address, rkey: region.rkey };

if (child !== undefined) peer.send(own);
const [far] = await once(peer, 'message');
queuePair.toReadyToReceive(far.endpoint);
queuePair.toReadyToSend();
if (child === undefined) peer.send(own); // only now, so that the WRITE finds it ready

if (child !== undefined) {
  const length = Buffer.from(memory.buffer).write('bytes from another process');
  const source = { localAddress: memory.address, length, lkey: region.lkey };
  const target = { remoteAddress: far.address, rkey: far.rkey, immData: length };
  queuePair.postSend([{ opcode: WrOpcode.RDMA_WRITE_WITH_IMM, ...source, ...target }]);
}
let completions = queue.poll();
for (; completions.length === 0; completions = queue.poll()) await setImmediate();
const [{ status, immData }] = completions;
if (status !== 0) throw new Error(`the transfer failed: ${wcStatusName(status)}`);
if (child === undefined) {
  console.log(`process ${process.pid} has "${Buffer.from(memory.buffer, 0, immData)}"`);
  process.disconnect();
}
if (child !== undefined) await once(child, 'exit');
context.close();
