// The end of a run in figures: a table for people, one line of JSON for programs.
import type { Histogram } from 'hdr-histogram-js';
import { formatUs, percentile } from './figures.js';
import type { Round, RunResult } from './run.js';

/** Last line of `--json`. Values are null where a run failed before they could be known, or where there is none. */
export interface DemoSummary {
  fabric: string | null;
  replicas: number;
  acknowledged: number;
  lost: number | null;
  duplicated: number | null;
  digestsAgree: boolean;
  rounds: number;
  failoverUs: { p50: number | null; p99: number | null; max: number | null };
  commitUs: { p50: number | null; p99: number | null };
}

function rounded(us: number | undefined): number | null {
  return us === undefined ? null : Math.round(us * 100) / 100;
}

export function summarize(
  replicas: number,
  known: { acknowledged: number; rounds: readonly Round[]; commit: Histogram; fabric: string | undefined },
  verdict: { lost: number; duplicated: number; digestsAgree: boolean } | undefined,
): DemoSummary {
  const failovers = known.rounds.map((round) => round.failoverUs).filter((us) => us !== undefined);
  const commitUs = (percent: number) =>
    known.commit.totalCount === 0 ? null : rounded(known.commit.getValueAtPercentile(percent) / 1000);
  return {
    fabric: known.fabric ?? null,
    replicas,
    acknowledged: known.acknowledged,
    lost: verdict?.lost ?? null,
    duplicated: verdict?.duplicated ?? null,
    digestsAgree: verdict?.digestsAgree ?? false,
    rounds: known.rounds.length,
    failoverUs: {
      p50: rounded(percentile(failovers, 50)),
      p99: rounded(percentile(failovers, 99)),
      max: rounded(percentile(failovers, 100)),
    },
    commitUs: { p50: commitUs(50), p99: commitUs(99) },
  };
}

/** The table at the end of a run. */
export function renderReport(result: RunResult, kill: string, seed: number, window: number): string {
  const { verdict, commit, rounds, status } = result;
  const rows: [string, string][] = [];
  const spread = (values: readonly (number | undefined)[]): string | undefined => {
    const present = values.filter((us) => us !== undefined);
    if (present.length === 0) return undefined;
    const [p50, p99, max] = [50, 99, 100].map((percent) => formatUs(percentile(present, percent) as number));
    return `p50 ${p50}   p99 ${p99}   max ${max}`;
  };
  const add = (name: string, text: string | undefined): void => {
    if (text !== undefined) rows.push([name, text]);
  };
  const commitUs = (percent: number) => formatUs(commit.getValueAtPercentile(percent) / 1000);
  add('fabric', `${status.fabric}, permission strategy ${status.permissionStrategy}, profile ${status.profile}`);
  add(
    'acknowledged',
    `${result.acknowledged} commands, ${Math.round(result.acknowledged / (result.loadUs / 1e6))} per second overall`,
  );
  add(
    'commit latency',
    `p50 ${commitUs(50)}   p99 ${commitUs(99)}   (propose to settled promise, up to ${window} in flight)`,
  );
  add('rounds', rounds.length === 0 ? 'none' : `${rounds.length} x ${kill}`);
  add('failover', spread(rounds.map((round) => round.failoverUs)));
  add('  of it election', spread(rounds.map((round) => round.electionUs)));
  add('  as the driver saw it', spread(rounds.map((round) => round.driverUs)));
  add('back as a voter', spread(rounds.map((round) => round.returnUs)));
  if (result.longestPauseUs > 0)
    add('longest pause', `${formatUs(result.longestPauseUs)} without an acknowledgement while a follower was down`);
  add('leader changes', `${result.leaderChanges}`);
  add('sent again', `${result.resent} commands, ${result.duplicatesRecognised} recognised as applied before`);
  add('state', `${result.keys} keys, SHA-256 ${result.digest.slice(0, 16)}..., LSN ${result.appliedLsn}`);
  add('lost', `${verdict.lost}`);
  add('applied twice', `${verdict.duplicated}`);
  add('states agree', verdict.digestsAgree ? 'yes, with each other and with the acknowledged commands' : 'NO');
  add('seed', `${seed}`);
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows.map(([name, text]) => `  ${name.padEnd(width)}  ${text}`).join('\n');
}
