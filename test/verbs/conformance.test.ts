// The conformance cases on the shm device, and that it leaves nothing behind.
import { expect, it } from 'vitest';
import { openDevice } from '#lib/verbs/index.js';
import { describeVerbs } from './conformance.js';
import { describeMessages } from './conformance-messages.js';
import { describeShared } from './conformance-shared.js';
import { describeUnreliable } from './conformance-unreliable.js';
import { filesIn, useShmDirectory } from './support/shm-directory.js';

const directory = useShmDirectory();
describeVerbs(['shm', 'shm']);
describeMessages(['shm', 'shm']);
describeUnreliable(['shm', 'shm']);
describeShared(['shm', 'shm']);

it('leaves no file behind, not even those of a process that was killed', () => {
  openDevice('shm').close(); // opening removes the leftovers of the dead
  expect(filesIn(directory)).toEqual([]);
});
