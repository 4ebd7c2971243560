import { describe, expect, it } from "vitest";
import { MiB } from "../../src/base/units.ts";
import { decades, picture, roundSteps } from "./picture.ts";
import type { Sample } from "./samples.ts";

function sample(seconds: number, life: number, memory: number): Sample {
  return {
    seconds,
    life,
    memoryBytes: memory * MiB,
    threads: 20,
    descriptors: 30,
    layers: 4,
    chainAllocatedBytes: 300 * MiB,
    plainAllocatedBytes: 50 * MiB,
    plainLengthBytes: 64 * MiB,
    requestsPerSecond: 300,
    p50Ms: Number.NaN,
    p99Ms: 20,
    maxMs: 90,
  };
}

describe("the picture of a run", () => {
  const svg = picture({
    title: "seed 1 & more",
    seconds: 100,
    samples: [sample(0, 1, 0), sample(50, 1, 100), sample(100, 2, 50)],
    marks: [
      { seconds: 50, what: "kill" },
      { seconds: 75, what: "terminate" },
    ],
  });

  it("has a line of its own for each life, from the left to the right", () => {
    const lines = [...svg.matchAll(/<polyline class="line line0" points="([^"]*)"/g)].map(
      (match) => match[1],
    );
    expect(lines.slice(0, 2)).toEqual(["60,190 498,80", "936,135"]);
  });

  it("leaves out what is not known", () => {
    expect(svg).not.toContain("NaN");
  });

  it("marks restarts and kills, and says which is which", () => {
    expect(svg).toContain('<line class="mark kill" x1="498"');
    expect(svg).toContain('<line class="mark" x1="717"');
    expect(svg).toContain("kill -9");
    expect(svg).toContain("seed 1 &amp; more");
  });
});

describe("a scale", () => {
  it("has round steps from zero on", () => {
    expect(roundSteps([])).toEqual([0, 0.5, 1]);
    expect(roundSteps([93])).toEqual([0, 50, 100]);
    expect(roundSteps([130])).toEqual([0, 50, 100, 150]);
    expect(roundSteps([60], 10)).toEqual([0, 10, 20, 30, 40, 50, 60]);
  });

  it("has powers of ten around all values", () => {
    expect(decades([0.3, 4, 900])).toEqual([0.1, 1, 10, 100, 1000]);
    expect(decades([])).toEqual([1, 10]);
  });
});
