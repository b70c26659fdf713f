// The conformance cases of the verbs API on RDMA devices, between two of them.

import { describeVerbs } from '../verbs/conformance.js';
import { rdmaDevices } from './devices.js';

const [first, second = first] = rdmaDevices();
describeVerbs([first as string, second as string]);
