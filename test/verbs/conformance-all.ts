// The whole conformance suite. It is the same on every device: shm (conformance.test.ts), SoftRoCE in the virtual machine
// (test/rxe/verbs.test.ts), and any device that is named to `npm run conformance`. docs/CONFORMANCE.md lists it against
// the tests of rdma-core.
import { describeVerbs } from './conformance.js';
import { describeEvents } from './conformance-events.js';
import { describeMessages } from './conformance-messages.js';
import { describeObjects } from './conformance-objects.js';
import { describeShared } from './conformance-shared.js';
import { describeUnreliable } from './conformance-unreliable.js';
import { describeWindows } from './conformance-windows.js';

/** @param devices names of the two ends' devices; they may be one and the same */
export function describeAll(devices: readonly [string, string]): void {
  describeVerbs(devices);
  describeMessages(devices);
  describeUnreliable(devices);
  describeShared(devices);
  describeObjects(devices);
  describeWindows(devices);
  describeEvents(devices);
}
