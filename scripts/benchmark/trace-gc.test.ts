import { describe, expect, it } from "vitest";
import { MiB } from "../../src/base/units.ts";
import { allocatedBetween, readTraceGc } from "./trace-gc.ts";

const PRINTED = `
[23958:0x74ccf50]      100 ms: Scavenge 7.0 (9.7) -> 6.0 (10.2) MB, 1.13 / 0.02 ms  (average mu = 1.000) task;
a line of something else: 3.0 (4.0) -> 2.0 (4.0) MB
[23958:0x74ccf50]      200 ms: Mark-Compact (reduce) 8.5 (16.5) -> 5.0 (17.5) MB, 7.31 / 0.06 ms  (+ 0.7 ms)
[23958:0x74ccf50]     1200 ms: Scavenge 9.0 (18.2) -> 5.1 (18.2) MB, 0.75 / 0.00 ms  allocation failure;
`;

describe("what --trace-gc prints", () => {
  it("tells what was allocated from one collection to the next", () => {
    expect(readTraceGc(PRINTED)).toEqual([
      { milliseconds: 100, bytes: 7 * MiB },
      { milliseconds: 200, bytes: 9.5 * MiB },
      { milliseconds: 1200, bytes: 13.5 * MiB },
    ]);
  });

  it("never counts backwards", () => {
    const shrunk = PRINTED.replace("9.0 (18.2)", "4.0 (18.2)");
    expect(readTraceGc(shrunk).at(-1)?.bytes).toBe(9.5 * MiB);
  });
});

describe("allocation in a stretch of time", () => {
  const marks = readTraceGc(PRINTED);

  it("is exact from collection to collection, and even in between", () => {
    expect(allocatedBetween(marks, { from: 200, to: 1200 })).toBe(4 * MiB);
    expect(allocatedBetween(marks, { from: 200, to: 700 })).toBe(2 * MiB);
    expect(allocatedBetween(marks, { from: 0, to: 50 })).toBe(3.5 * MiB);
  });

  it("ends with the last collection", () => {
    expect(allocatedBetween(marks, { from: 200, to: 5000 })).toBe(4 * MiB);
  });

  it("is not known where nothing was collected", () => {
    expect(allocatedBetween([], { from: 0, to: 5 })).toBeNaN();
  });
});
