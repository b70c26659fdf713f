// Events of the connection manager, and the errors that failed operations become.
import { QuorateError } from '../../errors.js';
import { type CmConnectionParameters, CmEventType } from './native.js';

export { CmEventType } from './native.js';

/** What happened to an id, see rdma_get_cm_event(3). */
export interface CmEvent {
  /** A CmEventType, or another number that the library reports. */
  readonly type: number;
  /** "ESTABLISHED", ...; "UNKNOWN_<n>" for a number that the API does not define. */
  readonly name: string;
  /** 0, a negative error number, or (REJECTED) the peer's reason. */
  readonly status: number;
  /** What the peer sent along; null where the event carries nothing. The bytes are the peer's: check before use. */
  readonly parameters: CmConnectionParameters | null;
}

const NAMES = new Map<number, string>(Object.entries(CmEventType).map(([name, type]) => [type, name]));

/** "ESTABLISHED" for CmEventType.ESTABLISHED; "UNKNOWN_<n>" for a number that the API does not define. */
export function cmEventName(type: number): string {
  return NAMES.get(type) ?? `UNKNOWN_${type}`;
}

/** Reasons of a rejection that users meet, InfiniBand Architecture Specification, 12.6.7.2. */
const REASONS: Record<number, string> = {
  1: 'the peer has no queue pairs left',
  2: 'the peer has no resources left',
  4: 'the peer gave up waiting',
  5: 'the peer does not take this kind of request',
  6: 'the peer knows of no such connection',
  8: 'nobody listens on that port',
  10: 'the connection exists already',
  28: 'the program at the peer refused',
};

/** An operation of the connection manager that ended with an event that says so. */
export class CmError extends QuorateError {
  /** The event that ended it, a CmEventType. */
  readonly eventType: number;
  /** Of the event: a negative error number, or (REJECTED) the peer's reason. */
  readonly status: number;
  /** What the peer sent with its rejection; empty if nothing. The peer's bytes: check before use. */
  readonly privateData: Uint8Array;

  constructor(code: string, message: string, event: CmEvent) {
    super(code, message, event.status < 0 ? { errno: -event.status } : {});
    this.eventType = event.type;
    this.status = event.status;
    this.privateData = event.parameters?.privateData ?? new Uint8Array(0);
  }
}

/** @internal The error of an operation (`what`: "connecting to 10.0.0.1:7174") that an event ended. */
export function failureOf(what: string, event: CmEvent): CmError {
  const said = `${what} failed: ${event.name}, status ${event.status}`;
  switch (event.type) {
    case CmEventType.REJECTED: {
      const reason = REASONS[event.status];
      return new CmError('QUORATE_CM_REJECTED', `${said}${reason === undefined ? '' : ` (${reason})`}.`, event);
    }
    case CmEventType.ADDR_ERROR:
      return new CmError(
        'QUORATE_CM_UNREACHABLE',
        `${said}. The peer's address could not be resolved: check that it is up and on a network of an RDMA device ` +
          '(ip route get, ping, rdma link show).',
        event,
      );
    case CmEventType.ROUTE_ERROR:
      return new CmError(
        'QUORATE_CM_UNREACHABLE',
        `${said}. There is no path to the peer (InfiniBand: opensm).`,
        event,
      );
    case CmEventType.UNREACHABLE:
      return new CmError(
        'QUORATE_CM_UNREACHABLE',
        `${said}. The peer did not answer: check that it is up and that nothing drops RDMA traffic (RoCE: UDP 4791).`,
        event,
      );
    default:
      return new CmError('QUORATE_CM_FAILED', `${said}. Close the id and begin anew.`, event);
  }
}
