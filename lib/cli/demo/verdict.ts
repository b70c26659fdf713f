// Whether a run kept its promises, from what the replicas hold at the end. A pure function, so that its own ability to
// convict can be tested.
import type { ReportMessage } from './messages.js';

export interface VerdictInput {
  /** Ids of all replicas of the run. */
  readonly replicas: readonly number[];
  /** What each of them reported, all at the same applied LSN. */
  readonly reports: readonly ReportMessage[];
  /** 1 at index n - 1 if command n was acknowledged to the driver. */
  readonly acknowledged: Uint8Array;
  /** Digest of the state that the acknowledged commands lead to when they are executed one after the other. */
  readonly modelDigest: string;
  readonly roundsWanted: number;
  readonly roundsDone: number;
}

export interface Verdict {
  /** Acknowledged commands that at least one replica did not apply. */
  readonly lost: number;
  /** Commands that at least one replica applied more than once. */
  readonly duplicated: number;
  /** All replicas hold the same state, and it is the one that the acknowledged commands lead to. */
  readonly digestsAgree: boolean;
  /** All that is wrong, in words; the run is good if there is nothing. */
  readonly problems: readonly string[];
}

/** Of numbers listed in one problem. */
const LISTED_MAX = 5;

function list(numbers: readonly number[]): string {
  const shown = numbers.slice(0, LISTED_MAX).join(', ');
  return numbers.length > LISTED_MAX ? `${shown} and ${numbers.length - LISTED_MAX} more` : shown;
}

export function judge(input: VerdictInput): Verdict {
  const { replicas, reports, acknowledged, modelDigest, roundsWanted, roundsDone } = input;
  const problems: string[] = [];

  for (const id of replicas) {
    const count = reports.filter((report) => report.id === id).length;
    if (count !== 1) problems.push(`${count} reports from replica ${id} instead of one`);
  }
  const lsns = new Set(reports.map((report) => report.appliedLsn));
  if (lsns.size > 1)
    problems.push(`replicas reported at different LSNs (${list([...lsns])}), so they cannot be compared`);

  const unacknowledged: number[] = [];
  for (let index = 0; index < acknowledged.length; index++) {
    if (acknowledged[index] !== 1) unacknowledged.push(index + 1);
  }
  if (unacknowledged.length > 0) problems.push(`never acknowledged: command ${list(unacknowledged)}`);

  const lost = new Set<number>();
  const duplicated = new Set<number>();
  for (const { id, applications, outOfOrder } of reports) {
    const missing: number[] = [];
    const repeated: number[] = [];
    for (let index = 0; index < Math.max(acknowledged.length, applications.length); index++) {
      const times = applications[index] ?? 0;
      if (times === 0 && acknowledged[index] === 1) missing.push(index + 1);
      if (times > 1) repeated.push(index + 1);
    }
    for (const sequence of missing) lost.add(sequence);
    for (const sequence of repeated) duplicated.add(sequence);
    if (missing.length > 0) problems.push(`replica ${id} lost command ${list(missing)}, which had been acknowledged`);
    if (repeated.length > 0) problems.push(`replica ${id} applied command ${list(repeated)} more than once`);
    if (outOfOrder > 0) problems.push(`replica ${id} applied ${outOfOrder} commands out of their session's order`);
    if (applications.length > acknowledged.length) {
      problems.push(`replica ${id} applied command ${applications.length}; only ${acknowledged.length} were ever sent`);
    }
  }

  const digests = new Set(reports.map((report) => report.digest));
  if (digests.size > 1) problems.push(`the states of the replicas differ: ${digests.size} different digests`);
  const auditDigests = new Set(reports.map((report) => report.auditDigest));
  if (auditDigests.size > 1) problems.push(`the replicas' records of what was applied differ`);
  const strangers = reports.filter((report) => report.digest !== modelDigest).map((report) => report.id);
  if (strangers.length > 0) {
    problems.push(`the state of replica ${list(strangers)} is not the one that the acknowledged commands lead to`);
  }
  const digestsAgree =
    reports.length === replicas.length && auditDigests.size === 1 && strangers.length === 0 && lsns.size === 1;

  if (roundsDone < roundsWanted) problems.push(`${roundsDone} of ${roundsWanted} rounds took place`);
  return { lost: lost.size, duplicated: duplicated.size, digestsAgree, problems };
}
