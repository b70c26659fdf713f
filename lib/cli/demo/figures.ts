// How figures are summed up and written for people.

/** Nearest-rank percentile of values in any order; undefined of none. */
export function percentile(values: readonly number[], percent: number): number | undefined {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)];
}

/** A duration, with the unit that suits it. */
export function formatUs(us: number): string {
  const digits = (value: number) => (value < 10 ? 2 : value < 100 ? 1 : 0);
  if (us < 1000) return `${us.toFixed(digits(us))} us`;
  if (us < 1_000_000) return `${(us / 1000).toFixed(digits(us / 1000))} ms`;
  return `${(us / 1_000_000).toFixed(2)} s`;
}
