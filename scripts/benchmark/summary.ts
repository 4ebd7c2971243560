// What the runs of a work come to: medians, ratios, and whether they can be believed.

import type { Sample } from "./sample.ts";
import { median, SPREAD_RUNS_MIN, spread } from "./statistics.ts";

/** A spread of throughput above this says that the machine was too noisy to judge. */
export const SPREAD_MAX = 0.15;

export type Side = Sample & {
  /** Of the throughput; NaN of fewer than three runs. */
  readonly spread: number;
};

export type Metric = keyof Sample;

/** Strata's value by the other's. */
export type Ratios = Readonly<Record<Metric, number>>;

export interface Row {
  readonly work: string;
  readonly strata: Side;
  readonly peer: Side;
  readonly ratios: Ratios;
  readonly isNoisy: boolean;
}

/** One work against the work that it should cost no more than: the ratio of throughput, by side. */
export interface Comparison {
  readonly work: string;
  readonly with: string;
  readonly strata: number;
  readonly peer: number;
}

/** Medians of everything, but of the peak memory the highest. */
export function side(samples: readonly Sample[]): Side {
  const medianOf = (metric: Metric) => median(samples.map((sample) => sample[metric]));
  return {
    throughput: medianOf("throughput"),
    spread: spread(samples.map((sample) => sample.throughput)),
    p50: medianOf("p50"),
    p99: medianOf("p99"),
    p999: medianOf("p999"),
    cpu: medianOf("cpu"),
    peakMemoryBytes: Math.max(...samples.map((sample) => sample.peakMemoryBytes)),
  };
}

export function summarise(work: string, ours: readonly Sample[], theirs: readonly Sample[]): Row {
  const [strata, peer] = [side(ours), side(theirs)];
  const ratio = (metric: Metric) => strata[metric] / peer[metric];
  return {
    work,
    strata,
    peer,
    ratios: {
      throughput: ratio("throughput"),
      p50: ratio("p50"),
      p99: ratio("p99"),
      p999: ratio("p999"),
      cpu: ratio("cpu"),
      peakMemoryBytes: ratio("peakMemoryBytes"),
    },
    isNoisy: strata.spread > SPREAD_MAX || peer.spread > SPREAD_MAX,
  };
}

export function compare(row: Row, other: Row): Comparison {
  return {
    work: row.work,
    with: other.work,
    strata: row.strata.throughput / other.strata.throughput,
    peer: row.peer.throughput / other.peer.throughput,
  };
}

/** What to think of the result as a whole; undefined when it can be believed as it is. */
export function doubts(rows: readonly Row[], pairs: number): string | undefined {
  if (pairs < SPREAD_RUNS_MIN) {
    return `${pairs} ${pairs === 1 ? "pair is" : "pairs are"} a smoke test, not a judgement: \
no spread is known of fewer than ${SPREAD_RUNS_MIN}; run with --pairs 5 or more`;
  }
  const noisy = rows.filter((row) => row.isNoisy).length;
  if (noisy === 0) return undefined;
  const which = `${noisy} of ${rows.length} ${rows.length === 1 ? "row" : "rows"}`;
  return `${which}: the machine was too noisy to judge (spread above ${SPREAD_MAX * 100} %); \
stop what else runs here and run those again, with --only, more --pairs or more --seconds`;
}
