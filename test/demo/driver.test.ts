// The demo's client against replicas that forget, refuse, repeat and die: everything is acknowledged in the end, and
// what reaches a replica is in order.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Driver } from '#lib/cli/demo/driver.js';

interface Batch {
  replica: number;
  generation: number;
  sequences: number[];
}

function setUp(total: number, window: number, payloadBytes = 10, windowBytes = 1e6) {
  const sent: Batch[] = [];
  const pauses: (() => void)[] = [];
  const driver = new Driver({
    total,
    window,
    windowBytes,
    payload: () => new Uint8Array(payloadBytes),
    send: (replica, generation, sequences) => sent.push({ replica, generation, sequences }),
    pause: (callback) => pauses.push(callback),
  });
  const answers = ({ generation }: Batch, sequences: number[]) =>
    [Uint32Array.from(sequences, () => generation), Uint32Array.from(sequences)] as const;
  const acknowledge = (batch: Batch, sequences = batch.sequences) =>
    driver.onAcknowledged(...answers(batch, sequences));
  const refuse = (batch: Batch, sequences = batch.sequences) => driver.onRefused(...answers(batch, sequences));
  const takeSent = () => sent.splice(0);
  const resume = () => {
    for (const callback of pauses.splice(0)) callback();
  };
  return { driver, acknowledge, refuse, takeSent, resume };
}

const numbers = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => from + index);

test('sends a window to the leader, and more as answers come', () => {
  const { driver, acknowledge, takeSent } = setUp(10, 4);
  driver.allow(10);
  expect(takeSent()).toEqual([]);
  driver.setLeader(1);
  const [first] = takeSent() as [Batch];
  expect(first).toMatchObject({ replica: 1, sequences: [1, 2, 3, 4] });
  expect(driver.inFlight).toBe(4);
  expect(acknowledge(first, [1, 2])).toBe(2);
  const [second] = takeSent() as [Batch];
  expect(second.sequences).toEqual([5, 6]);
  acknowledge(first, [3, 4]);
  acknowledge(second);
  const rest = takeSent();
  expect(rest.flatMap((batch) => batch.sequences)).toEqual([7, 8, 9, 10]);
  for (const batch of rest) acknowledge(batch);
  expect(driver.acknowledgedCount).toBe(10);
  expect(driver.idle).toBe(true);
  expect(driver.inFlight).toBe(0);
});

test('sends no more than it is allowed to', () => {
  const { driver, acknowledge, takeSent } = setUp(10, 8);
  driver.setLeader(0);
  driver.allow(3);
  const [batch] = takeSent() as [Batch];
  expect(batch.sequences).toEqual([1, 2, 3]);
  acknowledge(batch);
  expect(takeSent()).toEqual([]);
  expect(driver.idle).toBe(true);
  driver.allow(99);
  expect(takeSent().flatMap(({ sequences }) => sequences)).toEqual(numbers(4, 10));
});

test('bounds what is on its way in bytes, but always lets one command through', () => {
  const { driver, acknowledge, takeSent } = setUp(6, 100, 400, 1000);
  driver.setLeader(0);
  driver.allow(6);
  const [batch] = takeSent() as [Batch];
  expect(batch.sequences).toEqual([1, 2]);
  acknowledge(batch, [1]);
  expect(takeSent()[0]?.sequences).toEqual([3]);
  const large = setUp(2, 100, 5000, 1000);
  large.driver.setLeader(0);
  large.driver.allow(2);
  expect(large.takeSent()[0]?.sequences).toEqual([1]);
});

test('a new leader gets everything that is not acknowledged, from the first such command on', () => {
  const { driver, acknowledge, takeSent } = setUp(10, 4);
  driver.allow(10);
  driver.setLeader(0);
  const [toOld] = takeSent() as [Batch];
  acknowledge(toOld, [2]);
  takeSent();
  driver.setLeader(undefined);
  expect(driver.inFlight).toBe(0);
  driver.setLeader(1);
  const [toNew] = takeSent() as [Batch];
  expect(toNew).toMatchObject({ replica: 1, sequences: [1, 3, 4, 5] });
  // The old leader was only stopped: what it says late is true all the same.
  expect(acknowledge(toOld, [1, 3])).toBe(2);
  expect(driver.acknowledgedCount).toBe(3);
  expect(driver.inFlight).toBe(4);
  expect(acknowledge(toNew, [1, 3, 4, 5])).toBe(2);
});

test('after a refusal it waits for the rest of the window, pauses, and starts at the first unacknowledged', () => {
  const { driver, acknowledge, refuse, takeSent, resume } = setUp(8, 4);
  driver.allow(8);
  driver.setLeader(0);
  const [batch] = takeSent() as [Batch];
  acknowledge(batch, [1]);
  const [fifth] = takeSent() as [Batch];
  expect(fifth.sequences).toEqual([5]);
  refuse(batch, [2]);
  resume();
  expect(takeSent()).toEqual([]);
  refuse(batch, [3, 4]);
  resume();
  expect(takeSent()).toEqual([]);
  refuse(fifth);
  expect(takeSent()).toEqual([]);
  resume();
  const [again] = takeSent() as [Batch];
  expect(again.sequences).toEqual([2, 3, 4, 5]);
  expect(again.generation).toBeGreaterThan(batch.generation);
  expect(driver.refusals).toBe(4);
  expect(driver.resent).toBe(4);
  // An answer to the earlier sending does not count for the later one.
  refuse(batch, [2]);
  expect(driver.inFlight).toBe(4);
});

test('an acknowledgement of what was never sent is a defect and throws', () => {
  const { driver } = setUp(3, 4);
  expect(() => driver.onAcknowledged(Uint32Array.of(1), Uint32Array.of(4))).toThrow(/never sent/);
  expect(() => driver.onAcknowledged(Uint32Array.of(1), Uint32Array.of(0))).toThrow(/never sent/);
});

/** A replica as the driver meets it: applies a session's commands in order, refuses or loses what it pleases. */
test('whatever replicas do to its commands, all are acknowledged and each was accepted in order', () => {
  const action = fc.record({
    kind: fc.constantFrom('answer', 'answer', 'answer', 'refuse', 'crash', 'resume', 'late'),
    part: fc.double({ min: 0, max: 1, noNaN: true }),
  });
  fc.assert(
    fc.property(fc.array(action, { maxLength: 120 }), fc.integer({ min: 1, max: 9 }), (actions, window) => {
      const total = 40;
      const { driver, acknowledge, refuse, takeSent, resume } = setUp(total, window);
      const applied: number[] = []; // the replicated log, of which acknowledgements speak
      let leader = 0;
      let queue: { batch: Batch; sequence: number }[] = [];
      let forgotten: { batch: Batch; sequence: number }[] = [];
      const accept = () => {
        for (const batch of takeSent()) {
          expect(batch.replica).toBe(leader);
          expect(batch.sequences.length).toBeGreaterThan(0);
          for (const sequence of batch.sequences) queue.push({ batch, sequence });
        }
        expect(driver.inFlight).toBeLessThanOrEqual(window);
      };
      const execute = ({ batch, sequence }: { batch: Batch; sequence: number }) => {
        const last = applied.length;
        if (sequence > last + 1) {
          refuse(batch, [sequence]); // a gap, as the session table sees it
          return;
        }
        if (sequence === last + 1) applied.push(sequence);
        acknowledge(batch, [sequence]);
      };
      driver.allow(total);
      driver.setLeader(leader);
      accept();
      for (const { kind, part } of actions) {
        const count = Math.ceil(part * queue.length);
        if (kind === 'answer') for (const one of queue.splice(0, count)) execute(one);
        if (kind === 'refuse') for (const { batch, sequence } of queue.splice(0, count)) refuse(batch, [sequence]);
        if (kind === 'resume') resume();
        if (kind === 'late') {
          for (const { batch, sequence } of forgotten.splice(0)) {
            if (sequence <= applied.length) acknowledge(batch, [sequence]);
          }
        }
        if (kind === 'crash') {
          // Part of what it had was committed and never answered; the rest is gone.
          for (const one of queue.slice(0, count)) if (one.sequence === applied.length + 1) applied.push(one.sequence);
          forgotten = queue;
          queue = [];
          leader = 1 - leader;
          driver.setLeader(undefined);
          expect(driver.inFlight).toBe(0);
          driver.setLeader(leader);
        }
        accept();
      }
      // From here on nothing fails.
      for (let turn = 0; turn < 10 * total && driver.acknowledgedCount < total; turn++) {
        for (const one of queue.splice(0)) execute(one);
        resume();
        accept();
      }
      expect(applied).toEqual(numbers(1, total));
      expect(driver.acknowledgedCount).toBe(total);
      expect([...driver.acknowledged]).toEqual(applied.map(() => 1));
    }),
    { numRuns: 300 },
  );
});
