// The conformance cases on the shm device, and that it leaves nothing behind.
import { expect, it } from 'vitest';
import { Access, openDevice, QpState, WrOpcode } from '#lib/verbs/index.js';
import { describeAll } from './conformance-all.js';
import { connectedPair, pollOne, thrownBy } from './support/ends.js';
import { filesIn, useShmDirectory } from './support/shm-directory.js';

const directory = useShmDirectory();
describeAll(['shm', 'shm']);

it('access flags of a queue pair in SQD are not set by what is for RTS, and what it holds back stays there', () => {
  const [a, b] = connectedPair(['shm', 'shm']);
  a.queuePair.modify({ state: QpState.SQD });
  a.queuePair.postSend([{ wrId: 5, opcode: WrOpcode.RDMA_WRITE, rkey: b.region.rkey }]);
  expect(thrownBy(() => a.queuePair.setAccessFlags(Access.REMOTE_READ)).code).toBe('QUORATE_QP_STATE');
  expect(a.queuePair.state).toBe(QpState.SQD);
  expect(a.queue.poll()).toEqual([]);
  a.queuePair.modify({ state: QpState.RTS });
  expect(pollOne(a.queue).wrId).toBe(5);
  a.close();
  b.close();
});

it('leaves no file behind, not even those of a process that was killed', () => {
  openDevice('shm').close(); // opening removes the leftovers of the dead
  expect(filesIn(directory)).toEqual([]);
});
