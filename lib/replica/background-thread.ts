// The main thread's handle on the background plane's thread: starts it, hands it links, hears its reports, stops it.
import { Worker } from 'node:worker_threads';
import type { BackgroundProfile } from '../consensus/background-plane.js';
import type { LeaseSettings } from '../consensus/lease.js';
import { errorCode, QuorateError } from '../errors.js';
import { CONTROL_STOP_OFFSET, type VerbsEndpoint } from '../fabric/verbs-endpoint.js';
import { addWord, Notifier, Waiter } from '../verbs/objects.js';
import type { BackgroundWorkerData, DurableVoter, ToBackground, ToMain } from './background-messages.js';
import type { BackgroundScheduling } from './replica-options.js';

export interface BackgroundThreadOptions {
  readonly id: number;
  readonly bootId: number;
  readonly processId: number;
  readonly durable: DurableVoter | null;
  readonly profile: BackgroundProfile;
  readonly lease: LeaseSettings | null;
  /** Whether it goes through a takeover before it ticks. */
  readonly rehearses: boolean;
  readonly shmDirectory: string | undefined;
  readonly scheduling: BackgroundScheduling | undefined;
  /** The background plane has something for the replication plane. */
  readonly onWake: () => void;
  readonly onReport: (message: ToMain) => void;
  /** The thread ended though it was not told to: without it the replica can neither vote nor lead. */
  readonly onFailure: (error: Error) => void;
}

/** What the thread has to say itself has a code, and has lost its class on the way; anything else is of Node.js, or a defect. */
function threadError(id: number, thrown: unknown): Error {
  const code = errorCode(thrown);
  if (code !== undefined) return new QuorateError(code, (thrown as Error).message, thrown as QuorateError);
  const { message = String(thrown), syscall } = (thrown ?? {}) as NodeJS.ErrnoException;
  const remedy =
    syscall === 'uv_cwd'
      ? 'Node.js starts no thread when the working directory of the process was removed: start it in one that is there'
      : 'start the replica again';
  const text = `the background thread of replica ${id} failed (${message}): ${remedy}`;
  return new QuorateError('QUORATE_BACKGROUND_THREAD', text, { cause: thrown });
}

export class BackgroundThread {
  private readonly notifier: Notifier;
  private readonly waiter = new Waiter();
  private readonly worker: Worker;
  private readonly exited: Promise<void>;
  private hasEnded_ = false;
  /** Its code is loaded, or it has ended. */
  readonly started: Promise<void>;
  /** It ticks, or it has ended. */
  readonly ready: Promise<void>;
  private stopping = false;

  constructor(
    private readonly endpoint: VerbsEndpoint,
    options: BackgroundThreadOptions,
  ) {
    this.notifier = new Notifier(options.onWake);
    try {
      const data: BackgroundWorkerData = {
        id: options.id,
        bootId: options.bootId,
        processId: options.processId,
        durable: options.durable,
        logBytes: endpoint.logMemory.length,
        profile: options.profile,
        lease: options.lease,
        strategy: endpoint.strategy,
        rehearses: options.rehearses,
        shmDirectory: options.shmDirectory,
        scheduling: options.scheduling,
        tokens: {
          logDomain: endpoint.logDomain.shareUntilThreadEnds(),
          logMemory: endpoint.logMemory.shareUntilThreadEnds(),
          statusMemory: endpoint.statusMemory.shareUntilThreadEnds(),
          mailboxMemory: endpoint.mailboxMemory.shareUntilThreadEnds(),
          probeMemory: endpoint.probeMemory.shareUntilThreadEnds(),
          controlMemory: endpoint.controlMemory.shareUntilThreadEnds(),
          backgroundQueue: endpoint.backgroundQueue.shareUntilThreadEnds(),
          incomingQueue: endpoint.incomingQueue.shareUntilThreadEnds(),
          wakeQueue: endpoint.wakeQueue.shareUntilThreadEnds(),
          wakeChannel: endpoint.wakeChannel?.shareUntilThreadEnds() ?? null,
          waiter: this.waiter.shareUntilThreadEnds(),
          fence: endpoint.fence.shareUntilThreadEnds(),
          notifier: this.notifier.shareUntilThreadEnds(),
        },
        probeKey: endpoint.probeRegion.lkey,
      };
      this.worker = new Worker(new URL('./background-worker.js', import.meta.url), {
        workerData: data,
        name: `quorate background ${options.id}`,
        // It says how the program is to be read that came by standard input or as text, and Node.js refuses it for a file.
        ...(process.execArgv.some((argument) => argument.startsWith('--input-type')) ? { execArgv: [] } : {}),
        resourceLimits: { maxOldGenerationSizeMb: 64, maxYoungGenerationSizeMb: 16 },
      });
    } catch (error) {
      this.notifier.close();
      this.waiter.close();
      throw threadError(options.id, error);
    }
    this.worker.on('message', options.onReport);
    const told = (type: ToMain['type']): Promise<void> =>
      new Promise((resolve) => {
        this.worker.on('message', (message: ToMain) => {
          if (message.type === type) resolve();
        });
        this.worker.once('exit', () => resolve());
      });
    this.started = told('started');
    this.ready = told('ready');
    this.worker.on('error', (error: unknown) => options.onFailure(threadError(options.id, error)));
    this.exited = new Promise((resolve) => {
      this.worker.once('exit', (code) => {
        this.hasEnded_ = true;
        if (!this.stopping) {
          const message = `the background thread of replica ${options.id} ended with exit code ${code}`;
          options.onFailure(new QuorateError('QUORATE_BACKGROUND_THREAD', message));
        }
        resolve();
      });
    });
  }

  /** Hands a message over; the thread takes it at once. */
  send(message: ToBackground): void {
    if (this.stopping) return;
    this.worker.postMessage(message);
    this.wake();
  }

  /** Ends the thread's pause between two ticks. */
  wake(): void {
    this.waiter.wake();
  }

  get hasEnded(): boolean {
    return this.hasEnded_;
  }

  /** Stops the thread and waits for its end. From then on nobody grants or beats for this replica. */
  async stop(): Promise<void> {
    if (!this.stopping) {
      this.stopping = true;
      addWord(this.endpoint.controlMemory, CONTROL_STOP_OFFSET, 1);
      this.wake();
    }
    await this.exited;
    this.notifier.close();
    this.waiter.close();
  }
}
