// The revocation race: is a right to write really gone when the revoking call has returned? A writer process streams
// WRITEs into this process's memory at full speed. At a random moment the writer is stopped (SIGSTOP), killed
// (SIGKILL) or left running, its right is revoked, the memory is copied at once, the writer continued, and the memory
// watched: every byte that still changes came too late. A clean run proves nothing by itself; the test can only refute
// a strategy.
//
//   node bench/revocation-race.mjs --device shm --strategy mr-dereg --trials 2000
//   node bench/revocation-race.mjs --device b0,b1 --strategy qp-flags --trials 1000 --json
//
// Strategies: mr-dereg deregisters the memory region that only this writer knows; qp-flush moves the queue pair to the
// error state and waits for the flush of a receive that was posted before; qp-flags takes the right from the queue pair
// (RTS to RTS); qp-error moves the queue pair to the error state and waits for nothing; qp-close destroys the queue
// pair; mw-1 and mw-2 unbind the memory window through which the writer writes; none revokes nothing at all and so shows that the watching works.
import { fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import {
  Access,
  monotonicNs,
  nextRkey,
  openDevice,
  QpState,
  WcStatus,
  WrOpcode,
  wcStatusName,
} from '#lib/verbs/index.js';

const STRATEGIES = ['mr-dereg', 'qp-flush', 'qp-flags', 'qp-error', 'qp-close', 'mw-1', 'mw-2', 'none'];
/** @typedef {'none' | 'stop' | 'kill'} Signal */
/** @type {Signal[]} */
const SIGNALS = ['none', 'stop', 'kill'];
/** Of 20 trials, how many with each signal; a killed writer must be replaced, which takes longest. */
/** @type {Record<Signal, number>} */
const SIGNAL_WEIGHTS = { none: 9, stop: 9, kill: 2 };
const READ_WRITE = Access.REMOTE_WRITE | Access.REMOTE_READ;
/** Time limits: for the writer to start streaming, for its report, for the flush marker. */
// Generous: an emulated machine under load takes many seconds to start a process.
const START_LIMIT_NS = 90e9;
const REPORT_LIMIT_NS = 60e9;
const FLUSH_LIMIT_NS = 2e9;
/** wrId of binding and unbinding a memory window. */
const WINDOW_ID = 2;
/** How long memory is watched at least, and how long the writer streams at most before it is revoked. */
const TIMES = {
  shm: { watchNs: 1e6, delayNs: 400e3, writerLimitMs: 10_000 },
  ibverbs: { watchNs: 25e6, delayNs: 15e6, writerLimitMs: 10_000 },
};
const CONTROL_WRITER_LIMIT_MS = 40;

const OPTIONS = /** @type {const} */ ({
  device: { type: 'string', default: 'shm' },
  strategy: { type: 'string', default: 'mr-dereg' },
  trials: { type: 'string', default: '1000' },
  signals: { type: 'string', default: 'none,stop,kill' },
  sizes: { type: 'string' },
  seed: { type: 'string' },
  timeout: { type: 'string', default: '600' },
  'until-late': { type: 'boolean', default: false },
  json: { type: 'boolean', default: false },
  help: { type: 'boolean', default: false },
});
const options = parseOptions();

/** Not to be taken for late bytes, which the exit status 1 stands for. */
function parseOptions() {
  try {
    return parseArgs({ options: OPTIONS }).values;
  } catch (error) {
    return usage(/** @type {Error} */ (error).message);
  }
}

/** @type {(problem?: string) => never} */
function usage(problem) {
  process.stderr.write(`${problem ? `revocation-race: ${problem}\n` : ''}\
usage: node bench/revocation-race.mjs [OPTIONS]
  --device NAME[,WRITER]  device of this process, and of the writer if another (default shm)
  --strategy NAME         ${STRATEGIES.join(', ')} (default mr-dereg)
  --trials N              (default 1000)
  --signals LIST          of ${SIGNALS.join(', ')} (default all)
  --sizes LIST            bytes per WRITE, 8 .. 1048576 (default 64,4096,1048576; 64,1024 on RDMA devices)
  --seed N                of the random choices (default: random, printed)
  --until-late            end as soon as a late byte was seen
  --timeout SECONDS       for everything (default 600)
  --json                  print one JSON object
Exit status: 0 no late byte, 1 late bytes, 2 the test itself failed.
`);
  process.exit(problem ? 2 : 0);
}

/** @type {(text: string, name: string, least: number, most: number) => number} */
function wholeNumber(text, name, least, most) {
  const value = Number(text);
  if (!Number.isInteger(value) || value < least || value > most) usage(`--${name} must be from ${least} to ${most}`);
  return value;
}

if (options.help) usage();
const [device = 'shm', writerDevice = device] = options.device.split(',');
const { strategy } = options;
if (!STRATEGIES.includes(strategy)) usage(`unknown strategy '${strategy}'`);
const trials = wholeNumber(options.trials, 'trials', 1, 1_000_000);
const timeoutNs = wholeNumber(options.timeout, 'timeout', 1, 86_400) * 1e9;
const signals = SIGNALS.filter((signal) => options.signals.split(',').includes(signal));
if (signals.length !== options.signals.split(',').length) usage(`--signals takes ${SIGNALS.join(', ')}`);
const seed =
  options.seed === undefined ? Math.floor(Math.random() * 2 ** 32) : wholeNumber(options.seed, 'seed', 0, 2 ** 32 - 1);
const defaultSizes = device === 'shm' ? '64,4096,1048576' : '64,1024';
const sizes = (options.sizes ?? defaultSizes).split(',').map((text) => wholeNumber(text, 'sizes', 8, 1_048_576));

/** mulberry32: small, and good enough to choose moments. */
let randomState = seed;
function random() {
  randomState = (randomState + 0x6d2b79f5) | 0;
  let t = Math.imul(randomState ^ (randomState >>> 15), 1 | randomState);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
}

function chooseSignal() {
  const pool = signals.flatMap((signal) => /** @type {Signal[]} */ (new Array(SIGNAL_WEIGHTS[signal]).fill(signal)));
  return pool[Math.floor(random() * pool.length)] ?? 'none';
}

/** @type {(ns: number) => void} */
function spin(ns) {
  const end = monotonicNs() + ns;
  while (monotonicNs() < end);
}

const yieldToEvents = () => new Promise((resolve) => setImmediate(resolve));

/** The writer process. One that was killed is replaced by a spare that was started ahead of need. */
class Writer {
  constructor() {
    this.child = fork(fileURLToPath(new URL('support/revocation-writer.mjs', import.meta.url)), [writerDevice], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    });
    /** @type {Map<string, any>} */
    this.messages = new Map();
    this.alive = true;
    this.child.on('message', (message) => {
      const { type } = /** @type {{ type: string }} */ (message);
      this.messages.set(type, message);
    });
    this.child.on('exit', () => {
      this.alive = false;
    });
  }

  /**
   * Waits for a message of a type; undefined if the writer is gone.
   * @param {string} type
   * @param {number} limitNs
   */
  async take(type, limitNs) {
    if (!this.messages.has(type) && this.alive && limitNs > 0) {
      // Not by polling: on a machine with few processors the writer needs this one to start.
      await new Promise((resolve) => {
        const over = () => {
          clearTimeout(timer);
          this.child.off('message', over).off('exit', over);
          resolve(undefined);
        };
        const timer = setTimeout(over, limitNs / 1e6);
        this.child.on('message', over).on('exit', over);
      });
    }
    const message = this.messages.get(type);
    this.messages.delete(type);
    if (message === undefined && this.alive && limitNs > 0) {
      throw new Error(`the writer sent no '${type}' within ${limitNs / 1e9} s`);
    }
    return message;
  }

  end() {
    if (this.alive) this.child.kill('SIGKILL');
  }
}

const context = openDevice(device);
const times = TIMES[context.device.provider];
const domain = context.allocateProtectionDomain();
const queue = context.createCompletionQueue(64);
const regionBytesMax = Math.max(...sizes.map(targetBytes));
const memory = context.allocateMemory({ lengthBytes: regionBytesMax });
const bytes = new Uint8Array(memory.buffer);
const marker = context.allocateMemory({ lengthBytes: 4096 });
const markerRegion = domain.registerMemory(marker, 0, 4096, Access.LOCAL_WRITE);

/**
 * Small WRITEs go to several places in turn, large ones always to the same.
 * @param {number} size
 */
function targetBytes(size) {
  return size >= 65_536 ? size : size * 16;
}

/**
 * Waits for the completion of the binding or unbinding that was posted. False if the connection had failed before.
 * @param {import('#lib/verbs/index.js').QueuePair} queuePair
 * @param {import('#lib/verbs/index.js').PostResult} posted
 */
function awaitWindow(queuePair, { accepted, errno }) {
  if (accepted !== 1) throw new Error(`a memory window could not be bound: errno ${errno}`);
  const deadline = monotonicNs() + FLUSH_LIMIT_NS;
  for (;;) {
    for (const { qpNum, wrId, status } of queue.poll(16)) {
      if (qpNum !== queuePair.number || wrId !== WINDOW_ID) continue;
      if (status === WcStatus.WR_FLUSH_ERR) return false;
      if (status !== 0) throw new Error(`binding a memory window ended with ${wcStatusName(status)}`);
      return true;
    }
    if (monotonicNs() > deadline) throw new Error('the completion of a binding did not come');
  }
}

/**
 * The memory window of a trial, bound to the whole region, and its key; undefined for the strategies without one.
 * @param {import('#lib/verbs/index.js').QueuePair} queuePair in RTS
 * @param {import('#lib/verbs/index.js').MemoryRegion} region
 */
function bindWindow(queuePair, region) {
  if (!strategy.startsWith('mw-')) return undefined;
  const memoryWindow = domain.allocateMemoryWindow(strategy === 'mw-1' ? 1 : 2);
  const binding = { region, address: region.address, length: region.length, access: READ_WRITE };
  const bind = { memoryWindow, rkey: nextRkey(memoryWindow.rkey), ...binding };
  const posted =
    memoryWindow.type === 1
      ? queuePair.bindMemoryWindow(memoryWindow, { wrId: WINDOW_ID, ...binding })
      : queuePair.postSend([{ wrId: WINDOW_ID, opcode: WrOpcode.BIND_MW, bind }]);
  if (!awaitWindow(queuePair, posted)) throw new Error('the queue pair failed before the window was bound');
  return memoryWindow;
}

/**
 * What the responder does to take the right away; returns when it says that it is gone. False if the connection had
 * failed before, so that nothing was taken.
 * @param {import('#lib/verbs/index.js').QueuePair} queuePair
 * @param {import('#lib/verbs/index.js').MemoryRegion} region
 * @param {import('#lib/verbs/index.js').MemoryWindow} [memoryWindow]
 */
function revoke(queuePair, region, memoryWindow) {
  switch (strategy) {
    case 'mw-1':
      if (memoryWindow === undefined) throw new Error('there is no memory window');
      return awaitWindow(queuePair, queuePair.bindMemoryWindow(memoryWindow, { wrId: WINDOW_ID }));
    case 'mw-2':
      if (memoryWindow === undefined) throw new Error('there is no memory window');
      return awaitWindow(
        queuePair,
        queuePair.postSend([{ wrId: WINDOW_ID, opcode: WrOpcode.LOCAL_INV, invalidateRkey: memoryWindow.rkey }]),
      );
    case 'mr-dereg':
      region.close();
      return true;
    case 'qp-flags':
      // The queue pair may have failed in the same moment; leaving RTS is as much of a revocation on shm, and elsewhere
      // it is what the device makes of it.
      if (queuePair.state === QpState.RTS) queuePair.modify({ state: QpState.RTS, accessFlags: Access.REMOTE_READ });
      return true;
    case 'qp-error':
      queuePair.toError();
      return true;
    case 'qp-flush': {
      queuePair.toError();
      const deadline = monotonicNs() + FLUSH_LIMIT_NS;
      for (;;) {
        if (queue.poll(16).some((completion) => completion.qpNum === queuePair.number)) return true;
        if (monotonicNs() > deadline) throw new Error('the flush marker did not come: the right is not proven revoked');
      }
    }
    case 'qp-close':
      queuePair.close();
      return true;
  }
  return true; // 'none'
}

/** @type {Record<string, number>} */
const statuses = {};
/** @type {Record<string, number>} */
const signalsSent = {};
/** @type {number[]} */
const revokeNs = [];
const result = { late: 0, lateBytes: 0, latestUs: 0, spoiled: 0, trials: 0, statuses, signals: signalsSent };

/**
 * One trial. It is spoiled, and repeated, if the writer failed before anything was revoked, which some devices do under
 * load.
 * @param {Writer} writer
 */
async function trial(writer) {
  const size = sizes[Math.floor(random() * sizes.length)] ?? 8;
  const signal = chooseSignal();
  const length = targetBytes(size);
  const target = bytes.subarray(0, length);
  const rights = strategy.startsWith('mw-') ? Access.MW_BIND : READ_WRITE;
  const region = domain.registerMemory(memory, 0, length, Access.LOCAL_WRITE | rights);
  const queuePair = domain.createQueuePair({ sendCq: queue });
  /** @type {import('#lib/verbs/index.js').MemoryWindow | undefined} */
  let memoryWindow;
  queuePair.toInit({ accessFlags: READ_WRITE });
  queuePair.postReceive([{ wrId: 1, localAddress: marker.address, length: 64, lkey: markerRegion.lkey }]);
  try {
    writer.child.send({
      type: 'trial',
      endpoint: queuePair.endpoint(),
      address: memory.address,
      size,
      length,
      limitMs: strategy === 'none' ? CONTROL_WRITER_LIMIT_MS : times.writerLimitMs,
      firstPattern: Math.floor(random() * 250) + 1,
    });
    const answer = await writer.take('endpoint', START_LIMIT_NS);
    if (answer === undefined) throw new Error('the writer ended by itself');
    queuePair.toReadyToReceive(answer.endpoint);
    queuePair.toReadyToSend({ timeout: 8, retryCnt: 1 });
    const before = target.slice();
    memoryWindow = bindWindow(queuePair, region);
    writer.child.send({ type: 'go', rkey: memoryWindow?.rkey ?? region.rkey });
    // Streaming has begun when the memory changes.
    const startLimit = monotonicNs() + START_LIMIT_NS;
    while (Buffer.compare(target, before) === 0) {
      if (monotonicNs() > startLimit) throw new Error('the writer did not begin to write');
      await yieldToEvents();
      if (writer.messages.has('report')) break;
    }
    spin(random() * times.delayNs);
    if (signal !== 'none') {
      writer.child.kill(signal === 'stop' ? 'SIGSTOP' : 'SIGKILL');
      spin(random() * 30e3); // the signal takes effect while this process goes on; any moment is of interest
    }
    const begin = monotonicNs();
    const taken = revoke(queuePair, region, memoryWindow);
    const revoked = monotonicNs();
    const snapshot = target.slice();
    const spoiled = !taken || writer.messages.has('report');
    if (signal === 'stop') writer.child.kill('SIGCONT');

    // Watched until the writer has seen its failure (or is gone), and for a while in any case.
    const reportLimit = monotonicNs() + REPORT_LIMIT_NS;
    let lateBytes = 0;
    let latestNs = 0;
    for (;;) {
      const over = monotonicNs() > revoked + times.watchNs;
      const reported = writer.messages.has('report') || !writer.alive;
      if (Buffer.compare(target, snapshot) !== 0) {
        latestNs = monotonicNs() - revoked;
        for (let i = 0; i < length; i++) {
          if (target[i] === snapshot[i]) continue;
          lateBytes++;
          snapshot[i] = target[i] ?? 0;
        }
      }
      if (over && reported) break;
      if (monotonicNs() > reportLimit) throw new Error('the writer did not report that its right was gone');
      await yieldToEvents();
    }
    const report = await writer.take('report', 0);
    if (spoiled) {
      result.spoiled++;
      return;
    }
    if (report !== undefined && report.status === 0 && strategy !== 'none') {
      throw new Error(`the writer went on for ${times.writerLimitMs} ms after its right was revoked`);
    }
    result.trials++;
    revokeNs.push(revoked - begin);
    signalsSent[signal] = (signalsSent[signal] ?? 0) + 1;
    const outcome = report === undefined ? 'killed' : wcStatusName(report.status);
    statuses[outcome] = (statuses[outcome] ?? 0) + 1;
    if (lateBytes > 0) {
      result.late++;
      result.lateBytes += lateBytes;
      result.latestUs = Math.max(result.latestUs, Math.round(latestNs / 1000));
    }
  } finally {
    memoryWindow?.close(); // before its region, which would not go
    queuePair.close();
    region.close();
    while (queue.poll(64).length > 0);
  }
}

/** @type {(sorted: number[], fraction: number) => number} */
function percentileUs(sorted, fraction) {
  if (sorted.length === 0) return 0;
  const ns = sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * fraction))] ?? 0;
  return Math.round(ns / 10) / 100;
}

async function run() {
  const began = monotonicNs();
  let writer = new Writer();
  let spare = signals.includes('kill') ? new Writer() : undefined;
  try {
    while (result.trials < trials) {
      if (monotonicNs() - began > timeoutNs) throw new Error(`only ${result.trials} trials within --timeout`);
      if (result.spoiled > trials + 100) throw new Error('most trials are spoiled: the writer fails by itself');
      if (!writer.alive) {
        writer = spare ?? new Writer();
        spare = signals.includes('kill') ? new Writer() : undefined;
      }
      await trial(writer);
      if (options['until-late'] && result.late > 0) break;
    }
  } finally {
    writer.end();
    spare?.end();
  }
  revokeNs.sort((a, b) => a - b);
  return {
    device: options.device,
    strategy,
    ...result,
    revokeUs: { p50: percentileUs(revokeNs, 0.5), p99: percentileUs(revokeNs, 0.99) },
    sizes,
    seed,
    seconds: Math.round((monotonicNs() - began) / 1e8) / 10,
  };
}

try {
  const outcome = await run();
  if (options.json) {
    process.stdout.write(`${JSON.stringify(outcome)}\n`);
  } else {
    const { trials: done, late, lateBytes, latestUs, revokeUs, spoiled, seconds } = outcome;
    process.stdout.write(
      `${outcome.device} ${strategy}: ${late} of ${done} trials had late bytes (${lateBytes} bytes, the latest ` +
        `${latestUs} us after the call had returned); revocation took ${revokeUs.p50} us (median), ` +
        `${revokeUs.p99} us (p99); ${spoiled} spoiled trials repeated; ${seconds} s, seed ${seed}\n` +
        `writers saw ${JSON.stringify(outcome.statuses)}, signals ${JSON.stringify(outcome.signals)}\n`,
    );
  }
  process.exitCode = outcome.late > 0 ? 1 : 0;
} catch (error) {
  process.stderr.write(
    `revocation-race: seed ${seed}, after ${result.trials} trials: ${error instanceof Error ? error.stack : error}\n`,
  );
  process.exitCode = 2;
} finally {
  context.close();
}
