// The connection manager (rdma_cm(7)): connections by IP address and port instead of endpoints that programs exchange.
export { CmError, type CmEvent, CmEventType, cmEventName } from './event.js';
export { CmEventChannel, type CmOptions } from './event-channel.js';
export * from './id.js';
