// Runs bench/revocation-race.mjs and returns what it found.
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

export interface RaceOutcome {
  device: string;
  strategy: string;
  trials: number;
  late: number;
  lateBytes: number;
  latestUs: number;
  spoiled: number;
  seed: number;
  revokeUs: { p50: number; p99: number };
  statuses: Record<string, number>;
  signals: Record<string, number>;
}

/** Rejects when the tool itself failed (a writer that was not stopped, a marker that did not come, its time limit). */
export function revocationRace(options: Record<string, string | number | true>): Promise<RaceOutcome> {
  const args = Object.entries(options).flatMap(([name, value]) =>
    value === true ? [`--${name}`] : [`--${name}`, `${value}`],
  );
  const tool = fileURLToPath(new URL('../../../bench/revocation-race.mjs', import.meta.url));
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [tool, '--json', ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    let stdout = '';
    let stderr = '';
    child.stdout.on('data', (chunk) => {
      stdout += chunk;
    });
    child.stderr.on('data', (chunk) => {
      stderr += chunk;
    });
    child.on('close', (code, signal) => {
      if (code === 0 || code === 1) resolve(JSON.parse(stdout) as RaceOutcome);
      else reject(new Error(`revocation-race ${args.join(' ')} ended with ${code ?? signal}: ${stderr}`));
    });
  });
}
