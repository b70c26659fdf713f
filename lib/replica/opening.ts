// What open() waits for when everything has been started: that the replica is part of a cluster, which several parts of it
// notice, in several ways. The first of them settles it; if none does in time, its error says what was missing.
import { type Configuration, memberWithId } from '../consensus/configuration.js';
import { QuorateError } from '../errors.js';

/** How far a replica got. */
export interface OpeningView {
  readonly id: number;
  /** Where it listens. */
  readonly place: { readonly host: string; readonly port: number };
  /** The latest configuration that it knows. */
  readonly known: Configuration | null;
  readonly isFormed: boolean;
  /** It joins a cluster that exists, which any member may tell it of. */
  readonly isJoining: boolean;
  /** Members that were not reached yet. */
  readonly missing: readonly number[];
  /** What was found on the way, reasons of connections that fail and warnings. */
  readonly reasons: readonly string[];
}

export class Opening {
  private settle: { resolve: () => void; reject: (reason: unknown) => void } | undefined;

  /** `look` says how far this replica got, when its time is over. */
  constructor(private readonly look: () => OpeningView) {}

  /** Somebody waits. */
  get isPending(): boolean {
    return this.settle !== undefined;
  }

  /** Runs `begin`, and resolves when resolve() was called since. Rejects with the signal's reason if that aborts before. */
  async wait(timeoutMs: number, signal: AbortSignal | undefined, begin: () => void): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const onAbort = (): void => this.settle?.reject(signal?.reason);
    const opened = new Promise<void>((resolve, reject) => {
      this.settle = { resolve, reject };
      timer = setTimeout(() => reject(timeoutError(this.look(), timeoutMs)), timeoutMs);
    });
    signal?.addEventListener('abort', onAbort);
    try {
      begin();
      await opened;
    } finally {
      signal?.removeEventListener('abort', onAbort);
      clearTimeout(timer);
      this.settle = undefined;
    }
  }

  resolve(): void {
    this.settle?.resolve();
  }

  reject(error: Error): void {
    this.settle?.reject(error);
  }
}

/** Others look for a member where the configuration has it. */
export function elsewhere({ id, place, known }: Pick<OpeningView, 'id' | 'place' | 'known'>): string[] {
  const listed = known === null ? undefined : memberWithId(known, id);
  if (listed === undefined || (listed.host === place.host && listed.port === place.port)) return [];
  const [there, here] = [listed, place].map(({ host, port }) => `${host}:${port}`);
  return [
    `configuration ${known?.version} of the cluster lists it at ${there} and it listens at ${here}: start it there, or change ` +
      'its address at the leader, with changeAddress()',
  ];
}

function timeoutError(view: OpeningView, timeoutMs: number): QuorateError {
  const { id, known, isFormed, isJoining, missing, reasons } = view;
  const unreached = `replicas ${missing.join(', ')} could not be reached`;
  const isUnlisted = known !== null && memberWithId(known, id) === undefined;
  const why = isUnlisted
    ? `configuration ${known.version} of the cluster does not list it: add it at the leader, with addLearner()`
    : isFormed
      ? 'the cluster is formed but has no leader that this replica can see: is a majority of the voters running?'
      : isJoining
        ? `no member that it was told to ask has told it of a cluster${missing.length > 0 ? `; ${unreached}` : ''}`
        : missing.length > 0
          ? `${unreached}, and a cluster forms only when all members are there once`
          : 'all members were reached but did not agree on forming a cluster';
  const last = [...new Set([...elsewhere(view), ...reasons])];
  return new QuorateError(
    'QUORATE_OPEN_TIMEOUT',
    `replica ${id} did not become part of a cluster within ${timeoutMs} ms: ${why}` +
      (last.length > 0 ? ` (${last.join('; ')})` : ''),
  );
}
