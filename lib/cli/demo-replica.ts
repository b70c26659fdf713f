// One replica of the demo, in a process of its own: it proposes the commands it is sent, and reports what became of them.
import { setImmediate as nextTurn } from 'node:timers/promises';
import { build, encodeIntoCompressedBase64 } from 'hdr-histogram-js';
import type { Replica } from '../replica/replica.js';
import { encodeSet } from '../rsm/key-value-store.js';
import { Answers, describeError } from './demo/answers.js';
import { AUDIT_HEADER_BYTES, AuditedStore, encodeAudited } from './demo/audited-store.js';
import {
  type MeasureRequest,
  monotonic_ns,
  type ProposeMessage,
  type ReportRequest,
  type ToReplica,
} from './demo/messages.js';
import { type Role, runReplicaProcess, send } from './demo/replica-process.js';

const HISTOGRAM_NS_MAX = 60_000_000_000;
/** Sequential proposals leave the event loop this often to whatever else waits for it. */
const MEASURE_TURN_PROPOSALS = 500;
const MEASURE_KEYS = 1024;
const MEASURE_KEY_BYTES = 8;
const COMMAND_HEADER_BYTES = 3;
/** Smallest payload that `measure` can build. */
const MEASURE_PAYLOAD_BYTES_MIN = AUDIT_HEADER_BYTES + COMMAND_HEADER_BYTES + MEASURE_KEY_BYTES;

type Result = ReturnType<AuditedStore['apply']>;

class DemoReplica implements Role {
  private readonly answers = new Map<number, Answers>();

  constructor(
    private readonly replica: Replica<Result>,
    private readonly state: AuditedStore,
  ) {}

  async handle(message: ToReplica): Promise<void> {
    if (message.type === 'propose') this.propose(message);
    else if (message.type === 'report') this.report(message);
    else if (message.type === 'measure') await this.measure(message);
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
      // The driver finds the leader itself, and sees who that is.
      const { duplicate } = await this.replica.propose(payload, { session: { origin, sequence }, forward: false });
      answers.acknowledge(generation, sequence, monotonic_ns() - start_ns, duplicate);
    } catch (error) {
      answers.refuse(generation, sequence, error);
    }
  }

  report({ origin }: ReportRequest): void {
    const { state } = this;
    send({
      type: 'report',
      id: this.replica.id,
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
      const before = this.replica.status();
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
      const { role, epoch } = this.replica.status();
      const isSame = role === before.role && epoch === before.epoch;
      send({
        type: 'measured',
        histogram: encodeIntoCompressedBase64(histogram),
        count,
        wall_ns,
        role: isSame ? role : null,
      });
    } catch (error) {
      send({ type: 'failed', during: 'measure', ...describeError(error) });
    }
  }

  close(): void {}
}

const state = new AuditedStore();
runReplicaProcess<Result>({
  startedBy: 'the demo (quorate/dist/cli/demo.js)',
  probe: (origin, sequence) => encodeAudited(origin, sequence, undefined),
  stateMachine: state,
  begin: (replica) => new DemoReplica(replica, state),
});
