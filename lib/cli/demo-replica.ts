// One replica of the demo, in a process of its own: it opens the replica it is told to, proposes the commands it is
// sent, and reports what became of them. It ends when its parent does, whatever the reason: the IPC channel closes.
import { setImmediate as nextTurn } from 'node:timers/promises';
import { build, encodeIntoCompressedBase64 } from 'hdr-histogram-js';
import { Replica } from '../replica/replica.js';
import { encodeSet } from '../rsm/key-value-store.js';
import { Answers, describeError } from './demo/answers.js';
import { AUDIT_HEADER_BYTES, AuditedStore, encodeAudited } from './demo/audited-store.js';
import {
  type FromReplica,
  type MeasureRequest,
  monotonic_ns,
  type OpenMessage,
  type ProposeMessage,
  type ReportRequest,
  type ToReplica,
} from './demo/messages.js';

/** How often the status is looked at, and sent if it changed. */
const STATUS_INTERVAL_MS = 20;
/** A status that does not change is sent after so many intervals all the same. */
const STATUS_QUIET_INTERVALS = 25;
const CLOSE_TIMEOUT_MS = 10_000;
const HISTOGRAM_NS_MAX = 60_000_000_000;
/** Sequential proposals leave the event loop this often to whatever else waits for it. */
const MEASURE_TURN_PROPOSALS = 500;
const MEASURE_KEYS = 1024;
const MEASURE_KEY_BYTES = 8;
const COMMAND_HEADER_BYTES = 3;
/** Smallest payload that `measure` can build. */
const MEASURE_PAYLOAD_BYTES_MIN = AUDIT_HEADER_BYTES + COMMAND_HEADER_BYTES + MEASURE_KEY_BYTES;

type Result = ReturnType<AuditedStore['apply']>;

function send(message: FromReplica): void {
  // The parent may be gone this instant; "disconnect" then ends the process.
  if (process.connected) process.send?.(message, () => {});
}

/** Sends what ends this process: the channel is closed when it is out. */
function sendLast(message: FromReplica): void {
  process.exitCode = 1;
  if (!process.connected) return;
  process.send?.(message, () => {
    if (process.connected) process.disconnect();
  });
}

class DemoReplica {
  private readonly answers = new Map<number, Answers>();
  private readonly statusTimer: NodeJS.Timeout;
  private probeSequence = 1;
  private lastStatus = '';
  private quietIntervals = 0;
  private leads = false;

  private constructor(
    private readonly replica: Replica<Result>,
    private readonly state: AuditedStore,
    private readonly options: OpenMessage,
  ) {
    const { id } = options;
    replica.on('leader', (leader, epoch) => {
      if (leader === id) void this.onLeader(epoch);
      else this.leads = false;
    });
    replica.on('deposed', (epoch, reason) => {
      this.leads = false;
      send({ type: 'deposed', epoch, reason, at_ns: monotonic_ns() });
    });
    replica.on('warning', (warning) => send({ type: 'warning', ...describeError(warning) }));
    replica.on('fatal', (error) => {
      sendLast({ type: 'failed', during: 'run', ...describeError(error) });
    });
    this.statusTimer = setInterval(() => this.sendStatus(), STATUS_INTERVAL_MS);
    send({ type: 'opened', at_ns: monotonic_ns() });
    const status = replica.status();
    if (status.role === 'leader') void this.onLeader(status.epoch); // it was elected before it could be listened to
    this.sendStatus();
  }

  static async open(options: OpenMessage): Promise<DemoReplica> {
    const state = new AuditedStore();
    const replica = await Replica.open<Result>({
      id: options.id,
      members: options.members,
      clusterKey: options.clusterKey,
      stateMachine: state,
      openTimeoutMs: options.openTimeoutMs,
      ...(options.device === undefined ? {} : { device: options.device }),
      ...(options.profile === undefined ? {} : { profile: options.profile }),
    });
    return new DemoReplica(replica, state, options);
  }

  propose(message: ProposeMessage): void {
    const { origin, generation, sequences, payloadBytes, payloads } = message;
    let answers = this.answers.get(origin);
    if (answers === undefined) {
      answers = new Answers(origin, send);
      this.answers.set(origin, answers);
    }
    let at = 0;
    for (let index = 0; index < sequences.length; index++) {
      const sequence = sequences[index] as number;
      const end = at + (payloadBytes[index] as number);
      void this.proposeOne(answers, origin, generation, sequence, payloads.subarray(at, end));
      at = end;
    }
  }

  private async proposeOne(
    answers: Answers,
    origin: number,
    generation: number,
    sequence: number,
    payload: Uint8Array,
  ): Promise<void> {
    const start_ns = monotonic_ns();
    try {
      const { duplicate } = await this.replica.propose(payload, { session: { origin, sequence } });
      answers.acknowledge(generation, sequence, monotonic_ns() - start_ns, duplicate);
    } catch (error) {
      answers.refuse(generation, sequence, error);
    }
  }

  /** A new leader proposes a command of its own at once; see ServingMessage. */
  private async onLeader(epoch: string): Promise<void> {
    if (this.leads) return;
    this.leads = true;
    const leaderAt_ns = monotonic_ns();
    send({ type: 'leader', epoch, at_ns: leaderAt_ns });
    const { probeOrigin: origin } = this.options;
    // A probe whose fate stayed unknown is proposed again under its number: the session takes no other next.
    const sequence = this.probeSequence;
    try {
      await this.replica.propose(encodeAudited(origin, sequence, undefined), { session: { origin, sequence } });
      send({ type: 'serving', epoch, leaderAt_ns, at_ns: monotonic_ns() });
      this.probeSequence = sequence + 1;
    } catch (error) {
      // Deposed before the first commit: the next leader says when it serves.
      send({ type: 'warning', ...describeError(error) });
    }
  }

  private sendStatus(): void {
    const status = this.replica.status();
    const text = JSON.stringify(status);
    this.quietIntervals++;
    if (text === this.lastStatus && this.quietIntervals < STATUS_QUIET_INTERVALS) return;
    this.lastStatus = text;
    this.quietIntervals = 0;
    send({ type: 'status', at_ns: monotonic_ns(), status });
  }

  report({ origin }: ReportRequest): void {
    const { state } = this;
    send({
      type: 'report',
      id: this.options.id,
      appliedLsn: this.replica.status().appliedLsn,
      digest: state.store.digest(),
      keys: state.store.size,
      auditDigest: state.auditDigest(),
      applications: state.applications(origin),
      outOfOrder: state.outOfOrder(origin),
    });
  }

  /** Proposes one command after the other, each when the promise of the one before has settled. */
  async measure({ warmUp, count, payloadBytes }: MeasureRequest): Promise<void> {
    try {
      if (payloadBytes < MEASURE_PAYLOAD_BYTES_MIN) {
        throw new RangeError(`payload of ${payloadBytes} bytes; it must have at least ${MEASURE_PAYLOAD_BYTES_MIN}`);
      }
      const value = new Uint8Array(payloadBytes - MEASURE_PAYLOAD_BYTES_MIN).fill(0x2e);
      const payloads = Array.from({ length: MEASURE_KEYS }, (_, index) =>
        encodeAudited(0, 0, encodeSet(String(index).padStart(MEASURE_KEY_BYTES, '0'), value)),
      );
      const histogram = build({ lowestDiscernibleValue: 1, highestTrackableValue: HISTOGRAM_NS_MAX });
      let wall_ns = 0;
      let turnStart_ns = monotonic_ns();
      for (let index = 0; index < warmUp + count; index++) {
        const payload = payloads[index % MEASURE_KEYS] as Uint8Array;
        const start = performance.now();
        await this.replica.propose(payload);
        const latency_ns = Math.round((performance.now() - start) * 1e6);
        if (index >= warmUp) histogram.recordValue(Math.min(latency_ns, HISTOGRAM_NS_MAX));
        if ((index + 1) % MEASURE_TURN_PROPOSALS === 0 || index + 1 === warmUp + count) {
          if (index >= warmUp) wall_ns += monotonic_ns() - turnStart_ns;
          await nextTurn();
          turnStart_ns = monotonic_ns();
        }
      }
      send({ type: 'measured', histogram: encodeIntoCompressedBase64(histogram), count, wall_ns });
    } catch (error) {
      send({ type: 'failed', during: 'measure', ...describeError(error) });
    }
  }

  async close(): Promise<void> {
    clearInterval(this.statusTimer);
    await this.replica.close();
  }
}

let opening: Promise<DemoReplica | undefined> = Promise.resolve(undefined);
let isOpening = false;
let ending = false;

/** Closes the replica; the process then ends by itself, since nothing is left that holds it open. */
async function end(): Promise<void> {
  if (ending) return;
  ending = true;
  if (isOpening) process.exit(); // waiting for peers that may never come
  setTimeout(() => {
    process.stderr.write(`still running ${CLOSE_TIMEOUT_MS} ms after the order to close; ending\n`);
    process.exit(3);
  }, CLOSE_TIMEOUT_MS).unref();
  try {
    await (await opening)?.close();
  } catch (error) {
    process.exitCode = 1;
    const { code, message } = describeError(error);
    process.stderr.write(`closing failed: ${code}: ${message}\n`);
  }
  if (process.connected) process.disconnect();
}

process.on('disconnect', () => void end());
// The terminal sends these to the parent too, which decides what they mean.
process.on('SIGINT', () => {});
process.on('SIGHUP', () => {});

process.on('message', async (message: ToReplica) => {
  if (message.type === 'close') {
    void end();
    return;
  }
  if (message.type === 'open') {
    isOpening = true;
    opening = DemoReplica.open(message)
      .catch((error: unknown) => {
        sendLast({ type: 'failed', during: 'open', ...describeError(error) });
        return undefined;
      })
      .finally(() => {
        isOpening = false;
      });
    return;
  }
  const replica = await opening;
  if (replica === undefined) return;
  if (message.type === 'propose') replica.propose(message);
  else if (message.type === 'report') replica.report(message);
  else await replica.measure(message);
});

if (!process.connected) {
  process.stderr.write('this program is started by the demo (quorate/dist/cli/demo.js), not by hand\n');
  process.exit(2);
}
