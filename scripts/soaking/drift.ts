// Whether anything drifts: each quantity in the second quarter of its time against the last quarter.
//
//   |  warm-up  | early |         |  late  |        drift: late > early * factor + slack
//   0          1/4     1/2       3/4       1
//
// What belongs to a process is judged in each life of the daemon, what belongs to the disks over the run.
// The bounds forgive the unevenness of a busy machine, and no steady growth.

import { MiB } from "../../src/base/units.ts";
import { CHAIN_BYTES_MAX } from "./image-folder.ts";
import type { QuietPoint, Sample } from "./samples.ts";

/** Fewer points say nothing, and a shorter time is all warm-up. */
const POINTS_MIN = 24;
const SECONDS_MIN = 60;

export interface Bound {
  readonly factor: number;
  readonly slack: number;
}

/** One line of the verdict. */
export interface Finding {
  readonly quantity: string;
  readonly unit: string;
  /** Where: "life 1", "the run". */
  readonly where: string;
  readonly points: number;
  readonly early: number;
  readonly late: number;
  /** Growth per hour by least squares, without the first quarter. */
  readonly perHour: number;
  /** The largest `late` that is no drift. */
  readonly limit: number;
  readonly drifts: boolean;
}

interface Point {
  readonly seconds: number;
  readonly value: number;
}

interface Quantity {
  readonly name: string;
  readonly unit: string;
  readonly bound: Bound;
  /** What goes up and down by itself needs more time than the others. */
  readonly secondsMin?: number;
  /** Which part of the points counts: the middle one unless it is told. */
  readonly rank?: number;
}

const OF_A_LIFE: readonly (Quantity & { readonly of: (sample: Sample) => number })[] = [
  {
    name: "memory",
    unit: "MiB",
    bound: { factor: 1.15, slack: 8 },
    of: ({ memoryBytes }) => memoryBytes / MiB,
  },
  { name: "threads", unit: "", bound: { factor: 1, slack: 2 }, of: ({ threads }) => threads },
];

const CALM = 0.25;

const OF_THE_RUN: readonly (Quantity & { readonly of: (sample: Sample) => number })[] = [
  {
    name: "chain on disk",
    unit: "MiB",
    bound: { factor: 1.25, slack: 64 },
    // It depends on how many images there are at the moment.
    secondsMin: 600,
    of: ({ chainAllocatedBytes }) => chainAllocatedBytes / MiB,
  },
  {
    name: "plain image on disk",
    unit: "MiB",
    bound: { factor: 1.05, slack: 2 },
    of: ({ plainAllocatedBytes }) => plainAllocatedBytes / MiB,
  },
  {
    name: "plain image's length",
    unit: "MiB",
    bound: { factor: 1.05, slack: 2 },
    of: ({ plainLengthBytes }) => plainLengthBytes / MiB,
  },
  // Others work on the machine now and then: what drifts is slower in its calm moments too.
  { name: "latency p50", unit: "ms", bound: { factor: 2, slack: 2 }, rank: CALM, of: ({ p50Ms }) => p50Ms },
  { name: "latency p99", unit: "ms", bound: { factor: 3, slack: 50 }, rank: CALM, of: ({ p99Ms }) => p99Ms },
];

/** A pipe kept for the next large read comes and goes; what is leaked is there in calm moments too. */
const OTHER_DESCRIPTORS: Quantity = {
  name: "descriptors at rest",
  unit: "",
  bound: { factor: 1, slack: 0 },
  rank: CALM,
};

/** All quantities that have enough points to judge. */
export function judgeDrift(samples: readonly Sample[], quiet: readonly QuietPoint[]): Finding[] {
  const findings: Finding[] = [];
  for (const life of new Set(samples.map((sample) => sample.life))) {
    const where = `life ${life}`;
    const ofLife = samples.filter((sample) => sample.life === life);
    for (const quantity of OF_A_LIFE) findings.push(...judge(quantity, where, points(ofLife, quantity.of)));
    const rests = quiet.filter((point) => point.life === life);
    const counted = rests.map(({ seconds, otherDescriptors: value }) => ({ seconds, value }));
    findings.push(...judge(OTHER_DESCRIPTORS, where, counted));
  }
  for (const quantity of OF_THE_RUN)
    findings.push(...judge(quantity, "the run", points(samples, quantity.of)));
  return [...findings, ...judgeFullest(samples)];
}

/** No image may take more than its disk and its tables. */
const FULLEST_MAX = 1.1;

/** What an image of the chain takes, as a part of its disk: the most that there was, in both halves. */
function judgeFullest(samples: readonly Sample[]): Finding[] {
  const all = points(
    samples,
    ({ chainAllocatedBytes, layers }) => chainAllocatedBytes / (layers * CHAIN_BYTES_MAX),
  );
  if (isTooShort(all)) return [];
  const half = all.length >> 1;
  const most = (some: readonly Point[]) => Math.max(...some.map(({ value }) => value));
  const [early, late] = [most(all.slice(0, half)), most(all.slice(half))];
  return [
    {
      quantity: "fullest image",
      unit: "",
      where: "the run",
      points: all.length,
      early,
      late,
      perHour: slope(all.slice(all.length >> 2)) * 3600,
      limit: FULLEST_MAX,
      drifts: early > FULLEST_MAX || late > FULLEST_MAX,
    },
  ];
}

function points(samples: readonly Sample[], of: (sample: Sample) => number): Point[] {
  return samples
    .map((sample) => ({ seconds: sample.seconds, value: of(sample) }))
    .filter(({ value }) => Number.isFinite(value));
}

function isTooShort(all: readonly Point[], secondsMin = SECONDS_MIN): boolean {
  return all.length < POINTS_MIN || all.at(-1)!.seconds - all[0]!.seconds < secondsMin;
}

/** Nothing for what is too short. */
function judge(quantity: Quantity, where: string, all: readonly Point[]): Finding[] {
  const { name, unit, bound, secondsMin, rank = 0.5 } = quantity;
  if (isTooShort(all, secondsMin)) return [];
  const quarter = (index: number) =>
    all.slice(Math.floor((index * all.length) / 4), Math.floor(((index + 1) * all.length) / 4));
  const typical = (some: readonly Point[]) => {
    const sorted = some.map(({ value }) => value).sort((a, b) => a - b);
    return sorted[Math.floor(rank * sorted.length)]!;
  };
  const early = typical(quarter(1));
  const late = typical(quarter(3));
  const limit = early * bound.factor + bound.slack;
  const perHour = slope(all.slice(Math.floor(all.length / 4))) * 3600;
  return [
    { quantity: name, unit, where, points: all.length, early, late, perHour, limit, drifts: late > limit },
  ];
}

/** Growth per second by least squares; 0 when all points are of one moment. */
export function slope(some: readonly Point[]): number {
  const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const at = mean(some.map(({ seconds }) => seconds));
  const middle = mean(some.map(({ value }) => value));
  const spread = some.reduce((sum, { seconds }) => sum + (seconds - at) ** 2, 0);
  const together = some.reduce((sum, { seconds, value }) => sum + (seconds - at) * (value - middle), 0);
  return spread === 0 ? 0 : together / spread;
}
