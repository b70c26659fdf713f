// Who speaks: the first frame of both ends once the transport has proven the cluster key. Each side checks the other's
// hello and answers with an accept or with a farewell that carries the reason, so a refusal has the same code at both.
import { BOOT_ID_MAX, MAX_REPLICAS } from '../../consensus/limits.js';
import { QuorateError } from '../../errors.js';
import { Deadline } from './deadline.js';
import type { FrameTransport } from './frame-transport.js';
import { encodeFrame, type Frame, FrameKind, fromWireError } from './frames.js';
import { FRAME_BYTES_MAX, LAYOUT_VERSION, PROTOCOL_VERSION } from './limits.js';
import { badShape, checkInteger, checkRecord } from './shape.js';

/** What a replica says of itself. */
export interface Hello {
  /** 0 .. MAX_REPLICAS - 1. */
  readonly id: number;
  /** Random number of this life of the process, 1 .. BOOT_ID_MAX. */
  readonly bootId: number;
  /** Random number of this process; a durable life has one after the other. Default: its bootId. */
  readonly processId?: number;
  /** Whether it acknowledges what is on its disk, and nothing else; the same at all members. Default false. */
  readonly isDurable?: boolean;
  /** The cluster it is part of, 0 .. 2^53 - 1; null while it is part of none. */
  readonly clusterId: number | null;
}

/** The peer's hello, as checked. */
export interface PeerHello extends Hello {
  readonly processId: number;
  readonly isDurable: boolean;
  readonly protocolVersion: number;
  readonly layoutVersion: number;
}

/** This side: what it says, and whom it talks to. */
export interface ControlIdentity {
  /** Ids of all members, the own one included. */
  readonly memberIds: readonly number[];
  /** Called for each connection, since the cluster id changes once. */
  readonly hello: () => Hello;
}

function checkHello(
  value: unknown,
  own: Hello,
  memberIds: readonly number[],
  expectedId: number | undefined,
  label: string,
): PeerHello {
  const from = checkRecord(value, 'the hello');
  // Versions first: nothing else is certain to mean the same in another version.
  const protocolVersion = checkInteger(from['protocolVersion'], 1, Number.MAX_SAFE_INTEGER, 'protocolVersion');
  const layoutVersion = checkInteger(from['layoutVersion'], 1, Number.MAX_SAFE_INTEGER, 'layoutVersion');
  if (protocolVersion !== PROTOCOL_VERSION || layoutVersion !== LAYOUT_VERSION) {
    throw new QuorateError(
      'QUORATE_VERSION',
      `${label} has protocol version ${protocolVersion} and memory layout version ${layoutVersion}, this replica ` +
        `${PROTOCOL_VERSION} and ${LAYOUT_VERSION}; run the same version of quorate at all replicas`,
    );
  }
  const id = checkInteger(from['id'], 0, MAX_REPLICAS - 1, 'id');
  const bootId = checkInteger(from['bootId'], 1, BOOT_ID_MAX, 'bootId');
  const processId =
    from['processId'] === undefined ? bootId : checkInteger(from['processId'], 1, Number.MAX_SAFE_INTEGER, 'processId');
  const isDurable = from['isDurable'] === true;
  const clusterId =
    from['clusterId'] === null ? null : checkInteger(from['clusterId'], 0, Number.MAX_SAFE_INTEGER, 'clusterId');
  if (id === own.id) {
    const message =
      processId === (own.processId ?? own.bootId)
        ? `${label} is this replica itself (id ${id}); check host and port of the members`
        : `${label} has the same id ${id} as this replica; ids must be unique: stop one of the two`;
    throw new QuorateError('QUORATE_DUPLICATE_ID', message);
  }
  if (!memberIds.includes(id)) {
    throw new QuorateError(
      'QUORATE_NOT_A_MEMBER',
      `${label} says it is replica ${id}; the members known to replica ${own.id} are ${[...memberIds].join(', ')}`,
    );
  }
  if (expectedId !== undefined && id !== expectedId) {
    throw new QuorateError(
      'QUORATE_UNEXPECTED_ID',
      `${label} is replica ${id} where replica ${own.id} expects ${expectedId}; check host and port of the members`,
    );
  }
  if (clusterId !== null && own.clusterId !== null && clusterId !== own.clusterId) {
    throw new QuorateError(
      'QUORATE_CLUSTER_MISMATCH',
      `replica ${id} (${label}) is part of cluster ${clusterId.toString(16)}, replica ${own.id} of ` +
        `${own.clusterId.toString(16)}; one of them must be restarted to join the other's cluster`,
    );
  }
  if (isDurable !== (own.isDurable ?? false)) {
    const [durable, other] = isDurable ? [id, own.id] : [own.id, id];
    throw new QuorateError(
      'QUORATE_DURABILITY_MISMATCH',
      `replica ${durable} is durable and replica ${other} is not (${label}); what a cluster acknowledges is on disk at all ` +
        'replicas or at none: open all of them with the option durable, or none',
    );
  }
  return { protocolVersion, layoutVersion, id, bootId, processId, isDurable, clusterId };
}

/**
 * Exchanges hellos. Resolves when both sides have accepted each other; the transport is paused then. Rejects with the
 * reason, at both sides, after closing the transport.
 */
export function exchangeHello(
  transport: FrameTransport,
  identity: ControlIdentity,
  expectedId: number | undefined,
  timeoutMs: number,
): Promise<PeerHello> {
  return new Promise((resolve, reject) => {
    const own = identity.hello();
    let peer: PeerHello | undefined;
    let isAccepted = false;
    let settled = false;
    const settle = (): boolean => {
      if (settled) return false;
      settled = true;
      deadline.clear();
      return true;
    };
    const refuse = (error: QuorateError): void => {
      if (!settle()) return;
      transport.fail(error);
      reject(error);
    };
    const deadline = new Deadline(timeoutMs, () => {
      refuse(new QuorateError('QUORATE_TIMEOUT', `${transport.label} did not say who it is in time`));
    });
    const received = (frame: Frame): void => {
      if (frame.kind === FrameKind.farewell) {
        const error =
          frame.error === null
            ? new QuorateError('QUORATE_DISCONNECTED', `${transport.label} is closing`)
            : fromWireError(frame.error, transport.label);
        transport.farewell(error);
        if (settle()) reject(error);
      } else if (frame.kind === FrameKind.hello && peer === undefined) {
        peer = checkHello(frame.body, own, identity.memberIds, expectedId, transport.label);
        transport.write(encodeFrame({ kind: FrameKind.accept }));
      } else if (frame.kind === FrameKind.accept && peer !== undefined && !isAccepted) {
        isAccepted = true;
        transport.limitBytes = FRAME_BYTES_MAX;
        transport.pause();
        if (settle()) resolve(peer);
      } else {
        throw badShape("a frame's kind before both sides have accepted each other", 'hello or accept', frame.kind);
      }
    };
    transport.deliverTo({
      received: (frame) => {
        try {
          received(frame);
        } catch (error) {
          refuse(error as QuorateError);
        }
      },
      closed: (error) => {
        if (settle()) {
          reject(error ?? new QuorateError('QUORATE_CLOSED', `the connection to ${transport.label} was closed`));
        }
      },
    });
    const body = {
      protocolVersion: PROTOCOL_VERSION,
      layoutVersion: LAYOUT_VERSION,
      clusterId: own.clusterId,
      id: own.id,
      bootId: own.bootId,
      processId: own.processId ?? own.bootId,
      isDurable: own.isDurable ?? false,
    };
    transport.write(encodeFrame({ kind: FrameKind.hello, body }));
  });
}
