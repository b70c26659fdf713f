// The public face of quorate/verbs: RDMA verbs for Node.js, on libibverbs and on shared memory.
export * from './completion-channel.js';
export * from './completion-events.js';
export * from './completion-queue.js';
export * from './context.js';
export * from './device.js';
export * from './errors.js';
export * from './fence.js';
export * from './gid.js';
export * from './memory.js';
export * from './memory-region.js';
export * from './notifier.js';
export * from './post-list.js';
export * from './protection-domain.js';
export * from './queue-pair.js';
export * from './sharing.js';
export * from './status.js';
export { VerbsObject } from './verbs-object.js';
export * from './waiting.js';
