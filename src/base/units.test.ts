import { describe, expect, it } from "vitest";
import {
  alignDown,
  alignUp,
  divideUp,
  formatSize,
  GiB,
  isPowerOfTwo,
  KiB,
  MiB,
  parseSize,
  TiB,
} from "./units.ts";

const EDGES = [2 ** 31, 2 ** 32, 2 ** 33, 2 ** 40, 2 ** 52, 2 ** 53 - 2 * MiB];

describe("rounding, also where 32 bits end", () => {
  it.each(EDGES)("around %d", (edge) => {
    for (const unit of [1, 512, 64 * KiB, 2 * MiB]) {
      for (const rest of [0, 1, unit - 1].filter((each) => each >= 0 && each < unit)) {
        const base = Number((BigInt(edge) / BigInt(unit)) * BigInt(unit));
        const value = base + rest;
        const up = Number(((BigInt(value) + BigInt(unit) - 1n) / BigInt(unit)) * BigInt(unit));
        expect(alignDown(value, unit)).toBe(base);
        expect(alignUp(value, unit)).toBe(up);
        expect(divideUp(value, unit)).toBe(up / unit);
      }
    }
  });

  it("takes units that are no power of two", () => {
    expect([alignDown(10, 3), alignUp(10, 3), divideUp(10, 3)]).toEqual([9, 12, 4]);
    expect(divideUp(Number.MAX_SAFE_INTEGER, 3)).toBe(Number((2n ** 53n - 1n + 2n) / 3n));
  });
});

describe("isPowerOfTwo", () => {
  it("knows all of them below 2^53", () => {
    for (let shift = 0; shift < 53; shift++) {
      expect(isPowerOfTwo(2 ** shift)).toBe(true);
      expect(isPowerOfTwo(2 ** shift + 1)).toBe(shift === 0);
      if (shift > 1) expect(isPowerOfTwo(2 ** shift - 1)).toBe(false);
    }
  });

  it.each([0, -1, -8, 0.5, 1.5, Number.NaN, Number.POSITIVE_INFINITY])("refuses %d", (value) => {
    expect(isPowerOfTwo(value)).toBe(false);
  });
});

describe("parseSize", () => {
  it.each([
    ["0", 0],
    ["512", 512],
    ["1k", KiB],
    ["1K", KiB],
    ["64KiB", 64 * KiB],
    ["64kb", 64 * KiB],
    ["1.5G", 1.5 * GiB],
    ["10 M", 10 * MiB],
    ["16T", 16 * TiB],
    ["0.3k", 307],
    ["9007199254740991", 2 ** 53 - 1],
    ["7P", 7 * 2 ** 50],
    ["100B", 100],
  ])("reads %s", (text, bytes) => {
    expect(parseSize(text)).toBe(bytes);
  });

  it.each(["", "-1", "1.5", "1x", "k", "0x10", "1e3", "9007199254740992", "8P", "1E", "1 2", "NaN", "1.5B"])(
    "refuses '%s'",
    (text) => {
      expect(parseSize(text)).toBeUndefined();
    },
  );
});

describe("formatSize", () => {
  it.each([
    [0, "0 B"],
    [512, "512 B"],
    [1023, "1023 B"],
    [1024, "1 KiB"],
    [1536, "1.50 KiB"],
    [64 * KiB, "64 KiB"],
    [1024 * KiB - 1, "1.00 MiB"],
    [10.25 * MiB, "10.3 MiB"],
    [1.5 * GiB, "1.50 GiB"],
    [16 * TiB, "16 TiB"],
    [2 ** 53 - 1, "8.00 PiB"],
  ])("tells %d as %s", (bytes, text) => {
    expect(formatSize(bytes)).toBe(text);
  });
});
