import { describe, expect, it } from "vitest";
import { MiB } from "../../src/base/units.ts";
import { summarise } from "./summary.ts";
import { comparisonLine, HEAD, rowLines } from "./table.ts";

const ours = { throughput: 93369.4, p50: 300, p99: 1139, p999: 2000, cpu: 6.6, peakMemoryBytes: 72 * MiB };
const theirs = { throughput: 36210, p50: 800, p99: 2933, p999: 4000, cpu: 25.6, peakMemoryBytes: 36 * MiB };

describe("the table", () => {
  it("shows both sides, spread included, and the ratios below", () => {
    const row = summarise("read 4 KiB random, depth 32", [ours, ours, ours], [theirs, theirs, theirs]);
    expect([HEAD, ...rowLines(row, "qsd")].map((line) => line.replace(/ +/g, " "))).toEqual([
      "work side per second spread p50 us p99 us p99.9 us cpu us peak MiB",
      "read 4 KiB random, depth 32 strata 93369 0 % 300 1139 2000 6.6 72",
      " qsd 36210 0 % 800 2933 4000 25.6 36",
      " ratio 2.58 0.38 0.39 0.50 0.26 2.00",
    ]);
  });

  it("has its columns below each other", () => {
    const lines = [HEAD, ...rowLines(summarise("w", [ours], [theirs]), "nbdkit")];
    expect(new Set(lines.map((line) => line.length)).size).toBe(1);
  });

  it("leaves out what is not known, and marks what is noisy", () => {
    const idle = { ...ours, p50: Number.NaN, p99: Number.NaN, p999: Number.NaN };
    const row = { ...summarise("stream", [idle], [idle]), isNoisy: true };
    const lines = rowLines(row, "qsd");
    expect(lines[0]?.replace(/ +/g, " ")).toBe("stream strata 93369 - - - - 6.6 72");
    expect(lines[2]).toContain("too noisy to judge");
  });

  it("says what a chain costs next to one image", () => {
    const comparison = { work: "chain", with: "flat", strata: 0.953, peer: 0.2 };
    expect(comparisonLine(comparison, "qsd")).toBe('throughput of "chain" / "flat": strata 0.95, qsd 0.20');
  });
});
