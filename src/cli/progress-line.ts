// How far a job is, as one line: a bar for a terminal, plain words for a log. Pure: time and width come in.
//
//   node-D  [#########.........]   50%  64 MiB of 128 MiB  32 MiB/s  0:02 left
//   node-D  50%  64 MiB of 128 MiB  32 MiB/s  0:02 left

import { formatSize } from "../base/units.ts";

export interface Progress {
  readonly label: string;
  /** Bytes done and bytes in all; the latter may grow while the job finds more to do. */
  readonly done: number;
  readonly total: number;
  /** Bytes per second lately; 0 where that is not known yet. */
  readonly bytesPerSecond: number;
  /** What stands in place of speed and time while the job does not run: "paused". */
  readonly state?: string | undefined;
}

const BAR_CELLS_MAX = 40;
const BAR_CELLS_MIN = 8;

/** Whole percent; 100 only when everything is done. A job without anything to do is done. */
export function percentOf(progress: Pick<Progress, "done" | "total">): number {
  if (progress.done >= progress.total) return 100;
  return Math.min(99, Math.floor((100 * progress.done) / progress.total));
}

/** Seconds that the rest takes at this speed; undefined where nobody can know. */
export function secondsLeft(
  progress: Pick<Progress, "done" | "total" | "bytesPerSecond">,
): number | undefined {
  if (progress.done >= progress.total) return 0;
  return progress.bytesPerSecond > 0 ? (progress.total - progress.done) / progress.bytesPerSecond : undefined;
}

/** Hours only where there are some: 0:07, 12:30, 1:02:03. */
export function formatDuration(seconds: number): string {
  const whole = Math.ceil(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (value: number) => String(value).padStart(2, "0");
  return hours > 0 ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/** The line without a bar. */
export function plainProgress(progress: Progress): string {
  return [progress.label, `${percentOf(progress)}%`, ...figures(progress)].join("  ");
}

/** The line with a bar, at most `columns` wide; the bar gives way first, then the line is cut. */
export function barProgress(progress: Progress, columns: number): string {
  const percent = `${percentOf(progress)}%`.padStart(4);
  const around = [progress.label, percent, ...figures(progress)].join("  ");
  const cells = Math.min(BAR_CELLS_MAX, columns - around.length - 5);
  if (cells < BAR_CELLS_MIN) return around.slice(0, Math.max(0, columns - 1));
  const full = Math.floor((cells * percentOf(progress)) / 100);
  const bar = `[${"#".repeat(full)}${".".repeat(cells - full)}]`;
  return [progress.label, bar, percent, ...figures(progress)].join("  ");
}

function figures(progress: Progress): string[] {
  if (progress.total === 0) return ["nothing to copy"];
  const amount = `${formatSize(progress.done)} of ${formatSize(progress.total)}`;
  if (progress.state !== undefined) return [amount, progress.state];
  const left = secondsLeft(progress);
  const speed = progress.bytesPerSecond > 0 ? [`${formatSize(Math.round(progress.bytesPerSecond))}/s`] : [];
  return left === undefined || left === 0
    ? [amount, ...speed]
    : [amount, ...speed, `${formatDuration(left)} left`];
}

/** How far back the speed looks: long enough to be calm, short enough to show that a limit was changed. */
const WINDOW_MS = 3000;

/** The speed of something that counts up, over the last seconds. */
export class RateMeter {
  #samples: { atMs: number; bytes: number }[] = [];

  /**
   * Tells the count at a moment; the result is the speed in bytes per second, 0 where it is not known yet.
   */
  sample(atMs: number, bytes: number): number {
    this.#samples.push({ atMs, bytes });
    // One sample older than the window stays, so that the window is always spanned.
    while (this.#samples.length > 2 && this.#samples[1]!.atMs <= atMs - WINDOW_MS) this.#samples.shift();
    const first = this.#samples[0]!;
    return atMs > first.atMs ? Math.max(0, ((bytes - first.bytes) * 1000) / (atMs - first.atMs)) : 0;
  }

  /** Forgets what was: after a pause the speed begins anew. */
  reset(): void {
    this.#samples = [];
  }
}
