// The public face of quorate/verbs: RDMA verbs for Node.js, on libibverbs and on shared memory.
export * from './cm/index.js';
export * from './objects.js';
