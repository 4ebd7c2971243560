// What is measured every few seconds.

import type { GuestFigures } from "./guest.ts";

/** One look; bytes, milliseconds. Latencies are of the time since the look before; NaN without requests. */
export interface Sample {
  /** Since the start of the run. */
  readonly seconds: number;
  /** Number of the daemon's life. */
  readonly life: number;
  readonly memoryBytes: number;
  readonly threads: number;
  readonly descriptors: number;
  readonly layers: number;
  /** What the chain takes of the host's file system, and the image that stays all the time. */
  readonly chainAllocatedBytes: number;
  readonly plainAllocatedBytes: number;
  readonly plainLengthBytes: number;
  readonly requestsPerSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
}

/** What is open when nobody does anything: it may not grow. */
export interface QuietPoint {
  readonly seconds: number;
  readonly life: number;
  readonly layers: number;
  readonly imageDescriptors: number;
  readonly otherDescriptors: number;
}

/** A restart, in the picture. */
export interface Mark {
  readonly seconds: number;
  readonly what: "terminate" | "kill" | "quit";
}

/** Percentiles of the latencies of one or more guests. */
export function latencies(figures: readonly GuestFigures[]): { p50Ms: number; p99Ms: number; maxMs: number } {
  const sorted = figures.flatMap(({ latenciesMs }) => latenciesMs).sort((a, b) => a - b);
  const at = (part: number) => sorted[Math.floor(part * sorted.length)] ?? Number.NaN;
  return { p50Ms: at(0.5), p99Ms: at(0.99), maxMs: sorted.at(-1) ?? Number.NaN };
}
