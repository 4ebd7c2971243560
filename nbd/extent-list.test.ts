import { describe, expect, it } from "vitest";
import { ExtentList, readPieces } from "./extent-list.ts";

const K = 1024;

describe("extent list", () => {
  it("merges neighbours with the same flags and stops at the end of the range", () => {
    const list = new ExtentList().reset(100, 10);
    expect(list.sink(10, 0)).toBe(true);
    expect(list.sink(20, 0)).toBe(true);
    expect(list.sink(0, 3)).toBe(true);
    expect(list.sink(30, 3)).toBe(true);
    expect(list.sink(50, 0)).toBe(false);
    expect(list.sink(1, 0)).toBe(false);
    expect([list.lengths, list.flags, list.covered]).toEqual([[30, 30, 40], [0, 3, 0], 100]);
  });

  it("takes no more extents than it may, but lets the last one grow", () => {
    const list = new ExtentList().reset(100, 2);
    list.sink(10, 0);
    list.sink(10, 3);
    expect(list.sink(10, 3)).toBe(true);
    expect(list.sink(10, 0)).toBe(false);
    expect([list.lengths, list.covered]).toEqual([[10, 20], 30]);
    expect(list.reset(5, 1).count).toBe(0);
  });
});

describe("pieces of a read", () => {
  const pieces = (bytes: number, ...extents: [number, number][]) => {
    const list = new ExtentList().reset(bytes, 16);
    for (const [length, flags] of extents) list.sink(length, flags);
    return readPieces(list, bytes);
  };

  it("are undefined when all is data, or the holes are small", () => {
    expect(pieces(100 * K, [100 * K, 0])).toBeUndefined();
    expect(pieces(100 * K, [40 * K, 0], [20 * K, 3], [40 * K, 0])).toBeUndefined();
    expect(pieces(100 * K, [50 * K, 1], [50 * K, 0])).toBeUndefined();
    expect(pieces(100 * K)).toBeUndefined();
  });

  it("are data and holes in turn and cover the range once", () => {
    expect(
      pieces(200 * K, [1 * K, 3], [4 * K, 0], [64 * K, 3], [40 * K, 2], [31 * K, 0], [60 * K, 3]),
    ).toEqual([
      { at: 0, bytes: 5 * K, hole: false },
      { at: 5 * K, bytes: 104 * K, hole: true },
      { at: 109 * K, bytes: 31 * K, hole: false },
      { at: 140 * K, bytes: 60 * K, hole: true },
    ]);
  });

  it("take what was not told for data", () => {
    expect(pieces(200 * K, [64 * K, 3])).toEqual([
      { at: 0, bytes: 64 * K, hole: true },
      { at: 64 * K, bytes: 136 * K, hole: false },
    ]);
  });
});
