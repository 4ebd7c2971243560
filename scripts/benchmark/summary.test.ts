import { describe, expect, it } from "vitest";
import type { Sample } from "./sample.ts";
import { compare, doubts, type Row, side, summarise } from "./summary.ts";

function sample(throughput: number, more: Partial<Sample> = {}): Sample {
  return { throughput, p50: 1, p99: 10, p999: 100, cpu: 5, peakMemoryBytes: 1000, ...more };
}

const calm = (throughput: number) => [1, 1.01, 0.99, 1, 1].map((factor) => sample(throughput * factor));

describe("a side", () => {
  it("is the median of its runs, and the highest of the memory", () => {
    const runs = [
      sample(10, { cpu: 1, peakMemoryBytes: 7 }),
      sample(30, { cpu: 9, peakMemoryBytes: 9 }),
      sample(20, { cpu: 2, peakMemoryBytes: 8 }),
    ];
    expect(side(runs)).toMatchObject({ throughput: 20, cpu: 2, peakMemoryBytes: 9 });
  });
});

describe("a row", () => {
  it("has the ratio of each median, Strata's by the other's", () => {
    const ours = [sample(300, { p99: 5, cpu: 2, peakMemoryBytes: 500 })];
    const row = summarise("w", ours, [sample(100)]);
    expect(row.ratios).toEqual({
      ...{ throughput: 3, p50: 1, p99: 0.5, p999: 1, cpu: 0.4, peakMemoryBytes: 0.5 },
    });
  });

  it("is noisy when either side is", () => {
    const wild = [50, 70, 100, 130, 150].map((throughput) => sample(throughput));
    expect(summarise("w", calm(100), calm(100)).isNoisy).toBe(false);
    expect(summarise("w", wild, calm(100)).isNoisy).toBe(true);
    expect(summarise("w", calm(100), wild).isNoisy).toBe(true);
  });

  it("is compared with another, side by side", () => {
    const flat = summarise("flat", calm(100), calm(50));
    const chain = summarise("chain", calm(95), calm(10));
    const { strata, peer } = compare(chain, flat);
    expect(strata).toBeCloseTo(0.95);
    expect(peer).toBeCloseTo(0.2);
  });
});

describe("doubts", () => {
  const row = (isNoisy: boolean): Row => ({ ...summarise("w", calm(1), calm(1)), isNoisy });

  it("are none in a calm run", () => {
    expect(doubts([row(false), row(false)], 5)).toBeUndefined();
  });

  it("count the noisy rows and say what to do", () => {
    const said = doubts([row(true), row(false), row(true)], 5);
    expect(said).toMatch(/^2 of 3 rows: the machine was too noisy .*15 %.*--only.*--pairs/);
  });

  it("say that fewer than three pairs judge nothing", () => {
    expect(doubts([row(false)], 1)).toMatch(/^1 pair is a smoke test/);
    expect(doubts([row(false)], 2)).toMatch(/^2 pairs are a smoke test/);
  });
});
