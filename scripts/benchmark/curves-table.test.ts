import { describe, expect, it } from "vitest";
import { MiB } from "../../src/base/units.ts";
import { growth } from "./curves.ts";
import { curveLines, uptimeLines } from "./curves-table.ts";
import { side } from "./summary.ts";

function sample(cpu: number, p50: number) {
  return { throughput: 1e6 / cpu, p50, p99: 2 * p50, p999: 3 * p50, cpu, peakMemoryBytes: 70 * MiB };
}

const narrow = (lines: string[]) => lines.map((line) => line.replace(/ +/g, " "));

describe("growth", () => {
  it("is the dearest by the first", () => {
    expect(growth([10, 11, 15, 12])).toBe(1.5);
    expect(growth([10, 8])).toBe(1);
  });
});

describe("a curve", () => {
  it("shows each point and how much dearer the dearest is", () => {
    const points = [
      { label: "1 GiB", side: side([sample(5, 100)]) },
      { label: "16 TiB", side: side([sample(6, 90)]) },
    ];
    expect(narrow(curveLines("size", points))).toEqual([
      "size per second spread p50 us p99 us cpu us peak MiB",
      "1 GiB 200000 - 100 200 5.00 70",
      "16 TiB 166667 - 90 180 6.00 70",
      "dearest by first: cpu 1.20, p50 1.00",
    ]);
  });

  it("says which points were too noisy", () => {
    const wild = [1, 2, 4, 8, 16].map((cpu) => sample(cpu, 1));
    const points = [
      { label: "a", side: side([sample(1, 1), sample(1, 1), sample(1, 1)]) },
      { label: "b", side: side(wild) },
    ];
    expect(curveLines("size", points).at(-1)).toContain("1 of 2 points too noisy");
  });
});

describe("the curve of uptime", () => {
  const point = (at: number, cpu: number, memory: number) => ({
    ...{ at, sample: sample(cpu, 10 * cpu), memoryBytes: memory * MiB, allocatedPerRequest: 12.4 },
  });

  it("compares the last point with the second: the first has the start in it", () => {
    expect(narrow(uptimeLines([point(0, 9, 60), point(5, 5, 70), point(10, 5.5, 77)]))).toEqual([
      "uptime per second p50 us p99 us cpu us now MiB heap bytes each",
      "0 s 111111 90 180 9.00 60 12",
      "5 s 200000 50 100 5.00 70 12",
      "10 s 181818 55 110 5.50 77 12",
      "last by second: cpu 1.10, p50 1.10, memory 1.10",
    ]);
  });

  it("compares medians of the last and the first fifth where there are many points", () => {
    const points = Array.from({ length: 11 }, (_, i) => point(i * 5, i === 5 ? 100 : 5 + i / 10, 70));
    points.push(point(55, 99, 70));
    expect(uptimeLines(points).at(-1)).toBe(
      "last 3 by 3 from the second on: cpu 1.15, p50 1.15, memory 1.00",
    );
  });

  it("judges nothing by fewer than three points", () => {
    expect(uptimeLines([point(0, 9, 60), point(5, 5, 70)])).toHaveLength(3);
  });
});
