// The ring of messages between two replicas: everything that was sent arrives, once and in order, however the bytes are
// placed; and bytes that are torn, stale or malicious are never taken for a message.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { hashHigh, hashLow, hashWords } from '#lib/consensus/hash.js';
import {
  MESSAGE_BYTES_MAX,
  MESSAGE_FRAGMENT_BYTES_MAX,
  MESSAGE_QUEUE_BYTES_MAX,
  MESSAGE_REGION_BYTES,
  MESSAGE_REPORT_BYTES,
  MESSAGE_RING_BYTES,
  MESSAGE_WAKES_MAX,
} from '#lib/consensus/limits.js';
import { MessagePort, type OutgoingMessage } from '#lib/consensus/message-port.js';
import { MessageRingReader, MessageRingWriter } from '#lib/consensus/message-ring.js';

function message(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => (index * 31 + seed * 7) & 0xff);
}

/** A ring whose memory is carried over by hand. */
function ring(stream = 77) {
  const source = new Uint8Array(MESSAGE_RING_BYTES);
  const target = new Uint8Array(MESSAGE_RING_BYTES);
  const writer = new MessageRingWriter(source, 0);
  const reader = new MessageRingReader(target, 0);
  writer.begin(stream);
  reader.begin(stream);
  let carried = 0;
  return {
    source,
    target,
    writer,
    reader,
    append(bytes: Uint8Array): void {
      for (let done = 0; done < Math.max(1, bytes.length); ) {
        const part = writer.append(bytes, done);
        if (part === 0) throw new Error('the ring is full');
        done += part;
      }
    },
    carry(): void {
      while (carried < writer.tail) {
        const at = carried % MESSAGE_RING_BYTES;
        const end = Math.min(MESSAGE_RING_BYTES, at + writer.tail - carried);
        target.set(source.subarray(at, end), at);
        carried += end - at;
      }
    },
    all(): Uint8Array[] {
      const taken: Uint8Array[] = [];
      for (let next = reader.next(); next !== null; next = reader.next()) taken.push(next);
      writer.acknowledge(reader.consumed);
      return taken;
    },
  };
}

describe('a message ring', () => {
  it('delivers messages of all sizes, long ones in parts, over many laps', () => {
    const one = ring();
    const sizes = [0, 1, 3, 4, 31, 32, 33, 1000, MESSAGE_FRAGMENT_BYTES_MAX, MESSAGE_FRAGMENT_BYTES_MAX + 1, 70_000];
    for (let lap = 0; lap < 20; lap++) {
      for (const size of sizes) {
        const sent = message(size, lap);
        one.append(sent);
        one.carry();
        const [taken, ...more] = one.all();
        expect(more).toEqual([]);
        expect(taken === undefined ? -1 : Buffer.compare(taken, sent)).toBe(0);
      }
    }
    expect(one.writer.tail).toBeGreaterThan(10 * MESSAGE_RING_BYTES);
  });

  it('takes nothing of a record while a single byte of it is missing', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 300 }), fc.nat(), (size, where) => {
        const one = ring();
        one.append(message(200, 1));
        one.carry();
        one.all();
        const begin = one.writer.tail;
        one.append(message(size, 2));
        const missing = begin + (where % (32 + size));
        const kept = one.target[missing] as number;
        one.carry();
        if (one.target[missing] === kept) return; // the byte is the same, so it is not missing
        const whole = one.target[missing] as number;
        one.target[missing] = kept;
        expect(one.reader.next()).toBeNull();
        one.target[missing] = whole;
        expect(one.reader.next()).toEqual(message(size, 2));
      }),
    );
  });

  it('does not take what an earlier lap left at the same place, which was whole once', () => {
    const one = ring();
    const size = MESSAGE_FRAGMENT_BYTES_MAX;
    for (let count = 0; count < 4; count++) {
      one.append(message(size, count));
      one.carry();
      expect(one.all()).toHaveLength(1);
    }
    // The next place holds the first message, as it was.
    expect(one.reader.consumed % MESSAGE_RING_BYTES).toBe(0);
    expect(one.reader.next()).toBeNull();
  });

  it('does not take what was written for another stream at the same position', () => {
    const one = ring(77);
    one.append(message(100, 1));
    one.carry();
    one.reader.begin(78);
    expect(one.reader.next()).toBeNull();
  });

  it('has no room for more than it holds until the reader has taken it, and then goes on', () => {
    const one = ring();
    const size = MESSAGE_FRAGMENT_BYTES_MAX;
    for (let count = 0; count < 4; count++) one.append(message(size, count));
    expect(one.writer.append(message(1, 1), 0)).toBe(0);
    one.carry();
    expect(one.all()).toHaveLength(4);
    expect(one.writer.append(message(1, 1), 0)).toBe(1);
  });

  it('does not believe a reader that claims to have taken what was not written, or less than before', () => {
    const one = ring();
    one.append(message(100, 1));
    const { tail } = one.writer;
    expect(one.writer.acknowledge(tail + 32)).toBe(false);
    expect(one.writer.acknowledge(Number.NaN)).toBe(false);
    expect(one.writer.acknowledge(tail)).toBe(true);
    expect(one.writer.acknowledge(0)).toBe(false);
    expect(one.writer.acknowledged).toBe(tail);
  });

  it('bears any bytes in its memory', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 64, maxLength: 512 }), fc.nat(), (garbage, where) => {
        const one = ring();
        one.append(message(64, 1));
        one.carry();
        one.target.set(garbage, where % (MESSAGE_RING_BYTES - garbage.length));
        const taken = one.all();
        expect(taken.length).toBeLessThanOrEqual(1);
        if (taken.length === 1) expect(taken[0]).toEqual(message(64, 1));
      }),
    );
  });

  it('stops at a sender that never ends its message, and says so', () => {
    const one = ring();
    const endless = new Uint8Array(MESSAGE_BYTES_MAX * 2);
    for (let done = 0; one.reader.fault === null; ) {
      const part = one.writer.append(endless, done);
      expect(part).toBeGreaterThan(0);
      done += part;
      one.carry();
      expect(one.all()).toEqual([]);
    }
    expect(one.reader.fault).toMatch(/more than \d+ bytes/);
    one.reader.begin(5);
    expect(one.reader.fault).toBeNull();
  });

  it('stops at a sender that gives its message in parts smaller than it takes, which cost more than they bring', () => {
    for (const size of [0, 1, 1000]) {
      const one = ring();
      one.append(message(100, 1));
      one.append(new Uint8Array(size));
      // The last record says that more follows, which a writer says of full ones only.
      const words = new Uint32Array(one.source.buffer);
      const at = 160 / 4;
      words[at + 1] = (words[at + 1] as number) | 1;
      hashWords(words, at, 8 + Math.ceil(size / 4), at + 4, one.writer.stream, 0);
      words[at + 4] = hashLow;
      words[at + 5] = hashHigh;
      one.carry();
      expect(one.all()).toEqual([message(100, 1)]);
      expect(one.reader.fault).toMatch(new RegExp(`a part of ${size} bytes`));
    }
  });
});

/** Bytes of a WRITE under way. */
interface Transfer {
  readonly from: Side;
  readonly generation: number;
  readonly offset: number;
  readonly bytes: Uint8Array;
  readonly wake: boolean;
}

interface Side {
  readonly port: MessagePort;
  readonly incoming: Uint8Array;
  readonly received: number[];
  wakes: number;
  generation: number;
  stream: number;
  other: () => Side;
}

/** Two ports joined by links that a test moves on step by step. */
class Pair {
  readonly transfers: Transfer[] = [];
  readonly sides: readonly [Side, Side];
  private generations = 0;
  streamsEnded = 0;

  constructor() {
    const sides = [this.side(1000, () => sides[1]), this.side(2000, () => sides[0])] as [Side, Side];
    this.sides = sides;
    for (const side of sides) this.link(side);
  }

  private side(stream: number, other: () => Side): Side {
    const incoming = new Uint8Array(MESSAGE_REGION_BYTES);
    const outgoing = new Uint8Array(MESSAGE_REGION_BYTES);
    const received: number[] = [];
    const side: Side = {
      incoming,
      received,
      wakes: 0,
      generation: 0,
      stream,
      other,
      port: new MessagePort(
        {
          incoming,
          outgoing,
          write: (offset, lengthBytes, wake) =>
            this.transfers.push({
              from: side,
              generation: side.generation,
              offset,
              bytes: outgoing.slice(offset, offset + lengthBytes),
              wake,
            }),
          onMessage: (bytes) => received.push(new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true)),
          onStreamEnded: () => this.streamsEnded++,
        },
        stream,
      ),
    };
    return side;
  }

  /** A fresh link of this side, in place of the one before, of whose WRITEs nothing lands any more. */
  link(side: Side): void {
    side.port.unlinked();
    side.generation = ++this.generations;
    side.other().wakes = 0;
    const position = side.other().port.accepted(side.generation, side.port.stream);
    expect(side.port.linked(side.generation, position)).toBe(true);
    side.port.flush();
  }

  /** The next WRITE of a side lands, in part at first if `tear` says where, and completes. */
  land(side: Side, tear = -1): boolean {
    const index = this.transfers.findIndex(({ from }) => from === side);
    if (index < 0) return false;
    const { generation, offset, bytes, wake } = this.transfers[index] as Transfer;
    this.transfers.splice(index, 1);
    if (generation !== side.generation) return true; // of a link that is gone
    const peer = side.other();
    if (tear >= 0) {
      // The end before the beginning, and a look in between.
      const at = tear % bytes.length;
      peer.incoming.set(bytes.subarray(at), offset + at);
      peer.port.look();
    }
    peer.incoming.set(bytes, offset);
    if (wake) {
      peer.wakes++;
      expect(peer.wakes).toBeLessThanOrEqual(MESSAGE_WAKES_MAX);
    }
    side.port.writeCompleted();
    side.port.flush();
    return true;
  }

  /** The side has noticed that it was woken. */
  wake(side: Side): boolean {
    if (side.wakes === 0) return false;
    const { wakes } = side;
    side.wakes = 0;
    side.port.woken(wakes);
    side.port.flush();
    return true;
  }

  /** Until nothing is under way and nobody has anything to notice. */
  settle(): void {
    for (let steps = 0; ; steps++) {
      let moved = false;
      for (const side of this.sides) moved = this.land(side) || this.wake(side) || moved;
      if (!moved) return;
      if (steps > 1_000_000) throw new Error('they never come to rest');
    }
  }
}

function numbered(number: number, lengthBytes: number): Uint8Array {
  const bytes = new Uint8Array(Math.max(4, lengthBytes));
  new DataView(bytes.buffer).setUint32(0, number, true);
  return bytes;
}

const step = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant('send' as const),
      side: fc.nat(1),
      count: fc.integer({ min: 1, max: 40 }),
      size: fc.oneof(fc.integer({ min: 4, max: 200 }), fc.integer({ min: 4, max: 100_000 })),
    }),
  },
  {
    weight: 8,
    arbitrary: fc.record({
      kind: fc.constant('land' as const),
      side: fc.nat(1),
      tear: fc.integer({ min: -1, max: 5000 }),
    }),
  },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('wake' as const), side: fc.nat(1) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('break' as const), side: fc.nat(1) }) },
);

describe('a message port', () => {
  it('delivers everything once and in order, whatever breaks, and nobody has to poll for it', () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 120 }), (steps) => {
        const pair = new Pair();
        const sent: [number[], number[]] = [[], []];
        for (const action of steps) {
          const side = pair.sides[action.side] as Side;
          if (action.kind === 'send') {
            for (let count = 0; count < action.count; count++) {
              const numbers = sent[action.side] as number[];
              if (side.port.send(numbered(numbers.length, action.size)) !== null) numbers.push(numbers.length);
            }
            side.port.flush();
          } else if (action.kind === 'land') pair.land(side, action.tear);
          else if (action.kind === 'wake') pair.wake(side);
          else pair.link(side);
        }
        pair.settle();
        expect(pair.sides[1].received).toEqual(sent[0]);
        expect(pair.sides[0].received).toEqual(sent[1]);
        expect(pair.streamsEnded).toBe(0);
      }),
      { numRuns: 200 },
    );
  });

  it('refuses what is too long and what is too much, and goes on when there is room', () => {
    const pair = new Pair();
    const [side] = pair.sides;
    expect(side.port.send(new Uint8Array(MESSAGE_BYTES_MAX + 1))).toBeNull();
    let count = 0;
    while (side.port.send(numbered(count, 500_000)) !== null) count++;
    expect(count).toBe(Math.floor(MESSAGE_QUEUE_BYTES_MAX / 500_000));
    side.port.flush();
    pair.settle();
    expect(side.port.queuedBytes).toBe(0);
    expect(side.port.send(numbered(count, 500_000))).not.toBeNull();
    side.port.flush();
    pair.settle();
    expect(pair.sides[1].received).toEqual(Array.from({ length: count + 1 }, (_, index) => index));
  });

  it('takes a message back only as long as nothing of it has left', () => {
    const pair = new Pair();
    const [side, peer] = pair.sides;
    side.port.unlinked();
    const first = side.port.send(numbered(1, 4));
    const second = side.port.send(numbered(2, 4));
    if (first === null || second === null) throw new Error('both were refused');
    expect(side.port.withdraw(first)).toBe(true);
    pair.link(side);
    expect(side.port.withdraw(second)).toBe(false);
    pair.settle();
    expect(peer.received).toEqual([2]);
  });

  it('takes back as many as may wait, in one go', () => {
    const pair = new Pair();
    const [side, peer] = pair.sides;
    side.port.unlinked();
    const waiting: OutgoingMessage[] = [];
    for (;;) {
      const message = side.port.send(numbered(1, 32));
      if (message === null) break;
      waiting.push(message);
    }
    expect(waiting.length).toBe(MESSAGE_QUEUE_BYTES_MAX / 32);
    const last = waiting.pop();
    expect(waiting.every((message) => side.port.withdraw(message))).toBe(true);
    expect(side.port.queuedBytes).toBe(32);
    pair.link(side);
    pair.settle();
    expect(last?.isWritten).toBe(true);
    expect(peer.received).toEqual([1]);
  });

  it('begins another stream when the peer has forgotten the one before, and tells that what was written is lost', () => {
    const pair = new Pair();
    const [side, peer] = pair.sides;
    side.port.send(numbered(1, 4));
    side.port.flush();
    pair.settle();
    const written = side.port.send(numbered(2, 4));
    side.port.flush();
    side.port.unlinked();
    const waiting = side.port.send(numbered(3, 4));
    expect(written?.isWritten).toBe(true);
    expect(waiting?.isWritten).toBe(false);
    // The peer has fresh memory, in which the stream is new.
    peer.port.accepted(98, 1);
    expect(side.port.linked(99, peer.port.accepted(99, side.port.stream))).toBe(false);
    side.port.begin(1001);
    expect(pair.streamsEnded).toBe(1);
    pair.link(side);
    pair.settle();
    expect(peer.received).toEqual([1, 3]);
  });

  it('does not believe reports about another stream, or of what it has not sent', () => {
    const pair = new Pair();
    const [side, peer] = pair.sides;
    fc.assert(
      fc.property(fc.uint8Array({ minLength: MESSAGE_REPORT_BYTES, maxLength: MESSAGE_REPORT_BYTES }), (garbage) => {
        side.incoming.set(garbage, 0);
        side.port.look();
      }),
    );
    const before = peer.received.length;
    for (let number = 0; number < 100; number++) side.port.send(numbered(number, 3000));
    side.port.flush();
    pair.settle();
    expect(peer.received.slice(before)).toEqual(Array.from({ length: 100 }, (_, number) => number));
  });
});
