// The control channel: how replicas talk over TCP about everything but replication itself, which goes through memory.
// They exchange the parameters of their links, form the cluster and move snapshots here. TLS with the pre-shared
// cluster key authenticates and encrypts it; without a key it does not leave the host. See lib/replica/control.

export type { BlobSource, IncomingBlob, SendBlobOptions } from './control/blobs.js';
export { ControlClient, type ControlClientOptions, type DialOptions, type DialTarget } from './control/client.js';
export { checkClusterKey } from './control/cluster-key.js';
export {
  ControlConnection,
  type ControlConnectionEvents,
  type MessageHandler,
  type RequestHandler,
} from './control/connection.js';
export { Dialer, type DialerEvents, type DialerOptions } from './control/dialer.js';
export type { ControlIdentity, Hello, PeerHello } from './control/hello.js';
export { ControlServer, type ControlServerEvents, type ControlServerOptions } from './control/server.js';
export { checkBytes, checkInteger, checkRecord, checkString } from './control/shape.js';
export { WarningLimit } from './control/warning-limit.js';
