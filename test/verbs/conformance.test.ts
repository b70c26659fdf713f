// The conformance cases on the shm device, and that it leaves nothing behind.
import { expect, it } from 'vitest';
import { openDevice } from '#lib/verbs/index.js';
import { describeAll } from './conformance-all.js';
import { filesIn, useShmDirectory } from './support/shm-directory.js';

const directory = useShmDirectory();
describeAll(['shm', 'shm']);

it('leaves no file behind, not even those of a process that was killed', () => {
  openDevice('shm').close(); // opening removes the leftovers of the dead
  expect(filesIn(directory)).toEqual([]);
});
