/** The middle value; the mean of the two middle ones for an even count. NaN of nothing. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  if (sorted.length === 0) return Number.NaN;
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Two runs that agree say nothing: the quartiles of fewer are no spread. */
export const SPREAD_RUNS_MIN = 3;

/**
 * Half of the distance between the quartiles, as a part of the median: 0.05 means that half the runs are
 * within 5 %. NaN of fewer than three runs.
 */
export function spread(values: readonly number[]): number {
  if (values.length < SPREAD_RUNS_MIN) return Number.NaN;
  const sorted = [...values].sort((a, b) => a - b);
  const at = (part: number) => sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))]!;
  return (at(0.75) - at(0.25)) / 2 / median(values);
}
