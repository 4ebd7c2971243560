// The curves as columns of numbers, and what they come to.

import { MiB } from "../../src/base/units.ts";
import { growth, type MeasuredPoint } from "./curves.ts";
import { median } from "./statistics.ts";
import { SPREAD_MAX } from "./summary.ts";
import { cell, percent } from "./table.ts";
import type { UptimePoint } from "./uptime.ts";

const LABEL_WIDTH = 12;

export function curveLines(name: string, points: readonly MeasuredPoint[]): string[] {
  const head = [
    name.padEnd(LABEL_WIDTH),
    "per second",
    "spread",
    "  p50 us",
    "  p99 us",
    "  cpu us",
    "peak MiB",
  ];
  const lines = points.map(({ label, side }) =>
    [
      label.padEnd(LABEL_WIDTH),
      cell(side.throughput, 0, 10),
      percent(side.spread, 6),
      cell(side.p50, 0, 8),
      cell(side.p99, 0, 8),
      cell(side.cpu, 2, 8),
      cell(side.peakMemoryBytes / MiB, 0, 8),
    ].join(" "),
  );
  const noisy = points.filter(({ side }) => side.spread > SPREAD_MAX).length;
  const verdict = `dearest by first: cpu ${ratio(points.map(({ side }) => side.cpu))}, \
p50 ${ratio(points.map(({ side }) => side.p50))}`;
  const doubt = noisy === 0 ? "" : `; ${noisy} of ${points.length} points too noisy to judge: run again`;
  return [head.join(" "), ...lines, verdict + doubt];
}

export function uptimeLines(points: readonly UptimePoint[]): string[] {
  const columns = ["per second", "  p50 us", "  p99 us", "  cpu us", "now MiB", "heap bytes each"];
  const head = ["uptime".padEnd(LABEL_WIDTH), ...columns];
  const lines = points.map(({ at, sample, memoryBytes, allocatedPerRequest }) =>
    [
      `${at.toFixed(0)} s`.padEnd(LABEL_WIDTH),
      cell(sample.throughput, 0, 10),
      cell(sample.p50, 0, 8),
      cell(sample.p99, 0, 8),
      cell(sample.cpu, 2, 8),
      cell(memoryBytes / MiB, 0, 7),
      cell(allocatedPerRequest, 0, 15),
    ].join(" "),
  );
  // The first point has the program's start in it.
  const settled = points.slice(1);
  if (settled.length < 2) return [head.join(" "), ...lines];
  // Single runs are noisy where there are many.
  const count = Math.ceil(settled.length / 5);
  const growthOf = (value: (point: UptimePoint) => number) =>
    (median(settled.slice(-count).map(value)) / median(settled.slice(0, count).map(value))).toFixed(2);
  const which = count === 1 ? "last by second" : `last ${count} by ${count} from the second on`;
  const verdict = `${which}: cpu ${growthOf(({ sample }) => sample.cpu)}, \
p50 ${growthOf(({ sample }) => sample.p50)}, \
memory ${growthOf(({ memoryBytes }) => memoryBytes)}`;
  return [head.join(" "), ...lines, verdict];
}

function ratio(values: readonly number[]): string {
  return growth(values).toFixed(2);
}
