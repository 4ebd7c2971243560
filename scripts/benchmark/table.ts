// Columns of numbers for a terminal.

import { MiB } from "../../src/base/units.ts";
import type { Comparison, Ratios, Row, Side } from "./summary.ts";

const NAME_WIDTH = 41;
const SIDE_WIDTH = 7;

/** A number without pretended precision; "-" where there is none. */
export function cell(value: number, digits: number, width: number): string {
  return (Number.isFinite(value) ? value.toFixed(digits) : "-").padStart(width);
}

export function percent(part: number, width: number): string {
  return (Number.isFinite(part) ? `${(part * 100).toFixed(0)} %` : "-").padStart(width);
}

/** Three lines for each row: the sides, then Strata by the other. */
export const HEAD = [
  "work".padEnd(NAME_WIDTH),
  "side".padEnd(SIDE_WIDTH),
  ...["per second", "spread", "  p50 us", "  p99 us", "p99.9 us", "  cpu us", "peak MiB"],
].join(" ");

export function rowLines(row: Row, peerName: string): string[] {
  const mark = row.isNoisy ? "too noisy to judge" : "";
  return [
    `${row.work.padEnd(NAME_WIDTH)} ${sideLine("strata", row.strata)}`,
    `${"".padEnd(NAME_WIDTH)} ${sideLine(peerName, row.peer)}`,
    `${mark.padStart(NAME_WIDTH)} ${ratioLine(row.ratios)}`,
  ];
}

function sideLine(name: string, side: Side): string {
  return [
    name.padEnd(SIDE_WIDTH),
    cell(side.throughput, 0, 10),
    percent(side.spread, 6),
    cell(side.p50, 0, 8),
    cell(side.p99, 0, 8),
    cell(side.p999, 0, 8),
    cell(side.cpu, 1, 8),
    cell(side.peakMemoryBytes / MiB, 0, 8),
  ].join(" ");
}

function ratioLine(ratios: Ratios): string {
  return [
    "ratio".padEnd(SIDE_WIDTH),
    cell(ratios.throughput, 2, 10),
    "".padStart(6),
    ...[ratios.p50, ratios.p99, ratios.p999, ratios.cpu, ratios.peakMemoryBytes].map((ratio) =>
      cell(ratio, 2, 8),
    ),
  ].join(" ");
}

export function comparisonLine(comparison: Comparison, peerName: string): string {
  const ratios = `strata ${comparison.strata.toFixed(2)}, ${peerName} ${comparison.peer.toFixed(2)}`;
  return `throughput of "${comparison.work}" / "${comparison.with}": ${ratios}`;
}
