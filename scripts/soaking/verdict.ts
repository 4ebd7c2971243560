// What a person is told at the end of a run.

import { formatSize } from "../../src/base/units.ts";
import type { Counts } from "./counts.ts";
import type { Finding } from "./drift.ts";

/** The verdict as a table; a line says so when nothing could be judged. */
export function verdictLines(findings: readonly Finding[]): string[] {
  if (findings.length === 0) return ["too short to say whether anything drifts"];
  return [
    row(["quantity", "", "where", "points", "early", "late", "limit", "per hour", ""]),
    ...findings.map(({ quantity, unit, where, points, early, late, limit, perHour, drifts }) => {
      const numbers = [early, late, limit].map((value) => value.toFixed(1));
      const growth = `${perHour >= 0 ? "+" : ""}${perHour.toFixed(1)}`;
      return row([quantity, unit, where, String(points), ...numbers, growth, drifts ? "DRIFTS" : "flat"]);
    }),
  ];
}

const WIDTHS = [22, 4, 9, -7, -9, -9, -9, -10, 7];

/** Columns; a width below zero is one of numbers. */
function row(cells: readonly string[]): string {
  return cells
    .map((cell, index) => {
      const width = WIDTHS[index]!;
      return width < 0 ? cell.padStart(-width) : cell.padEnd(width);
    })
    .join(" ")
    .trimEnd();
}

/** All that was done, in words. */
export function countsLine(counts: Counts): string {
  const restarts = counts.terminations + counts.kills;
  return [
    `${counts.rounds} rounds`,
    `${counts.merges} merges (and ${counts.unfinishedMerges} cancelled or failed)`,
    `${counts.snapshots} snapshots`,
    `${counts.resizes} resizes`,
    `${counts.faults} times faults (${counts.failedRequests} requests failed)`,
    `${restarts} restarts (${counts.kills} by kill -9)`,
    `${counts.requests} requests, ${formatSize(counts.bytes)}`,
    `${counts.visits} visits, ${counts.queries} queries`,
    `${counts.comparisons + counts.copiesCompared} times every byte compared`,
    `${counts.leaks} clusters leaked`,
  ].join(", ");
}
