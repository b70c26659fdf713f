// A thread's sleep with devices of the kernel.
import { describe } from 'vitest';
import { waiterTests } from '../verbs/waiter.js';
import { rdmaDevices } from './devices.js';

describe('a wait on a device of the kernel', () => {
  const [first = '', second = ''] = rdmaDevices();
  waiterTests([first, second]);
});
