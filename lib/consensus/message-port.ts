// Messages between this replica and one peer, both ways: what is sent waits here for room in the peer's ring, and goes
// out with one-sided WRITEs; what came is taken out of the own ring. It neither waits nor polls by itself: the host calls
// it when the peer has woken this replica, when WRITEs have completed, and when there is something to send.
//
// *Reports.* What the receiver has taken it tells the sender by a report, a sealed block that it writes into the sender's
// memory: with what it sends anyway, or by itself when a quarter of the ring was taken since the last one.
//
// *Wakes.* A WRITE with immediate wakes the peer. It takes a receive there, of which there are MESSAGE_WAKES_MAX: a peer
// that stands still must not make the link fail. So the receiver's report also says how many wakes it has taken, and a
// sender that has as many under way wakes no more and keeps it in mind. Nothing is missed all the same. A sender looks at
// the report after its WRITE has completed, and a receiver looks at its ring after its report has: if the one came too
// early to see the other's, the other sees its.
//
// *Links break.* A fresh link says at its making what the receiver has taken; everything behind is written once more,
// byte for byte at the same positions, so nothing is lost, doubled or reordered. The receiver's end of the link before is
// destroyed first, so that no late WRITE of it can land in a later lap.
//
// *Lives end.* When the peer is another process, or does not know the stream, another stream begins. What was written is
// lost then, and nobody knows what became of it: the host is told.
import {
  MESSAGE_BYTES_MAX,
  MESSAGE_QUEUE_BYTES_MAX,
  MESSAGE_REGION_BYTES,
  MESSAGE_REPORT_BYTES,
  MESSAGE_REPORT_WORDS,
  MESSAGE_RING_BYTES,
  MESSAGE_WAKES_MAX,
  MESSAGE_WRITE_BYTES_MAX,
  MESSAGE_WRITES_MAX,
} from './limits.js';
import { MessageRingReader, MessageRingWriter } from './message-ring.js';
import { readU53, SealedBlockReader, SealedBlockWriter, writeU53 } from './sealed-block.js';

/** A report: which stream and which link it is about, and how much was taken of it. */
const REPORT = { stream: 1, consumed: 3, generation: 5, wakesTaken: 7 } as const;

/** A report is due when so much was taken since the last one. */
const REPORT_DUE_BYTES = MESSAGE_RING_BYTES / 4;
const REPORT_DUE_WAKES = MESSAGE_WAKES_MAX / 2;

export interface MessagePortHost {
  /** What the peer writes: MESSAGE_REGION_BYTES, aligned to 4. */
  readonly incoming: Uint8Array;
  /** The image of what is written at the peer; as large. */
  readonly outgoing: Uint8Array;
  /** Begins to write these bytes of `outgoing` to the same place at the peer; `wake` wakes it when they have landed. */
  write(offset: number, lengthBytes: number, wake: boolean): void;
  /** A message came. */
  onMessage(message: Uint8Array): void;
  /** The outgoing stream has ended: what became of the messages that were written (isWritten), nobody will tell. */
  onStreamEnded(): void;
}

/** A message on its way. */
export class OutgoingMessage {
  /** How much of it is in the ring. */
  writtenBytes = 0;
  /** It is in the ring as a whole, whether or not it has been written at the peer. */
  isWritten = false;
  isWithdrawn = false;

  constructor(readonly bytes: Uint8Array) {}
}

export class MessagePort {
  private readonly writer: MessageRingWriter;
  private readonly reader: MessageRingReader;
  private readonly reportOut: SealedBlockWriter;
  private readonly reportIn = new SealedBlockReader(MESSAGE_REPORT_WORDS);
  private readonly incomingWords: Uint32Array;
  /** What waits for room in the ring, in order. A set, since when a leader is gone all of it may be taken back, one by one. */
  private readonly queue = new Set<OutgoingMessage>();
  private queuedBytes_ = 0;
  /** Of the link over which this end writes, 0 while there is none. */
  private generation = 0;
  /** There was a link for this stream, so the peer knows it, or has forgotten it. */
  private isStreamKnown = false;
  private writesOutstanding = 0;
  /** Up to where the ring was posted on this link. */
  private postedTo = 0;
  private wakesSent = 0;
  private wakesTakenByPeer = 0;
  /** Something was written since the last wake. */
  private wakeOwed = false;
  /** Of the link over which the peer writes. */
  private incomingGeneration = 0;
  private wakesTaken = 0;
  private reportedConsumed = 0;
  private reportedWakes = 0;
  /** The peer may not know what was reported: the link was made anew. */
  private mustReport = false;

  constructor(
    private readonly host: MessagePortHost,
    stream: number,
  ) {
    if (host.incoming.length < MESSAGE_REGION_BYTES || host.outgoing.length < MESSAGE_REGION_BYTES) {
      throw new RangeError(`a message region has ${MESSAGE_REGION_BYTES} bytes`);
    }
    this.writer = new MessageRingWriter(host.outgoing, MESSAGE_REPORT_BYTES);
    this.reader = new MessageRingReader(host.incoming, MESSAGE_REPORT_BYTES);
    const wordsOf = (bytes: Uint8Array) => new Uint32Array(bytes.buffer, bytes.byteOffset, MESSAGE_REPORT_WORDS);
    this.incomingWords = wordsOf(host.incoming);
    this.reportOut = new SealedBlockWriter(wordsOf(host.outgoing), 0, MESSAGE_REPORT_WORDS);
    this.writer.begin(stream);
  }

  // -- sending -----------------------------------------------------------------------------------------------------

  /** Number of the outgoing stream, which the responder is told when a link is made. */
  get stream(): number {
    return this.writer.stream;
  }

  /** Bytes that wait for room in the ring. */
  get queuedBytes(): number {
    return this.queuedBytes_;
  }

  /** A link to the peer stands. */
  get isLinked(): boolean {
    return this.generation !== 0;
  }

  /** What the peer sent amiss; null as long as nothing. */
  get fault(): string | null {
    return this.reader.fault;
  }

  /**
   * Queues a message; flush() sends it. Null if more than `queueBytesMax` would wait, or if it is longer than
   * MESSAGE_BYTES_MAX.
   */
  send(bytes: Uint8Array, queueBytesMax = MESSAGE_QUEUE_BYTES_MAX): OutgoingMessage | null {
    if (bytes.length > MESSAGE_BYTES_MAX || this.queuedBytes_ + bytes.length > queueBytesMax) return null;
    const message = new OutgoingMessage(bytes);
    this.queue.add(message);
    this.queuedBytes_ += bytes.length;
    return message;
  }

  /** Takes a message back; false if some of it is in the ring, and it may arrive. */
  withdraw(message: OutgoingMessage): boolean {
    if (message.isWithdrawn) return true;
    if (message.writtenBytes > 0 || message.isWritten || !this.queue.delete(message)) return false;
    this.queuedBytes_ -= message.bytes.length;
    message.isWithdrawn = true;
    return true;
  }

  /** Posts what there is to post and may be posted. */
  flush(): void {
    if (this.generation === 0) return;
    this.fillRing();
    const { writer } = this;
    if (this.postedTo < writer.tail && this.mayWrite()) {
      if (this.isReportNews()) this.writeReport(false);
      this.writeRing();
    } else if (this.isReportDue() && this.mayWrite()) {
      // A peer that waits for room in the ring has to hear of it; one that waits for leave to wake does not (see above).
      this.writeReport(this.reader.consumed - this.reportedConsumed >= REPORT_DUE_BYTES || this.mustReport);
    }
    if (this.wakeOwed && this.mayWake() && this.mayWrite()) this.writeReport(true);
  }

  private fillRing(): void {
    const { writer, queue } = this;
    for (const message of queue) {
      const { bytes } = message;
      while (!message.isWritten) {
        const part = writer.append(bytes, message.writtenBytes);
        if (part === 0) break;
        message.writtenBytes += part;
        message.isWritten = message.writtenBytes >= bytes.length;
      }
      if (!message.isWritten) break;
      this.queuedBytes_ -= bytes.length;
      queue.delete(message);
    }
  }

  private mayWrite(): boolean {
    return this.writesOutstanding < MESSAGE_WRITES_MAX;
  }

  private mayWake(): boolean {
    return this.wakesSent - this.wakesTakenByPeer < MESSAGE_WAKES_MAX;
  }

  private writeRing(): void {
    const { writer } = this;
    while (this.postedTo < writer.tail && this.mayWrite()) {
      const offset = this.postedTo % MESSAGE_RING_BYTES;
      const lengthBytes = Math.min(writer.tail - this.postedTo, MESSAGE_RING_BYTES - offset, MESSAGE_WRITE_BYTES_MAX);
      this.postedTo += lengthBytes;
      const isLast = this.postedTo === writer.tail || this.writesOutstanding + 1 === MESSAGE_WRITES_MAX;
      this.write(MESSAGE_REPORT_BYTES + offset, lengthBytes, isLast);
    }
  }

  private write(offset: number, lengthBytes: number, wantsWake: boolean): void {
    const wake = wantsWake && this.mayWake();
    if (wake) this.wakesSent++;
    this.wakeOwed = wantsWake ? !wake : this.wakeOwed;
    this.writesOutstanding++;
    this.host.write(offset, lengthBytes, wake);
  }

  /** A WRITE has completed: what the peer wrote meanwhile may not have come with a wake. */
  writeCompleted(): void {
    this.writesOutstanding--;
    this.look();
  }

  // -- receiving ---------------------------------------------------------------------------------------------------

  /** The peer's wakes were taken, and there are receives for as many again. */
  woken(count: number): void {
    this.wakesTaken += count;
    this.look();
  }

  /** Takes what the peer has written. */
  look(): void {
    this.lookAtReport();
    for (let message = this.reader.next(); message !== null; message = this.reader.next()) this.host.onMessage(message);
  }

  private lookAtReport(): void {
    const { reportIn, writer } = this;
    if (!reportIn.read(this.incomingWords, 0)) return;
    const { body } = reportIn;
    if (readU53(body, REPORT.stream) !== writer.stream) return;
    writer.acknowledge(readU53(body, REPORT.consumed));
    if (readU53(body, REPORT.generation) !== this.generation) return;
    const wakes = readU53(body, REPORT.wakesTaken);
    if (wakes > this.wakesTakenByPeer && wakes <= this.wakesSent) this.wakesTakenByPeer = wakes;
  }

  private isReportNews(): boolean {
    return (
      this.mustReport ||
      this.reader.consumed - this.reportedConsumed >= REPORT_DUE_BYTES / 4 ||
      this.wakesTaken - this.reportedWakes >= REPORT_DUE_WAKES / 2
    );
  }

  private isReportDue(): boolean {
    return (
      this.mustReport ||
      this.reader.consumed - this.reportedConsumed >= REPORT_DUE_BYTES ||
      this.wakesTaken - this.reportedWakes >= REPORT_DUE_WAKES
    );
  }

  private writeReport(wantsWake: boolean): void {
    const { body } = this.reportOut;
    writeU53(body, REPORT.stream, this.reader.stream);
    writeU53(body, REPORT.consumed, this.reader.consumed);
    writeU53(body, REPORT.generation, this.incomingGeneration);
    writeU53(body, REPORT.wakesTaken, this.wakesTaken);
    this.reportOut.publish();
    this.reportedConsumed = this.reader.consumed;
    this.reportedWakes = this.wakesTaken;
    this.mustReport = false;
    this.write(0, MESSAGE_REPORT_BYTES, wantsWake);
  }

  // -- links -------------------------------------------------------------------------------------------------------

  /**
   * A fresh link to the peer stands, whose end has taken this stream up to `known`, or hears of it for the first time
   * (null). False if that does not fit: the peer has forgotten the stream; then begin() another one and make the link again.
   */
  linked(generation: number, known: number | null): boolean {
    const position = known ?? 0;
    if ((known === null && this.isStreamKnown) || !this.writer.acknowledge(position)) return false;
    this.isStreamKnown = true;
    this.generation = generation;
    this.writesOutstanding = 0;
    this.postedTo = position;
    this.wakesSent = 0;
    this.wakesTakenByPeer = 0;
    this.wakeOwed = false;
    this.mustReport = true;
    return true;
  }

  /** The link is gone, and with it what was outstanding on it. */
  unlinked(): void {
    this.generation = 0;
    this.writesOutstanding = 0;
  }

  /** Begins another outgoing stream, in place of one that the peer does not know. */
  begin(stream: number): void {
    this.unlinked();
    this.writer.begin(stream);
    this.isStreamKnown = false;
    this.postedTo = 0;
    // Of this one a part was in the ring, which is no message: it goes anew.
    const [first] = this.queue;
    if (first !== undefined) first.writtenBytes = 0;
    this.host.onStreamEnded();
  }

  /** The peer's end of a fresh link stands here; returns up to where its stream was taken, null if it is a new one. */
  accepted(generation: number, stream: number): number | null {
    const isNew = this.reader.stream !== stream;
    if (isNew) {
      this.reader.begin(stream);
      // Another stream may mean another life, which counts its reports from the beginning.
      this.reportIn.reset();
    }
    this.incomingGeneration = generation;
    this.wakesTaken = 0;
    this.reportedWakes = 0;
    this.reportedConsumed = this.reader.consumed;
    return isNew ? null : this.reader.consumed;
  }
}
