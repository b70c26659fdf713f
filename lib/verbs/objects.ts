// The verbs without the connection manager, which replicas connect without: each module that a thread loads is time until
// it runs.
export * from './address-handle.js';
export { type AsyncEvent, type AsyncEventsOptions, AsyncEventType, asyncEvents } from './async-events.js';
export type { DeviceCapabilities } from './capabilities.js';
export { checksum } from './checksum.js';
export * from './completion-channel.js';
export * from './completion-events.js';
export * from './completion-queue.js';
export * from './context.js';
export * from './device.js';
export * from './errors.js';
export * from './exit-hold.js';
export * from './fence.js';
export * from './gid.js';
export * from './memory.js';
export * from './memory-region.js';
export * from './memory-window.js';
export * from './notifier.js';
export * from './post-list.js';
export * from './protection-domain.js';
export * from './queue-pair.js';
export * from './shared-receive-queue.js';
export { adopt, unshare } from './sharing.js';
export * from './status.js';
export { VerbsObject } from './verbs-object.js';
export * from './waiter.js';
export * from './waiting.js';
