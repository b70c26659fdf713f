// The conformance cases of the verbs API on RDMA devices, between two of them.
import { rdmaDevices } from './devices.js';
import { describeVerbs } from '../verbs/conformance.js';

const [first, second = first] = rdmaDevices();
describeVerbs([first as string, second as string]);
