// The conformance cases of the verbs API on RDMA devices, between two of them.

import { describeVerbs } from '../verbs/conformance.js';
import { describeMessages } from '../verbs/conformance-messages.js';
import { describeShared } from '../verbs/conformance-shared.js';
import { describeUnreliable } from '../verbs/conformance-unreliable.js';
import { rdmaDevices } from './devices.js';

const [first, second = first] = rdmaDevices();
const pair = [first as string, second as string] as const;
describeVerbs([...pair]);
describeMessages([...pair]);
describeUnreliable([...pair]);
describeShared([...pair]);
