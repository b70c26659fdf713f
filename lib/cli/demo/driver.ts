// The client of the demo: it drives numbered commands through whichever replica leads, a window of them at a time, and
// knows of each whether it was acknowledged. Commands belong to one session, so they are sent in order, and after a
// refusal or a change of leader they are sent again from the first that is not acknowledged: the session makes that
// harmless. It does no I/O; the caller sends and hands over the answers.

export interface DriverOptions {
  /** Commands are numbered 1 .. total. */
  readonly total: number;
  /** Most commands on their way. */
  readonly window: number;
  /** Most bytes on their way; one command is always allowed. */
  readonly windowBytes: number;
  /** Payload of a command; asked for each time that it is sent. */
  readonly payload: (sequence: number) => Uint8Array;
  readonly send: (replica: number, generation: number, sequences: number[], payloads: Uint8Array[]) => void;
  /** Calls back after a short pause; commands that were refused are sent again then. */
  readonly pause: (callback: () => void) => void;
}

export class Driver {
  private readonly acknowledged_: Uint8Array;
  /** Generation in which a command is on its way, 0 if it is not. */
  private readonly sentIn: Uint32Array;
  private readonly sentBytes: Uint32Array;
  private generation = 1;
  private leader_: number | undefined;
  private allowed = 0;
  private nextToSend = 1;
  private firstUnacknowledged = 1;
  private acknowledgedCount_ = 0;
  private inFlight_ = 0;
  private inFlightBytes = 0;
  private mustRewind = false;
  private paused = false;
  private refusals_ = 0;
  private resent_ = 0;

  constructor(private readonly options: DriverOptions) {
    this.acknowledged_ = new Uint8Array(options.total);
    this.sentIn = new Uint32Array(options.total + 1);
    this.sentBytes = new Uint32Array(options.total + 1);
  }

  /** 1 at index n - 1 if command n was acknowledged. */
  get acknowledged(): Uint8Array {
    return this.acknowledged_;
  }
  get acknowledgedCount(): number {
    return this.acknowledgedCount_;
  }
  /** Commands that were sent to the present leader and have no answer yet. */
  get inFlight(): number {
    return this.inFlight_;
  }
  /** Answers that said a command was not done, or not known to be done. */
  get refusals(): number {
    return this.refusals_;
  }
  /** Commands that were sent more than once, counted each time. */
  get resent(): number {
    return this.resent_;
  }
  get leader(): number | undefined {
    return this.leader_;
  }

  /** Allows commands up to this number to be sent. */
  allow(upTo: number): void {
    this.allowed = Math.min(Math.max(this.allowed, upTo), this.options.total);
    this.pump();
  }

  /** Whether all commands that may be sent have been acknowledged. */
  get idle(): boolean {
    return this.firstUnacknowledged > this.allowed;
  }

  /** Another replica leads, or none is known to. What is on its way to the old one gets no answer that is waited for. */
  setLeader(replica: number | undefined): void {
    if (replica === this.leader_) return;
    this.leader_ = replica;
    this.rewind();
    this.pump();
  }

  /** A replica said that these were committed and applied; whichever said so, it is so. Returns how many were news. */
  onAcknowledged(generations: Uint32Array, sequences: Uint32Array): number {
    let news = 0;
    for (let index = 0; index < sequences.length; index++) {
      const sequence = sequences[index] as number;
      if (sequence < 1 || sequence > this.options.total) {
        throw new RangeError(`acknowledgement of command ${sequence}, which was never sent`);
      }
      this.settle(generations[index] as number, sequence);
      if (this.acknowledged_[sequence - 1] === 1) continue;
      this.acknowledged_[sequence - 1] = 1;
      news++;
    }
    this.acknowledgedCount_ += news;
    while (this.firstUnacknowledged <= this.options.total && this.acknowledged_[this.firstUnacknowledged - 1] === 1) {
      this.firstUnacknowledged++;
    }
    this.pump();
    return news;
  }

  /** A replica said that these were not done, or that it does not know. */
  onRefused(generations: Uint32Array, sequences: Uint32Array): void {
    this.refusals_ += sequences.length;
    for (let index = 0; index < sequences.length; index++) {
      if (this.settle(generations[index] as number, sequences[index] as number)) this.mustRewind = true;
    }
    this.pump();
  }

  /** True if the answer is one that was waited for. */
  private settle(generation: number, sequence: number): boolean {
    if (generation !== this.generation || this.sentIn[sequence] !== generation) return false;
    this.sentIn[sequence] = 0;
    this.inFlight_--;
    this.inFlightBytes -= this.sentBytes[sequence] as number;
    return true;
  }

  private rewind(): void {
    this.generation++;
    this.mustRewind = false;
    this.inFlight_ = 0;
    this.inFlightBytes = 0;
    this.nextToSend = this.firstUnacknowledged;
  }

  private pump(): void {
    const { options } = this;
    if (this.leader_ === undefined || this.paused) return;
    if (this.mustRewind) {
      // The answers to the rest of the window come first, so that nothing overtakes what is sent again.
      if (this.inFlight_ > 0) return;
      this.rewind();
      this.paused = true;
      options.pause(() => {
        this.paused = false;
        this.pump();
      });
      return;
    }
    const sequences: number[] = [];
    const payloads: Uint8Array[] = [];
    while (this.nextToSend <= this.allowed && this.inFlight_ < options.window) {
      const sequence = this.nextToSend;
      if (this.acknowledged_[sequence - 1] === 1) {
        this.nextToSend++;
        continue;
      }
      const payload = options.payload(sequence);
      if (this.inFlight_ > 0 && this.inFlightBytes + payload.length > options.windowBytes) break;
      this.nextToSend++;
      if ((this.sentBytes[sequence] as number) > 0) this.resent_++;
      this.sentIn[sequence] = this.generation;
      this.sentBytes[sequence] = payload.length;
      this.inFlight_++;
      this.inFlightBytes += payload.length;
      sequences.push(sequence);
      payloads.push(payload);
    }
    if (sequences.length > 0) options.send(this.leader_, this.generation, sequences, payloads);
  }
}
