// The end of a run in figures: a table for people, one line of JSON for programs.
import { formatUs, percentile } from '../demo/figures.js';
import type { NemesisResult, PowerLosses } from './run.js';

/** Last line of `--json`. */
export interface NemesisSummary {
  /** Operations that were executed, to the knowledge of the client. */
  operations: number;
  /** Operations of which the client does not know. */
  unknown: number;
  /** Epochs after the first in which a leader committed a command. */
  leaderChanges: number;
  /** Broken promises: keys without a linearization, states that differ, acknowledged commands that are gone. */
  violations: number;
  /** From the blow that took a leader away to the first commit of the next one, by its own stamp. */
  failoverUs: { p50: number | null; p99: number | null; max: number | null };
  /**
   * How often all replicas lost power, and the time from their start to the first commit, which had to come within
   * `limitMs`; null if replicas were not durable.
   */
  powerLosses: { count: number; returnMs: { p50: number | null; max: number | null }; limitMs: number } | null;
}

/** Of a run that never had a cluster. */
const NOTHING = { failovers: [], operations: 0, unknown: 0, leaderChanges: 0, violations: [], powerLosses: undefined };

/** Without a result: of a run that had no cluster. */
export function summarize(result: Pick<NemesisResult, keyof typeof NOTHING> = NOTHING): NemesisSummary {
  const values = result.failovers.map(({ us }) => us);
  const at = (percent: number) => {
    const us = percentile(values, percent);
    return us === undefined ? null : Math.round(us * 100) / 100;
  };
  const { operations, unknown, leaderChanges, violations, powerLosses } = result;
  const returnMs = (percent: number) => {
    const us = percentile(powerLosses?.returnsUs ?? [], percent);
    return us === undefined ? null : Math.round(us / 1000);
  };
  return {
    ...{ operations, unknown, leaderChanges },
    violations: violations.length,
    failoverUs: { p50: at(50), p99: at(99), max: at(100) },
    powerLosses: powerLosses
      ? { count: powerLosses.count, returnMs: { p50: returnMs(50), max: returnMs(100) }, limitMs: powerLosses.limitMs }
      : null,
  };
}

function list(counts: ReadonlyMap<string, number>): string {
  return [...counts].map(([name, count]) => `${name} ${count}`).join(', ') || 'none';
}

export function renderReport(result: NemesisResult, seed: number): string {
  const rows: [string, string][] = [
    ['fabric', result.fabric],
    ['operations', `${result.operations} executed, ${result.unknown} unknown, ${result.failed} certainly not executed`],
    ['proposed at a follower', `${result.forwarded}`],
    ['reads of a state', list(result.stateReads)],
    ['keys checked', `${result.keys}`],
    ['faults', list(result.faults)],
    ['leader changes', `${result.leaderChanges}`],
  ];
  if (result.powerLosses !== undefined) rows.push(['power losses', formatPowerLosses(result.powerLosses)]);
  if (result.settings.regionsSurvive) rows.push(['returns', formatReturns(result.recoveries)]);
  const kinds = [...new Set(result.failovers.map(({ kind }) => kind))];
  for (const kind of [undefined, ...(kinds.length > 1 ? kinds : [])]) {
    const values = result.failovers
      .filter((failover) => kind === undefined || failover.kind === kind)
      .map(({ us }) => us);
    if (values.length === 0) continue;
    const [p50, p99, max] = [50, 99, 100].map((percent) => formatUs(percentile(values, percent) as number));
    rows.push([
      kind === undefined ? 'failover' : `  after ${kind}`,
      `p50 ${p50}   p99 ${p99}   max ${max}   (${values.length})`,
    ]);
  }
  if (result.shortageCodes.size > 0) rows.push(['starts without memory', list(result.shortageCodes)]);
  rows.push([
    'states',
    result.digest === undefined ? 'NOT COMPARED' : `agree, SHA-256 ${result.digest.slice(0, 16)}...`,
  ]);
  rows.push(['violations', `${result.violations.length}`], ['seed', `${seed}`]);
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows.map(([name, text]) => `  ${name.padEnd(width)}  ${text}`).join('\n');
}

function formatPowerLosses({ count, returnsUs, limitMs }: PowerLosses): string {
  if (count === 0) return 'none';
  const [p50, max] = [50, 100].map((percent) => percentile(returnsUs, percent));
  const times = p50 === undefined || max === undefined ? 'none' : `p50 ${formatUs(p50)}   max ${formatUs(max)}`;
  return `${count}; first commit after the start: ${times}, limit ${limitMs / 1000} s`;
}

function formatReturns(recoveries: NemesisResult['recoveries']): string {
  const done = recoveries.filter(({ stage }) => stage === 'done');
  const sum = (bytes: (one: NemesisResult['recoveries'][number]) => number) =>
    done.reduce((total, one) => total + bytes(one), 0);
  return (
    `${done.length} of ${recoveries.length} by their own regions, with ${sum(({ localBytes }) => localBytes)} bytes of ` +
    `these and ${sum(({ remoteBytes }) => remoteBytes)} bytes of others`
  );
}
