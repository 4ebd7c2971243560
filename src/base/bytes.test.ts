import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { isZero, readU64, readU64OrInfinity, writeU64 } from "./bytes.ts";
import { BlockError } from "./errors.ts";

const EDGES = [0, 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 32 + 1, 2 ** 52, 2 ** 53 - 1];

describe("64-bit integers as numbers", () => {
  it.each(EDGES)("%d survives, in the bytes that BigInt writes", (value) => {
    const ours = Buffer.alloc(16, 0xee);
    const theirs = Buffer.alloc(16, 0xee);
    writeU64(ours, value, 5);
    theirs.writeBigUInt64BE(BigInt(value), 5);
    expect(ours).toEqual(theirs);
    expect(readU64(ours, 5)).toBe(value);
    expect(readU64OrInfinity(ours, 5)).toBe(value);
  });

  it("agrees with BigInt for any value", () => {
    const buffer = Buffer.alloc(8);
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (value) => {
        buffer.writeBigUInt64BE(value);
        const small = value < 2n ** 53n;
        expect(readU64OrInfinity(buffer, 0)).toBe(small ? Number(value) : Number.POSITIVE_INFINITY);
        if (small) expect(readU64(buffer, 0)).toBe(Number(value));
        else expect(() => readU64(buffer, 0)).toThrow(BlockError);
      }),
    );
  });

  it.each([2n ** 53n, 2n ** 63n, 2n ** 64n - 1n])("refuses %d, which a number cannot hold", (value) => {
    const buffer = Buffer.alloc(8);
    buffer.writeBigUInt64BE(value);
    expect(() => readU64(buffer, 0)).toThrow("64-bit value at byte 0 is 2^53 or more");
  });
});

describe("isZero", () => {
  it("finds a single byte, wherever it stands", () => {
    for (const bytes of [0, 1, 7, 8, 9, 64, 513]) {
      const buffer = Buffer.alloc(bytes + 2);
      buffer[0] = buffer[bytes + 1] = 1;
      expect(isZero(buffer, 1, bytes)).toBe(true);
      for (let at = 1; at <= bytes; at++) {
        buffer[at] = 0x80;
        expect(isZero(buffer, 1, bytes)).toBe(false);
        buffer[at] = 0;
      }
    }
  });

  it("is not taken in by bytes that are all alike", () => {
    expect(isZero(Buffer.alloc(100, 7), 0, 100)).toBe(false);
    expect(isZero(Buffer.concat([Buffer.alloc(8), Buffer.alloc(92, 7)]), 0, 100)).toBe(false);
  });
});
