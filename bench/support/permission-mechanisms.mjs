// The ways in which a responder can give a writer the right to write into its memory and take it away again, each with
// the same face: `grant` and `revoke` are what is timed, everything else is preparation. Both ends are in this process;
// the writer's own work (making its half of a fresh connection) is never counted.
import { Access, monotonicNs, nextRkey, QpState, WcStatus, WrOpcode, wcStatusName } from '#lib/verbs/index.js';
import { openEnd } from './ends.mjs';

const RIGHTS = Access.REMOTE_WRITE | Access.REMOTE_READ;
const WAIT_LIMIT_NS = 20e9;
const FLUSH_ID = 1;
const WINDOW_ID = 2;

/** The sizes of registered memory that deregistration and windows are measured with. */
export const SIZES = [64, 1024, 16_384, 65_536, 262_144, 1_048_576].map((kib) => kib * 1024);

/** @param {number} bytes */
export function sizeText(bytes) {
  const mib = 1_048_576;
  return bytes >= 1024 * mib
    ? `${bytes / 1024 / mib} GiB`
    : bytes >= mib
      ? `${bytes / mib} MiB`
      : `${bytes / 1024} KiB`;
}

/**
 * Polls until there is a completion that `accepts`; others are dropped.
 * @param {import('#lib/verbs/index.js').CompletionQueue} queue
 * @param {(completion: import('#lib/verbs/index.js').WorkCompletion) => boolean} accepts
 */
function awaitCompletion(queue, accepts) {
  const limit = monotonicNs() + WAIT_LIMIT_NS;
  for (;;) {
    for (const completion of queue.poll()) if (accepts(completion)) return completion;
    if (monotonicNs() > limit) throw new Error(`no completion within ${WAIT_LIMIT_NS / 1e9} s`);
  }
}

/** A responder with much memory and a writer, whose connection can be made anew. */
export class Pair {
  /**
   * @param {string} responderDevice
   * @param {string} writerDevice
   * @param {number} lengthBytes of the responder's memory
   */
  constructor(responderDevice, writerDevice, lengthBytes) {
    this.responder = openEnd(responderDevice, { lengthBytes: 65_536 });
    this.writer = openEnd(writerDevice);
    this.memory = this.responder.context.allocateMemory({ lengthBytes });
    // Pages that are touched for the first time while they are registered would be most of the time.
    new Uint8Array(this.memory.buffer).fill(1);
    this.rkey = 0;
    /** Bytes that the region of this measurement has. */
    this.sizeBytes = 0;
    /** @type {import('#lib/verbs/index.js').MemoryRegion | undefined} */
    this.region = undefined;
    /** @type {import('#lib/verbs/index.js').MemoryWindow | undefined} */
    this.window = undefined;
    this.connect();
  }

  /** The writer's half of a fresh connection. */
  freshWriter() {
    const { writer } = this;
    writer.queuePair.close();
    while (writer.queue.poll().length > 0);
    writer.queuePair = writer.domain.createQueuePair({ sendCq: writer.queue });
    writer.queuePair.toInit();
  }

  /** The responder's half, without the closing of the one before. */
  freshResponder() {
    const { responder, writer } = this;
    responder.queuePair = responder.domain.createQueuePair({ sendCq: responder.queue });
    responder.queuePair.toInit({ accessFlags: RIGHTS });
    // Its flush tells that the responder is through with everything before.
    responder.queuePair.postReceive([
      { wrId: FLUSH_ID, localAddress: responder.memory.address, length: 64, lkey: responder.region.lkey },
    ]);
    responder.queuePair.toReadyToReceive(writer.queuePair.endpoint());
    responder.queuePair.toReadyToSend({ timeout: 8, retryCnt: 1 });
  }

  completeWriter() {
    const { responder, writer } = this;
    writer.queuePair.toReadyToReceive(responder.queuePair.endpoint());
    writer.queuePair.toReadyToSend({ timeout: 8, retryCnt: 1 });
  }

  connect() {
    this.responder.queuePair.close();
    while (this.responder.queue.poll().length > 0);
    this.freshWriter();
    this.freshResponder();
    this.completeWriter();
  }

  /** Registers the first bytes of the memory, for the writer to write to. */
  register(access = Access.LOCAL_WRITE | RIGHTS) {
    this.region = this.responder.domain.registerMemory(this.memory, 0, this.sizeBytes, access);
    this.rkey = this.region.rkey;
  }

  deregister() {
    this.window?.close(); // a region with a window bound to it does not go
    this.window = undefined;
    this.region?.close();
    this.region = undefined;
  }

  /** One WRITE of 8 bytes by the writer; its status. */
  write() {
    const { writer } = this;
    const { accepted, errno } = writer.queuePair.postSend([
      {
        opcode: WrOpcode.RDMA_WRITE,
        localAddress: writer.memory.address,
        length: 8,
        lkey: writer.region.lkey,
        remoteAddress: this.memory.address,
        rkey: this.rkey,
      },
    ]);
    if (accepted !== 1) throw new Error(`the writer could not post: errno ${errno}`);
    return awaitCompletion(writer.queue, ({ qpNum }) => qpNum === writer.queuePair.number).status;
  }

  awaitFlush() {
    const { queue, queuePair } = this.responder;
    const { status } = awaitCompletion(queue, ({ qpNum, wrId }) => qpNum === queuePair.number && wrId === FLUSH_ID);
    if (status !== WcStatus.WR_FLUSH_ERR) throw new Error(`the flush marker ended with status ${status}`);
  }

  /** A window that can be bound: one of type 2 goes with the queue pair that bound it. */
  readyWindow(/** @type {1 | 2} */ type) {
    if (this.window === undefined || this.window.closed) {
      this.window = this.responder.domain.allocateMemoryWindow(type);
    }
  }

  /** Waits until the binding or unbinding that was posted last has completed. */
  awaitWindow(/** @type {import('#lib/verbs/index.js').PostResult} */ { accepted, errno }) {
    if (accepted !== 1) throw new Error(`a memory window could not be bound: errno ${errno}`);
    const { status } = awaitCompletion(this.responder.queue, ({ wrId }) => wrId === WINDOW_ID);
    if (status !== 0) throw new Error(`binding a memory window ended with ${wcStatusName(status)}`);
  }

  close() {
    this.responder.context.close();
    this.writer.context.close();
  }
}

/**
 * @typedef {object} Mechanism
 * @property {string} name
 * @property {string} title for people
 * @property {string} race strategy of bench/revocation-race.mjs
 * @property {boolean} [sized] whether it may depend on the size of the registered memory
 * @property {(pair: Pair) => string | undefined} lacks why the device cannot do it
 * @property {(pair: Pair) => void} prepare once, before the first grant; after it the right is absent
 * @property {(pair: Pair) => void} [before] before each grant, not timed
 * @property {(pair: Pair) => void} grant timed
 * @property {(pair: Pair) => void} [settle] after a grant, not timed: what the writer has to do
 * @property {(pair: Pair) => void} revoke timed
 * @property {(pair: Pair) => void} [finish]
 */

const nothing = () => undefined;
/** @param {Pair} pair */
const deregister = (pair) => pair.deregister();

/** @type {Mechanism[]} */
export const MECHANISMS = [
  {
    name: 'qp-flags',
    title: 'QP access flags, RTS to RTS',
    race: 'qp-flags',
    lacks: nothing,
    prepare(pair) {
      pair.register();
      pair.connect();
      this.revoke(pair);
    },
    grant: ({ responder }) => responder.queuePair.modify({ state: QpState.RTS, accessFlags: RIGHTS }),
    revoke: ({ responder }) => responder.queuePair.modify({ state: QpState.RTS, accessFlags: Access.REMOTE_READ }),
    finish: deregister,
  },
  {
    name: 'qp-error',
    title: 'QP to ERR; fresh QP',
    race: 'qp-error',
    lacks: nothing,
    prepare: (pair) => pair.register(),
    before: (pair) => pair.freshWriter(),
    grant: replaceQueuePair,
    settle: (pair) => pair.completeWriter(),
    revoke: ({ responder }) => responder.queuePair.toError(),
    finish: deregister,
  },
  {
    name: 'qp-flush',
    title: 'QP to ERR and flush marker; fresh QP',
    race: 'qp-flush',
    lacks: nothing,
    prepare: (pair) => pair.register(),
    before: (pair) => pair.freshWriter(),
    grant: replaceQueuePair,
    settle: (pair) => pair.completeWriter(),
    revoke(pair) {
      pair.responder.queuePair.toError();
      pair.awaitFlush();
    },
    finish: deregister,
  },
  {
    name: 'qp-close',
    title: 'QP destroyed; fresh QP',
    race: 'qp-close',
    lacks: nothing,
    prepare: (pair) => pair.register(),
    before: (pair) => pair.freshWriter(),
    grant: replaceQueuePair,
    settle: (pair) => pair.completeWriter(),
    revoke: ({ responder }) => responder.queuePair.close(),
    finish: deregister,
  },
  {
    name: 'mr-dereg',
    title: 'MR deregistered; registered again',
    race: 'mr-dereg',
    sized: true,
    lacks: nothing,
    prepare: (pair) => pair.connect(),
    grant: (pair) => pair.register(),
    revoke: deregister,
    finish: deregister,
  },
  {
    name: 'mw-1',
    title: 'memory window 1: unbound; bound again',
    race: 'mw-1',
    sized: true,
    lacks: ({ responder }) =>
      responder.context.capabilities.memoryWindows1 ? undefined : 'no memory windows of type 1',
    prepare(pair) {
      pair.register(Access.LOCAL_WRITE | Access.MW_BIND);
      pair.connect();
    },
    before: (pair) => pair.readyWindow(1),
    grant(pair) {
      const { queuePair } = pair.responder;
      const result = queuePair.bindMemoryWindow(windowOf(pair), { wrId: WINDOW_ID, ...bindingOf(pair) });
      pair.awaitWindow(result);
      pair.rkey = result.rkey;
    },
    revoke: (pair) => pair.awaitWindow(pair.responder.queuePair.bindMemoryWindow(windowOf(pair), { wrId: WINDOW_ID })),
    finish: deregister,
  },
  {
    name: 'mw-2',
    title: 'memory window 2: LOCAL_INV; bound again',
    race: 'mw-2',
    sized: true,
    lacks: ({ responder }) =>
      responder.context.capabilities.memoryWindows2 ? undefined : 'no memory windows of type 2',
    prepare(pair) {
      pair.register(Access.LOCAL_WRITE | Access.MW_BIND);
      pair.connect();
    },
    before: (pair) => pair.readyWindow(2),
    grant(pair) {
      const memoryWindow = windowOf(pair);
      pair.rkey = nextRkey(memoryWindow.rkey);
      const bind = { memoryWindow, rkey: pair.rkey, ...bindingOf(pair) };
      pair.awaitWindow(pair.responder.queuePair.postSend([{ wrId: WINDOW_ID, opcode: WrOpcode.BIND_MW, bind }]));
    },
    revoke: (pair) =>
      pair.awaitWindow(
        pair.responder.queuePair.postSend([
          { wrId: WINDOW_ID, opcode: WrOpcode.LOCAL_INV, invalidateRkey: windowOf(pair).rkey },
        ]),
      ),
    finish: deregister,
  },
];

/** @param {Pair} pair */
function replaceQueuePair(pair) {
  pair.responder.queuePair.close();
  pair.freshResponder();
}

/** @param {Pair} pair */
function windowOf({ window }) {
  if (window === undefined) throw new Error('there is no memory window');
  return window;
}

/** The whole region, for writing. @param {Pair} pair */
function bindingOf({ region, memory, sizeBytes }) {
  if (region === undefined) throw new Error('there is no memory region');
  return { region, address: memory.address, length: sizeBytes, access: Access.REMOTE_WRITE };
}
