// The conformance cases of the verbs API on RDMA devices, between two of them.

import { describeAll } from '../verbs/conformance-all.js';
import { rdmaDevices } from './devices.js';

const [first, second = first] = rdmaDevices();
describeAll([first as string, second as string]);
